// Byte-pair encoding as tokenizer.json's "model" describes it (type BPE, with byte fallback): characters become
// symbols, then the pair of neighbours with the lowest rank is merged, leftmost first, until no merge is left (Sennrich
// et al. 2016). A text of n characters takes O(n log n). Constant once parsed.
#ifndef LVP_COMMON_TOKENIZER_BPE_H
#define LVP_COMMON_TOKENIZER_BPE_H

#include "common/status.h"
#include "common/text.h"

#include <jansson.h>
#include <stdint.h>

struct lvp_bpe;

// `model` is only read. LVP_ERR_MODEL for another kind of model, and for ids or merges that do not fit the vocabulary.
enum lvp_status lvp_bpe_parse(const json_t *model, struct lvp_bpe **bpe) LVP_MUST_CHECK;
void lvp_bpe_free(struct lvp_bpe *bpe); // NULL is allowed

// Appends the ids of a piece of text, valid UTF-8.
enum lvp_status lvp_bpe_encode(const struct lvp_bpe *bpe, const char *text, size_t n_bytes,
                               struct lvp_ids *ids) LVP_MUST_CHECK;

int32_t lvp_bpe_id(const struct lvp_bpe *bpe, const char *token, size_t n_bytes); // -1: not in the vocabulary
// NUL-terminated, lives as long as the model; NULL: no token has the id.
const char *lvp_bpe_token(const struct lvp_bpe *bpe, int32_t id);
int32_t lvp_bpe_count(const struct lvp_bpe *bpe); // tokens in the vocabulary
int32_t lvp_bpe_size(const struct lvp_bpe *bpe);  // one more than the largest id

#endif
