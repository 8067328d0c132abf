#include "cli/launch.h"

#include "cli/children.h"
#include "common/clock.h"
#include "common/job.h"
#include "common/log.h"
#include "common/patience.h"
#include "common/pulse.h"
#include "common/record.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    NO_PROGRAM = 127,         // as a shell says it
    MAX_BLAMED = 20,          // lives in a row, without a caption, that samples are to blame for
    DRAIN_GRACE_SECONDS = 30, // beyond the drain, for writing and ending
    STOP_GRACE_SECONDS = 10,  // from asking to stop to killing
    START_SECONDS = 120       // until all ranks have begun
};

extern char **environ;

void lvp_die_with_parent(int parent)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1); // it was gone before the kernel knew our wish
}

// A launcher around us (a batch step, an mpirun that started a shell) must not leak into the one we start.
static bool belongs_to_a_launcher(const char *variable)
{
    static const char *const prefixes[] = {"OMPI_", "PMIX_", "PRTE_", "PMI_", "SLURM_", "OPAL_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0)
            return strncmp(variable, "OMPI_MCA_", 9) != 0 && strncmp(variable, "OMPI_ALLOW_", 11) != 0;
    return false;
}

static void scrub_environment(void)
{
    for (size_t i = 0; environ[i] != NULL;) {
        if (!belongs_to_a_launcher(environ[i])) {
            i++;
            continue;
        }
        char name[256];
        size_t length = strcspn(environ[i], "=");
        if (length >= sizeof name) {
            i++;
            continue;
        }
        memcpy(name, environ[i], length);
        name[length] = '\0';
        unsetenv(name); // moves the following entries down
    }
}

void lvp_launch_id(int argc, char *const *argv, char *id, size_t size)
{
    const char *given = getenv("LVPIPE_LAUNCH"), *job = getenv("SLURM_JOB_ID");
    id[0] = '\0';
    if (given != NULL) {
        (void)snprintf(id, size, "%s", given);
    } else if (job != NULL) { // a requeued job gives the same command again
        uint64_t hash = 0;
        for (int i = 0; i < argc; i++) hash = XXH3_64bits_withSeed(argv[i], strlen(argv[i]) + 1, hash);
        (void)snprintf(id, size, "slurm-%.40s-%016llx", job, (unsigned long long)hash);
    }
}

// What the ranks and mpirun are to know. Called in the child.
static void set_environment(const char *id, int restart)
{
    char job[96], number[16];
    lvp_job_name(job, sizeof job);
    (void)snprintf(number, sizeof number, "%d", restart);
    scrub_environment();
    setenv("LVPIPE_LAUNCH", id, 1);
    setenv("LVPIPE_JOB", job, 1);
    setenv("LVPIPE_RESTARTS", number, 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1); // containers; mpirun would refuse
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_btl_base_warn_component_unused", "0", 0);
    // hwloc's gl plugin looks for an X server, asking the name server for "localhost" where /etc/hosts does not have
    // it.
    setenv("HWLOC_COMPONENTS", "-gl", 0);
    setenv("OMPI_MCA_orte_execute_quiet", "1", 0); // as mpirun -q, an option that Open MPI 5 does not have
    // All ranks are on this machine. Open MPI 5 prints a warning per pair of ranks when it looks at other interfaces.
    if (getenv("OMPI_MCA_btl_tcp_if_exclude") == NULL) setenv("OMPI_MCA_btl_tcp_if_include", "lo", 0);
    if (isatty(STDERR_FILENO)) setenv("LVPIPE_TERMINAL", "1", 1); // ranks write through a pipe and cannot see it
}

static void exec_mpirun(const struct lvp_launch_options *options, const char *id, int restart)
{
    char count[16], self[4096], host[32];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) _exit(NO_PROGRAM);
    self[length] = '\0';
    (void)snprintf(count, sizeof count, "%d", options->n_ranks);
    (void)snprintf(host, sizeof host, "localhost:%d", options->n_ranks);
    const char *const head[] = {"mpirun", "--oversubscribe", "--bind-to", "none", "--host", host, "-n", count, self};
    size_t n_head = sizeof head / sizeof *head;
    char **arguments = calloc(n_head + (size_t)options->argc + 1, sizeof *arguments);
    if (arguments == NULL) _exit(NO_PROGRAM);
    for (size_t i = 0; i < n_head; i++) arguments[i] = (char *)(size_t)head[i];
    for (int i = 0; i < options->argc; i++) arguments[n_head + (size_t)i] = options->argv[i];
    set_environment(id, restart);
    // Ranks read nothing; the shell loop that started us may want its input back.
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing >= 0) (void)dup2(nothing, STDIN_FILENO);
    execvp("mpirun", arguments);
    _exit(NO_PROGRAM);
}

