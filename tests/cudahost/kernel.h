// What a kernel sees when it is compiled for the host: CUDA's built-in objects and functions, and the twins of
// worker/cuda/ptx.h. A block's threads are fibers of one thread (fibers.h), so that every order of them can be tried
// and a barrier that some do not reach is reported instead of hanging.
#ifndef LVP_TESTS_CUDAHOST_KERNEL_H
#define LVP_TESTS_CUDAHOST_KERNEL_H

#include "tests/cudahost/fibers.h"

#include <math.h>
#include <string.h>

#include <type_traits>

#define __launch_bounds__(...)
#define LVP_UNROLL
#define LVP_SHARED(type, name, count)                                                                                  \
    static const char name##_key = 0;                                                                                  \
    type *const name = static_cast<type *>(lvp_host::shared(&name##_key, sizeof(type) * (count)))
#define LVP_DYNAMIC_SHARED(type, name) type *const name = static_cast<type *>(lvp_host::dynamic_shared())

#define LVP_HOST_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LVP_HOST_PLACE)
{
    lvp_host::barrier(file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffU, LVP_HOST_PLACE)
{
    lvp_host::warp_barrier(mask, file, line);
}

template <class T> T __shfl_xor_sync(unsigned mask, T x, int bits, LVP_HOST_PLACE)
{
    return lvp_host::exchange(x, mask, file, line)[lvp_host::lane() ^ bits];
}
template <class T> T __shfl_sync(unsigned mask, T x, int from, LVP_HOST_PLACE)
{
    return lvp_host::exchange(x, mask, file, line)[from % 32];
}
// Lanes below `step` keep their own value.
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned step, LVP_HOST_PLACE)
{
    auto values = lvp_host::exchange(x, mask, file, line);
    return lvp_host::lane() < static_cast<int>(step) ? x : values[lvp_host::lane() - static_cast<int>(step)];
}
inline unsigned __ballot_sync(unsigned mask, int predicate, LVP_HOST_PLACE)
{
    auto values = lvp_host::exchange(predicate, mask, file, line);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++)
        if ((mask >> lane & 1) != 0 && values[lane] != 0) votes |= 1U << lane;
    return votes;
}

inline int atomicAdd(int *address, int value)
{
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int __ffs(int bits)
{
    return __builtin_ffs(bits);
}
inline unsigned __float_as_uint(float x)
{
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// --- twins of worker/cuda/ptx.h, whose comments say what they do

namespace lvp_host
{

template <class T> float half_of(uint32_t pair, int i)
{
    uint16_t bits = static_cast<uint16_t>(pair >> (16 * i));
    T x;
    memcpy(static_cast<void *>(&x), &bits, sizeof x);
    return static_cast<float>(x);
}

struct mma_registers {
    uint32_t a[4], b[2];
};

} // namespace lvp_host

template <class T> void lvp_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, LVP_HOST_PLACE)
{
    lvp_host::mma_registers mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    auto lanes = lvp_host::exchange(mine, 0xffffffffU, file, line);
    int g = lvp_host::lane() / 4, t = lvp_host::lane() % 4;
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 2; c++) {
            int column = 2 * t + c;
            for (int k = 0; k < 16; k++) {
                const lvp_host::mma_registers &left = lanes[g * 4 + k % 8 / 2], &right = lanes[column * 4 + k % 8 / 2];
                d[2 * r + c] +=
                    lvp_host::half_of<T>(left.a[r + k / 8 * 2], k % 2) * lvp_host::half_of<T>(right.b[k / 8], k % 2);
            }
        }
}

template <bool TRANSPOSED> void lvp_load_matrices(uint32_t (&r)[4], const void *row, LVP_HOST_PLACE)
{
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) lvp_host::stop("a matrix row is not 16-byte aligned", file, line);
    auto rows = lvp_host::exchange(row, 0xffffffffU, file, line);
    int g = lvp_host::lane() / 4, t = lvp_host::lane() % 4;
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int e = 0; e < 2; e++) {
            int from = TRANSPOSED ? 2 * t + e : g, column = TRANSPOSED ? g : 2 * t + e;
            memcpy(&pair[e], static_cast<const char *>(rows[m * 8 + from]) + 2 * column, sizeof pair[e]);
        }
        memcpy(&r[m], pair, sizeof pair);
    }
}

inline void lvp_copy_async(void *shared, const void *global, LVP_HOST_PLACE)
{
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16 != 0)
        lvp_host::stop("an asynchronous copy is not 16-byte aligned", file, line);
    lvp_host::copy_later(shared, global);
}
inline void lvp_copy_commit()
{
    lvp_host::copy_commit();
}
template <int GROUPS> void lvp_copy_wait()
{
    lvp_host::copy_wait(GROUPS);
}

inline void *lvp_nccl_library()
{
    return lvp_host::nccl_library();
}

template <class... Params, class... Args>
void lvp_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                Args... args)
{
    auto check = [=](auto argument) {
        if constexpr (std::is_pointer_v<decltype(argument)>) lvp_host::check_argument(argument, stream);
    };
    (check(args), ...);
    lvp_host::launch(grid, block, shared_bytes, stream, [=] { kernel(Params(args)...); });
}

#endif
