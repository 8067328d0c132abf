// Rows between GPUs by NCCL. Every (peer, tag) pair and direction is a channel with a stream and a two-rank
// communicator of its own, so that channels do not wait for each other.
//
// A receiver invites: for each receive it sends the size and the channel's unique id as a message. Only then does
// either side call NCCL, so that no kernel sits on a device waiting for a peer that is busy, and sizes are compared
// before any byte moves. Communicators do not block: what one is not ready for is asked again at the next test. Where
// nothing moves for too long, or NCCL reports an error, the channel is of no more use. Its communicator stays until the
// transport is closed: an abort frees memory of the device, which waits for all that runs there, another communicator's
// kernel included, which may wait for a peer (NVIDIA/nccl pull request 564, issues 863 and 992).
#include "worker/cuda/plugin.h"

#include <nccl.h>

extern "C" {
#include "common/clock.h"
#include "common/patience.h"
#include "common/tags.h"
#include "common/transport.h"
}

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace
{

// --- the library

struct library {
    int version;   // 0: not to be had
    char why[256]; // then
    decltype(&ncclGetVersion) get_version;
    decltype(&ncclGetUniqueId) get_unique_id;
    decltype(&ncclCommInitRankConfig) init;
    decltype(&ncclCommGetAsyncError) get_async_error;
    decltype(&ncclCommFinalize) finalize;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclSend) send;
    decltype(&ncclRecv) receive;
    decltype(&ncclGetErrorString) error_string;
    decltype(&ncclGetLastError) last_error;
};

template <class F> bool find(void *handle, const char *name, F *function)
{
    *function = reinterpret_cast<F>(dlsym(handle, name));
    return *function != nullptr;
}

library load_library()
{
    enum { OLDEST = 21900 }; // since 2.14 communicators need not block; their aborts hang less since
    library nccl = {};
    void *handle = lvp_nccl_library(); // stays open
    const char *error = handle == nullptr ? dlerror() : "libnccl.so.2 is too old";
    (void)snprintf(nccl.why, sizeof nccl.why, "%s", error != nullptr ? error : "libnccl.so.2 is not there");
    if (handle == nullptr) return nccl;
    if (!find(handle, "ncclGetVersion", &nccl.get_version) || !find(handle, "ncclGetUniqueId", &nccl.get_unique_id) ||
        !find(handle, "ncclCommInitRankConfig", &nccl.init) ||
        !find(handle, "ncclCommGetAsyncError", &nccl.get_async_error) ||
        !find(handle, "ncclCommFinalize", &nccl.finalize) || !find(handle, "ncclCommDestroy", &nccl.destroy) ||
        !find(handle, "ncclCommAbort", &nccl.abort) || !find(handle, "ncclSend", &nccl.send) ||
        !find(handle, "ncclRecv", &nccl.receive) || !find(handle, "ncclGetErrorString", &nccl.error_string) ||
        !find(handle, "ncclGetLastError", &nccl.last_error))
        return nccl;
    if (nccl.get_version(&nccl.version) != ncclSuccess || nccl.version < OLDEST) nccl.version = 0;
    return nccl;
}

const library &the_library()
{
    static const library nccl = load_library();
    return nccl;
}

// --- channels

struct invitation {
    uint64_t n_bytes;
    ncclUniqueId id; // the same one in all of a channel
};

// A transfer of a channel, at its number % SLOTS. Stays where it is: `note` is under way meanwhile.
struct slot {
    struct lvp_transfer *transfer;
    struct invitation invitation;
    struct lvp_transfer note; // of the invitation
    cudaEvent_t done;
};

enum { CHANNELS = 8, SLOTS = 64 };
constexpr double SENDER_PATIENCE = 1.25; // so that the receiver is the one to say it
constexpr double FAREWELL_SECONDS = 1;

struct channel {
    bool used, sends, broken, leaving;
    int device, peer, tag;
    ncclUniqueId id; // at the receiver
    ncclComm_t communicator;
    cudaStream_t stream;
    slot slots[SLOTS];
    // How many transfers have passed each point, one after the other: `posted` by the caller, `invited`, `called`
    // (NCCL took them), `queued` on the stream with an event behind them, `ended`.
    uint64_t posted, invited, called, queued, ended;
    struct lvp_patience patience; // since something moved
};

struct nccl_transport {
    struct lvp_transport base;
    struct lvp_transport *messages; // borrowed
    int device;
    double limit_seconds;
    channel channels[CHANNELS];
};

