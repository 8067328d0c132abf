#include "coordinator/captions.h"

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/identity.h"
#include "coordinator/manifest.h"
#include "coordinator/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Of --retry-failed: the merged files, which take the others' places when every old row is in them. captions goes
// first, so "only the new errors file is there" means: between the two renames.
static const char new_captions[] = LVP_CAPTIONS_FILE ".new";
static const char new_errors[] = LVP_ERRORS_FILE ".new";

enum { FLUSH_BYTES = 1 << 18 };
static const double sync_seconds = 1.0;

// One of the two files, and the rows that are to be appended to it.
struct output_file {
    const char *name;
    int fd; // -1: closed
    struct lvp_json_text pending;
};

// A finished request that waits for its predecessors.
struct slot {
    struct lvp_json_text row;
    bool used, is_error;
};

struct lvp_captions {
    char *dir;
    int lock;
    struct output_file captions, errors;
    struct slot *slots; // [window]; request i waits in slot i % window
    uint64_t window;
    uint64_t total;
    uint64_t at; // first request without a row in the files (or in `pending`)
    struct lvp_captions_counts counts;
    double unsynced_since; // monotonic seconds; negative: everything is on the disk
    bool mixed_numerics;
    bool retrying;              // rows go to the .new files until `at` reaches old.n_done
    struct lvp_resume old;      // of the files before the retry
    struct lvp_row_reader copy; // old captions; stands on the first one at or after `at`
};

// --- Writing -------------------------------------------------------------------------------------------------------

static enum lvp_status flush_file(struct output_file *file)
{
    if (file->pending.failed) return lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", file->name);
    LVP_TRY(lvp_write_all(file->fd, file->name, file->pending.data, file->pending.length));
    file->pending.length = 0;
    return LVP_OK;
}

static enum lvp_status sync_all(struct lvp_captions *c)
{
    LVP_TRY(flush_file(&c->captions));
    LVP_TRY(flush_file(&c->errors));
    c->unsynced_since = -1;
    if (fdatasync(c->captions.fd) != 0 || fdatasync(c->errors.fd) != 0)
        return lvp_fail(LVP_ERR_IO, "writing to %s: %s", c->dir, strerror(errno));
    return LVP_OK;
}

static enum lvp_status append_row(struct lvp_captions *c, bool is_error, const char *row, size_t length)
{
    struct output_file *file = is_error ? &c->errors : &c->captions;
    lvp_json_text_append(&file->pending, row, length);
    if (c->unsynced_since < 0) c->unsynced_since = lvp_now();
    return file->pending.length >= FLUSH_BYTES || file->pending.failed ? flush_file(file) : LVP_OK;
}

// The merged files are whole: they become the files.
static enum lvp_status finish_retry(struct lvp_captions *c)
{
    LVP_TRY(sync_all(c));
    LVP_TRY(lvp_output_rename(c->dir, new_captions, LVP_CAPTIONS_FILE));
    LVP_TRY(lvp_output_rename(c->dir, new_errors, LVP_ERRORS_FILE));
    c->retrying = false;
    lvp_row_reader_close(&c->copy);
    return LVP_OK;
}

// Writes every row whose predecessors are written.
static enum lvp_status drain(struct lvp_captions *c)
{
    for (; c->at < c->total; c->at++) {
        if (c->retrying && c->at == c->old.n_done) LVP_TRY(finish_retry(c));
        if (c->retrying && !lvp_resume_failed(&c->old, c->at)) {
            if (c->copy.length < 0) return lvp_fail(LVP_ERR_IO, "%s/%s has become shorter", c->dir, LVP_CAPTIONS_FILE);
            LVP_TRY(append_row(c, false, c->copy.row, (size_t)c->copy.length));
            lvp_row_reader_next(&c->copy);
            continue;
        }
        struct slot *slot = &c->slots[c->at % c->window];
        if (!slot->used) return LVP_OK;
        enum lvp_status status = append_row(c, slot->is_error, slot->row.data, slot->row.length);
        lvp_json_text_free(&slot->row);
        slot->used = false;
        if (status != LVP_OK) return status;
    }
    return c->retrying ? finish_retry(c) : LVP_OK;
}

