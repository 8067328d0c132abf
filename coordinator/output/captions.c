#include "coordinator/output/captions.h"

#include "common/log.h"
#include "common/record.h"
#include "coordinator/input/survey.h"
#include "coordinator/output/crashes.h"
#include "coordinator/output/identity.h"
#include "coordinator/output/output_folder.h"
#include "coordinator/output/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// Of --retry-failed: the merged files, which take the others' places when every old row is in them. captions goes
// first, so "only the new errors file is there" means: between the two renames.
static const char new_captions[] = LVP_CAPTIONS_FILE ".new";
static const char new_errors[] = LVP_ERRORS_FILE ".new";

enum { FULL_BYTES = 64 << 20 };

struct output_file {
    const char *name;
    int fd; // -1: closed
};

// A finished request that waits for its predecessors.
struct slot {
    struct lvp_json_text row;
    bool used, is_error;
};

struct lvp_captions {
    char *dir, *launch_id; // launch_id NULL: none
    struct lvp_writer *writer;
    struct output_file captions, errors;
    struct slot *slots; // [window]; request i waits in slot i % window
    uint64_t window;
    uint64_t total;
    uint64_t at; // first request without a row in the files (or on its way there)
    struct lvp_captions_counts counts;
    bool mixed_numerics;
    bool retrying;              // rows go to the .new files until `at` reaches old.n_done
    struct lvp_resume old;      // of the files before the retry
    struct lvp_row_reader copy; // old captions; stands on the first one at or after `at`
};

// --- Writing -------------------------------------------------------------------------------------------------------

static enum lvp_status append_row(struct lvp_captions *c, bool is_error, const char *row, size_t length)
{
    const struct output_file *file = is_error ? &c->errors : &c->captions;
    return lvp_writer_append(c->writer, is_error ? 1 : 0, file->fd, file->name, row, length);
}

// What a launch does once, however often it is restarted, is noted with its id.
static const char overwritten[] = LVP_STATE_FOLDER "/overwritten", retried[] = LVP_STATE_FOLDER "/retried";

static enum lvp_status note_done(const char *dir, const char *what, const char *launch_id)
{
    char *path = launch_id != NULL ? lvp_output_path(dir, what) : NULL;
    enum lvp_status status = path != NULL ? lvp_replace_file(path, launch_id, true) : LVP_OK;
    free(path);
    return status;
}

static bool is_done(const char *dir, const char *what, const char *launch_id)
{
    char text[128] = "";
    char *path = launch_id != NULL ? lvp_output_path(dir, what) : NULL;
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    size_t n = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file != NULL) (void)fclose(file);
    free(path);
    return n > 0 && strcmp(text, launch_id) == 0;
}

