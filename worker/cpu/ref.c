// The reference backend: every operation of the table in its plainest form. Tests hold all other backends against it.
#include "worker/cpu/ref_ops.h"

#include <stdlib.h>

enum lvp_status lvp_ref_alloc(struct lvp_backend *backend, size_t n_bytes, void **memory)
{
    (void)backend;
    *memory = NULL;
    if (n_bytes > SIZE_MAX / 2) return lvp_fail(LVP_ERR_MEMORY, "an allocation of %zu bytes is out of bounds", n_bytes);
    // calloc, not aligned_alloc and memset: large buffers come as zero pages that cost nothing until they are touched,
    // and KV pools and work space for the longest prompt are mostly never touched. What calloc gave is kept in front of
    // the buffer.
    char *base = calloc(1, n_bytes + 128);
    if (base == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for %zu bytes", n_bytes);
    char *aligned = base + 128 - (uintptr_t)base % 64;
    memcpy(aligned - sizeof base, &base, sizeof base);
    *memory = aligned;
    return LVP_OK;
}

void lvp_ref_free(struct lvp_backend *backend, void *memory)
{
    (void)backend;
    if (memory == NULL) return;
    char *base;
    memcpy(&base, (char *)memory - sizeof base, sizeof base);
    free(base);
}

enum lvp_status lvp_ref_payload_alloc(struct lvp_backend *backend, size_t n_bytes, bool on_device, void **payload)
{
    if (on_device) return lvp_fail(LVP_ERR_INTERNAL, "a CPU has no device memory for payloads");
    return lvp_ref_alloc(backend, n_bytes, payload);
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

void lvp_ref_load(struct lvp_backend *backend, const void *payload, size_t n, float *to)
{
    lvp_widen(payload, n, backend->dtype, to);
}

void lvp_ref_store(struct lvp_backend *backend, const float *from, size_t n, void *payload)
{
    lvp_narrow(from, n, backend->dtype, payload);
}

// Nothing is recorded here.
bool lvp_ref_begin(struct lvp_backend *backend, uint64_t key)
{
    (void)backend;
    (void)key;
    return true;
}

void lvp_ref_end(struct lvp_backend *backend)
{
    (void)backend;
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
    .last_attention = lvp_ref_last_attention,
    .soft_nms = lvp_ref_soft_nms,
    .select_rows = lvp_ref_select_rows,
    .sample = lvp_ref_sample,
    .payload_alloc = lvp_ref_payload_alloc,
    .payload_free = lvp_ref_free,
    .load = lvp_ref_load,
    .store = lvp_ref_store,
    .begin = lvp_ref_begin,
    .end = lvp_ref_end,
};

enum lvp_status lvp_ref_backend_open(enum lvp_dtype dtype, struct lvp_backend **backend)
{
    *backend = NULL;
    if (!lvp_dtype_computes((int)dtype)) {
        return lvp_fail(LVP_ERR_USAGE, "the CPU computes in bf16, f16 or f32, not in %s", lvp_dtype_name(dtype));
    }
    struct lvp_backend *opened = malloc(sizeof *opened);
    if (opened == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the reference backend");
    *opened =
        (struct lvp_backend){.ops = &ref_ops, .dtype = dtype, .weights = dtype, .kernel_set = "ref", .threads = 1};
    *backend = opened;
    return LVP_OK;
}
