// What this machine is, and the cores and bytes this process may use: affinity mask and cgroup limits.
#ifndef LVP_CLI_MACHINE_H
#define LVP_CLI_MACHINE_H

#include <stddef.h>

int lvp_available_cores(void);
long long lvp_available_memory(void);

// The CPU's name as /proc/cpuinfo has it, and its family and model numbers where the name says little.
void lvp_cpu_name(char *name, size_t size);

#endif
