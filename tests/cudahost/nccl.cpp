// The NCCL calls that worker/cuda uses, between processes of one machine: a communicator of two ranks is a local
// socket. Transfers are work of a stream and move when streams do. As with the real library nothing but asking for its
// state is allowed while a communicator is at work, which the stand-in stays for some questions after every call; a
// size that differs from the peer's, and a peer that is gone, turn up as the communicator's asynchronous error.
//
// LVP_CUDAHOST_NCCL: "silent=N" and "gone=N", after N transfers of this process no bytes move any more, or its sockets
// close; "shrink=N", the N-th send is a byte short.
#include "tests/cudahost/fibers.h"

#include <nccl.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace
{

// What a communicator and its queued transfers share; the latter may outlive it.
struct edge {
    int socket = -1, listener = -1;
    ncclResult_t state = ncclSuccess;
    int busy = 0; // questions that are answered with "in progress"
};

std::recursive_mutex mutex;
std::map<std::string, int> listeners; // of ids made here
int transfers;

// N of "name=N" in the setting, else -1.
int setting(const char *name)
{
    const char *value = getenv("LVP_CUDAHOST_NCCL");
    size_t n = strlen(name);
    return value != nullptr && strncmp(value, name, n) == 0 && value[n] == '=' ? atoi(value + n + 1) : -1;
}

bool reached(const char *name)
{
    int after = setting(name);
    return after >= 0 && transfers > after;
}

socklen_t address_of(const ncclUniqueId &id, sockaddr_un *address)
{
    *address = {};
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path + 1, id.internal, 40); // a name of no file
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 41);
}

void misused(const char *what)
{
    fprintf(stderr, "cudahost: NCCL: %s\n", what);
    abort();
}

// A message: its size, its bytes, and the receiver's word that it has them.
struct transfer {
    std::shared_ptr<edge> on;
    char *data;
    uint64_t n_bytes;
    bool sends, started;
    uint64_t size; // as the sender says
    char received; // the receiver's word
    size_t at;     // of all that

    // Moves bytes start..start + n of the message as far as they go. False: more is to come, or the peer is gone.
    bool piece(void *memory, size_t start, size_t n, bool outwards)
    {
        while (at < start + n) {
            char *from = static_cast<char *>(memory) + (at - start);
            size_t rest = start + n - at;
            ssize_t moved = outwards ? send(on->socket, from, rest, MSG_DONTWAIT | MSG_NOSIGNAL)
                                     : recv(on->socket, from, rest, MSG_DONTWAIT);
            if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return false;
            if (moved <= 0) on->state = ncclRemoteError;
            if (moved <= 0) return false;
            at += static_cast<size_t>(moved);
        }
        return true;
    }

    bool move()
    {
        if (!started) transfers++;
        if (!started && sends) size = n_bytes - (transfers == setting("shrink") ? 1 : 0);
        started = true;
        if (reached("silent")) return false;
        if (reached("gone")) (void)shutdown(on->socket, SHUT_RDWR);
        if (!piece(&size, 0, sizeof size, sends)) return false;
        if (!sends && size != n_bytes) {
            on->state = ncclInvalidUsage;
            (void)shutdown(on->socket, SHUT_RDWR);
            return false;
        }
        return piece(data, sizeof size, size, sends) && piece(&received, sizeof size + size, 1, !sends);
    }

    bool progress()
    {
        std::lock_guard<std::recursive_mutex> guard(mutex);
        return on->state != ncclSuccess || move() || on->state != ncclSuccess; // what failed is over
    }
};

} // namespace

struct ncclComm {
    std::shared_ptr<edge> on = std::make_shared<edge>();
};

static ncclResult_t queue_transfer(void *data, size_t count, ncclComm_t comm, cudaStream_t stream, bool sends)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (comm->on->busy > 0 || comm->on->socket < 0) misused("a transfer on a communicator that is still at work");
    auto job = std::make_shared<transfer>(transfer{comm->on, static_cast<char *>(data), count, sends, false, 0, 1, 0});
    comm->on->busy = 2;
    lvp_host::queue_transfer(stream, [job] { return job->progress(); });
    return ncclInProgress;
}

extern "C" {

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclSuccess:
        return "no error";
    case ncclInvalidUsage:
        return "invalid usage";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    default:
        return "an error";
    }
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int number;
    sockaddr_un address;
    std::lock_guard<std::recursive_mutex> guard(mutex);
    *id = {};
    (void)snprintf(id->internal, sizeof id->internal, "lvpipe-nccl-%d-%d", getpid(), number++);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t size = address_of(*id, &address);
    if (bind(listener, reinterpret_cast<sockaddr *>(&address), size) != 0 || listen(listener, 1) != 0)
        return ncclSystemError;
    listeners[id->internal] = listener;
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    if (n_ranks != 2 || config->blocking != 0) misused("only non-blocking communicators of two ranks are known here");
    *comm = new ncclComm;
    edge &on = *(*comm)->on;
    on.busy = 3;
    if (rank == 0) {
        on.listener = listeners[id.internal];
        return ncclInProgress;
    }
    sockaddr_un address;
    socklen_t size = address_of(id, &address);
    on.socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(on.socket, reinterpret_cast<sockaddr *>(&address), size) != 0) on.state = ncclRemoteError;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    edge &on = *comm->on;
    if (on.socket < 0) on.socket = accept4(on.listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (on.busy > 0) on.busy--;
    *state = on.state != ncclSuccess ? on.state : on.busy > 0 || on.socket < 0 ? ncclInProgress : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t, int, ncclComm_t comm, cudaStream_t stream)
{
    return queue_transfer(const_cast<void *>(data), count, comm, stream, true);
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t, int, ncclComm_t comm, cudaStream_t stream)
{
    return queue_transfer(data, count, comm, stream, false);
}

// What is queued ends without having moved.
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    std::lock_guard<std::recursive_mutex> guard(mutex);
    edge &on = *comm->on;
    if (on.socket >= 0) (void)close(on.socket);
    if (on.listener >= 0) (void)close(on.listener);
    on.socket = on.listener = -1;
    on.state = ncclInternalError;
    delete comm;
    return ncclSuccess;
}

} // extern "C"
