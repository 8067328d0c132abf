// Runs a kernel's blocks one after another on the calling thread, each thread of a block as a fiber.
//
// LVP_CUDAHOST_ORDER says who goes on when a fiber has to wait: `forward` (the default) and `reverse` go around,
// `depth` stays in a warp as long as it can, a number seeds a random choice. Shared memory is filled with 0xff before a
// block starts. What cannot be on a device ends the process with a line that says what and where: a barrier that not
// all threads of the block reach, threads of a warp that meet at different lines, a lane that is waited for and has
// ended.
#ifndef LVP_TESTS_CUDAHOST_FIBERS_H
#define LVP_TESTS_CUDAHOST_FIBERS_H

#include <cuda_runtime.h>

#include <functional>
#include <mutex>
#include <stddef.h>

// Kernels run under the runtime's lock, one at a time. ThreadSanitizer does not see it.
#ifdef LVP_CUDAHOST_TSAN
#define LVP_HOST_LOCAL thread_local
#else
#define LVP_HOST_LOCAL
#endif
extern LVP_HOST_LOCAL uint3 threadIdx, blockIdx;
extern LVP_HOST_LOCAL dim3 blockDim, gridDim;

namespace lvp_host
{

[[noreturn]] void stop(const char *what, const char *file, int line);

// Of the block that runs. The first thread to ask for a key makes the room.
void *shared(const void *key, size_t n_bytes);
void *dynamic_shared();

int lane();
void barrier(const char *file, int line);
void warp_barrier(unsigned mask, const char *file, int line);

// Gives `mine` to the other lanes of the mask and waits for theirs: [32][n_bytes], valid until the lane's next
// exchange.
enum { EXCHANGE_BYTES = 24 };
const void *exchange_bytes(const void *mine, size_t n_bytes, unsigned mask, const char *file, int line);
// What lanes exchange goes through registers: no memory access, and nothing that orders others, for ThreadSanitizer.
#ifdef LVP_CUDAHOST_TSAN
void copy_unwatched(void *to, const void *from, size_t n_bytes);
#else
inline void copy_unwatched(void *to, const void *from, size_t n_bytes)
{
    __builtin_memcpy(to, from, n_bytes);
}
#endif

template <class T> struct lanes {
    const unsigned char *bytes;
    T operator[](int lane) const
    {
        T value;
        copy_unwatched(&value, bytes + static_cast<size_t>(lane) * EXCHANGE_BYTES, sizeof value);
        return value;
    }
};
template <class T> lanes<T> exchange(const T &mine, unsigned mask, const char *file, int line)
{
    static_assert(sizeof(T) <= EXCHANGE_BYTES, "too large to exchange");
    return {static_cast<const unsigned char *>(exchange_bytes(&mine, sizeof mine, mask, file, line))};
}

// Asynchronous copies of a thread: done when they are waited for, and not before.
void copy_later(void *to, const void *from);
void copy_commit();
void copy_wait(int groups);

// Runs body once per thread of every block, now.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &body);

// devices.cpp: a setting in the environment, NULL where it is not set or empty; the calling thread's device.
const char *setting(const char *name);
int current_device();
// runtime.cpp: what a call returns: the error that stays, once there is one, or this one, which is the last then.
cudaError_t result(cudaError_t error);
// Queues work on a stream.
void queue_work(cudaStream_t stream, std::function<void()> work);
// Work that another process must do its part of: asked again and again until it says true. What is behind it waits.
void queue_transfer(cudaStream_t stream, std::function<bool()> progress);
// Returns once `done` holds, as the device and other threads go on meanwhile.
void wait_until(const std::function<bool()> &done);
// Under which all queued work is done.
std::unique_lock<std::recursive_mutex> device_lock();
// Whether all of it lies in one piece of memory that cudaMalloc gave on that device.
bool device_memory(const void *memory, size_t n_bytes, int device);
int device_of(cudaStream_t stream);
// Ends the process where a kernel on the stream could not reach what a pointer among its arguments points to.
void check_argument(const void *memory, cudaStream_t stream);
void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> body);

// nccl.cpp: what dlopen gives for NCCL's library; NULL where LVP_CUDAHOST_NCCL says that there is none.
void *nccl_library();

} // namespace lvp_host

#endif
