// A .jsonl manifest: one JSON object a line. Kept as 16 bytes per line, so that millions of lines start at once; a line
// is read again when it is asked for.
#include "common/file.h"
#include "coordinator/input/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_LINE_BYTES = 16 << 20, CACHE_BYTES = 1 << 18 };

// A line that is not blank.
struct line {
    uint64_t offset;
    uint32_t length; // bytes; above MAX_LINE_BYTES: too long to be read
    uint32_t number; // from 1
};

struct jsonl {
    struct lvp_source base;
    char *root;         // folder that relative image paths start from
    int file;           // -1: not open
    uint64_t n_bytes;   // of the file when it was listed
    int64_t time;       // when it was changed last before
    struct line *lines; // [base.n]
    size_t max_lines;
};

static enum lvp_status out_of_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
}

// --- One line ------------------------------------------------------------------------------------------------------

static char *join_path(const char *root, const char *path)
{
    char *joined = NULL;
    if (asprintf(&joined, "%s%s%s", path[0] == '/' ? "" : root, path[0] == '/' ? "" : "/", path) < 0) return NULL;
    return joined;
}

static bool is_name(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0;
}

// What is wrong with the row's fields, NULL for nothing.
static const char *row_fault(const json_t *row)
{
    if (!json_is_object(row)) return "not a JSON object";
    const json_t *image = json_object_get(row, "image"), *id = json_object_get(row, "id");
    if (image == NULL || json_is_null(image)) return "no \"image\"";
    if (json_is_array(image)) {
        if (json_array_size(image) == 0) return "\"image\" is an empty list";
        for (size_t i = 0; i < json_array_size(image); i++)
            if (!is_name(json_array_get(image, i))) return "\"image\" must hold paths";
    } else if (!is_name(image)) {
        return "\"image\" must be a path or a list of paths";
    }
    if (id != NULL && !json_is_null(id) && !json_is_integer(id) && !is_name(id))
        return "\"id\" must be a text or a whole number";
    return NULL;
}

// Fills the sample from a row without faults.
static enum lvp_status fill_sample(const char *root, json_t *row, uint32_t number, struct lvp_sample *sample)
{
    const json_t *image = json_object_get(row, "image"), *id = json_object_get(row, "id");
    char where[32];
    sample->image_list = json_is_array(image);
    size_t n = sample->image_list ? json_array_size(image) : 1;
    LVP_TRY(lvp_sample_make_images(sample, (int)n));
    for (size_t i = 0; i < n; i++) {
        sample->images[i] = strdup(json_string_value(sample->image_list ? json_array_get(image, i) : image));
        if (sample->images[i] == NULL) return out_of_memory();
        sample->places[i].path = join_path(root, sample->images[i]);
        if (sample->places[i].path == NULL) return out_of_memory();
    }
    if (json_is_integer(id)) {
        if (asprintf(&sample->id, "%" JSON_INTEGER_FORMAT, json_integer_value(id)) < 0) sample->id = NULL;
    } else {
        sample->id = strdup(is_name(id) ? json_string_value(id) : sample->images[0]);
    }
    if (sample->id == NULL) return out_of_memory();
    sample->columns = json_incref(row);
    (void)snprintf(where, sizeof where, "line %u", number);
    return lvp_sample_take_prompt(sample, row, where);
}

// Turns `sample` into the record of a line that is none.
static enum lvp_status set_bad_line(struct lvp_sample *sample, uint32_t number, const char *why)
{
    lvp_sample_free(sample);
    lvp_sample_error_set(&sample->error, LVP_SAMPLE_BAD_MANIFEST_LINE, "line %u: %s", number, why);
    if (asprintf(&sample->id, "line-%u", number) >= 0) return LVP_OK;
    sample->id = NULL;
    return out_of_memory();
}

