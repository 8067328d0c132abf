// The few calls of the sentencepiece library that the tokenizer needs, in C. No exception crosses this line.
// A model is constant once open: any thread may use it at the same time.
#ifndef LVP_COMMON_SENTENCEPIECE_SHIM_H
#define LVP_COMMON_SENTENCEPIECE_SHIM_H

#include "common/status.h"
#include "common/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lvp_sentencepiece;

// Reads a serialized model (the bytes of tokenizer.model). With `no_dummy_prefix` no space mark is put before a text,
// whatever the model says. LVP_ERR_MODEL when the bytes are not a model.
enum lvp_status lvp_sentencepiece_open(const char *bytes, size_t n_bytes, bool no_dummy_prefix,
                                       struct lvp_sentencepiece **model) LVP_MUST_CHECK;
void lvp_sentencepiece_close(struct lvp_sentencepiece *model); // NULL is allowed

// Appends the text's ids to `ids`.
enum lvp_status lvp_sentencepiece_encode(const struct lvp_sentencepiece *model, const char *text, size_t n_bytes,
                                         struct lvp_ids *ids) LVP_MUST_CHECK;
// Appends what the pieces stand for to `text`.
enum lvp_status lvp_sentencepiece_decode(const struct lvp_sentencepiece *model, const char *const *pieces,
                                         size_t n_pieces, struct lvp_text *text) LVP_MUST_CHECK;

int32_t lvp_sentencepiece_size(const struct lvp_sentencepiece *model);
int32_t lvp_sentencepiece_unknown_id(const struct lvp_sentencepiece *model);
// The id of a piece; the unknown id when there is no such piece.
int32_t lvp_sentencepiece_id(const struct lvp_sentencepiece *model, const char *piece);
// The piece of an id, NULL when the id is out of range. Lives as long as the model.
const char *lvp_sentencepiece_piece(const struct lvp_sentencepiece *model, int32_t id);

#endif
