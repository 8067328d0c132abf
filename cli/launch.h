// How ranks come to be. Under mpirun or srun the ranks are there; bare, `lvpipe` starts mpirun on this host and waits
// for it.
#ifndef LVP_CLI_LAUNCH_H
#define LVP_CLI_LAUNCH_H

#include "common/status.h"

#include <stdbool.h>

// Whether this process was started as one rank of several: by mpirun (OMPI_COMM_WORLD_SIZE), or as a task of a Slurm
// step of several tasks (PMIX_RANK; a batch script itself also carries SLURM_PROCID, which says nothing).
bool lvp_launched(void);

// Starts `mpirun -n n_ranks lvpipe ARGV...` (argv[0] is the command) on this host, free of any launcher's variables
// around it, and waits. *exit_status is that of the job. LVP_ERR_USAGE where mpirun cannot be found.
enum lvp_status lvp_launch(int n_ranks, int argc, char *const *argv, int *exit_status) LVP_MUST_CHECK;

// Asks the kernel to end this process when its parent does, so that no rank outlives its launcher.
void lvp_die_with_parent(void);

// Cores this process may use: its affinity mask, capped by the cgroup's quota, at least 1.
int lvp_available_cores(void);

// Memory this process may use, in bytes: the machine's, capped by the cgroup's limit.
long long lvp_available_memory(void);

#endif
