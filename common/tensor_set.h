// The tensors of a checkpoint by name, whether they lie in one safetensors file or in the shards of an index. Remembers
// which were asked for, so that what nobody wanted can be named.
#ifndef LVP_COMMON_TENSOR_SET_H
#define LVP_COMMON_TENSOR_SET_H

#include "common/safetensors.h"

struct lvp_tensor_entry {
    const struct lvp_tensor_view *view;
    const struct lvp_safetensors *file;
    bool used;
};

struct lvp_tensor_set {
    struct lvp_safetensors **files; // [n_files] owned
    size_t n_files;
    struct lvp_tensor_entry *entries; // [n_entries] by name, owned
    size_t n_entries;
};

// Opens DIR/model.safetensors, else every shard of DIR/model.safetensors.index.json. LVP_ERR_MODEL for a folder with
// neither, a shard that is missing, a tensor that the index promises and its shard lacks, a name in two shards.
enum lvp_status lvp_tensor_set_open(const char *dir, struct lvp_tensor_set *set) LVP_MUST_CHECK;
void lvp_tensor_set_close(struct lvp_tensor_set *set); // safe on a zeroed struct

// NULL when there is none.
struct lvp_tensor_entry *lvp_tensor_set_find(const struct lvp_tensor_set *set, const char *name);

// One warning that names the first tensors for which neither `used` is set nor `ignorable(name, context)` holds.
void lvp_tensor_set_warn_unused(const struct lvp_tensor_set *set, const char *dir,
                                bool (*ignorable)(const char *name, const void *context), const void *context);

// Checks a view against [sizes], ended by a 0 or LVP_TENSOR_MAX_DIMS, and for a float type. `path` is for messages.
enum lvp_status lvp_tensor_check(const struct lvp_tensor_view *view, const char *path, const int *sizes) LVP_MUST_CHECK;

#endif
