#include "worker/weights.h"

#include "common/checked.h"

#include <stdlib.h>

static size_t element_count(const struct lvp_tensor_view *tensor)
{
    return tensor->n_bytes / lvp_dtype_size(tensor->dtype);
}

enum lvp_status lvp_table_create(struct lvp_backend *backend, const struct lvp_tensor_view *tensor,
                                 enum lvp_dtype dtype, void **table)
{
    enum lvp_status status = LVP_OK;
    size_t n = element_count(tensor);
    size_t size = lvp_dtype_size(dtype);
    enum { CHUNK = 1 << 20 }; // elements converted at a time
    float *wide = malloc(CHUNK * sizeof *wide);
    char *narrow = malloc(CHUNK * size);
    *table = NULL;
    if (wide == NULL || narrow == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory while loading %s", tensor->name);
        goto fail;
    }
    LVP_CHECK(backend->ops->alloc(backend, n * size, table));
    for (size_t start = 0; start < n; start += CHUNK) {
        size_t count = n - start < CHUNK ? n - start : CHUNK;
        for (size_t i = 0; i < count; i++) wide[i] = lvp_load_f32(tensor->data, tensor->dtype, start + i);
        lvp_narrow(wide, count, dtype, narrow);
        backend->ops->upload(backend, (char *)*table + start * size, narrow, count * size);
    }
    lvp_safetensors_drop_pages(tensor);
fail:
    free(wide);
    free(narrow);
    return status;
}

enum lvp_status lvp_vector_create(struct lvp_backend *backend, const struct lvp_tensor_view *tensor, float **vector)
{
    *vector = NULL;
    if (tensor == NULL) return LVP_OK;
    void *memory = NULL;
    enum lvp_status status = lvp_table_create(backend, tensor, LVP_F32, &memory);
    *vector = memory;
    return status;
}

enum lvp_status lvp_linear_from(struct lvp_backend *backend, const struct lvp_tensor_view *weight,
                                const struct lvp_tensor_view *bias, enum lvp_dtype type, struct lvp_linear **linear)
{
    struct lvp_linear_part part = {.weight = weight, .bias = bias};
    return backend->ops->linear_create(backend, &part, 1, type, linear);
}

static enum lvp_status words_create(struct lvp_backend *backend, size_t n, void **memory)
{
    size_t n_bytes;
    if (!lvp_checked_mul(n, 4, &n_bytes)) return lvp_fail(LVP_ERR_MEMORY, "a buffer of %zu words does not fit", n);
    return backend->ops->alloc(backend, n_bytes == 0 ? 4 : n_bytes, memory);
}

enum lvp_status lvp_floats_create(struct lvp_backend *backend, size_t n, float **memory)
{
    void *words = NULL;
    enum lvp_status status = words_create(backend, n, &words);
    *memory = words;
    return status;
}

enum lvp_status lvp_ints_create(struct lvp_backend *backend, size_t n, int32_t **memory)
{
    void *words = NULL;
    enum lvp_status status = words_create(backend, n, &words);
    *memory = words;
    return status;
}
