#include "coordinator/output/timeline.h"

#include "common/measure.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum lvp_status lvp_timeline_check(const char *path)
{
    FILE *file = fopen(path, "ae"); // what is there stays until there is something better
    if (file == NULL) return lvp_fail(LVP_ERR_USAGE, "--trace %s cannot be written: %s", path, strerror(errno));
    (void)fclose(file);
    return LVP_OK;
}

enum lvp_status lvp_timeline_write(const char *path, const json_t *timeline)
{
    if (json_dump_file(timeline, path, JSON_COMPACT | JSON_REAL_PRECISION(17)) == 0) return LVP_OK;
    return lvp_fail(LVP_ERR_IO, "--trace %s cannot be written: %s", path, strerror(errno));
}

// What several threads or lanes do at once may overlap: asynchronous in the picture.
static const struct {
    const char *name;
    bool overlaps;
} kinds[LVP_TRACE_COUNT] = {[LVP_TRACE_ENCODE] = {"encode", false},
                            [LVP_TRACE_PREFILL] = {"prefill", false},
                            [LVP_TRACE_DECODE] = {"decode", false},
                            [LVP_TRACE_SEND] = {"send", true},
                            [LVP_TRACE_IMAGE] = {"image", true}};

void lvp_timeline_add(json_t *timeline, int rank, const Lvp__Statistics *statistics)
{
    char name[32];
    (void)snprintf(name, sizeof name, "rank %d", rank);
    json_array_append_new(timeline, json_pack("{s:s, s:s, s:i, s:{s:s}}", "name", "process_name", "ph", "M", "pid",
                                              rank, "args", "name", name));
    for (size_t i = 0; i < statistics->n_spans; i++) {
        const Lvp__Statistics__Span *span = statistics->spans[i];
        if (span->kind < 0 || span->kind >= LVP_TRACE_COUNT) continue;
        (void)snprintf(name, sizeof name, "%s %llu", kinds[span->kind].name, (unsigned long long)span->number);
        const char *category = kinds[span->kind].name;
        if (!kinds[span->kind].overlaps) {
            json_array_append_new(timeline, json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:f}", "name", name, "cat",
                                                      category, "ph", "X", "pid", rank, "tid", 0, "ts",
                                                      1e6 * span->start, "dur", 1e6 * (span->end - span->start)));
            continue;
        }
        json_int_t id = ((json_int_t)rank << 32) | (json_int_t)i; // of all ranks: viewers look for an end anywhere
        for (int end = 0; end < 2; end++)
            json_array_append_new(timeline, json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:f}", "name", name, "cat",
                                                      category, "ph", end ? "e" : "b", "id", id, "pid", rank, "tid", 0,
                                                      "ts", 1e6 * (end ? span->end : span->start)));
    }
}

enum lvp_status lvp_timeline_write_world(const char *path, const struct lvp_world *world)
{
    json_t *timeline = json_array();
    for (int w = 0; w < world->n_workers; w++)
        if (world->workers[w].farewell != NULL)
            lvp_timeline_add(timeline, w + 1, world->workers[w].farewell->statistics);
    // Where no rank did anything the job was done before: the file may hold what it did then.
    struct stat info;
    bool keep = json_array_size(timeline) == 0 && stat(path, &info) == 0 && info.st_size > 0;
    enum lvp_status status = keep ? LVP_OK : lvp_timeline_write(path, timeline);
    json_decref(timeline);
    return status;
}
