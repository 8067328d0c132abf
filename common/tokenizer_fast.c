// LlamaTokenizerFast and PreTrainedTokenizerFast (transformers 4.57) with a LLaMA-type BPE in tokenizer.json.
#include "common/tokenizer_fast.h"

#include "common/tokenizer_backend.h"

#include <stdlib.h>
#include <string.h>

static void fast_close(void *state)
{
    struct lvp_fast_tokenizer *fast = state;
    if (fast == NULL) return;
    lvp_token_matcher_free(&fast->plain);
    lvp_token_matcher_free(&fast->normalized);
    lvp_added_tokens_free(&fast->added);
    lvp_bpe_free(fast->bpe);
    free(fast->by_id);
    free(fast->prefix.items);
    free(fast->suffix.items);
    free(fast);
}

// `out` is overwritten.
static enum lvp_status normalize(const struct lvp_fast_tokenizer *fast, const char *text, size_t n_bytes,
                                 struct lvp_text *out)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text next = {0};

    out->n_bytes = 0;
    LVP_CHECK(lvp_text_append(out, text, n_bytes));
    for (size_t i = 0; i < fast->n_normalizer && n_bytes > 0; i++) {
        const struct lvp_fast_replace *step = &fast->normalizer[i];
        next.n_bytes = 0;
        if (step->from[0] == '\0') {
            if (out->n_bytes > 0) LVP_CHECK(lvp_text_append_string(&next, step->to));
            LVP_CHECK(lvp_text_append(&next, out->bytes, out->n_bytes));
        } else {
            LVP_CHECK(lvp_text_append_replaced(&next, out->bytes, out->n_bytes, step->from, step->to));
        }
        const struct lvp_text swap = *out;
        *out = next;
        next = swap;
    }
fail:
    free(next.bytes);
    return status;
}

// Metaspace's split: every mark begins a new piece.
static enum lvp_status encode_split(const struct lvp_fast_tokenizer *fast, const char *text, size_t n_bytes,
                                    struct lvp_ids *ids)
{
    const size_t n_mark = strlen(fast->metaspace_mark);
    size_t start = 0;
    while (start < n_bytes) {
        const char *mark = memmem(text + start + 1, n_bytes - start - 1, fast->metaspace_mark, n_mark);
        const size_t end = mark == NULL ? n_bytes : (size_t)(mark - text);
        LVP_TRY(lvp_bpe_encode(fast->bpe, text + start, end - start, ids));
        start = end;
    }
    return LVP_OK;
}

// What is left between added tokens, normalized. `first`: nothing stands before it.
static enum lvp_status encode_piece(const struct lvp_fast_tokenizer *fast, const char *text, size_t n_bytes, bool first,
                                    struct lvp_ids *ids)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text marked = {0};
    const char *mark = fast->metaspace_mark;

    if (!fast->has_metaspace) return lvp_bpe_encode(fast->bpe, text, n_bytes, ids);
    // The scheme puts a mark before the text unless, spaces being marks, there is one already.
    const bool wanted =
        fast->metaspace_scheme == LVP_PREPEND_ALWAYS || (fast->metaspace_scheme == LVP_PREPEND_FIRST && first);
    const bool marked_already = text[0] == ' ' || strncmp(text, mark, strlen(mark)) == 0;
    if (wanted && !marked_already) LVP_CHECK(lvp_text_append_string(&marked, mark));
    LVP_CHECK(lvp_text_append_replaced(&marked, text, n_bytes, " ", mark));
    LVP_CHECK(fast->metaspace_split ? encode_split(fast, marked.bytes, marked.n_bytes, ids)
                                    : lvp_bpe_encode(fast->bpe, marked.bytes, marked.n_bytes, ids));
fail:
    free(marked.bytes);
    return status;
}

// What is left between the tokens that are searched for before normalization.
static enum lvp_status encode_segment(const struct lvp_fast_tokenizer *fast, const char *text, size_t n_bytes,
                                      bool first, struct lvp_ids *ids)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text normal = {0};
    struct lvp_token_match match;
    size_t at = 0;

    LVP_CHECK(normalize(fast, text, n_bytes, &normal));
    while (lvp_token_matcher_next(&fast->normalized, normal.bytes, normal.n_bytes, at, &match)) {
        if (match.start > at) LVP_CHECK(encode_piece(fast, normal.bytes + at, match.start - at, first && at == 0, ids));
        LVP_CHECK(lvp_ids_append(ids, &match.token->id, 1));
        at = match.end;
    }
    if (at < normal.n_bytes)
        LVP_CHECK(encode_piece(fast, normal.bytes + at, normal.n_bytes - at, first && at == 0, ids));
fail:
    free(normal.bytes);
    return status;
}

