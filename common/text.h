// Growing byte strings and id lists, and the little of UTF-8 that tokenizing needs.
#ifndef LVP_COMMON_TEXT_H
#define LVP_COMMON_TEXT_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// `bytes` is NUL-terminated once something was appended (n_bytes 0 counts); NULL before. Zero-initialise; free(bytes).
struct lvp_text {
    char *bytes;
    size_t n_bytes, capacity;
};

enum lvp_status lvp_text_append(struct lvp_text *text, const char *bytes, size_t n_bytes) LVP_MUST_CHECK;
enum lvp_status lvp_text_append_string(struct lvp_text *text, const char *string) LVP_MUST_CHECK;
// Appends `bytes` with every `from` (not empty) replaced by `to`.
enum lvp_status lvp_text_append_replaced(struct lvp_text *text, const char *bytes, size_t n_bytes, const char *from,
                                         const char *to) LVP_MUST_CHECK;
// Appends `bytes`, each byte that is not part of a UTF-8 sequence replaced by U+FFFD.
enum lvp_status lvp_text_append_repaired(struct lvp_text *text, const char *bytes, size_t n_bytes) LVP_MUST_CHECK;

// Zero-initialise; free(items).
struct lvp_ids {
    int32_t *items;
    size_t n, capacity;
};

enum lvp_status lvp_ids_append(struct lvp_ids *ids, const int32_t *items, size_t n) LVP_MUST_CHECK;

#define LVP_REPLACEMENT_CHARACTER "\xEF\xBF\xBD" // U+FFFD

// Bytes of the UTF-8 sequence at the start, 0 when it is not one (RFC 3629: no overlong forms, no surrogates).
size_t lvp_utf8_length(const char *bytes, size_t n_bytes);
bool lvp_utf8_valid(const char *bytes, size_t n_bytes);

// Without white space around it (Unicode's, and what Python's strip takes besides): cuts the text and *n_bytes, and
// returns where it now starts.
char *lvp_trim(char *text, size_t *n_bytes);

// Bytes of white space (Unicode's White_Space) at the start, and at the end.
size_t lvp_space_prefix(const char *bytes, size_t n_bytes);
size_t lvp_space_suffix(const char *bytes, size_t n_bytes);

// Index of `text` among `names` (the last one NULL); LVP_ERR_USAGE naming `option` and listing them.
enum lvp_status lvp_choose_name(const char *option, const char *text, const char *const *names,
                                int *index) LVP_MUST_CHECK;

#endif
