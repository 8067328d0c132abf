// Strings side by side in one block: a few bytes of overhead each, for millions of them.
#ifndef LVP_COORDINATOR_NAME_LIST_H
#define LVP_COORDINATOR_NAME_LIST_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Zeroed is empty.
struct lvp_name_list {
    char *bytes; // NUL-terminated names
    size_t n_bytes, capacity;
    uint64_t *starts; // [n] offsets into bytes
    size_t n, max;
};

enum lvp_status lvp_name_list_add(struct lvp_name_list *list, const char *name) LVP_MUST_CHECK;
static inline const char *lvp_name_list_at(const struct lvp_name_list *list, size_t i)
{
    return list->bytes + list->starts[i];
}
void lvp_name_list_sort(struct lvp_name_list *list); // byte-wise
void lvp_name_list_free(struct lvp_name_list *list);

// Whether a name ends in .jpg, .jpeg, .png or .webp, in any case.
bool lvp_is_image_name(const char *name);

#endif
