// What is known of a rank after its death: its record, who is to blame for a crash, and how crashes add up over
// restarts.
#include "common/record.h"
#include "coordinator/output/crashes.h"
#include "temp_folder.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

static const uint64_t step_samples[] = {7, 9, 9, 11}, blamed_samples[] = {7, 9, 11}; // two prompts of one

static void *decode_and_crash(void *sample)
{
    lvp_record_image_thread(3);
    lvp_record_work("decoding an image", sample, 1);
    (void)raise(SIGBUS);
    return NULL;
}

static void *crash(void *argument)
{
    (void)raise(SIGSEGV);
    return argument;
}

// Uses up the stack.
static int overflow(int n)
{
    volatile char room[4096];
    room[0] = (char)n;
    return n < 1 << 24 ? overflow(n + 1) + room[0] : 0;
}

// A rank with a step under way that ends as `how` says.
static void live_and_die(int rank, const char *how)
{
    pid_t child = fork();
    if (child == 0) {
        static uint64_t image_sample = 5;
        pthread_t thread;
        const struct rlimit no_core = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &no_core);
        lvp_record_start();
        if (!lvp_record_open(temp_folder, (struct lvp_record_place){rank, 4, 0, rank - 1, 3})) _exit(1);
        lvp_record_phase(LVP_PHASE_RUNNING);
        lvp_record_step(57);
        lvp_record_beat();
        lvp_record_compute_thread();
        lvp_record_work("computing a step", step_samples, 4);
        if (strcmp(how, "compute") == 0) (void)raise(SIGSEGV);
        if (strcmp(how, "image") == 0) {
            if (pthread_create(&thread, NULL, decode_and_crash, &image_sample) == 0) pthread_join(thread, NULL);
        }
        if (strcmp(how, "blameless") == 0) {
            lvp_record_start(); // as a thread that works on no sample
            if (pthread_create(&thread, NULL, crash, NULL) == 0) pthread_join(thread, NULL);
        }
        if (strcmp(how, "overflow") == 0) (void)overflow(1);
        if (strcmp(how, "killed") == 0) {
            lvp_record_write(); // as the guard does every second
            (void)raise(SIGKILL);
        }
        if (strcmp(how, "alone with 5") == 0) lvp_record_alone(true, 5);
        if (strcmp(how, "idle") == 0) {
            lvp_record_work(NULL, NULL, 0);
            (void)raise(SIGFPE);
        }
        lvp_record_end(143, SIGTERM);
        lvp_record_write();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
}

static void test_faults(void **state)
{
    (void)state;
    struct lvp_record_view view;
    live_and_die(2, "compute");
    assert_true(lvp_record_read(temp_folder, 2, &view));
    assert_int_equal(view.fault, SIGSEGV);
    assert_int_equal(view.n_samples, 3);
    assert_memory_equal(view.samples, blamed_samples, sizeof blamed_samples);
    char text[300], expected[300], host[128] = "";
    (void)gethostname(host, sizeof host - 1);
    lvp_record_describe(&view, text, sizeof text);
    (void)snprintf(
        expected, sizeof expected,
        "rank 2 (%s, stage 1 of 3): crashed (Segmentation fault) while computing a step; its last step was 57", host);
    assert_string_equal(text, expected);

    live_and_die(1, "image"); // the thread's own sample, not those of the step
    assert_true(lvp_record_read(temp_folder, 1, &view));
    assert_int_equal(view.fault, SIGBUS);
    assert_int_equal(view.n_samples, 1);
    assert_int_equal(view.samples[0], 5);

    live_and_die(1, "blameless");
    assert_true(lvp_record_read(temp_folder, 1, &view));
    assert_int_equal(view.fault, SIGSEGV);
    assert_int_equal(view.n_samples, 0);
    live_and_die(1, "overflow"); // the handler has a stack of its own
    assert_true(lvp_record_read(temp_folder, 1, &view));
    assert_int_equal(view.fault, SIGSEGV);
    assert_int_equal(view.n_samples, 3);
    live_and_die(1, "idle");
    assert_true(lvp_record_read(temp_folder, 1, &view));
    assert_int_equal(view.n_samples, 0);
    live_and_die(1, "killed");
    assert_true(lvp_record_read(temp_folder, 1, &view));
    assert_int_equal(view.fault, 0);
    assert_int_equal(view.phase, LVP_PHASE_RUNNING);
    assert_int_equal(view.step, 57);
}

