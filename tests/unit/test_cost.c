// The counts behind `lvpipe plan`: the LVPruning paper's FLOPs, bytes over a cut and KV, and sums over the chain.
#include "common/shapes.h"
#include "coordinator/cost.h"
#include "shapes_for_tests.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct lvp_workload workload(const struct lvp_model_config *config, const char *keep)
{
    return (struct lvp_workload){.config = config,
                                 .prune = test_prune_plan(config, keep),
                                 .pruner_width = config->text.hidden,
                                 .text_tokens = 30,
                                 .new_tokens = 64,
                                 .dtype = LVP_BF16,
                                 .weights = LVP_BF16};
}

static void expect_near(double value, double low, double high)
{
    if (value < low || value > high) fail_msg("%.6g is outside %.6g..%.6g", value, low, high);
}

static void test_paper_flops(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    // arXiv 2501.13652, the main table: 8.38, 3.97, 3.18, 2.79 TFLOPs; its rounding of the counts differs by up to
    // 0.02.
    struct lvp_workload w = workload(&config, NULL);
    expect_near(lvp_paper_flops(&w) / 1e12, 8.375, 8.385);
    w = workload(&config, "0.6");
    expect_near(lvp_paper_flops(&w) / 1e12, 3.97, 3.985);
    w = workload(&config, "0.5");
    expect_near(lvp_paper_flops(&w) / 1e12, 3.18, 3.205);
    w = workload(&config, "0.45");
    expect_near(lvp_paper_flops(&w) / 1e12, 2.79, 2.805);
    // The modules alone, when each sees 576 tokens: 0.708.
    w = workload(&config, "1,1,1");
    struct lvp_workload without = w;
    without.pruner_width = 0;
    expect_near((lvp_paper_flops(&w) - lvp_paper_flops(&without)) / 1e12, 0.7075, 0.7085);
}

static void test_module_weights(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_workload w = workload(&config, "0.5"), dense = lvp_dense_workload(&w);
    int n = lvp_block_count(&config);
    int64_t modules = lvp_range_cost(&w, 0, n).weight_bytes - lvp_range_cost(&dense, 0, n).weight_bytes;
    expect_near((double)modules / 2 / 1e6, 804, 806); // the paper: 805 M parameters
    // The model itself: 7.06 G parameters, of which the layers after the feature layer are not loaded.
    expect_near((double)lvp_range_cost(&dense, 0, n).weight_bytes / 2e9, 7.03, 7.07);
}

static void test_bytes_over_a_cut(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_workload w = workload(&config, "0.5"), dense = lvp_dense_workload(&w);
    const int after[] = {0, 7, 15};
    const int64_t rows[] = {318, 203, 88};
    for (int i = 0; i < 3; i++) {
        struct lvp_block_cost cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_DEC, after[i]));
        assert_int_equal(cost.rows_out, rows[i]);
        assert_int_equal(cost.prefill_out.payload, rows[i] * 8192);
        assert_int_equal(cost.prefill_out.framing, 64 + 4 * rows[i]);
        assert_int_equal(cost.decode_out.payload, 8192);
        assert_int_equal(cost.decode_out.framing, 68);
        cost = lvp_block_cost(&dense, lvp_block_index(&config, LVP_BLOCK_DEC, after[i]));
        assert_int_equal(cost.prefill_out.payload, 606 * 8192); // 4.96 MB
    }
    struct lvp_block_cost cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_VIT, 5));
    assert_int_equal(cost.prefill_out.payload, 577 * 1024 * 2);
    assert_int_equal(cost.decode_out.payload + cost.decode_out.framing, 0);
    cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_PROJECT, 0));
    assert_int_equal(cost.prefill_out.payload, 576 * 4096 * 2);
    cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_HEAD, 0));
    assert_int_equal(cost.prefill_out.payload + cost.decode_out.payload, 0);
    w.dtype = w.weights = LVP_F32;
    cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_DEC, 0));
    assert_int_equal(cost.prefill_out.payload, 318 * 16384);
}

static void test_kv_bytes(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_workload w = workload(&config, "0.5"), dense = lvp_dense_workload(&w);
    expect_near((double)lvp_prompt_kv_bytes(&dense) / 1e6, 317, 318.5); // 318 MB -> 96 MB
    expect_near((double)lvp_prompt_kv_bytes(&w) / 1e6, 95.5, 96.5);
    // 606 + 64 slots are 42 pages of 16, for k and v of 32 x 128 at two bytes.
    struct lvp_block_cost cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_DEC, 0));
    assert_int_equal(cost.kv_bytes, 42 * 16 * 2 * 4096 * 2);
    cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_DEC, 31));
    assert_int_equal(cost.kv_bytes, 10 * 16 * 2 * 4096 * 2); // 88 + 64
}

