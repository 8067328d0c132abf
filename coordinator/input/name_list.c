#include "coordinator/input/name_list.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum lvp_status lvp_name_list_add(struct lvp_name_list *list, const char *name)
{
    size_t length = strlen(name) + 1;
    if (length > list->capacity - list->n_bytes) {
        size_t capacity = 2 * list->capacity + length + 4096;
        char *bytes = realloc(list->bytes, capacity);
        if (bytes == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
        list->bytes = bytes;
        list->capacity = capacity;
    }
    if (list->n == list->max) {
        size_t max = 2 * list->max + 64;
        uint64_t *starts = realloc(list->starts, max * sizeof *starts);
        if (starts == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
        list->starts = starts;
        list->max = max;
    }
    memcpy(list->bytes + list->n_bytes, name, length);
    list->starts[list->n++] = list->n_bytes;
    list->n_bytes += length;
    return LVP_OK;
}

static int compare_names(const void *a, const void *b, void *bytes)
{
    return strcmp((const char *)bytes + *(const uint64_t *)a, (const char *)bytes + *(const uint64_t *)b);
}

void lvp_name_list_sort(struct lvp_name_list *list)
{
    if (list->n > 1) qsort_r(list->starts, list->n, sizeof *list->starts, compare_names, list->bytes);
}

void lvp_name_list_free(struct lvp_name_list *list)
{
    free(list->bytes);
    free(list->starts);
    *list = (struct lvp_name_list){0};
}

bool lvp_is_image_name(const char *name)
{
    static const char *const endings[] = {".jpg", ".jpeg", ".png", ".webp"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]);
        if (length > n && strcasecmp(name + length - n, endings[i]) == 0) return true;
    }
    return false;
}
