#include "common/added_tokens.h"

#include "common/text.h"

#include <stdlib.h>
#include <string.h>

enum lvp_status lvp_added_tokens_append(struct lvp_added_tokens *tokens, const struct lvp_added_token *token)
{
    if (tokens->n >= LVP_MAX_ADDED_TOKENS)
        return lvp_fail(LVP_ERR_MODEL, "more than %d added tokens", LVP_MAX_ADDED_TOKENS);
    if (tokens->n == tokens->capacity) {
        size_t capacity = tokens->capacity == 0 ? 16 : 2 * tokens->capacity;
        struct lvp_added_token *items = realloc(tokens->items, capacity * sizeof *items);
        if (items == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for the added tokens");
        tokens->items = items;
        tokens->capacity = capacity;
    }
    struct lvp_added_token copy = *token;
    copy.text = strdup(token->text);
    copy.pattern = token->pattern == NULL ? NULL : strdup(token->pattern);
    if (copy.text == NULL || (token->pattern != NULL && copy.pattern == NULL)) {
        free(copy.text);
        free(copy.pattern);
        return lvp_fail(LVP_ERR_MEMORY, "no memory for the added tokens");
    }
    tokens->items[tokens->n++] = copy;
    return LVP_OK;
}

void lvp_added_tokens_free(struct lvp_added_tokens *tokens)
{
    for (size_t i = 0; i < tokens->n; i++) {
        free(tokens->items[i].text);
        free(tokens->items[i].pattern);
    }
    free(tokens->items);
    *tokens = (struct lvp_added_tokens){0};
}

struct lvp_added_token *lvp_added_tokens_find(const struct lvp_added_tokens *tokens, const char *text)
{
    for (size_t i = 0; i < tokens->n; i++) {
        if (strcmp(tokens->items[i].text, text) == 0) return &tokens->items[i];
    }
    return NULL;
}

enum lvp_status lvp_added_tokens_index(const struct lvp_added_tokens *tokens, int32_t **by_id, size_t *n_by_id)
{
    *n_by_id = 0;
    for (size_t i = 0; i < tokens->n; i++) {
        const int32_t id = tokens->items[i].id;
        if (id >= 0 && (size_t)id >= *n_by_id) *n_by_id = (size_t)id + 1;
    }
    *by_id = calloc(*n_by_id + 1, sizeof **by_id);
    if (*by_id == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for the added tokens");
    for (size_t i = 0; i < tokens->n; i++) {
        if (tokens->items[i].id >= 0) (*by_id)[tokens->items[i].id] = (int32_t)i + 1;
    }
    return LVP_OK;
}

const struct lvp_added_token *lvp_added_tokens_by_id(const struct lvp_added_tokens *tokens, const int32_t *by_id,
                                                     size_t n_by_id, int32_t id)
{
    if (id < 0 || (size_t)id >= n_by_id || by_id[id] == 0) return NULL;
    return &tokens->items[by_id[id] - 1];
}

static const char *pattern_of(const struct lvp_added_token *token)
{
    return token->pattern == NULL ? token->text : token->pattern;
}

static bool chosen(const struct lvp_added_token *token, enum lvp_token_choice choice)
{
    if (pattern_of(token)[0] == '\0') return false;
    return choice == LVP_TOKENS_ALL || token->normalized == (choice == LVP_TOKENS_NORMALIZED);
}

static int by_first_byte_then_longest(const void *a, const void *b, void *tokens)
{
    const struct lvp_added_token *items = tokens;
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    const char *left = pattern_of(&items[i]), *right = pattern_of(&items[j]);
    if (left[0] != right[0]) return (unsigned char)left[0] < (unsigned char)right[0] ? -1 : 1;
    const size_t n_left = strlen(left), n_right = strlen(right);
    if (n_left != n_right) return n_left > n_right ? -1 : 1;
    return i < j ? -1 : 1;
}

enum lvp_status lvp_token_matcher_build(const struct lvp_added_tokens *tokens, enum lvp_token_choice choice,
                                        struct lvp_token_matcher *matcher)
{
    uint32_t count[256] = {0};
    uint32_t n = 0;
    matcher->tokens = tokens;
    matcher->order = malloc((tokens->n + 1) * sizeof *matcher->order);
    if (matcher->order == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for the added tokens");
    for (size_t i = 0; i < tokens->n; i++) {
        if (!chosen(&tokens->items[i], choice)) continue;
        matcher->order[n++] = (uint32_t)i;
        count[(unsigned char)pattern_of(&tokens->items[i])[0]]++;
    }
    qsort_r(matcher->order, n, sizeof *matcher->order, by_first_byte_then_longest, tokens->items);
    matcher->start[0] = 0;
    for (size_t byte = 0; byte < 256; byte++) matcher->start[byte + 1] = matcher->start[byte] + count[byte];
    return LVP_OK;
}

void lvp_token_matcher_free(struct lvp_token_matcher *matcher)
{
    free(matcher->order);
    *matcher = (struct lvp_token_matcher){0};
}

bool lvp_token_matcher_next(const struct lvp_token_matcher *matcher, const char *text, size_t n_bytes, size_t from,
                            struct lvp_token_match *match)
{
    for (size_t at = from; at < n_bytes; at++) {
        const unsigned char first = (unsigned char)text[at];
        for (uint32_t k = matcher->start[first]; k < matcher->start[first + 1]; k++) {
            const struct lvp_added_token *token = &matcher->tokens->items[matcher->order[k]];
            const char *pattern = pattern_of(token);
            const size_t length = strlen(pattern);
            if (length > n_bytes - at || memcmp(text + at, pattern, length) != 0) continue;
            match->token = token;
            match->start = at;
            match->end = at + length;
            if (token->lstrip) match->start -= lvp_space_suffix(text + from, at - from);
            if (token->rstrip) match->end += lvp_space_prefix(text + match->end, n_bytes - match->end);
            return true;
        }
    }
    return false;
}
