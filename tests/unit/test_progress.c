// What a person reads while a run goes on, and what programs do.
#include "coordinator/output/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct lvp_snapshot look(uint64_t total, uint64_t resumed, uint64_t done, uint64_t failed, int64_t tokens,
                                double seconds)
{
    return (struct lvp_snapshot){
        .counts = {.total = total, .captions = done - failed, .failed = failed, .resumed = resumed},
        .gauges = {.preparing = 2,
                   .waiting = 6,
                   .running = 18,
                   .generated_tokens = tokens,
                   .images = done > resumed ? (int64_t)(done - resumed) : 0},
        .seconds = seconds};
}

static void expect(struct lvp_snapshot snapshot, const char *expected)
{
    char text[128];
    assert_string_equal(lvp_progress_text(&snapshot, text, sizeof text), expected);
}

static void test_text(void **state)
{
    (void)state;
    expect(look(5000, 0, 0, 0, 0, 0), "0/5000 (0 %)");
    expect(look(5000, 0, 120, 3, 0, 60), "120/5000 (2 %), 3 failed, 2 images/s, 41 min left");
    expect(look(5000, 0, 120, 0, 1200, 60), "120/5000 (2 %), 2 images/s, 20 tokens/s, 41 min left");
    expect(look(5000, 0, 4999, 0, 0, 100), "4999/5000 (99 %), 50 images/s, 0 s left");
    expect(look(5000, 0, 5000, 0, 0, 100), "5000/5000 (100 %), 50 images/s");
    expect(look(5000, 4000, 4000, 1, 0, 10), "4000/5000 (80 %), 1 failed"); // earlier runs' work is not speed
    expect(look(5000, 4000, 4010, 0, 0, 10), "4010/5000 (80 %), 1 images/s, 16 min left");
    expect(look(1000000, 0, 10, 0, 0, 10), "10/1000000 (0 %), 1 images/s, 11.6 days left");
    expect(look(10000, 0, 10, 0, 0, 10), "10/10000 (0 %), 1 images/s, 2.8 h left");
    expect(look(0, 0, 0, 0, 0, 0), "0/0 (100 %)");
}

static void test_small_buffer(void **state)
{
    (void)state;
    char text[20];
    struct lvp_snapshot snapshot = look(5000, 0, 120, 3, 0, 60);
    assert_memory_equal(lvp_progress_text(&snapshot, text, sizeof text), "120/5000 (2 %), 3 f", 20);
}

static void test_bar(void **state)
{
    (void)state;
    char lines[LVP_BAR_LINES][LVP_BAR_WIDTH];
    struct lvp_snapshot snapshot = look(5000, 0, 2500, 3, 1200, 60);
    lvp_progress_bar(&snapshot, 70, lines);
    assert_string_equal(lines[0], "done [#################.................] 2500/5000 (50 %)");
    assert_string_equal(lines[1], "prepared [##........] 6   in flight [#######...] 18   failed 3");
    assert_string_equal(lines[2], "41.7 images/s, 20 tokens/s, 60 s left");
    for (int width = 0; width < 300; width++) { // any terminal
        lvp_progress_bar(&snapshot, width, lines);
        for (int l = 0; l < LVP_BAR_LINES; l++) assert_true(strlen(lines[l]) <= (size_t)width);
    }
}

static void test_status(void **state)
{
    (void)state;
    struct lvp_json_text text = {0};
    struct lvp_snapshot snapshot = look(5000, 0, 120, 3, 1200, 60);
    lvp_snapshot_status(&snapshot, "failed", "disk \"full\"", &text);
    json_t *json = json_loads(text.data, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(json, "state")), "failed");
    assert_string_equal(json_string_value(json_object_get(json, "error")), "disk \"full\"");
    assert_int_equal(json_integer_value(json_object_get(json, "done")), 120);
    assert_int_equal(json_integer_value(json_object_get(json, "in_flight")), 18);
    assert_int_equal(json_integer_value(json_object_get(json, "seconds_left")), 2440);
    assert_true(json_real_value(json_object_get(json, "heartbeat")) > 1.6e9);
    json_decref(json);
    lvp_json_text_free(&text);
}

static void test_metrics(void **state)
{
    (void)state;
    struct lvp_json_text text = {0};
    struct lvp_snapshot snapshot = look(5000, 0, 120, 3, 1200, 60);
    lvp_snapshot_metrics(&snapshot, &text);
    assert_non_null(strstr(text.data, "\n# TYPE lvpipe_captions_total counter\nlvpipe_captions_total 117\n"));
    assert_non_null(strstr(text.data, "lvpipe_failed_total 3\n"));
    for (char *line = strtok(text.data, "\n"); line != NULL; line = strtok(NULL, "\n")) { // the format, line by line
        char name[64];
        double value;
        assert_true(line[0] == '#' || sscanf(line, "%63[a-z_] %lf", name, &value) == 2);
    }
    lvp_json_text_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_small_buffer),
                                       cmocka_unit_test(test_bar), cmocka_unit_test(test_status),
                                       cmocka_unit_test(test_metrics)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
