// Ids and texts against transformers' tokenizers: tests/golden/tokenizer, written by train/golden_tokenizer.py.
#include "common/text.h"
#include "common/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#define GOLDEN "tests/golden/tokenizer/"

enum { MAX_FOLDERS = 16 };

struct folders {
    size_t n;
    char names[MAX_FOLDERS][64];
    struct lvp_tokenizer *tokenizers[MAX_FOLDERS];
};

static json_t *next_line(FILE *file, char **line, size_t *capacity)
{
    ssize_t length = getline(line, capacity, file);
    if (length < 0) return NULL;
    json_t *json = json_loadb(*line, (size_t)length, JSON_ALLOW_NUL, NULL);
    assert_non_null(json);
    return json;
}

static void open_folders(json_t *names, struct folders *folders)
{
    folders->n = json_array_size(names);
    assert_in_range(folders->n, 1, MAX_FOLDERS);
    for (size_t i = 0; i < folders->n; i++) {
        char path[256];
        (void)snprintf(folders->names[i], sizeof folders->names[i], "%s", json_string_value(json_array_get(names, i)));
        (void)snprintf(path, sizeof path, GOLDEN "%s", folders->names[i]);
        if (lvp_tokenizer_open(path, &folders->tokenizers[i]) != LVP_OK) fail_msg("%s: %s", path, lvp_error_text());
    }
}

typedef void check_function(const char *name, const struct lvp_tokenizer *tokenizer, const json_t *given,
                            const json_t *wanted);

// Runs `check` on every case of a golden file for every folder.
static void check_file(const char *path, size_t at_least, check_function *check)
{
    struct folders folders;
    char *line = NULL;
    size_t capacity = 0, n_cases = 0;
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    json_t *json = next_line(file, &line, &capacity);
    open_folders(json, &folders);
    json_decref(json);
    while ((json = next_line(file, &line, &capacity)) != NULL) {
        const char *which = json_string_value(json_array_get(json, 2));
        for (size_t i = 0; i < folders.n; i++) {
            const json_t *wanted = json_array_get(json_array_get(json, 1), (size_t)(which[i] - '0'));
            check(folders.names[i], folders.tokenizers[i], json_array_get(json, 0), wanted);
        }
        json_decref(json);
        n_cases++;
    }
    assert_true(n_cases >= at_least);
    for (size_t i = 0; i < folders.n; i++) lvp_tokenizer_close(folders.tokenizers[i]);
    free(line);
    (void)fclose(file);
}

static void check_encode(const char *name, const struct lvp_tokenizer *tokenizer, const json_t *given,
                         const json_t *wanted)
{
    int32_t *ids;
    size_t n_ids;
    const char *text = json_string_value(given);
    assert_int_equal(lvp_tokenizer_encode(tokenizer, text, json_string_length(given), true, &ids, &n_ids), LVP_OK);
    size_t i = 0;
    while (i < n_ids && i < json_array_size(wanted) && ids[i] == json_integer_value(json_array_get(wanted, i))) i++;
    if (i != n_ids || i != json_array_size(wanted))
        fail_msg("%s: \"%.200s\": id %zu of %zu is %d, wanted %lld of %zu", name, text, i, n_ids,
                 i < n_ids ? (int)ids[i] : -1, (long long)json_integer_value(json_array_get(wanted, i)),
                 json_array_size(wanted));
    free(ids);
}

static void check_decode(const char *name, const struct lvp_tokenizer *tokenizer, const json_t *given,
                         const json_t *wanted)
{
    char *text;
    size_t n_bytes;
    const size_t n_ids = json_array_size(given);
    int32_t *ids = malloc((n_ids + 1) * sizeof *ids);
    for (size_t i = 0; i < n_ids; i++) ids[i] = (int32_t)json_integer_value(json_array_get(given, i));
    assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, n_ids, &text, &n_bytes), LVP_OK);
    if (strcmp(text, json_string_value(wanted)) != 0) {
        char *list = json_dumps(given, JSON_COMPACT);
        fail_msg("%s: %s: \"%s\", wanted \"%s\"", name, list, text, json_string_value(wanted));
    }
    free(text);
    free(ids);
}

static void test_encode(void **state)
{
    (void)state;
    check_file(GOLDEN "encode.jsonl", 2000, check_encode);
}

