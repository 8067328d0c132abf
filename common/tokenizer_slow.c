// LlamaTokenizer (transformers 4.57, models/llama/tokenization_llama.py) over the sentencepiece library.
#include "common/sentencepiece_shim.h"
#include "common/tokenizer_backend.h"

#include <stdlib.h>
#include <string.h>

struct slow_tokenizer {
    struct lvp_sentencepiece *model;
    struct lvp_added_tokens added; // special: named as one (bos_token, ...), whatever the token's own flag says
    int32_t *by_id;                // lvp_added_tokens_index
    size_t n_by_id;
    struct lvp_token_matcher matcher;
    bool legacy, add_prefix_space;
    char *unk;              // text of the unknown token
    size_t n_unk_pieces;    // pieces that text has
    int32_t mark_id;        // the piece that is a space mark alone; -1 when there is none
    int32_t bos_id, eos_id; // put before and after; -1: not
};

static void slow_close(void *state)
{
    struct slow_tokenizer *slow = state;
    if (slow == NULL) return;
    lvp_token_matcher_free(&slow->matcher);
    lvp_added_tokens_free(&slow->added);
    lvp_sentencepiece_close(slow->model);
    free(slow->by_id);
    free(slow->unk);
    free(slow);
}

static bool starts_with(const char *text, size_t n_bytes, const char *prefix)
{
    const size_t length = strlen(prefix);
    return n_bytes >= length && memcmp(text, prefix, length) == 0;
}

static enum lvp_status encode_segment(const struct slow_tokenizer *slow, const char *text, size_t n_bytes,
                                      struct lvp_ids *ids)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text guarded = {0};
    struct lvp_ids pieces = {0};

    if (slow->legacy || (!starts_with(text, n_bytes, LVP_SPACE_MARK) && !starts_with(text, n_bytes, " ")))
        return lvp_sentencepiece_encode(slow->model, text, n_bytes, ids);
    // Without a dummy prefix sentencepiece drops a leading space mark. Python's way around it, which decides what the
    // pieces are: encode the unknown token's text before the segment, then leave out as many pieces as that text has
    // alone.
    LVP_CHECK(lvp_text_append_string(&guarded, slow->unk));
    LVP_CHECK(lvp_text_append(&guarded, text, n_bytes));
    LVP_CHECK(lvp_sentencepiece_encode(slow->model, guarded.bytes, guarded.n_bytes, &pieces));
    const size_t skip = pieces.n >= slow->n_unk_pieces ? slow->n_unk_pieces : 0;
    LVP_CHECK(lvp_ids_append(ids, pieces.items + skip, pieces.n - skip));
fail:
    free(guarded.bytes);
    free(pieces.items);
    return status;
}

static enum lvp_status encode_segments(const struct slow_tokenizer *slow, const char *text, size_t n_bytes,
                                       struct lvp_ids *ids)
{
    const size_t n_before = ids->n;
    struct lvp_token_match match;
    size_t at = 0;
    while (lvp_token_matcher_next(&slow->matcher, text, n_bytes, at, &match)) {
        if (match.start > at) LVP_TRY(encode_segment(slow, text + at, match.start - at, ids));
        // A prompt that begins with a special token has no space mark before it (LlamaTokenizer.tokenize).
        if (!slow->legacy && at == 0 && ids->n == n_before + 1 && match.token->special && slow->mark_id >= 0 &&
            ids->items[n_before] == slow->mark_id)
            ids->n--;
        LVP_TRY(lvp_ids_append(ids, &match.token->id, 1));
        at = match.end;
    }
    return at < n_bytes ? encode_segment(slow, text + at, n_bytes - at, ids) : LVP_OK;
}

static enum lvp_status slow_encode(const void *state, const char *text, size_t n_bytes, bool add_special,
                                   struct lvp_ids *ids)
{
    const struct slow_tokenizer *slow = state;
    enum lvp_status status = LVP_OK;
    struct lvp_text marked = {0};

