#include "common/prompt.h"

#include "common/chat_template.h"
#include "common/file.h"
#include "common/text.h"

#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define IMAGE "<image>"

enum { MAX_TEMPLATE_FILE = 16 << 20 }; // bytes

// What a template prints for one system and one user message and the generation prompt.
struct lvp_chat_template {
    const char *system_before, *system_after; // around the system text; NULL: the template takes none
    const char *user_before;                  // then n times "<image>\n" and the text
    const char *user_after;
    bool system_twice; // the template prints it with and without regard to the role
};

// llava-1.5 and llava-1.6-vicuna; the space after the system text is the one after every text.
static const struct lvp_chat_template LLAVA = {"", " ", "USER: ", " ASSISTANT:", false};
// The vicuna template of transformers' conversion scripts; printing the system text twice looks like a slip, but it is
// what apply_chat_template does.
static const struct lvp_chat_template VICUNA = {"", " ", "USER: ", " ASSISTANT:", true};
static const struct lvp_chat_template MISTRAL = {"<<SYS>>\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", false};
static const struct lvp_chat_template MISTRAL_NO_SYSTEM = {NULL, NULL, "[INST] ", " [/INST]", false};
// Templates that treat every role alike, and one that knows only two.
static const struct lvp_chat_template PLAIN = {"SYSTEM: ", " ", "USER: ", " ASSISTANT:", false};
static const struct lvp_chat_template PLAIN_NO_SYSTEM = {NULL, NULL, "USER: ", " ASSISTANT:", false};

// Building blocks of the published templates.
#define EACH_MESSAGE       "{% for message in messages %}"
#define ROLE_UNLESS_SYSTEM "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
#define IMAGES_FIRST                                                                                                   \
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
#define TEXTS_NEXT(printed)                                                                                            \
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ " printed " }}{% endfor %}"
#define IN_ORDER                                                                                                       \
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<image>\n' }}"                      \
    "{% elif content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endif %}{% endfor %}"
#define END_FOR        "{% endfor %}"
#define ASSISTANT_NEXT "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
#define INST           "{{ '[INST] ' }}" IMAGES_FIRST TEXTS_NEXT("content['text']") "{{' [/INST]' }}"
#define INST_REST(eos)                                                                                                 \
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '" eos " '}}{% else %}"         \
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
#define INST_SYSTEM                                                                                                    \
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'][0]['text'] + '\n<</SYS>>\n\n' }}"         \
    "{% elif message['role'] == 'user' %}"

static const struct {
    const char *source;
    const struct lvp_chat_template *chat;
} KNOWN[] = {
    // llava-hf/llava-1.5-7b-hf
    {EACH_MESSAGE ROLE_UNLESS_SYSTEM IMAGES_FIRST "{% if message['role'] != 'assistant' %}" TEXTS_NEXT(
         "content['text'] + ' '") "{% else %}" TEXTS_NEXT("content['text'] + ' '") "{% endif %}" END_FOR ASSISTANT_NEXT,
     &LLAVA},
    // the same as it was before {% generation %}
    {EACH_MESSAGE ROLE_UNLESS_SYSTEM IMAGES_FIRST TEXTS_NEXT("content['text'] + ' '") END_FOR ASSISTANT_NEXT, &LLAVA},
    {EACH_MESSAGE ROLE_UNLESS_SYSTEM IN_ORDER END_FOR ASSISTANT_NEXT, &LLAVA},
    // transformers, models/llava_next_video/convert_llava_next_video_weights_to_hf.py, chat_vicuna
    {EACH_MESSAGE "{% if message['role'] == 'system' %}{{ message['content'][0]['text'] }}{% else %}"
                  "{{ message['role'].upper() + ': '}}{% endif %}" IMAGES_FIRST TEXTS_NEXT("content['text'] + ' '")
                      END_FOR ASSISTANT_NEXT,
     &VICUNA},
    // llava-hf/llava-v1.6-mistral-7b-hf, with either spelling of its eos
    {EACH_MESSAGE INST_SYSTEM INST INST_REST("</s>") END_FOR, &MISTRAL},
    {EACH_MESSAGE INST_SYSTEM INST INST_REST("<\\s>") END_FOR, &MISTRAL},
    {EACH_MESSAGE "{% if message['role'] == 'user' %}" INST INST_REST("</s>") END_FOR, &MISTRAL_NO_SYSTEM},
    {EACH_MESSAGE "{% if message['role'] == 'user' %}" INST INST_REST("<\\s>") END_FOR, &MISTRAL_NO_SYSTEM},
    // plain ones
    {EACH_MESSAGE "{{ message['role'].upper() + ': ' }}" IMAGES_FIRST TEXTS_NEXT("content['text'] + ' '")
         END_FOR ASSISTANT_NEXT,
     &PLAIN},
    {EACH_MESSAGE "{{ message['role'].upper() + ': ' }}" IN_ORDER END_FOR ASSISTANT_NEXT, &PLAIN},
    {EACH_MESSAGE "{% if message['role'] == 'user' %}USER: " IMAGES_FIRST TEXTS_NEXT(
         "content['text'] + ' '") "{% else %}ASSISTANT: " TEXTS_NEXT("content['text'] + ' '") "{% endif %}" END_FOR
         ASSISTANT_NEXT,
     &PLAIN_NO_SYSTEM},
};

