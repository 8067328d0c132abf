// What every transport promises, asked of each: the loop inside this process, MPI with this process as its only rank,
// sending to itself, and NCCL between two stand-ins for GPUs, where the build has them. Nothing here blocks; a transfer
// that does not end within its deadline fails the test.
#include "common/clock.h"
#include "common/transport.h"
#include "tests/transport/nccl.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

struct pair {
    struct lvp_transport *ends[2]; // sender, receiver
    int ranks[2];
};

static const size_t sizes[] = {0, 1, 64, 4096, (64 << 10) + 1, 8 << 20};
enum { N_SIZES = sizeof sizes / sizeof *sizes, TAG = 7, OTHER_TAG = 8 };

static int open_loop(void **state)
{
    static struct pair pair;
    pair = (struct pair){.ranks = {0, 1}};
    *state = &pair;
    return lvp_transport_loop_open(2, pair.ends) == LVP_OK ? 0 : -1;
}

static int open_mpi(void **state)
{
    static struct pair pair;
    struct lvp_transport *transport = NULL;
    pair = (struct pair){0};
    *state = &pair;
    if (lvp_transport_mpi_open(MPI_COMM_WORLD, &transport) != LVP_OK) return -1;
    pair.ends[0] = pair.ends[1] = transport;
    return 0;
}

static struct lvp_transport *nccl_messages[2];

static int open_nccl(void **state)
{
    static struct pair pair;
    pair = (struct pair){.ranks = {0, 1}};
    *state = &pair;
    if (lvp_transport_loop_open(2, nccl_messages) != LVP_OK) return -1;
    for (int i = 0; i < 2; i++)
        if (open_nccl_end(nccl_messages[i], i, &pair.ends[i]) != LVP_OK) return -1;
    return 0;
}

static int close_pair(void **state)
{
    struct pair *pair = *state;
    lvp_error_clear();
    pair->ends[0]->ops->close(pair->ends[0]);
    if (pair->ends[1] != pair->ends[0]) pair->ends[1]->ops->close(pair->ends[1]);
    return 0;
}

static void *close_end(void *end)
{
    ((struct lvp_transport *)end)->ops->close(end);
    return NULL;
}

// At the same time, as two ranks do: ends wait for each other a while.
static int close_nccl(void **state)
{
    struct pair *pair = *state;
    pthread_t other;
    lvp_error_clear();
    if (pthread_create(&other, NULL, close_end, pair->ends[1]) != 0) return -1;
    pair->ends[0]->ops->close(pair->ends[0]);
    if (pthread_join(other, NULL) != 0) return -1;
    for (int i = 0; i < 2; i++) nccl_messages[i]->ops->close(nccl_messages[i]);
    return 0;
}

static unsigned char *pattern(size_t n, unsigned seed)
{
    unsigned char *bytes = malloc(n + 1);
    for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)(seed + i * 31 + (i >> 9));
    return bytes;
}

static void start_send(struct pair *pair, int tag, const void *data, size_t n, struct lvp_transfer *transfer)
{
    *transfer = (struct lvp_transfer){0};
    assert_int_equal(pair->ends[0]->ops->isend(pair->ends[0], pair->ranks[1], tag, data, n, transfer), LVP_OK);
}

static void start_receive(struct pair *pair, int tag, void *data, size_t n, struct lvp_transfer *transfer)
{
    *transfer = (struct lvp_transfer){0};
    assert_int_equal(pair->ends[1]->ops->irecv(pair->ends[1], pair->ranks[0], tag, data, n, transfer), LVP_OK);
}

static enum lvp_status finish(struct lvp_transport *end, struct lvp_transfer *transfer, struct lvp_transport *other,
                              struct lvp_transfer *partner)
{
    double deadline = lvp_now() + 20;
    for (;;) {
        bool done = false, ignored = false;
        enum lvp_status status = end->ops->test(end, transfer, &done);
        if (status != LVP_OK || done) return status;
        if (partner != NULL)
            assert_int_equal(other->ops->test(other, partner, &ignored), LVP_OK); // both sides must poll
        if (lvp_now() > deadline) fail_msg("a transfer did not end");
        sched_yield();
    }
}

static void finish_both(struct pair *pair, struct lvp_transfer *send, struct lvp_transfer *receive)
{
    assert_int_equal(finish(pair->ends[1], receive, pair->ends[0], send), LVP_OK);
    assert_int_equal(finish(pair->ends[0], send, NULL, NULL), LVP_OK);
    assert_false(send->active);
    assert_false(receive->active);
}

