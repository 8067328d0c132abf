#include "coordinator/manifest.h"

#include "common/text.h"
#include "coordinator/folder_list.h"
#include "coordinator/json_text.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { MAX_LINE_BYTES = 16 << 20, CACHE_BYTES = 1 << 18 };

// A line of a .jsonl that is not blank.
struct line {
    uint64_t offset;
    uint32_t length; // bytes; above MAX_LINE_BYTES: too long to be read
    uint32_t number; // from 1
};

// The part of the .jsonl that was read last: requests are asked for in order, so one read serves thousands of lines.
struct line_cache {
    char *bytes;     // [CACHE_BYTES]
    uint64_t offset; // of the file
    size_t n_bytes;
};

struct lvp_manifest {
    char *root;                 // folder that relative image paths start from
    struct lvp_name_list names; // folder and single image
    int fd;                     // of the .jsonl, else -1
    char *label;                // the input as the user wrote it
    struct line_cache *cache;   // of the .jsonl, owned
    struct line *lines;         // [n_lines]
    size_t n_lines, max_lines;
    uint64_t n_all; // samples of the whole input
    uint64_t count; // of this run
    int shard, n_shards;
};

// --- One line ------------------------------------------------------------------------------------------------------

static enum lvp_status out_of_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
}

// Bytes that are no UTF-8 are written as \xNN: an id has to be text, and must not merge two files.
static char *to_utf8(const char *name)
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

static char *join_path(const char *root, const char *path)
{
    char *joined = NULL;
    if (asprintf(&joined, "%s%s%s", path[0] == '/' ? "" : root, path[0] == '/' ? "" : "/", path) < 0) return NULL;
    return joined;
}

// Turns `sample` into the record of a line that is none.
static enum lvp_status set_bad_line(struct lvp_sample *sample, uint32_t number, const char *why)
{
    lvp_sample_free(sample);
    lvp_sample_error_set(&sample->error, LVP_SAMPLE_BAD_MANIFEST_LINE, "line %u: %s", number, why);
    if (asprintf(&sample->id, "line-%u", number) < 0) {
        sample->id = NULL;
        return out_of_memory();
    }
    return LVP_OK;
}

static bool is_name(const json_t *value)
{
    return json_is_string(value) && json_string_length(value) > 0;
}

// What is wrong with the row's fields, NULL for nothing.
static const char *row_fault(const json_t *row)
{
    if (!json_is_object(row)) return "not a JSON object";
    const json_t *image = json_object_get(row, "image"), *id = json_object_get(row, "id"),
                 *prompt = json_object_get(row, "prompt");
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
    if (prompt != NULL && !json_is_null(prompt) && !json_is_string(prompt)) return "\"prompt\" must be a text";
    return NULL;
}

// Fills the sample from a row without faults; false when out of memory.
static bool fill_sample(const struct lvp_manifest *manifest, json_t *row, struct lvp_sample *sample)
{
    const json_t *image = json_object_get(row, "image"), *id = json_object_get(row, "id"),
                 *prompt = json_object_get(row, "prompt");
    sample->image_list = json_is_array(image);
    size_t n = sample->image_list ? json_array_size(image) : 1;
    sample->images = calloc(n, sizeof *sample->images);
    sample->paths = calloc(n, sizeof *sample->paths);
    if (sample->images == NULL || sample->paths == NULL) return false;
    sample->n_images = (int)n;
    for (size_t i = 0; i < n; i++) {
        sample->images[i] = strdup(json_string_value(sample->image_list ? json_array_get(image, i) : image));
        if (sample->images[i] == NULL) return false;
        sample->paths[i] = join_path(manifest->root, sample->images[i]);
        if (sample->paths[i] == NULL) return false;
    }
    if (json_is_integer(id)) {
        if (asprintf(&sample->id, "%" JSON_INTEGER_FORMAT, json_integer_value(id)) < 0) sample->id = NULL;
    } else {
        sample->id = strdup(is_name(id) ? json_string_value(id) : sample->images[0]);
    }
    if (json_is_string(prompt)) sample->prompt = strdup(json_string_value(prompt));
    sample->columns = json_incref(row);
    return sample->id != NULL && (sample->prompt != NULL || !json_is_string(prompt));
}

