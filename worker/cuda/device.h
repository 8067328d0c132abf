// What the .cu files share: launching kernels, shared memory, number types, warp and block reductions.
//
// The same sources are compiled twice: by nvcc for devices, and as plain C++ against the host runtime of
// tests/cudahost, which executes kernels without a GPU. The difference is in this file and nowhere else.
#ifndef LVP_WORKER_CUDA_DEVICE_H
#define LVP_WORKER_CUDA_DEVICE_H

#define CUDA_NO_HALF // no type of the name `half`
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <dlfcn.h>
#include <stdint.h>

#ifdef LVP_CUDA_HOST
#include "tests/cudahost/kernel.h" // lvp_nccl_library, LVP_SHARED, LVP_DYNAMIC_SHARED, lvp_launch, lvp_mma, lvp_load_matrix, lvp_copy_async
#else
#include "worker/cuda/ptx.h"

#define LVP_UNROLL                    _Pragma("unroll")
#define LVP_SHARED(type, name, count) __shared__ type name[count]
#define LVP_DYNAMIC_SHARED(type, name)                                                                                 \
    extern __shared__ __align__(16) unsigned char name##_bytes[];                                                      \
    type *name = reinterpret_cast<type *>(name##_bytes)

// A handle for dlsym; NULL: not there.
static inline void *lvp_nccl_library()
{
    return dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
}

// Launches and keeps quiet: errors of a launch surface at the backend's sync.
template <class... Params, class... Args>
void lvp_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                Args... args)
{
    enum { WITHOUT_ASKING = 48 << 10 };
    if (shared_bytes > WITHOUT_ASKING)
        (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    kernel<<<grid, block, shared_bytes, stream>>>(Params(args)...);
}
#endif

enum { LVP_WARP = 32 };

static __device__ inline float lvp_float(float x)
{
    return x;
}
static __device__ inline float lvp_float(__nv_bfloat16 x)
{
    return __bfloat162float(x);
}
static __device__ inline float lvp_float(__half x)
{
    return __half2float(x);
}

template <class T> __device__ inline T lvp_cast(float x);
template <> __device__ inline float lvp_cast<float>(float x)
{
    return x;
}
template <> __device__ inline __nv_bfloat16 lvp_cast<__nv_bfloat16>(float x)
{
    return __float2bfloat16_rn(x);
}
template <> __device__ inline __half lvp_cast<__half>(float x)
{
    return __float2half_rn(x);
}

template <class T> __device__ inline float lvp_rounded(float x)
{
    return lvp_float(lvp_cast<T>(x));
}

// Two neighbours as the 32-bit register that the tensor cores read, the lower index in the lower half.
template <class T> __device__ inline uint32_t lvp_pair(float low, float high)
{
    T pair[2] = {lvp_cast<T>(low), lvp_cast<T>(high)};
    uint32_t bits;
    memcpy(&bits, pair, sizeof bits);
    return bits;
}

struct lvp_sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct lvp_max {
    __device__ float operator()(float a, float b) const { return a > b ? a : b; }
};

// Over the lanes of a warp that differ in the bits below `width`; every lane gets the result. All 32 lanes call.
template <class Op> __device__ inline float lvp_warp_reduce(float x, Op op, int width = LVP_WARP)
{
    for (int lane = width / 2; lane > 0; lane /= 2) x = op(x, __shfl_xor_sync(0xffffffffU, x, lane));
    return x;
}

// Over the block, whose threads are a multiple of 32; every thread gets the result. `room` [32] is shared memory that
// the caller does not touch until its next barrier.
template <class Op> __device__ inline float lvp_block_reduce(float x, Op op, float neutral, float *room)
{
    int lane = static_cast<int>(threadIdx.x) % LVP_WARP, warp = static_cast<int>(threadIdx.x) / LVP_WARP;
    x = lvp_warp_reduce(x, op);
    __syncthreads(); // an earlier reduction's readers are done with `room`
    if (lane == 0) room[warp] = x;
    __syncthreads();
    x = lane < static_cast<int>(blockDim.x) / LVP_WARP ? room[lane] : neutral;
    return lvp_warp_reduce(x, op);
}

// The largest of the threads' *top and the lowest *id among equals; every thread gets both. `tops` and `ids` [warps]
// are shared memory that the caller does not touch until its next barrier.
static __device__ inline void lvp_block_best(float *top, int *id, float *tops, int *ids)
{
    int lane = static_cast<int>(threadIdx.x) % LVP_WARP, warp = static_cast<int>(threadIdx.x) / LVP_WARP;
    auto take = [&](float other, int other_id) {
        if (other < *top || (other == *top && other_id >= *id)) return;
        *top = other;
        *id = other_id;
    };
    for (int step = LVP_WARP / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffU, *top, step);
        int other_id = __shfl_xor_sync(0xffffffffU, *id, step);
        take(other, other_id);
    }
    __syncthreads(); // an earlier reduction's readers are done with the room
    if (lane == 0) {
        tops[warp] = *top;
        ids[warp] = *id;
    }
    __syncthreads();
    for (int w = 0; w < static_cast<int>(blockDim.x) / LVP_WARP; w++) take(tops[w], ids[w]);
}

#endif