static enum lvp_status recognise(const char *source, size_t n_bytes, const char *where,
                                 const struct lvp_chat_template **chat)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text wanted = {0}, known = {0};

    *chat = NULL;
    LVP_CHECK(lvp_chat_template_canonical(source, n_bytes, &wanted));
    for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN && *chat == NULL; i++) {
        known.n_bytes = 0;
        LVP_CHECK(lvp_chat_template_canonical(KNOWN[i].source, strlen(KNOWN[i].source), &known));
        if (known.n_bytes == wanted.n_bytes && memcmp(known.bytes, wanted.bytes, known.n_bytes) == 0)
            *chat = KNOWN[i].chat;
    }
    if (*chat == NULL)
        status = lvp_fail(LVP_ERR_MODEL,
                          "%s: this chat template is not one of the LLaVA templates that are known; write the "
                          "whole prompt yourself with --raw-prompt",
                          where);
fail:
    free(wanted.bytes);
    free(known.bytes);
    return status;
}

// The template in a JSON file: "chat_template" as a string, or the default of several ([{"name", "template"}] or an
// object).
// `*source` belongs to `json`; NULL: none.
static const char *template_in(const json_t *json)
{
    size_t i;
    const json_t *item;
    const json_t *value = json_object_get(json, "chat_template");
    if (json_is_string(value)) return json_string_value(value);
    if (json_is_object(value)) return json_string_value(json_object_get(value, "default"));
    json_array_foreach(value, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name != NULL && strcmp(name, "default") == 0) return json_string_value(json_object_get(item, "template"));
    }
    return NULL;
}

// Looks into one file; `*chat` stays NULL where it has no template.
static enum lvp_status look_into(const char *dir, const char *name, bool is_json, const struct lvp_chat_template **chat)
{
    enum lvp_status status = LVP_OK;
    char *bytes = NULL;
    size_t n_bytes;
    json_t *json = NULL;
    json_error_t error;

    *chat = NULL;
    LVP_CHECK(lvp_file_read(dir, name, MAX_TEMPLATE_FILE, &bytes, &n_bytes));
    if (bytes == NULL) return LVP_OK;
    if (is_json) {
        json = json_loadb(bytes, n_bytes, 0, &error);
        if (json == NULL) {
            status = lvp_fail(LVP_ERR_MODEL, "%s/%s:%d: %s", dir, name, error.line, error.text);
            goto fail;
        }
        const char *source = template_in(json);
        const json_t *any = json_object_get(json, "chat_template");
        if (source == NULL && any != NULL && !json_is_null(any)) source = ""; // several, none of them the default
        if (source != NULL) LVP_CHECK(recognise(source, strlen(source), name, chat));
    } else {
        LVP_CHECK(recognise(bytes, n_bytes, name, chat));
    }
fail:
    json_decref(json);
    free(bytes);
    return status;
}

