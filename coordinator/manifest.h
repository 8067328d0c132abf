// The input: which samples there are, in which order, without reading an image. Kept small for millions of samples: a
// folder keeps its paths side by side, a .jsonl keeps 16 bytes per line and reads the line again when it is asked for.
// Thread: one at a time.
#ifndef LVP_COORDINATOR_MANIFEST_H
#define LVP_COORDINATOR_MANIFEST_H

#include "coordinator/sample.h"

struct lvp_manifest;

struct lvp_manifest_options {
    int64_t limit;       // samples at most, after sharding; negative: all
    int shard, n_shards; // samples i with i % n_shards == shard; n_shards 0 counts as 1
};

// `input`: a folder, a .jsonl manifest or a single image. Checks that ids are unique over the whole input.
// LVP_ERR_USAGE for an input that is missing, not supported yet (tar), holds no image, or has an id twice (both places
// are named).
enum lvp_status lvp_manifest_open(const char *input, const struct lvp_manifest_options *options,
                                  struct lvp_manifest **manifest) LVP_MUST_CHECK;
void lvp_manifest_close(struct lvp_manifest *manifest); // NULL is allowed

// Samples of this run: the shard's, up to the limit.
uint64_t lvp_manifest_count(const struct lvp_manifest *manifest);

// A line of the manifest that is no sample comes with its error set and id "line-N". LVP_ERR_IO when the file cannot be
// read any more. `sample` is to be freed after LVP_OK.
enum lvp_status lvp_manifest_sample(const struct lvp_manifest *manifest, uint64_t index,
                                    struct lvp_sample *sample) LVP_MUST_CHECK;

// `--shard I/N`. LVP_ERR_USAGE unless 0 <= I < N.
enum lvp_status lvp_shard_parse(const char *text, int *shard, int *n_shards) LVP_MUST_CHECK;

#endif