// --- Supervision ---------------------------------------------------------------------------------------------------

// The launch over all its lives.
struct launch {
    const struct lvp_launch_options *options;
    char id[128];
    sigset_t waited;      // signals that are waited for, and blocked
    int restarts, blamed; // lives that lost a rank; those in a row, without a caption, that a sample is to blame for
    off_t captions_bytes; // of the output so far
};

// One life of the world.
struct world {
    pid_t mpirun;
    int drains; // signals that asked us to end: 1 drains, 2 stops
    int last_signal;
    int64_t began_ms;           // since 1970
    double asked, stopped;      // when
    bool whole;                 // all ranks have been seen
    struct lvp_patience ending; // since some ranks live and others do not
    double left;                // when one of them was found to hang
};

// HUP counts unless it is ignored, as nohup does.
static void fill_waited_signals(sigset_t *set)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGUSR1, SIGCHLD};
    struct sigaction hup = {0};
    sigemptyset(set);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaddset(set, signals[i]);
    if (sigaction(SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN) sigaddset(set, SIGHUP);
}

static void name_launch(struct launch *launch)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    lvp_launch_id(launch->options->argc, launch->options->argv, launch->id, sizeof launch->id);
    if (launch->id[0] != '\0') return;
    (void)snprintf(launch->id, sizeof launch->id, "%ld-%lld", (long)getpid(), (long long)now.tv_sec);
}

static bool has_mpirun(void)
{
    const char *path = getenv("PATH");
    char program[4096];
    while (path != NULL && *path != '\0') {
        int length = (int)strcspn(path, ":");
        int n = snprintf(program, sizeof program, "%.*s/mpirun", length, path);
        if (n > 0 && (size_t)n < sizeof program && access(program, X_OK) == 0) return true;
        path += length + (path[length] == ':');
    }
    return false;
}

static enum lvp_status start(const struct launch *launch, int life, struct world *world)
{
    struct timespec now;
    pid_t supervisor = getpid();
    (void)clock_gettime(CLOCK_REALTIME, &now);
    world->began_ms = (int64_t)now.tv_sec * 1000;
    fflush(NULL);
    world->mpirun = fork();
    if (world->mpirun < 0) return lvp_fail(LVP_ERR_IO, "mpirun could not be started: %s", strerror(errno));
    if (world->mpirun > 0) {
        (void)setpgid(world->mpirun, world->mpirun); // in both, whoever comes first
        return LVP_OK;
    }
    (void)setpgid(0, 0); // a Ctrl-C in the terminal is for the supervisor alone
    lvp_die_with_parent(supervisor);
    (void)signal(SIGUSR1, SIG_IGN); // until the ranks have handlers of their own: a drain must not kill them
    (void)signal(SIGUSR2, SIG_IGN);
    (void)sigprocmask(SIG_UNBLOCK, &launch->waited, NULL);
    exec_mpirun(launch->options, launch->id, life);
    return LVP_OK; // never
}

static void take_signal(const struct launch *launch, struct world *world, int signal)
{
    double now = lvp_now();
    world->last_signal = signal;
    if (world->drains == 0) {
        world->asked = now;
        lvp_info("%s: finishing what is under way (up to %.0f s); once more stops at once", strsignal(signal),
                 launch->options->drain_seconds);
    } else if (world->drains == 1) {
        world->stopped = now;
        lvp_info("%s: stopping", strsignal(signal));
    }
    world->drains++;
}

