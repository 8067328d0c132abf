#include "common/text.h"

#include "common/checked.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Room for `extra` more elements of `size` bytes, doubling so that n appends cost O(n).
static enum lvp_status grow(void **items, size_t n, size_t *capacity, size_t extra, size_t size)
{
    size_t wanted, bytes;
    if (!lvp_checked_add(n, extra, &wanted)) return lvp_fail(LVP_ERR_MEMORY, "a buffer's size overflows");
    if (wanted <= *capacity) return LVP_OK;
    if (wanted < 2 * *capacity) wanted = 2 * *capacity;
    if (wanted < 64) wanted = 64;
    if (!lvp_checked_mul(wanted, size, &bytes)) return lvp_fail(LVP_ERR_MEMORY, "a buffer's size overflows");
    void *larger = realloc(*items, bytes);
    if (larger == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for %zu bytes of text", bytes);
    *items = larger;
    *capacity = wanted;
    return LVP_OK;
}

enum lvp_status lvp_text_append(struct lvp_text *text, const char *bytes, size_t n_bytes)
{
    size_t extra;
    void *items = text->bytes;
    if (!lvp_checked_add(n_bytes, 1, &extra)) return lvp_fail(LVP_ERR_MEMORY, "a buffer's size overflows");
    LVP_TRY(grow(&items, text->n_bytes, &text->capacity, extra, 1));
    text->bytes = items;
    if (n_bytes > 0) memcpy(text->bytes + text->n_bytes, bytes, n_bytes);
    text->n_bytes += n_bytes;
    text->bytes[text->n_bytes] = '\0';
    return LVP_OK;
}

enum lvp_status lvp_text_append_string(struct lvp_text *text, const char *string)
{
    return lvp_text_append(text, string, strlen(string));
}

enum lvp_status lvp_text_append_replaced(struct lvp_text *text, const char *bytes, size_t n_bytes, const char *from,
                                         const char *to)
{
    const size_t n_from = strlen(from);
    const char *end = bytes + n_bytes;
    LVP_TRY(lvp_text_append(text, NULL, 0));
    while (bytes < end) {
        const char *found = memmem(bytes, (size_t)(end - bytes), from, n_from);
        if (found == NULL) return lvp_text_append(text, bytes, (size_t)(end - bytes));
        LVP_TRY(lvp_text_append(text, bytes, (size_t)(found - bytes)));
        LVP_TRY(lvp_text_append_string(text, to));
        bytes = found + n_from;
    }
    return LVP_OK;
}

enum lvp_status lvp_text_append_repaired(struct lvp_text *text, const char *bytes, size_t n_bytes)
{
    size_t start = 0, at = 0;
    LVP_TRY(lvp_text_append(text, NULL, 0));
    while (at < n_bytes) {
        size_t length = lvp_utf8_length(bytes + at, n_bytes - at);
        if (length > 0) {
            at += length;
            continue;
        }
        LVP_TRY(lvp_text_append(text, bytes + start, at - start));
        LVP_TRY(lvp_text_append_string(text, LVP_REPLACEMENT_CHARACTER));
        start = ++at;
    }
    return lvp_text_append(text, bytes + start, at - start);
}

enum lvp_status lvp_ids_append(struct lvp_ids *ids, const int32_t *items, size_t n)
{
    void *larger = ids->items;
    LVP_TRY(grow(&larger, ids->n, &ids->capacity, n, sizeof *items));
    ids->items = larger;
    if (n > 0) memcpy(ids->items + ids->n, items, n * sizeof *items);
    ids->n += n;
    return LVP_OK;
}

size_t lvp_utf8_length(const char *bytes, size_t n_bytes)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t length;
    if (n_bytes == 0) return 0;
    if (p[0] < 0x80) return 1;
    if (p[0] >= 0xC2 && p[0] <= 0xDF)
        length = 2;
    else if (p[0] >= 0xE0 && p[0] <= 0xEF)
        length = 3;
    else if (p[0] >= 0xF0 && p[0] <= 0xF4)
        length = 4;
    else
        return 0;
    if (length > n_bytes) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
    }
    // The second byte alone tells overlong forms, surrogates and values over U+10FFFF (Unicode, table 3-7).
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)) return 0;
    if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F)) return 0;
    return length;
}

bool lvp_utf8_valid(const char *bytes, size_t n_bytes)
{
    for (size_t at = 0, length; at < n_bytes; at += length) {
        length = lvp_utf8_length(bytes + at, n_bytes - at);
        if (length == 0) return false;
    }
    return true;
}

// Bytes of the one white space character at the start, 0 when there is none.
static size_t space_length(const char *bytes, size_t n_bytes)
{
    const unsigned char *p = (const unsigned char *)bytes;
    if (n_bytes == 0) return 0;
    if (p[0] == ' ' || (p[0] >= '\t' && p[0] <= '\r')) return 1;
    if (n_bytes >= 2 && p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0)) return 2; // U+0085, U+00A0
    if (n_bytes < 3) return 0;
    const unsigned last = p[2];
    if (p[0] == 0xE1 && p[1] == 0x9A && last == 0x80) return 3; // U+1680
    if (p[0] == 0xE2 && p[1] == 0x80 &&
        ((last >= 0x80 && last <= 0x8A) || last == 0xA8 || last == 0xA9 || last == 0xAF))
        return 3;                                               // U+2000..200A, U+2028, U+2029, U+202F
    if (p[0] == 0xE2 && p[1] == 0x81 && last == 0x9F) return 3; // U+205F
    if (p[0] == 0xE3 && p[1] == 0x80 && last == 0x80) return 3; // U+3000
    return 0;
}

size_t lvp_space_prefix(const char *bytes, size_t n_bytes)
{
    size_t at = 0;
    for (size_t length; (length = space_length(bytes + at, n_bytes - at)) > 0;) at += length;
    return at;
}

size_t lvp_space_suffix(const char *bytes, size_t n_bytes)
{
    size_t end = n_bytes;
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && ((unsigned char)bytes[start] & 0xC0) == 0x80) start--;
        if (space_length(bytes + start, end - start) != end - start) break;
        end = start;
    }
    return n_bytes - end;
}

static bool is_separator(char c) // U+001C..1F: white space for Python, not for Unicode
{
    return c >= 0x1C && c <= 0x1F;
}

char *lvp_trim(char *text, size_t *n_bytes)
{
    size_t n = *n_bytes, from = 0, cut;
    while ((cut = lvp_space_prefix(text + from, n - from)) > 0 || (from < n && is_separator(text[from])))
        from += cut > 0 ? cut : 1;
    while ((cut = lvp_space_suffix(text + from, n - from)) > 0 || (from < n && is_separator(text[n - 1])))
        n -= cut > 0 ? cut : 1;
    text[n] = '\0';
    *n_bytes = n - from;
    return text + from;
}

enum lvp_status lvp_choose_name(const char *option, const char *text, const char *const *names, int *index)
{
    char list[128] = "";
    size_t length = 0;
    for (int i = 0; names[i] != NULL; i++) {
        if (strcmp(text, names[i]) == 0) {
            *index = i;
            return LVP_OK;
        }
        const char *link = i == 0 ? "" : names[i + 1] == NULL ? " or " : ", ";
        int added = snprintf(list + length, sizeof list - length, "%s%s", link, names[i]);
        if (added > 0 && (size_t)added < sizeof list - length) length += (size_t)added;
    }
    return lvp_fail(LVP_ERR_USAGE, "%s %s: give %s", option, text, list);
}
