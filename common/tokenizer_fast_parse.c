#include "common/tokenizer_backend.h"
#include "common/tokenizer_fast.h"

#include <stdio.h>
#include <string.h>

static enum lvp_status unsupported(const char *part, const json_t *json)
{
    const char *type = json_string_value(json_object_get(json, "type"));
    return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: %s %.40s is not supported, only LLaMA-type BPE is", part,
                    type == NULL ? "without a type" : type);
}

static bool is_absent(const json_t *json)
{
    return json == NULL || json_is_null(json);
}

static bool has_type(const json_t *json, const char *type)
{
    const char *found = json_string_value(json_object_get(json, "type"));
    return found != NULL && strcmp(found, type) == 0;
}

static bool copy_string(const json_t *json, char out[LVP_MAX_FAST_STRING])
{
    if (!json_is_string(json) || json_string_length(json) >= LVP_MAX_FAST_STRING) return false;
    memcpy(out, json_string_value(json), json_string_length(json) + 1);
    return true;
}

// {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
static bool parse_replace(const json_t *json, struct lvp_fast_replace *replace)
{
    return copy_string(json_object_get(json_object_get(json, "pattern"), "String"), replace->from) &&
           replace->from[0] != '\0' && copy_string(json_object_get(json, "content"), replace->to);
}

static enum lvp_status parse_normalizer_step(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    if (fast->n_normalizer == LVP_MAX_FAST_STEPS)
        return unsupported("a sequence as long as this normalizer's, ending in", json);
    struct lvp_fast_replace *step = &fast->normalizer[fast->n_normalizer];
    const bool ok = has_type(json, "Prepend")   ? copy_string(json_object_get(json, "prepend"), step->to)
                    : has_type(json, "Replace") ? parse_replace(json, step)
                                                : false;
    if (!ok) return unsupported("normalizer", json);
    fast->n_normalizer++;
    return LVP_OK;
}

static enum lvp_status parse_normalizer(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    size_t i;
    const json_t *step;
    if (is_absent(json)) return LVP_OK;
    if (!has_type(json, "Sequence")) return parse_normalizer_step(json, fast);
    const json_t *steps = json_object_get(json, "normalizers");
    json_array_foreach(steps, i, step) LVP_TRY(parse_normalizer_step(step, fast));
    return LVP_OK;
}

static enum lvp_status parse_metaspace(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    static const char *const names[] = {"never", "first", "always"};
    const json_t *scheme = json_object_get(json, "prepend_scheme"), *split = json_object_get(json, "split");
    if (!copy_string(json_object_get(json, "replacement"), fast->metaspace_mark) || fast->metaspace_mark[0] == '\0')
        return unsupported("this pre_tokenizer", json);
    fast->has_metaspace = true;
    fast->metaspace_split = split == NULL || json_is_true(split);
    fast->metaspace_scheme = LVP_PREPEND_ALWAYS;
    // Older files say add_prefix_space instead.
    if (scheme == NULL && json_is_false(json_object_get(json, "add_prefix_space")))
        fast->metaspace_scheme = LVP_PREPEND_NEVER;
    if (scheme == NULL) return LVP_OK;
    for (int i = 0; i < 3; i++) {
        if (json_is_string(scheme) && strcmp(json_string_value(scheme), names[i]) == 0) {
            fast->metaspace_scheme = (enum lvp_prepend_scheme)i;
            return LVP_OK;
        }
    }
    return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: Metaspace has an unknown prepend_scheme");
}

static enum lvp_status parse_pre_tokenizer(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    if (is_absent(json)) return LVP_OK;
    const json_t *steps = json_object_get(json, "pretokenizers");
    if (has_type(json, "Sequence") && json_array_size(steps) == 1) json = json_array_get(steps, 0);
    return has_type(json, "Metaspace") ? parse_metaspace(json, fast) : unsupported("pre_tokenizer", json);
}

static enum lvp_status parse_strip(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    char content[LVP_MAX_FAST_STRING];
    const json_int_t start = json_integer_value(json_object_get(json, "start"));
    const bool ok = copy_string(json_object_get(json, "content"), content) && strcmp(content, " ") == 0 && start >= 0 &&
                    start <= 64 && json_integer_value(json_object_get(json, "stop")) == 0;
    if (!ok) return unsupported("this decoder", json);
    fast->decode_strip = (size_t)start;
    return LVP_OK;
}