bool lvp_captions_accepts(const struct lvp_captions *c, uint64_t index)
{
    return index >= c->at && index - c->at < c->window;
}

// Takes `row`.
static enum lvp_status add_row(struct lvp_captions *c, uint64_t index, bool is_error, struct lvp_json_text row)
{
    struct slot *slot = &c->slots[index % c->window];
    if (row.failed || index >= c->total || !lvp_captions_accepts(c, index) || slot->used) {
        bool failed = row.failed;
        lvp_json_text_free(&row);
        if (failed) return lvp_fail(LVP_ERR_MEMORY, "a caption's row: out of memory");
        return lvp_fail(LVP_ERR_INTERNAL, "request %llu was finished twice or outside the window",
                        (unsigned long long)index);
    }
    *slot = (struct slot){.row = row, .used = true, .is_error = is_error};
    if (is_error)
        c->counts.failed++;
    else
        c->counts.captions++;
    LVP_TRY(drain(c));
    return lvp_captions_tick(c);
}

enum lvp_status lvp_captions_add(struct lvp_captions *c, uint64_t index, const struct lvp_request *request,
                                 const struct lvp_caption *caption)
{
    struct lvp_json_text row = {0};
    lvp_caption_row(request, caption, &row);
    return add_row(c, index, false, row);
}

enum lvp_status lvp_captions_add_error(struct lvp_captions *c, uint64_t index, const struct lvp_request *request,
                                       const struct lvp_sample_error *error, int attempts)
{
    struct lvp_json_text row = {0};
    lvp_error_row(request, error, attempts, &row);
    return add_row(c, index, true, row);
}

enum lvp_status lvp_captions_tick(struct lvp_captions *c)
{
    if (c->unsynced_since < 0 || lvp_now() - c->unsynced_since < sync_seconds) return LVP_OK;
    return sync_all(c);
}

uint64_t lvp_captions_next(const struct lvp_captions *c, uint64_t from)
{
    if (from < c->at) from = c->at;
    if (c->old.n_done > 0) // what a retry leaves as it is
        while (from < c->old.n_done && !lvp_resume_failed(&c->old, from)) from++;
    return from < c->total ? from : c->total;
}

struct lvp_captions_counts lvp_captions_counts(const struct lvp_captions *c)
{
    return c->counts;
}

bool lvp_captions_mixed_numerics(const struct lvp_captions *c)
{
    return c->mixed_numerics;
}

// --- Opening -------------------------------------------------------------------------------------------------------

static enum lvp_status remove_earlier_run(const char *dir)
{
    // The identity goes last: without it, captions that are still there are nobody's and stop the next run.
    static const char *const names[] = {new_errors, new_captions,    LVP_CAPTIONS_FILE, LVP_ERRORS_FILE,
                                        "run.json", LVP_HASHES_FILE, LVP_IDENTITY_FILE};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) LVP_TRY(lvp_output_remove(dir, names[i]));
    return LVP_OK;
}

// Completes or drops what a retry that was killed left.
static enum lvp_status settle_retry(const char *dir, bool retry_failed)
{
    bool captions = lvp_output_exists(dir, new_captions), errors = lvp_output_exists(dir, new_errors);
    if (errors && !captions) return lvp_output_rename(dir, new_errors, LVP_ERRORS_FILE);
    if (captions && errors && retry_failed) return LVP_OK; // goes on
    if (captions && errors) lvp_warn("--output %s: an unfinished --retry-failed is dropped", dir);
    LVP_TRY(lvp_output_remove(dir, new_errors));
    return lvp_output_remove(dir, new_captions);
}

static bool has_rows(const char *dir, const char *name)
{
    char *path = lvp_output_path(dir, name);
    struct stat info;
    bool rows = path != NULL && stat(path, &info) == 0 && info.st_size > 0;
    free(path);
    return rows;
}

