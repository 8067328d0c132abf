// Rows between the backend's memory and what a transport works with, in the model's dtype: pinned host memory, which
// kernels read and write over the bus, or the device's own.
#include "worker/cuda/cuda_backend.h"

namespace
{

enum { THREADS = 256 };

template <class T> __global__ void widen_kernel(const T *x, size_t n, float *y)
{
    size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < n) y[i] = lvp_float(x[i]);
}

template <class T> __global__ void narrow_kernel(const float *x, size_t n, T *y)
{
    size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    if (i < n) y[i] = lvp_cast<T>(x[i]);
}

dim3 grid_for(size_t n)
{
    return dim3(static_cast<unsigned>((n + THREADS - 1) / THREADS));
}

} // namespace

cudaError_t lvp_cuda_has_code(void)
{
    cudaFuncAttributes of = {};
    return cudaFuncGetAttributes(&of, reinterpret_cast<const void *>(narrow_kernel<float>));
}

enum lvp_status lvp_cuda_payload_alloc(struct lvp_backend *backend, size_t n_bytes, bool on_device, void **payload)
{
    *payload = nullptr;
    lvp_cuda_bind(backend);
    cudaError_t error =
        on_device ? cudaMalloc(payload, n_bytes + 1) : cudaHostAlloc(payload, n_bytes + 1, cudaHostAllocDefault);
    if (error == cudaSuccess) return LVP_OK;
    (void)cudaGetLastError();
    return lvp_fail(LVP_ERR_MEMORY, "out of %s memory for a hop buffer of %zu bytes", on_device ? "GPU" : "pinned",
                    n_bytes);
}

void lvp_cuda_payload_free(struct lvp_backend *backend, void *payload)
{
    cudaPointerAttributes of = {};
    lvp_cuda_bind(backend);
    if (payload == nullptr || cudaPointerGetAttributes(&of, payload) != cudaSuccess) return;
    (void)(of.type == cudaMemoryTypeDevice ? cudaFree(payload) : cudaFreeHost(payload));
}

void lvp_cuda_load(struct lvp_backend *backend, const void *payload, size_t n, float *to)
{
    if (n == 0) return;
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_launch(widen_kernel<T>, grid_for(n), dim3(THREADS), 0, lvp_cuda_of(backend)->stream,
                   static_cast<const T *>(payload), n, to);
    });
}

void lvp_cuda_store(struct lvp_backend *backend, const float *from, size_t n, void *payload)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    if (n == 0) return;
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_launch(narrow_kernel<T>, grid_for(n), dim3(THREADS), 0, cuda->stream, from, n, static_cast<T *>(payload));
    });
    lvp_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "store");
}
