// The reference backend: every operation of the table in its plainest form. Tests hold all other backends against it.
#include "worker/cpu/ref_ops.h"

#include <stdlib.h>

enum lvp_status lvp_ref_alloc(struct lvp_backend *backend, size_t n_bytes, void **memory)
{
    (void)backend;
    *memory = NULL;
    if (n_bytes > SIZE_MAX / 2) return lvp_fail(LVP_ERR_MEMORY, "an allocation of %zu bytes is out of bounds", n_bytes);
    size_t rounded = (n_bytes + 64) / 64 * 64; // aligned_alloc wants a multiple; never 0
    *memory = aligned_alloc(64, rounded);
    if (*memory == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for %zu bytes", n_bytes);
    memset(*memory, 0, rounded);
    return LVP_OK;
}

void lvp_ref_free(struct lvp_backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}

void lvp_ref_upload(struct lvp_backend *backend, void *to, const void *host, size_t n_bytes)
{
    (void)backend;
    if (n_bytes != 0) memcpy(to, host, n_bytes);
}

void lvp_ref_download(struct lvp_backend *backend, void *host, const void *from, size_t n_bytes)
{
    (void)backend;
    if (n_bytes != 0) memcpy(host, from, n_bytes);
}

enum lvp_status lvp_ref_sync(struct lvp_backend *backend)
{
    (void)backend;
    return LVP_OK;
}

static void ref_close(struct lvp_backend *backend)
{
    free(backend);
}

static const struct lvp_backend_ops ref_ops = {
    .close = ref_close,
    .alloc = lvp_ref_alloc,
    .free = lvp_ref_free,
    .upload = lvp_ref_upload,
    .download = lvp_ref_download,
    .sync = lvp_ref_sync,
    .linear_create = lvp_ref_linear_create,
    .linear_destroy = lvp_ref_linear_destroy,
    .linear = lvp_ref_linear,
    .layer_norm = lvp_ref_layer_norm,
    .rms_norm = lvp_ref_rms_norm,
    .glu = lvp_ref_glu,
    .unfold_patches = lvp_ref_unfold_patches,
    .vit_embed = lvp_ref_vit_embed,
    .embed = lvp_ref_embed,
    .copy_rows = lvp_ref_copy_rows,
    .rope_kv_write = lvp_ref_rope_kv_write,
    .paged_attention = lvp_ref_paged_attention,
    .dense_attention = lvp_ref_dense_attention,
    .select_rows = lvp_ref_select_rows,
    .sample = lvp_ref_sample,
};

enum lvp_status lvp_ref_backend_open(enum lvp_dtype dtype, struct lvp_backend **backend)
{
    *backend = NULL;
    if (dtype != LVP_BF16 && dtype != LVP_F32) {
        return lvp_fail(LVP_ERR_USAGE, "the CPU computes in bf16 or f32, not in %s", lvp_dtype_name(dtype));
    }
    struct lvp_backend *opened = malloc(sizeof *opened);
    if (opened == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the reference backend");
    *opened = (struct lvp_backend){.ops = &ref_ops, .dtype = dtype, .kernel_set = "ref", .threads = 1};
    *backend = opened;
    return LVP_OK;
}
