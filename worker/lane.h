// A lane carries one kind of job (steps, or encode jobs) through a worker in order: announced by the coordinator, input
// received, computed, output sent. The communication thread and the compute thread meet here and nowhere else.
//
// The life of job j is counted, not stored: `announced`, `posted`, `arrived`, `computed`, `sending`, `sent` say how
// many jobs have passed each point, and they only grow. Two input and two output buffers alternate, so that one job can
// travel while the next computes:
//     receive j is posted when     j < announced  and  j < computed + 2
//     j is computed when           j < arrived    and  j < sent + 2
//     j is sent when               j < computed
#ifndef LVP_WORKER_LANE_H
#define LVP_WORKER_LANE_H

#include "common/control.h"
#include "common/step.h"
#include "common/transport.h"
#include "common/wire.h"
#include "worker/backend.h"
#include "worker/trace.h"

enum { LVP_LANE_JOBS = 256, LVP_LANE_BUFFERS = 2 };

// How bytes travel: heads by messages, bodies too, or directly between GPUs. Borrowed; NULL where there is none.
struct lvp_transports {
    struct lvp_transport *messages, *direct;
};

// One end of a lane in this worker.
struct lvp_lane_end {
    int rank;        // the neighbour's; -1 at the end of the chain, and nothing is kept for it
    bool direct;     // bodies are the device's memory and travel between GPUs
    size_t capacity; // bytes of a body
};

struct lvp_job {
    Lvp__ToWorker *message; // owns what the rest points to
    struct lvp_step step;   // step lane
    struct lvp_step_seq *seqs;
    struct lvp_hop_header in, out; // what is expected, then what arrived; what will be sent. Unused at the chain's ends
    int32_t *tokens;               // step lane with `head`: [n_seqs]
    float *logprobs;
};

struct lvp_lane {
    struct lvp_backend *backend; // whose memory the bodies are; borrowed
    enum lvp_hop_kind kind;
    struct lvp_lane_end from, to;
    bool vision_rows_vary; // what is announced is the most that may arrive
    uint64_t announced, posted, arrived, computed, sending, sent;
    struct lvp_job jobs[LVP_LANE_JOBS]; // job j at j % LVP_LANE_JOBS
    struct {
        unsigned char *head; // header, then positions of a step
        void *body;          // the backend's payload memory
        struct lvp_transfer head_transfer, body_transfer;
        bool expected; // in: the head is here and says what was announced, or less where that may be
    } in[LVP_LANE_BUFFERS], out[LVP_LANE_BUFFERS];
    double sending_since[LVP_LANE_BUFFERS]; // lvp_wall_seconds()
    size_t head_capacity;                   // bytes
};

enum lvp_status lvp_lane_init(struct lvp_lane *lane, struct lvp_backend *backend, enum lvp_hop_kind kind,
                              size_t head_capacity, struct lvp_lane_end from, struct lvp_lane_end to) LVP_MUST_CHECK;
void lvp_lane_destroy(struct lvp_lane *lane, struct lvp_transports transports);

struct lvp_job *lvp_lane_job(struct lvp_lane *lane, uint64_t job);
// Room for one more job; LVP_ERR_FORMAT when the coordinator announces more than fit.
enum lvp_status lvp_lane_announce(struct lvp_lane *lane, struct lvp_job **job) LVP_MUST_CHECK;
bool lvp_lane_computable(const struct lvp_lane *lane); // job `computed` can run
int32_t *lvp_lane_positions(unsigned char *head);

// One round of transfers, whose sends go to `trace`; *moved is set when something happened. The counters that the
// compute thread reads change under `lock` of the caller: call with it held.
enum lvp_status lvp_lane_transfer(struct lvp_lane *lane, struct lvp_transports transports, struct lvp_trace *trace,
                                  bool *moved) LVP_MUST_CHECK;
// For a lane that ends here: the oldest job that was computed and not yet reported (NULL when there is none), and its
// end.
struct lvp_job *lvp_lane_result(struct lvp_lane *lane);
void lvp_lane_retire(struct lvp_lane *lane);
enum lvp_expectation lvp_lane_expects(const struct lvp_lane *lane);

#endif
