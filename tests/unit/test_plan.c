// Keep counts, layer groups, the chain of blocks and what --keep, --prune-after and --partition accept.
#include "common/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct lvp_model_config llava_7b(void)
{
    struct lvp_model_config config = {.feature_layers = {23}, .n_feature_layers = 1};
    config.vision = (struct lvp_vision_config){
        .hidden = 1024, .layers = 24, .heads = 16, .mlp = 4096, .image_size = 336, .patch_size = 14};
    config.text = (struct lvp_text_config){
        .vocab = 32064, .hidden = 4096, .layers = 32, .heads = 32, .kv_heads = 32, .head_dim = 128, .mlp = 11008};
    return config;
}

static struct lvp_prune_plan make_plan(int n_layers, const char *keep)
{
    struct lvp_prune_plan plan = {0};
    lvp_prune_default_points(n_layers, &plan);
    assert_int_equal(lvp_prune_parse_keep(keep, &plan), LVP_OK);
    return plan;
}

static void expect_usage(enum lvp_status status, const char *part)
{
    assert_int_equal(status, LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), part));
    lvp_error_clear();
}

static void expect_points(int n_layers, int n, int a, int b, int c)
{
    struct lvp_prune_plan plan;
    lvp_prune_default_points(n_layers, &plan);
    const int expected[] = {a, b, c};
    assert_int_equal(plan.n_points, n);
    for (int s = 0; s < n; s++) assert_int_equal(plan.after[s], expected[s]);
}

static void test_default_points(void **state)
{
    (void)state;
    expect_points(32, 3, 1, 8, 16);
    expect_points(22, 3, 1, 6, 11);
    expect_points(8, 3, 1, 2, 4);
    expect_points(40, 3, 1, 10, 20);
    expect_points(48, 3, 2, 12, 24); // 48/32 = 1.5 rounds up
    expect_points(3, 3, 1, 2, 3);
    expect_points(2, 2, 1, 2, 0);
    expect_points(1, 1, 1, 0, 0);
}

static void test_keep_of_the_paper(void **state)
{
    (void)state;
    struct lvp_prune_plan plan = make_plan(32, "0.5");
    assert_int_equal(lvp_keep_count(&plan, 0, 576), 288);
    assert_int_equal(lvp_keep_count(&plan, 1, 576), 173);
    assert_int_equal(lvp_keep_count(&plan, 2, 576), 58);
    assert_int_equal(lvp_vision_rows_at(&plan, 0, 576), 576);
    assert_int_equal(lvp_vision_rows_at(&plan, 1, 576), 288);
    assert_int_equal(lvp_vision_rows_at(&plan, 7, 576), 288);
    assert_int_equal(lvp_vision_rows_at(&plan, 8, 576), 173);
    assert_int_equal(lvp_vision_rows_at(&plan, 16, 576), 58);
    assert_int_equal(lvp_vision_rows_at(&plan, 32, 576), 58);
    assert_int_equal(lvp_layer_group(&plan, 0), 0);
    assert_int_equal(lvp_layer_group(&plan, 15), 2);
    assert_int_equal(lvp_layer_group(&plan, 31), 3);
    struct lvp_prune_counts counts;
    lvp_prune_counts(&plan, 576, &counts);
    assert_int_equal(counts.rows[0], 576);
    assert_int_equal(counts.rows[3], 58);
    for (int layer = 0; layer <= 32; layer++)
        assert_int_equal(counts.rows[lvp_depth_of_layer(&counts, layer)], lvp_vision_rows_at(&plan, layer, 576));
}

