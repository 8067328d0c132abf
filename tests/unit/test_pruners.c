// The table of pruners: names, defaults, and what each needs of a model.
#include "common/pruners.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

static void names(void **state)
{
    (void)state;
    enum lvp_pruner_kind kind;
    for (int i = 0; i < LVP_PRUNER_COUNT; i++) {
        assert_int_equal(lvp_pruner_find(lvp_pruners[i].name, &kind), LVP_OK);
        assert_int_equal(kind, i);
    }
    assert_int_equal(lvp_pruner_find("fastv", &kind), LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), "none, lvpruning, random, last-attention or adaptprune"));
}

static void points(void **state)
{
    (void)state;
    struct lvp_prune_plan plan;
    lvp_pruner_default_points(LVP_PRUNER_RANDOM, 32, &plan);
    assert_int_equal(plan.n_points, 3);
    lvp_pruner_default_points(LVP_PRUNER_ADAPTPRUNE, 32, &plan);
    assert_int_equal(plan.n_points, 1);
    assert_int_equal(plan.after[0], 2);
    assert_int_equal(lvp_prune_parse_keep(lvp_pruners[LVP_PRUNER_ADAPTPRUNE].keep, &plan), LVP_OK);
    assert_int_equal(lvp_keep_count(&plan, 0, 576), 58);
    lvp_pruner_default_points(LVP_PRUNER_LAST_ATTENTION, 2, &plan); // a layer has to be left
    assert_int_equal(plan.after[0], 1);
}

static void grids(void **state)
{
    (void)state;
    assert_int_equal(lvp_token_grid(576), 24);
    assert_int_equal(lvp_token_grid(577), 0);
    assert_int_equal(lvp_token_grid(1), 1);
    struct lvp_model_config config = {.vision = {.image_size = 336, .patch_size = 14}};
    assert_int_equal(lvp_pruner_check(LVP_PRUNER_ADAPTPRUNE, &config), LVP_OK);
    config.select_full = true;
    lvp_error_clear();
    assert_int_equal(lvp_pruner_check(LVP_PRUNER_LAST_ATTENTION, &config), LVP_OK);
    assert_int_equal(lvp_pruner_check(LVP_PRUNER_ADAPTPRUNE, &config), LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), "577"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(points), cmocka_unit_test(grids)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
