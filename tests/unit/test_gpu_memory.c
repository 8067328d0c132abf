// What the coordinator counts on of the workers' GPUs.
#include "coordinator/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct lvp_worker_info worker(const char *host, const char *gpu, int64_t memory)
{
    struct lvp_worker_info info = {.gpu = gpu != NULL, .gpu_memory = memory};
    (void)snprintf(info.host, sizeof info.host, "%s", host);
    if (gpu != NULL) (void)snprintf(info.gpu_name, sizeof info.gpu_name, "%s", gpu);
    return info;
}

static void test_least_of_the_replicas(void **state)
{
    (void)state;
    struct lvp_worker_info workers[] = {worker("a", "00", 80), worker("a", "01", 40),  // replica 0
                                        worker("b", "00", 24), worker("b", "01", 48)}; // replica 1
    struct lvp_world world = {.n_workers = 4, .workers = workers};
    assert_int_equal(lvp_world_gpu_memory(&world, 2, 0), 24);
    assert_int_equal(lvp_world_gpu_memory(&world, 2, 1), 40);
}

static void test_shared(void **state)
{
    (void)state;
    struct lvp_worker_info workers[] = {worker("a", "00", 80), worker("a", "00", 80), worker("a", "01", 80),
                                        worker("b", "00", 80), worker("b", NULL, 0)};
    struct lvp_world world = {.n_workers = 5, .workers = workers};
    static const int64_t want[] = {40, 40, 80, 80, 0};
    for (int s = 0; s < 5; s++) assert_int_equal(lvp_world_gpu_memory(&world, 5, s), want[s]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_least_of_the_replicas), cmocka_unit_test(test_shared)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
