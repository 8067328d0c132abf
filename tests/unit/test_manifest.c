// Which samples an input gives, in which order and under which ids, and how prompts are filled from their columns.
#include "coordinator/input/manifest.h"
#include "coordinator/input/survey.h"
#include "temp_folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

static const struct lvp_manifest_options all = {.limit = -1};

static struct lvp_manifest *open_ok(const char *name, const struct lvp_manifest_options *options)
{
    struct lvp_manifest *manifest = NULL;
    enum lvp_status status = lvp_manifest_open(name[0] == '/' ? name : temp_path(name), options, &manifest);
    if (status != LVP_OK) fail_msg("%s", lvp_error_text());
    return manifest;
}

// What lvp_manifest_open says, or lvp_survey.
static enum lvp_status open_and_survey(const char *name)
{
    struct lvp_manifest *manifest = NULL;
    LVP_TRY(lvp_manifest_open(temp_path(name), &all, &manifest));
    const struct lvp_requests requests = {.manifest = manifest};
    const struct lvp_survey survey = {.requests = &requests, .threads = 3};
    enum lvp_status status = lvp_survey(&survey);
    lvp_manifest_close(manifest);
    return status;
}

static void expect_usage(const char *name, const char *part, const char *other_part)
{
    assert_int_equal(open_and_survey(name), LVP_ERR_USAGE);
    if (strstr(lvp_error_text(), part) == NULL || strstr(lvp_error_text(), other_part) == NULL)
        fail_msg("%s", lvp_error_text());
    lvp_error_clear();
}

static enum lvp_status load(const struct lvp_manifest *manifest, uint64_t i, struct lvp_sample *sample)
{
    struct lvp_cursor cursor = {0};
    enum lvp_status status = lvp_manifest_sample(manifest, &cursor, i, sample);
    lvp_cursor_close(&cursor);
    return status;
}