nccl_transport *self(struct lvp_transport *transport)
{
    return reinterpret_cast<nccl_transport *>(transport);
}

slot *slot_of(channel *c, uint64_t number)
{
    return &c->slots[number % SLOTS];
}

const char *direction(const channel *c)
{
    return c->sends ? "sending to" : "receiving from";
}

enum lvp_status check(const channel *c, ncclResult_t result)
{
    if (result == ncclSuccess || result == ncclInProgress) return LVP_OK;
    const char *more = the_library().last_error(c->communicator);
    return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: %s%s%.400s", direction(c), c->peer,
                    the_library().error_string(result), more != nullptr && *more != '\0' ? ": " : "",
                    more != nullptr ? more : "");
}

enum lvp_status check(const channel *c, cudaError_t error)
{
    if (error == cudaSuccess) return LVP_OK;
    (void)cudaGetLastError();
    return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: the GPU: %s", direction(c), c->peer, cudaGetErrorString(error));
}

// After an error or a cancel. What NCCL was given may still be under way.
void give_up(nccl_transport *nccl, channel *c)
{
    struct lvp_transport *messages = nccl->messages;
    for (uint64_t i = c->ended; i < c->posted; i++) {
        messages->ops->cancel(messages, &slot_of(c, i)->note);
        slot_of(c, i)->transfer->active = false;
    }
    c->ended = c->posted;
    c->broken = true;
}

enum lvp_status open_channel(nccl_transport *nccl, int peer, int tag, bool sends, channel **result)
{
    channel *c = nullptr;
    for (channel &other : nccl->channels) {
        *result = &other;
        if (other.used && other.peer == peer && other.tag == tag && other.sends == sends) return LVP_OK;
        if (!other.used && c == nullptr) c = &other;
    }
    if (c == nullptr)
        return lvp_fail(LVP_ERR_INTERNAL, "NCCL: more than %d channels are asked for", static_cast<int>(CHANNELS));
    *c = {};
    c->used = true;
    c->sends = sends;
    c->device = nccl->device;
    c->peer = peer;
    c->tag = tag;
    *result = c;
    enum lvp_status status = check(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    if (status == LVP_OK && !sends) status = check(c, the_library().get_unique_id(&c->id));
    c->broken = status != LVP_OK;
    return status;
}

// Invitations that have come, or have been taken by the peer.
enum lvp_status invite(nccl_transport *nccl, channel *c)
{
    struct lvp_transport *messages = nccl->messages;
    for (bool done = true; done && c->invited < c->posted;) {
        slot *s = slot_of(c, c->invited);
        LVP_TRY(messages->ops->test(messages, &s->note, &done));
        if (!done) break;
        if (c->sends && s->note.n_received != sizeof s->invitation)
            return lvp_fail(LVP_ERR_FORMAT, "NCCL: rank %d sent an invitation of %zu bytes", c->peer,
                            s->note.n_received);
        if (c->sends && s->invitation.n_bytes != s->transfer->n_bytes)
            return lvp_fail(LVP_ERR_FORMAT, "NCCL: rank %d expects %llu bytes, %zu are sent", c->peer,
                            static_cast<unsigned long long>(s->invitation.n_bytes), s->transfer->n_bytes);
        c->invited++;
    }
    return LVP_OK;
}

enum lvp_status connect_channel(channel *c)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    return check(c, the_library().init(&c->communicator, 2, c->sends ? slot_of(c, 0)->invitation.id : c->id,
                                       c->sends ? 0 : 1, &config));
}

enum lvp_status call_next(channel *c, bool *at_rest)
{
    struct lvp_transfer *transfer = slot_of(c, c->called)->transfer;
    ncclResult_t result = ncclSuccess;
    if (transfer->n_bytes > 0)
        result =
            c->sends
                ? the_library().send(transfer->buffer, transfer->n_bytes, ncclInt8, 1, c->communicator, c->stream)
                : the_library().receive(transfer->buffer, transfer->n_bytes, ncclInt8, 0, c->communicator, c->stream);
    LVP_TRY(check(c, result));
    c->called++;
    *at_rest = result != ncclInProgress;
    return LVP_OK;
}

