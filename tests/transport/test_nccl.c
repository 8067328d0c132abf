// What a rank learns when its peer fails under NCCL: two processes, each with a stand-in for a GPU. Whatever happens to
// the other, an error that names it comes within the limit.
#include "common/clock.h"
#include "tests/transport/nccl.h"
#include "worker/device.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

enum { TAG = 3, LARGE = 4 << 20, CHECK_FAILED = 99 };

// --- messages between the two processes: what MPI would carry, over a socket that keeps them apart. One of each
// direction at a time, and small ones.

struct wire {
    struct lvp_transport base;
    int socket;
};

static enum lvp_status wire_isend(struct lvp_transport *transport, int peer, int tag, const void *data, size_t n_bytes,
                                  struct lvp_transfer *transfer)
{
    // A peer that has gone does not read it; as with MPI, its sender does not hear of that.
    (void)send(((struct wire *)transport)->socket, data, n_bytes, MSG_NOSIGNAL);
    *transfer = (struct lvp_transfer){.peer = peer, .tag = tag};
    return LVP_OK;
}

static enum lvp_status wire_irecv(struct lvp_transport *transport, int peer, int tag, void *data, size_t capacity,
                                  struct lvp_transfer *transfer)
{
    (void)transport;
    *transfer = (struct lvp_transfer){
        .active = true, .receiving = true, .peer = peer, .tag = tag, .buffer = data, .n_bytes = capacity};
    return LVP_OK;
}

static enum lvp_status wire_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    if (transfer->active) {
        ssize_t n = recv(((struct wire *)transport)->socket, transfer->buffer, transfer->n_bytes, MSG_DONTWAIT);
        if (n > 0) {
            transfer->n_received = (size_t)n;
            transfer->active = false;
        }
    }
    *done = !transfer->active;
    return LVP_OK;
}

static void wire_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    (void)transport;
    transfer->active = false;
}

static void wire_close(struct lvp_transport *transport)
{
    (void)transport;
}

static const struct lvp_transport_ops wire_ops = {"wire", wire_isend, wire_irecv, wire_test, wire_cancel, wire_close};

// --- two processes

struct rank {
    struct wire wire;
    struct lvp_transport *nccl;
    pid_t peer; // in rank 0
};

static unsigned char buffer[LARGE];

static void open_rank(struct rank *rank, int socket, int number)
{
    rank->wire = (struct wire){.base.ops = &wire_ops, .socket = socket};
    if (open_nccl_end(&rank->wire.base, number, &rank->nccl) != LVP_OK) {
        (void)fprintf(stderr, "%s\n", lvp_error_text());
        _exit(CHECK_FAILED);
    }
}

// Runs `other` as rank 1 in a process of its own, which ends with what it returns; this process is rank 0.
static void start(struct rank *rank, int (*other)(struct rank *rank))
{
    int sockets[2];
    *rank = (struct rank){0};
    lvp_error_clear();
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets), 0);
    rank->peer = fork();
    assert_true(rank->peer >= 0);
    if (rank->peer == 0) {
        struct rank mine = {0};
        (void)close(sockets[0]);
        open_rank(&mine, sockets[1], 1);
        _exit(write(sockets[1], "", 1) == 1 ? other(&mine) : CHECK_FAILED);
    }
    char ready = 1;
    (void)close(sockets[1]);
    open_rank(rank, sockets[0], 0);
    assert_int_equal(read(sockets[0], &ready, 1), 1); // limits begin when both are there
}

static enum lvp_status begin_on(struct rank *rank, int tag, bool sends, size_t n_bytes, struct lvp_transfer *transfer)
{
    int peer = rank->peer > 0 ? 1 : 0;
    return sends ? rank->nccl->ops->isend(rank->nccl, peer, tag, buffer, n_bytes, transfer)
                 : rank->nccl->ops->irecv(rank->nccl, peer, tag, buffer, n_bytes, transfer);
}

static enum lvp_status begin(struct rank *rank, bool sends, size_t n_bytes, struct lvp_transfer *transfer)
{
    return begin_on(rank, TAG, sends, n_bytes, transfer);
}

