// From tensors in a mapped checkpoint to memory of a backend. What is created here is freed by the caller.
#ifndef LVP_WORKER_WEIGHTS_H
#define LVP_WORKER_WEIGHTS_H

#include "common/checkpoint.h"
#include "worker/backend.h"

// A norm's weight or bias: f32 whatever the file holds. `tensor` NULL gives NULL.
enum lvp_status lvp_vector_create(struct lvp_backend *backend, const struct lvp_tensor_view *tensor,
                                  float **vector) LVP_MUST_CHECK;

// A table of rows (token embedding, positions) in the given type.
enum lvp_status lvp_table_create(struct lvp_backend *backend, const struct lvp_tensor_view *tensor,
                                 enum lvp_dtype dtype, void **table) LVP_MUST_CHECK;

// A linear layer of one weight, packed as `type` (backend->weights for the model's own); bias may be NULL.
enum lvp_status lvp_linear_from(struct lvp_backend *backend, const struct lvp_tensor_view *weight,
                                const struct lvp_tensor_view *bias, enum lvp_dtype type,
                                struct lvp_linear **linear) LVP_MUST_CHECK;

// n elements of backend memory, zeroed. n = 0 gives a valid pointer.
enum lvp_status lvp_floats_create(struct lvp_backend *backend, size_t n, float **memory) LVP_MUST_CHECK;
enum lvp_status lvp_ints_create(struct lvp_backend *backend, size_t n, int32_t **memory) LVP_MUST_CHECK;

#endif
