// Simulated runs where the answer can be worked out by hand: one device, a chain of equal ones, shared cores, slow
// links; and the files that describe machines.
#include "coordinator/forecast.h"
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

static const double rate = 1e9; // of everything, whatever the rows

static struct lvp_profile even_profile(void)
{
    struct lvp_profile profile = {
        .cpu = "a test's", .kernel_set = "avx2", .dtype = LVP_BF16, .weights = LVP_BF16, .n_devices = 1};
    profile.devices[0] = (struct lvp_device_rates){.threads = 1,
                                                   .roof_flops = rate,
                                                   .roof_read_bytes = rate,
                                                   .n_points = 2,
                                                   .rows = {1, 64},
                                                   .row_flops = {rate, rate},
                                                   .prefill_attention_flops = rate,
                                                   .decode_attention_bytes = rate,
                                                   .encode_flops = rate};
    profile.link = (struct lvp_link){.bytes = 1e15, .seconds = 0};
    return profile;
}

static struct lvp_workload workload_of(const struct lvp_model_config *config, const char *keep, int new_tokens)
{
    return (struct lvp_workload){.config = config,
                                 .prune = test_prune_plan(config, keep),
                                 .pruner_width = keep != NULL ? 32 : 0,
                                 .text_tokens = 30,
                                 .new_tokens = new_tokens,
                                 .dtype = LVP_BF16,
                                 .weights = LVP_BF16};
}

// `devices` on each of `nodes` nodes with `cores` cores.
static void make_cluster(struct lvp_cluster *cluster, int nodes, int devices, int cores, double link_bytes)
{
    *cluster = (struct lvp_cluster){
        .n_nodes = nodes, .link = {.bytes = link_bytes, .seconds = 0}, .local = {.bytes = 1e15, .seconds = 0}};
    for (int n = 0; n < nodes; n++)
        cluster->nodes[n] = (struct lvp_cluster_node){.devices = devices, .threads = 1, .cores = cores};
}

static struct lvp_forecast simulate(const struct lvp_workload *workload, const struct lvp_cluster *cluster, int stages,
                                    int replicas, int images, const char *partition)
{
    const struct lvp_profile profile = even_profile();
    struct lvp_partition_choice choice = {.mode = LVP_PARTITION_AUTO};
    struct lvp_forecast forecast;
    if (partition != NULL) assert_int_equal(lvp_partition_parse(partition, &choice), LVP_OK);
    const struct lvp_forecast_input input = {
        .workload = workload, .profile = &profile, .cluster = cluster, .choice = &choice, .images = images};
    assert_int_equal(lvp_forecast(&input, stages, replicas, &forecast), LVP_OK);
    assert_true(forecast.fits);
    return forecast;
}

static void expect_near(double value, double expected, double share)
{
    if (!(fabs(value - expected) <= share * expected)) fail_msg("%g instead of %g", value, expected);
}

static struct lvp_cluster cluster; // large

// One device does all the work there is, one job after the other.
static void test_one_device(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const char *const keeps[] = {NULL, "0.5"};
    for (int k = 0; k < 2; k++) {
        const struct lvp_workload workload = workload_of(&config, keeps[k], 1);
        const struct lvp_block_cost cost = lvp_range_cost(&workload, 0, lvp_block_count(&config));
        make_cluster(&cluster, 1, 1, 1, 1e15);
        const struct lvp_forecast f = simulate(&workload, &cluster, 1, 1, 10, NULL);
        expect_near(f.pruned.seconds, 10 * cost.prefill_flops / rate, 1e-6);
        expect_near(f.pruned.busy[0], f.pruned.seconds, 1e-6);
        if (keeps[k] != NULL) assert_true(f.pruned.seconds < f.dense.seconds);
    }
}

// Decode: the FLOPs, and the KV that is read.
static void test_decode(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const struct lvp_workload workload = workload_of(&config, NULL, 9);
    double seconds = 0;
    for (int b = 0; b < lvp_block_count(&config); b++) {
        struct lvp_block block = lvp_block_at(&config, b);
        struct lvp_block_cost cost = lvp_block_cost(&workload, b);
        seconds += cost.prefill_flops / rate;
        if (block.kind == LVP_BLOCK_HEAD) seconds += cost.decode_flops / rate;
        for (int i = 1; block.kind == LVP_BLOCK_DEC && i < 9; i++)
            seconds += (lvp_layer_linear_flops(&config.text, 1) +
                        (30 + lvp_vision_tokens(&config) + i) * lvp_layer_kv_slot_bytes(&config.text, LVP_BF16)) /
                       rate;
    }
    make_cluster(&cluster, 1, 1, 1, 1e15);
    expect_near(simulate(&workload, &cluster, 1, 1, 5, NULL).pruned.seconds, 5 * seconds, 1e-6);
}

