// Text to token ids and back, equal to what transformers' AutoTokenizer does for the folder: sentencepiece with LLaMA's
// rules, added and special tokens, or LLaMA-type byte-fallback BPE read from tokenizer.json.
// Thread: open and close from one; encode and decode may be called from any thread at the same time.
#ifndef LVP_COMMON_TOKENIZER_H
#define LVP_COMMON_TOKENIZER_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lvp_tokenizer;

// LVP_ERR_MODEL when the folder has no tokenizer that is supported; the text says which file and why.
enum lvp_status lvp_tokenizer_open(const char *dir, struct lvp_tokenizer **tokenizer) LVP_MUST_CHECK;
void lvp_tokenizer_close(struct lvp_tokenizer *tokenizer); // NULL is allowed

// `*ids` is malloc'ed and owned by the caller. Added and special tokens written in the text become their ids. With
// `add_special` one bos is put first where the folder's configuration asks for it.
enum lvp_status lvp_tokenizer_encode(const struct lvp_tokenizer *tokenizer, const char *text, size_t n_bytes,
                                     bool add_special, int32_t **ids, size_t *n_ids) LVP_MUST_CHECK;

// Text of the ids, special tokens left out, valid UTF-8 (broken byte sequences become U+FFFD). Malloc'ed,
// NUL-terminated; a token may be a NUL too, so its length is *n_bytes.
enum lvp_status lvp_tokenizer_decode(const struct lvp_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                     char **text, size_t *n_bytes) LVP_MUST_CHECK;

size_t lvp_tokenizer_size(const struct lvp_tokenizer *tokenizer); // one more than the largest id
// Id of an added or special token by its exact text, -1 when there is none.
int32_t lvp_tokenizer_token_id(const struct lvp_tokenizer *tokenizer, const char *text);
// Hash of every file the tokenizer was read from: 32 hex digits and NUL.
const char *lvp_tokenizer_hash(const struct lvp_tokenizer *tokenizer);

#endif
