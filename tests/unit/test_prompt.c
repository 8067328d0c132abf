// Chat templates against what transformers prints for them (tests/golden/prompt, written by train/golden_prompt.py),
// and the rows and faults of a sample's prompt.
#include "common/prompt.h"
#include "common/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#define FOLDER "tests/golden/tokenizer/slow_legacy"

enum { IMAGE_ID = 512 };

static void write_file(const char *dir, const char *name, const char *content)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(content, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *dir, const char *name)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(unlink(path), 0);
}

static void check_template(const json_t *test, const char *dir)
{
    const char *name = json_string_value(json_object_get(test, "name"));
    const json_t *prompts = json_object_get(test, "prompts"), *asked;
    struct lvp_chat_template *chat;
    size_t i;
    lvp_error_clear();
    const enum lvp_status status = lvp_chat_template_load(dir, &chat);
    if (json_is_null(prompts)) {
        if (status != LVP_ERR_MODEL) fail_msg("%s: recognised", name);
        return;
    }
    if (status != LVP_OK) fail_msg("%s: %s", name, lvp_error_text());
    json_array_foreach(prompts, i, asked)
    {
        const char *wanted = json_string_value(json_array_get(asked, 3));
        char *prompt;
        const enum lvp_status applied = lvp_chat_template_apply(
            chat, json_string_value(json_array_get(asked, 0)), json_string_value(json_array_get(asked, 1)),
            (int)json_integer_value(json_array_get(asked, 2)), &prompt);
        if (wanted == NULL) {
            assert_int_equal(applied, LVP_ERR_USAGE);
            continue;
        }
        assert_int_equal(applied, LVP_OK);
        if (strcmp(prompt, wanted) != 0) fail_msg("%s: \"%s\", wanted \"%s\"", name, prompt, wanted);
        free(prompt);
    }
    lvp_chat_template_free(chat);
}

// Every golden template in each of the files it can be in.
static void test_templates(void **state)
{
    (void)state;
    char dir[] = "/tmp/lvp-prompt-XXXXXX";
    char *line = NULL;
    size_t capacity = 0, n_tests = 0;
    assert_non_null(mkdtemp(dir));
    FILE *file = fopen("tests/golden/prompt/templates.jsonl", "r");
    assert_non_null(file);
    for (; getline(&line, &capacity, file) > 0; n_tests++) {
        json_t *test = json_loads(line, 0, NULL);
        const char *source = json_string_value(json_object_get(test, "source"));
        write_file(dir, "chat_template.jinja", source);
        check_template(test, dir);
        remove_file(dir, "chat_template.jinja");
        json_t *plain = json_pack("{s:s}", "chat_template", source);
        json_t *named = json_pack("{s:[{s:s,s:s},{s:s,s:s}]}", "chat_template", "name", "other", "template", "x",
                                  "name", "default", "template", source);
        char *plain_text = json_dumps(plain, 0), *named_text = json_dumps(named, 0);
        write_file(dir, "chat_template.json", plain_text);
        check_template(test, dir);
        remove_file(dir, "chat_template.json");
        write_file(dir, "tokenizer_config.json", named_text);
        check_template(test, dir);
        remove_file(dir, "tokenizer_config.json");
        free(plain_text);
        free(named_text);
        json_decref(plain);
        json_decref(named);
        json_decref(test);
    }
    assert_true(n_tests > 50);
    free(line);
    (void)fclose(file);
    assert_int_equal(rmdir(dir), 0);
}

static void test_no_template(void **state)
{
    (void)state;
    struct lvp_chat_template *chat;
    char *prompt;
    assert_int_equal(lvp_chat_template_load(FOLDER, &chat), LVP_OK);
    assert_int_equal(lvp_chat_template_apply(chat, NULL, "Hi", 1, &prompt), LVP_OK);
    assert_string_equal(prompt, "USER: <image>\nHi ASSISTANT:");
    free(prompt);
    lvp_error_clear();
    assert_int_equal(lvp_chat_template_apply(chat, "a <image>", "Hi", 1, &prompt), LVP_ERR_USAGE);
    lvp_chat_template_free(chat);
    lvp_error_clear();
    char dir[] = "/tmp/lvp-prompt-XXXXXX";
    assert_non_null(mkdtemp(dir));
    write_file(dir, "chat_template.json", "{\"chat_template\": \"unheard of\"}");
    assert_int_equal(lvp_chat_template_load(dir, &chat), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), "--raw-prompt"));
    remove_file(dir, "chat_template.json");
    assert_int_equal(rmdir(dir), 0);
    lvp_error_clear();
}

struct prompt_case {
    bool raw;
    const char *text;
    int n_images, max_positions;
    enum lvp_sample_error_code code;
};