// A long run goes at the pace of the slowest stage; twice the replicas, twice the pace.
static void test_pipeline(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_llava_7b();
    const struct lvp_workload workload = workload_of(&config, NULL, 1);
    make_cluster(&cluster, 4, 1, 1, 1e15);
    const struct lvp_forecast two = simulate(&workload, &cluster, 2, 1, 400, NULL);
    double slowest = 0;
    for (int s = 0; s < 2; s++)
        slowest =
            fmax(slowest,
                 lvp_range_cost(&workload, two.partition.first[s], two.partition.first[s + 1]).prefill_flops / rate);
    expect_near(two.dense.seconds, 400 * slowest, 0.02);
    expect_near(simulate(&workload, &cluster, 2, 2, 800, NULL).dense.images_per_second, 2 * two.dense.images_per_second,
                0.02);
}

// Two stages on one core take as long as one.
static void test_shared_cores(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_llava_7b();
    const struct lvp_workload workload = workload_of(&config, "0.5", 1);
    make_cluster(&cluster, 1, 1, 1, 1e15);
    double alone = simulate(&workload, &cluster, 1, 1, 200, NULL).pruned.seconds;
    make_cluster(&cluster, 1, 2, 1, 1e15);
    expect_near(simulate(&workload, &cluster, 2, 1, 200, NULL).pruned.seconds, alone, 0.02);
    make_cluster(&cluster, 1, 2, 2, 1e15);
    expect_near(simulate(&workload, &cluster, 2, 1, 200, NULL).pruned.seconds, alone / 2, 0.06);
}

// Over a slow link the bytes decide, so pruning before the cut is worth what it takes off the wire.
static void test_slow_link(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_llava_7b();
    const struct lvp_workload workload = workload_of(&config, "0.5", 1);
    char cut[8]; // after the first prune point
    (void)snprintf(cut, sizeof cut, "%d", lvp_block_index(&config, LVP_BLOCK_DEC, 1));
    make_cluster(&cluster, 2, 1, 1, 100);
    const struct lvp_forecast f = simulate(&workload, &cluster, 2, 1, 50, cut);
    double pruned_bytes = (288 + 30) * (4096 * 2 + 4) + 64, dense_bytes = (576 + 30) * (4096 * 2 + 4) + 64;
    expect_near(f.pruned.cut_bytes[0], 50 * pruned_bytes, 1e-9);
    expect_near(f.pruned.seconds, 50 * pruned_bytes / 100, 0.05);
    expect_near(f.dense.seconds, 50 * dense_bytes / 100, 0.05);
}

// On a slow machine time goes so far that a rounding of it is longer than any fixed margin; the run ends all the same.
static void test_long_times(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const struct lvp_workload workload = workload_of(&config, NULL, 4);
    const struct lvp_partition_choice choice = {.mode = LVP_PARTITION_AUTO};
    struct lvp_profile slow = even_profile();
    struct lvp_device_rates *rates = &slow.devices[0];
    double *all[] = {&rates->row_flops[0], &rates->row_flops[1], &rates->prefill_attention_flops,
                     &rates->decode_attention_bytes, &rates->encode_flops};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] *= 1e-15;
    make_cluster(&cluster, 1, 2, 1, 1e15);
    const struct lvp_forecast_input input = {
        .workload = &workload, .profile = &slow, .cluster = &cluster, .choice = &choice, .images = 20};
    struct lvp_forecast forecast;
    assert_int_equal(lvp_forecast(&input, 2, 1, &forecast), LVP_OK);
    double seconds = simulate(&workload, &cluster, 2, 1, 20, NULL).pruned.seconds;
    assert_true(forecast.pruned.seconds > 1 << 24);
    expect_near(forecast.pruned.seconds, 1e15 * seconds, 0.01);
}

// What more than enough images take is what they would have taken one by one.
static void test_long_runs(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const struct lvp_workload workload = workload_of(&config, "0.5", 4);
    make_cluster(&cluster, 2, 1, 1, 1e9);
    double some = simulate(&workload, &cluster, 2, 1, 700, NULL).pruned.seconds;
    expect_near(simulate(&workload, &cluster, 2, 1, 70000, NULL).pruned.seconds, 100 * some, 0.02);
}

