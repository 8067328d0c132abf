// The CUDA runtime's calls that worker/cuda uses, for a machine without a GPU. A stream is a queue of work.
//
// LVP_CUDAHOST_LAZY: unset, work is done when it is queued. A number: it is done when something waits for it and not
// before, streams taking turns in an order seeded by the number, so that a missing wait or event shows.
// Work that waits for another process (lvp_host::queue_transfer) is tried again whenever time passes.
// LVP_CUDAHOST_FAIL=N: the N-th piece of work fails, as a device that falls off the bus does.
//
// Streams, events and memory belong to the device that was current when they were made. A kernel on the stream of
// another than the current device, or with memory that its device does not reach, ends the process.
#include "tests/cudahost/fibers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <set>
#include <vector>

struct piece {
    std::function<bool()> work; // false: cannot be done yet, try others
    bool outside;               // another process may be what it waits for
};

struct CUstream_st {
    int device;
    std::deque<piece> queue;
    cudaGraph_t capturing;
};

struct CUevent_st {
    int device;
    unsigned long recorded, reached; // how often asked for, and how often it came to pass
    double when;
};

struct CUgraph_st {
    std::vector<std::function<bool()>> work;
};

struct CUgraphExec_st {
    std::vector<std::function<bool()>> work;
};

using lvp_host::current_device;
using lvp_host::result;
using lvp_host::setting;

namespace
{

enum { OUTSIDE_SECONDS = 20, OUTSIDE_REST_US = 20 };

std::recursive_mutex mutex; // one device, however many threads use it
std::set<CUstream_st *> streams;
// What cudaMalloc and cudaHostAlloc gave, by where it starts.
struct block {
    size_t n_bytes;
    int device; // ON_HOST: pinned
};
enum { ON_HOST = -1 };
std::map<uintptr_t, block> blocks;
cudaError_t last_error = cudaSuccess, sticky = cudaSuccess;
unsigned long work_done;

double now()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

bool do_one(CUstream_st *stream)
{
    if (stream->queue.empty()) return false;
    if (!stream->queue.front().work()) return false;
    stream->queue.pop_front();
    work_done++;
    const char *fails = setting("LVP_CUDAHOST_FAIL");
    if (fails != nullptr && work_done == strtoul(fails, nullptr, 10)) sticky = cudaErrorLaunchFailure;
    return true;
}

[[noreturn]] void stuck(const char *text)
{
    fprintf(stderr, "cudahost: %s\n", text);
    abort();
}

bool waits_outside()
{
    for (CUstream_st *stream : streams)
        if (!stream->queue.empty() && stream->queue.front().outside) return true;
    return false;
}

// All streams; in lazy mode in an order that is drawn.
std::vector<CUstream_st *> drawn_order()
{
    static unsigned long long random = 1;
    const char *lazy = setting("LVP_CUDAHOST_LAZY");
    std::vector<CUstream_st *> order(streams.begin(), streams.end());
    for (size_t i = order.size(); lazy != nullptr && i > 1; i--) {
        random = random * 6364136223846793005ULL + strtoull(lazy, nullptr, 10) * 2 + 1;
        std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    return order;
}

// Does queued work until `done` holds; where only another process can help, `patient` ones wait for it.
template <class Done> void work_until(Done done, bool patient = true)
{
    double since = now();
    while (!done()) {
        bool moved = false;
        for (CUstream_st *stream : drawn_order())
            if (!done() && do_one(stream)) moved = true;
        if (moved) since = now();
        if (moved || done()) continue;
        if (!waits_outside()) stuck("a wait that cannot end: an event that was never recorded?");
        if (!patient) return;
        if (now() - since > OUTSIDE_SECONDS) stuck("a wait for another process that does not end");
        (void)usleep(OUTSIDE_REST_US);
    }
}

void queue(cudaStream_t stream, std::function<bool()> work, bool outside = false)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (stream == nullptr) stuck("work on the default stream, which waits for everything");
    if (stream->capturing != nullptr) {
        if (outside) stuck("work with another process in a graph");
        stream->capturing->work.push_back(std::move(work));
        return;
    }
    stream->queue.push_back({std::move(work), outside});
    if (setting("LVP_CUDAHOST_LAZY") == nullptr) work_until([=] { return stream->queue.empty(); }, false);
}

void finish_all()
{
    work_until([] {
        for (CUstream_st *stream : streams)
            if (!stream->queue.empty()) return false;
        return true;
    });
}

// NULL where not all of it lies in one block.
const block *block_of(const void *memory, size_t n_bytes)
{
    uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    auto after = blocks.upper_bound(start);
    if (after == blocks.begin()) return nullptr;
    auto found = std::prev(after);
    uintptr_t before = start - found->first;
    return before <= found->second.n_bytes && n_bytes <= found->second.n_bytes - before ? &found->second : nullptr;
}

// Memory of its own for every call, so that a sanitizer sees what lies past its end. Freeing waits for the device.
cudaError_t allocate(void **memory, size_t n_bytes, int device)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (sticky != cudaSuccess) return sticky;
    *memory = n_bytes > (4ULL << 30) ? nullptr : aligned_alloc(256, (n_bytes + 255) / 256 * 256);
    if (*memory == nullptr) return result(cudaErrorMemoryAllocation);
    memset(*memory, 0xa5, (n_bytes + 255) / 256 * 256); // a device's memory holds what was there before
    blocks[reinterpret_cast<uintptr_t>(*memory)] = {n_bytes, device};
    return cudaSuccess;
}

