// The compute thread of a worker: loads the stage, then runs the jobs of both lanes, steps before encode jobs, so that
// decoding never waits behind a ViT.
#ifndef LVP_WORKER_COMPUTE_H
#define LVP_WORKER_COMPUTE_H

#include "worker/lane.h"
#include "worker/prepare.h"
#include "worker/stage.h"
#include "worker/trace.h"

#include <pthread.h>

// What a worker is told at start, checked and in our own types.
struct lvp_worker_setup {
    char *model, *pruner_weights, *kernel_set, *model_hash, *pruner_hash; // owned
    char *output, *coordinator;                                           // owned; folder of the run, host of rank 0
    enum lvp_dtype dtype, weights;                                        // of residual stream and KV; of linear layers
    int threads;
    enum lvp_pruner_kind pruner;
    struct lvp_prune_counts prune;
    struct lvp_partition partition;
    int replica, stage;
    int ranks[LVP_MAX_STAGES];
    struct lvp_stage_limits limits;
    int64_t max_pixels;
    int gpu;          // of this worker; LVP_NO_GPU: the CPU
    bool direct_from; // NCCL brings the previous stage's rows
    bool direct_to;   // and takes this one's to the next
    bool synthetic;   // `model` is a shape
    bool trace;       // keep spans
    bool narrow;      // and its narrow stand-in is meant
    int pruner_width; // of synthetic modules; 0: none
};

// LVP_ERR_FORMAT naming the field that cannot be.
enum lvp_status lvp_worker_setup_read(const Lvp__Setup *message, struct lvp_worker_setup *setup) LVP_MUST_CHECK;
void lvp_worker_setup_free(struct lvp_worker_setup *setup);

struct lvp_compute {
    struct lvp_worker_setup setup;
    pthread_t thread;
    bool running;         // the thread was started
    pthread_mutex_t lock; // guards everything below
    pthread_cond_t wake;  // for the compute thread
    bool loaded, stop;
    enum lvp_status status; // first failure of the compute thread, with its text
    char error[1024];
    struct lvp_lane steps, encodes;
    int32_t *releases; // sequence slots to free before the next step
    int n_releases;
    double load_seconds;
    uint64_t last_announced, last_step, last_encode; // numbers: of steps told, of jobs computed
    Lvp__Statistics statistics;
    struct lvp_trace trace;
    double select_seconds; // of the stage, counted so far
    // owned by the compute thread after the start
    struct lvp_model_config config;
    struct lvp_backend *backend;
    struct lvp_stage *stage;
    struct lvp_prepare *prepare; // first vision stage only
};

void lvp_compute_init(struct lvp_compute *compute);
enum lvp_status lvp_compute_start(struct lvp_compute *compute, const Lvp__Setup *setup, int gpu) LVP_MUST_CHECK;
// Ends the threads and frees all; safe before the start. False when one is still busy after some seconds: everything is
// left as it is, and the process should end without waiting for it.
bool lvp_compute_stop(struct lvp_compute *compute, struct lvp_transports transports);

// Statistics since the last call, with spans that are valid until something else is done. With the lock held.
Lvp__Statistics lvp_compute_measure(struct lvp_compute *compute);

// What goes in front of a step's rows.
struct lvp_hop_header lvp_compute_step_header(const struct lvp_compute *compute, const struct lvp_step *step,
                                              int n_rows, int n_vision_rows);

// Announce work; the message becomes the lane's. Called with the lock held.
enum lvp_status lvp_compute_step(struct lvp_compute *compute, Lvp__ToWorker *message) LVP_MUST_CHECK;
enum lvp_status lvp_compute_encode(struct lvp_compute *compute, Lvp__ToWorker *message) LVP_MUST_CHECK;
enum lvp_status lvp_compute_release(struct lvp_compute *compute, const Lvp__Release *message) LVP_MUST_CHECK;

#endif
