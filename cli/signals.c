#include "cli/signals.h"

#include "common/record.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_AND_STOP = 2 };

static atomic_int requests;
static atomic_int last_signal;
static _Atomic long long last_time_ms;

enum lvp_launcher lvp_launcher(void)
{
    if (getenv("OMPI_COMM_WORLD_SIZE") != NULL)
        return getenv("LVPIPE_LAUNCH") != NULL ? LVP_LAUNCHER_OWN : LVP_LAUNCHER_MPIRUN;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS"); // a batch script itself has PMIX variables of one task
    bool several = tasks != NULL && atoi(tasks) > 1;
    return getenv("PMIX_RANK") != NULL && several ? LVP_LAUNCHER_SRUN : LVP_LAUNCHER_NONE;
}

int lvp_launched_rank(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank == NULL) rank = getenv("PMIX_RANK");
    return rank != NULL ? atoi(rank) : -1;
}

static void drain_once(int signal)
{
    atomic_store(&last_signal, signal);
    int none = 0;
    (void)atomic_compare_exchange_strong(&requests, &none, 1);
}

static void stop_now(int signal)
{
    atomic_store(&last_signal, signal);
    atomic_store(&requests, DRAIN_AND_STOP);
}

// A launcher and a batch system may both pass one signal on: two within a moment are one.
static void drain_then_stop(int signal)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    long long ms = (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000, before = atomic_exchange(&last_time_ms, ms);
    atomic_store(&last_signal, signal);
    if (atomic_load(&requests) == 0)
        atomic_store(&requests, 1);
    else if (ms - before > 300)
        atomic_store(&requests, DRAIN_AND_STOP);
}

static void end_at_once(int signal)
{
    lvp_record_end(128 + signal, signal);
    lvp_record_write();
    _exit(128 + signal);
}

static void set_handler(int signal, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    (void)sigaction(signal, &action, NULL);
}

void lvp_signals_install(void)
{
    enum lvp_launcher launcher = lvp_launcher();
    bool first = lvp_launched_rank() == 0, srun = launcher == LVP_LAUNCHER_SRUN;
    void (*drain)(int) = launcher == LVP_LAUNCHER_OWN ? drain_once : drain_then_stop;
    set_handler(SIGUSR1, first ? drain : SIG_IGN);
    set_handler(SIGUSR2, first && launcher == LVP_LAUNCHER_OWN ? stop_now : SIG_IGN);
    set_handler(SIGTERM, !srun ? end_at_once : first ? drain : SIG_IGN);
    set_handler(SIGINT, !srun ? end_at_once : first ? drain : SIG_IGN);
}

const atomic_int *lvp_drain_requests(void)
{
    return &requests;
}

int lvp_last_signal(void)
{
    return atomic_load(&last_signal);
}