    if (add_special && slow->bos_id >= 0) LVP_CHECK(lvp_ids_append(ids, &slow->bos_id, 1));
    if (slow->legacy || n_bytes == 0) {
        LVP_CHECK(encode_segments(slow, text, n_bytes, ids));
    } else {
        if (slow->add_prefix_space) LVP_CHECK(lvp_text_append_string(&marked, LVP_SPACE_MARK));
        LVP_CHECK(lvp_text_append_replaced(&marked, text, n_bytes, LVP_SPACE_MARK, " "));
        LVP_CHECK(encode_segments(slow, marked.bytes, marked.n_bytes, ids));
    }
    if (add_special && slow->eos_id >= 0) LVP_CHECK(lvp_ids_append(ids, &slow->eos_id, 1));
fail:
    free(marked.bytes);
    return status;
}

// LlamaTokenizer.convert_tokens_to_string: one space mark less at the start, then sentencepiece's own rules.
static enum lvp_status decode_pieces(const struct slow_tokenizer *slow, const char **pieces, size_t n,
                                     struct lvp_text *text)
{
    if (n == 0) return LVP_OK;
    if (slow->add_prefix_space && starts_with(pieces[0], strlen(pieces[0]), LVP_SPACE_MARK))
        pieces[0] += strlen(LVP_SPACE_MARK);
    return lvp_sentencepiece_decode(slow->model, pieces, n, text);
}

// PreTrainedTokenizer._decode: added tokens that are not special stand between parts that are decoded by themselves,
// all of them joined by spaces; empty parts count only at the end.
static enum lvp_status slow_decode(const void *state, const int32_t *ids, size_t n_ids, struct lvp_text *text)
{
    const struct slow_tokenizer *slow = state;
    enum lvp_status status = LVP_OK;
    struct lvp_text part = {0};
    size_t n_pieces = 0, n_parts = 0;
    const char **pieces = malloc((n_ids + 1) * sizeof *pieces);
    if (pieces == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory to decode %zu ids", n_ids);

    for (size_t i = 0; i < n_ids; i++) {
        const struct lvp_added_token *token = lvp_added_tokens_by_id(&slow->added, slow->by_id, slow->n_by_id, ids[i]);
        if (token != NULL && token->special) continue;
        if (token == NULL) {
            // An id past the vocabulary (a padded embedding) stands for nothing.
            const char *piece = lvp_sentencepiece_piece(slow->model, ids[i]);
            if (piece != NULL) pieces[n_pieces++] = piece;
            continue;
        }
        part.n_bytes = 0;
        LVP_CHECK(decode_pieces(slow, pieces, n_pieces, &part));
        n_pieces = 0;
        if (part.n_bytes > 0) {
            if (n_parts++ > 0) LVP_CHECK(lvp_text_append_string(text, " "));
            LVP_CHECK(lvp_text_append(text, part.bytes, part.n_bytes));
        }
        if (n_parts++ > 0) LVP_CHECK(lvp_text_append_string(text, " "));
        LVP_CHECK(lvp_text_append_string(text, token->text));
    }
    if (n_pieces > 0 && n_parts > 0) LVP_CHECK(lvp_text_append_string(text, " "));
    LVP_CHECK(decode_pieces(slow, pieces, n_pieces, text));
fail:
    free(part.bytes);
    free(pieces);
    return status;
}

// Named special tokens that have no id yet get the model's, else the next free ones (PreTrainedTokenizer._add_tokens).
static enum lvp_status add_tokens(const struct lvp_tokenizer_config *config, struct slow_tokenizer *slow)
{
    const int32_t unknown = lvp_sentencepiece_unknown_id(slow->model);
    int32_t next_id = lvp_sentencepiece_size(slow->model);
    for (size_t i = 0; i < config->added.n; i++) {
        struct lvp_added_token token = config->added.items[i];
        token.special = lvp_added_tokens_find(&config->special, token.text) != NULL;
        LVP_TRY(lvp_added_tokens_append(&slow->added, &token));
        const int32_t piece = lvp_sentencepiece_id(slow->model, token.text);
        if (piece == unknown && strcmp(lvp_sentencepiece_piece(slow->model, unknown), token.text) != 0) next_id++;
    }
    for (size_t i = 0; i < config->special.n; i++) {
        struct lvp_added_token token = config->special.items[i];
        if (lvp_added_tokens_find(&slow->added, token.text) != NULL) continue;
        token.id = lvp_sentencepiece_id(slow->model, token.text);
        if (token.id == unknown && strcmp(lvp_sentencepiece_piece(slow->model, unknown), token.text) != 0)
            token.id = next_id++;
        LVP_TRY(lvp_added_tokens_append(&slow->added, &token));
    }
    LVP_TRY(lvp_added_tokens_index(&slow->added, &slow->by_id, &slow->n_by_id));
    return lvp_token_matcher_build(&slow->added, LVP_TOKENS_ALL, &slow->matcher);
}

static enum lvp_status find_id(const struct slow_tokenizer *slow, bool wanted, const char *text, const char *option,
                               int32_t *id)
{
    *id = -1;
    if (!wanted) return LVP_OK;
    const struct lvp_added_token *token = text == NULL ? NULL : lvp_added_tokens_find(&slow->added, text);
    if (token == NULL) return lvp_fail(LVP_ERR_MODEL, "tokenizer_config.json: %s without such a token", option);
    *id = token->id;
    return LVP_OK;
}

static enum lvp_status set_up(const struct lvp_tokenizer_config *config, struct slow_tokenizer *slow)
{
    struct lvp_ids pieces = {0};

