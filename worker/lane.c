#include "worker/lane.h"

#include "common/clock.h"
#include "common/tags.h"

#include <stdlib.h>
#include <string.h>

static enum lvp_status init_end(struct lvp_lane *lane, const struct lvp_lane_end *end, unsigned char **head,
                                void **body)
{
    if (end->rank < 0) return LVP_OK;
    *head = malloc(lane->head_capacity);
    if (*head == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for hop headers of %zu bytes", lane->head_capacity);
    return lane->backend->ops->payload_alloc(lane->backend, end->capacity, end->direct, body);
}

enum lvp_status lvp_lane_init(struct lvp_lane *lane, struct lvp_backend *backend, enum lvp_hop_kind kind,
                              size_t head_capacity, struct lvp_lane_end from, struct lvp_lane_end to)
{
    *lane = (struct lvp_lane){.backend = backend, .kind = kind, .from = from, .to = to, .head_capacity = head_capacity};
    for (int i = 0; i < LVP_LANE_BUFFERS; i++) {
        LVP_TRY(init_end(lane, &lane->from, &lane->in[i].head, &lane->in[i].body));
        LVP_TRY(init_end(lane, &lane->to, &lane->out[i].head, &lane->out[i].body));
    }
    return LVP_OK;
}

static void free_job(struct lvp_job *job)
{
    if (job->message != NULL) lvp__to_worker__free_unpacked(job->message, NULL);
    free(job->seqs);
    free(job->tokens);
    free(job->logprobs);
    *job = (struct lvp_job){0};
}

static struct lvp_transport *body_transport(const struct lvp_lane_end *end, struct lvp_transports transports)
{
    return end->direct ? transports.direct : transports.messages;
}

static void cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    if (transport != NULL) transport->ops->cancel(transport, transfer);
}

void lvp_lane_destroy(struct lvp_lane *lane, struct lvp_transports transports)
{
    for (int i = 0; i < LVP_LANE_BUFFERS; i++) {
        cancel(transports.messages, &lane->in[i].head_transfer);
        cancel(body_transport(&lane->from, transports), &lane->in[i].body_transfer);
        cancel(transports.messages, &lane->out[i].head_transfer);
        cancel(body_transport(&lane->to, transports), &lane->out[i].body_transfer);
        free(lane->in[i].head);
        free(lane->out[i].head);
        if (lane->backend == NULL) continue;
        lane->backend->ops->payload_free(lane->backend, lane->in[i].body);
        lane->backend->ops->payload_free(lane->backend, lane->out[i].body);
    }
    for (int j = 0; j < LVP_LANE_JOBS; j++) free_job(&lane->jobs[j]);
    *lane = (struct lvp_lane){0};
}

struct lvp_job *lvp_lane_job(struct lvp_lane *lane, uint64_t job)
{
    return &lane->jobs[job % LVP_LANE_JOBS];
}

enum lvp_status lvp_lane_announce(struct lvp_lane *lane, struct lvp_job **job)
{
    if (lane->announced - lane->sent >= LVP_LANE_JOBS)
        return lvp_fail(LVP_ERR_FORMAT, "more than %d jobs were announced at once", LVP_LANE_JOBS);
    *job = lvp_lane_job(lane, lane->announced);
    return LVP_OK;
}

bool lvp_lane_computable(const struct lvp_lane *lane)
{
    return lane->computed < lane->arrived && lane->computed < lane->sent + LVP_LANE_BUFFERS;
}

int32_t *lvp_lane_positions(unsigned char *head)
{
    return (int32_t *)(void *)(head + LVP_HOP_HEADER_BYTES);
}

static int head_tag(const struct lvp_lane *lane)
{
    return lane->kind == LVP_HOP_STEP ? LVP_TAG_STEP_HEAD : LVP_TAG_ENCODE_HEAD;
}
static int body_tag(const struct lvp_lane *lane)
{
    return lane->kind == LVP_HOP_STEP ? LVP_TAG_STEP_BODY : LVP_TAG_ENCODE_BODY;
}

static size_t head_bytes(const struct lvp_hop_header *header)
{
    return LVP_HOP_HEADER_BYTES + (header->kind == LVP_HOP_STEP ? header->n_rows * sizeof(int32_t) : 0);
}

static enum lvp_status receive_body(struct lvp_lane *lane, struct lvp_transports transports, size_t i, size_t n_bytes)
{
    struct lvp_transport *transport = body_transport(&lane->from, transports);
    return transport->ops->irecv(transport, lane->from.rank, body_tag(lane), lane->in[i].body, n_bytes,
                                 &lane->in[i].body_transfer);
}

static enum lvp_status post_receives(struct lvp_lane *lane, struct lvp_transports transports, bool *moved)
{
    struct lvp_transport *messages = transports.messages;
    while (lane->posted < lane->announced && lane->posted < lane->computed + LVP_LANE_BUFFERS) {
        const struct lvp_job *job = lvp_lane_job(lane, lane->posted);
        size_t i = lane->posted % LVP_LANE_BUFFERS;
        if (head_bytes(&job->in) > lane->head_capacity || job->in.payload_bytes > lane->from.capacity)
            return lvp_fail(LVP_ERR_FORMAT, "job %llu announces %llu bytes, the buffers hold %zu",
                            (unsigned long long)job->in.number, (unsigned long long)job->in.payload_bytes,
                            lane->from.capacity);
        // The whole buffer, not the announced size: Open MPI 4.1 writes a message over 4 KiB past the end of a smaller
        // receive. What arrived is compared with what was announced once it is here.
        LVP_TRY(messages->ops->irecv(messages, lane->from.rank, head_tag(lane), lane->in[i].head, lane->head_capacity,
                                     &lane->in[i].head_transfer));
        if (!lane->from.direct) LVP_TRY(receive_body(lane, transports, i, lane->from.capacity));
        lane->in[i].expected = false;
        lane->posted++;
        *moved = true;
    }
    return LVP_OK;
}

