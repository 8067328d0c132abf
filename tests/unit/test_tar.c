// Which samples tar shards give, where their bytes are, and what damage costs.
#include "coordinator/input/manifest.h"
#include "coordinator/input/request.h"
#include "coordinator/input/shard_pattern.h"
#include "coordinator/input/survey.h"
#include "coordinator/input/tar_list.h"
#include "tar_writer.h"
#include "temp_folder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

static struct tar_bytes tar;

static struct lvp_manifest *open_tar(const char *name)
{
    const struct lvp_manifest_options options = {.limit = -1, .columns = {.json = true, .text = true}};
    struct lvp_manifest *manifest = NULL;
    if (lvp_manifest_open(temp_path(name), &options, &manifest) != LVP_OK) fail_msg("%s", lvp_error_text());
    return manifest;
}

static void write_tar(const char *name)
{
    tar_end(&tar);
    temp_write_bytes(name, tar.bytes, tar.n);
    tar.n = 0;
}

// Sample i: its id and error; where it has an image, its bytes must be `content`.
static void expect_sample(const struct lvp_manifest *manifest, uint64_t i, const char *id, int error,
                          const char *content)
{
    struct lvp_cursor cursor = {0};
    struct lvp_sample sample;
    assert_int_equal(lvp_manifest_sample(manifest, &cursor, i, &sample), LVP_OK);
    assert_string_equal(sample.id, id);
    assert_int_equal(sample.error.code, error);
    if (content != NULL) {
        char bytes[64] = "";
        FILE *file = fopen(sample.places[0].path, "rb");
        assert_non_null(file);
        assert_int_equal(sample.places[0].n_bytes, strlen(content));
        (void)fseek(file, (long)sample.places[0].offset, SEEK_SET);
        assert_int_equal(fread(bytes, 1, strlen(content), file), strlen(content));
        assert_string_equal(bytes, content);
        (void)fclose(file);
    }
    lvp_sample_free(&sample);
    lvp_cursor_close(&cursor);
}

static void test_grouping(void **state)
{
    (void)state;
    tar_add(&tar, "./", '5', NULL, 0);
    tar_text(&tar, "./a.txt", "caption a"); // the image need not be first
    tar_text(&tar, "./a.jpg", "image a");
    tar_text(&tar, "./a.cls", "7");
    tar_text(&tar, "deep/b.json", "{\"n\":1}");
    tar_text(&tar, "deep/b.left.png", "dotted"); // the image named exactly wins
    tar_text(&tar, "deep/b.PNG", "image b");
    tar_text(&tar, "c.side.jpg", "image c"); // the only one
    tar_text(&tar, "IMG.0001.jpg", "x");
    tar_text(&tar, "IMG.0002.jpg", "y");
    tar_text(&tar, "only.txt", "no image");
    tar_text(&tar, "._a.jpg", "a resource fork");
    tar_text(&tar, "README", "no dot");
    tar_add(&tar, "link.jpg", '2', NULL, 0);
    tar_add(&tar, "hard.jpg", '1', NULL, 0);
    tar_text(&tar, "empty.jpg", "");
    write_tar("s.tar");
    struct lvp_manifest *manifest = open_tar("s.tar");
    assert_int_equal(lvp_manifest_count(manifest), 6);
    expect_sample(manifest, 0, "s/a", LVP_SAMPLE_OK, "image a");
    expect_sample(manifest, 1, "s/deep/b", LVP_SAMPLE_OK, "image b");
    expect_sample(manifest, 2, "s/c", LVP_SAMPLE_OK, "image c");
    expect_sample(manifest, 3, "s/IMG", LVP_SAMPLE_IMAGE_COUNT_MISMATCH, NULL);
    expect_sample(manifest, 4, "s/only", LVP_SAMPLE_FILE_MISSING, NULL);
    expect_sample(manifest, 5, "s/empty", LVP_SAMPLE_OK, "");
    lvp_manifest_close(manifest);
}