static void test_who_was_lost(void **state)
{
    (void)state;
    struct lvp_record_view lost;
    live_and_die(0, "ended");
    live_and_die(3, "ended");
    assert_int_equal(lvp_record_find_lost(temp_folder, 0, &lost), -1);
    live_and_die(2, "killed");
    assert_int_equal(lvp_record_find_lost(temp_folder, 0, &lost), 2);
    live_and_die(3, "compute"); // a fault says more than silence
    assert_int_equal(lvp_record_find_lost(temp_folder, 0, &lost), 3);
    assert_int_equal(lvp_record_find_lost(temp_folder, lost.started_ms + 1000, &lost), -1); // of an earlier world
    assert_int_equal(lvp_record_find_lost("/nowhere", 0, &lost), -1);
}

static struct lvp_crashes collect(void)
{
    struct lvp_crashes crashes = {0};
    if (lvp_crashes_collect(temp_folder) != LVP_OK || lvp_crashes_read(temp_folder, &crashes) != LVP_OK)
        fail_msg("%s", lvp_error_text());
    return crashes;
}

static void expect_crashes(int of_5, int of_9, int of_12, bool alone)
{
    struct lvp_crashes crashes = collect();
    assert_int_equal(lvp_crashes_of(&crashes, 5).n, of_5);
    assert_int_equal(lvp_crashes_of(&crashes, 9).n, of_9);
    assert_int_equal(lvp_crashes_of(&crashes, 12).n, of_12);
    assert_int_equal(lvp_crashes_of(&crashes, 5).alone, alone);
    assert_false(lvp_crashes_of(&crashes, 9).alone);
    lvp_crashes_free(&crashes);
}

static void test_crashes_add_up(void **state)
{
    (void)state;
    expect_crashes(0, 0, 0, false);
    live_and_die(1, "image");
    live_and_die(2, "compute"); // two prompts of sample 9: one crash
    expect_crashes(1, 1, 0, false);
    expect_crashes(1, 1, 0, false);
    live_and_die(1, "image");
    live_and_die(2, "killed"); // says nothing about samples
    expect_crashes(2, 1, 0, false);
    live_and_die(1, "image");
    live_and_die(0, "alone with 5");
    expect_crashes(3, 1, 0, true);
    struct lvp_crashes crashes = collect();
    struct lvp_crash_count count = lvp_crashes_of(&crashes, 5);
    assert_int_equal(lvp_crashes_forgive(temp_folder, &count), LVP_OK);
    lvp_crashes_free(&crashes);
    expect_crashes(3, 1, 0, false);
    FILE *file = fopen(temp_path(".lvpipe/crashes.jsonl"), "a");
    (void)fputs(
        "{\"sample\":9,\"alone\":false,\"life\":\"2-1-1\"}\n{\"sample\":9,\"alone\":false,\"life\":\"2-1-1\"}\n",
        file);                                  // a kill between two appends of one crash
    (void)fputs("{\"sample\":9,\"crash", file); // torn
    (void)fclose(file);
    expect_crashes(3, 2, 0, false);
}

static void test_records_that_are_none(void **state)
{
    (void)state;
    struct lvp_record_view view;
    temp_write(".lvpipe/rank-1", "short");
    assert_false(lvp_record_read(temp_folder, 1, &view));
    char *page = calloc(1, 1 << 14);
    memset(page, 0xff, 1 << 14);
    temp_write_bytes(".lvpipe/rank-1", page, 1 << 14);
    assert_false(lvp_record_read(temp_folder, 1, &view));
    memcpy(page, "lvprec2", 8);
    memcpy(page + 8, (int64_t[]){1}, 8);
    temp_write_bytes(".lvpipe/rank-1", page, 1 << 14); // every field out of range
    if (lvp_record_read(temp_folder, 1, &view)) {
        char text[300];
        lvp_record_describe(&view, text, sizeof text);
        assert_int_equal(view.n_samples, 0);
    }
    free(page);
}

static int set_up(void **state)
{
    return temp_folder_make(state) != 0 || mkdir(temp_path(".lvpipe"), 0755) != 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, temp_folder_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_faults), TEST(test_who_was_lost), TEST(test_crashes_add_up),
                                       TEST(test_records_that_are_none)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
