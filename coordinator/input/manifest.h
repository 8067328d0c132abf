// The input: which samples there are, in which order, without reading an image. Kept small for millions of samples.
// Thread: opening and closing on one; loading on any, with a cursor each.
#ifndef LVP_COORDINATOR_MANIFEST_H
#define LVP_COORDINATOR_MANIFEST_H

#include "coordinator/input/source.h"

struct lvp_manifest;

struct lvp_manifest_options {
    int64_t limit;       // samples at most, after sharding; negative: all
    int shard, n_shards; // samples i with i % n_shards == shard; n_shards 0 counts as 1
    struct lvp_columns columns;
    struct lvp_tick tick;
};

// LVP_ERR_USAGE where nothing of that name is there.
enum lvp_status lvp_manifest_check(const char *input) LVP_MUST_CHECK;

// `input`: a folder, a .jsonl manifest, tar shards (one, or a pattern like shard-{0000..0099}.tar) or a single image.
// LVP_ERR_USAGE for an input that is missing or holds no image. That ids are unique is for lvp_survey to check.
enum lvp_status lvp_manifest_open(const char *input, const struct lvp_manifest_options *options,
                                  struct lvp_manifest **manifest) LVP_MUST_CHECK;
void lvp_manifest_close(struct lvp_manifest *manifest); // NULL is allowed

// Samples of this run: the shard's, up to the limit.
uint64_t lvp_manifest_count(const struct lvp_manifest *manifest);

// Sample `index` of this run. A line of the manifest that is no sample comes with its error set and id "line-N".
// LVP_ERR_IO when the input cannot be read any more. `sample` is to be freed after LVP_OK.
enum lvp_status lvp_manifest_sample(const struct lvp_manifest *manifest, struct lvp_cursor *cursor, uint64_t index,
                                    struct lvp_sample *sample) LVP_MUST_CHECK;

// The whole input, before sharding: its samples, and which one of this run sample i is (UINT64_MAX: not of this run).
const struct lvp_source *lvp_manifest_source(const struct lvp_manifest *manifest);
uint64_t lvp_manifest_index(const struct lvp_manifest *manifest, uint64_t i);

// `--shard I/N`. LVP_ERR_USAGE unless 0 <= I < N.
enum lvp_status lvp_shard_parse(const char *text, int *shard, int *n_shards) LVP_MUST_CHECK;

#endif
