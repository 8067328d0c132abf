// Limits of control groups as Slurm, Docker and systemd set them. Protects: a rank that takes more memory than its job
// has is killed.
#include "cli/cgroup.h"
#include "tests/unit/temp_folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static void put(const char *path, const char *text)
{
    char folder[256];
    for (const char *end = path; (end = strchr(end, '/')) != NULL; end++) {
        (void)snprintf(folder, sizeof folder, "%.*s", (int)(end - path), path);
        (void)mkdir(temp_path(folder), 0777);
    }
    temp_write(path, text);
}

static void expect(const char *groups, const char *mount, long long cores, long long memory)
{
    struct lvp_cgroup_limits limits = lvp_cgroup_limits(temp_path(groups), temp_path(mount));
    assert_int_equal(limits.cores, cores);
    assert_int_equal(limits.memory, memory);
}

static void test_v2_job_above_the_task(void **state)
{
    (void)state;
    put("v2", "0::/slice/job_7/step_0/task_1");
    put("v2.d/slice/job_7/memory.max", "8000000");
    put("v2.d/slice/job_7/step_0/memory.max", "max");
    put("v2.d/slice/job_7/step_0/cpu.max", "250000 100000");
    put("v2.d/slice/job_7/step_0/task_1/cpu.max", "max 100000");
    put("v2.d/slice/memory.max", "9000000");
    expect("v2", "v2.d", 3, 8000000);
}

static void test_v2_in_a_namespace(void **state)
{
    (void)state;
    put("own", "0::/");
    put("own.d/memory.max", "5000000");
    put("own.d/cpu.max", "100000 100000");
    expect("own", "own.d", 1, 5000000);
}

static void test_v1(void **state)
{
    (void)state;
    put("v1", "5:memory:/docker/abc\n2:cpuacct,cpu:/docker/abc\n0::/");
    put("v1.d/memory/memory.limit_in_bytes", "7000000"); // the container's own, at the top of what it sees
    put("v1.d/cpu/docker/abc/cpu.cfs_quota_us", "150000");
    put("v1.d/cpu/docker/abc/cpu.cfs_period_us", "100000");
    put("v1.d/cpu/docker/cpu.cfs_quota_us", "-1");
    put("v1.d/cpu/docker/cpu.cfs_period_us", "100000");
    expect("v1", "v1.d", 2, 7000000);
}

static void test_none(void **state)
{
    (void)state;
    put("odd", "no groups\n0::");
    expect("odd", "nowhere", 0, 0);
    expect("missing", "nowhere", 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_v2_job_above_the_task),
        cmocka_unit_test(test_v2_in_a_namespace),
        cmocka_unit_test(test_v1),
        cmocka_unit_test(test_none),
    };
    return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
