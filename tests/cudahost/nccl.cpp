// The calls of NCCL that worker/cuda uses, between the processes of one machine or inside one, over a Unix socket for
// each communicator: two ranks, not blocking. It is as unhelpful as it may be: a communicator is busy after some calls,
// and until it is asked again nothing of them is on the stream; a message that is too long is an asynchronous error at
// the receiver, one that is too short leaves it waiting; so does a peer that has gone, until the communicator is
// aborted. An abort waits for the other communicators of its device that have something under way and are not being
// aborted; finalizing ends when the peer does it too, or has gone.
//
// LVP_CUDAHOST_NCCL: `missing`, there is no library; `silent:N`, this process's sends from the N-th on do not move;
// `killed:N`, halfway through the N-th it is killed.
#include "tests/cudahost/fibers.h"

#pragma GCC visibility push(default) // looked up by name
#include <nccl.h>
#pragma GCC visibility pop

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

namespace
{

struct greeting {
    int32_t rank, device;
};

// One end of a communicator. Queued work shares it with the handle, which may be aborted first.
struct end {
    greeting mine = {}, theirs = {};
    int listener = -1, socket = -1;
    bool told = false;
    ncclResult_t state = ncclInProgress;
    std::string why; // of a failure
    bool aborted = false, finalizing = false;
    int under_way = 0; // on the device
    unsigned long calls = 0;
    std::function<void()> pending; // what is queued when the communicator is asked for the second time
    int asked = 0;

    end() = default;
    end(const end &) = delete;
    end &operator=(const end &) = delete;
    ~end() { hang_up(); }
    void hang_up()
    {
        if (listener >= 0) (void)close(listener);
        if (socket >= 0) (void)close(socket);
        listener = socket = -1;
    }
    ncclResult_t fail(ncclResult_t result, const char *text)
    {
        if (state != ncclSuccess && state != ncclInProgress) return state;
        why = text;
        return state = result;
    }
};

std::vector<std::weak_ptr<end>> ends; // of all communicators
std::map<std::string, int> listeners; // sockets of the ids that this process made, until an end takes them

// Of LVP_CUDAHOST_NCCL.
const char *fault()
{
    const char *value = lvp_host::setting("LVP_CUDAHOST_NCCL");
    return value != nullptr ? value : "";
}

// Whether `what` was asked for from call `number` on.
bool asked_for(const char *what, unsigned long number)
{
    size_t n = strlen(what);
    return strncmp(fault(), what, n) == 0 && fault()[n] == ':' && number >= strtoul(fault() + n + 1, nullptr, 10);
}

// An abstract address: it goes with its socket.
socklen_t address_of(const char *name, sockaddr_un *address)
{
    *address = {};
    address->sun_family = AF_UNIX;
    (void)snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "%.100s", name);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + strlen(address->sun_path + 1));
}

enum moving { MOVED, LATER, GONE };

