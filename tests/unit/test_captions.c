// The output folder: rows byte for byte, order, and above all that a run killed anywhere goes on to the same bytes.
#include "coordinator/input/manifest.h"
#include "coordinator/output/captions.h"
#include "coordinator/output/identity.h"
#include "coordinator/output/output_folder.h"
#include "temp_folder.h"

#include "common/log.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

enum { N = 23 };

static struct lvp_manifest *manifest;
static struct lvp_requests requests;
static json_t *identity;

static void open_input(int64_t limit)
{
    lvp_manifest_close(manifest);
    assert_int_equal(
        lvp_manifest_open(temp_path("in.jsonl"), &(struct lvp_manifest_options){.limit = limit}, &manifest), LVP_OK);
    requests = (struct lvp_requests){.manifest = manifest};
}

static int set_up(void **state)
{
    if (temp_folder_make(state) != 0) return 1;
    FILE *file = fopen(temp_path("in.jsonl"), "w");
    for (int i = 0; i < N; i++)
        (void)fprintf(file, "{\"image\":\"%d.jpg\",\"id\":\"id \\\"%d\\\"\",\"prompt\":\"p%d\"}\n", i, i, i);
    (void)fclose(file);
    open_input(-1);
    identity = json_pack("{s:s, s:s}", "keep", "0.5", LVP_NUMERIC_PATH, "cpu avx2 bf16");
    return 0;
}

static int tear_down(void **state)
{
    lvp_manifest_close(manifest);
    manifest = NULL;
    json_decref(identity);
    lvp_error_clear();
    return temp_folder_remove(state);
}

static struct lvp_captions_options options_for(const char *name)
{
    static char dirs[8][128];
    static int next;
    char *dir = dirs[next++ % 8];
    (void)snprintf(dir, sizeof dirs[0], "%s/%s", temp_folder, name);
    return (struct lvp_captions_options){.dir = dir, .requests = &requests, .identity = identity, .window = 8};
}

// An output that is open, with the lock of its folder.
static struct lvp_lock *lock;

static enum lvp_status open_output(const struct lvp_captions_options *options, struct lvp_captions **captions)
{
    struct lvp_lock *taken = NULL;
    *captions = NULL;
    enum lvp_status status = lvp_lock_take(options->dir, &(struct lvp_tick){0}, &taken);
    if (status == LVP_OK) status = lvp_captions_open(options, taken, captions);
    if (status != LVP_OK)
        lvp_lock_release(taken);
    else
        lock = taken;
    return status;
}

static enum lvp_status close_output(struct lvp_captions *captions)
{
    enum lvp_status status = lvp_captions_close(captions);
    lvp_lock_release(lock);
    lock = NULL;
    return status;
}

static struct lvp_captions *open_ok(const struct lvp_captions_options *options)
{
    struct lvp_captions *captions = NULL;
    if (open_output(options, &captions) != LVP_OK) fail_msg("%s", lvp_error_text());
    return captions;
}

static void expect_refused(const struct lvp_captions_options *options, const char *part)
{
    struct lvp_captions *captions = NULL;
    assert_int_equal(open_output(options, &captions), LVP_ERR_USAGE);
    if (strstr(lvp_error_text(), part) == NULL) fail_msg("%s", lvp_error_text());
    lvp_error_clear();
}

// The answer of request i is a function of i; every fifth fails while `broken`.
static enum lvp_status finish(struct lvp_captions *captions, uint64_t i, bool broken)
{
    struct lvp_request request;
    struct lvp_cursor cursor = {0};
    assert_int_equal(lvp_request_load(&requests, &cursor, i, &request), LVP_OK);
    lvp_cursor_close(&cursor);
    enum lvp_status status;
    if (broken && i % 5 == 2) {
        struct lvp_sample_error error = {0};
        lvp_sample_error_set(&error, LVP_SAMPLE_FILE_MISSING, "no file %d", (int)i);
        status = lvp_captions_add_error(captions, i, &request, &error, 1);
    } else {
        char text[32];
        (void)snprintf(text, sizeof text, "caption\n%d", (int)i);
        const int32_t ids[] = {(int32_t)i, 2};
        const float logprobs[] = {-0.5F / (float)(i + 1), -1e-7F};
        const int vision[] = {576, 288, 173, 58};
        status = lvp_captions_add(captions, i, &request,
                                  &(struct lvp_caption){.caption = text,
                                                        .caption_bytes = strlen(text),
                                                        .stopped = i % 2 == 0,
                                                        .token_ids = ids,
                                                        .logprobs = logprobs,
                                                        .n_tokens = 2,
                                                        .prompt_tokens = 606,
                                                        .vision_tokens = vision,
                                                        .n_images = 1,
                                                        .n_counts = 4});
    }
    lvp_request_free(&request);
    return status;
}

