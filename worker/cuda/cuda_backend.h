// What the CUDA backend consists of; shared by its .cu files. Not for others.
//
// Everything is queued on one compute stream; what waits for the device is upload (for its own earlier copies),
// download, store, sync, and whatever frees memory. The first error of the device is kept and reported by sync.
#ifndef LVP_WORKER_CUDA_CUDA_BACKEND_H
#define LVP_WORKER_CUDA_CUDA_BACKEND_H

#include "worker/cuda/device.h"

#include <cublasLt.h>

extern "C" {
#include "worker/backend.h"
}

// Host memory for uploads, pinned, used in turns: a copy may still be under way while the next is filled.
enum { LVP_CUDA_STAGES = 4 };
struct lvp_cuda_staging {
    void *memory;
    size_t n_bytes;
    cudaEvent_t done; // when the last copy out of it has ended
};

// A step that was recorded; the least recently used one makes room.
enum { LVP_CUDA_RECORDINGS = 128 };
struct lvp_cuda_recording {
    uint64_t key;
    int met;               // how often the key was asked for: the first time a step runs as it is
    cudaGraphExec_t graph; // or NULL
    long used;
};

struct lvp_cuda {
    struct lvp_backend base; // first: the table's pointer is this one
    int device;
    struct lvp_backend_limits limits;
    cudaStream_t stream;
    cudaError_t error; // the first; sync reports it
    const char *error_at;
    struct lvp_cuda_staging staging[LVP_CUDA_STAGES];
    int next_staging;

    cublasLtHandle_t cublas;
    void *cublas_space; // LVP_CUDA_BLAS_SPACE bytes
    void *narrow;       // [max_rows, narrow_width] inputs of a linear layer in the model's dtype; NULL for f32
    int narrow_width;   // of the widest so far
    float *partial;     // [partial_floats] of split attention
    size_t partial_floats;
    struct lvp_cuda_recording recordings[LVP_CUDA_RECORDINGS];
    uint64_t recording; // key of what is recorded now; 0: nothing
    long uses;
};

enum { LVP_CUDA_BLAS_SPACE = 32 << 20 };

static inline struct lvp_cuda *lvp_cuda_of(struct lvp_backend *backend)
{
    return reinterpret_cast<struct lvp_cuda *>(backend);
}

// Operations that may be called by a thread that did not open the backend: the device's memory, measuring and closing.
static inline void lvp_cuda_bind(struct lvp_backend *backend)
{
    if (cudaSetDevice(lvp_cuda_of(backend)->device) != cudaSuccess) (void)cudaGetLastError(); // what follows fails too
}

// Keeps the first error.
static inline void lvp_cuda_note(struct lvp_cuda *cuda, cudaError_t error, const char *at)
{
    if (error == cudaSuccess || cuda->error != cudaSuccess) return;
    cuda->error = error;
    cuda->error_at = at;
}

// Calls f with a zero of the C++ type of `dtype`, for templates over it.
template <class F> void lvp_with_type(enum lvp_dtype dtype, F f)
{
    if (dtype == LVP_BF16)
        f(__nv_bfloat16{});
    else if (dtype == LVP_F16)
        f(__half{});
    else
        f(0.0f);
}

// cuda_backend.cu: room to narrow the inputs of a layer that reads `width` features. While creating layers only.
enum lvp_status lvp_cuda_reserve_narrow(struct lvp_cuda *cuda, int width) LVP_MUST_CHECK;

// The operations (worker/backend.h), by file.
// linear.cu
enum lvp_status lvp_cuda_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                       enum lvp_dtype weights, struct lvp_linear **linear);
void lvp_cuda_linear_destroy(struct lvp_backend *backend, struct lvp_linear *linear);
void lvp_cuda_linear(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                     struct lvp_epilogue epilogue, float *y);
// rows.cu
void lvp_cuda_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                         const float *bias, float eps, const float *add, bool round, float *y);
void lvp_cuda_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                       float eps, float *y);
void lvp_cuda_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                  enum lvp_activation activation, float *y);
void lvp_cuda_unfold_patches(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch,
                             float *y);
void lvp_cuda_vit_embed(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                        int n_images, int n_patches, int width, float *y);
void lvp_cuda_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                    const int32_t *to, float *y);
void lvp_cuda_copy_rows(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                        const int32_t *to);
void lvp_cuda_rope_kv_write(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                            const int32_t *positions, const float *rope, const int32_t *slots,
                            struct lvp_kv_layer cache);
// attention.cu
void lvp_cuda_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *attention);
void lvp_cuda_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *attention);
// prune.cu
void lvp_cuda_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *attention);
void lvp_cuda_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *nms);
// choose.cu
void lvp_cuda_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *selection);
void lvp_cuda_sample(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *draws,
                     int32_t *tokens, float *logprobs);
// payload.cu
cudaError_t lvp_cuda_has_code(void); // for the current device; an error where the module has none
enum lvp_status lvp_cuda_payload_alloc(struct lvp_backend *backend, size_t n_bytes, bool on_device, void **payload);
void lvp_cuda_payload_free(struct lvp_backend *backend, void *payload);
void lvp_cuda_load(struct lvp_backend *backend, const void *payload, size_t n, float *to);
void lvp_cuda_store(struct lvp_backend *backend, const float *from, size_t n, void *payload);
// recording.cu
bool lvp_cuda_begin(struct lvp_backend *backend, uint64_t key);
void lvp_cuda_end(struct lvp_backend *backend);
void lvp_cuda_forget(struct lvp_cuda *cuda); // all recordings

#endif
