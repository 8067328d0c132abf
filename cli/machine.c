#include "cli/machine.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

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
