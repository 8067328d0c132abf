// Weights that nobody has trained: random values from which tensors of any shape are cut, for benchmarks of models that
// are not here. Tensors share the pool's memory; each starts somewhere else in it. Thread: one; the views may be read
// by any.
#ifndef LVP_COMMON_WEIGHT_POOL_H
#define LVP_COMMON_WEIGHT_POOL_H

#include "common/safetensors.h"

struct lvp_weight_pool;

enum lvp_pool_values { LVP_POOL_RANDOM /* uniform, standard deviation 0.02 */, LVP_POOL_ONES, LVP_POOL_ZEROS };

// A pool for tensors of up to `largest` elements.
enum lvp_status lvp_weight_pool_create(size_t largest, struct lvp_weight_pool **pool) LVP_MUST_CHECK;
void lvp_weight_pool_free(struct lvp_weight_pool *pool); // NULL is allowed

// A bf16 tensor of the sizes, up to the first 0 (at most 4). The view lives as long as the pool; `name` is borrowed.
struct lvp_tensor_view lvp_weight_pool_cut(struct lvp_weight_pool *pool, const char *name, const int *sizes,
                                           enum lvp_pool_values values);

#endif
