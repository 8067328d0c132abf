#include "coordinator/output/captions.h"

#include "common/log.h"
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

// What a launch does once, however often it is restarted, is noted with its id.
static const char overwritten[] = LVP_STATE_FOLDER "/overwritten", retried[] = LVP_STATE_FOLDER "/retried";

enum { FULL_BYTES = 64 << 20 };

// A finished request that waits for its predecessors.
struct slot {
    struct lvp_json_text row;
    bool used, is_error;
};

struct lvp_captions {
    char *dir, *launch_id; // launch_id NULL: none
    struct lvp_writer *writer;
    int files[LVP_WRITER_FILES]; // captions, errors; -1: closed
    struct slot *slots;          // [window]; request i waits in slot i % window
    uint64_t window;
    uint64_t total;
    uint64_t at; // first request without a row in the files (or on its way there)
    struct lvp_captions_counts counts;
    bool mixed_numerics, restarted;
    bool retrying;              // rows go to the .new files until `at` reaches old.n_done
    bool swapping;              // the writer makes them the files
    bool blocked;               // old rows wait until the writer has room
    struct lvp_resume old;      // of the files before the retry
    struct lvp_row_reader copy; // old captions; stands on the first one at or after `at`
    int n_prompts;
    // the sample whose rows find their place now
    uint64_t sample;
    bool any_row, any_caption, any_error; // of it
};

// --- Writing -------------------------------------------------------------------------------------------------------

static enum lvp_status append_row(struct lvp_captions *c, bool is_error, const char *row, size_t length)
{
    return lvp_writer_append(c->writer, is_error ? 1 : 0, row, length);
}

// The rows of a sample are complete, or another one's begin.
static void end_sample(struct lvp_captions *c)
{
    if (!c->any_row) return;
    // Samples that have failed before may well fail again.
    c->counts.failed_in_row = c->any_caption || c->retrying ? 0 : c->counts.failed_in_row + 1;
    c->any_row = c->any_caption = c->any_error = false;
}

// A row of this process has found its place.
static void count_row(struct lvp_captions *c, uint64_t index, bool is_error)
{
    uint64_t sample = index / (uint64_t)c->n_prompts;
    if (sample != c->sample) end_sample(c);
    if (is_error && !c->any_error) c->counts.failed_samples++;
    c->sample = sample;
    c->any_row = true;
    c->any_error = c->any_error || is_error;
    c->any_caption = c->any_caption || !is_error;
    c->counts.any_caption = c->counts.any_caption || !is_error;
    if (index % (uint64_t)c->n_prompts + 1 == (uint64_t)c->n_prompts) end_sample(c);
}

// The merged files are whole: they become the files. On the writer's thread.
static enum lvp_status swap_files(void *context)
{
    const struct lvp_captions *c = context;
    LVP_TRY(lvp_output_rename(c->dir, new_captions, LVP_CAPTIONS_FILE));
    LVP_TRY(lvp_output_rename(c->dir, new_errors, LVP_ERRORS_FILE));
    return c->launch_id != NULL ? lvp_output_write_text(c->dir, retried, c->launch_id) : LVP_OK;
}

static void end_swap(struct lvp_captions *c)
{
    if (lvp_writer_acting(c->writer)) return;
    c->swapping = c->retrying = false;
    lvp_row_reader_close(&c->copy);
}

// Copies a row that a retry leaves as it is.
static enum lvp_status copy_row(struct lvp_captions *c)
{
    if (c->copy.length < 0) return lvp_fail(LVP_ERR_IO, "%s/%s has become shorter", c->dir, LVP_CAPTIONS_FILE);
    LVP_TRY(append_row(c, false, c->copy.row, (size_t)c->copy.length));
    lvp_row_reader_next(&c->copy);
    return LVP_OK;
}

