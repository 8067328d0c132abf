#include "common/tokenizer_config.h"

#include "common/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

struct lvp_tokenizer_files {
    char *dir;
    XXH3_state_t *hash;
};

enum lvp_status lvp_tokenizer_files_open(const char *dir, struct lvp_tokenizer_files **files)
{
    *files = calloc(1, sizeof **files);
    if (*files == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
    (*files)->dir = strdup(dir);
    (*files)->hash = XXH3_createState();
    if ((*files)->dir == NULL || (*files)->hash == NULL) {
        lvp_tokenizer_files_close(*files);
        *files = NULL;
        return lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
    }
    (void)XXH3_128bits_reset((*files)->hash);
    return LVP_OK;
}

void lvp_tokenizer_files_close(struct lvp_tokenizer_files *files)
{
    if (files == NULL) return;
    free(files->dir);
    (void)XXH3_freeState(files->hash);
    free(files);
}

enum lvp_status lvp_tokenizer_files_read(struct lvp_tokenizer_files *files, const char *name, size_t max_bytes,
                                         char **bytes, size_t *n_bytes)
{
    LVP_TRY(lvp_file_read(files->dir, name, max_bytes, bytes, n_bytes));
    if (*bytes == NULL) return LVP_OK;
    char header[128];
    int length = snprintf(header, sizeof header, "%s %zu\n", name, *n_bytes); // so that bytes cannot move between files
    (void)XXH3_128bits_update(files->hash, header, (size_t)length);
    (void)XXH3_128bits_update(files->hash, *bytes, *n_bytes);
    return LVP_OK;
}

enum lvp_status lvp_tokenizer_files_read_json(struct lvp_tokenizer_files *files, const char *name, size_t max_bytes,
                                              json_t **json)
{
    enum lvp_status status = LVP_OK;
    char *bytes = NULL;
    size_t n_bytes;
    json_error_t error;

    *json = NULL;
    LVP_CHECK(lvp_tokenizer_files_read(files, name, max_bytes, &bytes, &n_bytes));
    if (bytes == NULL) return LVP_OK;
    *json = json_loadb(bytes, n_bytes, 0, &error);
    if (*json == NULL) {
        status = lvp_fail(LVP_ERR_MODEL, "%s/%s:%d: %s", files->dir, name, error.line, error.text);
    } else if (!json_is_object(*json)) {
        json_decref(*json);
        *json = NULL;
        status = lvp_fail(LVP_ERR_MODEL, "%s/%s: not a JSON object", files->dir, name);
    }
fail:
    free(bytes);
    return status;
}

void lvp_tokenizer_files_hash(const struct lvp_tokenizer_files *files, char hash[33])
{
    const XXH128_hash_t value = XXH3_128bits_digest(files->hash);
    (void)snprintf(hash, 33, "%016llx%016llx", (unsigned long long)value.high64, (unsigned long long)value.low64);
}

enum lvp_status lvp_added_token_parse(const json_t *json, const char *where, struct lvp_added_token *token)
{
    const char *text = json_string_value(json_object_get(json, "content"));
    if (text == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: an added token has no \"content\"", where);
    if (json_is_true(json_object_get(json, "single_word")))
        return lvp_fail(LVP_ERR_MODEL, "%s: added token \"%.60s\" has single_word, which is not supported", where,
                        text);
    const json_t *normalized = json_object_get(json, "normalized");
    *token = (struct lvp_added_token){
        .text = (char *)text,
        .id = -1,
        .special = json_is_true(json_object_get(json, "special")),
        .lstrip = json_is_true(json_object_get(json, "lstrip")),
        .rstrip = json_is_true(json_object_get(json, "rstrip")),
    };
    token->normalized = normalized == NULL ? !token->special : json_is_true(normalized);
    return LVP_OK;
}

static int by_id(const void *a, const void *b)
{
    const int32_t i = ((const struct lvp_added_token *)a)->id, j = ((const struct lvp_added_token *)b)->id;
    return (i > j) - (i < j);
}

static enum lvp_status append_with_id(struct lvp_added_tokens *tokens, struct lvp_added_token *token, long long id,
                                      const char *where)
{
    if (id < 0 || id > LVP_MAX_TOKEN_ID)
        return lvp_fail(LVP_ERR_MODEL, "%s: id %lld of added token \"%.60s\" is out of range", where, id, token->text);
    token->id = (int32_t)id;
    return lvp_added_tokens_append(tokens, token);
}

// tokenizer_config.json: {"32000": {"content": "<image>", ...}, ...}
static enum lvp_status load_added_decoder(json_t *decoder, struct lvp_added_tokens *added)
{
    static const char where[] = "tokenizer_config.json: added_tokens_decoder";
    const char *key;
    json_t *value;
    json_object_foreach(decoder, key, value)
    {
        struct lvp_added_token token;
        char *end;
        errno = 0;
        long long id = strtoll(key, &end, 10);
        if (errno != 0 || end == key || *end != '\0')
            return lvp_fail(LVP_ERR_MODEL, "%s: \"%.60s\" is not an id", where, key);
        LVP_TRY(lvp_added_token_parse(value, where, &token));
        LVP_TRY(append_with_id(added, &token, id, where));
    }
    return LVP_OK;
}

// added_tokens.json: {"<image>": 32000, ...}; a token is special when one of the named ones is.
static enum lvp_status load_added_encoder(json_t *encoder, const struct lvp_added_tokens *special,
                                          struct lvp_added_tokens *added)
{
    const char *key;
    json_t *value;
    json_object_foreach(encoder, key, value)
    {
        const bool is_special = lvp_added_tokens_find(special, key) != NULL;
        struct lvp_added_token token = {.text = (char *)key, .special = is_special, .normalized = !is_special};
        if (!json_is_integer(value)) return lvp_fail(LVP_ERR_MODEL, "added_tokens.json: \"%.60s\" has no id", key);
        LVP_TRY(append_with_id(added, &token, json_integer_value(value), "added_tokens.json"));
    }
    return LVP_OK;
}

// A special token is a string or an added token's object; null where there is none.
static enum lvp_status append_special(const json_t *value, const char *where, struct lvp_added_tokens *special)
{
    struct lvp_added_token token;
    if (value == NULL || json_is_null(value)) return LVP_OK;
    if (json_is_string(value)) {
        token = (struct lvp_added_token){.text = (char *)json_string_value(value), .id = -1};
    } else if (json_is_object(value)) {
        LVP_TRY(lvp_added_token_parse(value, where, &token));
    } else {
        return lvp_fail(LVP_ERR_MODEL, "%s: neither a string nor an object", where);
    }
    token.special = true;
    if (json_is_string(value)) token.normalized = false;
    if (token.text[0] == '\0' || lvp_added_tokens_find(special, token.text) != NULL) return LVP_OK;
    return lvp_added_tokens_append(special, &token);
}

// A list of special tokens, or an object {"image_token": "<image>"} as extra_special_tokens is.
static enum lvp_status append_specials(json_t *list, const char *where, struct lvp_added_tokens *special)
{
    size_t i;
    const char *key;
    json_t *value;
    if (list == NULL || json_is_null(list)) return LVP_OK;
    if (json_is_object(list)) {
        json_object_foreach(list, key, value) LVP_TRY(append_special(value, where, special));
        return LVP_OK;
    }
    if (!json_is_array(list)) return lvp_fail(LVP_ERR_MODEL, "%s: neither a list nor an object", where);
    json_array_foreach(list, i, value) LVP_TRY(append_special(value, where, special));
    return LVP_OK;
}

// The value of a field: special_tokens_map.json (where transformers looks at it) before tokenizer_config.json.
static json_t *field(const json_t *config, const json_t *map, const char *name)
{
    json_t *value = json_object_get(map, name);
    return value != NULL ? value : json_object_get(config, name);
}

static enum lvp_status copy_token_text(const json_t *value, const char *absent, char **text)
{
    const char *found = NULL;
    if (value == NULL)
        found = absent;
    else if (json_is_string(value))
        found = json_string_value(value);
    else if (json_is_object(value))
        found = json_string_value(json_object_get(value, "content"));
    *text = NULL;
    if (found == NULL || found[0] == '\0') return LVP_OK;
    *text = strdup(found);
    return *text == NULL ? lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer") : LVP_OK;
}

static enum lvp_status load_special(const json_t *config, const json_t *map, struct lvp_tokenizer_config *out)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    static const char *const llama[] = {"<s>", "</s>", "<unk>"}; // defaults of LLaMA's class for the first three
    char **const copies[] = {&out->bos, &out->eos, &out->unk};
    char where[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const json_t *value = field(config, map, names[i]);
        const char *absent = i < 3 && out->is_llama ? llama[i] : NULL;
        if (i < 3) LVP_TRY(copy_token_text(value, absent, copies[i]));
        (void)snprintf(where, sizeof where, "tokenizer's %s", names[i]);
        if (value != NULL) {
            LVP_TRY(append_special(value, where, &out->special));
        } else if (absent != NULL && lvp_added_tokens_find(&out->special, absent) == NULL) {
            struct lvp_added_token token = {.text = (char *)absent, .id = -1, .special = true};
            LVP_TRY(lvp_added_tokens_append(&out->special, &token));
        }
    }
    LVP_TRY(append_specials(field(config, map, "additional_special_tokens"), "tokenizer's additional_special_tokens",
                            &out->special));
    return append_specials(json_object_get(config, "extra_special_tokens"),
                           "tokenizer_config.json: extra_special_tokens", &out->special);
}