// Signals are given again and again, since a rank that has just begun does not hear them.
static void remind(const struct launch *launch, struct world *world)
{
    double now = lvp_now(), patience = launch->options->drain_seconds + DRAIN_GRACE_SECONDS;
    if (world->drains == 0) return;
    if (world->stopped == 0 && now - world->asked > patience) world->stopped = now;
    if (world->stopped > 0 && now - world->stopped > STOP_GRACE_SECONDS)
        (void)kill(-world->mpirun, SIGKILL);
    else
        (void)kill(world->mpirun, world->stopped > 0 ? SIGUSR2 : SIGUSR1); // which mpirun passes on
}

struct sought {
    pid_t pid;
    int64_t since_ms;
    char name[160];
};

static void match_pid(void *context, const struct lvp_record_view *view)
{
    struct sought *sought = context;
    if (view->pid == sought->pid && view->started_ms >= sought->since_ms)
        (void)snprintf(sought->name, sizeof sought->name, "rank %d (%s)", view->place.rank, view->host);
}

// mpirun waits for ever for a rank that hangs when the others have ended, and nobody inside is left to see it. At first
// not all have begun.
static void watch_ending(const struct launch *launch, struct world *world)
{
    pid_t one;
    double now = lvp_now(), limit = lvp_silence_seconds();
    if (world->left > 0) { // mpirun ends its ranks and cleans up; if it cannot, they die with it
        if (now - world->left > STOP_GRACE_SECONDS) (void)kill(-world->mpirun, SIGKILL);
        return;
    }
    int living = lvp_living_children(world->mpirun, &one);
    world->whole = world->whole || living >= launch->options->n_ranks;
    if (!world->whole) limit += START_SECONDS;
    if (living == 0 || living >= launch->options->n_ranks) lvp_patience_reset(&world->ending);
    if (lvp_patience_ask(&world->ending) <= limit) return;
    struct sought sought = {.pid = one, .since_ms = world->began_ms};
    (void)snprintf(sought.name, sizeof sought.name, "a rank (process %ld)", (long)one);
    if (launch->options->output != NULL) lvp_record_each(launch->options->output, match_pid, &sought);
    lvp_log(LVP_LOG_ERROR, "%s hangs at its end: others ended %.0f s ago", sought.name, lvp_silence_seconds());
    world->left = now;
    (void)kill(world->mpirun, SIGTERM);
}

// Waits until mpirun has ended; its status as a shell would give it.
static int wait_for_end(const struct launch *launch, struct world *world)
{
    for (;;) {
        int status = 0;
        pid_t ended = waitpid(world->mpirun, &status, WNOHANG);
        if (ended == world->mpirun) return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        if (ended < 0 && errno != EINTR) return lvp_exit_status(LVP_ERR_LOST);
        const struct timespec second = {1, 0};
        int signal = sigtimedwait(&launch->waited, NULL, &second);
        if (signal > 0 && signal != SIGCHLD) take_signal(launch, world, signal);
        remind(launch, world);
        watch_ending(launch, world);
    }
}

struct speech {
    int64_t since_ms;
    bool heard;
};

// A rank that ended by itself has said why.
static void listen(void *context, const struct lvp_record_view *view)
{
    struct speech *speech = context;
    bool said = view->phase == LVP_PHASE_ENDED && view->error[0] != '\0';
    speech->heard = speech->heard || (said && view->started_ms >= speech->since_ms);
}

// Which rank it was, in one line, unless one of them has said so. True where a sample is to blame.
static bool tell_lost(const struct launch *launch, const struct world *world, int code)
{
    struct lvp_record_view lost;
    struct speech speech = {.since_ms = world->began_ms, .heard = world->left > 0};
    char text[400];
    const char *output = launch->options->output;
    int rank = output != NULL ? lvp_record_find_lost(output, world->began_ms, &lost) : -1;
    bool fault = rank >= 0 && lost.fault != 0; // the others know no more than that it is gone
    if (output != NULL) lvp_record_each(output, listen, &speech);
    if (rank >= 0)
        lvp_record_describe(&lost, text, sizeof text);
    else
        (void)snprintf(text, sizeof text, "a rank was lost (%s)", code > 128 ? strsignal(code - 128) : "no signal");
    if (!speech.heard || fault) lvp_log(LVP_LOG_ERROR, "%s", text);
    return fault && lost.n_samples > 0;
}

