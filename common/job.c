#include "common/job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void lvp_host_name(char *name, size_t size)
{
    if (gethostname(name, size) != 0 || name[0] == '\0') (void)snprintf(name, size, "localhost");
    name[size - 1] = '\0';
}

void lvp_job_name(char *name, size_t size)
{
    const char *array = getenv("SLURM_ARRAY_JOB_ID"), *task = getenv("SLURM_ARRAY_TASK_ID"),
               *job = getenv("SLURM_JOB_ID");
    const char *told = getenv("LVPIPE_JOB"); // by the launcher, which scrubs the batch system's variables
    if (told != NULL)
        (void)snprintf(name, size, "%s", told);
    else if (array != NULL && task != NULL)
        (void)snprintf(name, size, "slurm job %.40s_%.20s", array, task);
    else if (job != NULL)
        (void)snprintf(name, size, "slurm job %.40s", job);
    else
        (void)snprintf(name, size, "process %ld", (long)getppid());
    for (char *c = name; *c != '\0'; c++)
        if ((unsigned char)*c < ' ') *c = '?';
}
