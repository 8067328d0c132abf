// Building lines of JSON by hand, so that the same values always give the same bytes: no library's choice of escapes or
// digits is part of captions.jsonl. Errors (out of memory) are kept in the text and seen once, at its end.
#ifndef LVP_COMMON_JSON_TEXT_H
#define LVP_COMMON_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Zeroed is empty. `data` is owned by the text and not NUL-terminated.
struct lvp_json_text {
    char *data;
    size_t length, capacity;
    bool failed; // an allocation failed: the content is not complete
};

void lvp_json_text_free(struct lvp_json_text *text);
void lvp_json_text_append(struct lvp_json_text *text, const char *bytes, size_t n_bytes);
void lvp_json_text_puts(struct lvp_json_text *text, const char *string);
void lvp_json_text_int(struct lvp_json_text *text, int64_t value);
void lvp_json_text_float(struct lvp_json_text *text,
                         float value); // %.9g, which reads back to the same float; null where not finite

// A JSON string with its quotes. Control characters, " and \ are escaped, other UTF-8 stays; a byte that is not part of
// valid UTF-8 becomes U+FFFD. NULL gives null.
void lvp_json_text_string(struct lvp_json_text *text, const char *string);
void lvp_json_text_bytes(struct lvp_json_text *text, const char *bytes, size_t n_bytes); // likewise; NUL is escaped

#endif