static bool is_lost(int code)
{
    return code == lvp_exit_status(LVP_ERR_LOST) || code >= 128;
}

// Whether the output has got captions since the last question.
static bool has_new_captions(struct launch *launch)
{
    char path[4096];
    struct stat info;
    int n = launch->options->output != NULL ? snprintf(path, sizeof path, "%s/captions.jsonl", launch->options->output)
                                            : -1;
    if (n < 0 || (size_t)n >= sizeof path || stat(path, &info) != 0) return false;
    bool grown = info.st_size > launch->captions_bytes;
    launch->captions_bytes = info.st_size;
    return grown;
}

// Whether to start again. A sample's crashes are few by themselves, so they are free, until one follows another without
// a caption between them: then it is not the samples.
static bool may_restart(struct launch *launch, bool sample_is_to_blame)
{
    if (has_new_captions(launch)) launch->blamed = 0;
    if (sample_is_to_blame && launch->blamed++ < MAX_BLAMED) {
        lvp_info("starting again");
        return true;
    }
    if (launch->restarts++ < launch->options->max_restarts) {
        lvp_info("starting again%s", launch->restarts == launch->options->max_restarts ? " (the last time)" : "");
        return true;
    }
    lvp_info("give the same command again to resume");
    return false;
}

enum lvp_status lvp_launch(const struct lvp_launch_options *options, int *exit_status)
{
    struct launch launch = {.options = options};
    sigset_t before;
    if (!has_mpirun())
        return lvp_fail(LVP_ERR_USAGE,
                        "mpirun was not found: install Open MPI (openmpi-bin), or start the ranks yourself");
    name_launch(&launch);
    fill_waited_signals(&launch.waited);
    (void)has_new_captions(&launch);
    (void)sigprocmask(SIG_BLOCK, &launch.waited, &before);
    for (int life = 0;; life++) {
        struct world world = {0};
        LVP_TRY(start(&launch, life, &world));
        int code = wait_for_end(&launch, &world);
        if (world.left > 0) code = lvp_exit_status(LVP_ERR_LOST);
        *exit_status = code;
        if (world.drains > 1 && code != 0) *exit_status = 128 + world.last_signal;
        if (world.drains == 1 && is_lost(code)) *exit_status = lvp_exit_status(LVP_DRAINED); // killed while it drained
        if (world.drains > 0 || !is_lost(code)) break;
        *exit_status = lvp_exit_status(LVP_ERR_LOST);
        if (!may_restart(&launch, tell_lost(&launch, &world, code))) break;
        const struct timespec pause = {1, 0};
        (void)nanosleep(&pause, NULL);
    }
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return LVP_OK;
}

enum lvp_status lvp_launch_self(char *const *arguments, int *exit_status)
{
    const struct timespec second = {1, 0};
    sigset_t waited, before;
    pid_t parent = getpid(), gone = 0;
    int ended = 0;
    enum lvp_status status = LVP_OK;
    fill_waited_signals(&waited);
    (void)sigprocmask(SIG_BLOCK, &waited, &before);
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        status = lvp_fail(LVP_ERR_IO, "lvpipe could not be started: %s", strerror(errno));
        goto fail;
    }
    if (child == 0) {
        (void)setpgid(0, 0); // a Ctrl-C in the terminal comes once, from here
        lvp_die_with_parent(parent);
        (void)sigprocmask(SIG_SETMASK, &before, NULL);
        execv("/proc/self/exe", arguments);
        _exit(NO_PROGRAM);
    }
    (void)setpgid(child, child); // in both, whoever comes first
    while ((gone = waitpid(child, &ended, WNOHANG)) == 0 || (gone < 0 && errno == EINTR)) {
        int signal = sigtimedwait(&waited, NULL, &second);
        if (signal > 0 && signal != SIGCHLD) (void)kill(child, signal);
    }
    if (gone < 0) status = lvp_fail(LVP_ERR_IO, "waiting for lvpipe: %s", strerror(errno));
    *exit_status = WIFSIGNALED(ended) ? 128 + WTERMSIG(ended) : WEXITSTATUS(ended);
fail:
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    return status;
}