// Compares with the run in the folder, or starts one. Asks for every request and finds how far the earlier run came.
static enum lvp_status check_identity(const struct lvp_captions_options *options, struct lvp_captions *c,
                                      struct lvp_resume *merged)
{
    struct lvp_request_hashes hashes = {.fd = -1};
    json_t *stored = NULL, *identity = json_copy((json_t *)options->identity);
    enum lvp_status status = LVP_OK;
    bool was_mixed = false;
    if (identity == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", c->dir);
    LVP_CHECK(lvp_identity_read(c->dir, &stored));
    if (stored == NULL && (has_rows(c->dir, LVP_CAPTIONS_FILE) || has_rows(c->dir, LVP_ERRORS_FILE))) {
        status =
            lvp_fail(LVP_ERR_USAGE,
                     "--output %s holds captions, but no %s to tell which run's; use another folder or --overwrite",
                     c->dir, LVP_IDENTITY_FILE);
        goto fail;
    }
    was_mixed = json_is_true(json_object_get(stored, "mixed_numerics"));
    if (stored != NULL)
        LVP_CHECK(lvp_identity_compare(c->dir, stored, identity, options->allow_mixed_numerics, &c->mixed_numerics));
    LVP_CHECK(lvp_hashes_open(c->dir, stored == NULL, &hashes));
    if (hashes.n_stored > c->total) {
        status = lvp_fail(LVP_ERR_USAGE,
                          "--output %s holds a run over %llu requests, now there are %llu; the input and --limit may "
                          "grow, not shrink",
                          c->dir, (unsigned long long)hashes.n_stored, (unsigned long long)c->total);
        goto fail;
    }
    for (uint64_t i = 0; i < c->total; i++) {
        struct lvp_request request;
        LVP_CHECK(lvp_request_load(options->requests, i, &request));
        status = lvp_hashes_check(&hashes, i, &request);
        if (status == LVP_OK && !c->old.ended) status = lvp_resume_step(&c->old, request.id);
        if (status == LVP_OK && !c->old.ended && !merged->ended) status = lvp_resume_step(merged, request.id);
        lvp_request_free(&request);
        if (status != LVP_OK) goto fail;
    }
    LVP_CHECK(lvp_hashes_store(&hashes));
    if (stored == NULL) {
        LVP_CHECK(lvp_output_write_json(c->dir, LVP_IDENTITY_FILE, identity));
    } else if (c->mixed_numerics && !was_mixed) {
        (void)json_object_set_new(stored, "mixed_numerics", json_true());
        LVP_CHECK(lvp_output_write_json(c->dir, LVP_IDENTITY_FILE, stored));
    }
fail:
    lvp_hashes_close(&hashes);
    json_decref(stored);
    json_decref(identity);
    return status;
}

// Opens for appending after the first `keep` bytes; what is behind them is cut off.
static enum lvp_status open_file(const char *dir, const char *name, uint64_t keep, struct output_file *file)
{
    char *path = lvp_output_path(dir, name);
    if (path == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
    file->name = name;
    file->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    struct stat info = {0};
    enum lvp_status status = LVP_OK;
    if (file->fd < 0 || fstat(file->fd, &info) != 0 || ftruncate(file->fd, (off_t)keep) != 0)
        status = lvp_fail(LVP_ERR_USAGE, "--output: %s cannot be written to: %s", path, strerror(errno));
    else if ((uint64_t)info.st_size > keep)
        lvp_info("%s: %llu bytes after the last finished row are dropped and computed again", path,
                 (unsigned long long)info.st_size - (unsigned long long)keep);
    free(path);
    return status;
}

// Rows go to the merged files, after those that an earlier attempt has put there.
static enum lvp_status start_retry(struct lvp_captions *c, const struct lvp_resume *merged)
{
    LVP_TRY(open_file(c->dir, new_captions, merged->captions_bytes, &c->captions));
    LVP_TRY(open_file(c->dir, new_errors, merged->errors_bytes, &c->errors));
    LVP_TRY(lvp_row_reader_open(c->dir, LVP_CAPTIONS_FILE, &c->copy));
    c->retrying = true;
    c->at = merged->n_done;
    c->counts.failed = merged->n_failed;
    c->counts.captions = c->old.n_done - c->old.n_failed;
    for (uint64_t i = 0; i < c->at; i++) {
        if (lvp_resume_failed(&c->old, i))
            c->counts.captions += lvp_resume_failed(merged, i) ? 0 : 1;
        else
            lvp_row_reader_next(&c->copy);
    }
    return LVP_OK;
}

static enum lvp_status open_outputs(const struct lvp_captions_options *options, struct lvp_captions *c)
{
    struct lvp_resume merged = {.captions.length = -1, .errors.length = -1};
    enum lvp_status status = LVP_OK;
    LVP_CHECK(lvp_output_lock(c->dir, &c->lock));
    if (options->overwrite) LVP_CHECK(remove_earlier_run(c->dir));
    LVP_CHECK(settle_retry(c->dir, options->retry_failed));
    LVP_CHECK(lvp_resume_open(c->dir, LVP_CAPTIONS_FILE, LVP_ERRORS_FILE, &c->old));
    LVP_CHECK(lvp_resume_open(c->dir, new_captions, new_errors, &merged));
    LVP_CHECK(check_identity(options, c, &merged));
    if (options->retry_failed && c->old.n_failed > 0) {
        LVP_CHECK(start_retry(c, &merged));
    } else {
        LVP_CHECK(open_file(c->dir, LVP_CAPTIONS_FILE, c->old.captions_bytes, &c->captions));
        LVP_CHECK(open_file(c->dir, LVP_ERRORS_FILE, c->old.errors_bytes, &c->errors));
        c->at = c->old.n_done;
        c->counts.captions = c->old.n_done - c->old.n_failed;
        c->counts.failed = c->old.n_failed;
        c->old.n_done = 0; // nothing to copy
    }
    c->counts.resumed = c->counts.captions + c->counts.failed;
    LVP_CHECK(lvp_output_sync(c->dir));
    LVP_CHECK(drain(c));
fail:
    lvp_resume_close(&merged);
    return status;
}

static void release(struct lvp_captions *c)
{
    if (c->captions.fd >= 0) (void)close(c->captions.fd);
    if (c->errors.fd >= 0) (void)close(c->errors.fd);
    if (c->lock >= 0) (void)close(c->lock);
    if (c->slots != NULL)
        for (uint64_t i = 0; i < c->window; i++) lvp_json_text_free(&c->slots[i].row);
    lvp_json_text_free(&c->captions.pending);
    lvp_json_text_free(&c->errors.pending);
    lvp_row_reader_close(&c->copy);
    lvp_resume_close(&c->old);
    free(c->slots);
    free(c->dir);
    free(c);
}

enum lvp_status lvp_captions_open(const struct lvp_captions_options *options, struct lvp_captions **captions)
{
    struct lvp_captions *c = calloc(1, sizeof *c);
    if (c == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", options->dir);
    c->lock = c->captions.fd = c->errors.fd = -1;
    c->old.captions.length = c->old.errors.length = c->copy.length = -1;
    c->unsynced_since = -1;
    c->window = options->window > 0 ? options->window : LVP_CAPTIONS_WINDOW;
    c->total = c->counts.total = lvp_request_count(options->requests);
    c->dir = strdup(options->dir);
    c->slots = calloc(c->window, sizeof *c->slots);
    enum lvp_status status = LVP_OK;
    if (c->dir == NULL || c->slots == NULL)
        status = lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", options->dir);
    else
        status = open_outputs(options, c);
    if (status != LVP_OK) {
        release(c);
        return status == LVP_ERR_IO ? LVP_ERR_USAGE : status; // not writable at start is a matter of configuration
    }
    *captions = c;
    return LVP_OK;
}

enum lvp_status lvp_captions_close(struct lvp_captions *c)
{
    if (c == NULL) return LVP_OK;
    enum lvp_status status = sync_all(c);
    release(c);
    return status;
}
