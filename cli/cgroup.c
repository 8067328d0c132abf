#include "cli/cgroup.h"

#include <stdio.h>
#include <string.h>

enum { PATH_BYTES = 4096 };

// The first number of folder/name; 0 where there is none, and for "max" and -1, which say that there is no limit.
static long long read_number(const char *folder, const char *name, long long *second)
{
    char path[PATH_BYTES];
    long long first = 0;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    int n = fscanf(file, "%lld %lld", &first, second);
    (void)fclose(file);
    return n >= 1 && first > 0 ? first : 0;
}

static void lower(long long *limit, long long found)
{
    if (found > 0 && (*limit == 0 || found < *limit)) *limit = found;
}

static void add_cores(long long quota, long long period, struct lvp_cgroup_limits *limits)
{
    if (quota > 0 && period > 0) lower(&limits->cores, (quota - 1) / period + 1);
}

static void add_folder(const char *folder, struct lvp_cgroup_limits *limits)
{
    long long period = 0, none = 0;
    long long quota = read_number(folder, "cpu.max", &period); // v2: "QUOTA PERIOD", us
    add_cores(quota, period, limits);
    quota = read_number(folder, "cpu.cfs_quota_us", &none); // v1
    add_cores(quota, read_number(folder, "cpu.cfs_period_us", &none), limits);
    lower(&limits->memory, read_number(folder, "memory.max", &none));            // v2
    lower(&limits->memory, read_number(folder, "memory.limit_in_bytes", &none)); // v1, huge where there is none
}

// The group and all above it. In a container the path may be the host's, of which only the top is mounted.
static void add_groups(const char *mount, const char *controller, const char *path, struct lvp_cgroup_limits *limits)
{
    char folder[PATH_BYTES];
    const char *between = controller[0] != '\0' ? "/" : "";
    int top = snprintf(folder, sizeof folder, "%s%s%s", mount, between, controller), n = top;
    if (top < (int)sizeof folder) n += snprintf(folder + top, sizeof folder - (size_t)top, "%s", path);
    if (n >= (int)sizeof folder) return;
    for (;; n--) {
        if (n > top && folder[n] != '/' && folder[n] != '\0') continue;
        folder[n] = '\0';
        add_folder(folder, limits);
        if (n == top) break;
    }
}

struct lvp_cgroup_limits lvp_cgroup_limits(const char *groups, const char *mount)
{
    struct lvp_cgroup_limits limits = {0};
    char line[PATH_BYTES];
    FILE *file = fopen(groups, "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) { // NUMBER:CONTROLLERS:/PATH
        char *controllers = strchr(line, ':'), *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        controllers++;
        if (strchr(controllers, ',') != NULL) add_groups(mount, controllers, path, &limits);
        // Each by itself: a folder "cpu,cpuacct" with links "cpu" and "cpuacct" may be told as "cpuacct,cpu".
        for (char *rest = controllers, *one; (one = strsep(&rest, ",")) != NULL;) add_groups(mount, one, path, &limits);
    }
    if (file != NULL) (void)fclose(file);
    return limits;
}
