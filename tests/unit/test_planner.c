// The planner against trying every partition, under memory limits, and where pruning should move the cuts.
#include "coordinator/planner.h"
#include "shapes_for_tests.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct lvp_workload workload(const struct lvp_model_config *config, const char *keep)
{
    return (struct lvp_workload){.config = config,
                                 .prune = test_prune_plan(config, keep),
                                 .pruner_width = config->text.hidden,
                                 .text_tokens = 30,
                                 .new_tokens = 16,
                                 .dtype = LVP_BF16,
                                 .weights = LVP_BF16};
}

static double slowest(const struct lvp_planner_input *input, const struct lvp_partition *p)
{
    double worst = 0;
    for (int s = 0; s < p->n_stages; s++) {
        if (input->devices[s].memory > 0 &&
            lvp_stage_memory(input, p->first[s], p->first[s + 1]) > input->devices[s].memory)
            return INFINITY;
        worst = fmax(worst, lvp_stage_seconds(input, s, p->first[s], p->first[s + 1]));
    }
    return worst;
}

// Best of all partitions that continue `p` from stage s.
static double try_all(const struct lvp_planner_input *input, struct lvp_partition *p, int s)
{
    const struct lvp_model_config *config = input->workload->config;
    int n = lvp_block_count(config);
    if (s == input->n_stages) {
        p->first[s] = n;
        return slowest(input, p);
    }
    double best = INFINITY;
    for (int cut = p->first[s - 1] + 1; cut < n; cut++) {
        if (!lvp_cut_allowed(config, cut)) continue;
        p->first[s] = cut;
        best = fmin(best, try_all(input, p, s + 1));
    }
    return best;
}

static void expect_best(const struct lvp_planner_input *input)
{
    struct lvp_partition every = {.n_stages = input->n_stages}, planned;
    double best = try_all(input, &every, 1);
    if (isinf(best)) {
        assert_int_equal(lvp_plan_partition(input, &planned), LVP_ERR_USAGE);
        assert_non_null(strstr(lvp_error_text(), "fits"));
        lvp_error_clear();
        return;
    }
    assert_int_equal(lvp_plan_partition(input, &planned), LVP_OK);
    assert_int_equal(lvp_partition_check(input->workload->config, &planned), LVP_OK);
    assert_true(fabs(slowest(input, &planned) - best) <= best * 1e-8);
}

static void test_equals_exhaustive_search(void **state)
{
    (void)state;
    struct lvp_model_config config = test_small_model();
    const char *const keeps[] = {NULL, "0.5", "0.9,0.1,0"};
    struct lvp_device devices[5];
    for (int k = 0; k < 3; k++) {
        for (int n = 1; n <= 5; n++) {
            struct lvp_workload w = workload(&config, keeps[k]);
            for (int s = 0; s < n; s++) {
                devices[s] = LVP_TYPICAL_CPU;
                devices[s].flops = 1e9 * (1 + (s * 7 + k) % 3); // unequal devices
                devices[s].link_rate = k == 1 ? 1e7 : 1e9;
            }
            struct lvp_planner_input input = {.workload = &w, .n_stages = n, .devices = devices, .sequences = 4};
            expect_best(&input);
            int64_t all = lvp_stage_memory(&input, 0, lvp_block_count(&config));
            for (int s = 0; s < n; s++) devices[s].memory = all / n + all / (s % 2 == 0 ? 10 : 4);
            expect_best(&input);
            for (int s = 0; s < n; s++) devices[s].memory = all / (n + 1);
            expect_best(&input);
        }
    }
}

static void test_features_of_several_layers(void **state)
{
    (void)state;
    struct lvp_model_config config = test_small_model();
    config.feature_layers[0] = 1;
    config.feature_layers[1] = 3;
    config.n_feature_layers = 2;
    struct lvp_workload w = workload(&config, "0.5");
    struct lvp_device devices[16];
    for (int s = 0; s < 16; s++) devices[s] = LVP_TYPICAL_CPU;
    struct lvp_planner_input input = {.workload = &w, .n_stages = 3, .devices = devices, .sequences = 1};
    expect_best(&input);
    // 13 blocks with 3 forbidden cuts: vit[1], vit[2] and project stay with vit[0].
    struct lvp_partition partition;
    input.n_stages = 10;
    assert_int_equal(lvp_plan_partition(&input, &partition), LVP_OK);
    input.n_stages = 11;
    assert_int_equal(lvp_plan_partition(&input, &partition), LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), "10 stages at most"));
    lvp_error_clear();
}

static void test_balances_by_cost(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_device devices[4];
    for (int s = 0; s < 4; s++) devices[s] = LVP_TYPICAL_CPU;
    struct lvp_workload w = workload(&config, "0.5");
    w.new_tokens = 1;
    struct lvp_planner_input input = {.workload = &w, .n_stages = 4, .devices = devices, .sequences = 8};
    struct lvp_partition partition;
    assert_int_equal(lvp_plan_partition(&input, &partition), LVP_OK);
    double worst = slowest(&input, &partition), whole = 0;
    for (int s = 0; s < 4; s++) whole += lvp_stage_seconds(&input, s, partition.first[s], partition.first[s + 1]);
    assert_true(worst < 1.25 * whole / 4); // equal layer counts give about 1.9
    // Rows are fewer late in the chain, so the last stage has more layers than the one before it.
    assert_true(partition.first[4] - partition.first[3] > partition.first[3] - partition.first[2]);
}

static void test_slow_link_cuts_after_a_prune_point(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_device devices[3] = {LVP_TYPICAL_CPU, LVP_TYPICAL_CPU, LVP_TYPICAL_CPU};
    devices[0].link_rate = devices[1].link_rate = 1e4; // a cut costs more than all blocks
    struct lvp_workload w = workload(&config, "0.5");
    w.new_tokens = 1;
    struct lvp_planner_input input = {.workload = &w, .n_stages = 2, .devices = devices, .sequences = 1};
    struct lvp_partition partition;
    int after_last_point = lvp_block_index(&config, LVP_BLOCK_DEC, 15) + 1; // 88 rows cross from here on
    assert_int_equal(lvp_plan_partition(&input, &partition), LVP_OK);
    assert_true(partition.first[1] >= after_last_point);
    // Where the slowest stage does not depend on the first cut, the second aim decides: the fewest bytes.
    devices[0].link_rate = devices[1].link_rate = 1e12;
    devices[2].flops = 1; // the head alone takes longer than everything else
    input.n_stages = 3;
    assert_int_equal(lvp_plan_partition(&input, &partition), LVP_OK);
    assert_int_equal(partition.first[2], lvp_block_index(&config, LVP_BLOCK_HEAD, 0));
    assert_true(partition.first[1] >= after_last_point);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_exhaustive_search),
        cmocka_unit_test(test_features_of_several_layers),
        cmocka_unit_test(test_balances_by_cost),
        cmocka_unit_test(test_slow_link_cuts_after_a_prune_point),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
