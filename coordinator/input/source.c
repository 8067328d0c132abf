#include "coordinator/input/source.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *lvp_source_root(const char *input, bool folder)
{
    const char *slash = strrchr(input, '/');
    size_t n = folder ? strlen(input) : slash != NULL ? (size_t)(slash - input) : 0;
    while (n > 1 && input[n - 1] == '/') n--;
    if (n == 0) return strdup(slash == input ? "" : "."); // "/x.jpg" joins to "" "/" "x.jpg"
    return strndup(input, n == 1 && input[0] == '/' ? 0 : n);
}

void lvp_cursor_close(struct lvp_cursor *cursor)
{
    if (cursor->open) (void)close(cursor->file);
    free(cursor->bytes);
    *cursor = (struct lvp_cursor){0};
}