// The merged files are whole: they become the files.
static enum lvp_status finish_retry(struct lvp_captions *c)
{
    LVP_TRY(lvp_writer_flush(c->writer));
    LVP_TRY(lvp_output_rename(c->dir, new_captions, LVP_CAPTIONS_FILE));
    LVP_TRY(lvp_output_rename(c->dir, new_errors, LVP_ERRORS_FILE));
    LVP_TRY(note_done(c->dir, retried, c->launch_id));
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
    return drain(c);
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

bool lvp_captions_full(const struct lvp_captions *c)
{
    return lvp_writer_pending(c->writer) > FULL_BYTES;
}

enum lvp_status lvp_captions_status(struct lvp_captions *c)
{
    return lvp_writer_status(c->writer);
}

struct lvp_writer *lvp_captions_writer(struct lvp_captions *c)
{
    return c->writer;
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
    static const char *const names[] = {new_errors,       new_captions,    LVP_CAPTIONS_FILE,
                                        LVP_ERRORS_FILE,  "run.json",      "status.json",
                                        LVP_CRASHES_FILE, LVP_HASHES_FILE, LVP_IDENTITY_FILE};
    lvp_record_remove_all(dir);
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

// What the walk over the input compares with.
struct comparison {
    const struct lvp_captions_options *options;
    struct lvp_captions *c;
    struct lvp_resume *merged;
    struct lvp_request_hashes hashes;
};

static enum lvp_status other_request(const struct comparison *with, uint64_t index)
{
    struct lvp_request request;
    struct lvp_cursor cursor = {0};
    enum lvp_status status = lvp_request_load(with->options->requests, &cursor, index, &request);
    lvp_cursor_close(&cursor);
    LVP_TRY(status);
    status = lvp_fail(LVP_ERR_USAGE,
                      "--output %s holds a run over other requests: number %llu, now \"%s\", has another id, prompt or "
                      "image; use the same input and prompts, another folder or --overwrite",
                      with->c->dir, (unsigned long long)index + 1, request.id);
    lvp_request_free(&request);
    return status;
}

// The next request: is it the one of the earlier run, and is it finished?
static enum lvp_status compare_request(void *context, uint64_t index, const struct lvp_request_mark *mark)
{
    struct comparison *with = context;
    struct lvp_resume *old = &with->c->old;
    bool same = true;
    LVP_TRY(lvp_hashes_check(&with->hashes, index, mark->identity, &same));
    if (!same) return other_request(with, index);
    if (!old->ended) LVP_TRY(lvp_resume_step(old, mark->id_text));
    if (!old->ended && !with->merged->ended) LVP_TRY(lvp_resume_step(with->merged, mark->id_text));
    return LVP_OK;
}

// The options that decide the bytes: the earlier run's, or none.
static enum lvp_status check_options(const struct lvp_captions_options *options, struct lvp_captions *c,
                                     json_t **stored)
{
    LVP_TRY(lvp_identity_read(c->dir, stored));
    if (*stored != NULL)
        return lvp_identity_compare(c->dir, *stored, options->identity, options->allow_mixed_numerics,
                                    &c->mixed_numerics);
    if (!has_rows(c->dir, LVP_CAPTIONS_FILE) && !has_rows(c->dir, LVP_ERRORS_FILE)) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE,
                    "--output %s holds captions, but no %s to tell which run's; use another folder or --overwrite",
                    c->dir, LVP_IDENTITY_FILE);
}

// Compares with the run in the folder, or starts one. Looks at every request and finds how far the earlier run came.
static enum lvp_status check_identity(const struct lvp_captions_options *options, struct lvp_captions *c,
                                      struct lvp_resume *merged)
{
    struct comparison with = {.options = options, .c = c, .merged = merged, .hashes = {.fd = -1}};
    struct lvp_survey survey = {.requests = options->requests,
                                .threads = options->threads,
                                .tick = options->tick,
                                .request = compare_request,
                                .context = &with};
    json_t *stored = NULL;
    enum lvp_status status = check_options(options, c, &stored);
    if (status != LVP_OK) goto fail;
    LVP_CHECK(lvp_hashes_open(c->dir, stored == NULL, &with.hashes));
    if (with.hashes.n_stored > c->total) {
        status = lvp_fail(LVP_ERR_USAGE,
                          "--output %s holds a run over %llu requests, now there are %llu; the input and --limit may "
                          "grow, not shrink",
                          c->dir, (unsigned long long)with.hashes.n_stored, (unsigned long long)c->total);
        goto fail;
    }
    LVP_CHECK(lvp_survey(&survey));
    LVP_CHECK(lvp_hashes_store(&with.hashes));
    if (stored == NULL) {
        LVP_CHECK(lvp_output_write_json(c->dir, LVP_IDENTITY_FILE, options->identity));
    } else if (c->mixed_numerics && !json_is_true(json_object_get(stored, LVP_MIXED_NUMERICS))) {
        (void)json_object_set_new(stored, LVP_MIXED_NUMERICS, json_true());
        LVP_CHECK(lvp_output_write_json(c->dir, LVP_IDENTITY_FILE, stored));
    }
fail:
    lvp_hashes_close(&with.hashes);
    json_decref(stored);
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
    if (options->overwrite && !is_done(c->dir, overwritten, c->launch_id)) {
        LVP_CHECK(remove_earlier_run(c->dir));
        LVP_CHECK(note_done(c->dir, overwritten, c->launch_id));
    }
    bool retry = options->retry_failed && !is_done(c->dir, retried, c->launch_id);
    LVP_CHECK(settle_retry(c->dir, retry));
    LVP_CHECK(lvp_resume_open(c->dir, LVP_CAPTIONS_FILE, LVP_ERRORS_FILE, &c->old));
    LVP_CHECK(lvp_resume_open(c->dir, new_captions, new_errors, &merged));
    LVP_CHECK(check_identity(options, c, &merged));
    if (retry && c->old.n_failed > 0) {
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

static enum lvp_status release(struct lvp_captions *c)
{
    enum lvp_status status = lvp_writer_close(c->writer);
    if (c->captions.fd >= 0) (void)close(c->captions.fd);
    if (c->errors.fd >= 0) (void)close(c->errors.fd);
    for (uint64_t i = 0; c->slots != NULL && i < c->window; i++) lvp_json_text_free(&c->slots[i].row);
    lvp_row_reader_close(&c->copy);
    lvp_resume_close(&c->old);
    free(c->slots);
    free(c->dir);
    free(c->launch_id);
    free(c);
    return status;
}

enum lvp_status lvp_captions_open(const struct lvp_captions_options *options, struct lvp_lock *lock,
                                  struct lvp_captions **captions)
{
    struct lvp_captions *c = calloc(1, sizeof *c);
    if (c == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", options->dir);
    c->captions.fd = c->errors.fd = -1;
    c->old.captions.length = c->old.errors.length = c->copy.length = -1;
    c->window = options->window > 0 ? options->window : LVP_CAPTIONS_WINDOW;
    c->total = c->counts.total = lvp_request_count(options->requests);
    c->dir = strdup(options->dir);
    c->launch_id = options->launch_id != NULL ? strdup(options->launch_id) : NULL;
    c->slots = calloc(c->window, sizeof *c->slots);
    enum lvp_status status = LVP_OK;
    if (c->dir == NULL || c->slots == NULL || (options->launch_id != NULL && c->launch_id == NULL)) {
        status = lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", options->dir);
        goto fail;
    }
    LVP_CHECK(lvp_writer_open(lock, &c->writer));
    LVP_CHECK(open_outputs(options, c));
    *captions = c;
    return LVP_OK;
fail:
    if (release(c) != LVP_OK) lvp_debug("closing %s failed too", options->dir);
    return status == LVP_ERR_IO ? LVP_ERR_USAGE : status; // not writable at start is a matter of configuration
}

enum lvp_status lvp_captions_close(struct lvp_captions *c)
{
    return c == NULL ? LVP_OK : release(c);
}
