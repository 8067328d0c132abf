// The least CPU and memory limits of this process's control groups, v1 and v2 (man 7 cgroups): a batch system limits a
// group above the process's own, and each group above limits what is below it.
#ifndef LVP_CLI_CGROUP_H
#define LVP_CLI_CGROUP_H

struct lvp_cgroup_limits {
    long long cores, memory; // whole cores, rounded up; bytes; 0: no limit
};

// `groups` is /proc/self/cgroup, `mount` /sys/fs/cgroup. What cannot be read limits nothing.
struct lvp_cgroup_limits lvp_cgroup_limits(const char *groups, const char *mount);

#endif
