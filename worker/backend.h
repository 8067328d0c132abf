// The table of operations the model is written over. One implementation per kind of device: worker/cpu/ref.c (plain
// reference), worker/cpu/ (fast kernels per instruction set), worker/cuda/.
//
// Conventions
// - Every pointer parameter of a compute operation is memory of the backend (alloc), index arrays too; counts are host
// ints.
// - Activations are f32, row-major, rows contiguous: x [n_rows, width]. The residual stream holds values rounded to the
//   model's dtype (backend->dtype) at every block boundary; inside a block f32 is kept. K and V are stored in the
//   model's dtype and read back rounded.
// - INVARIANCE: an output row depends only on its own inputs, bit for bit: never on n_rows, on its place in the batch
//   or on the thread count. Each output accumulates over K in one fixed order. On a GPU linear layers are cuBLAS's,
//   which may sum in another order for another n_rows.
// - Compute operations return nothing: their arguments are checked by the caller, device faults surface at sync.
// - No allocation inside a compute operation. One thread at a time uses a backend.
// - Outputs do not overlap inputs unless the operation says so. n_rows = 0 is allowed everywhere.
#ifndef LVP_WORKER_BACKEND_H
#define LVP_WORKER_BACKEND_H

#include "common/model_config.h"
#include "common/safetensors.h"
#include "worker/attention_ops.h"
#include "worker/prune_ops.h"

struct lvp_backend;
struct lvp_linear; // packed weights of one linear layer, opaque to the model

// One weight that becomes the next `out` rows of a fused linear layer (q, k and v; gate and up).
struct lvp_linear_part {
    const struct lvp_tensor_view *weight; // [out, in], any float dtype; a [V, 3, p, p] convolution counts as [V, 3*p*p]
    const struct lvp_tensor_view *bias;   // [out] or NULL
};

// What happens to a linear layer's result before it is stored: y = round(add + act(x W^T + bias)).
struct lvp_epilogue {
    enum lvp_activation activation;
    const float *add; // [n_rows, out] or NULL; without an activation it may be the output itself
    bool round;       // to backend->dtype: the result is the residual stream at a block boundary
};

// How one row of logits becomes a token.
struct lvp_draw {
    double uniform;    // the random number, in (0, 1): worker/philox.h
    float temperature; // 0: greedy, ties to the lower id
    float top_p;       // 1: off
    int32_t scored;    // a token whose logprob is wanted in place of the chosen one's; negative: none
};

// What the device could do at best.
struct lvp_roof {
    double flops;      // FLOP/s of multiply-adds in the kind of arithmetic that linear layers use, on registers
    double read_bytes; // bytes/s from memory
};

struct lvp_backend_ops {
    void (*close)(struct lvp_backend *backend);

    enum lvp_status (*alloc)(struct lvp_backend *backend, size_t n_bytes,
                             void **memory) LVP_MUST_CHECK;  // zeroed, 64-byte aligned
    void (*free)(struct lvp_backend *backend, void *memory); // NULL is allowed
    void (*upload)(struct lvp_backend *backend, void *to, const void *host, size_t n_bytes);
    void (*download)(struct lvp_backend *backend, void *host, const void *from,
                     size_t n_bytes); // waits for what wrote it
    enum lvp_status (*sync)(struct lvp_backend *backend) LVP_MUST_CHECK;

    // Rounds to `weights` (the model's dtype, or LVP_INT8: worker/cpu/int8.h) and packs for the kernels. The sources
    // are not needed afterwards.
    enum lvp_status (*linear_create)(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                     enum lvp_dtype weights, struct lvp_linear **linear) LVP_MUST_CHECK;
    void (*linear_destroy)(struct lvp_backend *backend, struct lvp_linear *linear); // NULL is allowed

    // y [n_rows, out] = round(add + act(x [n_rows, in] W^T + bias)).
    void (*linear)(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                   struct lvp_epilogue epilogue, float *y);

    // y = [add +] (x - mean) / sqrt(var + eps) * weight + bias, per row [width]. add may be NULL; y may be x.
    // `round`: to the model's dtype.
    void (*layer_norm)(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                       const float *bias, float eps, const float *add, bool round, float *y);
    // y = x / sqrt(mean(x^2) + eps) * weight. y may be x.
    void (*rms_norm)(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight, float eps,
                     float *y);
    // y [n_rows, width] = act(gate_up[:, :width]) * gate_up[:, width:].
    void (*glu)(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                enum lvp_activation activation, float *y);