enum lvp_status lvp_chat_template_load(const char *dir, struct lvp_chat_template **chat)
{
    // In the order in which transformers' processors and tokenizers look.
    static const char *const files[] = {"chat_template.jinja", "chat_template.json", "processor_config.json",
                                        "tokenizer_config.json"};
    const struct lvp_chat_template *found = NULL;
    *chat = NULL;
    for (size_t i = 0; i < sizeof files / sizeof *files && found == NULL; i++)
        LVP_TRY(look_into(dir, files[i], i > 0, &found));
    *chat = malloc(sizeof **chat);
    if (*chat == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a chat template");
    **chat = found == NULL ? LLAVA : *found;
    return LVP_OK;
}

void lvp_chat_template_free(struct lvp_chat_template *chat)
{
    free(chat);
}

enum lvp_status lvp_chat_template_apply(const struct lvp_chat_template *chat, const char *system, const char *text,
                                        int n_images, char **prompt)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text out = {0};

    *prompt = NULL;
    if (system != NULL && strstr(system, IMAGE) != NULL)
        return lvp_fail(LVP_ERR_USAGE, "--system: " IMAGE " may not stand in the system text");
    if (system != NULL && chat->system_before == NULL)
        return lvp_fail(LVP_ERR_USAGE, "--system: this model's chat template has no place for a system text");
    if (system != NULL) {
        LVP_CHECK(lvp_text_append_string(&out, chat->system_before));
        for (int i = 0; i < (chat->system_twice ? 2 : 1); i++) LVP_CHECK(lvp_text_append_string(&out, system));
        LVP_CHECK(lvp_text_append_string(&out, chat->system_after));
    }
    LVP_CHECK(lvp_text_append_string(&out, chat->user_before));
    for (int i = 0; i < n_images; i++) LVP_CHECK(lvp_text_append_string(&out, IMAGE "\n"));
    LVP_CHECK(lvp_text_append_string(&out, text));
    LVP_CHECK(lvp_text_append_string(&out, chat->user_after));
    *prompt = out.bytes;
    out.bytes = NULL;
fail:
    free(out.bytes);
    return status;
}

// What is wrong with the ids of a sample's prompt, if anything, and its number of rows.
static void check_rows(int n_images, int image_token_id, int vision_tokens, int max_positions,
                       struct lvp_prompt *prompt, struct lvp_sample_error *error)
{
    for (int i = 0; i < prompt->n_ids; i++) prompt->n_images += prompt->ids[i] == image_token_id;
    const long long n_rows = (long long)prompt->n_ids + (long long)prompt->n_images * (vision_tokens - 1LL);
    if (prompt->n_images != n_images)
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_COUNT_MISMATCH,
                             "the prompt has %d " IMAGE ", the sample has %d images", prompt->n_images, n_images);
    else if (prompt->n_ids == 0)
        lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING, "the prompt is empty");
    else if (prompt->ids[prompt->n_ids - 1] == image_token_id)
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_COUNT_MISMATCH,
                             "the prompt ends in an image: some text has to follow the last " IMAGE);
    else if (n_rows >= max_positions)
        lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_TOO_LONG, "the prompt has %lld rows, the model's context is %d",
                             n_rows, max_positions);
    else
        prompt->n_rows = (int)n_rows;
}

enum lvp_status lvp_prompt_build(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                 const char *system, const char *text, int n_images, int image_token_id,
                                 int vision_tokens, int max_positions, struct lvp_prompt *prompt,
                                 struct lvp_sample_error *error)
{
    char *whole = NULL;
    size_t n_ids = 0;

