// WebDataset shards: listed once, in parallel, by their headers; then any rank reads any sample by plain ranges.
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "coordinator/input/shard_pattern.h"
#include "coordinator/input/source.h"
#include "coordinator/input/tar_list.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LISTING_THREADS = 8, MAX_JSON_BYTES = 16 << 20, MAX_TEXT_BYTES = 1 << 20 };

struct tar {
    struct lvp_source base;
    struct lvp_columns columns;
    struct lvp_tar_list *shards; // [n_shards]
    size_t n_shards;
    uint64_t *first; // [n_shards + 1] first sample of each shard
};

static enum lvp_status out_of_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
}

static size_t shard_of(const struct tar *tar, uint64_t i)
{
    size_t low = 0, high = tar->n_shards;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (tar->first[middle] <= i)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// The shard's name in ids: its file's, without ".tar".
static int shard_name_length(const char *path, const char **name)
{
    const char *slash = strrchr(path, '/');
    *name = slash != NULL ? slash + 1 : path;
    return (int)(strlen(*name) - strlen(".tar"));
}

// "shard/rest" as text, malloc'ed.
static char *in_shard(const struct lvp_tar_list *shard, const char *rest, size_t length)
{
    const char *name = NULL;
    int name_length = shard_name_length(shard->path, &name);
    char *joined = NULL, *text = NULL;
    if (asprintf(&joined, "%.*s/%.*s", name_length, name, (int)length, rest) < 0) return NULL;
    text = lvp_utf8_name(joined);
    free(joined);
    return text;
}

// --- One sample ----------------------------------------------------------------------------------------------------

static enum lvp_status shard_lost(const struct lvp_tar_list *shard, const char *why)
{
    return lvp_fail(LVP_ERR_IO, "the shard %s cannot be read any more: %s; nothing is lost, resume when it is back",
                    shard->path, why);
}

// The bytes of a column's member, NUL-terminated and malloc'ed.
static enum lvp_status read_member(const struct tar *tar, struct lvp_cursor *cursor, size_t s, uint64_t offset,
                                   size_t n_bytes, char **bytes)
{
    const struct lvp_tar_list *shard = &tar->shards[s];
    if (!cursor->open || cursor->shard != s) {
        lvp_cursor_close(cursor);
        cursor->file = open(shard->path, O_RDONLY | O_CLOEXEC);
        cursor->open = cursor->file >= 0;
        cursor->shard = s;
        struct stat info;
        if (!cursor->open || fstat(cursor->file, &info) != 0) return shard_lost(shard, strerror(errno));
        if ((uint64_t)info.st_size != shard->n_bytes || lvp_file_time(&info) != shard->time)
            return shard_lost(shard, "it has changed since it was listed");
    }
    *bytes = malloc(n_bytes + 1);
    if (*bytes == NULL) return out_of_memory();
    ssize_t n = lvp_read_at(cursor->file, offset, *bytes, n_bytes);
    if (n == (ssize_t)n_bytes) {
        (*bytes)[n_bytes] = '\0';
        return LVP_OK;
    }
    enum lvp_status status = shard_lost(shard, n < 0 ? strerror(errno) : "it ends early");
    free(*bytes);
    *bytes = NULL;
    return status;
}

static void bad_member(struct lvp_sample *sample, const char *member, const char *why)
{
    if (sample->columns_error.code != LVP_SAMPLE_OK) return; // the first one is told
    lvp_sample_error_set(&sample->columns_error, LVP_SAMPLE_BAD_MANIFEST_LINE, "member .%s: %s", member, why);
}

// Whether a column's member is there and can be read; what cannot be is the columns' error.
static bool has_member(const struct lvp_tar_list *shard, uint64_t offset, uint32_t n_bytes, uint32_t most,
                       const char *member, struct lvp_sample *sample)
{
    if (n_bytes == 0) return false;
    bool whole = offset <= shard->n_bytes && n_bytes <= shard->n_bytes - offset;
    if (n_bytes > most)
        bad_member(sample, member, "too large, or stored as a sparse file");
    else if (!whole)
        bad_member(sample, member, "the shard ends within it");
    return n_bytes <= most && whole;
}

static enum lvp_status load_json(const struct tar *tar, struct lvp_cursor *cursor, size_t s,
                                 const struct lvp_tar_sample *from, struct lvp_sample *sample)
{
    char *bytes = NULL;
    json_error_t error;
    if (!has_member(&tar->shards[s], from->json_offset, from->json_bytes, MAX_JSON_BYTES, "json", sample))
        return LVP_OK;
    LVP_TRY(read_member(tar, cursor, s, from->json_offset, from->json_bytes, &bytes));
    json_t *row = lvp_parse_row(bytes, from->json_bytes, &error);
    free(bytes);
    if (row == NULL) {
        bad_member(sample, "json", error.text);
        return LVP_OK;
    }
    if (json_is_object(row)) // another value has no fields
        sample->columns = row;
    else
        json_decref(row);
    return lvp_sample_take_prompt(sample, sample->columns, "member .json");
}

// The column `txt`, unless json has one of that name. The newline that ends most texts is none of it.
static enum lvp_status load_text(const struct tar *tar, struct lvp_cursor *cursor, size_t s,
                                 const struct lvp_tar_sample *from, struct lvp_sample *sample)
{
    char *bytes = NULL;
    if (json_object_get(sample->columns, "txt") != NULL) return LVP_OK;
    if (!has_member(&tar->shards[s], from->text_offset, from->text_bytes, MAX_TEXT_BYTES, "txt", sample)) return LVP_OK;
    LVP_TRY(read_member(tar, cursor, s, from->text_offset, from->text_bytes, &bytes));
    size_t n = from->text_bytes;
    if (n > 0 && bytes[n - 1] == '\n') n--;
    if (n > 0 && bytes[n - 1] == '\r') n--;
    json_t *value = json_stringn(bytes, n); // NULL for bytes that are no UTF-8
    free(bytes);
    if (value == NULL) {
        bad_member(sample, "txt", "not UTF-8");
        return LVP_OK;
    }
    if (sample->columns == NULL) sample->columns = json_object();
    return json_object_set_new(sample->columns, "txt", value) == 0 ? LVP_OK : out_of_memory();
}

// What the sample's error record says; false where there is nothing wrong.
static bool set_fault(const struct lvp_tar_sample *from, struct lvp_sample *sample)
{
    switch (from->fault) {
    case LVP_TAR_OK:
        return false;
    case LVP_TAR_NO_IMAGE:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_FILE_MISSING,
                             "no member of this key ends in .jpg, .jpeg, .png or .webp");
        return true;
    case LVP_TAR_MANY_IMAGES:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_IMAGE_COUNT_MISMATCH,
                             "several images have this key: names must differ before the first dot");
        return true;
    case LVP_TAR_SPARSE:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_NOT_AN_IMAGE, "stored as a sparse file");
        return true;
    case LVP_TAR_TRUNCATED:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_IMAGE_TRUNCATED, "the shard ends within the image");
        return true;
    case LVP_TAR_BESIDE_DAMAGE:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_SHARD_DAMAGED,
                             "the shard is damaged beside this sample: some of its members may be missing");
        return true;
    case LVP_TAR_CUT_OFF:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_SHARD_DAMAGED,
                             "the shard ends without its end mark: samples behind may be missing");
        return true;
    case LVP_TAR_DAMAGED:
        lvp_sample_error_set(&sample->error, LVP_SAMPLE_SHARD_DAMAGED,
                             "the shard cannot be read at byte %llu: samples around it may be missing",
                             (unsigned long long)from->image_offset);
        return true;
    }
    return true;
}

