#include "coordinator/input/sample.h"

#include "common/json_text.h"
#include "common/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lvp_sample_free(struct lvp_sample *sample)
{
    for (int i = 0; i < sample->n_images; i++) {
        if (sample->images != NULL) free(sample->images[i]);
        if (sample->places != NULL) free(sample->places[i].path);
    }
    free(sample->images);
    free(sample->places);
    free(sample->id);
    free(sample->prompt);
    json_decref(sample->columns);
    *sample = (struct lvp_sample){0};
}

enum lvp_status lvp_sample_make_images(struct lvp_sample *sample, int n)
{
    sample->images = calloc((size_t)n, sizeof *sample->images);
    sample->places = calloc((size_t)n, sizeof *sample->places);
    if (sample->images == NULL || sample->places == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "a sample of %d images: out of memory", n);
    sample->n_images = n;
    return LVP_OK;
}

// Length of the string at the start, quotes included.
static size_t string_length(const char *bytes, size_t n)
{
    size_t i = 1;
    while (i < n && bytes[i] != '"') i += bytes[i] == '\\' ? 2 : 1;
    return i < n ? i + 1 : n;
}

// A literal at the start that JSON does not know, or 0.
static size_t unknown_literal(const char *bytes, size_t n)
{
    static const char *const literals[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof literals / sizeof *literals; i++) {
        size_t length = strlen(literals[i]);
        if (n >= length && memcmp(bytes, literals[i], length) == 0) return length;
    }
    return 0;
}

// The row with those in JSON's words. NULL when out of memory.
static char *translate(const char *bytes, size_t n, size_t *n_translated)
{
    enum { SAFE_DIGITS = 18 }; // of a 64-bit integer, whatever they are
    struct lvp_json_text text = {0};
    for (size_t i = 0, length; i < n; i += length) {
        size_t digits = strspn(bytes + i + (bytes[i] == '-'), "0123456789");
        length = unknown_literal(bytes + i, n - i);
        if (length > 0) {
            lvp_json_text_puts(&text, "null");
        } else if (bytes[i] == '"') {
            length = string_length(bytes + i, n - i);
            lvp_json_text_append(&text, bytes + i, length);
        } else if (digits > 0) {
            length = strspn(bytes + i, "+-0123456789.eE");
            bool large = digits > SAFE_DIGITS && strcspn(bytes + i, ".eE") >= length;
            if (large) lvp_json_text_puts(&text, "\"");
            lvp_json_text_append(&text, bytes + i, length);
            if (large) lvp_json_text_puts(&text, "\"");
        } else {
            length = 1;
            lvp_json_text_append(&text, bytes + i, 1);
        }
    }
    if (text.failed) lvp_json_text_free(&text);
    *n_translated = text.length;
    return text.data;
}

json_t *lvp_parse_row(const char *bytes, size_t n_bytes, json_error_t *error)
{
    json_t *row = json_loadb(bytes, n_bytes, 0, error);
    if (row != NULL || n_bytes == 0) return row;
    char *ended = strndup(bytes, n_bytes); // strspn needs an end
    size_t n = 0;
    char *translated = ended != NULL ? translate(ended, strlen(ended), &n) : NULL;
    if (translated != NULL) row = json_loadb(translated, n, 0, NULL); // the first error is the one that is told
    free(translated);
    free(ended);
    return row;
}

enum lvp_status lvp_sample_take_prompt(struct lvp_sample *sample, const json_t *row, const char *where)
{
    const json_t *prompt = json_object_get(row, "prompt");
    if (prompt == NULL || json_is_null(prompt)) return LVP_OK;
    if (!json_is_string(prompt)) {
        lvp_sample_error_set(&sample->columns_error, LVP_SAMPLE_BAD_MANIFEST_LINE, "%s: \"prompt\" must be a text",
                             where);
        return LVP_OK;
    }
    sample->prompt = strdup(json_string_value(prompt));
    return sample->prompt != NULL ? LVP_OK : lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
}

char *lvp_utf8_name(const char *name)
{
    struct lvp_json_text text = {0};
    size_t n = strlen(name);
    for (size_t i = 0; i < n;) {
        size_t length = lvp_utf8_length(name + i, n - i);
        char escape[8];
        if (length == 0) (void)snprintf(escape, sizeof escape, "\\x%02x", (unsigned char)name[i]);
        lvp_json_text_append(&text, length > 0 ? name + i : escape, length > 0 ? length : 4);
        i += length > 0 ? length : 1;
    }
    lvp_json_text_append(&text, "", 1);
    if (text.failed) lvp_json_text_free(&text);
    return text.data;
}