// Moves up to n bytes; *done grows by what went.
moving move_bytes(int socket, bool sends, char *bytes, size_t n, size_t *done)
{
    while (*done < n) {
        ssize_t went = sends ? send(socket, bytes + *done, n - *done, MSG_DONTWAIT | MSG_NOSIGNAL)
                             : recv(socket, bytes + *done, n - *done, MSG_DONTWAIT);
        if (went < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return LATER;
        if (went < 0 && errno == EINTR) continue;
        if (went <= 0) return GONE;
        *done += static_cast<size_t>(went);
    }
    return MOVED;
}

void connect_ends(end *e)
{
    size_t sent = 0;
    if (e->socket < 0) e->socket = accept4(e->listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (e->socket < 0) return;
    if (!e->told)
        e->told = move_bytes(e->socket, true, reinterpret_cast<char *>(&e->mine), sizeof e->mine, &sent) == MOVED;
    ssize_t n = recv(e->socket, &e->theirs, sizeof e->theirs, MSG_DONTWAIT | MSG_PEEK);
    if (n == 0) (void)e->fail(ncclRemoteError, "the peer went away while connecting");
    if (n != sizeof e->theirs) return;
    (void)recv(e->socket, &e->theirs, sizeof e->theirs, MSG_DONTWAIT);
    if (e->theirs.rank == e->mine.rank)
        (void)e->fail(ncclInvalidUsage, "both ends are the same rank");
    else if (e->theirs.device == e->mine.device)
        (void)e->fail(ncclInvalidUsage, "Duplicate GPU detected");
    else
        e->state = ncclSuccess;
}

// Both sides close their direction once nothing of them is under way.
void say_farewell(end *e)
{
    char more;
    if (e->under_way > 0) return;
    (void)shutdown(e->socket, SHUT_WR);
    ssize_t n = recv(e->socket, &more, sizeof more, MSG_DONTWAIT);
    if (n > 0)
        (void)e->fail(ncclInvalidUsage, "the peer sent what was not received");
    else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        e->state = ncclSuccess;
}

bool others_run(int device)
{
    for (const std::weak_ptr<end> &other : ends) {
        std::shared_ptr<end> at = other.lock();
        if (at != nullptr && at->mine.device == device && at->under_way > 0 && !at->aborted) return true;
    }
    return false;
}

struct transfer {
    std::shared_ptr<end> at;
    bool sends;
    char *data;
    uint64_t n_bytes, length; // length: what the sender says
    size_t head_done = 0, done = 0;
    unsigned long number;

    bool failed(const char *text)
    {
        (void)at->fail(ncclRemoteError, text);
        return false;
    }
    // True: it has ended.
    bool move()
    {
        if (at->aborted) return true;
        if (at->state != ncclSuccess && at->state != ncclInProgress) return false;
        if (sends && asked_for("silent", number)) return false;
        if (sends) length = n_bytes;
        moving how = move_bytes(at->socket, sends, reinterpret_cast<char *>(&length), sizeof length, &head_done);
        if (how == MOVED && length > n_bytes) {
            (void)at->fail(ncclInvalidUsage, "message truncated: the sender's is longer than the receiver's");
            return false;
        }
        bool killed = sends && asked_for("killed", number);
        if (how == MOVED) how = move_bytes(at->socket, sends, data, killed ? length / 2 : length, &done);
        if (killed && how == MOVED) (void)raise(SIGKILL);
        if (how == GONE) return failed("the connection to the peer was closed");
        return how == MOVED && length == n_bytes;
    }
};

} // namespace

struct ncclComm {
    std::shared_ptr<end> at;
};

namespace
{

ncclResult_t call(ncclComm_t handle, bool sends, void *data, size_t count, ncclDataType_t type, int peer,
                  cudaStream_t stream)
{
    static unsigned long sends_here;
    auto lock = lvp_host::device_lock();
    std::shared_ptr<end> at = handle->at;
    if (at->state == ncclInProgress) return ncclInvalidArgument; // used before it is at rest
    if (at->state != ncclSuccess) return at->state;
    if (peer != 1 - at->mine.rank || type != ncclInt8) return ncclInvalidArgument;
    if (lvp_host::device_of(stream) != at->mine.device || !lvp_host::device_memory(data, count, at->mine.device)) {
        fprintf(stderr, "cudahost: NCCL was given memory or a stream that is not of the communicator's device\n");
        abort();
    }
    auto moving = std::make_shared<transfer>();
    moving->at = at;
    moving->sends = sends;
    moving->data = static_cast<char *>(data);
    moving->n_bytes = count;
    moving->number = sends ? ++sends_here : 0;
    auto queue = [=] {
        at->under_way++;
        lvp_host::queue_transfer(stream, [=] {
            bool ended = moving->move();
            at->under_way -= ended;
            return ended;
        });
    };
    if (at->calls++ % 3 != 0) {
        queue();
        return ncclSuccess;
    }
    at->pending = queue;
    at->asked = 0;
    return at->state = ncclInProgress;
}

} // namespace

void *lvp_host::nccl_library()
{
    Dl_info info;
    if (strcmp(fault(), "missing") == 0 || dladdr(reinterpret_cast<void *>(&ncclSend), &info) == 0) return nullptr;
    return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
}

extern "C" {

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int made;
    auto lock = lvp_host::device_lock();
    sockaddr_un address;
    *id = {};
    (void)snprintf(id->internal, sizeof id->internal, "lvp-cudahost-nccl-%d-%d", static_cast<int>(getpid()), ++made);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t length = address_of(id->internal, &address);
    if (listener < 0 || bind(listener, reinterpret_cast<sockaddr *>(&address), length) != 0 || listen(listener, 1) != 0)
        return ncclSystemError;
    listeners[id->internal] = listener;
    return ncclSuccess;
}

// The end in whose process the id was made waits for the other to connect.
ncclResult_t ncclCommInitRankConfig(ncclComm_t *handle, int n_ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    auto lock = lvp_host::device_lock();
    sockaddr_un address;
    if (n_ranks != 2 || rank < 0 || rank > 1 || config == nullptr || config->magic != 0xcafebeef ||
        config->blocking != 0)
        return ncclInvalidArgument;
    auto at = std::make_shared<end>();
    at->mine.rank = rank;
    (void)cudaGetDevice(&at->mine.device);
    id.internal[sizeof id.internal - 1] = '\0';
    auto mine = listeners.find(id.internal);
    if (mine != listeners.end()) {
        at->listener = mine->second;
        listeners.erase(mine);
    } else {
        at->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        socklen_t length = address_of(id.internal, &address);
        if (connect(at->socket, reinterpret_cast<sockaddr *>(&address), length) != 0)
            (void)at->fail(ncclSystemError, "nobody listens where the unique id points to");
    }
    ends.push_back(at);
    *handle = new ncclComm{at};
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t *state)
{
    auto lock = lvp_host::device_lock();
    end *at = handle->at.get();
    if (at->state == ncclInProgress && at->pending) {
        if (at->asked++ > 0) {
            at->state = ncclSuccess;
            at->pending();
            at->pending = nullptr;
        }
    } else if (at->state == ncclInProgress && at->finalizing) {
        say_farewell(at);
    } else if (at->state == ncclInProgress) {
        connect_ends(at);
    }
    *state = at->state;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t handle)
{
    auto lock = lvp_host::device_lock();
    end *at = handle->at.get();
    if (at->state == ncclInProgress || at->finalizing) return ncclInvalidArgument;
    if (at->state != ncclSuccess) return at->state;
    at->finalizing = true;
    return at->state = ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t handle)
{
    auto lock = lvp_host::device_lock();
    if (!handle->at->finalizing || handle->at->state != ncclSuccess) {
        fprintf(stderr, "cudahost: a communicator is destroyed that is not finalized\n");
        abort();
    }
    handle->at->hang_up();
    delete handle;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t handle)
{
    {
        auto lock = lvp_host::device_lock();
        handle->at->aborted = true;
        handle->at->pending = nullptr; // or it would hold itself
        handle->at->hang_up();
    }
    lvp_host::wait_until([handle] { return !others_run(handle->at->mine.device); });
    delete handle;
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t handle,
                      cudaStream_t stream)
{
    return call(handle, true, const_cast<void *>(data), count, type, peer, stream);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t handle, cudaStream_t stream)
{
    return call(handle, false, data, count, type, peer, stream);
}

const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclSuccess:
        return "no error";
    case ncclSystemError:
        return "unhandled system error";
    case ncclInvalidArgument:
        return "invalid argument";
    case ncclInvalidUsage:
        return "invalid usage";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    default:
        return "an error";
    }
}

const char *ncclGetLastError(ncclComm_t handle)
{
    return handle != nullptr ? handle->at->why.c_str() : "";
}

} // extern "C"
