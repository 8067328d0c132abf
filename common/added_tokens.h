// Tokens that stand outside the tokenizer's model: special ones (<s>, <image>) and others a user added. They are cut
// out of a text before the model sees the rest.
#ifndef LVP_COMMON_ADDED_TOKENS_H
#define LVP_COMMON_ADDED_TOKENS_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lvp_added_token {
    char *text;      // owned, NUL-terminated
    char *pattern;   // owned: what is searched for when it is not `text` itself; NULL: `text`
    int32_t id;      // -1: not known yet
    bool special;    // left out when decoding
    bool normalized; // searched for after normalization (tokenizer.json only)
    bool lstrip;     // takes the white space before it along
    bool rstrip;     // takes the white space after it along
};

// In the order in which they were added. Zero-initialise.
struct lvp_added_tokens {
    struct lvp_added_token *items;
    size_t n, capacity;
};

enum { LVP_MAX_ADDED_TOKENS = 1 << 14 };

// Appends a copy of the token, its text and pattern too. LVP_ERR_MODEL when there are too many.
enum lvp_status lvp_added_tokens_append(struct lvp_added_tokens *tokens,
                                        const struct lvp_added_token *token) LVP_MUST_CHECK;
void lvp_added_tokens_free(struct lvp_added_tokens *tokens);
// By exact text (a linear search: for set-up and look-ups outside a loop); NULL when there is none.
struct lvp_added_token *lvp_added_tokens_find(const struct lvp_added_tokens *tokens, const char *text);
// By id: `by_id` is what lvp_added_tokens_index made.
const struct lvp_added_token *lvp_added_tokens_by_id(const struct lvp_added_tokens *tokens, const int32_t *by_id,
                                                     size_t n_by_id, int32_t id);
// Table from id to position + 1 (0: not an added token), as long as the largest id asks for. Malloc'ed.
enum lvp_status lvp_added_tokens_index(const struct lvp_added_tokens *tokens, int32_t **by_id,
                                       size_t *n_by_id) LVP_MUST_CHECK;

// Finds the tokens in a text: the leftmost, and of those that start there the longest. Refers to the list, which must
// not change any more. Zero-initialise.
struct lvp_token_matcher {
    const struct lvp_added_tokens *tokens;
    uint32_t *order;     // positions of the tokens, by first byte, then longest first
    uint32_t start[257]; // where a first byte's tokens begin in `order`
};

struct lvp_token_match {
    size_t start, end; // with the white space that the token takes along
    const struct lvp_added_token *token;
};

enum lvp_token_choice { LVP_TOKENS_ALL, LVP_TOKENS_NORMALIZED, LVP_TOKENS_NOT_NORMALIZED };

enum lvp_status lvp_token_matcher_build(const struct lvp_added_tokens *tokens, enum lvp_token_choice choice,
                                        struct lvp_token_matcher *matcher) LVP_MUST_CHECK;
void lvp_token_matcher_free(struct lvp_token_matcher *matcher);

// The first match at or after `from`; false when there is none. Start by giving 0, go on with the match's end.
bool lvp_token_matcher_next(const struct lvp_token_matcher *matcher, const char *text, size_t n_bytes, size_t from,
                            struct lvp_token_match *match);

#endif
