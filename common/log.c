#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static enum lvp_log_level threshold = LVP_LOG_INFO;
static char prefix[64];

void lvp_log_init(enum lvp_log_level level, const char *who)
{
    threshold = level;
    if (who[0] != '\0')
        (void)snprintf(prefix, sizeof prefix, "%s: ", who);
    else
        prefix[0] = '\0';
}

void lvp_log(enum lvp_log_level level, const char *format, ...)
{
    if (level > threshold) return;
    static const char *const labels[] = {"error: ", "warning: ", "", ""};
    char line[1200];
    int n = snprintf(line, sizeof line, "lvpipe: %s%s", prefix, labels[level]);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    if (m < 0) return;
    size_t length = (size_t)n + (size_t)m;
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    // A failed write to stderr has no one left to tell.
    if (write(STDERR_FILENO, line, length) < 0) return;
}