static void test_too_small(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const struct lvp_workload workload = workload_of(&config, NULL, 1);
    const struct lvp_profile profile = even_profile();
    const struct lvp_partition_choice choice = {.mode = LVP_PARTITION_AUTO};
    struct lvp_forecast forecast, all[LVP_MAX_FORECASTS];
    int n = 0;
    make_cluster(&cluster, 1, 2, 2, 1e9);
    const struct lvp_forecast_input input = {
        .workload = &workload, .profile = &profile, .cluster = &cluster, .choice = &choice, .images = 4};
    assert_int_equal(lvp_forecast(&input, 2, 2, &forecast), LVP_ERR_USAGE);
    lvp_error_clear();
    assert_int_equal(lvp_forecast(&input, 3, 0, &forecast), LVP_ERR_USAGE);
    lvp_error_clear();
    assert_int_equal(lvp_forecast_all(&input, all, &n), LVP_OK);
    assert_int_equal(n, 2); // one stage twice, two stages once
    cluster.nodes[0].memory = 1000;
    assert_int_equal(lvp_forecast(&input, 2, 1, &forecast), LVP_OK);
    assert_false(forecast.fits);
}

// Every replica is cut alike, so the poorest node decides; a tenth of its memory is not for weights and KV.
static void test_memory(void **state)
{
    (void)state;
    const struct lvp_model_config config = test_small_model();
    const struct lvp_workload workload = workload_of(&config, NULL, 1);
    const struct lvp_profile profile = even_profile();
    const struct lvp_partition_choice choice = {.mode = LVP_PARTITION_AUTO};
    struct lvp_forecast forecast;
    make_cluster(&cluster, 2, 1, 1, 1e9);
    const struct lvp_forecast_input input = {.workload = &workload,
                                             .profile = &profile,
                                             .cluster = &cluster,
                                             .choice = &choice,
                                             .images = 4,
                                             .concurrency = 4};
    assert_int_equal(lvp_forecast(&input, 1, 2, &forecast), LVP_OK);
    int64_t needed = forecast.memory[0];
    assert_true(forecast.fits && needed > 0);
    static const struct {
        double first, second; // of what is needed; 0: no limit
        bool fits;
    } cases[] = {{0, 0, true},       {1.2, 1.2, true}, {1.2, 0, true},
                 {1.05, 1.2, false}, {0, 0.5, false},  {1.2, 1e-9, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cluster.nodes[0].memory = (int64_t)ceil(cases[i].first * (double)needed);
        cluster.nodes[1].memory = (int64_t)ceil(cases[i].second * (double)needed);
        assert_int_equal(lvp_forecast(&input, 1, 2, &forecast), LVP_OK);
        if (forecast.fits != cases[i].fits) fail_msg("%g and %g of the memory", cases[i].first, cases[i].second);
    }
}

// --- Files ---------------------------------------------------------------------------------------------------------

static char path[64];

#define TYPES "{\"lvpipe_profile\": 1, \"dtype\": \"bf16\", \"weights\": \"bf16\", \"cpu\": \"\", \"kernel_set\": \"\""
#define DEVICE(rate)                                                                                                   \
    ", \"devices\": [{\"threads\": 1, \"roof_flops\": 1e9, \"roof_read_bytes\": 1e9, \"row_flops\": "                  \
    "[{\"rows\": 1, \"flops\": 1e9}], \"prefill_attention_flops\": 1e9, \"decode_attention_bytes\": 1e9, "             \
    "\"encode_flops\": " rate "}]"

static void write_file(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_profile_file(void **state)
{
    (void)state;
    struct lvp_profile written = even_profile(), read;
    written.devices[1] = written.devices[0];
    written.devices[1].threads = 4;
    written.n_devices = 2;
    assert_int_equal(lvp_profile_write(path, &written), LVP_OK);
    assert_int_equal(lvp_profile_read(path, &read), LVP_OK);
    assert_memory_equal(&written, &read, sizeof read);
    assert_int_equal(lvp_profile_device(&read, 8).threads, 8);
    assert_true(lvp_profile_device(&read, 8).encode_flops == 2 * rate); // from 4 threads
    static const struct {
        const char *text, *field;
    } wrong[] = {
        {"{", "line 1"},
        {"{\"lvpipe_profile\": 2}", "lvpipe_profile"},
        {"{\"lvpipe_profile\": 1, \"dtype\": \"int3\", \"cpu\": \"\", \"kernel_set\": \"\"}", "dtype"},
        {"{\"lvpipe_profile\": 1, \"dtype\": \"bf16\", \"weights\": \"bf16\", \"cpu\": \"\", \"kernel_set\": \"\", "
         "\"devices\": []}",
         "devices"},
        {"{\"lvpipe_profile\": 1, \"dtype\": \"bf16\", \"weights\": \"bf16\", \"cpu\": \"\", \"kernel_set\": \"\", "
         "\"devices\": "
         "[{\"threads\": "
         "-1}]}",
         "threads"},
        {TYPES DEVICE("1e-300") "}", "encode_flops"},
        {TYPES DEVICE("1e300") "}", "encode_flops"},
        {TYPES DEVICE("1e9") ", \"lnik\": {}}", "'lnik'"},
        {TYPES DEVICE("1e9, \"encode_flop\": 1e9") "}", "'encode_flop'"},
        {TYPES DEVICE("1e9") ", \"link\": {\"bytes_per_second\": 1e9}}", "latency_seconds"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_file(wrong[i].text);
        assert_int_equal(lvp_profile_read(path, &read), LVP_ERR_USAGE);
        if (strstr(lvp_error_text(), wrong[i].field) == NULL) fail_msg("%s", lvp_error_text());
        lvp_error_clear();
    }
    (void)unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0); // nobody writes: opening it must not wait
    assert_int_equal(lvp_profile_read(path, &read), LVP_ERR_USAGE);
    lvp_error_clear();
    (void)unlink(path);
}

static void test_cluster_file(void **state)
{
    (void)state;
    write_file("{\"nodes\": [{\"count\": 2, \"devices\": 4, \"threads\": 8},"
               " {\"devices\": 4, \"threads\": 8, \"memory_bytes\": 5}],"
               " \"link\": {\"bytes_per_second\": 1e9, \"latency_seconds\": 0}}");
    assert_int_equal(lvp_cluster_read(path, &cluster), LVP_OK);
    assert_int_equal(cluster.n_nodes, 3);
    assert_int_equal(lvp_cluster_devices(&cluster), 12);
    assert_int_equal(lvp_cluster_node_of(&cluster, 3), 0);
    assert_int_equal(lvp_cluster_node_of(&cluster, 4), 1);
    assert_int_equal(lvp_cluster_node_of(&cluster, 8), 2);
    assert_int_equal(cluster.nodes[1].cores, 32);
    write_file("{\"nodes\": [{\"devices\": 1024, \"threads\": 4096}]}");
    assert_int_equal(lvp_cluster_read(path, &cluster), LVP_OK);
    static const struct {
        const char *text, *field;
    } wrong[] = {
        {"[]", "nodes"},
        {"{\"nodes\": [{\"count\": 100000}]}", "count"},
        {"{\"nodes\": [{\"threads\": 0}]}", "threads"},
        {"{\"nodes\": [{\"devices\": \"4\"}]}", "devices"},
        {"{\"nodes\": [{\"count\": 2}]}", "link"},
        {"{\"nodes\": [5]}", "nodes"},
        {"{\"nodes\": [{\"devices\": 0, \"cores\": 1}]}", "devices"},
        {"{\"nodes\": [{\"threads\": 8}, {\"threads\": 1}]}", "different kinds"},
        {"{\"nodes\": [{\"memory\": 1000}]}", "'memory'"},
        {"{\"nodes\": [{}], \"links\": {}}", "'links'"},
        {"{\"nodes\": [{\"count\": 2}], \"link\": {\"bytes_per_second\": 1e9}}", "latency_seconds"},
        {"{\"nodes\": [{}], \"local_link\": {\"bytes_per_second\": 1e9, \"latency\": 0}}", "'latency'"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        write_file(wrong[i].text);
        assert_int_equal(lvp_cluster_read(path, &cluster), LVP_ERR_USAGE);
        if (strstr(lvp_error_text(), wrong[i].field) == NULL) fail_msg("%s", lvp_error_text());
        lvp_error_clear();
    }
    (void)unlink(path);
}

int main(void)
{
    (void)snprintf(path, sizeof path, "/tmp/lvp_test_simulate_%d.json", (int)getpid());
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_device),   cmocka_unit_test(test_decode),       cmocka_unit_test(test_pipeline),
        cmocka_unit_test(test_shared_cores), cmocka_unit_test(test_slow_link),    cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_long_times),   cmocka_unit_test(test_memory),       cmocka_unit_test(test_too_small),
        cmocka_unit_test(test_profile_file), cmocka_unit_test(test_cluster_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