static void expect_prompt(const struct lvp_manifest *manifest, uint64_t i, const char *template_text,
                          const char *expected, int error)
{
    const struct lvp_requests requests = {
        .manifest = manifest, .prompts = &template_text, .n_prompts = template_text != NULL};
    struct lvp_cursor cursor = {0};
    struct lvp_request request;
    assert_int_equal(lvp_request_load(&requests, &cursor, i, &request), LVP_OK);
    assert_int_equal(request.error.code, error);
    assert_string_equal(request.prompt, expected);
    lvp_request_free(&request);
    lvp_cursor_close(&cursor);
}

static void test_columns(void **state)
{
    (void)state;
    tar_text(&tar, "a.jpg", "x");
    tar_text(&tar, "a.json", "{\"n\":18446744073709551615,\"prompt\":\"Its own?\",\"who\":\"Ann\"}");
    tar_text(&tar, "a.txt", "alt text");
    tar_text(&tar, "b.jpg", "x");
    tar_text(&tar, "c.jpg", "x");
    tar_text(&tar, "c.json", "{broken");
    tar_text(&tar, "d.jpg", "x");
    tar_text(&tar, "d.txt", "\xff");
    tar_text(&tar, "e.jpg", "x");
    tar_text(&tar, "e.json", "{\"txt\":\"json's\"}");
    tar_text(&tar, "e.txt", "txt's");
    tar_text(&tar, "f.jpg", "x"); // what Python's json.dumps and programs with unsigned hashes write
    tar_text(&tar, "f.json", "{\"p\":NaN,\"q\":[-Infinity,\"NaN\"],\"h\":18446744073709551615,\"e\":1e3}");
    tar_text(&tar, "f.txt", "a line\r\n");
    tar_text(&tar, "g.jpg", "x");
    tar_text(&tar, "g.json", "[1]"); // no object: it has no fields
    write_tar("s.tar");
    struct lvp_manifest *manifest = open_tar("s.tar");
    expect_prompt(manifest, 0, NULL, "Its own?", LVP_SAMPLE_OK);
    expect_prompt(manifest, 0, "{who}: {txt} {id}", "Ann: alt text s/a", LVP_SAMPLE_OK);
    expect_prompt(manifest, 1, NULL, LVP_DEFAULT_PROMPT, LVP_SAMPLE_OK);
    expect_prompt(manifest, 1, "{txt}", "", LVP_SAMPLE_PROMPT_FIELD_MISSING);
    expect_prompt(manifest, 2, NULL, "", LVP_SAMPLE_BAD_MANIFEST_LINE);
    expect_prompt(manifest, 2, "{who}", "", LVP_SAMPLE_BAD_MANIFEST_LINE);
    expect_prompt(manifest, 2, "Describe {id}.", "Describe s/c.", LVP_SAMPLE_OK); // needs nothing that is broken
    expect_prompt(manifest, 3, "{txt}", "", LVP_SAMPLE_BAD_MANIFEST_LINE);
    expect_prompt(manifest, 4, "{txt}", "json's", LVP_SAMPLE_OK);
    expect_prompt(manifest, 5, "{q} {h} {e} {txt}!", "[null,\"NaN\"] 18446744073709551615 1000.0 a line!",
                  LVP_SAMPLE_OK);
    expect_prompt(manifest, 5, "{p}", "", LVP_SAMPLE_PROMPT_FIELD_MISSING);
    expect_prompt(manifest, 6, NULL, LVP_DEFAULT_PROMPT, LVP_SAMPLE_OK);
    lvp_manifest_close(manifest);
    const char *const plain[] = {"Describe {{txt}}."}, *const filled[] = {"Describe.", "{who}"}, *const text = "{txt}";
    struct lvp_columns needed = lvp_columns_needed(NULL, 0);
    assert_true(needed.json && !needed.text);
    needed = lvp_columns_needed(plain, 1);
    assert_true(!needed.json && !needed.text);
    needed = lvp_columns_needed(filled, 2);
    assert_true(needed.json && !needed.text);
    needed = lvp_columns_needed(&text, 1);
    assert_true(needed.json && needed.text); // a column of json goes before
}

