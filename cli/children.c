#include "cli/children.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

// Neither a zombie nor gone: its state, behind its name in brackets, which may itself hold any sign.
static bool lives(long pid)
{
    char path[64], line[512] = "";
    (void)snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    FILE *file = fopen(path, "r");
    if (file == NULL) return false;
    bool read = fgets(line, sizeof line, file) != NULL;
    (void)fclose(file);
    const char *name_end = read ? strrchr(line, ')') : NULL;
    return name_end != NULL && name_end[1] == ' ' && strchr("ZX", name_end[2]) == NULL;
}

int lvp_living_children(pid_t parent, pid_t *one)
{
    char path[64];
    int count = 0;
    *one = 0;
    (void)snprintf(path, sizeof path, "/proc/%ld/task", (long)parent);
    DIR *tasks = opendir(path);
    if (tasks == NULL) return 0;
    for (const struct dirent *task; (task = readdir(tasks)) != NULL;) {
        long child;
        if (task->d_name[0] == '.') continue;
        (void)snprintf(path, sizeof path, "/proc/%ld/task/%.20s/children", (long)parent, task->d_name);
        FILE *children = fopen(path, "r");
        if (children == NULL) continue;
        while (fscanf(children, "%ld", &child) == 1) {
            if (!lives(child)) continue;
            count++;
            *one = (pid_t)child;
        }
        (void)fclose(children);
    }
    (void)closedir(tasks);
    return count;
}
