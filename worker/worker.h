// A worker rank: says hello, builds the stage it is told to, and runs what the coordinator announces until it says
// finish. Two threads matter: the communication thread (the caller; owns MPI, receives commands and activations, sends)
// and the compute thread (owns the backend and the stage). They meet in the lanes (worker/lane.h). Images are decoded
// in a pool.
#ifndef LVP_WORKER_WORKER_H
#define LVP_WORKER_WORKER_H

#include "common/status.h"

#include <mpi.h>
#include <stdbool.h>

struct lvp_worker_options {
    MPI_Comm control, hops; // duplicates of the world: commands, activations
    int rank, n_ranks;
    int threads; // cores this worker may use
    int gpu;     // LVP_NO_GPU: the CPU (worker/device.h)
    long long memory_bytes;
};

// Returns when the coordinator says finish. An error has been reported to the coordinator before it is returned;
// LVP_ERR_LOST when there is no coordinator any more, or none that listens. *left_behind: a thread is still in a long
// step or a slow file system, or a GPU in a transfer that may not end; after MPI_Finalize the process must end by
// _exit.
enum lvp_status lvp_worker_run(const struct lvp_worker_options *options, bool *left_behind) LVP_MUST_CHECK;

#endif
