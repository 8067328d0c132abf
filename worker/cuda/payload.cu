// Rows between the device and the memory that a transport works with: pinned host memory, in the model's dtype, so that
// half the bytes cross the bus.
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

// Elements that fit the room for narrow rows at once.
size_t piece_of(const lvp_cuda *cuda)
{
    return static_cast<size_t>(cuda->limits.max_rows) * static_cast<size_t>(cuda->narrow_width);
}

} // namespace

enum lvp_status lvp_cuda_payload_alloc(struct lvp_backend *backend, size_t n_bytes, void **payload)
{
    *payload = nullptr;
    LVP_TRY(lvp_cuda_reserve_narrow(lvp_cuda_of(backend), 1));
    if (cudaHostAlloc(payload, n_bytes + 1, cudaHostAllocDefault) == cudaSuccess) return LVP_OK;
    (void)cudaGetLastError();
    return lvp_fail(LVP_ERR_MEMORY, "out of pinned memory for a hop buffer of %zu bytes", n_bytes);
}

void lvp_cuda_payload_free(struct lvp_backend *, void *payload)
{
    (void)cudaFreeHost(payload);
}

void lvp_cuda_load(struct lvp_backend *backend, const void *payload, size_t n, float *to)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    if (backend->dtype == LVP_F32)
        return lvp_cuda_note(cuda, cudaMemcpyAsync(to, payload, n * sizeof *to, cudaMemcpyHostToDevice, cuda->stream),
                             "load");
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        T *room = static_cast<T *>(cuda->narrow);
        for (size_t start = 0, piece = piece_of(cuda); start < n; start += piece) {
            size_t count = n - start < piece ? n - start : piece;
            lvp_cuda_note(cuda,
                          cudaMemcpyAsync(room, static_cast<const T *>(payload) + start, count * sizeof(T),
                                          cudaMemcpyHostToDevice, cuda->stream),
                          "load");
            lvp_launch(widen_kernel<T>, grid_for(count), dim3(THREADS), 0, cuda->stream, static_cast<const T *>(room),
                       count, to + start);
        }
    });
}

void lvp_cuda_store(struct lvp_backend *backend, const float *from, size_t n, void *payload)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    if (backend->dtype == LVP_F32) return backend->ops->download(backend, payload, from, n * sizeof *from);
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        T *room = static_cast<T *>(cuda->narrow);
        for (size_t start = 0, piece = piece_of(cuda); start < n; start += piece) {
            size_t count = n - start < piece ? n - start : piece;
            lvp_launch(narrow_kernel<T>, grid_for(count), dim3(THREADS), 0, cuda->stream, from + start, count, room);
            lvp_cuda_note(cuda,
                          cudaMemcpyAsync(static_cast<T *>(payload) + start, room, count * sizeof(T),
                                          cudaMemcpyDeviceToHost, cuda->stream),
                          "store");
        }
    });
    lvp_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "store");
}
