// Linear layers of the CPU backend: weights rounded to the model's dtype and packed once for one kernel set, and the
// product y = round(add + act(x W^T + bias)) run on the pool's threads. Semantics: struct lvp_backend_ops,
// linear_create and linear. The bits of an output row depend on that row, the weights, the kernel set and the dtype
// only.
#ifndef LVP_WORKER_CPU_LINEAR_H
#define LVP_WORKER_CPU_LINEAR_H

#include "worker/backend.h"
#include "worker/cpu/kernels/matmul.h"
#include "worker/cpu/pool.h"

struct lvp_linear {
    int out, in;
    enum lvp_dtype dtype;         // the model's: of biases and of what the epilogue rounds to
    enum lvp_dtype weights_dtype; // the same, or LVP_INT8
    void *weights;                // packed as kernels/matmul.h describes
    float *weight_scale;          // [out, padded to whole panels], used by int8 weights
    float *bias;                  // [out, padded to whole panels], rounded to dtype; 0 where a part has none
};

// The matmul kernels of "portable", "avx2", "avx512" or "avx512bf16"; NULL for a name this build lacks. Does not ask
// whether this CPU can run them.
const struct lvp_matmul_kernels *lvp_matmul_kernels_find(const char *kernel_set);

// Memory as weights lie in it: large ones on huge pages where the system has them. NULL, or for free().
void *lvp_weights_alloc(size_t bytes);

// Rounds to `weights_dtype` (`dtype`, the model's, or LVP_INT8) and packs for `kernels` on the pool's threads. The
// parts are [out, ...] of any float type at any alignment and become consecutive output columns; they are not needed
// afterwards. LVP_ERR_MODEL names the tensor that does not fit, LVP_ERR_MEMORY.
enum lvp_status lvp_linear_pack(struct lvp_pool *pool, const struct lvp_matmul_kernels *kernels,
                                const struct lvp_linear_part *parts, int n_parts, enum lvp_dtype dtype,
                                enum lvp_dtype weights_dtype, struct lvp_linear **linear) LVP_MUST_CHECK;
void lvp_linear_free(struct lvp_linear *linear); // NULL is allowed

// Bytes of scratch for lvp_linear_run with up to max_rows rows and max_in features; 0 where the product overflows.
size_t lvp_linear_scratch_bytes(int threads, int max_rows, int max_in);

// x [n_rows, in], y [n_rows, out]; epilogue.add may be y. `scratch` is 64-byte aligned and the caller's; what it holds
// does not matter. Same kernels as at packing. n_rows = 0 is allowed.
void lvp_linear_run(struct lvp_pool *pool, const struct lvp_matmul_kernels *kernels, const struct lvp_linear *linear,
                    const float *x, int n_rows, struct lvp_epilogue epilogue, float *y, void *scratch);

#endif