// Finishes up to `most` requests, out of order: the second of each pair first.
static void work(struct lvp_captions *captions, int most, bool broken)
{
    uint64_t total = lvp_captions_counts(captions).total;
    for (uint64_t i = lvp_captions_next(captions, 0); i < total && most > 0;) {
        uint64_t second = lvp_captions_next(captions, i + 1);
        if (second < total && lvp_captions_accepts(captions, second) && most-- > 0)
            assert_int_equal(finish(captions, second, broken), LVP_OK);
        if (most-- > 0) assert_int_equal(finish(captions, i, broken), LVP_OK);
        i = lvp_captions_next(captions, second + 1);
    }
}

static void run_to_end(const struct lvp_captions_options *options, bool broken)
{
    struct lvp_captions *captions = open_ok(options);
    work(captions, 1000, broken);
    struct lvp_captions_counts counts = lvp_captions_counts(captions);
    assert_int_equal(counts.captions + counts.failed, counts.total);
    assert_int_equal(close_output(captions), LVP_OK);
}

static void expect_same(const char *a, const char *b)
{
    char *first = temp_read(a, NULL), *second = temp_read(b, NULL);
    assert_non_null(first);
    assert_non_null(second);
    assert_string_equal(first, second);
    free(first);
    free(second);
}

static void expect_same_run(const char *a, const char *b)
{
    char first[64], second[64];
    const char *const names[] = {LVP_CAPTIONS_FILE, LVP_ERRORS_FILE};
    for (int i = 0; i < 2; i++) {
        (void)snprintf(first, sizeof first, "%s/%s", a, names[i]);
        (void)snprintf(second, sizeof second, "%s/%s", b, names[i]);
        expect_same(first, second);
    }
}

static void test_rows(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    run_to_end(&options, true);
    char *text = temp_read("out/captions.jsonl", NULL);
    const char first[] =
        "{\"id\":\"id "
        "\\\"0\\\"\",\"image\":\"0.jpg\",\"prompt\":\"p0\",\"caption\":\"caption\\n0\",\"finish_reason\":\"stop\","
        "\"token_ids\":[0,2],\"prompt_tokens\":606,\"vision_tokens\":[[576,288,173,58]],"
        "\"logprobs\":[-0.5,-1.00000001e-07]}\n{\"id\":\"id \\\"1\\\"\",";
    assert_memory_equal(text, first, strlen(first));
    free(text);
    text = temp_read("out/errors.jsonl", NULL);
    const char error[] = "{\"id\":\"id \\\"2\\\"\",\"image\":\"2.jpg\",\"error\":\"file_missing\",\"message\":\"no "
                         "file 2\",\"attempts\":1}\n";
    assert_memory_equal(text, error, strlen(error));
    free(text);
    // Every row is JSON, and in input order.
    FILE *file = fopen(temp_path("out/captions.jsonl"), "r");
    int previous = -1, n = 0;
    for (json_t *row; (row = json_loadf(file, JSON_DISABLE_EOF_CHECK, NULL)) != NULL; n++) {
        int i = (int)json_integer_value(json_array_get(json_object_get(row, "token_ids"), 0));
        assert_true(i > previous);
        previous = i;
        json_decref(row);
    }
    (void)fclose(file);
    assert_int_equal(n, N - 5); // 2, 7, 12, 17 and 22 fail
}

// What a kill or a power cut leaves of each file independently: any prefix, or zeros at the end.
static void test_torn_files(void **state)
{
    (void)state;
    struct lvp_captions_options whole = options_for("whole"), torn;
    run_to_end(&whole, true);
    size_t n_captions = 0, n_errors = 0;
    char *captions = temp_read("whole/captions.jsonl", &n_captions),
         *errors = temp_read("whole/errors.jsonl", &n_errors);
    torn = options_for("torn");
    run_to_end(&torn, true); // makes the identity
    for (size_t a = 0; a <= n_captions; a += 197) {
        for (size_t b = 0; b <= n_errors; b += 131) {
            temp_write_bytes("torn/captions.jsonl", captions, a);
            temp_write_bytes("torn/errors.jsonl", errors, b);
            torn = options_for("torn");
            run_to_end(&torn, true);
            expect_same_run("whole", "torn");
        }
    }
    memset(captions + 1000, 0, 300);
    temp_write_bytes("torn/captions.jsonl", captions, 1300);
    torn = options_for("torn");
    run_to_end(&torn, true);
    expect_same_run("whole", "torn");
    free(captions);
    free(errors);
}

