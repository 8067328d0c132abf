// Reader of one .safetensors file through mmap: 8 bytes little-endian header size, JSON header, tensor bytes
// (https://github.com/huggingface/safetensors, format section). Everything in the file is untrusted.
// Thread: open and close from one thread; the rest is read-only and may be called from any.
#ifndef LVP_COMMON_SAFETENSORS_H
#define LVP_COMMON_SAFETENSORS_H

#include "common/dtype.h"
#include "common/status.h"

#include <stdbool.h>

enum { LVP_TENSOR_MAX_DIMS = 8 };

// A tensor in the mapped file. Pointers live as long as the file is open. `data` may be unaligned.
struct lvp_tensor_view {
    const char *name;
    enum lvp_dtype dtype;   // LVP_DTYPE_OTHER: listed, but nothing can compute with it
    const char *dtype_name; // as the file spells it, "BF16"
    bool mapped;            // the bytes are pages of a file, not memory of the caller
    int n_dims;
    int64_t shape[LVP_TENSOR_MAX_DIMS];
    const void *data;
    size_t n_bytes;
};

struct lvp_safetensors;

// LVP_ERR_MODEL names the file and the tensor or field that is wrong. Every tensor's bytes lie inside the file as it is
// at this moment: a truncated file fails here and not later with SIGBUS.
enum lvp_status lvp_safetensors_open(const char *path, struct lvp_safetensors **file) LVP_MUST_CHECK;
void lvp_safetensors_close(struct lvp_safetensors *file); // NULL is allowed

size_t lvp_safetensors_count(const struct lvp_safetensors *file);
const struct lvp_tensor_view *lvp_safetensors_at(const struct lvp_safetensors *file, size_t i);
// NULL when there is none of that name.
const struct lvp_tensor_view *lvp_safetensors_find(const struct lvp_safetensors *file, const char *name);
// Value of a `__metadata__` key, NULL when absent.
const char *lvp_safetensors_metadata(const struct lvp_safetensors *file, const char *key);
const void *lvp_safetensors_bytes(const struct lvp_safetensors *file, size_t *n_bytes); // the whole file
const char *lvp_safetensors_path(const struct lvp_safetensors *file);

// Same checks on a header in memory; for the fuzzer and tests. `bytes` is the whole file and must outlive the result.
enum lvp_status lvp_safetensors_parse(const char *name, const void *bytes, size_t n_bytes,
                                      struct lvp_safetensors **file) LVP_MUST_CHECK;

// Tells the kernel that the tensor's pages are not needed any more (after packing).
void lvp_safetensors_drop_pages(const struct lvp_tensor_view *tensor);

#endif