static void load_flags(const json_t *config, struct lvp_tokenizer_config *out)
{
    const char *class_name = json_string_value(json_object_get(config, "tokenizer_class"));
    const json_t *add_bos = json_object_get(config, "add_bos_token");
    const json_t *legacy = json_object_get(config, "legacy");
    const json_t *prefix = json_object_get(config, "add_prefix_space");
    (void)snprintf(out->tokenizer_class, sizeof out->tokenizer_class, "%s", class_name == NULL ? "" : class_name);
    out->is_llama = class_name == NULL || strcmp(class_name, "LlamaTokenizer") == 0 ||
                    strcmp(class_name, "LlamaTokenizerFast") == 0;
    out->legacy = legacy == NULL || json_is_null(legacy) || json_is_true(legacy);
    out->add_bos = add_bos == NULL || json_is_true(add_bos);
    out->add_eos = json_is_true(json_object_get(config, "add_eos_token"));
    out->add_prefix_space = prefix == NULL || json_is_null(prefix) ? LVP_UNSET
                            : json_is_true(prefix)                 ? LVP_YES
                                                                   : LVP_NO;
    out->prefix_space_null = json_is_null(prefix);
    out->clean_up_spaces = json_is_true(json_object_get(config, "clean_up_tokenization_spaces"));
}