static void test_keep_is_decimal(void **state)
{
    (void)state;
    // In binary 0.6 - 2 x 0.2 is a little below 0.2 and 0.35 x 10 a little below 3.5.
    struct lvp_prune_plan plan = make_plan(32, "0.6");
    assert_true(plan.keep[2] == LVP_KEEP_ONE / 5);
    plan = make_plan(32, "0.35,0.35,0.35");
    assert_int_equal(lvp_keep_count(&plan, 0, 10), 4);
    plan = make_plan(32, "0.3");
    assert_true(plan.keep[2] == 0); // 0.3 - 0.4 counts as 0
    assert_int_equal(lvp_keep_count(&plan, 2, 576), 0);
    plan = make_plan(32, "1.5");
    assert_int_equal(lvp_keep_count(&plan, 2, 7), 7);
    plan = make_plan(32, "-1");
    assert_int_equal(lvp_keep_count(&plan, 0, 7), 0);
    plan = make_plan(32, "0.5,0.9,.25");
    assert_int_equal(lvp_keep_count(&plan, 1, 100), 50); // never more than survive
    assert_int_equal(lvp_keep_count(&plan, 2, 100), 25);
    assert_int_equal(lvp_keep_count(&plan, 2, 0), 0);
    plan = make_plan(32, "1,1,1");
    assert_int_equal(lvp_keep_count(&plan, 2, LVP_MAX_IMAGE_TOKENS), LVP_MAX_IMAGE_TOKENS);
}

static void test_keep_equals_the_rule(void **state)
{
    (void)state;
    // Against floor(r n + 0.5 + 1e-9) for every share of three decimals.
    for (int thousandths = 0; thousandths <= 1000; thousandths++) {
        struct lvp_prune_plan plan = {.n_points = 1, .after = {1}, .keep = {LVP_KEEP_ONE / 1000 * thousandths}};
        for (int n = 0; n < 700; n += 23)
            assert_int_equal(lvp_keep_count(&plan, 0, n), (int)floor(thousandths * n / 1000.0 + 0.5 + 1e-9));
    }
}

static void test_bad_keep_and_points(void **state)
{
    (void)state;
    struct lvp_prune_plan plan;
    lvp_prune_default_points(32, &plan);
    expect_usage(lvp_prune_parse_keep("", &plan), "one decimal number");
    expect_usage(lvp_prune_parse_keep("0.5,", &plan), "one decimal number");
    expect_usage(lvp_prune_parse_keep("0.5x", &plan), "one decimal number");
    expect_usage(lvp_prune_parse_keep("nan", &plan), "one decimal number");
    expect_usage(lvp_prune_parse_keep("0.5,0.3", &plan), "2 numbers for 3 prune points");
    expect_usage(lvp_prune_parse_keep("1,1,1,1,1,1,1,1,1", &plan), "more numbers");
    expect_usage(lvp_prune_parse_points("8,1", 32, &plan), "increase strictly");
    expect_usage(lvp_prune_parse_points("1,1", 32, &plan), "increase strictly");
    expect_usage(lvp_prune_parse_points("0,8", 32, &plan), "outside 1..32");
    expect_usage(lvp_prune_parse_points("33", 32, &plan), "outside 1..32");
    expect_usage(lvp_prune_parse_points("99999999999999999999", 32, &plan), "outside 1..32");
    expect_usage(lvp_prune_parse_points("1,,2", 32, &plan), "whole numbers");
    expect_usage(lvp_prune_parse_points("", 32, &plan), "whole numbers");
    expect_usage(lvp_prune_parse_points("1,2,3,4,5,6,7,8,9", 32, &plan), "at most 8");
    assert_int_equal(lvp_prune_parse_points("2,32", 32, &plan), LVP_OK);
    assert_int_equal(plan.n_points, 2);
    assert_int_equal(plan.after[1], 32);
}