static void test_build(void **state)
{
    (void)state;
    static const struct prompt_case cases[] = {
        {false, "What is this?", 1, 4096, LVP_SAMPLE_OK},
        {false, "What is this?", 2, 4096, LVP_SAMPLE_OK},
        {false, "What is this?", 0, 4096, LVP_SAMPLE_OK},
        {false, "What is <image>?", 1, 4096, LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT},
        {false, "What is this?", 1, 576, LVP_SAMPLE_PROMPT_TOO_LONG},
        {true, "<image>\nWhat?", 1, 4096, LVP_SAMPLE_OK},
        {true, "What <image> and <image>?", 2, 4096, LVP_SAMPLE_OK},
        {true, "What?", 1, 4096, LVP_SAMPLE_IMAGE_COUNT_MISMATCH},
        {true, "<image><image>?", 1, 4096, LVP_SAMPLE_IMAGE_COUNT_MISMATCH},
        {true, "What is <image>", 1, 4096, LVP_SAMPLE_IMAGE_COUNT_MISMATCH},
        {true, "What is <image> ", 1, 4096, LVP_SAMPLE_OK},
    };
    struct lvp_tokenizer *tokenizer;
    struct lvp_chat_template *chat;
    assert_int_equal(lvp_tokenizer_open(FOLDER, &tokenizer), LVP_OK);
    assert_int_equal(lvp_chat_template_load(FOLDER, &chat), LVP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct prompt_case *test = &cases[i];
        struct lvp_prompt prompt;
        struct lvp_sample_error error;
        assert_int_equal(lvp_prompt_build(tokenizer, test->raw ? NULL : chat, NULL, test->text, test->n_images,
                                          IMAGE_ID, 576, test->max_positions, &prompt, &error),
                         LVP_OK);
        if (error.code != test->code) fail_msg("\"%s\": %s", test->text, lvp_sample_error_name(error.code));
        if (error.code == LVP_SAMPLE_OK) {
            assert_int_equal(prompt.n_images, test->n_images);
            assert_int_equal(prompt.n_rows, prompt.n_ids + 575 * test->n_images);
            assert_int_equal(prompt.ids[0], 1); // bos, once
            assert_int_not_equal(prompt.ids[1], 1);
        } else {
            assert_null(prompt.ids);
            assert_true(error.message[0] != '\0');
        }
        lvp_prompt_free(&prompt);
    }
    // The limit itself: rows have to be fewer than positions, so that one token can be generated.
    struct lvp_prompt prompt;
    struct lvp_sample_error error;
    assert_int_equal(lvp_prompt_build(tokenizer, chat, NULL, "a", 1, IMAGE_ID, 576, 4096, &prompt, &error), LVP_OK);
    const int n_rows = prompt.n_rows;
    lvp_prompt_free(&prompt);
    assert_int_equal(lvp_prompt_build(tokenizer, chat, NULL, "a", 1, IMAGE_ID, 576, n_rows, &prompt, &error), LVP_OK);
    assert_int_equal(error.code, LVP_SAMPLE_PROMPT_TOO_LONG);
    assert_int_equal(lvp_prompt_build(tokenizer, chat, NULL, "a", 1, IMAGE_ID, 576, n_rows + 1, &prompt, &error),
                     LVP_OK);
    assert_int_equal(error.code, LVP_SAMPLE_OK);
    lvp_prompt_free(&prompt);
    // Tokenizer and model: <image> has to be the image token, and the template's own ids need rows in the embedding.
    const struct lvp_chat_template *templates[] = {chat, NULL};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(lvp_prompt_check_model(tokenizer, templates[i], IMAGE_ID, IMAGE_ID), LVP_OK);
        assert_int_equal(lvp_prompt_check_model(tokenizer, templates[i], IMAGE_ID + 9, IMAGE_ID), LVP_ERR_MODEL);
        assert_int_equal(lvp_prompt_check_model(tokenizer, templates[i], IMAGE_ID, 2), LVP_ERR_MODEL);
        lvp_error_clear();
    }
    lvp_chat_template_free(chat);
    lvp_tokenizer_close(tokenizer);
}

// The answer to score: what follows the prompt, and the end token.
static void test_answer(void **state)
{
    (void)state;
    static const struct {
        const char *answer;
        enum lvp_sample_error_code code;
    } cases[] = {{"A red dog", LVP_SAMPLE_OK},
                 {"", LVP_SAMPLE_PROMPT_FIELD_MISSING},
                 {" \n", LVP_SAMPLE_PROMPT_FIELD_MISSING},
                 {"a <image>", LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT}};
    struct lvp_tokenizer *tokenizer;
    struct lvp_chat_template *chat;
    struct lvp_prompt prompt;
    struct lvp_sample_error error;
    assert_int_equal(lvp_tokenizer_open(FOLDER, &tokenizer), LVP_OK);
    assert_int_equal(lvp_chat_template_load(FOLDER, &chat), LVP_OK);
    assert_int_equal(lvp_prompt_build(tokenizer, chat, NULL, "What?", 1, IMAGE_ID, 576, 4096, &prompt, &error), LVP_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t *ids = NULL;
        int n_ids = 0;
        char *text = NULL;
        size_t n_bytes = 0;
        assert_int_equal(
            lvp_prompt_answer(tokenizer, chat, NULL, "What?", 1, cases[i].answer, 2, &prompt, &ids, &n_ids, &error),
            LVP_OK);
        if (error.code != cases[i].code) fail_msg("\"%s\": %s", cases[i].answer, lvp_sample_error_name(error.code));
        if (error.code == LVP_SAMPLE_OK) {
            assert_true(n_ids > 1 && ids[n_ids - 1] == 2);
            assert_int_equal(lvp_tokenizer_decode(tokenizer, ids, (size_t)n_ids, &text, &n_bytes), LVP_OK);
            assert_string_equal(lvp_trim(text, &n_bytes), cases[i].answer);
        } else {
            assert_null(ids);
        }
        free(text);
        free(ids);
    }
    lvp_prompt_free(&prompt);
    lvp_chat_template_free(chat);
    lvp_tokenizer_close(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_templates), cmocka_unit_test(test_no_template),
                                       cmocka_unit_test(test_build), cmocka_unit_test(test_answer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
