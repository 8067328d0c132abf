// The reference operations: scalar, single-threaded, written to be read. Sums are kept in double and in index order.
// Signatures and meaning are those of struct lvp_backend_ops; of the backend they use the dtype only, so the fast
// backend borrows the ones that have nothing to gain from speed.
#ifndef LVP_WORKER_CPU_REF_OPS_H
#define LVP_WORKER_CPU_REF_OPS_H

#include "worker/backend.h"

// ref.c
enum lvp_status lvp_ref_alloc(struct lvp_backend *backend, size_t n_bytes, void **memory) LVP_MUST_CHECK;
void lvp_ref_free(struct lvp_backend *backend, void *memory);
enum lvp_status lvp_ref_payload_alloc(struct lvp_backend *backend, size_t n_bytes, bool on_device, void **payload);
void lvp_ref_upload(struct lvp_backend *backend, void *to, const void *host, size_t n_bytes);
void lvp_ref_download(struct lvp_backend *backend, void *host, const void *from, size_t n_bytes);
enum lvp_status lvp_ref_sync(struct lvp_backend *backend) LVP_MUST_CHECK;
void lvp_ref_load(struct lvp_backend *backend, const void *payload, size_t n, float *to);
void lvp_ref_store(struct lvp_backend *backend, const float *from, size_t n, void *payload);
bool lvp_ref_begin(struct lvp_backend *backend, uint64_t key);
void lvp_ref_end(struct lvp_backend *backend);

// ref_layers.c
enum lvp_status lvp_ref_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                      enum lvp_dtype weights, struct lvp_linear **linear) LVP_MUST_CHECK;
void lvp_ref_linear_destroy(struct lvp_backend *backend, struct lvp_linear *linear);
void lvp_ref_linear(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                    struct lvp_epilogue epilogue, float *y);
void lvp_ref_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                        const float *bias, float eps, const float *add, bool round, float *y);
void lvp_ref_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                      float eps, float *y);
void lvp_ref_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                 enum lvp_activation activation, float *y);

// ref_rows.c
void lvp_ref_unfold_patches(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch,
                            float *y);
void lvp_ref_vit_embed(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                       int n_images, int n_patches, int width, float *y);
void lvp_ref_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                   const int32_t *to, float *y);
void lvp_ref_copy_rows(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                       const int32_t *to);
void lvp_ref_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *selection);

// ref_attention.c
void lvp_ref_rope_kv_write(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                           const int32_t *positions, const float *rope, const int32_t *slots,
                           struct lvp_kv_layer cache);
void lvp_ref_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *attention);
void lvp_ref_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *attention);

// ref_prune.c
void lvp_ref_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *attention);
void lvp_ref_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *nms);

// ref_sample.c
void lvp_ref_sample(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *draws,
                    int32_t *tokens, float *logprobs);

// The value as the backend's dtype holds it.
static inline float lvp_ref_round(const struct lvp_backend *backend, float value)
{
    return lvp_round_to(value, backend->dtype);
}

#endif
