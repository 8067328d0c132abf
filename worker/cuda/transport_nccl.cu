// Activations from GPU to GPU by NCCL. Every (peer, tag, direction) is a channel: a communicator of two ranks and a
// stream of its own, so that channels do not wait for each other. The sender makes the unique id and sends it as a
// message. Communicators do not block: what is not at rest yet is asked again at the next test. A transfer that does
// not move within the silence limit, or an error that NCCL reports, is an error naming the peer. Both ends must name
// the same size.
#include "worker/cuda/plugin.h"

extern "C" {
#include "common/transport.h"
}

#if __has_include(<nccl.h>)
#include <nccl.h>

extern "C" {
#include "common/pulse.h"
#include "common/tags.h"
}

#include <dlfcn.h>
#include <stdlib.h>

namespace
{

// --- the library, which need not be there

#define LVP_NCCL_CALLS(call)                                                                                           \
    call(ncclGetVersion) call(ncclGetErrorString) call(ncclGetUniqueId) call(ncclCommInitRankConfig)                   \
        call(ncclCommGetAsyncError) call(ncclSend) call(ncclRecv) call(ncclCommAbort)
#define LVP_NCCL_POINTER(name) decltype(&::name) name;

struct nccl_library {
    LVP_NCCL_CALLS(LVP_NCCL_POINTER)
    int version; // 0: not to be used
};

nccl_library load()
{
    nccl_library found = {};
#ifdef LVP_CUDA_HOST
#define LVP_NCCL_FIND(name) found.name = ::name;
    LVP_NCCL_CALLS(LVP_NCCL_FIND)
#else
    void *handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL); // stays open
    if (handle == nullptr) return found;
    bool whole = true;
#define LVP_NCCL_FIND(name)                                                                                            \
    found.name = reinterpret_cast<decltype(found.name)>(dlsym(handle, #name));                                         \
    whole = whole && found.name != nullptr;
    LVP_NCCL_CALLS(LVP_NCCL_FIND)
    if (!whole) return found; // older than 2.14
#endif
    const char *wanted = getenv("LVPIPE_NCCL");
    bool off = wanted != nullptr && wanted[0] == '0';
    if (off || found.ncclGetVersion(&found.version) != ncclSuccess) found.version = 0;
    return found;
}

const nccl_library &nccl()
{
    static const nccl_library library = load();
    return library;
}

// --- channels

enum { CHANNELS = 16, QUEUE = 64 };

enum class entry_state { WAITING, SUBMITTED, RECORDED };

// A transfer that waits for its turn, was handed to NCCL, or has an event behind it on the stream.
struct entry {
    struct lvp_transfer *transfer;
    entry_state state;
    cudaEvent_t done;
};

enum class channel_state { WANTS_ID, OPEN, BROKEN };

struct channel {
    int peer, tag; // peer -1: unused
    bool sends;
    channel_state state;
    ncclUniqueId id;
    struct lvp_transfer id_transfer;
    ncclComm_t communicator;
    cudaStream_t stream;
    entry queue[QUEUE]; // in order, the oldest first; events of unused ones are kept
    int n;
    struct lvp_patience patience; // since something moved
};

struct nccl_transport {
    struct lvp_transport base;
    struct lvp_transport *messages; // for ids; borrowed
    channel channels[CHANNELS];
};

nccl_transport *self(struct lvp_transport *transport)
{
    return reinterpret_cast<nccl_transport *>(transport);
}

enum lvp_status failed(const channel *c, const char *what, const char *why)
{
    return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: %s: %s", c->sends ? "sending to" : "receiving from", c->peer, what,
                    why);
}

enum lvp_status check(const channel *c, ncclResult_t result, const char *what)
{
    if (result == ncclSuccess || result == ncclInProgress) return LVP_OK;
    return failed(c, what, nccl().ncclGetErrorString(result));
}

enum lvp_status check(const channel *c, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return LVP_OK;
    (void)cudaGetLastError();
    return failed(c, what, cudaGetErrorString(error));
}

enum lvp_status open_channel(nccl_transport *transport, channel *c, int peer, int tag, bool sends)
{
    const struct lvp_transport_ops *ops = transport->messages->ops;
    *c = {};
    c->peer = peer;
    c->tag = tag;
    c->sends = sends;
    LVP_TRY(check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "a stream"));
    for (entry &e : c->queue) LVP_TRY(check(c, cudaEventCreateWithFlags(&e.done, cudaEventDisableTiming), "an event"));
    int id_tag = LVP_TAG_NCCL_ID + tag;
    if (!sends) return ops->irecv(transport->messages, peer, id_tag, &c->id, sizeof c->id, &c->id_transfer);
    LVP_TRY(check(c, nccl().ncclGetUniqueId(&c->id), "a unique id"));
    return ops->isend(transport->messages, peer, id_tag, &c->id, sizeof c->id, &c->id_transfer);
}

