// The ranks that an mpirun has started on this machine.
#ifndef LVP_CLI_LOCAL_RANKS_H
#define LVP_CLI_LOCAL_RANKS_H

#include <sys/types.h>

// How many ranks live among the children of this process; *rank is the lowest. 0 where the kernel does not tell
// (/proc/PID/task/TID/children).
int lvp_count_local_ranks(pid_t mpirun, int *rank);

#endif
