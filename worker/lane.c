#include "worker/lane.h"

#include "common/clock.h"
#include "common/tags.h"

#include <stdlib.h>
#include <string.h>

enum lvp_status lvp_lane_init(struct lvp_lane *lane, struct lvp_backend *backend, enum lvp_hop_kind kind, int from,
                              int to, size_t head_capacity, size_t in_capacity, size_t out_capacity)
{
    *lane = (struct lvp_lane){.backend = backend,
                              .kind = kind,
                              .from = from,
                              .to = to,
                              .head_capacity = head_capacity,
                              .in_capacity = in_capacity,
                              .out_capacity = out_capacity};
    for (int i = 0; i < LVP_LANE_BUFFERS; i++) {
        if (from >= 0) {
            lane->in[i].head = malloc(head_capacity);
            LVP_TRY(backend->ops->payload_alloc(backend, in_capacity, &lane->in[i].body));
        }
        if (to >= 0) {
            lane->out[i].head = malloc(head_capacity);
            LVP_TRY(backend->ops->payload_alloc(backend, out_capacity, &lane->out[i].body));
        }
        if ((from >= 0 && lane->in[i].head == NULL) || (to >= 0 && lane->out[i].head == NULL))
            return lvp_fail(LVP_ERR_MEMORY, "out of memory for hop headers of %zu bytes", head_capacity);
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

void lvp_lane_destroy(struct lvp_lane *lane, struct lvp_transport *transport)
{
    for (int i = 0; i < LVP_LANE_BUFFERS; i++) {
        struct lvp_transfer *transfers[] = {&lane->in[i].head_transfer, &lane->in[i].body_transfer,
                                            &lane->out[i].head_transfer, &lane->out[i].body_transfer};
        for (int t = 0; t < 4 && transport != NULL; t++) transport->ops->cancel(transport, transfers[t]);
        free(lane->in[i].head);
        if (lane->backend != NULL) lane->backend->ops->payload_free(lane->backend, lane->in[i].body);
        free(lane->out[i].head);
        if (lane->backend != NULL) lane->backend->ops->payload_free(lane->backend, lane->out[i].body);
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

static enum lvp_status post_receives(struct lvp_lane *lane, struct lvp_transport *transport, bool *moved)
{
    while (lane->posted < lane->announced && lane->posted < lane->computed + LVP_LANE_BUFFERS) {
        const struct lvp_job *job = lvp_lane_job(lane, lane->posted);
        size_t i = lane->posted % LVP_LANE_BUFFERS;
        if (head_bytes(&job->in) > lane->head_capacity || job->in.payload_bytes > lane->in_capacity)
            return lvp_fail(LVP_ERR_FORMAT, "job %llu announces %llu bytes, the buffers hold %zu",
                            (unsigned long long)job->in.number, (unsigned long long)job->in.payload_bytes,
                            lane->in_capacity);
        // The whole buffer, not the announced size: Open MPI 4.1 writes a message over 4 KiB past the end of a smaller
        // receive. What arrived is compared with what was announced once it is here.
        LVP_TRY(transport->ops->irecv(transport, lane->from, head_tag(lane), lane->in[i].head, lane->head_capacity,
                                      &lane->in[i].head_transfer));
        LVP_TRY(transport->ops->irecv(transport, lane->from, body_tag(lane), lane->in[i].body, lane->in_capacity,
                                      &lane->in[i].body_transfer));
        lane->posted++;
        *moved = true;
    }
    return LVP_OK;
}

static enum lvp_status finish_receives(struct lvp_lane *lane, struct lvp_transport *transport, bool *moved)
{
    while (lane->arrived < lane->posted) {
        const struct lvp_job *job = lvp_lane_job(lane, lane->arrived);
        size_t i = lane->arrived % LVP_LANE_BUFFERS;
        struct lvp_hop_header header;
        bool head_done, body_done;
        LVP_TRY(transport->ops->test(transport, &lane->in[i].head_transfer, &head_done));
        LVP_TRY(transport->ops->test(transport, &lane->in[i].body_transfer, &body_done));
        if (!head_done || !body_done) return LVP_OK;
        LVP_TRY(lvp_hop_header_unpack(lane->in[i].head, lane->in[i].head_transfer.n_received, &header));
        LVP_TRY(lvp_hop_header_expect(&header, &job->in));
        if (lane->in[i].head_transfer.n_received != head_bytes(&job->in) ||
            lane->in[i].body_transfer.n_received != job->in.payload_bytes)
            return lvp_fail(LVP_ERR_FORMAT, "job %llu arrived with %zu + %zu bytes, %zu + %llu were announced",
                            (unsigned long long)job->in.number, lane->in[i].head_transfer.n_received,
                            lane->in[i].body_transfer.n_received, head_bytes(&job->in),
                            (unsigned long long)job->in.payload_bytes);
        lane->arrived++;
        *moved = true;
    }
    return LVP_OK;
}

static enum lvp_status send_results(struct lvp_lane *lane, struct lvp_transport *transport, struct lvp_trace *trace,
                                    bool *moved)
{
    for (; lane->sending < lane->computed; lane->sending++, *moved = true) {
        const struct lvp_job *job = lvp_lane_job(lane, lane->sending);
        size_t i = lane->sending % LVP_LANE_BUFFERS;
        lane->sending_since[i] = lvp_wall_seconds();
        lvp_hop_header_pack(&job->out, lane->out[i].head);
        LVP_TRY(transport->ops->isend(transport, lane->to, head_tag(lane), lane->out[i].head, head_bytes(&job->out),
                                      &lane->out[i].head_transfer));
        LVP_TRY(transport->ops->isend(transport, lane->to, body_tag(lane), lane->out[i].body, job->out.payload_bytes,
                                      &lane->out[i].body_transfer));
    }
    while (lane->sent < lane->sending) {
        size_t i = lane->sent % LVP_LANE_BUFFERS;
        bool head_done, body_done;
        LVP_TRY(transport->ops->test(transport, &lane->out[i].head_transfer, &head_done));
        LVP_TRY(transport->ops->test(transport, &lane->out[i].body_transfer, &body_done));
        if (!head_done || !body_done) return LVP_OK;
        lvp_trace_add(trace, LVP_TRACE_SEND, lvp_lane_job(lane, lane->sent)->out.number, lane->sending_since[i]);
        free_job(lvp_lane_job(lane, lane->sent));
        lane->sent++;
        *moved = true;
    }
    return LVP_OK;
}

enum lvp_status lvp_lane_transfer(struct lvp_lane *lane, struct lvp_transport *transport, struct lvp_trace *trace,
                                  bool *moved)
{
    if (lane->from >= 0) {
        LVP_TRY(post_receives(lane, transport, moved));
        LVP_TRY(finish_receives(lane, transport, moved));
    } else {
        lane->posted = lane->arrived = lane->announced;
    }
    return lane->to >= 0 ? send_results(lane, transport, trace, moved) : LVP_OK;
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
    if (lane->to >= 0 && lane->sent < lane->sending) return LVP_IN_TRANSFER;
    if (lane->from >= 0 && lane->arrived < lane->posted &&
        !lane->in[lane->arrived % LVP_LANE_BUFFERS].head_transfer.active)
        return LVP_IN_TRANSFER;
    return lane->announced > lane->sent ? LVP_EXPECT_SOON : LVP_EXPECT_NOTHING;
}
