// What a person reads while a run goes on.
#include "coordinator/progress.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

static void expect(uint64_t total, uint64_t resumed, uint64_t done, uint64_t failed, double seconds,
                   const char *expected)
{
    struct lvp_progress progress;
    char text[128];
    lvp_progress_start(&progress, total, resumed, true, false);
    assert_string_equal(lvp_progress_text(&progress, done, failed, seconds, text, sizeof text), expected);
}

static void test_text(void **state)
{
    (void)state;
    expect(5000, 0, 0, 0, 0, "0/5000 (0 %)");
    expect(5000, 0, 120, 3, 60, "120/5000 (2 %), 3 failed, 2 images/s, 41 min left");
    expect(5000, 0, 4999, 0, 100, "4999/5000 (99 %), 50 images/s, 0 s left");
    expect(5000, 0, 5000, 0, 100, "5000/5000 (100 %), 50 images/s");
    expect(5000, 4000, 4000, 1, 10, "4000/5000 (80 %), 1 failed"); // earlier runs' work is not speed
    expect(5000, 4000, 4010, 0, 10, "4010/5000 (80 %), 1 images/s, 16 min left");
    expect(1000000, 0, 10, 0, 10, "10/1000000 (0 %), 1 images/s, 11.6 days left");
    expect(10000, 0, 10, 0, 10, "10/10000 (0 %), 1 images/s, 2.8 h left");
    expect(0, 0, 0, 0, 0, "0/0 (100 %)");
}

static void test_small_buffer(void **state)
{
    (void)state;
    struct lvp_progress progress;
    char text[20];
    lvp_progress_start(&progress, 5000, 0, true, false);
    assert_memory_equal(lvp_progress_text(&progress, 120, 3, 60, text, sizeof text), "120/5000 (2 %), 3 f", 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_small_buffer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