// What NCCL has put on the stream gets its event; then the next ones, as long as the communicator is at rest.
enum lvp_status call_nccl(channel *c)
{
    ncclResult_t state = ncclSuccess;
    LVP_TRY(check(c, the_library().get_async_error(c->communicator, &state)));
    LVP_TRY(check(c, state));
    for (bool at_rest = state != ncclInProgress; at_rest;) {
        if (c->queued < c->called) {
            slot *s = slot_of(c, c->queued);
            if (s->done == nullptr) LVP_TRY(check(c, cudaEventCreateWithFlags(&s->done, cudaEventDisableTiming)));
            LVP_TRY(check(c, cudaEventRecord(s->done, c->stream)));
            c->queued++;
        }
        if (c->called == c->invited) break;
        LVP_TRY(call_next(c, &at_rest));
    }
    return LVP_OK;
}

enum lvp_status end_transfers(channel *c)
{
    for (; c->ended < c->queued; c->ended++) {
        slot *s = slot_of(c, c->ended);
        cudaError_t state = cudaEventQuery(s->done);
        if (state == cudaErrorNotReady) {
            (void)cudaGetLastError();
            return LVP_OK;
        }
        LVP_TRY(check(c, state));
        s->transfer->n_received = s->transfer->n_bytes;
        s->transfer->active = false;
    }
    return LVP_OK;
}

enum lvp_status watch(const nccl_transport *nccl, channel *c, bool moved)
{
    bool waits = c->ended < (c->sends ? c->invited : c->posted);
    if (moved || !waits) {
        c->patience = {};
        return LVP_OK;
    }
    double limit = nccl->limit_seconds * (c->sends ? SENDER_PATIENCE : 1);
    if (lvp_patience_ask(&c->patience) <= limit) return LVP_OK;
    return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: %s for %.3g s, %zu bytes are due", direction(c), c->peer,
                    c->ended < c->called ? "nothing moved"
                    : c->sends           ? "no connection came about"
                                         : "it did not answer",
                    limit, slot_of(c, c->ended)->transfer->n_bytes);
}

// Brings the channel as far as it goes without waiting. What has ended is looked at before errors: a peer may leave as
// soon as its bytes are here.
enum lvp_status advance(nccl_transport *nccl, channel *c)
{
    enum lvp_status status = LVP_OK;
    if (c->broken)
        return lvp_fail(LVP_ERR_LOST, "NCCL: %s rank %d: the connection was given up before", direction(c), c->peer);
    uint64_t before = c->invited + c->called + c->queued + c->ended;
    LVP_CHECK(end_transfers(c));
    LVP_CHECK(invite(nccl, c));
    if (c->communicator == nullptr && c->invited > 0) LVP_CHECK(connect_channel(c));
    if (c->communicator != nullptr && c->ended < c->invited) LVP_CHECK(call_nccl(c));
    LVP_CHECK(watch(nccl, c, c->invited + c->called + c->queued + c->ended != before));
    return LVP_OK;
fail:
    give_up(nccl, c);
    return status;
}

enum lvp_status start(struct lvp_transport *transport, int peer, int tag, bool sends, void *data, size_t n_bytes,
                      struct lvp_transfer *transfer)
{
    nccl_transport *nccl = self(transport);
    struct lvp_transport *messages = nccl->messages;
    channel *c = nullptr;
    (void)cudaSetDevice(nccl->device);
    *transfer = {};
    LVP_TRY(open_channel(nccl, peer, tag, sends, &c));
    if (c->posted - c->ended == SLOTS)
        return lvp_fail(LVP_ERR_INTERNAL, "NCCL: more than %d transfers at once", static_cast<int>(SLOTS));
    slot *s = slot_of(c, c->posted);
    s->transfer = transfer;
    s->invitation = {n_bytes, c->id};
    s->note = {};
    if (!c->broken)
        LVP_TRY(sends ? messages->ops->irecv(messages, peer, LVP_TAG_NCCL_INVITATION + tag, &s->invitation,
                                             sizeof s->invitation, &s->note)
                      : messages->ops->isend(messages, peer, LVP_TAG_NCCL_INVITATION + tag, &s->invitation,
                                             sizeof s->invitation, &s->note));
    transfer->active = !c->broken;
    transfer->receiving = !sends;
    transfer->peer = peer;
    transfer->tag = tag;
    transfer->buffer = data;
    transfer->n_bytes = n_bytes;
    if (!c->broken) c->posted++;
    return advance(nccl, c);
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

enum lvp_status nccl_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    nccl_transport *nccl = self(transport);
    channel *c = nullptr;
    *done = !transfer->active;
    if (*done) return LVP_OK;
    (void)cudaSetDevice(nccl->device);
    LVP_TRY(open_channel(nccl, transfer->peer, transfer->tag, !transfer->receiving, &c));
    LVP_TRY(advance(nccl, c));
    *done = !transfer->active;
    return LVP_OK;
}