// The channel of that name, opened where there is none.
enum lvp_status find_channel(nccl_transport *transport, int peer, int tag, bool sends, channel **result)
{
    for (channel &c : transport->channels) {
        *result = &c;
        if (c.peer == peer && c.tag == tag && c.sends == sends) return LVP_OK;
        if (c.peer < 0) return open_channel(transport, &c, peer, tag, sends);
    }
    return lvp_fail(LVP_ERR_INTERNAL, "NCCL: more than %d channels", static_cast<int>(CHANNELS));
}

// Once the id has reached the other end, the communicator begins to form.
enum lvp_status join(nccl_transport *transport, channel *c)
{
    bool arrived = false;
    LVP_TRY(transport->messages->ops->test(transport->messages, &c->id_transfer, &arrived));
    if (!arrived) return LVP_OK;
    if (!c->sends && c->id_transfer.n_received != sizeof c->id) return failed(c, "a unique id", "it is cut short");
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    c->state = channel_state::OPEN;
    lvp_patience_reset(&c->patience);
    return check(c, nccl().ncclCommInitRankConfig(&c->communicator, 2, c->id, c->sends ? 0 : 1, &config),
                 "a communicator");
}

enum lvp_status submit(channel *c, entry *e)
{
    struct lvp_transfer *t = e->transfer;
    e->state = entry_state::SUBMITTED;
    lvp_patience_reset(&c->patience);
    return check(c,
                 c->sends ? nccl().ncclSend(t->buffer, t->n_bytes, ncclInt8, 1, c->communicator, c->stream)
                          : nccl().ncclRecv(t->buffer, t->n_bytes, ncclInt8, 0, c->communicator, c->stream),
                 "a transfer");
}

// Brings the channel as far as it goes without waiting.
enum lvp_status advance(nccl_transport *transport, channel *c)
{
    if (c->state == channel_state::WANTS_ID) LVP_TRY(join(transport, c));
    while (c->state == channel_state::OPEN) {
        ncclResult_t state = ncclSuccess;
        LVP_TRY(check(c, nccl().ncclCommGetAsyncError(c->communicator, &state), "asking"));
        LVP_TRY(check(c, state, "a transfer"));
        if (state == ncclInProgress) return LVP_OK; // until it is at rest it may only be asked
        entry *next = nullptr;
        for (entry *e = c->queue; e < c->queue + c->n && next == nullptr; e++) {
            if (e->state == entry_state::SUBMITTED) { // it is on the stream now
                LVP_TRY(check(c, cudaEventRecord(e->done, c->stream), "an event"));
                e->state = entry_state::RECORDED;
            }
            if (e->state == entry_state::WAITING) next = e;
        }
        if (next == nullptr) return LVP_OK;
        LVP_TRY(submit(c, next));
    }
    return LVP_OK;
}

// Gives up what NCCL has in hand; the channel is of no use any more.
void break_channel(channel *c)
{
    if (c->communicator != nullptr) (void)nccl().ncclCommAbort(c->communicator);
    c->communicator = nullptr;
    c->state = channel_state::BROKEN;
}

// Takes the entry out; its event goes to the end.
void remove(channel *c, entry *e)
{
    cudaEvent_t event = e->done;
    for (entry *last = c->queue + --c->n; e < last; e++) *e = e[1];
    c->queue[c->n] = {nullptr, entry_state::WAITING, event};
}

entry *entry_of(channel *c, const struct lvp_transfer *transfer)
{
    for (int i = 0; i < c->n; i++)
        if (c->queue[i].transfer == transfer) return &c->queue[i];
    return nullptr;
}

enum lvp_status start(struct lvp_transport *transport, int peer, int tag, bool sends, void *data, size_t n_bytes,
                      struct lvp_transfer *transfer)
{
    channel *c = nullptr;
    LVP_TRY(find_channel(self(transport), peer, tag, sends, &c));
    if (c->state == channel_state::BROKEN) return failed(c, "a transfer", "an earlier one was given up");
    if (c->n == QUEUE)
        return lvp_fail(LVP_ERR_INTERNAL, "NCCL: more than %d transfers at once", static_cast<int>(QUEUE));
    *transfer = {};
    transfer->active = true;
    transfer->receiving = !sends;
    transfer->peer = peer;
    transfer->tag = tag;
    transfer->buffer = data;
    transfer->n_bytes = n_bytes;
    if (n_bytes == 0) return LVP_OK; // nothing to move, and both ends know it
    if (c->n == 0) lvp_patience_reset(&c->patience);
    entry *e = &c->queue[c->n++];
    e->transfer = transfer;
    e->state = entry_state::WAITING;
    return advance(self(transport), c);
}

