// The little of Jinja (https://jinja.palletsprojects.com/en/stable/templates) that comparing templates takes.
#include "common/chat_template.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

// A template while it is read.
struct reader {
    const char *at, *end;
    bool line_start; // `at` begins a line as far as lstrip_blocks goes
    bool trim_line;  // the tag before was a block or a comment: the newline after it is not printed
    bool trim_space; // the tag before ended in -%} or the like: no white space after it is printed
};

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

// The next "{{", "{%" or "{#", or the end.
static const char *find_tag(const char *at, const char *end)
{
    for (; at + 1 < end; at++) {
        if (at[0] == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#')) return at;
    }
    return end;
}

// Appends plain text as it is printed; `tag` is where the next tag begins, or the end.
static enum lvp_status append_plain(const struct reader *reader, const char *tag, struct lvp_text *out)
{
    const char *start = reader->at, *stop = tag;
    bool line_start = reader->line_start;
    if (reader->trim_space) {
        while (start < stop && is_space(*start)) start++;
    } else if (reader->trim_line && start < stop && *start == '\n') {
        start++;
        line_start = true;
    }
    if (tag < reader->end && tag + 2 < reader->end && tag[2] == '-') {
        while (stop > start && is_space(stop[-1])) stop--;
    } else if (tag < reader->end && tag[1] != '{') {
        const char *line = stop; // lstrip_blocks: a block's indentation is not printed
        while (line > start && (line[-1] == ' ' || line[-1] == '\t')) line--;
        if (line > start ? line[-1] == '\n' : line_start) stop = line;
    }
    return lvp_text_append(out, start, (size_t)(stop - start));
}

// Appends the string literal that begins at `at`, escapes decoded, and returns where it ends; NULL where it does not.
static const char *read_string(const char *at, const char *end, struct lvp_text *out, enum lvp_status *status)
{
    static const char escapes[] = "n\nt\tr\r\\\\''\"\"";
    const char quote = *at++;
    for (; at < end && *at != quote; at++) {
        char c = *at;
        if (c == '\\' && at + 1 < end) {
            for (size_t i = 0; escapes[i] != '\0'; i += 2) {
                if (at[1] != escapes[i]) continue;
                c = escapes[i + 1];
                at++;
                break;
            }
        }
        *status = lvp_text_append(out, &c, 1);
        if (*status != LVP_OK) return NULL;
    }
    return at < end ? at + 1 : NULL;
}

// Appends an expression without what does not matter. It has no unfinished string (find_tag_end has seen them all).
static enum lvp_status append_expression(const char *at, const char *end, struct lvp_text *out)
{
    enum lvp_status status = LVP_OK;
    char before = '\0'; // the last character of the expression that was not a space
    bool spaced = false;
    while (at < end) {
        if (is_space(*at)) {
            spaced = true;
            at++;
            continue;
        }
        if (spaced && is_word(before) && is_word(*at)) LVP_TRY(lvp_text_append(out, " ", 1));
        spaced = false;
        before = *at;
        if (*at == '\'' || *at == '"') {
            LVP_TRY(lvp_text_append(out, "'", 1));
            at = read_string(at, end, out, &status);
            LVP_TRY(status);
            if (at == NULL) return lvp_fail(LVP_ERR_MODEL, "the chat template has a string that does not end");
            LVP_TRY(lvp_text_append(out, "'", 1));
            continue;
        }
        const char *name = at + 1, *stop = name;
        while (stop < end && is_word(*stop)) stop++;
        const size_t length = (size_t)(stop - name);
        if (*at == '.' && length > 0 && !(stop < end && *stop == '(')) { // x.role is x['role']
            LVP_TRY(lvp_text_append_string(out, "['"));
            LVP_TRY(lvp_text_append(out, name, length));
            LVP_TRY(lvp_text_append_string(out, "']"));
            before = ']';
            at = stop;
            continue;
        }
        LVP_TRY(lvp_text_append(out, at++, 1));
    }
    return LVP_OK;
}

// Where the string that begins at `at` ends; `end` where it does not.
static const char *skip_string(const char *at, const char *end)
{
    const char quote = *at++;
    while (at < end && *at != quote) at += *at == '\\' && at + 1 < end ? 2 : 1;
    return at < end ? at + 1 : end;
}

// {{ a + 'text' }} prints what {{ a }}text does: parts of a sum are written one by one, constant ones as plain text.
static enum lvp_status append_output(const char *at, const char *end, struct lvp_text *out)
{
    enum lvp_status status = LVP_OK;
    while (at < end) {
        const char *stop = at;
        int depth = 0;
        while (stop < end && !(depth == 0 && *stop == '+')) {
            if (*stop == '(' || *stop == '[') depth++;
            if (*stop == ')' || *stop == ']') depth--;
            stop = *stop == '\'' || *stop == '"' ? skip_string(stop, end) : stop + 1;
        }
        const char *first = at, *last = stop;
        while (first < last && is_space(*first)) first++;
        while (last > first && is_space(last[-1])) last--;
        if (first < last && (*first == '\'' || *first == '"') && skip_string(first, last) == last) {
            (void)read_string(first, last, out, &status);
            LVP_TRY(status);
        } else {
            LVP_TRY(lvp_text_append_string(out, "{{"));
            LVP_TRY(append_expression(first, last, out));
            LVP_TRY(lvp_text_append_string(out, "}}"));
        }
        at = stop < end ? stop + 1 : end;
    }
    return LVP_OK;
}

static enum lvp_status append_block(const char *at, const char *end, struct lvp_text *out)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text block = {0};
    LVP_CHECK(lvp_text_append(&block, NULL, 0));
    LVP_CHECK(append_expression(at, end, &block));
    if (strcmp(block.bytes, "generation") == 0 || strcmp(block.bytes, "endgeneration") == 0) goto fail;
    LVP_CHECK(lvp_text_append_string(out, "{%"));
    LVP_CHECK(lvp_text_append(out, block.bytes, block.n_bytes));
    LVP_CHECK(lvp_text_append_string(out, "%}"));
fail:
    free(block.bytes);
    return status;
}

