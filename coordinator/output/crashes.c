#include "coordinator/output/crashes.h"

#include "common/json_text.h"
#include "common/record.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

// What the records of the last world say.
struct collection {
    struct lvp_json_text rows;
    struct lvp_record_view coordinator; // which sample was alone
    bool has_coordinator;
};

// The row that the record of a rank with a fault gives for a sample.
static void add_row(struct collection *to, const struct lvp_record_view *view, uint64_t sample)
{
    char text[400], life[80];
    bool alone = to->has_coordinator && to->coordinator.has_alone && to->coordinator.alone == sample;
    lvp_record_describe(view, text, sizeof text);
    (void)snprintf(life, sizeof life, "%d-%lld-%lld", view->place.rank, view->pid, (long long)view->started_ms);
    lvp_json_text_puts(&to->rows, "{\"sample\":");
    lvp_json_text_int(&to->rows, (int64_t)sample);
    lvp_json_text_puts(&to->rows, alone ? ",\"alone\":true,\"life\":" : ",\"alone\":false,\"life\":");
    lvp_json_text_string(&to->rows, life);
    lvp_json_text_puts(&to->rows, ",\"crash\":");
    lvp_json_text_string(&to->rows, text);
    lvp_json_text_puts(&to->rows, "}\n");
}

static void add_rows(void *context, const struct lvp_record_view *view)
{
    for (int i = 0; i < view->n_samples; i++) add_row(context, view, view->samples[i]); // none without a fault
}

static enum lvp_status append_rows(const char *dir, const struct lvp_json_text *rows)
{
    char *path = lvp_output_path(dir, LVP_CRASHES_FILE);
    if (path == NULL || rows->failed) {
        free(path);
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for crashes");
    }
    enum lvp_status status = LVP_OK;
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = lvp_fail(LVP_ERR_USAGE, "--output: %s cannot be written to: %s", path, strerror(errno));
        goto fail;
    }
    LVP_CHECK(lvp_write_all(fd, path, rows->data, rows->length));
    if (fsync(fd) != 0) status = lvp_fail(LVP_ERR_IO, "writing %s: %s", path, strerror(errno));
fail:
    if (fd >= 0) (void)close(fd);
    free(path);
    return status;
}

enum lvp_status lvp_crashes_collect(const char *dir)
{
    struct collection collection = {0};
    collection.has_coordinator = lvp_record_read(dir, 0, &collection.coordinator);
    lvp_record_each(dir, add_rows, &collection);
    enum lvp_status status = collection.rows.length > 0 ? append_rows(dir, &collection.rows) : LVP_OK;
    lvp_json_text_free(&collection.rows);
    if (status == LVP_OK) lvp_record_remove_all(dir);
    return status;
}

// First place whose sample is not below.
static size_t place_of(const struct lvp_crashes *crashes, uint64_t sample)
{
    size_t low = 0, high = crashes->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (crashes->counts[middle].sample < sample)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static enum lvp_status add(struct lvp_crashes *crashes, uint64_t sample, bool forgiven, bool alone, const char *life)
{
    size_t at = place_of(crashes, sample);
    uint64_t hash = life != NULL ? XXH3_64bits(life, strlen(life)) : 0;
    if (crashes->n == crashes->max) {
        size_t max = 2 * crashes->max + 16;
        struct lvp_crash_count *counts = realloc(crashes->counts, max * sizeof *counts);
        if (counts == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for crashes");
        crashes->counts = counts;
        crashes->max = max;
    }
    struct lvp_crash_count *count = &crashes->counts[at];
    if (at == crashes->n || count->sample != sample) {
        memmove(count + 1, count, (crashes->n++ - at) * sizeof *count);
        *count = (struct lvp_crash_count){.sample = sample};
    }
    if (forgiven) {
        count->alone = false;
    } else if (count->last_life != hash || hash == 0) { // a kill while rows were added may have added them twice
        count->n++;
        count->alone = alone;
        count->last_life = hash;
    }
    return LVP_OK;
}

enum lvp_status lvp_crashes_read(const char *dir, struct lvp_crashes *crashes)
{
    enum lvp_status status = LVP_OK;
    char *row = NULL, *path = lvp_output_path(dir, LVP_CRASHES_FILE);
    size_t capacity = 0;
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    for (ssize_t n; status == LVP_OK && file != NULL && (n = getline(&row, &capacity, file)) > 0;) {
        // A row that cannot be read (a torn one) is left out: it changes only when a sample is tried alone.
        json_t *json = json_loadb(row, (size_t)n, 0, NULL);
        const json_t *sample = json_object_get(json, "sample");
        if (json_is_integer(sample) && json_integer_value(sample) >= 0)
            status =
                add(crashes, (uint64_t)json_integer_value(sample), json_is_true(json_object_get(json, "forgiven")),
                    json_is_true(json_object_get(json, "alone")), json_string_value(json_object_get(json, "life")));
        json_decref(json);
    }
    free(row);
    free(path);
    if (file != NULL) (void)fclose(file);
    return status;
}

struct lvp_crash_count lvp_crashes_of(const struct lvp_crashes *crashes, uint64_t sample)
{
    size_t at = place_of(crashes, sample);
    if (at < crashes->n && crashes->counts[at].sample == sample) return crashes->counts[at];
    return (struct lvp_crash_count){.sample = sample};
}

enum lvp_status lvp_crashes_forgive(const char *dir, struct lvp_crash_count *count)
{
    struct lvp_json_text row = {0};
    lvp_json_text_puts(&row, "{\"sample\":");
    lvp_json_text_int(&row, (int64_t)count->sample);
    lvp_json_text_puts(&row, ",\"forgiven\":true}\n");
    enum lvp_status status = append_rows(dir, &row);
    lvp_json_text_free(&row);
    if (status == LVP_OK) count->alone = false;
    return status;
}

void lvp_crashes_free(struct lvp_crashes *crashes)
{
    free(crashes->counts);
    *crashes = (struct lvp_crashes){0};
}
