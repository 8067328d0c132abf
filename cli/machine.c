#include "cli/machine.h"

#include "cli/cgroup.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

static struct lvp_cgroup_limits limits(void)
{
    return lvp_cgroup_limits("/proc/self/cgroup", "/sys/fs/cgroup");
}

int lvp_available_cores(void)
{
    cpu_set_t set;
    int cores = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    long long capped = limits().cores;
    if (capped > 0 && capped < cores) cores = (int)capped;
    return cores < 1 ? 1 : cores;
}

long long lvp_available_memory(void)
{
    long long memory = (long long)sysconf(_SC_PHYS_PAGES) * (long long)sysconf(_SC_PAGESIZE);
    long long capped = limits().memory;
    return capped > 0 && capped < memory ? capped : memory;
}

void lvp_cpu_name(char *name, size_t size)
{
    char line[256], model[128] = "unknown";
    int family = 0, number = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL && line[0] != '\n') { // the first CPU
        (void)sscanf(line, "model name : %127[^\n]", model);
        (void)sscanf(line, "cpu family : %d", &family);
        (void)sscanf(line, "model : %d", &number);
    }
    if (file != NULL) (void)fclose(file);
    (void)snprintf(name, size, "%s (family %d model %d)", model, family, number);
}
