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

// The rows that the record of a rank with a fault gives.
static void add_rows(void *context, const struct lvp_record_view *view)
{
    struct lvp_json_text *rows = context;
    char text[400];
    if (view->fault == 0) return;
    lvp_record_describe(view, text, sizeof text);
    for (int i = 0; i < view->n_samples; i++) {
        lvp_json_text_puts(rows, "{\"sample\":");
        lvp_json_text_int(rows, (int64_t)view->samples[i]);
        lvp_json_text_puts(rows, ",\"crash\":");
        lvp_json_text_string(rows, text);
        lvp_json_text_puts(rows, "}\n");
    }
}

static enum lvp_status append_rows(const char *path, const struct lvp_json_text *rows)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) return lvp_fail(LVP_ERR_USAGE, "--output: %s cannot be written to: %s", path, strerror(errno));
    enum lvp_status status = lvp_write_all(fd, path, rows->data, rows->length);
    if (status == LVP_OK && fsync(fd) != 0) status = lvp_fail(LVP_ERR_IO, "writing %s: %s", path, strerror(errno));
    (void)close(fd);
    return status;
}

static enum lvp_status add(struct lvp_crashes *crashes, uint64_t sample)
{
    if (crashes->n == crashes->max) {
        size_t max = 2 * crashes->max + 16;
        uint64_t *samples = realloc(crashes->samples, max * sizeof *samples);
        if (samples == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for crashes");
        crashes->samples = samples;
        crashes->max = max;
    }
    crashes->samples[crashes->n++] = sample;
    return LVP_OK;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

// Rows that cannot be read (a torn one) are left out: a crash more or less changes only when a sample is tried alone.
static enum lvp_status read_all(const char *path, struct lvp_crashes *crashes)
{
    enum lvp_status status = LVP_OK;
    char *row = NULL;
    size_t capacity = 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) return LVP_OK;
    for (ssize_t n; status == LVP_OK && (n = getline(&row, &capacity, file)) > 0;) {
        json_t *json = json_loadb(row, (size_t)n, 0, NULL);
        const json_t *sample = json_object_get(json, "sample");
        if (json_is_integer(sample) && json_integer_value(sample) >= 0)
            status = add(crashes, (uint64_t)json_integer_value(sample));
        json_decref(json);
    }
    free(row);
    (void)fclose(file);
    if (crashes->n > 0) qsort(crashes->samples, crashes->n, sizeof *crashes->samples, compare);
    return status;
}

enum lvp_status lvp_crashes_collect(const char *dir, struct lvp_crashes *crashes)
{
    struct lvp_json_text rows = {0};
    enum lvp_status status = LVP_OK;
    char *path = lvp_output_path(dir, LVP_CRASHES_FILE);
    lvp_record_each(dir, add_rows, &rows);
    if (path == NULL || rows.failed) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for crashes");
        goto fail;
    }
    if (rows.length > 0) LVP_CHECK(append_rows(path, &rows));
    lvp_record_remove_all(dir);
    status = read_all(path, crashes);
fail:
    lvp_json_text_free(&rows);
    free(path);
    return status;
}

int lvp_crashes_of(const struct lvp_crashes *crashes, uint64_t sample)
{
    size_t low = 0, high = crashes->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (crashes->samples[middle] < sample)
            low = middle + 1;
        else
            high = middle;
    }
    int n = 0;
    while (low + (size_t)n < crashes->n && crashes->samples[low + (size_t)n] == sample) n++;
    return n;
}

void lvp_crashes_free(struct lvp_crashes *crashes)
{
    free(crashes->samples);
    *crashes = (struct lvp_crashes){0};
}