    *prompt = (struct lvp_prompt){0};
    *error = (struct lvp_sample_error){0};
    if (chat != NULL && strstr(text, IMAGE) != NULL) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT,
                             IMAGE " may not stand in a prompt: the chat template puts the images first");
        return LVP_OK;
    }
    if (chat != NULL) LVP_TRY(lvp_chat_template_apply(chat, system, text, n_images, &whole));
    const char *used = whole == NULL ? text : whole;
    const enum lvp_status status = lvp_tokenizer_encode(tokenizer, used, strlen(used), true, &prompt->ids, &n_ids);
    free(whole);
    LVP_TRY(status);
    prompt->n_ids = (int)n_ids; // the tokenizer bounds the text's length
    check_rows(n_images, image_token_id, vision_tokens, max_positions, prompt, error);
    if (error->code != LVP_SAMPLE_OK) lvp_prompt_free(prompt);
    return LVP_OK;
}

enum lvp_status lvp_prompt_check_model(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                       int image_token_id, int vocab)
{
    const int32_t known_id = lvp_tokenizer_token_id(tokenizer, IMAGE);
    struct lvp_prompt prompt;
    struct lvp_sample_error error;
    if (known_id < 0)
        return lvp_fail(LVP_ERR_MODEL, "the tokenizer has no " IMAGE ", config.json's image token is %d",
                        image_token_id);
    if (known_id != image_token_id)
        return lvp_fail(LVP_ERR_MODEL, "config.json's image token is %d, the tokenizer's " IMAGE " is %d",
                        image_token_id, (int)known_id);
    LVP_TRY(lvp_prompt_build(tokenizer, chat, NULL, chat != NULL ? "" : IMAGE ".", 1, image_token_id, 1, INT_MAX,
                             &prompt, &error));
    int32_t beyond = -1;
    for (int i = 0; i < prompt.n_ids; i++)
        if (prompt.ids[i] >= vocab && prompt.ids[i] != image_token_id) beyond = prompt.ids[i];
    lvp_prompt_free(&prompt);
    if (beyond < 0) return LVP_OK;
    return lvp_fail(LVP_ERR_MODEL,
                    "the tokenizer gives id %d, the model's vocabulary ends at %d: they do not belong together",
                    (int)beyond, vocab - 1);
}

enum lvp_status lvp_prompt_answer(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                  const char *system, const char *text, int n_images, const char *answer, int32_t eos,
                                  const struct lvp_prompt *prompt, int32_t **ids, int *n_ids,
                                  struct lvp_sample_error *error)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text whole = {0};
    char *templated = NULL;
    int32_t *all = NULL;
    size_t n = 0, n_prompt = (size_t)prompt->n_ids;

    *ids = NULL;
    *n_ids = 0;
    *error = (struct lvp_sample_error){0};
    if (answer[strspn(answer, " \t\r\n")] == '\0') {
        lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING, "the answer to score is empty");
        return LVP_OK;
    }
    if (strstr(answer, IMAGE) != NULL) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOKEN_IN_PROMPT, IMAGE " may not stand in the answer to score");
        return LVP_OK;
    }
    if (chat != NULL) LVP_TRY(lvp_chat_template_apply(chat, system, text, n_images, &templated));
    LVP_CHECK(lvp_text_append_string(&whole, templated == NULL ? text : templated));
    LVP_CHECK(lvp_text_append_string(&whole, " "));
    LVP_CHECK(lvp_text_append_string(&whole, answer));
    LVP_CHECK(lvp_tokenizer_encode(tokenizer, whole.bytes, strlen(whole.bytes), true, &all, &n));
    if (n <= n_prompt || memcmp(all, prompt->ids, n_prompt * sizeof *all) != 0) {
        lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING,
                             "the answer to score: its first piece cannot be told from the prompt's last one");
        goto fail;
    }
    memmove(all, all + n_prompt, (n - n_prompt) * sizeof *all); // where the prompt was there is room for eos
    all[n - n_prompt] = eos;
    *n_ids = (int)(n - n_prompt) + 1;
    *ids = all;
    all = NULL;
fail:
    free(templated);
    free(whole.bytes);
    free(all);
    return status;
}

void lvp_prompt_free(struct lvp_prompt *prompt)
{
    free(prompt->ids);
    *prompt = (struct lvp_prompt){0};
}