static enum lvp_status parse_line(const struct jsonl *jsonl, const char *bytes, size_t n_bytes, uint32_t number,
                                  struct lvp_sample *sample)
{
    if (n_bytes > MAX_LINE_BYTES) return set_bad_line(sample, number, "longer than 16 MiB");
    json_error_t error;
    json_t *row = lvp_parse_row(bytes, n_bytes, &error);
    if (row == NULL) {
        char why[200];
        (void)snprintf(why, sizeof why, "not JSON: %s", error.text);
        return set_bad_line(sample, number, why);
    }
    const char *fault = row_fault(row);
    enum lvp_status status =
        fault != NULL ? set_bad_line(sample, number, fault) : fill_sample(jsonl->root, row, number, sample);
    json_decref(row);
    return status;
}

static enum lvp_status changed(const struct jsonl *jsonl, const char *why)
{
    return lvp_fail(
        LVP_ERR_IO,
        "--input %s: %s; nothing is lost, resume with the file as it was, or caption the new one into another "
        "folder",
        jsonl->base.label, why);
}

// Reads up to n_bytes at an offset; *got is less at the end of the file. LVP_ERR_IO for a file that is not the one that
// was listed any more.
static enum lvp_status read_at(const struct jsonl *jsonl, uint64_t offset, char *bytes, size_t n_bytes, size_t *got)
{
    struct stat info;
    if (fstat(jsonl->file, &info) != 0) return changed(jsonl, strerror(errno));
    if ((uint64_t)info.st_size != jsonl->n_bytes || lvp_file_time(&info) != jsonl->time)
        return changed(jsonl, "the file was changed while the run goes on");
    ssize_t n = lvp_read_at(jsonl->file, offset, bytes, n_bytes);
    if (n < 0) return changed(jsonl, strerror(errno));
    *got = (size_t)n;
    return LVP_OK;
}

// A line longer than the cache is read by itself.
static enum lvp_status load_long_line(const struct jsonl *jsonl, const struct line *line, struct lvp_sample *sample)
{
    size_t got = 0;
    char *bytes = malloc(line->length);
    if (bytes == NULL) return out_of_memory();
    enum lvp_status status = read_at(jsonl, line->offset, bytes, line->length, &got);
    if (status == LVP_OK)
        status = got < line->length ? changed(jsonl, "the file has become shorter")
                                    : parse_line(jsonl, bytes, got, line->number, sample);
    free(bytes);
    return status;
}

static enum lvp_status load(const struct lvp_source *source, struct lvp_cursor *cursor, uint64_t i, bool only_id,
                            struct lvp_sample *sample)
{
    (void)only_id;
    const struct jsonl *jsonl = (const struct jsonl *)source;
    const struct line *line = &jsonl->lines[i];
    if (line->length > MAX_LINE_BYTES) return parse_line(jsonl, NULL, line->length, line->number, sample);
    if (line->length > CACHE_BYTES) return load_long_line(jsonl, line, sample);
    if (cursor->bytes == NULL && (cursor->bytes = malloc(CACHE_BYTES)) == NULL) return out_of_memory();
    bool held = line->offset >= cursor->offset && line->offset + line->length <= cursor->offset + cursor->n_bytes;
    if (!held) {
        cursor->offset = line->offset;
        cursor->n_bytes = 0; // nothing is held if the read fails
        LVP_TRY(read_at(jsonl, line->offset, cursor->bytes, CACHE_BYTES, &cursor->n_bytes));
        if (cursor->n_bytes < line->length) return changed(jsonl, "the file has become shorter");
    }
    return parse_line(jsonl, cursor->bytes + (line->offset - cursor->offset), line->length, line->number, sample);
}

static void place(const struct lvp_source *source, uint64_t i, char *text, size_t size)
{
    (void)snprintf(text, size, "line %u", ((const struct jsonl *)source)->lines[i].number);
}

static void close_jsonl(struct lvp_source *source)
{
    struct jsonl *jsonl = (struct jsonl *)source;
    if (jsonl->file >= 0) (void)close(jsonl->file);
    free(jsonl->lines);
    free(jsonl->root);
    free(jsonl->base.label);
    free(jsonl);
}