// What NCCL has been given cannot be taken back, nor an invitation.
void nccl_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    nccl_transport *nccl = self(transport);
    channel *c = nullptr;
    if (!transfer->active) return;
    (void)cudaSetDevice(nccl->device);
    if (open_channel(nccl, transfer->peer, transfer->tag, !transfer->receiving, &c) == LVP_OK) give_up(nccl, c);
    transfer->active = false;
}

// Ends communicators that are at rest, each together with the peer's; what is left of them after a while is aborted.
void finalize_all(nccl_transport *nccl)
{
    int leaving = 0;
    for (channel &c : nccl->channels) {
        if (c.communicator == nullptr) continue;
        ncclResult_t result = the_library().finalize(c.communicator);
        c.leaving = result == ncclSuccess || result == ncclInProgress;
        leaving += c.leaving;
    }
    for (double end = lvp_now() + FAREWELL_SECONDS; leaving > 0 && lvp_now() < end; (void)usleep(100))
        for (channel &c : nccl->channels) {
            ncclResult_t state = ncclInProgress;
            if (!c.leaving) continue;
            if (the_library().get_async_error(c.communicator, &state) == ncclSuccess && state == ncclInProgress)
                continue;
            c.leaving = false;
            leaving--;
            if (state == ncclSuccess && the_library().destroy(c.communicator) == ncclSuccess) c.communicator = nullptr;
        }
}

void *abort_one(void *argument)
{
    channel *c = static_cast<channel *>(argument);
    (void)cudaSetDevice(c->device);
    (void)the_library().abort(c->communicator);
    return nullptr;
}

// All at once, since each may wait for the others' kernels.
void abort_all(nccl_transport *nccl)
{
    pthread_t threads[CHANNELS];
    bool started[CHANNELS] = {};
    for (int i = 0; i < CHANNELS; i++)
        started[i] = nccl->channels[i].communicator != nullptr &&
                     pthread_create(&threads[i], nullptr, abort_one, &nccl->channels[i]) == 0;
    for (int i = 0; i < CHANNELS; i++) {
        channel *c = &nccl->channels[i];
        if (started[i])
            (void)pthread_join(threads[i], nullptr);
        else if (c->communicator != nullptr)
            (void)abort_one(c);
        if (c->communicator != nullptr) (void)cudaStreamSynchronize(c->stream);
        c->communicator = nullptr;
    }
    (void)cudaGetLastError();
}

void nccl_close(struct lvp_transport *transport)
{
    nccl_transport *nccl = self(transport);
    bool at_rest = true;
    (void)cudaSetDevice(nccl->device);
    for (channel &c : nccl->channels) {
        if (c.ended < c.posted) give_up(nccl, &c);
        at_rest = at_rest && !c.broken;
    }
    if (at_rest) finalize_all(nccl);
    abort_all(nccl);
    for (channel &c : nccl->channels) {
        for (slot &s : c.slots)
            if (s.done != nullptr) (void)cudaEventDestroy(s.done);
        if (c.stream != nullptr) (void)cudaStreamDestroy(c.stream);
    }
    free(nccl);
}

const struct lvp_transport_ops nccl_ops = {"nccl", nccl_isend, nccl_irecv, nccl_test, nccl_cancel, nccl_close};

} // namespace

int lvp_nccl_version(const char **why)
{
    *why = the_library().version == 0 ? the_library().why : "";
    return the_library().version;
}

enum lvp_status lvp_transport_nccl_open(struct lvp_transport *messages, int device, double limit_seconds,
                                        struct lvp_transport **transport)
{
    const char *why = nullptr;
    *transport = nullptr;
    if (lvp_nccl_version(&why) == 0) return lvp_fail(LVP_ERR_USAGE, "NCCL: %s", why);
    cudaError_t error = cudaSetDevice(device);
    if (error != cudaSuccess) return lvp_fail(LVP_ERR_USAGE, "NCCL: GPU %d: %s", device, cudaGetErrorString(error));
    nccl_transport *nccl = static_cast<nccl_transport *>(calloc(1, sizeof *nccl));
    if (nccl == nullptr) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the NCCL transport");
    nccl->base.ops = &nccl_ops;
    nccl->messages = messages;
    nccl->device = device;
    nccl->limit_seconds = limit_seconds;
    *transport = &nccl->base;
    return LVP_OK;
}
