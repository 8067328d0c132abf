#include "common/json_text.h"

#include "common/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lvp_json_text_free(struct lvp_json_text *text)
{
    free(text->data);
    *text = (struct lvp_json_text){0};
}

void lvp_json_text_append(struct lvp_json_text *text, const char *bytes, size_t n_bytes)
{
    if (text->failed || n_bytes == 0) return;
    if (n_bytes > text->capacity - text->length) {
        size_t capacity = 2 * text->capacity + n_bytes + 256;
        char *data = realloc(text->data, capacity);
        if (data == NULL) {
            text->failed = true;
            return;
        }
        text->data = data;
        text->capacity = capacity;
    }
    memcpy(text->data + text->length, bytes, n_bytes);
    text->length += n_bytes;
}

void lvp_json_text_puts(struct lvp_json_text *text, const char *string)
{
    lvp_json_text_append(text, string, strlen(string));
}

void lvp_json_text_int(struct lvp_json_text *text, int64_t value)
{
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)value);
    lvp_json_text_append(text, digits, (size_t)n);
}

void lvp_json_text_float(struct lvp_json_text *text, float value)
{
    if (!isfinite(value)) {
        lvp_json_text_puts(text, "null");
        return;
    }
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%.9g", (double)value);
    lvp_json_text_append(text, digits, (size_t)n);
}

static void append_escape(struct lvp_json_text *text, unsigned char c)
{
    static const char *const named[] = {['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r"};
    char escape[8];
    if (c == '"' || c == '\\') {
        escape[0] = '\\';
        escape[1] = (char)c;
        lvp_json_text_append(text, escape, 2);
    } else if (c < sizeof named / sizeof named[0] && named[c] != NULL) {
        lvp_json_text_puts(text, named[c]);
    } else {
        (void)snprintf(escape, sizeof escape, "\\u%04x", c);
        lvp_json_text_puts(text, escape);
    }
}

void lvp_json_text_string(struct lvp_json_text *text, const char *string)
{
    if (string == NULL)
        lvp_json_text_puts(text, "null");
    else
        lvp_json_text_bytes(text, string, strlen(string));
}

void lvp_json_text_bytes(struct lvp_json_text *text, const char *string, size_t n)
{
    size_t plain = 0, i = 0; // bytes plain..i are copied as they are
    lvp_json_text_append(text, "\"", 1);
    while (i < n) {
        unsigned char c = (unsigned char)string[i];
        size_t length = c >= 0x20 && c != '"' && c != '\\' ? lvp_utf8_length(string + i, n - i) : 0;
        if (length > 0) {
            i += length;
            continue;
        }
        lvp_json_text_append(text, string + plain, i - plain);
        if (c < 0x80)
            append_escape(text, c);
        else
            lvp_json_text_puts(text, LVP_REPLACEMENT_CHARACTER);
        plain = ++i;
    }
    lvp_json_text_append(text, string + plain, n - plain);
    lvp_json_text_append(text, "\"", 1);
}
