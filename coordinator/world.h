// The workers as the coordinator knows them: who they are, which stage each one holds, and messages to them.
// Ranks 1..W; replica r holds ranks 1 + r * stages .. (r + 1) * stages, stage by stage.
// Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_WORLD_H
#define LVP_COORDINATOR_WORLD_H

#include "common/control.h"
#include "common/patience.h"
#include "common/plan.h"
#include "common/step.h"

#include <stdatomic.h>

struct lvp_worker_info {
    char host[128];
    char kernel_set[16];
    int threads;
    int64_t memory_bytes;
    bool gpu; // it computes on a GPU of its own
    int64_t gpu_memory;
    char gpu_name[32]; // as its host calls it
    int nccl;          // version; 0: none
    char no_nccl[160]; // then: why
    int replica, stage;
    struct lvp_patience silent;     // since its last message
    uint64_t ticks, steps, encodes; // of its last pulse: how far it is
    struct lvp_patience stuck;      // while it is waited for: since its ticks moved
    uint64_t seen_ticks;
    double load_seconds;
    bool finished;              // its statistics have come
    bool answered;              // the question that lvp_world_collect waits for
    Lvp__Statistics statistics; // plain fields only
    Lvp__FromWorker *farewell;  // the message they came in, with its spans; NULL: it has none
};

struct lvp_world {
    struct lvp_control *control;
    int n_workers, n_stages, n_replicas;
    int merge_stage;                 // the stage that holds `merge`
    const char *kernel_set;          // the lowest of the workers without a GPU; "cuda": all have one
    char numeric_path[32];           // what decides about bits besides the types: "cpu/avx2", "cuda", "cpu/avx2+cuda"
    struct lvp_worker_info *workers; // [n_workers]; rank r is workers[r - 1]
    struct lvp_partition partition;
    int n_direct; // cuts, of all replicas, that rows cross from GPU to GPU
    double last_pulse;
};

// Collects every worker's Hello. LVP_ERR_LOST naming a rank that does not speak within the deadline; LVP_ERR_USAGE for
// another version of the program.
enum lvp_status lvp_world_open(MPI_Comm control, int n_workers, struct lvp_world *world) LVP_MUST_CHECK;
// Sets numeric_path for a run whose CPU workers use these kernels.
void lvp_world_use_kernels(struct lvp_world *world, const char *kernel_set);
// Whether every worker without a GPU has these kernels.
bool lvp_world_can_run(const struct lvp_world *world, const char *kernel_set);
// The least that a GPU has for the stage in any replica; workers on one GPU have equal parts of it. 0: no GPU there.
int64_t lvp_world_gpu_memory(const struct lvp_world *world, int n_stages, int stage);
void lvp_world_close(struct lvp_world *world);

// Lays stages and replicas over the workers. `template` is the Setup of everybody; replica, stage, ranks, threads and
// kernel set are filled in for each. Waits until all are ready, or
// *interrupt is no longer 0 (LVP_DRAINED); NULL: nothing interrupts.
enum lvp_status lvp_world_setup(struct lvp_world *world, const struct lvp_partition *partition, int n_replicas,
                                int merge_stage, const char *kernel_set, int threads, const atomic_int *interrupt,
                                Lvp__Setup *template) LVP_MUST_CHECK;

// How rows cross the cuts: "mpi", "nccl" or "mpi+nccl". After lvp_world_setup.
const char *lvp_world_transport(const struct lvp_world *world);

static inline int lvp_world_rank(const struct lvp_world *world, int replica, int stage)
{
    return 1 + replica * world->n_stages + stage;
}

// To one worker; to every stage first..end of a replica.
enum lvp_status lvp_world_send(struct lvp_world *world, int rank, Lvp__ToWorker *message) LVP_MUST_CHECK;
enum lvp_status lvp_world_send_stages(struct lvp_world *world, int replica, int first, int end,
                                      Lvp__ToWorker *message) LVP_MUST_CHECK;

// The next message; NULL when none has come. A Failure is turned into the error it carries, with the rank's name (a
// worker that ran out of memory is a lost one); a Pulse is noted. Free with lvp__from_worker__free_unpacked.
enum lvp_status lvp_world_poll(struct lvp_world *world, int *rank, Lvp__FromWorker **message) LVP_MUST_CHECK;

// To be called at least once a second: tells the workers that rank 0 lives, and LVP_ERR_LOST naming one that has been
// silent for lvp_silence_seconds().
enum lvp_status lvp_world_keep_up(struct lvp_world *world) LVP_MUST_CHECK;

// The same while no message is expected but signs of life: for rank 0's own long work.
enum lvp_status lvp_world_idle(struct lvp_world *world) LVP_MUST_CHECK;

// A copy without what belongs to the message.
Lvp__Statistics lvp_plain_statistics(const Lvp__Statistics *statistics);

// Takes an answer of one kind from each of n ranks; LVP_ERR_FORMAT for another. While they measure their limits (Roof),
// they may be silent for minutes.
enum lvp_status lvp_world_collect(struct lvp_world *world, int n, Lvp__FromWorker__BodyCase kind,
                                  void (*take)(void *context, int rank, const Lvp__FromWorker *answer),
                                  void *context) LVP_MUST_CHECK;

// "rank 2 (n1, stage 1 of 4)" or "... stage 1 of replica 3)".
const char *lvp_world_name(const struct lvp_world *world, int rank, char *text, size_t size);

// Tells everybody to finish and collects statistics until the deadline. False when someone did not answer.
bool lvp_world_finish(struct lvp_world *world, double deadline_seconds);
// LVP_ERR_LOST naming the first that did not.
enum lvp_status lvp_world_unfinished(const struct lvp_world *world, double seconds) LVP_MUST_CHECK;

#endif
