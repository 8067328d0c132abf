#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

bool lvp_launched(void)
{
    if (getenv("OMPI_COMM_WORLD_SIZE") != NULL) return true;
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    return getenv("PMIX_RANK") != NULL && tasks != NULL && atoi(tasks) > 1;
}

void lvp_die_with_parent(void)
{
    pid_t parent = getppid();
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

static void exec_mpirun(int n_ranks, int argc, char *const *argv)
{
    char count[16], self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) _exit(127);
    self[length] = '\0';
    (void)snprintf(count, sizeof count, "%d", n_ranks);
    char host[32];
    (void)snprintf(host, sizeof host, "localhost:%d", n_ranks);
    const char *const head[] = {"mpirun", "--oversubscribe", "--bind-to", "none", "--host", host, "-n", count, self};
    size_t n_head = sizeof head / sizeof *head;
    char **arguments = calloc(n_head + (size_t)argc + 1, sizeof *arguments);
    if (arguments == NULL) _exit(127);
    for (size_t i = 0; i < n_head; i++) arguments[i] = (char *)(size_t)head[i];
    for (int i = 0; i < argc; i++) arguments[n_head + (size_t)i] = argv[i];
    scrub_environment();
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1); // containers; mpirun would refuse
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("OMPI_MCA_btl_base_warn_component_unused", "0", 0);
    // hwloc's gl plugin looks for an X server, asking the name server for "localhost" where /etc/hosts does not have it.
    setenv("HWLOC_COMPONENTS", "-gl", 0);
    setenv("OMPI_MCA_orte_execute_quiet", "1", 0); // as mpirun -q, an option that Open MPI 5 does not have
    // All ranks are on this machine. Open MPI 5 prints a warning per pair of ranks when it looks at other interfaces.
    if (getenv("OMPI_MCA_btl_tcp_if_exclude") == NULL) setenv("OMPI_MCA_btl_tcp_if_include", "lo", 0);
    if (isatty(STDERR_FILENO)) setenv("LVPIPE_TERMINAL", "1", 1); // ranks write through a pipe and cannot see it
    // Ranks read nothing; the shell loop that started us may want its input back.
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing >= 0) (void)dup2(nothing, STDIN_FILENO);
    lvp_die_with_parent();
    execvp("mpirun", arguments);
    _exit(127);
}

enum lvp_status lvp_launch(int n_ranks, int argc, char *const *argv, int *exit_status)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) return lvp_fail(LVP_ERR_IO, "mpirun could not be started: %s", strerror(errno));
    if (child == 0) exec_mpirun(n_ranks, argc, argv);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return lvp_fail(LVP_ERR_IO, "waiting for mpirun: %s", strerror(errno));
    *exit_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (*exit_status >= 128)
        return lvp_fail(LVP_ERR_LOST, "a rank was lost (%s); give the same command again to resume",
                        strsignal(*exit_status - 128));
    if (*exit_status == 127)
        return lvp_fail(LVP_ERR_USAGE,
                        "mpirun was not found: install Open MPI (openmpi-bin), or start the ranks yourself");
    return LVP_OK;
}

int lvp_available_cores(void)
{
    cpu_set_t set;
    int cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r"); // "QUOTA PERIOD" or "max PERIOD" (cgroup v2)
    if (file != NULL) {
        long long quota = 0, period = 0;
        if (fscanf(file, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            int capped = (int)((quota + period - 1) / period);
            if (capped < cores) cores = capped;
        }
        (void)fclose(file);
    }
    return cores < 1 ? 1 : cores;
}

long long lvp_available_memory(void)
{
    long long memory = (long long)sysconf(_SC_PHYS_PAGES) * (long long)sysconf(_SC_PAGESIZE), limit = 0;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");
    if (file != NULL) {
        if (fscanf(file, "%lld", &limit) == 1 && limit > 0 && limit < memory) memory = limit;
        (void)fclose(file);
    }
    return memory;
}