struct expected {
    const char *id;
    int error;
};

// Lists what is in `tar`; nothing else may be there, and no id twice.
static void expect_samples(const struct expected *expected, size_t n)
{
    temp_write_bytes("s.tar", tar.bytes, tar.n);
    tar.n = 0;
    struct lvp_manifest *manifest = open_tar("s.tar");
    const struct lvp_requests requests = {.manifest = manifest};
    if (lvp_survey(&(struct lvp_survey){.requests = &requests, .threads = 1}) != LVP_OK)
        fail_msg("%s", lvp_error_text());
    for (size_t i = 0; i < n && i < lvp_manifest_count(manifest); i++)
        expect_sample(manifest, i, expected[i].id, expected[i].error, NULL);
    assert_int_equal(lvp_manifest_count(manifest), n);
    lvp_manifest_close(manifest);
}
#define EXPECT_SAMPLES(...)                                                                                            \
    expect_samples((const struct expected[]){__VA_ARGS__},                                                             \
                   sizeof((const struct expected[]){__VA_ARGS__}) / sizeof(struct expected))

enum { OK = LVP_SAMPLE_OK, DAMAGED = LVP_SAMPLE_SHARD_DAMAGED, CUT = LVP_SAMPLE_IMAGE_TRUNCATED };

// a.jpg to d.jpg, two blocks each; no end mark yet.
static void add_four(void)
{
    for (int i = 0; i < 4; i++) tar_text(&tar, (char[]){(char)('a' + i), '.', 'j', 'p', 'g', '\0'}, "image");
}

static void damage_block(size_t block)
{
    memset(tar.bytes + block * TAR_BLOCK, 0xAB, 300);
}

// A header that cannot be read costs its own sample and those beside it, and no other.
static void test_damaged_headers(void **state)
{
    (void)state;
    add_four();
    damage_block(0);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/offset-0", DAMAGED}, {"s/b", DAMAGED}, {"s/c", OK}, {"s/d", OK});
    add_four();
    damage_block(2);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/c", DAMAGED}, {"s/d", OK});
    add_four();
    damage_block(6);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", OK}, {"s/b", OK}, {"s/c", DAMAGED}, {"s/offset-3072", DAMAGED});
    add_four();
    for (size_t block = 2; block < 6; block++) damage_block(block); // b and c are one stretch
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/d", DAMAGED});
    tar_text(&tar, "a.jpg", "image"); // a's own column is lost: it must not be captioned without
    tar_text(&tar, "a.json", "{}");
    tar_text(&tar, "b.jpg", "image");
    damage_block(2);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/b", DAMAGED});
    tar_text(&tar, "a.jpg", "image"); // one sample in two pieces keeps its id once
    tar_text(&tar, "a.json", "{}");
    tar_text(&tar, "a.txt", "text");
    tar_text(&tar, "b.jpg", "image");
    damage_block(2);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/offset-2560", DAMAGED}, {"s/b", OK});
}

// Zeros where headers were are no end while headers follow; an end that is missing is told.
static void test_damaged_ends(void **state)
{
    (void)state;
    add_four();
    memset(tar.bytes + (size_t)2 * TAR_BLOCK, 0, (size_t)2 * TAR_BLOCK);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/c", DAMAGED}, {"s/d", OK});
    tar_text(&tar, "a.jpg", "image"); // cat a.tar b.tar: most readers stop at the first end
    tar_end(&tar);
    tar_text(&tar, "b.jpg", "image");
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/b", DAMAGED});
    add_four(); // copied up to a member's end, and no more
    tar.n -= (size_t)2 * TAR_BLOCK;
    EXPECT_SAMPLES({"s/a", OK}, {"s/b", OK}, {"s/c", DAMAGED}, {"s/offset-3072", DAMAGED});
    char large[2000];
    memset(large, 'x', sizeof large);
    tar_text(&tar, "a.jpg", "whole");
    tar_add(&tar, "b.jpg", '0', large, sizeof large);
    tar.n -= 1500; // within an image
    EXPECT_SAMPLES({"s/a", OK}, {"s/b", CUT}, {"s/offset-2084", DAMAGED});
    EXPECT_SAMPLES({"s/offset-0", DAMAGED}); // an empty file
}

