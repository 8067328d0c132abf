// The caption job on rank 0, from options to files: opens model, tokenizer, input and output, plans, sets the workers
// up, runs, and writes run.json.
#ifndef LVP_COORDINATOR_CAPTION_H
#define LVP_COORDINATOR_CAPTION_H

#include "common/plan.h"
#include "common/pruners.h"
#include "coordinator/layout.h"

#include <mpi.h>
#include <stdatomic.h>
#include <stdbool.h>

struct lvp_caption_options {
    const char *model;
    enum lvp_pruner_kind pruner;
    const char *pruner_weights;  // NULL where the pruner has none
    struct lvp_prune_plan prune; // n_points 0: nothing is pruned
    int stages, replicas;        // 0: from the number of workers
    struct lvp_partition_choice partition;
    enum lvp_dtype dtype, weights; // of residual stream and KV; of linear layers
    int threads, batch_tokens;     // 0: each worker's own; from the plan
    uint64_t seed;
    const char *input, *output;
    const char *const *prompts; // [n_prompts]
    int n_prompts;
    const char *system; // NULL: none
    bool raw_prompt;
    int max_new_tokens;
    float temperature, top_p;
    bool logprobs;
    const char *score; // "{COLUMN}" of answers that are scored instead of generated; NULL: none
    int64_t limit;     // negative: all
    int shard, n_shards;
    bool retry_failed, overwrite, allow_mixed_numerics;
    const char *launch_id; // NULL: none; see captions.h
    int restarts;          // of this launch so far
    int64_t max_errors;    // negative: no limit, but the error-rate guard
    int64_t max_pixels;
    const atomic_int *drain; // signals: 1 drains, 2 stops; NULL: never
    double drain_seconds;
    const char *metrics;        // file for Prometheus; NULL: none
    const char *trace;          // file for a timeline; NULL: none
    bool terminal, quiet, json; // a person is watching; no progress; result as JSON on stdout
};

// Without --max-errors, a run ends early when nothing goes right: none of its first 100 samples could be captioned, or
// none of the last 1000.
enum { LVP_GUARD_FIRST = 100, LVP_GUARD_LATER = 1000 };

// The layout that the options ask for.
struct lvp_layout_request lvp_caption_layout(const struct lvp_caption_options *options);

// Returns when every request is finished, or with LVP_DRAINED or LVP_STOPPED when a signal asked for it. *clean says
// whether every worker has ended in good order; if not, the caller must abort the MPI world.
enum lvp_status lvp_caption(const struct lvp_caption_options *options, MPI_Comm control, int n_workers,
                            bool *clean) LVP_MUST_CHECK;

#endif