// Runs in a process that is killed after `most` results, with whatever it had written.
static void run_and_die(const struct lvp_captions_options *options, int most, bool broken)
{
    pid_t child = fork();
    if (child == 0) {
        struct lvp_captions *captions = NULL;
        if (open_output(options, &captions) != LVP_OK) _exit(1);
        work(captions, most, broken);
        if (most % 2 == 0 && lvp_writer_flush(lvp_captions_writer(captions)) != LVP_OK) _exit(1); // all that could be
        (void)raise(SIGKILL);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
}

static void test_killed_runs(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("whole");
    run_to_end(&options, true);
    for (int most = 0; most <= N; most += 3) {
        options = options_for("killed");
        options.overwrite = true;
        run_and_die(&options, most, true);
        options.overwrite = false;
        run_and_die(&options, 4, true);
        run_to_end(&options, true);
        expect_same_run("whole", "killed");
    }
}

static void test_retry_failed(void **state)
{
    (void)state;
    struct lvp_captions_options good = options_for("good"), options;
    run_to_end(&good, false); // nothing fails
    for (int most = 0; most <= 6; most++) {
        options = options_for("retried");
        options.overwrite = true;
        run_to_end(&options, true);
        options.overwrite = false;
        run_to_end(&options, false); // a plain resume has nothing to do
        char *errors = temp_read("retried/errors.jsonl", NULL);
        assert_int_not_equal(strlen(errors), 0);
        free(errors);
        options.retry_failed = true;
        run_and_die(&options, most, false);
        run_and_die(&options, 2, false);
        struct lvp_captions *captions = open_ok(&options);
        for (uint64_t i = lvp_captions_next(captions, 0); i < N; i = lvp_captions_next(captions, i + 1)) {
            assert_int_equal(i % 5, 2); // only the failed ones
            assert_int_equal(finish(captions, i, false), LVP_OK);
        }
        assert_int_equal(lvp_captions_counts(captions).captions, N);
        assert_int_equal(lvp_captions_counts(captions).failed, 0);
        assert_int_equal(close_output(captions), LVP_OK);
        expect_same_run("good", "retried");
        assert_int_equal(access(temp_path("retried/captions.jsonl.new"), F_OK), -1);
        assert_int_equal(access(temp_path("retried/errors.jsonl.new"), F_OK), -1);
    }
}

static void test_retry_of_an_unfinished_run(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("good");
    run_to_end(&options, false);
    options = options_for("part");
    run_and_die(&options, 14, true);
    options.retry_failed = true;
    run_and_die(&options, 1, false); // the merge is not complete
    options.retry_failed = false;
    run_and_die(&options, 2, true); // drops the merge, goes on where the run was
    options.retry_failed = true;
    run_to_end(&options, false);
    expect_same_run("good", "part");
}

static void test_killed_between_the_renames(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("good");
    run_to_end(&options, false);
    options = options_for("out");
    run_to_end(&options, true);
    // captions is renamed already, errors is not.
    char *captions = temp_read("good/captions.jsonl", NULL);
    temp_write("out/captions.jsonl", captions);
    temp_write("out/errors.jsonl.new", "");
    free(captions);
    run_to_end(&options, true);
    expect_same_run("good", "out");
}

static void test_identity(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    run_to_end(&options, true);
    (void)json_object_set_new(identity, "keep", json_string("0.6"));
    expect_refused(&options, "keep \"0.5\", not \"0.6\"");
    (void)json_object_set_new(identity, "keep", json_string("0.5"));
    (void)json_object_set_new(identity, "seed", json_integer(1));
    expect_refused(&options, "seed absent, not 1");
    (void)json_object_del(identity, "seed");
    (void)json_object_set_new(identity, LVP_NUMERIC_PATH, json_string("cpu avx512 bf16"));
    expect_refused(&options, LVP_NUMERIC_PATH);
    options.allow_mixed_numerics = true;
    struct lvp_captions *captions = open_ok(&options);
    assert_true(lvp_captions_mixed_numerics(captions));
    assert_int_equal(close_output(captions), LVP_OK);
    (void)json_object_set_new(identity, LVP_NUMERIC_PATH, json_string("cpu avx2 bf16"));
    options.allow_mixed_numerics = false;
    captions = open_ok(&options);
    assert_true(lvp_captions_mixed_numerics(captions)); // it stays marked
    assert_int_equal(close_output(captions), LVP_OK);

    requests.prompts = (const char *const[]){"other"};
    requests.n_prompts = 1;
    expect_refused(&options, "number 1, now \"id \"0\"\"");
}

static void test_other_requests(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    run_to_end(&options, true);
    FILE *file = fopen(temp_path("in.jsonl"), "r+");
    char line[128];
    for (int i = 0; i < 20; i++) assert_non_null(fgets(line, sizeof line, file));
    long end = ftell(file);
    (void)fseek(file, end - 4, SEEK_SET);
    (void)fputc('X', file); // the prompt of the twentieth
    (void)fclose(file);
    open_input(-1);
    expect_refused(&options, "number 20");
    expect_refused(&options, "19");
    options.overwrite = true;
    run_to_end(&options, true);
}

static void test_limit_grows(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("whole");
    run_to_end(&options, true);
    options = options_for("out");
    const int64_t limits[] = {0, 3, 10, -1};
    for (int i = 0; i < 4; i++) {
        open_input(limits[i]);
        run_to_end(&options, true);
    }
    expect_same_run("whole", "out");
    open_input(10);
    expect_refused(&options, "may grow, not shrink");
}

static void test_refusals(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    struct lvp_captions *captions = open_ok(&options);
    expect_refused(&options, "another run is writing there (process ");
    assert_int_equal(close_output(captions), LVP_OK);
    captions = open_ok(&options);                                   // the lock is gone
    assert_int_equal(finish(captions, 20, true), LVP_ERR_INTERNAL); // outside the window of 8
    lvp_error_clear();
    assert_int_equal(finish(captions, 3, true), LVP_OK);
    assert_int_equal(finish(captions, 3, true), LVP_ERR_INTERNAL);
    lvp_error_clear();
    assert_false(lvp_captions_accepts(captions, 8));
    assert_true(lvp_captions_accepts(captions, 7));
    assert_int_equal(close_output(captions), LVP_OK);

    options = options_for("in.jsonl/out");
    expect_refused(&options, "cannot be");
    options = options_for("in.jsonl");
    expect_refused(&options, "cannot be");
    assert_int_equal(mkdir(temp_path("foreign"), 0755), 0);
    temp_write("foreign/captions.jsonl", "{}\n");
    options = options_for("foreign");
    expect_refused(&options, "no identity.json");
    char *kept = temp_read("foreign/captions.jsonl", NULL);
    assert_string_equal(kept, "{}\n");
    free(kept);
}

static void test_disk_full(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    struct lvp_captions *captions = open_ok(&options);
    (void)signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 1000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (uint64_t i = 0; i < N; i++) assert_int_equal(finish(captions, i, true), LVP_OK);
    enum lvp_status status = close_output(captions);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(status, LVP_ERR_IO);
    lvp_error_clear();
    run_to_end(&options, true);
    options = options_for("whole");
    run_to_end(&options, true);
    expect_same_run("whole", "out");
}

static void test_rows_reach_the_disk(void **state)
{
    (void)state;
    struct lvp_captions_options options = options_for("out");
    struct lvp_captions *captions = open_ok(&options);
    assert_int_equal(finish(captions, 1, true), LVP_OK); // waits for request 0
    assert_int_equal(finish(captions, 0, true), LVP_OK);
    (void)usleep(1900000);
    assert_int_equal(lvp_captions_tick(captions), LVP_OK);
    char *text = temp_read("out/captions.jsonl", NULL);
    assert_non_null(strstr(text, "id \\\"1\\\""));
    free(text);
    assert_int_equal(close_output(captions), LVP_OK);
}

static void test_run_json(void **state)
{
    (void)state;
    json_t *run = json_pack("{s:i}", "images", 3), *read;
    assert_int_equal(lvp_output_write_json(temp_folder, "run.json", run), LVP_OK);
    read = json_load_file(temp_path("run.json"), 0, NULL);
    assert_true(json_equal(run, read));
    assert_int_equal(access(temp_path("run.json.tmp"), F_OK), -1);
    json_decref(read);
    assert_int_equal(lvp_output_write_json("/nowhere/at/all", "run.json", run), LVP_ERR_IO);
    json_decref(run);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_rows),
        TEST(test_torn_files),
        TEST(test_killed_runs),
        TEST(test_retry_failed),
        TEST(test_retry_of_an_unfinished_run),
        TEST(test_killed_between_the_renames),
        TEST(test_identity),
        TEST(test_other_requests),
        TEST(test_limit_grows),
        TEST(test_refusals),
        TEST(test_disk_full),
        TEST(test_rows_reach_the_disk),
        TEST(test_run_json),
    };
    lvp_log_init(LVP_LOG_ERROR, ""); // the repairs are expected
    return cmocka_run_group_tests(tests, NULL, NULL);
}
