#include "coordinator/input/manifest.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct lvp_manifest {
    struct lvp_source *source;
    uint64_t count; // of this run
    uint64_t shard, n_shards;
};

static bool ends_in(const char *text, const char *ending)
{
    size_t n = strlen(text), m = strlen(ending);
    return n > m && strcmp(text + n - m, ending) == 0;
}

// Shards by a pattern: their names are found when they are opened.
static bool is_pattern(const char *input)
{
    return ends_in(input, ".tar") && strchr(input, '{') != NULL;
}

enum lvp_status lvp_manifest_check(const char *input)
{
    if (access(input, F_OK) == 0 || is_pattern(input)) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", input, strerror(errno));
}

static enum lvp_status open_source(const char *input, const struct lvp_manifest_options *options,
                                   struct lvp_source **source)
{
    struct stat info;
    LVP_TRY(lvp_manifest_check(input));
    if (stat(input, &info) != 0) return lvp_tar_open(input, options->columns, &options->tick, source);
    if (S_ISDIR(info.st_mode)) return lvp_folder_open(input, source);
    if (!S_ISREG(info.st_mode)) return lvp_fail(LVP_ERR_USAGE, "--input %s: neither a file nor a folder", input);
    if (ends_in(input, ".tar")) return lvp_tar_open(input, options->columns, &options->tick, source);
    if (ends_in(input, ".jsonl")) return lvp_jsonl_open(input, &options->tick, source);
    return lvp_image_file_open(input, source);
}

enum lvp_status lvp_manifest_open(const char *input, const struct lvp_manifest_options *options,
                                  struct lvp_manifest **result)
{
    struct lvp_manifest *manifest = calloc(1, sizeof *manifest);
    if (manifest == NULL) return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
    json_object_seed(0); // before threads parse
    enum lvp_status status = open_source(input, options, &manifest->source);
    if (status != LVP_OK) {
        free(manifest);
        return status;
    }
    manifest->shard = (uint64_t)options->shard;
    manifest->n_shards = options->n_shards > 0 ? (uint64_t)options->n_shards : 1;
    uint64_t n = manifest->source->n;
    if (n > manifest->shard) manifest->count = (n - manifest->shard + manifest->n_shards - 1) / manifest->n_shards;
    if (options->limit >= 0 && manifest->count > (uint64_t)options->limit) manifest->count = (uint64_t)options->limit;
    *result = manifest;
    return LVP_OK;
}

void lvp_manifest_close(struct lvp_manifest *manifest)
{
    if (manifest == NULL) return;
    manifest->source->ops->close(manifest->source);
    free(manifest);
}

uint64_t lvp_manifest_count(const struct lvp_manifest *manifest)
{
    return manifest->count;
}

const struct lvp_source *lvp_manifest_source(const struct lvp_manifest *manifest)
{
    return manifest->source;
}

uint64_t lvp_manifest_index(const struct lvp_manifest *manifest, uint64_t i)
{
    if (i % manifest->n_shards != manifest->shard || i / manifest->n_shards >= manifest->count) return UINT64_MAX;
    return i / manifest->n_shards;
}

enum lvp_status lvp_manifest_sample(const struct lvp_manifest *manifest, struct lvp_cursor *cursor, uint64_t index,
                                    struct lvp_sample *sample)
{
    *sample = (struct lvp_sample){0};
    if (index >= manifest->count)
        return lvp_fail(LVP_ERR_INTERNAL, "sample %llu of %llu", (unsigned long long)index,
                        (unsigned long long)manifest->count);
    enum lvp_status status = manifest->source->ops->load(manifest->source, cursor,
                                                         index * manifest->n_shards + manifest->shard, false, sample);
    if (status != LVP_OK) lvp_sample_free(sample);
    return status;
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