// --- the table

enum lvp_status nccl_isend(struct lvp_transport *transport, int peer, int tag, const void *data, size_t n_bytes,
                           struct lvp_transfer *transfer)
{
    return start(transport, peer, tag, true, const_cast<void *>(data), n_bytes, transfer);
}

enum lvp_status nccl_irecv(struct lvp_transport *transport, int peer, int tag, void *data, size_t n_bytes,
                           struct lvp_transfer *transfer)
{
    return start(transport, peer, tag, false, data, n_bytes, transfer);
}

void finish(struct lvp_transfer *transfer, bool *done)
{
    transfer->n_received = transfer->receiving ? transfer->n_bytes : 0;
    transfer->active = false;
    *done = true;
}

enum lvp_status nccl_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    channel *c = nullptr;
    *done = !transfer->active;
    if (*done) return LVP_OK;
    if (transfer->n_bytes == 0) return finish(transfer, done), LVP_OK;
    LVP_TRY(find_channel(self(transport), transfer->peer, transfer->tag, !transfer->receiving, &c));
    LVP_TRY(advance(self(transport), c));
    entry *e = entry_of(c, transfer);
    if (e == nullptr) return lvp_fail(LVP_ERR_INTERNAL, "NCCL: a transfer that is not under way");
    cudaError_t state = e->state == entry_state::RECORDED ? cudaEventQuery(e->done) : cudaErrorNotReady;
    if (state == cudaErrorNotReady) {
        (void)cudaGetLastError();
        if (lvp_patience_ask(&c->patience) <= lvp_silence_seconds()) return LVP_OK;
        return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: %zu bytes did not move for %.0f s",
                        c->sends ? "sending to" : "receiving from", c->peer, transfer->n_bytes, lvp_silence_seconds());
    }
    LVP_TRY(check(c, state, "a transfer"));
    // An event passes too when NCCL gave the transfer up.
    ncclResult_t error = ncclSuccess;
    LVP_TRY(check(c, nccl().ncclCommGetAsyncError(c->communicator, &error), "asking"));
    LVP_TRY(check(c, error, "a transfer"));
    remove(c, e);
    lvp_patience_reset(&c->patience);
    finish(transfer, done);
    return LVP_OK;
}

void nccl_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    for (channel &c : self(transport)->channels) {
        entry *e = transfer->active && c.peer >= 0 ? entry_of(&c, transfer) : nullptr;
        if (e == nullptr) continue;
        if (e->state != entry_state::WAITING) break_channel(&c);
        remove(&c, e);
    }
    transfer->active = false;
}

void nccl_close(struct lvp_transport *transport)
{
    nccl_transport *nccl = self(transport);
    for (channel &c : nccl->channels) {
        if (c.peer < 0) continue;
        nccl->messages->ops->cancel(nccl->messages, &c.id_transfer);
        break_channel(&c);
        for (entry &e : c.queue)
            if (e.done != nullptr) (void)cudaEventDestroy(e.done);
        if (c.stream != nullptr) (void)cudaStreamDestroy(c.stream);
    }
    free(nccl);
}

const struct lvp_transport_ops nccl_ops = {"nccl", nccl_isend, nccl_irecv, nccl_test, nccl_cancel, nccl_close};

} // namespace

int lvp_nccl_version()
{
    return nccl().version;
}

enum lvp_status lvp_transport_nccl_open(struct lvp_transport *messages, int device, struct lvp_transport **transport)
{
    *transport = nullptr;
    if (nccl().version == 0) return lvp_fail(LVP_ERR_USAGE, "NCCL: libnccl.so.2 is not to be had");
    cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return lvp_fail(LVP_ERR_USAGE, "NCCL: GPU %d: %s", device, cudaGetErrorString(error));
    nccl_transport *made = static_cast<nccl_transport *>(calloc(1, sizeof *made));
    if (made == nullptr) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the NCCL transport");
    made->base.ops = &nccl_ops;
    made->messages = messages;
    for (channel &c : made->channels) c.peer = -1;
    *transport = &made->base;
    return LVP_OK;
}

#else

int lvp_nccl_version()
{
    return 0;
}

enum lvp_status lvp_transport_nccl_open(struct lvp_transport *, int, struct lvp_transport **transport)
{
    *transport = nullptr;
    return lvp_fail(LVP_ERR_USAGE, "this module was built without NCCL");
}

#endif