static enum lvp_status load(const struct lvp_source *source, struct lvp_cursor *cursor, uint64_t i, bool only_id,
                            struct lvp_sample *sample)
{
    const struct tar *tar = (const struct tar *)source;
    size_t s = shard_of(tar, i);
    const struct lvp_tar_list *shard = &tar->shards[s];
    const struct lvp_tar_sample *from = &shard->samples[i - tar->first[s]];
    const char *name = lvp_name_list_at(&shard->names, i - tar->first[s]);
    char damage[48];
    (void)snprintf(damage, sizeof damage, "offset-%llu", (unsigned long long)from->image_offset);
    bool none = from->fault == LVP_TAR_DAMAGED || from->fault == LVP_TAR_CUT_OFF;
    sample->id = none ? in_shard(shard, damage, strlen(damage)) : in_shard(shard, name, lvp_tar_key_length(name));
    if (sample->id == NULL) return out_of_memory();
    bool fault = set_fault(from, sample);
    if (only_id || none || from->fault == LVP_TAR_NO_IMAGE) return LVP_OK;
    LVP_TRY(lvp_sample_make_images(sample, 1));
    sample->images[0] = in_shard(shard, name, strlen(name));
    sample->places[0] = (struct lvp_image_place){.path = strdup(shard->path),
                                                 .offset = from->image_offset,
                                                 .n_bytes = from->image_bytes,
                                                 .shard_bytes = shard->n_bytes,
                                                 .shard_time = shard->time};
    if (sample->images[0] == NULL || sample->places[0].path == NULL) return out_of_memory();
    if (fault) return LVP_OK;
    if (tar->columns.json) LVP_TRY(load_json(tar, cursor, s, from, sample));
    return tar->columns.text ? load_text(tar, cursor, s, from, sample) : LVP_OK;
}

static void place(const struct lvp_source *source, uint64_t i, char *text, size_t size)
{
    const struct tar *tar = (const struct tar *)source;
    size_t s = shard_of(tar, i);
    (void)snprintf(text, size, "%s: %s", tar->shards[s].path,
                   lvp_name_list_at(&tar->shards[s].names, i - tar->first[s]));
}