static void test_sizes(void **state)
{
    struct pair *pair = *state;
    for (int i = 0; i < 2 * N_SIZES; i++) { // the receive is posted first, then last
        size_t n = sizes[i % N_SIZES];
        bool first = i < N_SIZES;
        unsigned char *sent = pattern(n, (unsigned)i), *received = calloc(n + 1, 1);
        struct lvp_transfer send, receive;
        received[n] = 0xee;
        if (first) start_receive(pair, TAG, received, n, &receive);
        start_send(pair, TAG, sent, n, &send);
        if (!first) start_receive(pair, TAG, received, n, &receive);
        finish_both(pair, &send, &receive);
        assert_true(receive.n_received == n);
        assert_int_equal(memcmp(sent, received, n), 0);
        assert_int_equal(received[n], 0xee);
        free(sent);
        free(received);
    }
}

// A receive may be larger than what comes; n_received says how much did.
static void test_shorter_message(void **state)
{
    struct pair *pair = *state;
    unsigned char *sent = pattern(1000, 1), received[2000];
    struct lvp_transfer send, receive;
    memset(received, 0xee, sizeof received);
    start_receive(pair, TAG, received, sizeof received, &receive);
    start_send(pair, TAG, sent, 1000, &send);
    finish_both(pair, &send, &receive);
    assert_true(receive.n_received == 1000);
    assert_int_equal(memcmp(sent, received, 1000), 0);
    assert_int_equal(received[1000], 0xee);
    free(sent);
}

static void test_order_within_a_tag(void **state)
{
    struct pair *pair = *state;
    enum { N = 40 };
    struct lvp_transfer sends[N], receives[N];
    unsigned char *sent[N], *received[N];
    for (int i = 0; i < N; i++) {
        sent[i] = pattern(sizes[i % 5], (unsigned)i);
        received[i] = malloc(sizes[i % 5] + 1);
    }
    for (int i = 0; i < N / 2; i++) start_receive(pair, TAG, received[i], sizes[i % 5], &receives[i]);
    for (int i = 0; i < N; i++) start_send(pair, TAG, sent[i], sizes[i % 5], &sends[i]);
    for (int i = N / 2; i < N; i++) start_receive(pair, TAG, received[i], sizes[i % 5], &receives[i]);
    for (int i = N - 1; i >= 0; i--) finish_both(pair, &sends[i], &receives[i]); // asked in any order
    for (int i = 0; i < N; i++) {
        assert_true(receives[i].n_received == sizes[i % 5]);
        assert_int_equal(memcmp(sent[i], received[i], sizes[i % 5]), 0);
        free(sent[i]);
        free(received[i]);
    }
}

// A large message that nobody receives yet must not hold up another tag.
static void test_tags_do_not_block_each_other(void **state)
{
    struct pair *pair = *state;
    size_t large = sizes[N_SIZES - 1];
    unsigned char *first = pattern(large, 1), *got_first = malloc(large), second[100], got_second[100] = {0};
    struct lvp_transfer sends[2], receives[2];
    memset(second, 7, sizeof second);
    start_send(pair, TAG, first, large, &sends[0]);
    start_send(pair, OTHER_TAG, second, sizeof second, &sends[1]);
    start_receive(pair, OTHER_TAG, got_second, sizeof got_second, &receives[1]);
    finish_both(pair, &sends[1], &receives[1]);
    assert_memory_equal(second, got_second, sizeof second);
    start_receive(pair, TAG, got_first, large, &receives[0]);
    finish_both(pair, &sends[0], &receives[0]);
    assert_int_equal(memcmp(first, got_first, large), 0);
    free(first);
    free(got_first);
}

