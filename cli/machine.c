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