// One transfer, polled to its end.
static enum lvp_status move(struct rank *rank, bool sends, size_t n_bytes)
{
    struct lvp_transfer transfer = {0};
    bool done = false;
    enum lvp_status status = begin(rank, sends, n_bytes, &transfer);
    while (status == LVP_OK && !done) {
        status = rank->nccl->ops->test(rank->nccl, &transfer, &done);
        (void)usleep(20);
    }
    return status;
}

// A transfer that must fail, naming the peer, within its limit.
static void expect_lost(struct rank *rank, bool sends, const char *text)
{
    double start = lvp_now();
    assert_int_equal(move(rank, sends, LARGE), LVP_ERR_LOST);
    if (strstr(lvp_error_text(), text) == NULL || strstr(lvp_error_text(), "rank 1") == NULL)
        fail_msg("'%s' does not say 'rank 1' and '%s'", lvp_error_text(), text);
    assert_true(lvp_now() - start < 10 * NCCL_LIMIT);
    double since = lvp_now(); // and from now on at once
    assert_int_equal(move(rank, sends, LARGE), LVP_ERR_LOST);
    assert_true(lvp_now() - since < NCCL_LIMIT);
}

// Closing must not hang either; then the peer ends.
static int stop(struct rank *rank)
{
    int status = 0;
    rank->nccl->ops->close(rank->nccl);
    (void)close(rank->wire.socket);
    assert_int_equal(waitpid(rank->peer, &status, 0), rank->peer);
    return status;
}

// --- peers

static int gone_at_once(struct rank *rank)
{
    (void)rank;
    return 0;
}

static int stopped_before(struct rank *rank)
{
    (void)rank;
    return raise(SIGSTOP);
}

static int stopped_when_it_had_invited(struct rank *rank)
{
    struct lvp_transfer transfer = {0};
    if (begin(rank, false, LARGE, &transfer) != LVP_OK) return CHECK_FAILED;
    return raise(SIGSTOP);
}

static int killed_halfway(struct rank *rank)
{
    setenv("LVP_CUDAHOST_NCCL", "killed:2", 1);
    if (move(rank, true, LARGE) != LVP_OK) return CHECK_FAILED;
    return move(rank, true, LARGE) == LVP_OK ? 0 : CHECK_FAILED;
}

static int says_but_does_not_send(struct rank *rank)
{
    setenv("LVP_CUDAHOST_NCCL", "silent:1", 1);
    enum lvp_status status = move(rank, true, LARGE);
    return status == LVP_ERR_LOST && strstr(lvp_error_text(), "sending to rank 0: nothing moved") != NULL
               ? 0
               : CHECK_FAILED;
}

// Two transfers at once, until both have failed. True: they have, and say `text`.
static bool both_fail(struct rank *rank, bool sends, const char *text)
{
    struct lvp_transfer transfers[2] = {{0}, {0}};
    enum lvp_status status[2] = {LVP_OK, LVP_OK};
    bool done = false, right = true;
    for (int i = 0; i < 2; i++) status[i] = begin_on(rank, TAG + i, sends, LARGE, &transfers[i]);
    while ((status[0] == LVP_OK || status[1] == LVP_OK) && !done && right)
        for (int i = 0; i < 2; i++) {
            if (status[i] != LVP_OK) continue;
            status[i] = rank->nccl->ops->test(rank->nccl, &transfers[i], &done);
            if (status[i] != LVP_OK)
                right = right && status[i] == LVP_ERR_LOST && strstr(lvp_error_text(), text) != NULL;
            (void)usleep(20);
        }
    return right && !done;
}

static int says_two_but_does_not_send(struct rank *rank)
{
    setenv("LVP_CUDAHOST_NCCL", "silent:1", 1);
    return both_fail(rank, true, "sending to rank 0: nothing moved") ? 0 : CHECK_FAILED;
}

static int sends_less(struct rank *rank)
{
    enum lvp_status status = move(rank, true, LARGE - 1);
    return status == LVP_ERR_FORMAT && strstr(lvp_error_text(), "rank 0 expects") != NULL ? 0 : CHECK_FAILED;
}

// NCCL does not promise that what its sender's event stands behind has arrived when the sender ends: the stand-in's
// sockets keep it. What is asserted is this transport's part: it takes what has arrived before it looks at errors.
static int sends_and_leaves(struct rank *rank)
{
    memset(buffer, 9, LARGE);
    if (move(rank, true, LARGE) != LVP_OK) return CHECK_FAILED;
    rank->nccl->ops->close(rank->nccl);
    return 0;
}