// Hands every row whose predecessors are written to the writer, as far as it has room.
static enum lvp_status drain(struct lvp_captions *c)
{
    c->blocked = false;
    for (;;) {
        if (c->swapping) end_swap(c);
        if (c->swapping) return lvp_writer_status(c->writer);
        if (c->retrying && c->at == c->old.n_done) {
            c->swapping = true;
            LVP_TRY(lvp_writer_act(c->writer, swap_files, c));
            continue;
        }
        if (c->at == c->total) return LVP_OK;
        if (c->retrying && !lvp_resume_failed(&c->old, c->at)) {
            c->blocked = lvp_captions_full(c);
            if (c->blocked) return LVP_OK;
            LVP_TRY(copy_row(c));
            c->at++;
            continue;
        }
        struct slot *slot = &c->slots[c->at % c->window];
        if (!slot->used) return LVP_OK;
        enum lvp_status status = append_row(c, slot->is_error, slot->row.data, slot->row.length);
        lvp_json_text_free(&slot->row);
        slot->used = false;
        LVP_TRY(status);
        count_row(c, c->at++, slot->is_error);
    }
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

enum lvp_status lvp_captions_tick(struct lvp_captions *c)
{
    return c->swapping || c->blocked ? drain(c) : lvp_writer_status(c->writer);
}

bool lvp_captions_retries(const struct lvp_captions *c, uint64_t index)
{
    return c->retrying && index < c->old.n_done && lvp_resume_failed(&c->old, index);
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
    bool retry;
    uint64_t failed_sample; // the last one
};

static enum lvp_status other_request(const struct comparison *with, uint64_t index)
{
    struct lvp_request request;
    struct lvp_cursor cursor = {0};
    enum lvp_status status = lvp_request_load(with->options->requests, &cursor, index, &request);
    lvp_cursor_close(&cursor);
    LVP_TRY(status);
    status = lvp_fail(LVP_ERR_USAGE,
                      "--output %s holds a run over other requests: number %llu, now \"%s\", has another id or prompt; "
                      "use the same input and prompts, another folder or --overwrite",
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
    uint64_t failed = old->n_failed;
    LVP_TRY(lvp_hashes_check(&with->hashes, index, mark->identity, &same));
    if (!old->ended) LVP_TRY(lvp_resume_step(old, mark->id_text));
    bool mended = with->retry && old->n_failed > failed; // a request that failed may have got another prompt
    if (!same && !mended) return other_request(with, index);
    if (!same) LVP_TRY(lvp_hashes_replace(&with->hashes, index, mark->identity));
    if (old->n_failed > failed && (with->failed_sample != index / (uint64_t)with->c->n_prompts || failed == 0)) {
        with->failed_sample = index / (uint64_t)with->c->n_prompts;
        with->c->counts.failed_samples++;
    }
    if (!old->ended && !with->merged->ended) LVP_TRY(lvp_resume_step(with->merged, mark->id_text));
    return LVP_OK;
}

// What a crash leaves behind the last request that can be found is less than the window; more would be lost work.
static enum lvp_status check_rest(struct lvp_captions *c)
{
    struct lvp_row_reader *readers[] = {&c->old.captions, &c->old.errors};
    uint64_t n = 0;
    for (int r = 0; r < 2; r++)
        for (; readers[r]->length >= 0 && n <= LVP_CAPTIONS_WINDOW; n++) lvp_row_reader_next(readers[r]);
    if (n <= LVP_CAPTIONS_WINDOW) return LVP_OK;
    return lvp_fail(
        LVP_ERR_USAGE,
        "--output %s: request %llu has no row, but more than %d rows follow; was %s or %s changed? Put it back, "
        "or use another folder or --overwrite",
        c->dir, (unsigned long long)c->old.n_done + 1, LVP_CAPTIONS_WINDOW, LVP_CAPTIONS_FILE, LVP_ERRORS_FILE);
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
static enum lvp_status check_identity(const struct lvp_captions_options *options, struct lvp_captions *c, bool retry,
                                      struct lvp_resume *merged)
{
    struct comparison with = {.options = options, .c = c, .merged = merged, .hashes = {.fd = -1}, .retry = retry};
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

// Opens to go on after the first `keep` bytes; what is behind them is cut off.
static enum lvp_status open_file(struct lvp_captions *c, int f, const char *name, uint64_t keep)
{
    int *fd = &c->files[f];
    char *path = lvp_output_path(c->dir, name);
    if (path == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", c->dir);
    *fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    struct stat info = {0};
    enum lvp_status status = LVP_OK;
    if (*fd < 0 || fstat(*fd, &info) != 0 || ftruncate(*fd, (off_t)keep) != 0)
        status = lvp_fail(LVP_ERR_USAGE, "--output: %s cannot be written to: %s", path, strerror(errno));
    else if ((uint64_t)info.st_size > keep)
        lvp_info("%s: %llu bytes after the last finished row are dropped and computed again", path,
                 (unsigned long long)info.st_size - (unsigned long long)keep);
    lvp_writer_set_file(c->writer, f, *fd, name, keep);
    free(path);
    return status;
}

// Rows go to the merged files, after those that an earlier attempt has put there.
static enum lvp_status start_retry(struct lvp_captions *c, const struct lvp_resume *merged)
{
    LVP_TRY(open_file(c, 0, new_captions, merged->captions_bytes));
    LVP_TRY(open_file(c, 1, new_errors, merged->errors_bytes));
    LVP_TRY(lvp_row_reader_open(c->dir, LVP_CAPTIONS_FILE, &c->copy));
    c->retrying = true;
    c->at = merged->n_done;
    c->counts.failed = merged->n_failed;
    c->counts.failed_samples = 0;
    c->counts.captions = c->old.n_done - c->old.n_failed;
    uint64_t counted = UINT64_MAX; // the last sample that failed
    for (uint64_t i = 0; i < c->at; i++) {
        if (lvp_resume_failed(merged, i) && i / (uint64_t)c->n_prompts != counted) {
            counted = i / (uint64_t)c->n_prompts;
            c->counts.failed_samples++;
        }
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
    if (options->overwrite && !(c->restarted && lvp_output_text_is(c->dir, overwritten, c->launch_id))) {
        LVP_CHECK(remove_earlier_run(c->dir));
        if (c->launch_id != NULL) LVP_CHECK(lvp_output_write_text(c->dir, overwritten, c->launch_id));
    }
    bool retry = options->retry_failed && !(c->restarted && lvp_output_text_is(c->dir, retried, c->launch_id));
    LVP_CHECK(settle_retry(c->dir, retry));
    LVP_CHECK(lvp_resume_open(c->dir, LVP_CAPTIONS_FILE, LVP_ERRORS_FILE, &c->old));
    LVP_CHECK(lvp_resume_open(c->dir, new_captions, new_errors, &merged));
    LVP_CHECK(check_identity(options, c, retry, &merged));
    LVP_CHECK(check_rest(c));
    if (retry && c->old.n_failed > 0) {
        LVP_CHECK(start_retry(c, &merged));
    } else {
        LVP_CHECK(open_file(c, 0, LVP_CAPTIONS_FILE, c->old.captions_bytes));
        LVP_CHECK(open_file(c, 1, LVP_ERRORS_FILE, c->old.errors_bytes));
        c->at = c->old.n_done;
        c->counts.captions = c->old.n_done - c->old.n_failed;
        c->counts.failed = c->old.n_failed;
        c->old.n_done = 0; // nothing to copy
    }
    c->counts.resumed = c->counts.captions + c->counts.failed;
    c->counts.any_caption = c->counts.captions > 0;
    LVP_CHECK(lvp_output_sync(c->dir));
    LVP_CHECK(drain(c));
fail:
    lvp_resume_close(&merged);
    return status;
}

static enum lvp_status release(struct lvp_captions *c)
{
    bool left_behind = false;
    enum lvp_status status = lvp_writer_close(c->writer, &left_behind);
    if (left_behind) return status; // a thread may still come back to all this
    for (int f = 0; f < LVP_WRITER_FILES; f++)
        if (c->files[f] >= 0) (void)close(c->files[f]);
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
    c->files[0] = c->files[1] = -1;
    c->old.captions.length = c->old.errors.length = c->copy.length = -1;
    c->window = options->window > 0 ? options->window : LVP_CAPTIONS_WINDOW;
    c->total = c->counts.total = lvp_request_count(options->requests);
    c->n_prompts = lvp_prompts_per_sample(options->requests);
    c->restarted = options->restarted;
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
    if (c == NULL) return LVP_OK;
    enum lvp_status status = LVP_OK;
    while (status == LVP_OK && (c->swapping || c->blocked)) {
        status = lvp_writer_flush(c->writer);
        if (status == LVP_OK) status = drain(c);
    }
    enum lvp_status closed = release(c);
    return status != LVP_OK ? status : closed;
}