enum lvp_status lvp_tokenizer_config_load(struct lvp_tokenizer_files *files, struct lvp_tokenizer_config *config)
{
    enum lvp_status status = LVP_OK;
    json_t *main_json = NULL, *map = NULL, *encoder = NULL;

    *config = (struct lvp_tokenizer_config){0};
    LVP_CHECK(lvp_tokenizer_files_read_json(files, "tokenizer_config.json", LVP_MAX_CONFIG_JSON, &main_json));
    load_flags(main_json, config);
    json_t *decoder = json_object_get(main_json, "added_tokens_decoder");
    if (decoder != NULL && !json_is_object(decoder)) {
        status = lvp_fail(LVP_ERR_MODEL, "tokenizer_config.json: added_tokens_decoder is not an object");
        goto fail;
    }
    // The two older files count only where added_tokens_decoder is not there
    // (PreTrainedTokenizerBase._from_pretrained).
    if (decoder == NULL) {
        LVP_CHECK(lvp_tokenizer_files_read_json(files, "special_tokens_map.json", LVP_MAX_CONFIG_JSON, &map));
        LVP_CHECK(lvp_tokenizer_files_read_json(files, "added_tokens.json", LVP_MAX_CONFIG_JSON, &encoder));
    }
    LVP_CHECK(load_special(main_json, map, config));
    if (decoder != NULL)
        LVP_CHECK(load_added_decoder(decoder, &config->added));
    else if (encoder != NULL)
        LVP_CHECK(load_added_encoder(encoder, &config->special, &config->added));
    if (config->added.n > 0) qsort(config->added.items, config->added.n, sizeof *config->added.items, by_id);
fail:
    json_decref(main_json);
    json_decref(map);
    json_decref(encoder);
    if (status != LVP_OK) lvp_tokenizer_config_free(config);
    return status;
}

void lvp_tokenizer_config_free(struct lvp_tokenizer_config *config)
{
    free(config->bos);
    free(config->eos);
    free(config->unk);
    lvp_added_tokens_free(&config->added);
    lvp_added_tokens_free(&config->special);
    *config = (struct lvp_tokenizer_config){0};
}
