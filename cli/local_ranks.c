#include "cli/local_ranks.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The rank of a process by its environment; -1: it is none, or has ended.
static int rank_of(long pid)
{
    static const char name[] = "OMPI_COMM_WORLD_RANK=";
    char path[64], *entry = NULL;
    size_t size = 0;
    int rank = -1;
    (void)snprintf(path, sizeof path, "/proc/%ld/environ", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    while (rank < 0 && getdelim(&entry, &size, '\0', file) > 0)
        if (strncmp(entry, name, sizeof name - 1) == 0) rank = atoi(entry + sizeof name - 1);
    free(entry);
    (void)fclose(file);
    return rank;
}

static void count_children(const char *path, int *count, int *rank)
{
    long child;
    FILE *file = fopen(path, "r");
    if (file == NULL) return;
    while (fscanf(file, "%ld", &child) == 1) {
        int its = rank_of(child);
        if (its < 0) continue;
        (*count)++;
        if (its < *rank) *rank = its;
    }
    (void)fclose(file);
}

int lvp_count_local_ranks(pid_t mpirun, int *rank)
{
    char path[64];
    int count = 0;
    *rank = INT_MAX;
    (void)snprintf(path, sizeof path, "/proc/%ld/task", (long)mpirun);
    DIR *tasks = opendir(path);
    if (tasks == NULL) return 0;
    for (const struct dirent *task; (task = readdir(tasks)) != NULL;) {
        if (task->d_name[0] == '.') continue;
        (void)snprintf(path, sizeof path, "/proc/%ld/task/%.20s/children", (long)mpirun, task->d_name);
        count_children(path, &count, rank);
    }
    (void)closedir(tasks);
    return count;
}
