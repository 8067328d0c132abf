#include "coordinator/json_text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lvp_text_free(struct lvp_text *text)
{
    free(text->data);
    *text = (struct lvp_text){0};
}

void lvp_text_append(struct lvp_text *text, const char *bytes, size_t n_bytes)
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

void lvp_text_puts(struct lvp_text *text, const char *string)
{
    lvp_text_append(text, string, strlen(string));
}

void lvp_text_int(struct lvp_text *text, int64_t value)
{
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)value);
    lvp_text_append(text, digits, (size_t)n);
}

void lvp_text_float(struct lvp_text *text, float value)
{
    if (!isfinite(value)) {
        lvp_text_puts(text, "null");
        return;
    }
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%.9g", (double)value);
    lvp_text_append(text, digits, (size_t)n);
}

// The Unicode Standard, table 3-7: well-formed UTF-8 byte sequences.
int lvp_utf8_length(const char *bytes, size_t n_bytes)
{
    if (n_bytes == 0) return 0;
    unsigned char first = (unsigned char)bytes[0], low = 0x80, high = 0xbf;
    if (first < 0x80) return 1;
    int length = first >= 0xc2 && first <= 0xdf   ? 2
                 : first >= 0xe0 && first <= 0xef ? 3
                 : first >= 0xf0 && first <= 0xf4 ? 4
                                                  : 0;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f; // no surrogates
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
    if (length == 0 || (size_t)length > n_bytes) return 0;
    for (int i = 1; i < length; i++, low = 0x80, high = 0xbf)
        if ((unsigned char)bytes[i] < low || (unsigned char)bytes[i] > high) return 0;
    return length;
}

static void append_escape(struct lvp_text *text, unsigned char c)
{
    static const char *const named[] = {['\b'] = "\\b", ['\t'] = "\\t", ['\n'] = "\\n", ['\f'] = "\\f", ['\r'] = "\\r"};
    char escape[8];
    if (c == '"' || c == '\\') {
        escape[0] = '\\';
        escape[1] = (char)c;
        lvp_text_append(text, escape, 2);
    } else if (c < sizeof named / sizeof named[0] && named[c] != NULL) {
        lvp_text_puts(text, named[c]);
    } else {
        (void)snprintf(escape, sizeof escape, "\\u%04x", c);
        lvp_text_puts(text, escape);
    }
}

void lvp_text_json_string(struct lvp_text *text, const char *string)
{
    if (string == NULL) {
        lvp_text_puts(text, "null");
        return;
    }
    size_t n = strlen(string), plain = 0, i = 0; // bytes plain..i are copied as they are
    lvp_text_append(text, "\"", 1);
    while (i < n) {
        unsigned char c = (unsigned char)string[i];
        int length = c >= 0x20 && c != '"' && c != '\\' ? lvp_utf8_length(string + i, n - i) : 0;
        if (length > 0) {
            i += (size_t)length;
            continue;
        }
        lvp_text_append(text, string + plain, i - plain);
        if (c < 0x80)
            append_escape(text, c);
        else
            lvp_text_puts(text, "\xef\xbf\xbd");
        plain = ++i;
    }
    lvp_text_append(text, string + plain, n - plain);
    lvp_text_append(text, "\"", 1);
}