cudaError_t release(void *memory, bool pinned)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (memory == nullptr) return cudaSuccess;
    auto found = blocks.find(reinterpret_cast<uintptr_t>(memory));
    if (found == blocks.end() || (found->second.device == ON_HOST) != pinned)
        stuck("memory is freed that was not allocated so");
    finish_all();
    blocks.erase(found);
    free(memory);
    return cudaSuccess;
}

} // namespace

cudaError_t lvp_host::result(cudaError_t error)
{
    if (sticky != cudaSuccess) error = sticky;
    if (error != cudaSuccess) last_error = error;
    return error;
}

void lvp_host::queue_work(cudaStream_t stream, std::function<void()> work)
{
    queue(stream, [work] {
        work();
        return true;
    });
}

void lvp_host::queue_transfer(cudaStream_t stream, std::function<bool()> progress)
{
    queue(stream, std::move(progress), true);
}

void lvp_host::wait_until(const std::function<bool()> &done)
{
    for (double since = now();; (void)usleep(OUTSIDE_REST_US)) {
        std::lock_guard<std::recursive_mutex> guard(mutex);
        for (CUstream_st *stream : drawn_order()) (void)do_one(stream);
        if (done()) return;
        if (now() - since > OUTSIDE_SECONDS) stuck("a wait for the device that does not end");
    }
}

std::unique_lock<std::recursive_mutex> lvp_host::device_lock()
{
    return std::unique_lock<std::recursive_mutex>(mutex);
}

bool lvp_host::device_memory(const void *memory, size_t n_bytes, int device)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    const block *found = block_of(memory, n_bytes);
    return found != nullptr && found->device == device;
}

int lvp_host::device_of(cudaStream_t stream)
{
    return stream->device;
}

void lvp_host::check_argument(const void *memory, cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    const block *found = block_of(memory, 0);
    if (memory == nullptr || stream == nullptr) return;
    if (found == nullptr) stuck("a kernel is given memory that neither cudaMalloc nor cudaHostAlloc gave");
    if (found->device != ON_HOST && found->device != stream->device) stuck("a kernel is given another device's memory");
}

void lvp_host::launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, std::function<void()> body)
{
    if (stream != nullptr && stream->device != current_device()) stuck("a kernel on a stream of another device");
    queue(stream, [=] {
        run(grid, block, shared_bytes, body);
        return true;
    });
}

extern "C" {

cudaError_t cudaGetLastError()
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    cudaError_t error = sticky != cudaSuccess ? sticky : last_error;
    last_error = cudaSuccess;
    return error;
}
const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoKernelImageForDevice:
        return "no kernel image is available for execution on the device";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return "an error";
    }
}

cudaError_t cudaMalloc(void **memory, size_t n_bytes)
{
    return allocate(memory, n_bytes, current_device());
}
cudaError_t cudaFree(void *memory)
{
    return release(memory, false);
}
cudaError_t cudaHostAlloc(void **memory, size_t n_bytes, unsigned)
{
    return allocate(memory, n_bytes, ON_HOST);
}
cudaError_t cudaFreeHost(void *memory)
{
    return release(memory, true);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *of, const void *memory)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    const block *found = block_of(memory, 0);
    *of = {};
    of->type = found == nullptr           ? cudaMemoryTypeUnregistered
               : found->device == ON_HOST ? cudaMemoryTypeHost
                                          : cudaMemoryTypeDevice;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all_bytes)
{
    *free_bytes = *all_bytes = 4ULL << 30;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n_bytes, cudaMemcpyKind, cudaStream_t stream)
{
    queue(stream, [=] {
        memcpy(to, from, n_bytes);
        return true;
    });
    return result(cudaSuccess);
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t n_bytes, cudaStream_t stream)
{
    queue(stream, [=] {
        memset(memory, value, n_bytes);
        return true;
    });
    return result(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    *stream = new CUstream_st{current_device(), {}, nullptr};
    streams.insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    work_until([=] { return stream->queue.empty(); });
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    work_until([=] { return stream->queue.empty(); });
    return result(cudaSuccess);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    unsigned long wanted = event->recorded;
    queue(stream, [=] { return event->reached >= wanted; });
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = new CUevent_st{current_device(), 0, 0, 0};
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    work_until([=] { return event->reached >= event->recorded; });
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (stream != nullptr && event->device != stream->device)
        stuck("an event is recorded on a stream of another device");
    unsigned long number = ++event->recorded;
    queue(stream, [=] {
        event->reached = number;
        event->when = now();
        return true;
    });
    return result(cudaSuccess);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    work_until([=] { return event->reached >= event->recorded; });
    return result(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (event->reached >= event->recorded) return result(cudaSuccess);
    for (CUstream_st *stream : drawn_order()) // time passes
        if (do_one(stream)) break;
    return sticky != cudaSuccess ? sticky : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    *milliseconds = static_cast<float>((end->when - start->when) * 1e3);
    if (*milliseconds <= 0) *milliseconds = 1e-3f;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    stream->capturing = new CUgraph_st{};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->capturing;
    stream->capturing = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    *executable = new CUgraphExec_st{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    finish_all();
    delete executable;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    for (const std::function<bool()> &work : executable->work) queue(stream, work);
    return result(cudaSuccess);
}

} // extern "C"