static enum lvp_status fast_encode(const void *state, const char *text, size_t n_bytes, bool add_special,
                                   struct lvp_ids *ids)
{
    const struct lvp_fast_tokenizer *fast = state;
    struct lvp_token_match match;
    size_t at = 0;
    if (add_special) LVP_TRY(lvp_ids_append(ids, fast->prefix.items, fast->prefix.n));
    while (lvp_token_matcher_next(&fast->plain, text, n_bytes, at, &match)) {
        if (match.start > at) LVP_TRY(encode_segment(fast, text + at, match.start - at, at == 0, ids));
        LVP_TRY(lvp_ids_append(ids, &match.token->id, 1));
        at = match.end;
    }
    if (at < n_bytes) LVP_TRY(encode_segment(fast, text + at, n_bytes - at, at == 0, ids));
    return add_special ? lvp_ids_append(ids, fast->suffix.items, fast->suffix.n) : LVP_OK;
}

// The value of <0xHH>; -1 for any other token.
static int byte_of(const char *token)
{
    int value = 0;
    if (strlen(token) != 6 || strncmp(token, "<0x", 3) != 0 || token[5] != '>') return -1;
    for (int i = 3; i < 5; i++) {
        const char c = token[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                 : -1;
        if (digit < 0) return -1;
        value = 16 * value + digit;
    }
    return value;
}

// A run of bytes is text when all of it is UTF-8, else one U+FFFD for each byte (the decoder ByteFallback). Empties the
// run.
static enum lvp_status flush_bytes(struct lvp_text *run, struct lvp_text *text)
{
    const size_t n_bytes = run->n_bytes;
    run->n_bytes = 0;
    if (n_bytes == 0) return LVP_OK;
    if (lvp_utf8_valid(run->bytes, n_bytes)) return lvp_text_append(text, run->bytes, n_bytes);
    for (size_t i = 0; i < n_bytes; i++) LVP_TRY(lvp_text_append_string(text, LVP_REPLACEMENT_CHARACTER));
    return LVP_OK;
}

// NULL: a special token, or an id past the vocabulary.
static const char *token_to_decode(const struct lvp_fast_tokenizer *fast, int32_t id)
{
    const struct lvp_added_token *token = lvp_added_tokens_by_id(&fast->added, fast->by_id, fast->n_by_id, id);
    if (token != NULL) return token->special ? NULL : token->text;
    return lvp_bpe_token(fast->bpe, id);
}

static enum lvp_status fast_decode(const void *state, const int32_t *ids, size_t n_ids, struct lvp_text *text)
{
    const struct lvp_fast_tokenizer *fast = state;
    enum lvp_status status = LVP_OK;
    struct lvp_text run = {0}, piece = {0}, next = {0}, fused = {0};

    LVP_CHECK(lvp_text_append(&fused, NULL, 0));
    for (size_t i = 0; i < n_ids; i++) {
        const char *token = token_to_decode(fast, ids[i]);
        if (token == NULL) continue;
        piece.n_bytes = 0;
        LVP_CHECK(lvp_text_append_string(&piece, token));
        for (size_t k = 0; k < fast->n_decoder; k++) {
            next.n_bytes = 0;
            LVP_CHECK(lvp_text_append_replaced(&next, piece.bytes, piece.n_bytes, fast->decoder[k].from,
                                               fast->decoder[k].to));
            const struct lvp_text swap = piece;
            piece = next;
            next = swap;
        }
        const int byte = fast->decode_bytes ? byte_of(piece.bytes) : -1;
        if (byte >= 0) {
            LVP_CHECK(lvp_text_append(&run, &(char){(char)byte}, 1));
            continue;
        }
        LVP_CHECK(flush_bytes(&run, &fused));
        LVP_CHECK(lvp_text_append(&fused, piece.bytes, piece.n_bytes));
    }
    LVP_CHECK(flush_bytes(&run, &fused));
    size_t strip = 0;
    while (strip < fast->decode_strip && strip < fused.n_bytes && fused.bytes[strip] == ' ') strip++;
    LVP_CHECK(lvp_text_append(text, fused.bytes + strip, fused.n_bytes - strip));
fail:
    free(run.bytes);
    free(piece.bytes);
    free(next.bytes);
    free(fused.bytes);
    return status;
}

// Adds a token as the tokenizers library does (AddedVocabulary::add_tokens): the id is that of an added token or of the
// model where the text has one, else the next free one; an id in the file is not looked at. A special token stays
// special and keeps the `normalized` it came with; white space flags are those given last.
static enum lvp_status add_token(const struct lvp_added_token *given, struct lvp_fast_tokenizer *fast)
{
    struct lvp_added_token token = *given;
    struct lvp_added_token *known = lvp_added_tokens_find(&fast->added, token.text);
    if (token.text[0] == '\0') return LVP_OK;
    if (known != NULL) {
        if (!known->special) known->normalized = token.normalized;
        known->special = known->special || token.special;
        known->lstrip = token.lstrip;
        known->rstrip = token.rstrip;
        return LVP_OK;
    }
    token.id = lvp_bpe_id(fast->bpe, token.text, strlen(token.text));
    if (token.id < 0) {
        token.id = lvp_bpe_count(fast->bpe);
        for (size_t i = 0; i < fast->added.n; i++) {
            if (fast->added.items[i].id >= token.id) token.id = fast->added.items[i].id + 1;
        }
    }
    return lvp_added_tokens_append(&fast->added, &token);
}

// tokenizer.json's tokens, then tokenizer_config.json's, then named special tokens that are in neither.
static enum lvp_status add_tokens(const json_t *json, const struct lvp_tokenizer_config *config,
                                  struct lvp_fast_tokenizer *fast)
{
    const json_t *list = json_object_get(json, "added_tokens");
    const json_t *item;
    struct lvp_added_token token;
    size_t i;
    json_array_foreach(list, i, item)
    {
        LVP_TRY(lvp_added_token_parse(item, "tokenizer.json: added_tokens", &token));
        LVP_TRY(add_token(&token, fast));
    }
    for (i = 0; i < config->added.n; i++) {
        token = config->added.items[i];
        token.special = token.special || lvp_added_tokens_find(&config->special, token.text) != NULL;
        LVP_TRY(add_token(&token, fast));
    }
    for (i = 0; i < config->special.n; i++) {
        if (lvp_added_tokens_find(&fast->added, config->special.items[i].text) == NULL)
            LVP_TRY(add_token(&config->special.items[i], fast));
    }
    return LVP_OK;
}

static enum lvp_status index_tokens(struct lvp_fast_tokenizer *fast)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text pattern = {0};

    // A token that is searched for in normalized text is normalized itself: with LLaMA's Prepend it gets a mark before
    // it.
    for (size_t i = 0; i < fast->added.n; i++) {
        struct lvp_added_token *token = &fast->added.items[i];
        if (!token->normalized) continue;
        LVP_CHECK(normalize(fast, token->text, strlen(token->text), &pattern));
        token->pattern = strdup(pattern.bytes);
        if (token->pattern == NULL) {
            status = lvp_fail(LVP_ERR_MEMORY, "no memory for the added tokens");
            goto fail;
        }
    }
    LVP_CHECK(lvp_added_tokens_index(&fast->added, &fast->by_id, &fast->n_by_id));
    LVP_CHECK(lvp_token_matcher_build(&fast->added, LVP_TOKENS_NOT_NORMALIZED, &fast->plain));
    LVP_CHECK(lvp_token_matcher_build(&fast->added, LVP_TOKENS_NORMALIZED, &fast->normalized));
fail:
    free(pattern.bytes);
    return status;
}