static void test_larger_than_capacity(void **state)
{
    struct pair *pair = *state;
    bool to_itself =
        pair->ends[0] == pair->ends[1]; // Open MPI cuts a message to oneself silently where the receive waited
    for (int i = to_itself ? 1 : 0; i < 2; i++) {
        size_t n = 101; // of a large one MPI promises nothing, see common/transport.h
        unsigned char *sent = pattern(n, 1), received[101];
        struct lvp_transfer send, receive;
        memset(received, 0xee, sizeof received);
        if (i % 2 == 0) start_receive(pair, TAG, received, 100, &receive);
        start_send(pair, TAG, sent, n, &send);
        if (i % 2 == 1) start_receive(pair, TAG, received, 100, &receive);
        lvp_error_clear();
        assert_int_equal(finish(pair->ends[1], &receive, pair->ends[0], &send), LVP_ERR_FORMAT);
        assert_non_null(strstr(lvp_error_text(), "100 bytes"));
        assert_int_equal(received[100], 0xee);
        assert_int_equal(finish(pair->ends[0], &send, NULL, NULL), LVP_OK);
        free(sent);
    }
}

static void test_cancelled_receive(void **state)
{
    struct pair *pair = *state;
    unsigned char abandoned[64], received[64], sent[64];
    struct lvp_transfer send, receive, given_up;
    memset(abandoned, 0xee, sizeof abandoned);
    memset(sent, 5, sizeof sent);
    start_receive(pair, TAG, abandoned, sizeof abandoned, &given_up);
    pair->ends[1]->ops->cancel(pair->ends[1], &given_up);
    assert_false(given_up.active);
    pair->ends[1]->ops->cancel(pair->ends[1], &given_up); // an ended transfer is allowed
    start_receive(pair, TAG, received, sizeof received, &receive);
    start_send(pair, TAG, sent, sizeof sent, &send);
    finish_both(pair, &send, &receive); // goes to the receive that is left
    assert_memory_equal(received, sent, sizeof sent);
    assert_int_equal(abandoned[0], 0xee);
}

static void test_ended_transfer_stays_done(void **state)
{
    struct pair *pair = *state;
    unsigned char byte = 1, got = 0;
    struct lvp_transfer send, receive;
    start_send(pair, TAG, &byte, 1, &send);
    start_receive(pair, TAG, &got, 1, &receive);
    finish_both(pair, &send, &receive);
    for (int i = 0; i < 2; i++) {
        bool done = false;
        assert_int_equal(pair->ends[1]->ops->test(pair->ends[1], &receive, &done), LVP_OK);
        assert_true(done);
    }
}

// Each end from a thread of its own, as two ranks would be. Only the loop can do this inside one process.
struct side {
    struct pair *pair;
    enum lvp_status status;
};

enum { THREAD_MESSAGES = 2000 };

static void *send_many(void *argument)
{
    struct side *side = argument;
    struct lvp_transport *end = side->pair->ends[0];
    for (uint32_t i = 0; i < THREAD_MESSAGES && side->status == LVP_OK; i++) {
        struct lvp_transfer transfer = {0};
        bool done = false;
        side->status = end->ops->isend(end, side->pair->ranks[1], TAG, &i, sizeof i, &transfer);
        while (side->status == LVP_OK && !done) {
            side->status = end->ops->test(end, &transfer, &done);
            sched_yield();
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct side side = {.pair = *state};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, send_many, &side), 0);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < THREAD_MESSAGES; i++) {
        uint32_t value = 0;
        struct lvp_transfer receive;
        start_receive(side.pair, TAG, &value, sizeof value, &receive);
        if (finish(side.pair->ends[1], &receive, NULL, NULL) != LVP_OK || value != i) wrong++;
    }
    pthread_join(thread, NULL);
    assert_int_equal(side.status, LVP_OK);
    assert_int_equal(wrong, 0);
}

// A send may be given up before anybody receives it. MPI cannot take a send back, so this is the loop's alone.
static void test_cancelled_send(void **state)
{
    struct pair *pair = *state;
    unsigned char first = 1, second = 2, got = 0;
    struct lvp_transfer given_up, send, receive;
    start_send(pair, TAG, &first, 1, &given_up);
    pair->ends[0]->ops->cancel(pair->ends[0], &given_up);
    start_send(pair, TAG, &second, 1, &send);
    start_receive(pair, TAG, &got, 1, &receive);
    finish_both(pair, &send, &receive);
    assert_int_equal(got, 2);
}

static void test_wrong_peer(void **state)
{
    struct pair *pair = *state;
    unsigned char byte = 1;
    struct lvp_transfer transfer = {0};
    assert_int_not_equal(pair->ends[0]->ops->isend(pair->ends[0], 99, TAG, &byte, 1, &transfer), LVP_OK);
    lvp_error_clear();
    assert_int_not_equal(pair->ends[1]->ops->irecv(pair->ends[1], 99, TAG, &byte, 1, &transfer), LVP_OK);
}

