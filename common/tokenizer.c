#include "common/tokenizer.h"

#include "common/text.h"
#include "common/tokenizer_backend.h"
#include "common/tokenizer_config.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 28 }; // bytes, so that every count of ids fits an int

struct lvp_tokenizer {
    struct lvp_tokenizer_backend backend;
    bool clean_up_spaces;
    char hash[33];
};

static enum lvp_status open_backend(const char *dir, struct lvp_tokenizer_files *files,
                                    const struct lvp_tokenizer_config *config, struct lvp_tokenizer_backend *backend)
{
    bool found;
    LVP_TRY(lvp_fast_tokenizer_open(files, config, backend, &found)); // transformers prefers it too
    if (found) return LVP_OK;
    LVP_TRY(lvp_slow_tokenizer_open(files, config, backend, &found));
    if (found) return LVP_OK;
    return lvp_fail(LVP_ERR_MODEL,
                    "%s: neither tokenizer.json nor tokenizer.model; supported are LLaMA's sentencepiece model "
                    "and LLaMA-type BPE in tokenizer.json",
                    dir);
}

enum lvp_status lvp_tokenizer_open(const char *dir, struct lvp_tokenizer **tokenizer)
{
    enum lvp_status status = LVP_OK;
    struct lvp_tokenizer_files *files = NULL;
    struct lvp_tokenizer_config config = {0};
    struct lvp_tokenizer *opened = NULL;

    *tokenizer = NULL;
    LVP_CHECK(lvp_tokenizer_files_open(dir, &files));
    LVP_CHECK(lvp_tokenizer_config_load(files, &config));
    opened = calloc(1, sizeof *opened);
    if (opened == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "no memory for a tokenizer");
        goto fail;
    }
    LVP_CHECK(open_backend(dir, files, &config, &opened->backend));
    opened->clean_up_spaces = config.clean_up_spaces;
    lvp_tokenizer_files_hash(files, opened->hash);
    *tokenizer = opened;
    opened = NULL;
fail:
    free(opened);
    lvp_tokenizer_config_free(&config);
    lvp_tokenizer_files_close(files);
    return status;
}

void lvp_tokenizer_close(struct lvp_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    tokenizer->backend.close(tokenizer->backend.state);
    free(tokenizer);
}

enum lvp_status lvp_tokenizer_encode(const struct lvp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                     bool add_special, int32_t **ids, size_t *n_ids)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text repaired = {0};
    struct lvp_ids found = {0};

    *ids = NULL;
    *n_ids = 0;
    if (n_bytes > MAX_TEXT) return lvp_fail(LVP_ERR_FORMAT, "a text of %zu bytes is too long to be tokenized", n_bytes);
    LVP_CHECK(lvp_ids_append(&found, NULL, 0));
    LVP_CHECK(lvp_text_append_repaired(&repaired, text, n_bytes));
    LVP_CHECK(
        tokenizer->backend.encode(tokenizer->backend.state, repaired.bytes, repaired.n_bytes, add_special, &found));
    *ids = found.items;
    *n_ids = found.n;
    found.items = NULL;
fail:
    free(repaired.bytes);
    free(found.items);
    return status;
}

// PreTrainedTokenizerBase.clean_up_tokenization: one replacement after the other.
static enum lvp_status clean_up(struct lvp_text *text)
{
    static const char *const rules[][2] = {{" .", "."},     {" ?", "?"},     {" !", "!"},   {" ,", ","},
                                           {" ' ", "'"},    {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"},
                                           {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        struct lvp_text cleaned = {0};
        enum lvp_status status =
            lvp_text_append_replaced(&cleaned, text->bytes, text->n_bytes, rules[i][0], rules[i][1]);
        free(status == LVP_OK ? text->bytes : cleaned.bytes);
        if (status != LVP_OK) return status;
        *text = cleaned;
    }
    return LVP_OK;
}

enum lvp_status lvp_tokenizer_decode(const struct lvp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                     char **text, size_t *n_bytes)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text decoded = {0}, valid = {0};

    *text = NULL;
    *n_bytes = 0;
    LVP_CHECK(lvp_text_append(&decoded, NULL, 0));
    LVP_CHECK(tokenizer->backend.decode(tokenizer->backend.state, ids, n_ids, &decoded));
    if (tokenizer->clean_up_spaces) LVP_CHECK(clean_up(&decoded));
    LVP_CHECK(lvp_text_append_repaired(&valid, decoded.bytes, decoded.n_bytes));
    *text = valid.bytes;
    *n_bytes = valid.n_bytes;
    valid.bytes = NULL;
fail:
    free(decoded.bytes);
    free(valid.bytes);
    return status;
}

size_t lvp_tokenizer_size(const struct lvp_tokenizer *tokenizer)
{
    return tokenizer->backend.size;
}

int32_t lvp_tokenizer_token_id(const struct lvp_tokenizer *tokenizer, const char *text)
{
    const struct lvp_added_token *token = lvp_added_tokens_find(tokenizer->backend.added, text);
    return token == NULL ? -1 : token->id;
}

const char *lvp_tokenizer_hash(const struct lvp_tokenizer *tokenizer)
{
    return tokenizer->hash;
}