static int pauses(struct rank *rank)
{
    (void)usleep((useconds_t)(NCCL_LIMIT * 3e6));
    return move(rank, false, LARGE) == LVP_OK ? 0 : CHECK_FAILED;
}

// --- tests

static void test_no_library(void **state) // first: a process looks for it once
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        struct lvp_transport *transport = NULL;
        setenv("LVP_CUDAHOST_NCCL", "missing", 1);
        const struct lvp_gpus *gpus = lvp_gpus_find();
        bool right = gpus->n > 1 && gpus->nccl == 0 && strstr(gpus->no_nccl, "libnccl.so.2") != NULL &&
                     lvp_gpu_transport_open(NULL, 0, 1, &transport) == LVP_ERR_USAGE && transport == NULL;
        _exit(right ? 0 : CHECK_FAILED);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_peer_that_never_answers(void **state)
{
    (void)state;
    struct rank rank;
    start(&rank, gone_at_once);
    expect_lost(&rank, false, "it did not answer");
    assert_int_equal(stop(&rank), 0);

    start(&rank, stopped_before);
    expect_lost(&rank, false, "it did not answer");
    (void)kill(rank.peer, SIGKILL);
    (void)stop(&rank);

    start(&rank, stopped_when_it_had_invited);
    expect_lost(&rank, true, "for");
    (void)kill(rank.peer, SIGKILL);
    (void)stop(&rank);

    start(&rank, says_but_does_not_send);
    expect_lost(&rank, false, "nothing moved");
    assert_int_equal(stop(&rank), 0);
}

static void test_peer_killed(void **state)
{
    (void)state;
    struct rank rank;
    start(&rank, killed_halfway);
    assert_int_equal(move(&rank, false, LARGE), LVP_OK);
    expect_lost(&rank, false, "remote process exited");
    int status = stop(&rank);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

// Giving up one channel does not wait for another's kernel, and closing aborts both at once: in NCCL an abort waits for
// all that runs on the device.
static void test_two_channels_stuck(void **state)
{
    (void)state;
    struct rank rank;
    double start_time = lvp_now();
    start(&rank, says_two_but_does_not_send);
    assert_true(both_fail(&rank, false, "receiving from rank 1: nothing moved"));
    assert_true(lvp_now() - start_time < 10 * NCCL_LIMIT);
    assert_int_equal(stop(&rank), 0);
}

static void test_sizes_differ(void **state)
{
    (void)state;
    struct rank rank;
    start(&rank, sends_less);
    expect_lost(&rank, false, "did not answer");
    assert_int_equal(stop(&rank), 0);
}

// What has arrived counts, even where the peer left before it was looked at.
static void test_peer_that_leaves_early(void **state)
{
    (void)state;
    struct rank rank;
    struct lvp_transfer transfer = {0};
    bool done = false;
    start(&rank, sends_and_leaves);
    assert_int_equal(begin(&rank, false, LARGE, &transfer), LVP_OK);
    for (double deadline = lvp_now() + 10; !done && lvp_now() < deadline;) {
        (void)usleep(10000);
        assert_int_equal(rank.nccl->ops->test(rank.nccl, &transfer, &done), LVP_OK);
    }
    assert_true(done);
    for (int i = 0; i < LARGE; i += LARGE / 64) assert_int_equal(buffer[i], 9);
    assert_int_equal(stop(&rank), 0);
}

// A receiver that is busy for longer than the limit is not lost.
static void test_busy_receiver(void **state)
{
    (void)state;
    struct rank rank;
    start(&rank, pauses);
    assert_int_equal(move(&rank, true, LARGE), LVP_OK);
    assert_int_equal(stop(&rank), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_library),    cmocka_unit_test(test_peer_that_never_answers),
        cmocka_unit_test(test_peer_killed),   cmocka_unit_test(test_two_channels_stuck),
        cmocka_unit_test(test_sizes_differ),  cmocka_unit_test(test_peer_that_leaves_early),
        cmocka_unit_test(test_busy_receiver),
    };
    if (getenv("LVP_CUDA_HOST") == NULL) {
        (void)printf("not tried: it needs the build with LVP_CUDA=HOST\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