static enum lvp_status append_named(const char *text, const char *option, const struct lvp_fast_tokenizer *fast,
                                    struct lvp_ids *ids)
{
    const struct lvp_added_token *token = text == NULL ? NULL : lvp_added_tokens_find(&fast->added, text);
    if (token == NULL) return lvp_fail(LVP_ERR_MODEL, "tokenizer_config.json: %s without such a token", option);
    return lvp_ids_append(ids, &token->id, 1);
}

static enum lvp_status set_up(const json_t *json, const struct lvp_tokenizer_config *config, bool has_model,
                              struct lvp_fast_tokenizer *fast)
{
    LVP_TRY(lvp_fast_parse_steps(json, !config->is_llama, fast));
    if (config->is_llama && config->add_prefix_space != LVP_UNSET && has_model) lvp_fast_override_spaces(config, fast);
    LVP_TRY(lvp_bpe_parse(json_object_get(json, "model"), &fast->bpe));
    LVP_TRY(add_tokens(json, config, fast));
    LVP_TRY(index_tokens(fast));
    if (config->is_llama && config->add_bos) LVP_TRY(append_named(config->bos, "add_bos_token", fast, &fast->prefix));
    if (config->is_llama && config->add_eos) LVP_TRY(append_named(config->eos, "add_eos_token", fast, &fast->suffix));
    return LVP_OK;
}

enum lvp_status lvp_fast_tokenizer_open(struct lvp_tokenizer_files *files, const struct lvp_tokenizer_config *config,
                                        struct lvp_tokenizer_backend *backend, bool *found)
{
    enum lvp_status status = LVP_OK;
    struct lvp_fast_tokenizer *fast = NULL;
    json_t *json = NULL;
    char *model = NULL;
    size_t n_model;

    *found = false;
    LVP_CHECK(lvp_tokenizer_files_read_json(files, "tokenizer.json", LVP_MAX_TOKENIZER_JSON, &json));
    if (json == NULL) return LVP_OK;
    // Only whether it is there matters, and only then is it read.
    if (config->is_llama && config->add_prefix_space != LVP_UNSET)
        LVP_CHECK(lvp_tokenizer_files_read(files, "tokenizer.model", LVP_MAX_TOKENIZER_MODEL, &model, &n_model));
    fast = calloc(1, sizeof *fast);
    if (fast == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
        goto fail;
    }
    LVP_CHECK(set_up(json, config, model != NULL, fast));
    const size_t n_model_ids = (size_t)lvp_bpe_size(fast->bpe);
    *backend = (struct lvp_tokenizer_backend){
        .state = fast,
        .close = fast_close,
        .encode = fast_encode,
        .decode = fast_decode,
        .added = &fast->added,
        .size = fast->n_by_id > n_model_ids ? fast->n_by_id : n_model_ids,
    };
    *found = true;
    fast = NULL;
fail:
    fast_close(fast);
    json_decref(json);
    free(model);
    return status;
}