// The "}}", "%}" or "#}" that ends the tag whose inside begins at `at`; NULL where there is none.
static const char *find_tag_end(const char *at, const char *end, char kind)
{
    const char close = kind == '{' ? '}' : kind;
    while (at + 1 < end) {
        if (at[0] == close && at[1] == '}') return at;
        at = kind != '#' && (*at == '\'' || *at == '"') ? skip_string(at, end) : at + 1;
    }
    return NULL;
}

enum lvp_status lvp_chat_template_canonical(const char *source, size_t n_bytes, struct lvp_text *canonical)
{
    enum lvp_status status = LVP_OK;
    struct lvp_text unix_lines = {0}, written = {0};
    LVP_CHECK(lvp_text_append_replaced(&unix_lines, source, n_bytes, "\r\n", "\n"));
    if (unix_lines.n_bytes > 0 && unix_lines.bytes[unix_lines.n_bytes - 1] == '\n')
        unix_lines.n_bytes--; // as Jinja does
    struct reader reader = {.at = unix_lines.bytes, .end = unix_lines.bytes + unix_lines.n_bytes, .line_start = true};
    LVP_CHECK(lvp_text_append(&written, NULL, 0));
    while (reader.at < reader.end) {
        const char *tag = find_tag(reader.at, reader.end);
        LVP_CHECK(append_plain(&reader, tag, &written));
        if (tag == reader.end) break;
        const char kind = tag[1];
        const char *inside = tag + 2, *stop = find_tag_end(inside, reader.end, kind);
        if (stop == NULL) {
            status = lvp_fail(LVP_ERR_MODEL, "the chat template has a tag that does not end");
            goto fail;
        }
        reader.at = stop + 2;
        reader.line_start = false;
        reader.trim_line = kind != '{';
        reader.trim_space = stop > inside && stop[-1] == '-';
        if (reader.trim_space) stop--;
        if (inside < stop && (*inside == '-' || *inside == '+')) inside++;
        if (kind == '%') LVP_CHECK(append_block(inside, stop, &written));
        if (kind == '{') LVP_CHECK(append_output(inside, stop, &written));
    }
    LVP_CHECK(lvp_text_append_replaced(canonical, written.bytes, written.n_bytes, "|upper", ".upper()"));
fail:
    free(unix_lines.bytes);
    free(written.bytes);
    return status;
}
