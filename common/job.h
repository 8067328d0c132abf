// Who we are, for people: the host, and the job of the batch system.
#ifndef LVP_COMMON_JOB_H
#define LVP_COMMON_JOB_H

#include <stddef.h>

void lvp_host_name(char *name, size_t size);

// "slurm job 1234", "slurm job 1234_7" for a task of an array, else "process 5678" (the launcher's, where known).
void lvp_job_name(char *name, size_t size);

#endif
