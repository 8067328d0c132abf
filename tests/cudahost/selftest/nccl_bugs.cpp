// Uses of NCCL between two devices of this process, right as they stand and wrong where their name is asked for: what
// tests/cudahost/nccl.cpp must notice.
#include "tests/cudahost/selftest/bugs.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <stdlib.h>
#include <string.h>
#include <time.h>

namespace
{

enum { N = 1 << 16, ROUNDS = 3 };

struct end {
    cudaStream_t stream;
    cudaEvent_t done;
    ncclComm_t communicator;
    float *rows; // [2 N] of its device
};

struct exchange {
    const char *bug;
    end ends[2];          // 0 sends
    cudaStream_t compute; // fills what is sent, and fetches what came
    cudaEvent_t filled;
    float *host; // [N] pinned
    bool wrong;

    bool is(const char *name) const { return strcmp(bug, name) == 0; }
    int device_of(int end) const { return is("nccl_same_gpu") ? 0 : end; }
    void expect(cudaError_t error) { wrong = wrong || error != cudaSuccess; }
    void expect(ncclResult_t result) { wrong = wrong || (result != ncclSuccess && result != ncclInProgress); }
};

// Asks until f holds; half a second is for ever here.
template <class F> bool within_reason(F f)
{
    timespec rest = {0, 100000};
    for (int i = 0; i < 5000; i++) {
        if (f()) return true;
        (void)nanosleep(&rest, nullptr);
    }
    return false;
}

bool at_rest(exchange *x, end *e)
{
    ncclResult_t state = ncclInProgress;
    x->expect(ncclCommGetAsyncError(e->communicator, &state));
    x->expect(state);
    return state != ncclInProgress || x->wrong;
}

void connect_ends(exchange *x)
{
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    x->expect(ncclGetUniqueId(&id));
    for (int i = 0; i < 2; i++) {
        x->expect(cudaSetDevice(x->device_of(i)));
        x->expect(ncclCommInitRankConfig(&x->ends[i].communicator, 2, id, i, &config));
    }
    bool both = within_reason([&] {
        bool first = at_rest(x, &x->ends[0]), second = at_rest(x, &x->ends[1]);
        return first && second;
    });
    x->wrong = x->wrong || !both;
}

// Queues one end's part and an event behind it.
void call(exchange *x, int which)
{
    end *e = &x->ends[which];
    float *rows = x->is("nccl_host_memory") && which == 1 ? x->host : e->rows;
    size_t n = N * sizeof(float);
    if (which == 1 && x->is("nccl_receives_less")) n -= 4;
    if (which == 1 && x->is("nccl_receives_more")) n += 4;
    x->expect(which == 0 ? ncclSend(rows, n, ncclInt8, 1, e->communicator, e->stream)
                         : ncclRecv(rows, n, ncclInt8, 0, e->communicator, e->stream));
    // Only a communicator at rest has put everything on its stream.
    if (!x->is("nccl_event_too_early") && !within_reason([&] { return at_rest(x, e); })) x->wrong = true;
    x->expect(cudaEventRecord(e->done, e->stream));
    if (x->is("nccl_event_too_early") && !within_reason([&] { return at_rest(x, e); })) x->wrong = true;
}

void send_round(exchange *x, float value)
{
    for (int i = 0; i < N; i++) x->host[i] = value;
    x->expect(cudaMemcpyAsync(x->ends[0].rows, x->host, N * sizeof(float), cudaMemcpyDefault, x->compute));
    x->expect(cudaEventRecord(x->filled, x->compute));
    if (!x->is("nccl_sent_too_early")) x->expect(cudaStreamWaitEvent(x->ends[0].stream, x->filled, 0));
    call(x, 0);
    call(x, 1);
    if (x->is("nccl_sent_rows_reused")) x->expect(cudaMemsetAsync(x->ends[0].rows, 0, N * sizeof(float), x->compute));
    if (x->wrong) return;
    bool ended = x->is("nccl_read_too_early") || within_reason([&] {
                     bool sent = cudaEventQuery(x->ends[0].done) == cudaSuccess;
                     bool received = cudaEventQuery(x->ends[1].done) == cudaSuccess;
                     return sent && received;
                 });
    ncclResult_t state = ncclSuccess;
    for (end &e : x->ends) {
        x->expect(ncclCommGetAsyncError(e.communicator, &state));
        x->expect(state);
    }
    x->wrong = x->wrong || !ended;
    if (x->wrong) return;
    x->expect(cudaMemcpyAsync(x->host, x->ends[1].rows, N * sizeof(float), cudaMemcpyDefault, x->compute));
    x->expect(cudaStreamSynchronize(x->compute));
    for (int i = 0; i < N; i++) x->wrong = x->wrong || !(x->host[i] == value);
    for (end &e : x->ends)
        if (x->is("nccl_read_too_early")) x->expect(cudaStreamSynchronize(e.stream));
}

} // namespace

bool lvp_nccl_right_but(const char *bug)
{
    exchange x = {};
    x.bug = bug;
    (void)setenv("LVP_CUDAHOST_DEVICES", "2", 1);
    x.expect(cudaStreamCreateWithFlags(&x.compute, cudaStreamNonBlocking));
    x.expect(cudaEventCreateWithFlags(&x.filled, cudaEventDisableTiming));
    x.expect(cudaHostAlloc(reinterpret_cast<void **>(&x.host), 2 * N * sizeof(float), cudaHostAllocDefault));
    for (end &e : x.ends) {
        x.expect(cudaSetDevice(x.device_of(static_cast<int>(&e - x.ends))));
        x.expect(cudaStreamCreateWithFlags(&e.stream, cudaStreamNonBlocking));
        x.expect(cudaEventCreateWithFlags(&e.done, cudaEventDisableTiming));
        x.expect(cudaMalloc(reinterpret_cast<void **>(&e.rows), 2 * N * sizeof(float)));
    }
    connect_ends(&x);
    for (int round = 0; round < ROUNDS && !x.wrong; round++) send_round(&x, static_cast<float>(round + 1));
    for (end &e : x.ends)
        if (e.communicator != nullptr) x.expect(ncclCommAbort(e.communicator));
    for (end &e : x.ends) {
        (void)cudaFree(e.rows);
        (void)cudaEventDestroy(e.done);
        (void)cudaStreamDestroy(e.stream);
    }
    (void)cudaFreeHost(x.host);
    (void)cudaEventDestroy(x.filled);
    (void)cudaStreamDestroy(x.compute);
    return !x.wrong;
}
