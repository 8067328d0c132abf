// Cores and bytes this process may use: affinity mask and cgroup limits.
#ifndef LVP_CLI_MACHINE_H
#define LVP_CLI_MACHINE_H

int lvp_available_cores(void);
long long lvp_available_memory(void);

#endif
