// What tokenizer.json describes besides its model, private to the two files that read and use it.
// Format: https://github.com/huggingface/tokenizers, tokenizers/src/{normalizers,pre_tokenizers,decoders,processors}.
#ifndef LVP_COMMON_TOKENIZER_FAST_H
#define LVP_COMMON_TOKENIZER_FAST_H

#include "common/text.h"
#include "common/tokenizer_bpe.h"
#include "common/tokenizer_config.h"

enum { LVP_MAX_FAST_STEPS = 8, LVP_MAX_FAST_STRING = 16 };

// Replace `from` by `to`; prepend `to`, unless the text is empty, where `from` is "".
struct lvp_fast_replace {
    char from[LVP_MAX_FAST_STRING], to[LVP_MAX_FAST_STRING];
};

enum lvp_prepend_scheme { LVP_PREPEND_NEVER, LVP_PREPEND_FIRST, LVP_PREPEND_ALWAYS };

struct lvp_fast_tokenizer {
    struct lvp_bpe *bpe;
    struct lvp_added_tokens added;
    int32_t *by_id; // lvp_added_tokens_index
    size_t n_by_id;
    struct lvp_token_matcher plain, normalized; // tokens searched for before and after normalization
    struct lvp_fast_replace normalizer[LVP_MAX_FAST_STEPS];
    size_t n_normalizer;
    bool has_metaspace; // the pre-tokenizer: spaces become marks, a text may get one put before it
    char metaspace_mark[LVP_MAX_FAST_STRING];
    enum lvp_prepend_scheme metaspace_scheme;
    bool metaspace_split; // every mark begins a new piece
    struct lvp_fast_replace decoder[LVP_MAX_FAST_STEPS];
    size_t n_decoder;
    bool decode_bytes;             // <0x0A> is a byte
    size_t decode_strip;           // spaces taken off the start
    struct lvp_ids prefix, suffix; // put around a text's ids
};

// Fills normalizer, metaspace, decoder and (unless LLaMA's class sets them) prefix and suffix. LVP_ERR_MODEL naming
// what is not supported.
enum lvp_status lvp_fast_parse_steps(const json_t *json, bool with_post_processor,
                                     struct lvp_fast_tokenizer *fast) LVP_MUST_CHECK;

// The space rule that transformers derives from tokenizer_config.json instead of reading tokenizer.json's, when that
// has add_prefix_space and tokenizer.model is there (LlamaTokenizerFast then converts the slow tokenizer).
void lvp_fast_override_spaces(const struct lvp_tokenizer_config *config, struct lvp_fast_tokenizer *fast);

#endif