static void test_decode(void **state)
{
    (void)state;
    check_file(GOLDEN "decode.jsonl", 400, check_decode);
}

static void expect_trimmed(const char *text, size_t n_bytes, const char *wanted, size_t n_wanted)
{
    char copy[64] = {0};
    memcpy(copy, text, n_bytes);
    const char *trimmed = lvp_trim(copy, &n_bytes);
    assert_int_equal(n_bytes, n_wanted);
    assert_memory_equal(trimmed, wanted, n_wanted + 1);
}

// As Python's str.strip.
static void test_trim(void **state)
{
    (void)state;
    expect_trimmed("", 0, "", 0);
    expect_trimmed(" \t\n\v\f\r", 6, "", 0);
    expect_trimmed(" a b\n", 5, "a b", 3);
    expect_trimmed("\x1c\u3000cat\u00a0\x1f\u2003", 13, "cat", 3);
    expect_trimmed(" \0 ", 3, "\0", 1);
    expect_trimmed("\u200bcat", 6, "\u200bcat", 6); // a zero width space is none
}

// A text with a byte that is not UTF-8, an empty one, and ids that no token has.
static void test_edges(void **state)
{
    (void)state;
    struct lvp_tokenizer *tokenizer;
    int32_t *ids;
    size_t n_ids, n_bytes;
    char *text;
    assert_int_equal(lvp_tokenizer_open(GOLDEN "fast_legacy", &tokenizer), LVP_OK);
    assert_int_equal(lvp_tokenizer_size(tokenizer), 514);
    assert_int_equal(lvp_tokenizer_token_id(tokenizer, "<image>"), 512);
    assert_int_equal(lvp_tokenizer_token_id(tokenizer, "<nothing>"), -1);
    assert_int_equal(strlen(lvp_tokenizer_hash(tokenizer)), 32);
    assert_int_equal(lvp_tokenizer_encode(tokenizer, "a\xFF\xC3", 3, false, &ids, &n_ids), LVP_OK);
    assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, n_ids, &text, &n_bytes), LVP_OK);
    assert_string_equal(text, "a\xEF\xBF\xBD\xEF\xBF\xBD");
    free(ids);
    free(text);
    assert_int_equal(lvp_tokenizer_encode(tokenizer, "", 0, false, &ids, &n_ids), LVP_OK);
    assert_int_equal(n_ids, 0);
    free(ids);
    // A byte token may be a NUL: the text goes on behind it.
    assert_int_equal(lvp_tokenizer_encode(tokenizer, "a\0b", 3, false, &ids, &n_ids), LVP_OK);
    assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, n_ids, &text, &n_bytes), LVP_OK);
    assert_int_equal(n_bytes, 3);
    assert_memory_equal(text, "a\0b", 4);
    free(text);
    assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, 0, &text, &n_bytes), LVP_OK);
    assert_string_equal(text, "");
    free(ids);
    free(text);
    lvp_tokenizer_close(tokenizer);
    static const char *const both[] = {GOLDEN "fast_legacy", GOLDEN "slow_legacy"};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(lvp_tokenizer_open(both[i], &tokenizer), LVP_OK);
        assert_int_equal(
            lvp_tokenizer_decode(tokenizer, (int32_t[]){-1, 514, 1 << 30, INT32_MIN, INT32_MAX}, 5, &text, &n_bytes),
            LVP_OK);
        assert_string_equal(text, "");
        free(text);
        lvp_tokenizer_close(tokenizer);
    }
}

static char *read_file(const char *path, size_t *n_bytes)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char *bytes = malloc(1 << 20);
    assert_non_null(bytes);
    *n_bytes = fread(bytes, 1, 1 << 20, file);
    assert_int_equal(fclose(file), 0);
    return bytes;
}