static void expect_ids(struct lvp_manifest *manifest, const char *const *ids, size_t n)
{
    assert_int_equal(lvp_manifest_count(manifest), n);
    for (size_t i = 0; i < n; i++) {
        struct lvp_sample sample;
        assert_int_equal(load(manifest, i, &sample), LVP_OK);
        assert_string_equal(sample.id, ids[i]);
        lvp_sample_free(&sample);
    }
}
#define EXPECT_IDS(manifest, ...)                                                                                      \
    expect_ids(manifest, (const char *const[]){__VA_ARGS__},                                                           \
               sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

static void test_folder(void **state)
{
    (void)state;
    assert_int_equal(mkdir(temp_path("b"), 0755), 0);
    assert_int_equal(mkdir(temp_path("b/deep"), 0755), 0);
    assert_int_equal(mkdir(temp_path("empty.png"), 0755), 0);
    const char *const names[] = {"b.jpg",    "a.JPEG",  "Z.png",    "b/deep/x.webp", "b/1.jpg",
                                 "b/10.jpg", "b/2.jpg", "note.txt", "c.gif",         ".png"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) temp_write(names[i], "x");
    temp_write("\xff\xc3\xa9.jpg", "x");                            // a byte that is no UTF-8, then one that is
    assert_int_equal(symlink("..", temp_path("b/up")), 0);          // a cycle
    assert_int_equal(symlink("b/1.jpg", temp_path("link.jpg")), 0); // a file
    assert_int_equal(symlink("gone", temp_path("dangling.png")), 0);
    assert_int_equal(mkfifo(temp_path("pipe.jpg"), 0600), 0);
    struct lvp_manifest *manifest = open_ok(temp_folder, &all);
    EXPECT_IDS(manifest, "Z.png", "a.JPEG", "b.jpg", "b/1.jpg", "b/10.jpg", "b/2.jpg", "b/deep/x.webp", "dangling.png",
               "link.jpg", "\\xff\xc3\xa9.jpg");
    struct lvp_sample sample;
    assert_int_equal(load(manifest, 9, &sample), LVP_OK);
    assert_int_equal(access(sample.places[0].path, F_OK), 0); // the path keeps the file system's bytes
    assert_string_equal(sample.images[0], sample.id);
    assert_false(sample.image_list);
    assert_null(sample.prompt);
    lvp_sample_free(&sample);
    lvp_manifest_close(manifest);
    expect_usage("empty.png", "no .jpg", "empty.png");
    manifest = open_ok("b/deep/x.webp", &all); // a single image
    EXPECT_IDS(manifest, "x.webp");
    lvp_manifest_close(manifest);
}

static void test_shard_and_limit(void **state)
{
    (void)state;
    temp_write("m.jsonl",
               "{\"image\":\"0\"}\n{\"image\":\"1\"}\n{\"image\":\"2\"}\n{\"image\":\"3\"}\n{\"image\":\"4\"}\n");
    struct lvp_manifest *manifest =
        open_ok("m.jsonl", &(struct lvp_manifest_options){.limit = -1, .shard = 1, .n_shards = 2});
    EXPECT_IDS(manifest, "1", "3");
    lvp_manifest_close(manifest);
    manifest = open_ok("m.jsonl", &(struct lvp_manifest_options){.limit = 2, .shard = 0, .n_shards = 2});
    EXPECT_IDS(manifest, "0", "2");
    lvp_manifest_close(manifest);
    manifest = open_ok("m.jsonl", &(struct lvp_manifest_options){.limit = 0});
    assert_int_equal(lvp_manifest_count(manifest), 0);
    lvp_manifest_close(manifest);
    manifest = open_ok("m.jsonl", &(struct lvp_manifest_options){.limit = -1, .shard = 7, .n_shards = 8});
    assert_int_equal(lvp_manifest_count(manifest), 0);
    lvp_manifest_close(manifest);

    int shard, n_shards;
    assert_int_equal(lvp_shard_parse("3/4", &shard, &n_shards), LVP_OK);
    assert_int_equal(shard, 3);
    const char *const bad[] = {"4/4", "-1/4", "1", "1/", "/2", "1/2x", "0/0", "", " 1/2"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(lvp_shard_parse(bad[i], &shard, &n_shards), LVP_ERR_USAGE);
        lvp_error_clear();
    }
}

static void test_jsonl(void **state)
{
    (void)state;
    temp_write("m.jsonl", "\xef\xbb\xbf{\"image\":\"a.jpg\",\"id\":\"one\",\"prompt\":\"What?\"}\r\n"
                          "\n  \n"
                          "{\"image\":[\"b.jpg\",\"/abs/c.jpg\"],\"id\":42}\n"
                          "not json\n"
                          "[1]\n"
                          "{\"id\":\"x\"}\n"
                          "{\"image\":[]}\n"
                          "{\"image\":\"e\\u0000.jpg\"}\n"
                          "{\"image\":\"\xff.jpg\"}\n"
                          "{\"image\":\"d.jpg\",\"prompt\":7}\n"
                          "{\"image\":\"sub/d.jpg\"}"); // no newline
    struct lvp_manifest *manifest = open_ok("m.jsonl", &all);
    EXPECT_IDS(manifest, "one", "42", "line-5", "line-6", "line-7", "line-8", "line-9", "line-10", "d.jpg",
               "sub/d.jpg");
    struct lvp_sample sample;
    assert_int_equal(load(manifest, 0, &sample), LVP_OK);
    assert_string_equal(sample.prompt, "What?");
    assert_string_equal(sample.places[0].path, temp_path("a.jpg"));
    lvp_sample_free(&sample);
    assert_int_equal(load(manifest, 1, &sample), LVP_OK);
    assert_int_equal(sample.n_images, 2);
    assert_true(sample.image_list);
    assert_string_equal(sample.places[1].path, "/abs/c.jpg");
    lvp_sample_free(&sample);
    for (uint64_t i = 2; i <= 7; i++) {
        assert_int_equal(load(manifest, i, &sample), LVP_OK);
        assert_int_equal(sample.error.code, LVP_SAMPLE_BAD_MANIFEST_LINE);
        lvp_sample_free(&sample);
    }
    assert_int_equal(load(manifest, 8, &sample), LVP_OK); // a prompt that is none leaves the image one
    assert_int_equal(sample.error.code, LVP_SAMPLE_OK);
    assert_int_equal(sample.columns_error.code, LVP_SAMPLE_BAD_MANIFEST_LINE);
    lvp_sample_free(&sample);
    lvp_manifest_close(manifest);
}

static void test_long_line(void **state)
{
    (void)state;
    FILE *file = fopen(temp_path("m.jsonl"), "wb");
    (void)fprintf(file, "{\"image\":\"z\"}\n{\"image\":\"a\",\"id\":\"%0*d\"}\n", 17 << 20, 0);
    (void)fprintf(file, "{\"image\":\"b\",\"id\":\"%0*d\"}\n{\"image\":\"c\"}\n", 1 << 20, 7);
    (void)fclose(file);
    struct lvp_manifest *manifest = open_ok("m.jsonl", &all);
    assert_int_equal(lvp_manifest_count(manifest), 4);
    struct lvp_sample sample;
    for (uint64_t i = 4; i-- > 0;) { // backwards too
        assert_int_equal(load(manifest, i, &sample), LVP_OK);
        if (i == 2)
            assert_int_equal(strlen(sample.id), 1 << 20);
        else
            assert_string_equal(sample.id, i == 0 ? "z" : i == 1 ? "line-2" : "c");
        lvp_sample_free(&sample);
    }
    assert_int_equal(truncate(temp_path("m.jsonl"), 5), 0);
    assert_int_equal(load(manifest, 2, &sample), LVP_ERR_IO);
    lvp_error_clear();
    assert_int_equal(load(manifest, 3, &sample), LVP_ERR_IO);
    lvp_error_clear();
    lvp_manifest_close(manifest);
}

static void test_bad_inputs(void **state)
{
    (void)state;
    temp_write("m.jsonl", "{\"image\":\"a\"}\n{\"image\":\"b\",\"id\":\"x\"}\n\n{\"image\":\"c\",\"id\":\"x\"}\n");
    expect_usage("m.jsonl", "line 2 and line 4", "\"x\"");
    temp_write("n.jsonl", "oops\n{\"image\":\"c\",\"id\":\"line-1\"}\n");
    expect_usage("n.jsonl", "line 1 and line 2", "line-1");
    expect_usage("missing", "No such file", "missing");
    assert_int_equal(mkfifo(temp_path("pipe.jsonl"), 0600), 0); // must not be opened: that would wait for a writer
    expect_usage("pipe.jsonl", "neither", "pipe");
    temp_write("e.jsonl", "\n");
    struct lvp_manifest *manifest = open_ok("e.jsonl", &all);
    assert_int_equal(lvp_manifest_count(manifest), 0);
    lvp_manifest_close(manifest);
}

static void expect_filled(const struct lvp_sample *sample, const char *template_text, const char *expected)
{
    char *text = NULL;
    struct lvp_sample_error error = {0};
    assert_int_equal(lvp_prompt_fill(template_text, sample, &text, &error), LVP_OK);
    if (expected == NULL) {
        assert_null(text);
        assert_int_equal(error.code, LVP_SAMPLE_PROMPT_FIELD_MISSING);
    } else {
        assert_string_equal(text, expected);
    }
    free(text);
}

static void test_prompt_fill(void **state)
{
    (void)state;
    temp_write("m.jsonl", "{\"image\":\"a.jpg\",\"id\":\"one\",\"name\":\"Ann "
                          "\\\"{x}\\\"\",\"n\":3,\"r\":0.1,\"t\":true,\"none\":null,\"l\":[1,\"b\"]}\n");
    struct lvp_manifest *manifest = open_ok("m.jsonl", &all);
    struct lvp_sample sample;
    assert_int_equal(load(manifest, 0, &sample), LVP_OK);
    expect_filled(&sample, "plain", "plain");
    expect_filled(&sample, "", "");
    expect_filled(&sample, "Who is {name}?", "Who is Ann \"{x}\"?"); // values are not templates
    expect_filled(&sample, "{id}/{image} {n} {r} {t} {l}", "one/a.jpg 3 0.1 true [1,\"b\"]");
    expect_filled(&sample, "{{name}} }} {{{n}}}", "{name} } {3}");
    expect_filled(&sample, "lone } stays", "lone } stays");
    expect_filled(&sample, "{none}", NULL);
    expect_filled(&sample, "{missing}", NULL);
    lvp_sample_free(&sample);
    lvp_manifest_close(manifest);
    assert_int_equal(lvp_prompt_check("{a} {{ }} } {b}"), LVP_OK);
    const char *const bad[] = {"{", "{a", "{a{b}", "{}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(lvp_prompt_check(bad[i]), LVP_ERR_USAGE);
        lvp_error_clear();
    }
}

static void expect_request(const struct lvp_requests *requests, uint64_t i, const char *id, const char *prompt,
                           int error)
{
    struct lvp_request request;
    struct lvp_cursor cursor = {0};
    assert_int_equal(lvp_request_load(requests, &cursor, i, &request), LVP_OK);
    lvp_cursor_close(&cursor);
    assert_string_equal(request.id, id);
    assert_string_equal(request.prompt, prompt);
    assert_int_equal(request.error.code, error);
    lvp_request_free(&request);
}

static void test_requests(void **state)
{
    (void)state;
    temp_write("m.jsonl", "{\"image\":\"a\",\"prompt\":\"{literal}\",\"w\":\"cat\"}\n{\"image\":\"b\"}\noops\n");
    struct lvp_manifest *manifest = open_ok("m.jsonl", &all);
    struct lvp_requests requests = {.manifest = manifest};
    assert_int_equal(lvp_request_count(&requests), 3);
    expect_request(&requests, 0, "a", "{literal}", LVP_SAMPLE_OK);
    expect_request(&requests, 1, "b", LVP_DEFAULT_PROMPT, LVP_SAMPLE_OK);
    expect_request(&requests, 2, "line-3", "", LVP_SAMPLE_BAD_MANIFEST_LINE);
    const char *const prompts[] = {"A {w}?", "And?"};
    requests.prompts = prompts;
    requests.n_prompts = 1;
    expect_request(&requests, 0, "a", "A cat?", LVP_SAMPLE_OK);
    requests.n_prompts = 2;
    assert_int_equal(lvp_request_count(&requests), 6);
    expect_request(&requests, 0, "a#0", "A cat?", LVP_SAMPLE_OK);
    expect_request(&requests, 1, "a#1", "And?", LVP_SAMPLE_OK);
    expect_request(&requests, 2, "b#0", "", LVP_SAMPLE_PROMPT_FIELD_MISSING);
    expect_request(&requests, 3, "b#1", "And?", LVP_SAMPLE_OK);
    expect_request(&requests, 5, "line-3#1", "", LVP_SAMPLE_BAD_MANIFEST_LINE);
    lvp_manifest_close(manifest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_folder, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_shard_and_limit, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_jsonl, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_long_line, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_bad_inputs, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_prompt_fill, temp_folder_make, temp_folder_remove),
        cmocka_unit_test_setup_teardown(test_requests, temp_folder_make, temp_folder_remove),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