// LLaMA's: any Replace steps, ByteFallback, Fuse, Strip, in this order; the last one may be missing.
static enum lvp_status parse_decoder(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    enum { REPLACE, BYTES, FUSE, STRIP } reached = REPLACE;
    size_t i;
    const json_t *step;
    const json_t *steps = json_object_get(json, "decoders");
    if (!has_type(json, "Sequence"))
        return is_absent(json) ? unsupported("a decoder", json) : unsupported("decoder", json);
    json_array_foreach(steps, i, step)
    {
        if (has_type(step, "Replace") && reached == REPLACE && fast->n_decoder < LVP_MAX_FAST_STEPS) {
            if (!parse_replace(step, &fast->decoder[fast->n_decoder++])) return unsupported("this decoder", step);
        } else if (has_type(step, "ByteFallback") && reached < BYTES) {
            reached = BYTES;
            fast->decode_bytes = true;
        } else if (has_type(step, "Fuse") && reached < FUSE) {
            reached = FUSE;
        } else if (has_type(step, "Strip") && reached == FUSE) {
            reached = STRIP;
            LVP_TRY(parse_strip(step, fast));
        } else {
            return unsupported("decoder (at this place)", step);
        }
    }
    return LVP_OK;
}

// {"SpecialToken": {"id": "<s>"}} with {"special_tokens": {"<s>": {"ids": [1]}}}
static enum lvp_status append_template_token(const json_t *name, const json_t *special_tokens, struct lvp_ids *ids)
{
    size_t i;
    const json_t *value;
    const char *text = json_string_value(json_object_get(name, "id"));
    const json_t *list = text == NULL ? NULL : json_object_get(json_object_get(special_tokens, text), "ids");
    if (!json_is_array(list))
        return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: post_processor names a token without ids");
    json_array_foreach(list, i, value)
    {
        const json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        const int32_t narrow = (int32_t)id;
        if (id < 0 || id > LVP_MAX_TOKEN_ID)
            return lvp_fail(LVP_ERR_MODEL, "tokenizer.json: post_processor has a bad id");
        LVP_TRY(lvp_ids_append(ids, &narrow, 1));
    }
    return LVP_OK;
}

static enum lvp_status parse_post_processor(const json_t *json, struct lvp_fast_tokenizer *fast)
{
    size_t i;
    const json_t *step;
    bool after = false;
    if (is_absent(json)) return LVP_OK;
    if (!has_type(json, "TemplateProcessing")) return unsupported("post_processor", json);
    const json_t *single = json_object_get(json, "single");
    json_array_foreach(single, i, step)
    {
        const json_t *special = json_object_get(step, "SpecialToken");
        if (special != NULL)
            LVP_TRY(append_template_token(special, json_object_get(json, "special_tokens"),
                                          after ? &fast->suffix : &fast->prefix));
        else if (json_object_get(step, "Sequence") != NULL && !after)
            after = true;
        else
            return unsupported("this post_processor", json);
    }
    return LVP_OK;
}

enum lvp_status lvp_fast_parse_steps(const json_t *json, bool with_post_processor, struct lvp_fast_tokenizer *fast)
{
    LVP_TRY(
        parse_pre_tokenizer(json_object_get(json, "pre_tokenizer"), fast)); // first: it tells GPT-2's BPE from LLaMA's
    LVP_TRY(parse_normalizer(json_object_get(json, "normalizer"), fast));
    LVP_TRY(parse_decoder(json_object_get(json, "decoder"), fast));
    return with_post_processor ? parse_post_processor(json_object_get(json, "post_processor"), fast) : LVP_OK;
}

void lvp_fast_override_spaces(const struct lvp_tokenizer_config *config, struct lvp_fast_tokenizer *fast)
{
    const bool prefix = config->add_prefix_space == LVP_YES;
    fast->n_normalizer = 0;
    fast->has_metaspace = !config->legacy;
    fast->decode_strip = prefix ? 1 : 0;
    if (fast->has_metaspace) {
        (void)snprintf(fast->metaspace_mark, sizeof fast->metaspace_mark, "%s", LVP_SPACE_MARK);
        fast->metaspace_scheme = prefix ? LVP_PREPEND_FIRST : LVP_PREPEND_NEVER;
        fast->metaspace_split = false;
        return;
    }
    if (prefix) fast->normalizer[fast->n_normalizer++] = (struct lvp_fast_replace){.from = "", .to = LVP_SPACE_MARK};
    fast->normalizer[fast->n_normalizer++] = (struct lvp_fast_replace){.from = " ", .to = LVP_SPACE_MARK};
}