// Compares the head that arrived with what was announced; from now on the job's is the one that arrived. A direct body
// is asked for only then: a receive that waits for long would keep the GPU busy.
static enum lvp_status take_head(struct lvp_lane *lane, struct lvp_transports transports, size_t i, struct lvp_job *job)
{
    struct lvp_hop_header header;
    size_t arrived = lane->in[i].head_transfer.n_received;
    LVP_TRY(lvp_hop_header_unpack(lane->in[i].head, arrived, &header));
    LVP_TRY(lvp_hop_header_expect(&header, &job->in, lane->vision_rows_vary));
    job->in = header;
    if (arrived != head_bytes(&job->in))
        return lvp_fail(LVP_ERR_FORMAT, "job %llu arrived from rank %d with a head of %zu bytes, not %zu",
                        (unsigned long long)job->in.number, lane->from.rank, arrived, head_bytes(&job->in));
    lane->in[i].expected = true;
    return lane->from.direct ? receive_body(lane, transports, i, job->in.payload_bytes) : LVP_OK;
}

static enum lvp_status finish_receives(struct lvp_lane *lane, struct lvp_transports transports, bool *moved)
{
    struct lvp_transport *messages = transports.messages, *bodies = body_transport(&lane->from, transports);
    while (lane->arrived < lane->posted) {
        struct lvp_job *job = lvp_lane_job(lane, lane->arrived);
        size_t i = lane->arrived % LVP_LANE_BUFFERS;
        bool done;
        LVP_TRY(messages->ops->test(messages, &lane->in[i].head_transfer, &done));
        if (!done) return LVP_OK;
        if (!lane->in[i].expected) LVP_TRY(take_head(lane, transports, i, job));
        LVP_TRY(bodies->ops->test(bodies, &lane->in[i].body_transfer, &done));
        if (!done) return LVP_OK;
        if (lane->in[i].body_transfer.n_received != job->in.payload_bytes)
            return lvp_fail(LVP_ERR_FORMAT, "job %llu arrived from rank %d with %zu bytes, its head says %llu",
                            (unsigned long long)job->in.number, lane->from.rank, lane->in[i].body_transfer.n_received,
                            (unsigned long long)job->in.payload_bytes);
        lane->arrived++;
        *moved = true;
    }
    return LVP_OK;
}

static enum lvp_status send_results(struct lvp_lane *lane, struct lvp_transports transports, struct lvp_trace *trace,
                                    bool *moved)
{
    struct lvp_transport *messages = transports.messages, *bodies = body_transport(&lane->to, transports);
    for (; lane->sending < lane->computed; lane->sending++, *moved = true) {
        const struct lvp_job *job = lvp_lane_job(lane, lane->sending);
        size_t i = lane->sending % LVP_LANE_BUFFERS;
        lane->sending_since[i] = lvp_wall_seconds();
        lvp_hop_header_pack(&job->out, lane->out[i].head);
        LVP_TRY(messages->ops->isend(messages, lane->to.rank, head_tag(lane), lane->out[i].head, head_bytes(&job->out),
                                     &lane->out[i].head_transfer));
        LVP_TRY(bodies->ops->isend(bodies, lane->to.rank, body_tag(lane), lane->out[i].body, job->out.payload_bytes,
                                   &lane->out[i].body_transfer));
    }
    while (lane->sent < lane->sending) {
        size_t i = lane->sent % LVP_LANE_BUFFERS;
        bool head_done, body_done;
        LVP_TRY(messages->ops->test(messages, &lane->out[i].head_transfer, &head_done));
        LVP_TRY(bodies->ops->test(bodies, &lane->out[i].body_transfer, &body_done));
        if (!head_done || !body_done) return LVP_OK;
        lvp_trace_add(trace, LVP_TRACE_SEND, lvp_lane_job(lane, lane->sent)->out.number, lane->sending_since[i]);
        free_job(lvp_lane_job(lane, lane->sent));
        lane->sent++;
        *moved = true;
    }
    return LVP_OK;
}

enum lvp_status lvp_lane_transfer(struct lvp_lane *lane, struct lvp_transports transports, struct lvp_trace *trace,
                                  bool *moved)
{
    if (lane->from.rank >= 0) {
        LVP_TRY(post_receives(lane, transports, moved));
        LVP_TRY(finish_receives(lane, transports, moved));
    } else {
        lane->posted = lane->arrived = lane->announced;
    }
    return lane->to.rank >= 0 ? send_results(lane, transports, trace, moved) : LVP_OK;
}

struct lvp_job *lvp_lane_result(struct lvp_lane *lane)
{
    return lane->sent < lane->computed ? lvp_lane_job(lane, lane->sent) : NULL;
}

void lvp_lane_retire(struct lvp_lane *lane)
{
    free_job(lvp_lane_job(lane, lane->sent));
    lane->sent++;
}

enum lvp_expectation lvp_lane_expects(const struct lvp_lane *lane)
{
    if (lane->to.rank >= 0 && lane->sent < lane->sending) return LVP_IN_TRANSFER;
    if (lane->from.rank >= 0 && lane->arrived < lane->posted &&
        !lane->in[lane->arrived % LVP_LANE_BUFFERS].head_transfer.active)
        return LVP_IN_TRANSFER;
    return lane->announced > lane->sent ? LVP_EXPECT_SOON : LVP_EXPECT_NOTHING;
}