static const struct lvp_source_ops ops = {load, place, close_jsonl};

// --- Listing -------------------------------------------------------------------------------------------------------

static enum lvp_status add_line(struct jsonl *jsonl, struct line line)
{
    if (jsonl->base.n == jsonl->max_lines) {
        size_t max = jsonl->max_lines + jsonl->max_lines / 2 + 256;
        struct line *lines = realloc(jsonl->lines, max * sizeof *lines);
        if (lines == NULL) return out_of_memory();
        jsonl->lines = lines;
        jsonl->max_lines = max;
    }
    jsonl->lines[jsonl->base.n++] = line;
    return LVP_OK;
}

// The line that is being scanned.
struct line_scan {
    uint64_t start;
    uint32_t number;
    bool blank;
};

// Notes the line that ends before byte `end`, unless it is blank.
static enum lvp_status end_line(struct jsonl *jsonl, struct line_scan *scan, uint64_t end)
{
    uint64_t length = end - scan->start;
    struct line line = {scan->start, length > MAX_LINE_BYTES ? UINT32_MAX : (uint32_t)length, scan->number};
    if (!scan->blank) LVP_TRY(add_line(jsonl, line));
    if (scan->number == UINT32_MAX) return lvp_fail(LVP_ERR_USAGE, "--input %s: too many lines", jsonl->base.label);
    *scan = (struct line_scan){.start = end + 1, .number = scan->number + 1, .blank = true};
    return LVP_OK;
}

static enum lvp_status list_lines(struct jsonl *jsonl, const struct lvp_tick *tick)
{
    enum { CHUNK = 1 << 18 };
    char *chunk = malloc(CHUNK);
    if (chunk == NULL) return out_of_memory();
    enum lvp_status status = LVP_OK;
    struct line_scan scan = {.number = 1, .blank = true};
    uint64_t at = 0;
    for (;;) {
        ssize_t got = pread(jsonl->file, chunk, CHUNK, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", jsonl->base.label, strerror(errno));
            goto fail;
        }
        if (got == 0) break;
        bool mark = at == 0 && got >= 3 && memcmp(chunk, "\xef\xbb\xbf", 3) == 0; // a byte order mark is no text
        if (mark) scan.start = 3;
        for (ssize_t i = mark ? 3 : 0; i < got; i++) {
            if (chunk[i] == '\n')
                LVP_CHECK(end_line(jsonl, &scan, at + (uint64_t)i));
            else if (!isspace((unsigned char)chunk[i]))
                scan.blank = false;
        }
        at += (uint64_t)got;
        LVP_CHECK(lvp_tick_call(tick));
    }
    LVP_CHECK(end_line(jsonl, &scan, at)); // a last line without its newline
fail:
    free(chunk);
    return status;
}

enum lvp_status lvp_jsonl_open(const char *input, const struct lvp_tick *tick, struct lvp_source **source)
{
    *source = NULL;
    struct jsonl *jsonl = calloc(1, sizeof *jsonl);
    if (jsonl == NULL) return out_of_memory();
    enum lvp_status status = LVP_OK;
    *jsonl = (struct jsonl){
        .base = {.ops = &ops, .label = strdup(input)}, .root = lvp_source_root(input, false), .file = -1};
    if (jsonl->base.label == NULL || jsonl->root == NULL) {
        status = out_of_memory();
        goto fail;
    }
    jsonl->file = open(input, O_RDONLY | O_CLOEXEC);
    if (jsonl->file < 0) {
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", input, strerror(errno));
        goto fail;
    }
    struct stat info;
    if (fstat(jsonl->file, &info) != 0) {
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", input, strerror(errno));
        goto fail;
    }
    jsonl->n_bytes = (uint64_t)info.st_size;
    jsonl->time = lvp_file_time(&info);
    LVP_CHECK(list_lines(jsonl, tick));
    *source = &jsonl->base;
    return LVP_OK;
fail:
    close_jsonl(&jsonl->base);
    return status;
}
