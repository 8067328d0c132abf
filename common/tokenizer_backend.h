// The two ways to tokenize behind common/tokenizer.h, named as in transformers: "slow" is sentencepiece with
// LlamaTokenizer's rules around it, "fast" is the BPE that tokenizer.json describes. Both are constant once open.
#ifndef LVP_COMMON_TOKENIZER_BACKEND_H
#define LVP_COMMON_TOKENIZER_BACKEND_H

#include "common/text.h"
#include "common/tokenizer_config.h"

struct lvp_tokenizer_backend {
    void *state;
    void (*close)(void *state);
    // Text is valid UTF-8. Appends to `ids`.
    enum lvp_status (*encode)(const void *state, const char *text, size_t n_bytes, bool add_special,
                              struct lvp_ids *ids);
    // Appends to `text`.
    enum lvp_status (*decode)(const void *state, const int32_t *ids, size_t n_ids, struct lvp_text *text);
    const struct lvp_added_tokens *added; // with their ids
    size_t size;                          // one more than the largest id
};

// U+2581, what sentencepiece writes for a space.
#define LVP_SPACE_MARK "\xE2\x96\x81"

// Reads tokenizer.json; *found is false, with LVP_OK, when there is none.
enum lvp_status lvp_fast_tokenizer_open(struct lvp_tokenizer_files *files, const struct lvp_tokenizer_config *config,
                                        struct lvp_tokenizer_backend *backend, bool *found) LVP_MUST_CHECK;
// Reads tokenizer.model; *found is false, with LVP_OK, when there is none.
enum lvp_status lvp_slow_tokenizer_open(struct lvp_tokenizer_files *files, const struct lvp_tokenizer_config *config,
                                        struct lvp_tokenizer_backend *backend, bool *found) LVP_MUST_CHECK;

#endif
