// One point of a benchmark on rank 0: sets a world up for a model (real, or a shape with synthetic weights), has it
// answer synthetic requests several times, and measures. Nothing is written.
#ifndef LVP_COORDINATOR_BENCH_H
#define LVP_COORDINATOR_BENCH_H

#include "common/pruners.h"
#include "coordinator/deployment.h"

#include <jansson.h>
#include <mpi.h>

struct lvp_bench_options {
    const char *model; // folder, or with `synthetic` a shape's name
    bool synthetic;
    const struct lvp_model_config *config;
    const char *model_hash;      // of a folder
    const char *keep;            // as asked for, for the result
    enum lvp_pruner_kind pruner; // lvpruning: weights from pruner_weights, or synthetic ones of pruner_width
    const char *pruner_weights;  // NULL: none
    char pruner_hash[33];        // of that file
    int pruner_width;            // inner width of the modules; 0: none
    struct lvp_prune_plan prune;
    int stages, replicas;
    struct lvp_partition_choice partition;
    enum lvp_dtype dtype, weights;
    int threads, batch_tokens, concurrency; // 0: each worker's own; from the plan
    int images, text_tokens, new_tokens;    // of each repeat; rows of a prompt that are no image's
    int repeats;
    bool trace;                        // keep a timeline of every repeat
    const struct lvp_profile *profile; // for the planner; NULL: typical rates
    const atomic_int *interrupt;       // a signal came
};

// *result is a new object, described in docs/guide.md; with `trace`, it holds the median repeat's timeline in Chrome's
// format (an array) as "trace". *clean as lvp_caption.
enum lvp_status lvp_bench(const struct lvp_bench_options *options, MPI_Comm control, int n_workers, bool *clean,
                          json_t **result) LVP_MUST_CHECK;

#endif