// Old tars have no magic bytes, and a header is known by its checksum alone, also behind damage.
static void test_old_tar(void **state)
{
    (void)state;
    add_four();
    for (size_t block = 0; block < 8; block += 2) {
        unsigned char *header = tar.bytes + block * TAR_BLOCK;
        unsigned sum = 0;
        memset(header + 257, 0, 8);
        memset(header + 148, ' ', 8);
        for (int i = 0; i < TAR_BLOCK; i++) sum += header[i];
        (void)snprintf((char *)header + 148, 8, "%06o", sum);
    }
    damage_block(2);
    tar_end(&tar);
    EXPECT_SAMPLES({"s/a", DAMAGED}, {"s/offset-1024", DAMAGED}, {"s/c", DAMAGED}, {"s/d", OK});
}

static void expect_usage(const char *name, const char *part)
{
    const struct lvp_manifest_options options = {.limit = -1};
    struct lvp_manifest *manifest = NULL;
    enum lvp_status status = lvp_manifest_open(temp_path(name), &options, &manifest);
    if (status == LVP_OK) {
        const struct lvp_requests requests = {.manifest = manifest};
        status = lvp_survey(&(struct lvp_survey){.requests = &requests, .threads = 2});
        lvp_manifest_close(manifest);
    }
    assert_int_equal(status, LVP_ERR_USAGE);
    if (strstr(lvp_error_text(), part) == NULL) fail_msg("%s", lvp_error_text());
    lvp_error_clear();
}

static void test_refusals(void **state)
{
    (void)state;
    tar_text(&tar, "a.jpg", "1");
    tar_text(&tar, "a.jpg", "2");
    write_tar("two.tar");
    expect_usage("two.tar", "two members .jpg");
    tar_text(&tar, "a.jpg", "1");
    tar_text(&tar, "b.jpg", "2");
    tar_text(&tar, "a.txt", "3");
    write_tar("again.tar");
    expect_usage("again.tar", "the id \"again/a\" is there twice");
    temp_write_bytes("z.tar", "\x1f\x8b\x08\0\0\0", 6);
    expect_usage("z.tar", "compressed");
    tar_text(&tar, "README", "nothing");
    write_tar("none.tar");
    expect_usage("none.tar", "there is no sample");
    expect_usage("missing-{0..2}.tar", "missing-0.tar: No such file");
    assert_int_equal(mkdir(temp_path("x"), 0755), 0);
    assert_int_equal(mkdir(temp_path("x0"), 0755), 0);
    tar_text(&tar, "a.jpg", "1");
    write_tar("x0/same.tar");
    expect_usage("x{0..0}{0..0}/same.tar", "No such file");
    assert_int_equal(mkdir(temp_path("x1"), 0755), 0);
    tar_text(&tar, "b.jpg", "1");
    write_tar("x1/same.tar"); // one name, other keys
    lvp_manifest_close(open_tar("x{0..1}/same.tar"));
    tar_text(&tar, "a.jpg", "1");
    write_tar("x1/same.tar");
    expect_usage("x{0..1}/same.tar", "the id \"same/a\" is there twice");
}

// Samples of several shards, in the pattern's order.
static void test_several_shards(void **state)
{
    (void)state;
    for (int s = 0; s < 3; s++) {
        char name[16], content[8];
        for (int i = 0; i <= s; i++) {
            (void)snprintf(name, sizeof name, "k%d.jpg", i);
            (void)snprintf(content, sizeof content, "%d-%d", s, i);
            tar_text(&tar, name, content);
        }
        (void)snprintf(name, sizeof name, "s-%d.tar", s);
        write_tar(name);
    }
    struct lvp_manifest *manifest = open_tar("s-{0..2}.tar");
    assert_int_equal(lvp_manifest_count(manifest), 6);
    expect_sample(manifest, 0, "s-0/k0", LVP_SAMPLE_OK, "0-0");
    expect_sample(manifest, 1, "s-1/k0", LVP_SAMPLE_OK, "1-0");
    expect_sample(manifest, 5, "s-2/k2", LVP_SAMPLE_OK, "2-2");
    lvp_manifest_close(manifest);
}

