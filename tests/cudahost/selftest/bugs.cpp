// Small kernels and uses of streams, each right as it stands and wrong where its name is asked for. The self-test
// (selftest.cpp) demands that every wrong one is noticed in one of the modes and that the right ones pass in all: a
// detector that nobody tries is none.
#include "tests/cudahost/selftest/bugs.h"

#include "worker/cuda/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace
{

enum { THREADS = 64, WARPS = THREADS / 32, N = 4 * THREADS };

int at()
{
    return static_cast<int>(threadIdx.x);
}

// y[i] = x[THREADS - 1 - i], through shared memory, twice.
__global__ void reverse(const float *x, float *y, bool no_first, bool no_second)
{
    LVP_SHARED(float, row, THREADS);
    for (int round = 0; round < 2; round++) {
        row[at()] = x[round * THREADS + at()];
        if (!no_first) __syncthreads();
        y[round * THREADS + at()] = row[THREADS - 1 - at()];
        if (!no_second) __syncthreads(); // before it is written again
    }
}

// Sum of a block by warps, then over them.
__global__ void sum(const float *x, float *y, bool stale, bool neighbour)
{
    LVP_SHARED(float, room, 32);
    LVP_SHARED(float, pairs, THREADS);
    for (int i = 0; i < 2; i++) {
        float value = lvp_warp_reduce(x[i * THREADS + at()], lvp_sum());
        if (!stale) __syncthreads();
        if (at() % 32 == 0) room[at() / 32] = value;
        __syncthreads();
        value = 0;
        for (int w = 0; w < WARPS; w++) value += room[w];
        y[i * THREADS + at()] = value;
    }
    pairs[at()] = x[at()];
    if (!neighbour) __syncwarp(); // lanes of a warp do not run in step
    y[2 * THREADS + at()] = pairs[at() ^ 1];
}

__global__ void divergent(float *y, bool half, bool early, bool two_places)
{
    if (early && at() < 8) return;
    if (half) {
        if (at() < 32) __syncthreads();
    } else if (two_places && at() % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[at()] = 1;
}

__global__ void shuffles(const float *x, float *y, bool branch, bool mask)
{
    float value = x[at()];
    if (branch) {
        if (at() % 32 < 16) value = __shfl_xor_sync(0xffffffffU, value, 1);
    } else {
        value = __shfl_xor_sync(mask && at() % 32 == 3 ? 0x0000ffffU : 0xffffffffU, value, 1);
    }
    y[at()] = value;
}

// Uses shared memory that nobody wrote.
__global__ void uninitialised(float *y, bool wrong)
{
    LVP_SHARED(float, row, THREADS);
    if (!wrong || at() != 5) row[at()] = 2;
    __syncthreads();
    y[at()] = row[at()] + 1;
}

// Copies 4 floats a thread through shared memory, in two groups.
__global__ void copies(const float *x, float *y, bool no_wait, bool one_left, bool misaligned, bool no_barrier)
{
    LVP_DYNAMIC_SHARED(float, room);
    float *mine = room + 4 * at() + (misaligned ? 1 : 0);
    lvp_copy_async(mine, x + 4 * at());
    lvp_copy_commit();
    if (!no_wait) {
        if (one_left)
            lvp_copy_wait<1>();
        else
            lvp_copy_wait<0>();
    }
    if (!no_barrier) __syncthreads();
    int from = THREADS - 1 - at();
    for (int i = 0; i < 4; i++) y[4 * at() + i] = room[4 * from + i];
}

// d = a b of 16 x 16 and 16 x 8, a[i][j] = 2 i + j, b[i][j] = i - j.
__global__ void product(float *y, bool swapped, bool no_transpose, bool misaligned)
{
    LVP_DYNAMIC_SHARED(__nv_bfloat16, b);
    enum { WIDTH = 16 + 8 };
    int lane = at(), g = lane / 4, t = lane % 4;
    for (int i = lane; i < 16 * WIDTH; i += 32)
        b[i] = lvp_cast<__nv_bfloat16>(static_cast<float>(i / WIDTH - i % WIDTH));
    __syncthreads();
    uint32_t a[4], pieces[4];
    for (int part = 0; part < 4; part++) {
        int row = g + (swapped ? part / 2 : part % 2) * 8, column = 2 * t + (swapped ? part % 2 : part / 2) * 8;
        a[part] =
            lvp_pair<__nv_bfloat16>(static_cast<float>(2 * row + column), static_cast<float>(2 * row + column + 1));
    }
    const __nv_bfloat16 *row = b + (lane / 8 % 2 * 8 + lane % 8) * WIDTH + lane / 16 * 8 + (misaligned ? 1 : 0);
    if (no_transpose)
        lvp_load_matrices<false>(pieces, row);
    else
        lvp_load_matrices<true>(pieces, row);
    float d[4] = {};
    lvp_mma<__nv_bfloat16>(d, a, pieces[0], pieces[1]);
    for (int e = 0; e < 4; e++) y[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = d[e];
}

__global__ void bounds(float *y, int n, bool over, bool short_tail)
{
    int i = static_cast<int>(blockIdx.x) * THREADS + at();
    if (over ? i <= n : short_tail ? i < n / THREADS * THREADS : i < n) y[i] = 3;
}

// Every thread counts the even numbers it sees.
__global__ void count(int *n, bool plain)
{
    if (at() % 2 != 0) return;
    if (plain)
        *n = *n + 1;
    else
        atomicAdd(n, 1);
}

struct test {
    cudaStream_t stream, other;
    float *x, *y;
    float host[N];
    bool wrong;

    test()
    {
        bool ok = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess &&
                  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking) == cudaSuccess &&
                  cudaMalloc(reinterpret_cast<void **>(&x), N * sizeof(float)) == cudaSuccess &&
                  cudaMalloc(reinterpret_cast<void **>(&y), N * sizeof(float)) == cudaSuccess;
        wrong = !ok;
        for (int i = 0; i < N; i++) host[i] = static_cast<float>(i);
        expect(cudaMemcpyAsync(x, host, sizeof host, cudaMemcpyHostToDevice, stream));
        expect(cudaMemsetAsync(y, 0, N * sizeof(float), stream));
        expect(cudaStreamSynchronize(stream));
    }
    ~test()
    {
        (void)cudaFree(x);
        (void)cudaFree(y);
        (void)cudaStreamDestroy(stream);
        (void)cudaStreamDestroy(other);
    }
    test(const test &) = delete;
    test &operator=(const test &) = delete;
    void expect(cudaError_t error) { wrong = wrong || error != cudaSuccess; }
    void fetch()
    {
        expect(cudaMemcpyAsync(host, y, sizeof host, cudaMemcpyDeviceToHost, stream));
        expect(cudaStreamSynchronize(stream));
    }
    template <class Want> void check(int n, Want want)
    {
        for (int i = 0; i < n; i++)
            if (!(host[i] == static_cast<float>(want(i)))) {
                if (!wrong)
                    fprintf(stderr, "element %d is %g, not %g\n", i, static_cast<double>(host[i]),
                            static_cast<double>(want(i)));
                wrong = true;
            }
    }
};

bool is(const char *bug, const char *name)
{
    return strcmp(bug, name) == 0;
}

// Streams: a pinned buffer that is filled again, two streams, a result that is read.
void streams(test *t, const char *bug)
{
    cudaEvent_t ready = nullptr;
    float *pinned = nullptr;
    t->expect(cudaHostAlloc(reinterpret_cast<void **>(&pinned), N * sizeof(float), cudaHostAllocDefault));
    t->expect(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming));
    for (int round = 0; round < 2; round++) {
        if (round == 1 && !is(bug, "buffer_reused")) t->expect(cudaStreamSynchronize(t->stream));
        for (int i = 0; i < N / 2; i++) pinned[i] = static_cast<float>(round + 1);
        t->expect(
            cudaMemcpyAsync(t->x + round * N / 2, pinned, N / 2 * sizeof(float), cudaMemcpyHostToDevice, t->stream));
    }
    if (!is(bug, "event_not_recorded")) t->expect(cudaEventRecord(ready, t->stream));
    if (is(bug, "event_not_recorded"))
        t->expect(cudaMemsetAsync(t->x, 0, N * sizeof(float), t->other)); // somebody else's work
    if (!is(bug, "no_event")) t->expect(cudaStreamWaitEvent(t->other, ready, 0));
    t->expect(cudaMemcpyAsync(t->y, t->x, N * sizeof(float), cudaMemcpyDeviceToDevice, t->other));
    t->expect(cudaMemcpyAsync(t->host, t->y, N * sizeof(float), cudaMemcpyDeviceToHost, t->other));
    if (!is(bug, "not_waited_for")) t->expect(cudaStreamSynchronize(t->other));
    t->check(N, [](int i) { return i < N / 2 ? 1 : 2; });
    t->expect(cudaStreamSynchronize(t->other));
    (void)cudaEventDestroy(ready);
    (void)cudaFreeHost(pinned);
    if (is(bug, "default_stream")) t->expect(cudaMemsetAsync(t->y, 0, 4, nullptr));
}

// Two devices: what is made while one is current is that one's.
void devices(test *t, const char *bug)
{
    cudaStream_t stream = nullptr;
    cudaEvent_t event = nullptr;
    float *y = nullptr;
    (void)setenv("LVP_CUDAHOST_DEVICES", "2", 1);
    t->expect(cudaSetDevice(1));
    t->expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    t->expect(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    t->expect(cudaMalloc(reinterpret_cast<void **>(&y), N * sizeof(float)));
    if (!is(bug, "device_not_set")) t->expect(cudaSetDevice(0));
    float *to = is(bug, "memory_of_another_device") ? y : is(bug, "kernel_on_host_memory") ? t->host : t->y;
    lvp_launch(bounds, dim3(4), dim3(THREADS), 0, t->stream, to, N, false, false);
    t->fetch();
    t->check(N, [](int) { return 3; });
    t->expect(cudaEventRecord(event, is(bug, "event_of_another_device") ? t->stream : stream));
    t->expect(cudaStreamWaitEvent(t->stream, event, 0)); // may cross devices
    t->expect(cudaStreamSynchronize(t->stream));
    t->expect(cudaFree(y));
    (void)cudaEventDestroy(event);
    (void)cudaStreamDestroy(stream);
}

} // namespace

bool lvp_run_all_right_but(const char *bug)
{
    test t;
    auto launch = [&](auto kernel, int threads, auto... args) {
        lvp_launch(kernel, dim3(1), dim3(static_cast<unsigned>(threads)), 4096, t.stream, args...);
    };
    launch(reverse, THREADS, t.x, t.y, is(bug, "no_barrier_before_reading"), is(bug, "no_barrier_before_rewriting"));
    t.fetch();
    t.check(2 * THREADS, [](int i) { return i / THREADS * THREADS + THREADS - 1 - i % THREADS; });
    launch(sum, THREADS, t.x, t.y, is(bug, "room_still_read"), is(bug, "no_warp_barrier"));
    t.fetch();
    t.check(2 * THREADS,
            [](int i) { return i < THREADS ? THREADS * (THREADS - 1) / 2 : THREADS * (3 * THREADS - 1) / 2; });
    for (int i = 0; i < THREADS; i++) t.host[i] = t.host[2 * THREADS + i];
    t.check(THREADS, [](int i) { return i ^ 1; });
    launch(divergent, THREADS, t.y, is(bug, "half_at_a_barrier"), is(bug, "ended_before_a_barrier"),
           is(bug, "two_barriers_at_once"));
    launch(shuffles, THREADS, t.x, t.y, is(bug, "shuffle_in_a_branch"), is(bug, "masks_differ"));
    t.fetch();
    t.check(THREADS, [](int i) { return i ^ 1; });
    launch(uninitialised, THREADS, t.y, is(bug, "uninitialised_shared"));
    t.fetch();
    t.check(THREADS, [](int) { return 3; });
    launch(copies, THREADS, t.x, t.y, is(bug, "copy_not_waited_for"), is(bug, "one_copy_too_few"),
           is(bug, "copy_misaligned"), is(bug, "copy_without_barrier"));
    t.fetch();
    t.check(N, [](int i) { return (THREADS - 1 - i / 4) * 4 + i % 4; });
    launch(product, 32, t.y, is(bug, "fragment_swapped"), is(bug, "not_transposed"), is(bug, "matrix_misaligned"));
    t.fetch();
    t.check(16 * 8, [](int i) {
        int sum = 0;
        for (int k = 0; k < 16; k++) sum += (2 * (i / 8) + k) * (k - i % 8);
        return sum;
    });
    t.expect(cudaMemsetAsync(t.y, 0, N * sizeof(float), t.stream));
    lvp_launch(bounds, dim3(is(bug, "out_of_bounds") ? 5 : 4), dim3(THREADS), 0, t.stream, t.y,
               is(bug, "out_of_bounds") ? N : N - 3, is(bug, "out_of_bounds"), is(bug, "tail_forgotten"));
    t.fetch();
    t.check(N - 3, [](int) { return 3; });
    t.expect(cudaMemsetAsync(t.y, 0, N * sizeof(float), t.stream));
    launch(count, THREADS, reinterpret_cast<int *>(t.y), is(bug, "count_not_atomic"));
    t.expect(cudaMemcpyAsync(t.host, t.y, 4, cudaMemcpyDeviceToHost, t.stream));
    t.expect(cudaStreamSynchronize(t.stream));
    int counted;
    memcpy(&counted, t.host, sizeof counted);
    t.wrong = t.wrong || counted != THREADS / 2;
    if (is(bug, "too_many_threads")) lvp_launch(bounds, dim3(1), dim3(2048), 0, t.stream, t.y, N, false, false);
    if (is(bug, "grid_too_tall")) lvp_launch(bounds, dim3(1, 70000), dim3(THREADS), 0, t.stream, t.y, N, false, false);
    streams(&t, bug);
    devices(&t, bug);
    t.wrong = t.wrong || !lvp_nccl_right_but(bug);
    return !t.wrong;
}

const lvp_bug lvp_bugs[] = {
    {"no_barrier_before_reading", LVP_ANY_BUILD},
    {"no_barrier_before_rewriting", LVP_ANY_BUILD},
    {"room_still_read", LVP_ANY_BUILD},
    {"no_warp_barrier", LVP_ANY_BUILD},
    {"half_at_a_barrier", LVP_ANY_BUILD},
    {"ended_before_a_barrier", LVP_ANY_BUILD},
    {"two_barriers_at_once", LVP_ANY_BUILD},
    {"shuffle_in_a_branch", LVP_ANY_BUILD},
    {"masks_differ", LVP_ANY_BUILD},
    {"uninitialised_shared", LVP_ANY_BUILD},
    {"copy_not_waited_for", LVP_ANY_BUILD},
    {"one_copy_too_few", LVP_ANY_BUILD},
    {"copy_misaligned", LVP_ANY_BUILD},
    {"copy_without_barrier", LVP_ANY_BUILD},
    {"fragment_swapped", LVP_ANY_BUILD},
    {"not_transposed", LVP_ANY_BUILD},
    {"matrix_misaligned", LVP_ANY_BUILD},
    {"tail_forgotten", LVP_ANY_BUILD},
    {"too_many_threads", LVP_ANY_BUILD},
    {"grid_too_tall", LVP_ANY_BUILD},
    {"out_of_bounds", LVP_ASAN_BUILD},
    {"count_not_atomic", LVP_TSAN_BUILD},
    {"buffer_reused", LVP_ANY_BUILD},
    {"no_event", LVP_ANY_BUILD},
    {"event_not_recorded", LVP_ANY_BUILD},
    {"not_waited_for", LVP_ANY_BUILD},
    {"default_stream", LVP_ANY_BUILD},
    {"device_not_set", LVP_ANY_BUILD},
    {"memory_of_another_device", LVP_ANY_BUILD},
    {"kernel_on_host_memory", LVP_ANY_BUILD},
    {"event_of_another_device", LVP_ANY_BUILD},
    {"nccl_sent_too_early", LVP_ANY_BUILD},
    {"nccl_event_too_early", LVP_ANY_BUILD},
    {"nccl_read_too_early", LVP_ANY_BUILD},
    {"nccl_sent_rows_reused", LVP_ANY_BUILD},
    {"nccl_receives_less", LVP_ANY_BUILD},
    {"nccl_receives_more", LVP_ANY_BUILD},
    {"nccl_host_memory", LVP_ANY_BUILD},
    {"nccl_same_gpu", LVP_ANY_BUILD},
    {nullptr, LVP_ANY_BUILD},
};