    slow->legacy = config->legacy;
    slow->add_prefix_space = config->add_prefix_space != LVP_NO && !config->prefix_space_null;
    slow->unk = strdup(config->unk == NULL ? "None" : config->unk); // "None" is Python's str(None)
    if (slow->unk == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
    const int32_t unknown = lvp_sentencepiece_unknown_id(slow->model);
    if (lvp_sentencepiece_piece(slow->model, unknown) == NULL)
        return lvp_fail(LVP_ERR_MODEL, "tokenizer.model: no unknown piece");
    slow->mark_id = lvp_sentencepiece_id(slow->model, LVP_SPACE_MARK);
    if (slow->mark_id == unknown) slow->mark_id = -1;
    enum lvp_status status = lvp_sentencepiece_encode(slow->model, slow->unk, strlen(slow->unk), &pieces);
    slow->n_unk_pieces = pieces.n;
    free(pieces.items);
    LVP_TRY(status);
    LVP_TRY(add_tokens(config, slow));
    LVP_TRY(find_id(slow, config->add_bos, config->bos, "add_bos_token", &slow->bos_id));
    return find_id(slow, config->add_eos, config->eos, "add_eos_token", &slow->eos_id);
}

enum lvp_status lvp_slow_tokenizer_open(struct lvp_tokenizer_files *files, const struct lvp_tokenizer_config *config,
                                        struct lvp_tokenizer_backend *backend, bool *found)
{
    enum lvp_status status = LVP_OK;
    struct slow_tokenizer *slow = NULL;
    char *bytes = NULL;
    size_t n_bytes;

    *found = false;
    LVP_CHECK(lvp_tokenizer_files_read(files, "tokenizer.model", LVP_MAX_TOKENIZER_MODEL, &bytes, &n_bytes));
    if (bytes == NULL) return LVP_OK;
    if (!config->is_llama) {
        status = lvp_fail(LVP_ERR_MODEL,
                          "tokenizer.model of class %s is not supported without a tokenizer.json: only "
                          "LlamaTokenizer is",
                          config->tokenizer_class);
        goto fail;
    }
    slow = calloc(1, sizeof *slow);
    if (slow == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
        goto fail;
    }
    LVP_CHECK(lvp_sentencepiece_open(bytes, n_bytes, !config->legacy, &slow->model));
    LVP_CHECK(set_up(config, slow));
    const size_t n_pieces = (size_t)lvp_sentencepiece_size(slow->model);
    *backend = (struct lvp_tokenizer_backend){
        .state = slow,
        .close = slow_close,
        .encode = slow_encode,
        .decode = slow_decode,
        .added = &slow->added,
        .size = slow->n_by_id > n_pieces ? slow->n_by_id : n_pieces,
    };
    *found = true;
    slow = NULL;
fail:
    slow_close(slow);
    free(bytes);
    return status;
}