static void test_chain(void **state)
{
    (void)state;
    struct lvp_model_config config = llava_7b();
    int n = lvp_block_count(&config);
    assert_int_equal(n, 23 + 32 + 4);
    char name[LVP_BLOCK_NAME];
    assert_string_equal(lvp_block_name(&config, 0, name), "patch_embed");
    assert_string_equal(lvp_block_name(&config, 4, name), "vit[3]");
    assert_string_equal(lvp_block_name(&config, 24, name), "project");
    assert_string_equal(lvp_block_name(&config, 25, name), "merge");
    assert_string_equal(lvp_block_name(&config, 26, name), "dec[0]");
    assert_string_equal(lvp_block_name(&config, 58, name), "head");
    for (int b = 0; b < n; b++) {
        struct lvp_block block = lvp_block_at(&config, b);
        assert_int_equal(lvp_block_index(&config, block.kind, block.layer), b);
    }
    for (int cut = 1; cut < n; cut++) assert_true(lvp_cut_allowed(&config, cut));
    assert_false(lvp_cut_allowed(&config, 0));
    assert_false(lvp_cut_allowed(&config, n));
}

static void test_cuts_between_taps(void **state)
{
    (void)state;
    struct lvp_model_config config = llava_7b();
    config.feature_layers[0] = 22;
    config.feature_layers[1] = 10;
    config.n_feature_layers = 2;
    assert_int_equal(lvp_block_count(&config), 22 + 32 + 4);
    assert_true(lvp_cut_allowed(&config, 10)); // before vit[9], whose output is the first tap
    for (int cut = 11; cut <= 23; cut++) assert_false(lvp_cut_allowed(&config, cut));
    assert_true(lvp_cut_allowed(&config, 24)); // between project and merge
}

static void test_partition(void **state)
{
    (void)state;
    struct lvp_model_config config = llava_7b();
    struct lvp_prune_plan plan = make_plan(32, "0.5");
    struct lvp_partition_choice choice;
    struct lvp_partition partition;
    assert_int_equal(lvp_partition_parse("auto", &choice), LVP_OK);
    assert_int_equal(lvp_partition_choice_stages(&choice, &plan), 0);
    assert_int_equal(lvp_partition_parse("prune", &choice), LVP_OK);
    assert_int_equal(lvp_partition_resolve(&choice, &config, &plan, &partition), LVP_OK);
    const int expected[] = {0, 27, 34, 42, 59}; // right after dec[0], dec[7] and dec[15]
    assert_int_equal(partition.n_stages, 4);
    assert_memory_equal(partition.first, expected, sizeof expected);
    assert_int_equal(lvp_partition_parse("24,58", &choice), LVP_OK);
    assert_int_equal(lvp_partition_choice_stages(&choice, &plan), 3);
    assert_int_equal(lvp_partition_resolve(&choice, &config, &plan, &partition), LVP_OK);
    assert_int_equal(partition.first[2], 58);

    expect_usage(lvp_partition_parse("", &choice), "auto, prune or");
    expect_usage(lvp_partition_parse("3,", &choice), "auto, prune or");
    expect_usage(lvp_partition_parse("-3", &choice), "auto, prune or");
    expect_usage(lvp_partition_parse("even", &choice), "auto, prune or");
    assert_int_equal(lvp_partition_parse("30,30", &choice), LVP_OK);
    expect_usage(lvp_partition_resolve(&choice, &config, &plan, &partition), "cut 30 does not follow 30");
    assert_int_equal(lvp_partition_parse("0,30", &choice), LVP_OK);
    expect_usage(lvp_partition_resolve(&choice, &config, &plan, &partition), "cut 0 is outside 1..58");
    assert_int_equal(lvp_partition_parse("9999999999999999999", &choice), LVP_OK);
    expect_usage(lvp_partition_resolve(&choice, &config, &plan, &partition), "outside 1..58");
    partition = (struct lvp_partition){.n_stages = 2, .first = {0, 5, 40}};
    expect_usage(lvp_partition_check(&config, &partition), "does not cover");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_points),      cmocka_unit_test(test_keep_of_the_paper),
        cmocka_unit_test(test_keep_is_decimal),     cmocka_unit_test(test_keep_equals_the_rule),
        cmocka_unit_test(test_bad_keep_and_points), cmocka_unit_test(test_chain),
        cmocka_unit_test(test_cuts_between_taps),   cmocka_unit_test(test_partition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
