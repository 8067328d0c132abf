#include "cli/rank.h"

#include "cli/gpu.h"
#include "cli/launch.h"
#include "cli/machine.h"
#include "cli/signals.h"
#include "common/guard.h"
#include "common/job.h"
#include "common/log.h"
#include "common/record.h"
#include "coordinator/output/writer.h"
#include "worker/device.h"
#include "worker/worker.h"

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

// Seconds that the main thread may stay away. Rank 0 touches file systems before the work begins.
enum { START_SECONDS = 120, COORDINATE_SECONDS = 300, WORK_SECONDS = 60, ABORT_SECONDS = 10 };
// At the end workers wait for rank 0, which may wait for the output's file system.
enum { END_SECONDS = LVP_WRITER_HANG_SECONDS + 60 };

// Cores of this worker: its mask's, shared with the workers of this node that have the same mask.
static int cores_of_worker(MPI_Comm world, int rank)
{
    struct {
        uint64_t host, mask;
        int32_t worker, pad;
    } mine = {0}, *all = NULL;
    char host[128];
    cpu_set_t set;
    int size = 1, sharing = 0;
    lvp_host_name(host, sizeof host);
    CPU_ZERO(&set);
    (void)sched_getaffinity(0, sizeof set, &set);
    mine.host = XXH3_64bits(host, strlen(host));
    mine.mask = XXH3_64bits(&set, sizeof set);
    mine.worker = rank > 0;
    MPI_Comm_size(world, &size);
    all = calloc((size_t)size, sizeof *all);
    int cores = lvp_available_cores();
    if (all == NULL) return cores;
    MPI_Allgather(&mine, (int)sizeof mine, MPI_BYTE, all, (int)sizeof mine, MPI_BYTE, world);
    for (int r = 0; r < size; r++)
        if (all[r].host == mine.host && all[r].mask == mine.mask && all[r].worker) sharing++;
    free(all);
    cores /= sharing > 0 ? sharing : 1;
    return cores < 1 ? 1 : cores;
}

static int status_of(enum lvp_status status)
{
    return status == LVP_STOPPED ? 128 + lvp_last_signal() : lvp_exit_status(status);
}

// Somebody does not listen any more: nothing but an abort ends the others. It says why, since nobody comes after it.
static void abort_world(enum lvp_status status)
{
    bool asked_for = status == LVP_STOPPED || status == LVP_DRAINED;
    int exit_status = status_of(status);
    if (lvp_error_text()[0] != '\0') lvp_log(asked_for ? LVP_LOG_INFO : LVP_LOG_ERROR, "%s", lvp_error_text());
    lvp_guard_end_within(ABORT_SECONDS, exit_status); // MPI itself may hang
    lvp_record_error(lvp_error_text());
    lvp_record_end(exit_status, 0);
    lvp_record_write();
    MPI_Abort(MPI_COMM_WORLD, exit_status);
}

// `last`: no round follows, in which the workers would wait for this rank.
static enum lvp_status coordinate_world(lvp_coordinate *coordinate, void *context, MPI_Comm control, int size,
                                        bool last)
{
    bool clean = false;
    lvp_guard_allow(COORDINATE_SECONDS, "coordinating");
    enum lvp_status status = size < 2
                                 ? lvp_fail(LVP_ERR_USAGE, "one rank coordinates and does not work: start at least "
                                                           "2 ranks")
                                 : coordinate(context, control, size - 1, &clean);
    if (size > 1 && (!clean || (status != LVP_OK && !last))) abort_world(status);
    return status;
}

// True where a thread of the worker was left behind.
static bool work(MPI_Comm control, MPI_Comm hops, int rank, int size, int threads, int gpu)
{
    char who[32];
    (void)snprintf(who, sizeof who, "rank %d", rank);
    lvp_log_init(LVP_LOG_WARNING, who);
    lvp_guard_allow(WORK_SECONDS, "polling MPI");
    struct lvp_worker_options worker = {.control = control,
                                        .hops = hops,
                                        .rank = rank,
                                        .n_ranks = size,
                                        .threads = threads,
                                        .gpu = gpu,
                                        .memory_bytes = lvp_available_memory()};
    bool left_behind = false;
    enum lvp_status status = lvp_worker_run(&worker, &left_behind);
    if (status == LVP_ERR_LOST) abort_world(status);
    lvp_error_clear(); // rank 0 has the text, and gives the status
    return left_behind;
}

enum lvp_status lvp_rank_run(lvp_coordinate *coordinate, void *context, int rounds, enum lvp_device_choice device,
                             int *exit_status)
{
    int provided = 0, rank = 0, size = 1, gpu = LVP_NO_GPU;
    MPI_Comm control, hops;
    enum lvp_status status = LVP_OK;
    char who[32];
    (void)snprintf(who, sizeof who, "rank %d", lvp_launched_rank());
    lvp_die_with_parent(getppid());
    LVP_TRY(lvp_guard_start(who));
    lvp_guard_allow(START_SECONDS, "starting MPI");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED)
        return lvp_fail(LVP_ERR_LOST, "MPI could not be started");
    lvp_record_start(); // once more: MPI may have taken the signals of faults
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_dup(MPI_COMM_WORLD, &control);
    MPI_Comm_dup(MPI_COMM_WORLD, &hops);
    MPI_Comm_set_errhandler(control, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(hops, MPI_ERRORS_RETURN);
    int threads = cores_of_worker(MPI_COMM_WORLD, rank);
    bool left_behind = false;
    status = lvp_choose_gpu(MPI_COMM_WORLD, rank, device, &gpu);
    for (int round = 0; round < rounds && status == LVP_OK; round++) {
        if (rank == 0)
            status = coordinate_world(coordinate, context, control, size, round + 1 == rounds);
        else
            left_behind = work(control, hops, rank, size, threads, gpu) || left_behind;
        // A worker's Hello must not meet the end of the round before.
        lvp_guard_allow(END_SECONDS, "waiting for the next round");
        if (round + 1 < rounds) MPI_Barrier(control);
    }
    if (rank > 0 && status != LVP_OK) { // no GPU to choose: rank 0 says it
        lvp_error_clear();
        status = LVP_OK;
    }
    if (status == LVP_STOPPED) *exit_status = status_of(status);
    lvp_guard_allow(END_SECONDS, "ending MPI");
    lvp_record_end(status_of(status), 0);
    MPI_Comm_free(&control);
    MPI_Comm_free(&hops);
    MPI_Finalize();
    lvp_guard_stop();
    if (left_behind) _exit(0); // a thread of this rank does not end in time, and nobody needs it to
    return status;
}