// Opens a folder that holds one file with these bytes, and uses the tokenizer where that works.
static enum lvp_status open_bytes(const char *name, const char *bytes, size_t n_bytes)
{
    char dir[] = "/tmp/lvp-tokenizer-XXXXXX", path[64];
    struct lvp_tokenizer *tokenizer;
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
    lvp_error_clear();
    const enum lvp_status status = lvp_tokenizer_open(dir, &tokenizer);
    if (status == LVP_OK) {
        static const char text[] = "USER: <image>\nWhat is\xF0\x9F\x98\x80 this? </s>  ASSISTANT:";
        int32_t *ids;
        size_t n_ids;
        char *back;
        if (lvp_tokenizer_encode(tokenizer, text, sizeof text - 1, true, &ids, &n_ids) == LVP_OK) {
            if (lvp_tokenizer_decode(tokenizer, ids, n_ids, &back, &n_bytes) == LVP_OK) free(back);
            free(ids);
        }
        lvp_tokenizer_close(tokenizer);
    } else {
        assert_true(lvp_error_text()[0] != '\0');
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
    lvp_error_clear();
    return status;
}

#define BPE(vocab, merges) "{\"model\":{\"type\":\"BPE\",\"vocab\":{" vocab "},\"merges\":[" merges "]}" DECODER
#define DECODER            ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}]}"
#define SPECIAL            "\"<s>\":0,\"</s>\":1,\"<unk>\":2,"

static void test_refused(void **state)
{
    (void)state;
    static const char *const jsons[] = {
        "",
        "[]",
        "{}",
        "{\"model\":",
        "\"BPE\"",
        "{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}" DECODER "}",
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}" DECODER
        "}",
        "{\"normalizer\":{\"type\":\"NFKC\"},\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}" DECODER "}",
        BPE("\"a\":-1", "") "}",
        BPE("\"a\":99999999", "") "}",
        BPE("\"a\":1.5", "") "}",
        BPE("\"a\":1,\"b\":1", "") "}",
        BPE(SPECIAL "\"a\":3", "\"a a\"") "}",
        BPE(SPECIAL "\"a\":3,\"aa\":4", "\"a\"") "}",
        BPE(SPECIAL "\"a\":3,\"aa\":4", "\"a a a\"") "}",
        BPE(SPECIAL "\"a\":3,\"aa\":4", "[\"a\"]") "}",
        BPE(SPECIAL "\"a\":3,\"aa\":4", "[1,2]") "}",
        BPE(SPECIAL "\"a\":3", "") ",\"added_tokens\":[{\"id\":7}]}",
        BPE(SPECIAL "\"a\":3", "") ",\"added_tokens\":[{\"content\":\"x\",\"single_word\":true}]}",
    };
    for (size_t i = 0; i < sizeof jsons / sizeof *jsons; i++) {
        if (open_bytes("tokenizer.json", jsons[i], strlen(jsons[i])) != LVP_ERR_MODEL) fail_msg("opened: %s", jsons[i]);
    }
    static const char good[] = BPE(SPECIAL "\"a\":3,\"aa\":4", "\"a a\"") "}";
    assert_int_equal(open_bytes("tokenizer.json", good, sizeof good - 1), LVP_OK);
    assert_int_equal(open_bytes("tokenizer.model", "", 0), LVP_ERR_MODEL);
    assert_int_equal(open_bytes("tokenizer.model", "not a model", 11), LVP_ERR_MODEL);
    assert_int_equal(open_bytes("vocab.json", "{}", 2), LVP_ERR_MODEL);
}

// Damaged files: an error or a tokenizer, never a crash.
static void test_damaged(void **state)
{
    (void)state;
    static const char *const names[] = {"tokenizer.model", "tokenizer.json"};
    uint32_t random = 1;
    for (size_t k = 0; k < 2; k++) {
        char path[128];
        size_t n_bytes;
        (void)snprintf(path, sizeof path, GOLDEN "fast_legacy/%s", names[k]);
        char *bytes = read_file(path, &n_bytes);
        for (int i = 0; i < 150; i++) {
            char *damaged = malloc(n_bytes);
            assert_non_null(damaged);
            memcpy(damaged, bytes, n_bytes);
            for (int j = 0; j <= i % 4; j++) {
                random = random * 1664525U + 1013904223U; // Numerical Recipes' generator
                damaged[(random >> 8) % n_bytes] = (char)(random >> 3);
            }
            random = random * 1664525U + 1013904223U;
            (void)open_bytes(names[k], damaged, i % 3 == 0 ? (random >> 8) % n_bytes : n_bytes);
            free(damaged);
        }
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_encode),  cmocka_unit_test(test_decode),
                                       cmocka_unit_test(test_edges),   cmocka_unit_test(test_trim),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_damaged)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