static void test_attention_is_counted_by_pairs(void **state)
{
    (void)state;
    struct lvp_model_config config = test_small_model();
    struct lvp_workload w = workload(&config, NULL);
    w.new_tokens = 4;
    // 16 + 30 rows; row j sees j + 1 slots. Decode steps see 47, 48 and 49.
    double linear = 2.0 * (2 * 96 * 96 + 2 * 96 * 48 + 3 * 96 * 256), pairs = 0;
    for (int row = 0; row < 46; row++) pairs += row + 1;
    struct lvp_block_cost cost = lvp_block_cost(&w, lvp_block_index(&config, LVP_BLOCK_DEC, 2));
    assert_true(fabs(cost.prefill_flops - (46 * linear + pairs * 4 * 96)) < 1);
    assert_true(fabs(cost.decode_flops - (3 * linear + (47 + 48 + 49) * 4 * 96)) < 1);
    // Keeping everything costs the modules and nothing else.
    struct lvp_workload all = workload(&config, "1,1,1");
    all.new_tokens = 4;
    all.pruner_width = 0;
    int n = lvp_block_count(&config);
    assert_true(fabs(lvp_range_cost(&all, 0, n).prefill_flops - lvp_range_cost(&w, 0, n).prefill_flops) < 1);
}

static void test_ranges_add_up(void **state)
{
    (void)state;
    struct lvp_model_config config = test_llava_7b();
    struct lvp_workload w = workload(&config, "0.5");
    int n = lvp_block_count(&config), cut = 34;
    struct lvp_block_cost all = lvp_range_cost(&w, 0, n), a = lvp_range_cost(&w, 0, cut),
                          b = lvp_range_cost(&w, cut, n);
    assert_int_equal(all.weight_bytes, a.weight_bytes + b.weight_bytes);
    assert_int_equal(all.kv_bytes, a.kv_bytes + b.kv_bytes);
    assert_true(fabs(all.prefill_flops - a.prefill_flops - b.prefill_flops) < 1e6);
    assert_int_equal(a.prefill_out.payload, 203 * 8192);
    // Executed prefill is near the paper's count: less lm_head and one ViT layer, more attention.
    expect_near(all.prefill_flops / lvp_paper_flops(&w), 0.95, 1.05);
}

static void test_shapes(void **state)
{
    (void)state;
    struct lvp_model_config config;
    assert_int_equal(lvp_shape_load("llava-1.5-7b", &config), LVP_OK);
    struct lvp_workload w = workload(&config, "0.5");
    expect_near(lvp_paper_flops(&w) / 1e12, 3.18, 3.205);
    assert_int_equal(lvp_shape_load("llava-1.5-13b", &config), LVP_OK);
    w = workload(&config, NULL);
    expect_near((double)lvp_range_cost(&w, 0, lvp_block_count(&config)).weight_bytes / 2e9, 13.2, 13.5);
    assert_int_equal(lvp_shape_load("tiny-llava", &config), LVP_OK);
    assert_int_equal(config.text.kv_heads, 4);
    assert_int_equal(config.text.head_dim, 64);

    // What is calibrated: layers that more and more threads cannot keep in their caches, up to half a gigabyte.
    assert_int_equal(lvp_shape_load("llava-1.5-7b", &config), LVP_OK);
    struct lvp_model_config narrow = lvp_shape_narrow(&config);
    assert_int_equal(narrow.text.layers, 7); // of 84 MB
    assert_int_equal(lvp_shape_layers_in_memory(&narrow.text, 1), 2);
    assert_int_equal(lvp_shape_layers_in_memory(&narrow.text, 2), 4);
    assert_int_equal(lvp_shape_layers_in_memory(&narrow.text, 64), 7);

    char path[] = "/tmp/lvp_shape_XXXXXX.json";
    int fd = mkstemps(path, 5);
    const char text[] =
        "{\"text_config\": {\"num_hidden_layers\": 8, \"vocab_size\": 512}, \"vision_feature_layer\": -1}";
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(lvp_shape_load(path, &config), LVP_OK);
    assert_int_equal(lvp_block_count(&config), 24 + 8 + 4);
    assert_int_equal(ftruncate(fd, 20), 0);
    assert_int_equal(lvp_shape_load(path, &config), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), path));
    lvp_error_clear();
    (void)close(fd);
    (void)unlink(path);
    assert_int_equal(lvp_shape_load(path, &config), LVP_ERR_USAGE);
    lvp_error_clear();
    assert_int_equal(mkfifo(path, 0600), 0); // nobody writes: opening it must not wait
    assert_int_equal(lvp_shape_load(path, &config), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), "regular"));
    lvp_error_clear();
    (void)unlink(path);
    assert_int_equal(lvp_shape_load("llava-2", &config), LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), "tiny-llava"));
    lvp_error_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paper_flops),
        cmocka_unit_test(test_module_weights),
        cmocka_unit_test(test_bytes_over_a_cut),
        cmocka_unit_test(test_kv_bytes),
        cmocka_unit_test(test_attention_is_counted_by_pairs),
        cmocka_unit_test(test_ranges_add_up),
        cmocka_unit_test(test_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
