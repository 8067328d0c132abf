#include "common/control.h"

#include "common/tags.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

// What is sent, for as long as a send needs it.
struct packed {
    int n_sends;
    uint8_t bytes[];
};

struct outgoing {
    MPI_Request request;
    struct packed *packed;
    struct outgoing *next;
};

struct lvp_control {
    MPI_Comm communicator;
    struct outgoing *outgoing;
    uint8_t *received; // last message that was polled
    size_t capacity;
};

enum lvp_status lvp_control_open(MPI_Comm communicator, struct lvp_control **control)
{
    *control = calloc(1, sizeof **control);
    if (*control == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the control channel");
    (*control)->communicator = communicator;
    return LVP_OK;
}

static void forget(struct outgoing *sent)
{
    if (--sent->packed->n_sends == 0) free(sent->packed);
    free(sent);
}

static void collect(struct lvp_control *control)
{
    struct outgoing **link = &control->outgoing;
    while (*link != NULL) {
        int done = 0;
        MPI_Test(&(*link)->request, &done, MPI_STATUS_IGNORE);
        if (!done) {
            link = &(*link)->next;
            continue;
        }
        struct outgoing *sent = *link;
        *link = sent->next;
        forget(sent);
    }
}

void lvp_control_close(struct lvp_control *control)
{
    // What is still being sent when a world ends badly: MPI may look at it until the process is gone.
    static struct outgoing *left_behind;
    if (control == NULL) return;
    if (control->outgoing != NULL) left_behind = control->outgoing;
    (void)left_behind;
    free(control->received);
    free(control);
}

enum lvp_status lvp_control_send(struct lvp_control *control, int first, int n, const ProtobufCMessage *message)
{
    enum lvp_status status = LVP_OK;
    size_t n_bytes = protobuf_c_message_get_packed_size(message);
    if (n_bytes > LVP_CONTROL_MAX_BYTES) return lvp_fail(LVP_ERR_INTERNAL, "a control message of %zu bytes", n_bytes);
    struct packed *packed = malloc(sizeof *packed + n_bytes);
    if (packed == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a control message");
    packed->n_sends = 1; // ours, until all are on their way
    protobuf_c_message_pack(message, packed->bytes);
    for (int rank = first; rank < first + n && status == LVP_OK; rank++) {
        struct outgoing *out = calloc(1, sizeof *out);
        if (out == NULL) {
            status = lvp_fail(LVP_ERR_MEMORY, "out of memory for a control message");
            break;
        }
        out->packed = packed;
        packed->n_sends++;
        if (MPI_Isend(packed->bytes, (int)n_bytes, MPI_BYTE, rank, LVP_TAG_CONTROL, control->communicator,
                      &out->request) != MPI_SUCCESS) {
            forget(out);
            status = lvp_fail(LVP_ERR_LOST, "a control message to rank %d could not be sent", rank);
            break;
        }
        out->next = control->outgoing;
        control->outgoing = out;
    }
    if (--packed->n_sends == 0) free(packed);
    return status;
}

enum lvp_status lvp_control_poll(struct lvp_control *control, int *from, const uint8_t **bytes, size_t *n_bytes)
{
    int flag = 0, count = 0;
    MPI_Message message;
    MPI_Status status;
    *bytes = NULL;
    collect(control);
    if (MPI_Improbe(MPI_ANY_SOURCE, LVP_TAG_CONTROL, control->communicator, &flag, &message, &status) != MPI_SUCCESS)
        return lvp_fail(LVP_ERR_LOST, "the control channel failed");
    if (!flag) return LVP_OK;
    MPI_Get_count(&status, MPI_BYTE, &count);
    if (count < 0 || count > LVP_CONTROL_MAX_BYTES)
        return lvp_fail(LVP_ERR_FORMAT, "rank %d sent a control message of %d bytes", status.MPI_SOURCE, count);
    if ((size_t)count + 1 > control->capacity) {
        uint8_t *larger = realloc(control->received, (size_t)count + 1);
        if (larger == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a control message of %d bytes", count);
        control->received = larger;
        control->capacity = (size_t)count + 1;
    }
    if (MPI_Mrecv(control->received, count, MPI_BYTE, &message, MPI_STATUS_IGNORE) != MPI_SUCCESS)
        return lvp_fail(LVP_ERR_LOST, "a control message from rank %d was lost", status.MPI_SOURCE);
    *from = status.MPI_SOURCE;
    *bytes = control->received;
    *n_bytes = (size_t)count;
    return LVP_OK;
}

bool lvp_control_sending(struct lvp_control *control)
{
    collect(control);
    return control->outgoing != NULL;
}

enum lvp_status lvp_control_unpack_to_worker(const uint8_t *bytes, size_t n_bytes, Lvp__ToWorker **message)
{
    *message = n_bytes <= LVP_CONTROL_MAX_BYTES ? lvp__to_worker__unpack(NULL, n_bytes, bytes) : NULL;
    if (*message == NULL)
        return lvp_fail(LVP_ERR_FORMAT, "the coordinator sent %zu bytes that are no message", n_bytes);
    return LVP_OK;
}

enum lvp_status lvp_control_unpack_from_worker(const uint8_t *bytes, size_t n_bytes, Lvp__FromWorker **message)
{
    *message = n_bytes <= LVP_CONTROL_MAX_BYTES ? lvp__from_worker__unpack(NULL, n_bytes, bytes) : NULL;
    if (*message == NULL) return lvp_fail(LVP_ERR_FORMAT, "a worker sent %zu bytes that are no message", n_bytes);
    return LVP_OK;
}

void lvp_poll_rest(enum lvp_expectation expectation, int idle_rounds)
{
    enum { SPIN_ROUNDS = 2000, SOON_ROUNDS = 200, SHORTEST = 50000, MOVING_LONGEST = 400000, LONGEST = 2000000 };
    if (expectation == LVP_IN_TRANSFER && idle_rounds < SPIN_ROUNDS) {
        // The transfer moves while this side polls; yielding lets a computing thread on the same core go on. One that
        // has not moved for long waits for a receiver that computes, and waiting must not cost a core.
        sched_yield();
        return;
    }
    // Work that has not come for a while comes from a long step, beside which the rest is small; a payload may be
    // halfway.
    int doublings = idle_rounds / (expectation == LVP_EXPECT_NOTHING ? 16 : SOON_ROUNDS);
    long longest = expectation == LVP_IN_TRANSFER ? MOVING_LONGEST : LONGEST;
    long nanoseconds = doublings >= 6 ? longest : (long)SHORTEST << doublings;
    if (nanoseconds > longest) nanoseconds = longest;
    struct timespec rest = {0, nanoseconds};
    nanosleep(&rest, NULL);
}
