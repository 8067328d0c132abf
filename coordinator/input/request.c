#include "coordinator/input/request.h"

#include "common/json_text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// Appends the value of one field; false when the sample has none.
static bool append_field(const struct lvp_sample *sample, const char *name, size_t length, struct lvp_json_text *text)
{
    char key[256];
    if (length >= sizeof key) return false;
    memcpy(key, name, length);
    key[length] = '\0';
    const json_t *value = json_object_get(sample->columns, key); // NULL for NULL
    if (json_is_string(value)) {
        lvp_json_text_append(text, json_string_value(value), json_string_length(value));
        return true;
    }
    if (value == NULL && strcmp(key, "id") == 0) {
        lvp_json_text_puts(text, sample->id);
        return true;
    }
    if (value == NULL && strcmp(key, "image") == 0 && sample->n_images > 0) {
        lvp_json_text_puts(text, sample->images[0]);
        return true;
    }
    if (value == NULL || json_is_null(value)) return false;
    // 0.1 as it was most likely typed: 15 digits where they are enough.
    char *dump = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (dump == NULL) {
        text->failed = true;
        return true;
    }
    lvp_json_text_puts(text, dump);
    free(dump);
    return true;
}

enum lvp_status lvp_prompt_fill(const char *template_text, const struct lvp_sample *sample, char **text,
                                struct lvp_sample_error *error)
{
    struct lvp_json_text filled = {0};
    *text = NULL;
    for (const char *at = template_text; *at != '\0';) {
        size_t plain = strcspn(at, "{}");
        lvp_json_text_append(&filled, at, plain);
        at += plain;
        if (*at == '\0') break;
        const char *end = *at == '{' && at[1] != '{' ? strpbrk(at + 1, "{}") : NULL;
        if (end != NULL && *end == '}') {
            if (!append_field(sample, at + 1, (size_t)(end - at - 1), &filled)) {
                if (sample->columns_error.code != LVP_SAMPLE_OK)
                    *error = sample->columns_error; // that is why it is missing
                else
                    lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING, "the input row has no field \"%.*s\"",
                                         (int)(end - at - 1), at + 1);
                lvp_json_text_free(&filled);
                return LVP_OK;
            }
            at = end + 1;
        } else {
            lvp_json_text_append(&filled, at, 1); // {{, }} or a brace of its own
            at += at[1] == at[0] ? 2 : 1;
        }
    }
    lvp_json_text_append(&filled, "", 1);
    if (filled.failed) {
        lvp_json_text_free(&filled);
        return lvp_fail(LVP_ERR_MEMORY, "filling a prompt: out of memory");
    }
    *text = filled.data;
    return LVP_OK;
}

enum lvp_status lvp_prompt_check(const char *template_text)
{
    for (const char *at = template_text; (at = strchr(at, '{')) != NULL;) {
        if (at[1] == '{') {
            at += 2;
            continue;
        }
        const char *end = strpbrk(at + 1, "{}");
        if (end == NULL || *end != '}' || end == at + 1)
            return lvp_fail(LVP_ERR_USAGE, "--prompt \"%s\": a { without a name and a closing }; write {{ for a brace",
                            template_text);
        at = end + 1;
    }
    return LVP_OK;
}

// Whether a prompt has the placeholder {name}, or any with NULL.
static bool asks_for(const char *prompt, const char *name)
{
    for (const char *at = prompt; (at = strchr(at, '{')) != NULL; at++) {
        if (at[1] == '{') {
            at++;
            continue;
        }
        size_t length = strcspn(at + 1, "{}");
        if (name == NULL || (strlen(name) == length && memcmp(at + 1, name, length) == 0)) return true;
    }
    return false;
}

struct lvp_columns lvp_columns_needed(const char *const *prompts, int n_prompts)
{
    struct lvp_columns columns = {.json = n_prompts == 0};
    for (int p = 0; p < n_prompts; p++) {
        columns.json = columns.json || asks_for(prompts[p], NULL);
        columns.text = columns.text || asks_for(prompts[p], "txt");
    }
    return columns;
}

uint64_t lvp_request_count(const struct lvp_requests *requests)
{
    return lvp_manifest_count(requests->manifest) * (uint64_t)lvp_prompts_per_sample(requests);
}

static enum lvp_status set_prompt(const struct lvp_requests *requests, int k, struct lvp_request *request)
{
    const struct lvp_sample *sample = &request->sample;
    request->error = sample->error;
    // Without --prompt, the sample's own would be asked, were it known.
    if (request->error.code == LVP_SAMPLE_OK && requests->n_prompts == 0) request->error = sample->columns_error;
    if (request->error.code == LVP_SAMPLE_OK && requests->n_prompts > 0)
        LVP_TRY(lvp_prompt_fill(requests->prompts[k], sample, &request->prompt, &request->error));
    if (request->prompt != NULL) return LVP_OK;
    const char *text = request->error.code != LVP_SAMPLE_OK ? ""
                       : sample->prompt != NULL             ? sample->prompt
                                                            : LVP_DEFAULT_PROMPT;
    request->prompt = strdup(text);
    return request->prompt != NULL ? LVP_OK : lvp_fail(LVP_ERR_MEMORY, "a request: out of memory");
}

enum lvp_status lvp_request_make(const struct lvp_requests *requests, struct lvp_sample sample, int k,
                                 struct lvp_request *request)
{
    enum lvp_status status = LVP_OK;
    *request = (struct lvp_request){.sample = sample};
    int n = lvp_prompts_per_sample(requests) > 1 ? asprintf(&request->id, "%s#%d", sample.id, k)
                                                 : asprintf(&request->id, "%s", sample.id);
    if (n < 0) {
        request->id = NULL;
        status = lvp_fail(LVP_ERR_MEMORY, "a request: out of memory");
        goto fail;
    }
    LVP_CHECK(set_prompt(requests, k, request));
    if (requests->score != NULL && request->error.code == LVP_SAMPLE_OK)
        LVP_CHECK(lvp_prompt_fill(requests->score, &request->sample, &request->answer, &request->error));
    return LVP_OK;
fail:
    lvp_request_free(request);
    return status;
}

enum lvp_status lvp_request_load(const struct lvp_requests *requests, struct lvp_cursor *cursor, uint64_t index,
                                 struct lvp_request *request)
{
    uint64_t per_sample = (uint64_t)lvp_prompts_per_sample(requests);
    struct lvp_sample sample;
    *request = (struct lvp_request){0};
    LVP_TRY(lvp_manifest_sample(requests->manifest, cursor, index / per_sample, &sample));
    return lvp_request_make(requests, sample, (int)(index % per_sample), request);
}

void lvp_request_free(struct lvp_request *request)
{
    lvp_sample_free(&request->sample);
    free(request->id);
    free(request->prompt);
    free(request->answer);
    *request = (struct lvp_request){0};
}

uint64_t lvp_request_hash(const struct lvp_request *request)
{
    uint64_t hash = XXH3_64bits(request->id, strlen(request->id));
    hash = XXH3_64bits_withSeed(request->prompt, strlen(request->prompt), hash);
    return request->answer == NULL ? hash : XXH3_64bits_withSeed(request->answer, strlen(request->answer), hash);
}
