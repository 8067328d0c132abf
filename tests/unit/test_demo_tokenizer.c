// The demo's two tokenizer files, tokenizer.json and tokenizer.model, must agree, so that it does not matter which one
// a reader of the folder takes.
#include "common/prompt.h"
#include "common/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/unit/temp_folder.h"

#define DEMO "models/demo/"

static void link_into_temp(const char *name)
{
    char target[1024], here[512];
    assert_non_null(getcwd(here, sizeof here));
    (void)snprintf(target, sizeof target, "%s/" DEMO "%s", here, name);
    assert_int_equal(symlink(target, temp_path(name)), 0);
}

static void compare(const struct lvp_tokenizer *fast, const struct lvp_tokenizer *slow, const char *text,
                    size_t n_bytes)
{
    int32_t *a = NULL, *b = NULL;
    size_t n_a = 0, n_b = 0;
    assert_int_equal(lvp_tokenizer_encode(fast, text, n_bytes, true, &a, &n_a), LVP_OK);
    assert_int_equal(lvp_tokenizer_encode(slow, text, n_bytes, true, &b, &n_b), LVP_OK);
    if (n_a != n_b || memcmp(a, b, n_a * sizeof *a) != 0) fail_msg("the files disagree on '%.*s'", (int)n_bytes, text);
    free(a);
    free(b);
}

static void both_files_agree(void **state)
{
    (void)state;
    struct lvp_tokenizer *fast = NULL, *slow = NULL;
    struct lvp_chat_template *chat = NULL;
    static const char *const files[] = {"tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) link_into_temp(files[i]);
    assert_int_equal(lvp_tokenizer_open(DEMO, &fast), LVP_OK);
    assert_int_equal(lvp_tokenizer_open(temp_folder, &slow), LVP_OK);
    assert_int_equal(lvp_chat_template_load(DEMO, &chat), LVP_OK);
    FILE *file = fopen("tests/golden/tokenizer/encode.jsonl", "r");
    assert_non_null(file);
    char *line = NULL, *prompt = NULL;
    size_t capacity = 0, n = 0;
    for (ssize_t length; (length = getline(&line, &capacity, file)) >= 0;) {
        json_t *row = json_loadb(line, (size_t)length, JSON_ALLOW_NUL, NULL);
        const json_t *text = json_array_get(row, 0);
        if (n++ > 0 && json_is_string(text)) {
            compare(fast, slow, json_string_value(text), json_string_length(text));
            if (strlen(json_string_value(text)) == json_string_length(text)) {
                assert_int_equal(lvp_chat_template_apply(chat, NULL, json_string_value(text), 1, &prompt), LVP_OK);
                compare(fast, slow, prompt, strlen(prompt));
                free(prompt);
            }
        }
        json_decref(row);
    }
    assert_true(n > 2000);
    free(line);
    (void)fclose(file);
    lvp_chat_template_free(chat);
    lvp_tokenizer_close(fast);
    lvp_tokenizer_close(slow);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(both_files_agree)};
    return cmocka_run_group_tests(tests, temp_folder_make, temp_folder_remove);
}