static void test_vanished_shard(void **state)
{
    (void)state;
    tar_text(&tar, "a.jpg", "1");
    tar_text(&tar, "a.json", "{}");
    write_tar("s.tar");
    struct lvp_manifest *manifest = open_tar("s.tar");
    struct lvp_sample sample;
    struct lvp_cursor cursor = {0};
    assert_int_equal(truncate(temp_path("s.tar"), 1 << 20), 0); // grown: another shard by now
    assert_int_equal(lvp_manifest_sample(manifest, &cursor, 0, &sample), LVP_ERR_IO);
    assert_non_null(strstr(lvp_error_text(), "changed"));
    lvp_error_clear();
    lvp_cursor_close(&cursor);
    assert_int_equal(truncate(temp_path("s.tar"), 100), 0);
    assert_int_equal(lvp_manifest_sample(manifest, &cursor, 0, &sample), LVP_ERR_IO); // the column's bytes
    assert_non_null(strstr(lvp_error_text(), "resume when it is back"));
    lvp_error_clear();
    lvp_cursor_close(&cursor);
    assert_int_equal(unlink(temp_path("s.tar")), 0);
    assert_int_equal(lvp_manifest_sample(manifest, &cursor, 0, &sample), LVP_ERR_IO);
    lvp_error_clear();
    lvp_cursor_close(&cursor);
    lvp_manifest_close(manifest);
}

static void test_keys(void **state)
{
    (void)state;
    assert_int_equal(lvp_tar_key_length("a.jpg"), 1);
    assert_int_equal(lvp_tar_key_length("x.y/a.b.jpg"), 5);
    assert_int_equal(lvp_tar_key_length("x.y/a"), 0);
    assert_int_equal(lvp_tar_key_length(".jpg"), 0);
    assert_int_equal(lvp_tar_key_length("x/.jpg"), 0);
    assert_int_equal(lvp_tar_key_length(""), 0);
}

static void expect_names(const char *pattern, const char *const *expected, size_t n)
{
    struct lvp_name_list names = {0};
    assert_int_equal(lvp_shard_pattern_expand(pattern, &names), LVP_OK);
    assert_int_equal(names.n, n);
    for (size_t i = 0; i < n; i++) assert_string_equal(lvp_name_list_at(&names, i), expected[i]);
    lvp_name_list_free(&names);
}
#define EXPECT_NAMES(pattern, ...)                                                                                     \
    expect_names(pattern, (const char *const[]){__VA_ARGS__},                                                          \
                 sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

static void test_patterns(void **state)
{
    (void)state;
    EXPECT_NAMES("s-{08..11}.tar", "s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar");
    EXPECT_NAMES("s-{8..11}.tar", "s-8.tar", "s-9.tar", "s-10.tar", "s-11.tar");
    EXPECT_NAMES("s-{9..010}.tar", "s-009.tar", "s-010.tar");
    EXPECT_NAMES("{0..1}/{5..6}", "0/5", "0/6", "1/5", "1/6");
    EXPECT_NAMES("plain.tar", "plain.tar");
    const char *const bad[] = {"{1..0}",       "{a..b}", "{0..}", "{0,1}", "{", "{0..1}{0..1}{0..1}{0..1}{0..1}",
                               "{0..99999999}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct lvp_name_list names = {0};
        assert_int_equal(lvp_shard_pattern_expand(bad[i], &names), LVP_ERR_USAGE);
        lvp_error_clear();
        lvp_name_list_free(&names);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, temp_folder_make, temp_folder_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_grouping), TEST(test_columns),  TEST(test_damaged_headers), TEST(test_damaged_ends),
        TEST(test_old_tar),  TEST(test_refusals), TEST(test_several_shards),  TEST(test_vanished_shard),
        TEST(test_keys),     TEST(test_patterns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