static enum lvp_status parse_line(const struct lvp_manifest *manifest, const char *bytes, size_t n_bytes,
                                  uint32_t number, struct lvp_sample *sample)
{
    *sample = (struct lvp_sample){0};
    if (n_bytes > MAX_LINE_BYTES) return set_bad_line(sample, number, "longer than 16 MiB");
    json_error_t error;
    json_t *row = json_loadb(bytes, n_bytes, 0, &error);
    if (row == NULL) {
        char why[200];
        (void)snprintf(why, sizeof why, "not JSON: %s", error.text);
        return set_bad_line(sample, number, why);
    }
    const char *fault = row_fault(row);
    enum lvp_status status = LVP_OK;
    if (fault != NULL) {
        status = set_bad_line(sample, number, fault);
    } else if (!fill_sample(manifest, row, sample)) {
        lvp_sample_free(sample);
        status = out_of_memory();
    }
    json_decref(row);
    return status;
}

// Reads up to n_bytes at an offset; *got is less at the end of the file.
static enum lvp_status read_at(const struct lvp_manifest *manifest, uint64_t offset, char *bytes, size_t n_bytes,
                               size_t *got)
{
    for (*got = 0; *got < n_bytes;) {
        ssize_t n = pread(manifest->fd, bytes + *got, n_bytes - *got, (off_t)(offset + *got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lvp_fail(LVP_ERR_IO, "%s: %s", manifest->label, strerror(errno));
        if (n == 0) break;
        *got += (size_t)n;
    }
    return LVP_OK;
}

static enum lvp_status too_short(const struct lvp_manifest *manifest, const struct line *line)
{
    return lvp_fail(LVP_ERR_IO, "%s: line %u cannot be read again: the file has become shorter", manifest->label,
                    line->number);
}

// A line longer than the cache is read by itself.
static enum lvp_status load_long_line(const struct lvp_manifest *manifest, const struct line *line,
                                      struct lvp_sample *sample)
{
    size_t got = 0;
    char *bytes = malloc(line->length);
    if (bytes == NULL) return out_of_memory();
    enum lvp_status status = read_at(manifest, line->offset, bytes, line->length, &got);
    if (status == LVP_OK)
        status =
            got < line->length ? too_short(manifest, line) : parse_line(manifest, bytes, got, line->number, sample);
    free(bytes);
    return status;
}

static enum lvp_status load_line(const struct lvp_manifest *manifest, const struct line *line,
                                 struct lvp_sample *sample)
{
    if (line->length > MAX_LINE_BYTES) return parse_line(manifest, NULL, line->length, line->number, sample);
    if (line->length > CACHE_BYTES) return load_long_line(manifest, line, sample);
    struct line_cache *cache = manifest->cache;
    bool held = line->offset >= cache->offset && line->offset + line->length <= cache->offset + cache->n_bytes;
    if (!held) {
        cache->offset = line->offset;
        LVP_TRY(read_at(manifest, line->offset, cache->bytes, CACHE_BYTES, &cache->n_bytes));
        if (cache->n_bytes < line->length) return too_short(manifest, line);
    }
    return parse_line(manifest, cache->bytes + (line->offset - cache->offset), line->length, line->number, sample);
}

static enum lvp_status load_name(const struct lvp_manifest *manifest, const char *name, struct lvp_sample *sample)
{
    *sample = (struct lvp_sample){.n_images = 1};
    sample->images = calloc(1, sizeof *sample->images);
    sample->paths = calloc(1, sizeof *sample->paths);
    sample->id = to_utf8(name);
    if (sample->images != NULL) sample->images[0] = to_utf8(name);
    if (sample->paths != NULL) sample->paths[0] = join_path(manifest->root, name);
    if (sample->id != NULL && sample->images != NULL && sample->images[0] != NULL && sample->paths != NULL &&
        sample->paths[0] != NULL)
        return LVP_OK;
    lvp_sample_free(sample);
    return out_of_memory();
}

// Sample of the whole input, before sharding.
static enum lvp_status load_any(const struct lvp_manifest *manifest, uint64_t i, struct lvp_sample *sample)
{
    if (manifest->fd >= 0) return load_line(manifest, &manifest->lines[i], sample);
    return load_name(manifest, lvp_name_list_at(&manifest->names, i), sample);
}

// --- Listing -------------------------------------------------------------------------------------------------------

static enum lvp_status add_line(struct lvp_manifest *manifest, struct line line)
{
    if (manifest->n_lines == manifest->max_lines) {
        size_t max = 2 * manifest->max_lines + 256;
        struct line *lines = realloc(manifest->lines, max * sizeof *lines);
        if (lines == NULL) return out_of_memory();
        manifest->lines = lines;
        manifest->max_lines = max;
    }
    manifest->lines[manifest->n_lines++] = line;
    return LVP_OK;
}

// The line that is being scanned.
struct line_scan {
    uint64_t start;
    uint32_t number;
    bool blank;
};

// Notes the line that ends before byte `end`, unless it is blank.
static enum lvp_status end_line(struct lvp_manifest *manifest, struct line_scan *scan, uint64_t end)
{
    uint64_t length = end - scan->start;
    struct line line = {scan->start, length > MAX_LINE_BYTES ? UINT32_MAX : (uint32_t)length, scan->number};
    if (!scan->blank) LVP_TRY(add_line(manifest, line));
    *scan = (struct line_scan){.start = end + 1, .number = scan->number + 1, .blank = true};
    return LVP_OK;
}

static enum lvp_status list_lines(struct lvp_manifest *manifest)
{
    enum { CHUNK = 1 << 18 };
    char *chunk = malloc(CHUNK);
    if (chunk == NULL) return out_of_memory();
    enum lvp_status status = LVP_OK;
    struct line_scan scan = {.number = 1, .blank = true};
    uint64_t at = 0;
    for (;;) {
        ssize_t got = pread(manifest->fd, chunk, CHUNK, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", manifest->label, strerror(errno));
            goto fail;
        }
        if (got == 0) break;
        bool mark = at == 0 && got >= 3 && memcmp(chunk, "\xef\xbb\xbf", 3) == 0; // a byte order mark is no text
        if (mark) scan.start = 3;
        for (ssize_t i = mark ? 3 : 0; i < got; i++) {
            if (chunk[i] == '\n')
                LVP_CHECK(end_line(manifest, &scan, at + (uint64_t)i));
            else if (!isspace((unsigned char)chunk[i]))
                scan.blank = false;
        }
        at += (uint64_t)got;
    }
    LVP_CHECK(end_line(manifest, &scan, at)); // a last line without its newline
    manifest->n_all = manifest->n_lines;
fail:
    free(chunk);
    return status;
}

struct id_hash {
    uint64_t hash, index;
};

static int compare_hashes(const void *a, const void *b)
{
    const struct id_hash *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

// Of two samples whose ids have one hash: are the ids one too?
static enum lvp_status compare_ids(const struct lvp_manifest *manifest, uint64_t a, uint64_t b)
{
    struct lvp_sample first = {0}, second = {0};
    LVP_TRY(load_any(manifest, a, &first));
    enum lvp_status status = load_any(manifest, b, &second);
    if (status == LVP_OK && strcmp(first.id, second.id) == 0) {
        if (manifest->fd >= 0)
            status = lvp_fail(LVP_ERR_USAGE,
                              "--input %s: lines %u and %u have the same id \"%s\"; ids must be unique, give each line "
                              "an \"id\" of its own",
                              manifest->label, manifest->lines[a].number, manifest->lines[b].number, first.id);
        else
            status = lvp_fail(LVP_ERR_USAGE, "--input %s: the files %s and %s have the same id", manifest->label,
                              first.paths[0], second.paths[0]);
    }
    lvp_sample_free(&first);
    lvp_sample_free(&second);
    return status;
}

static enum lvp_status check_unique(const struct lvp_manifest *manifest)
{
    uint64_t n = manifest->n_all;
    struct id_hash *hashes = malloc((n + 1) * sizeof *hashes);
    if (hashes == NULL) return out_of_memory();
    enum lvp_status status = LVP_OK;
    for (uint64_t i = 0; i < n; i++) {
        struct lvp_sample sample;
        LVP_CHECK(load_any(manifest, i, &sample));
        hashes[i] = (struct id_hash){XXH3_64bits(sample.id, strlen(sample.id)), i};
        lvp_sample_free(&sample);
    }
    qsort(hashes, n, sizeof *hashes, compare_hashes);
    for (uint64_t i = 1; i < n; i++)
        if (hashes[i].hash == hashes[i - 1].hash)
            LVP_CHECK(compare_ids(manifest, hashes[i - 1].index, hashes[i].index));
fail:
    free(hashes);
    return status;
}

static bool ends_in(const char *text, const char *ending)
{
    size_t n = strlen(text), m = strlen(ending);
    return n > m && strcmp(text + n - m, ending) == 0;
}

static enum lvp_status open_jsonl(struct lvp_manifest *manifest)
{
    manifest->fd = open(manifest->label, O_RDONLY | O_CLOEXEC);
    if (manifest->fd < 0) return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", manifest->label, strerror(errno));
    manifest->cache = calloc(1, sizeof *manifest->cache);
    if (manifest->cache != NULL) manifest->cache->bytes = malloc(CACHE_BYTES);
    if (manifest->cache == NULL || manifest->cache->bytes == NULL) return out_of_memory();
    return list_lines(manifest);
}

static enum lvp_status open_image(struct lvp_manifest *manifest)
{
    const char *slash = strrchr(manifest->label, '/');
    LVP_TRY(lvp_name_list_add(&manifest->names, slash != NULL ? slash + 1 : manifest->label));
    manifest->n_all = 1;
    return LVP_OK;
}

static enum lvp_status open_folder(struct lvp_manifest *manifest)
{
    LVP_TRY(lvp_folder_list(manifest->label, &manifest->names));
    manifest->n_all = manifest->names.n;
    if (manifest->n_all == 0)
        return lvp_fail(LVP_ERR_USAGE, "--input %s: no .jpg, .jpeg, .png or .webp file in the folder", manifest->label);
    return LVP_OK;
}

// Folder that relative paths start from: the input itself, or the folder it lies in.
static char *root_of(const char *input, bool folder)
{
    const char *slash = strrchr(input, '/');
    size_t n = folder ? strlen(input) : slash != NULL ? (size_t)(slash - input) : 0;
    while (n > 1 && input[n - 1] == '/') n--;
    if (n == 0) return strdup(slash == input ? "" : "."); // "/x.jpg" joins to "" "/" "x.jpg"
    return strndup(input, n == 1 && input[0] == '/' ? 0 : n);
}

enum lvp_status lvp_manifest_open(const char *input, const struct lvp_manifest_options *options,
                                  struct lvp_manifest **result)
{
    struct stat info;
    if (stat(input, &info) != 0) {
        bool pattern = strchr(input, '{') != NULL && strstr(input, "..") != NULL;
        if (pattern) return lvp_fail(LVP_ERR_USAGE, "--input %s: patterns of tar shards are not yet supported", input);
        return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", input, strerror(errno));
    }
    bool folder = S_ISDIR(info.st_mode);
    if (!folder && !S_ISREG(info.st_mode))
        return lvp_fail(LVP_ERR_USAGE, "--input %s: neither a file nor a folder", input);
    if (!folder && ends_in(input, ".tar"))
        return lvp_fail(LVP_ERR_USAGE, "--input %s: tar shards are not yet supported", input);

    enum lvp_status status = LVP_OK;
    struct lvp_manifest *manifest = calloc(1, sizeof *manifest);
    char *root = root_of(input, folder), *label = strdup(input);
    if (manifest == NULL || root == NULL || label == NULL) {
        free(manifest);
        free(root);
        free(label);
        return out_of_memory();
    }
    *manifest = (struct lvp_manifest){.root = root, .label = label, .fd = -1};
    LVP_CHECK(folder ? open_folder(manifest) : ends_in(input, ".jsonl") ? open_jsonl(manifest) : open_image(manifest));
    LVP_CHECK(check_unique(manifest));
    manifest->shard = options->shard;
    manifest->n_shards = options->n_shards > 0 ? options->n_shards : 1;
    uint64_t shards = (uint64_t)manifest->n_shards, first = (uint64_t)manifest->shard;
    manifest->count = manifest->n_all > first ? (manifest->n_all - first + shards - 1) / shards : 0;
    if (options->limit >= 0 && manifest->count > (uint64_t)options->limit) manifest->count = (uint64_t)options->limit;
    *result = manifest;
    return LVP_OK;
fail:
    lvp_manifest_close(manifest);
    return status;
}

void lvp_manifest_close(struct lvp_manifest *manifest)
{
    if (manifest == NULL) return;
    if (manifest->fd >= 0) (void)close(manifest->fd);
    if (manifest->cache != NULL) free(manifest->cache->bytes);
    free(manifest->cache);
    lvp_name_list_free(&manifest->names);
    free(manifest->lines);
    free(manifest->root);
    free(manifest->label);
    free(manifest);
}

uint64_t lvp_manifest_count(const struct lvp_manifest *manifest)
{
    return manifest->count;
}

enum lvp_status lvp_manifest_sample(const struct lvp_manifest *manifest, uint64_t index, struct lvp_sample *sample)
{
    *sample = (struct lvp_sample){0};
    if (index >= manifest->count)
        return lvp_fail(LVP_ERR_INTERNAL, "sample %llu of %llu", (unsigned long long)index,
                        (unsigned long long)manifest->count);
    return load_any(manifest, index * (uint64_t)manifest->n_shards + (uint64_t)manifest->shard, sample);
}

enum lvp_status lvp_shard_parse(const char *text, int *shard, int *n_shards)
{
    int i = -1, n = -1, end = -1;
    if (isdigit((unsigned char)text[0]) && strlen(text) < 16) (void)sscanf(text, "%7d/%7d%n", &i, &n, &end);
    if (end < 0 || text[end] != '\0' || i < 0 || i >= n)
        return lvp_fail(LVP_ERR_USAGE, "--shard %s: give I/N with I from 0 to N - 1, like 0/4", text);
    *shard = i;
    *n_shards = n;
    return LVP_OK;
}
