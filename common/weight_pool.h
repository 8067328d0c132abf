// Weights that nobody has trained: random values from which tensors of any shape are cut, for benchmarks of models that
// are not here. Tensors share the pool's memory; each starts somewhere else in it. Thread: one; the views may be read
// by any.
#ifndef LVP_COMMON_WEIGHT_POOL_H
#define LVP_COMMON_WEIGHT_POOL_H

#include "common/safetensors.h"

struct lvp_weight_pool;

// A pool for tensors of up to `largest` elements.
enum lvp_status lvp_weight_pool_create(size_t largest, struct lvp_weight_pool **pool) LVP_MUST_CHECK;
void lvp_weight_pool_free(struct lvp_weight_pool *pool); // NULL is allowed

// A bf16 tensor of the sizes, up to the first 0 (at most 4): a bias (by its name) is 0, a norm's weight (of one
// dimension) 1, anything else uniform with a standard deviation of 0.02. The view lives as long as the pool; `name` is
// borrowed.
struct lvp_tensor_view lvp_weight_pool_cut(struct lvp_weight_pool *pool, const char *name, const int *sizes);

#endif