    // Row i of the patch matrix is the flattened [3, patch, patch] window of patch i, in row-major order of patches.
    // pixels [n_images, 3, size, size] -> y [n_images * (size / patch)^2, 3 * patch * patch].
    void (*unfold_patches)(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch,
                           float *y);
    // y [n_images * (patches + 1), width]: row 0 of an image is cls + position[0], row 1 + i is patch i + position[1 +
    // i].
    void (*vit_embed)(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                      int n_images, int n_patches, int width, float *y);
    // y[to[i]] = table[ids[i]] for i < n; table [vocab, width] in the model's dtype; `to` NULL means i.
    void (*embed)(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                  const int32_t *to, float *y);
    // y[to[i]] = x[from[i]] for i < n, rows of `width` 32-bit words; a NULL index means i. y is not x.
    void (*copy_rows)(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                      const int32_t *to);

    // Rotates q in place. Writes k, rotated, and v to slots[row] of the cache, rounded to the model's dtype; in qkv
    // they stay as they were. rope [max_positions, head_dim]: cosines [head_dim / 2], then sines, of each position;
    // pairs are (i, i + head_dim / 2).
    void (*rope_kv_write)(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                          const int32_t *positions, const float *rope, const int32_t *slots, struct lvp_kv_layer cache);
    // scale = 1 / sqrt(head_dim)
    void (*paged_attention)(struct lvp_backend *backend, const struct lvp_paged_attention *attention);
    void (*dense_attention)(struct lvp_backend *backend, const struct lvp_dense_attention *attention);

    // At prune points (worker/pruner.h): scores, a choice, and the rows that stay.
    void (*last_attention)(struct lvp_backend *backend, const struct lvp_last_attention *attention);
    void (*soft_nms)(struct lvp_backend *backend, const struct lvp_soft_nms *nms);
    void (*select_rows)(struct lvp_backend *backend, const struct lvp_row_selection *selection);

    // tokens [n], logprobs [n]: natural log of the chosen (or the scored) token's probability in the unscaled
    // distribution.
    void (*sample)(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *draws,
                   int32_t *tokens, float *logprobs);

    // Rows as they travel between ranks, in the model's dtype, in memory that a transport reads and writes: the host's,
    // or `on_device` the device's own. load widens n values into backend memory; store rounds n values, which are at
    // their place when it returns.
    enum lvp_status (*payload_alloc)(struct lvp_backend *backend, size_t n_bytes, bool on_device,
                                     void **payload) LVP_MUST_CHECK;
    void (*payload_free)(struct lvp_backend *backend, void *payload); // NULL is allowed
    void (*load)(struct lvp_backend *backend, const void *payload, size_t n, float *to);
    void (*store)(struct lvp_backend *backend, const float *from, size_t n, void *payload);

    // Compute operations between begin and end are the same ones on the same memory whenever `key` is the same, so that
    // a device may record and repeat them: begin returns false where it has done so, and they are left out.
    bool (*begin)(struct lvp_backend *backend, uint64_t key);
    void (*end)(struct lvp_backend *backend);

    // For benchmarks: measures the device for some seconds while nothing else uses it. NULL: cannot.
    enum lvp_status (*roof)(struct lvp_backend *backend, struct lvp_roof *roof) LVP_MUST_CHECK;

    int max_head_dim; // widest head of the attentions; 0: any
};

struct lvp_backend {
    const struct lvp_backend_ops *ops;
    enum lvp_dtype dtype;   // of residual stream, KV and weights: LVP_BF16, LVP_F16 or LVP_F32
    enum lvp_dtype weights; // of the model's linear layers: dtype, unless the owner sets LVP_INT8 before it creates any
    const char *kernel_set; // "ref", "portable", "avx2", "avx512", "avx512bf16", "cuda"; with dtype and weights the
                            // numeric path
    int threads;
};

// Limits fixed when a backend is opened, so that scratch is allocated once.
struct lvp_backend_limits {
    int max_rows;   // rows of any operation
    int max_width;  // widest row of any operation (features of a linear layer, in or out)
    int max_kv_len; // slots of one sequence
    int max_vocab;
};

// `kernel_set` NULL takes the best this CPU has, or what LVP_ISA in the environment names. LVP_ERR_USAGE where this CPU
// lacks it or the name is unknown.
enum lvp_status lvp_cpu_backend_open(const char *kernel_set, enum lvp_dtype dtype, int threads,
                                     const struct lvp_backend_limits *limits,
                                     struct lvp_backend **backend) LVP_MUST_CHECK;
enum lvp_status lvp_ref_backend_open(enum lvp_dtype dtype, struct lvp_backend **backend) LVP_MUST_CHECK;
// The kernel set that lvp_cpu_backend_open(NULL) would take; NULL and an error text when LVP_ISA names one that is not
// there.
const char *lvp_cpu_best_kernel_set(void);

#endif