// A send whose receive has another size is the sender's error, which names the peer: nothing moves.
static void test_unequal_sizes(void **state)
{
    struct pair *pair = *state;
    unsigned char bytes[200] = {0}, received[200];
    for (int i = 0; i < 2; i++) { // each on a tag of its own: the pair is given up
        size_t expected = i == 0 ? 100 : 200;
        struct lvp_transfer send = {0}, receive;
        char text[100];
        start_receive(pair, TAG + i, received, expected, &receive);
        (void)snprintf(text, sizeof text, "rank 1 expects %zu bytes, 150 are sent", expected);
        lvp_error_clear();
        enum lvp_status status = pair->ends[0]->ops->isend(pair->ends[0], 1, TAG + i, bytes, 150, &send);
        if (status == LVP_OK) status = finish(pair->ends[0], &send, pair->ends[1], &receive);
        assert_int_equal(status, LVP_ERR_FORMAT);
        assert_non_null(strstr(lvp_error_text(), text));
        assert_false(send.active);
        pair->ends[1]->ops->cancel(pair->ends[1], &receive);
    }
}

// A transfer that is given up takes its (peer, tag) pair with it, and no other.
static void test_cancelled_pair(void **state)
{
    struct pair *pair = *state;
    unsigned char sent[64], received[64];
    struct lvp_transfer given_up, send, receive;
    memset(sent, 5, sizeof sent);
    start_receive(pair, TAG, received, sizeof received, &given_up);
    pair->ends[1]->ops->cancel(pair->ends[1], &given_up);
    assert_false(given_up.active);
    lvp_error_clear();
    assert_int_equal(pair->ends[1]->ops->irecv(pair->ends[1], 0, TAG, received, sizeof received, &receive),
                     LVP_ERR_LOST);
    assert_non_null(strstr(lvp_error_text(), "rank 0"));
    assert_false(receive.active);
    start_receive(pair, OTHER_TAG, received, sizeof received, &receive);
    start_send(pair, OTHER_TAG, sent, sizeof sent, &send);
    finish_both(pair, &send, &receive);
    assert_memory_equal(received, sent, sizeof sent);
}

#define EVERYONES(open, close)                                                                                         \
    cmocka_unit_test_setup_teardown(test_sizes, open, close),                                                          \
        cmocka_unit_test_setup_teardown(test_order_within_a_tag, open, close),                                         \
        cmocka_unit_test_setup_teardown(test_tags_do_not_block_each_other, open, close),                               \
        cmocka_unit_test_setup_teardown(test_ended_transfer_stays_done, open, close),                                  \
        cmocka_unit_test_setup_teardown(test_wrong_peer, open, close)
// Of transports whose receives may be larger than what comes.
#define ROOMY(open)                                                                                                    \
    EVERYONES(open, close_pair), cmocka_unit_test_setup_teardown(test_shorter_message, open, close_pair),              \
        cmocka_unit_test_setup_teardown(test_larger_than_capacity, open, close_pair),                                  \
        cmocka_unit_test_setup_teardown(test_cancelled_receive, open, close_pair)

int main(int argc, char **argv)
{
    const struct CMUnitTest loop[] = {ROOMY(open_loop),
                                      cmocka_unit_test_setup_teardown(test_threads, open_loop, close_pair),
                                      cmocka_unit_test_setup_teardown(test_cancelled_send, open_loop, close_pair)};
    const struct CMUnitTest mpi[] = {ROOMY(open_mpi)};
    const struct CMUnitTest nccl[] = {EVERYONES(open_nccl, close_nccl),
                                      cmocka_unit_test_setup_teardown(test_unequal_sizes, open_nccl, close_nccl),
                                      cmocka_unit_test_setup_teardown(test_cancelled_pair, open_nccl, close_nccl)};
    int provided = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN); // as the ranks do: a failure comes back as a status
    int failed = cmocka_run_group_tests_name("loop", loop, NULL, NULL);
    failed += cmocka_run_group_tests_name("mpi", mpi, NULL, NULL);
    if (nccl_stands_in())
        failed += cmocka_run_group_tests_name("nccl", nccl, NULL, NULL);
    else
        (void)printf("nccl: not tried, it needs the build with LVP_CUDA=HOST\n");
    MPI_Finalize();
    return failed;
}
