// Ids and texts against transformers' tokenizers: tests/golden/tokenizer, written by train/golden_tokenizer.py.
#include "common/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>

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
    const size_t n_ids = json_array_size(given);
    int32_t *ids = malloc((n_ids + 1) * sizeof *ids);
    for (size_t i = 0; i < n_ids; i++) ids[i] = (int32_t)json_integer_value(json_array_get(given, i));
    assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, n_ids, &text), LVP_OK);
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_encode), cmocka_unit_test(test_decode)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