static void close_tar(struct lvp_source *source)
{
    struct tar *tar = (struct tar *)source;
    for (size_t s = 0; tar->shards != NULL && s < tar->n_shards; s++) lvp_tar_list_free(&tar->shards[s]);
    free(tar->shards);
    free(tar->first);
    free(tar->base.label);
    free(tar);
}

static const struct lvp_source_ops ops = {load, place, close_tar};

// --- Listing -------------------------------------------------------------------------------------------------------

// Threads take shards in order; the first failure, by shard, is the one that is told.
struct listing {
    struct tar *tar;
    _Atomic size_t next, n_done;
    _Atomic bool stop;
    pthread_mutex_t lock; // of the failure
    size_t failed_shard;
    enum lvp_status status;
    char error[1024];
};

static void *list_shards(void *argument)
{
    struct listing *listing = argument;
    for (;;) {
        size_t s = atomic_fetch_add(&listing->next, 1);
        if (s >= listing->tar->n_shards || atomic_load(&listing->stop)) return NULL;
        enum lvp_status status = lvp_tar_list_read(&listing->tar->shards[s]);
        if (status != LVP_OK) {
            pthread_mutex_lock(&listing->lock);
            if (listing->status == LVP_OK || s < listing->failed_shard) {
                listing->failed_shard = s;
                listing->status = status;
                (void)snprintf(listing->error, sizeof listing->error, "%s", lvp_error_text());
            }
            pthread_mutex_unlock(&listing->lock);
            lvp_error_clear();
            atomic_store(&listing->stop, true);
        }
        atomic_fetch_add(&listing->n_done, 1);
    }
}

// Waits for the threads, and tells how far they are where it takes long.
static enum lvp_status watch_listing(struct listing *listing, const struct lvp_tick *tick)
{
    const struct timespec rest = {0, 5000000};
    double told = lvp_now();
    while (atomic_load(&listing->n_done) < listing->tar->n_shards && !atomic_load(&listing->stop)) {
        LVP_TRY(lvp_tick_call(tick));
        (void)nanosleep(&rest, NULL);
        if (lvp_now() - told < 5) continue;
        told = lvp_now();
        lvp_info("listing shards: %zu of %zu", atomic_load(&listing->n_done), listing->tar->n_shards);
    }
    return LVP_OK;
}

static enum lvp_status list_all(struct tar *tar, const struct lvp_tick *tick)
{
    struct listing listing = {.tar = tar, .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[LISTING_THREADS];
    size_t n = 0;
    while (n < LISTING_THREADS && n < tar->n_shards && pthread_create(&threads[n], NULL, list_shards, &listing) == 0)
        n++;
    enum lvp_status status =
        n > 0 ? watch_listing(&listing, tick) : lvp_fail(LVP_ERR_MEMORY, "no thread could be started");
    atomic_store(&listing.stop, true);
    for (size_t t = 0; t < n; t++) pthread_join(threads[t], NULL);
    if (status == LVP_OK && listing.status != LVP_OK) status = lvp_fail(listing.status, "%s", listing.error);
    return status;
}

static enum lvp_status fill(struct tar *tar, const struct lvp_tick *tick)
{
    struct lvp_name_list names = {0};
    struct stat info;
    bool one = stat(tar->base.label, &info) == 0; // a file may have braces in its name
    enum lvp_status status =
        one ? lvp_name_list_add(&names, tar->base.label) : lvp_shard_pattern_expand(tar->base.label, &names);
    if (status != LVP_OK) goto fail;
    tar->shards = calloc(names.n, sizeof *tar->shards);
    tar->first = calloc(names.n + 1, sizeof *tar->first);
    if (tar->shards == NULL || tar->first == NULL) {
        status = out_of_memory();
        goto fail;
    }
    tar->n_shards = names.n;
    for (size_t s = 0; s < names.n; s++) {
        tar->shards[s].path = strdup(lvp_name_list_at(&names, s));
        if (tar->shards[s].path == NULL) status = out_of_memory();
    }
    if (status != LVP_OK) goto fail;
    LVP_CHECK(list_all(tar, tick));
    for (size_t s = 0; s < names.n; s++) tar->first[s + 1] = tar->first[s] + tar->shards[s].n;
    tar->base.n = tar->first[names.n];
    if (tar->base.n == 0)
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: no member is named key.extension: there is no sample",
                          tar->base.label);
fail:
    lvp_name_list_free(&names);
    return status;
}

enum lvp_status lvp_tar_open(const char *input, struct lvp_columns columns, const struct lvp_tick *tick,
                             struct lvp_source **source)
{
    *source = NULL;
    struct tar *tar = calloc(1, sizeof *tar);
    if (tar == NULL) return out_of_memory();
    *tar = (struct tar){.base = {.ops = &ops, .label = strdup(input)}, .columns = columns};
    enum lvp_status status = tar->base.label != NULL ? fill(tar, tick) : out_of_memory();
    if (status != LVP_OK) {
        close_tar(&tar->base);
        return status;
    }
    *source = &tar->base;
    return LVP_OK;
}
