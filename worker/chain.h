// A model cut into stages inside one process, one after the other: what the workers do, without ranks and threads. For
// looking inside (lvpipe show) and for tests. Thread: one at a time.
#ifndef LVP_WORKER_CHAIN_H
#define LVP_WORKER_CHAIN_H

#include "common/checkpoint.h"
#include "worker/stage.h"

enum { LVP_CHAIN_IMAGES = 8, LVP_CHAIN_SLOTS = 16 };

struct lvp_chain {
    struct lvp_checkpoint *checkpoint;
    struct lvp_pruner_weights weights;
    const struct lvp_model_config *config;
    struct lvp_prune_counts prune;
    struct lvp_partition partition;
    struct lvp_backend *backends[LVP_MAX_STAGES];
    struct lvp_stage *stages[LVP_MAX_STAGES];
    struct lvp_stage_range ranges[LVP_MAX_STAGES];
    unsigned char *payload[2];
    int32_t *positions[2];
    uint64_t number;
};

struct lvp_chain_options {
    const char *model;      // folder
    const char *kernel_set; // "ref" or one of the CPU's
    enum lvp_dtype dtype;
    enum lvp_pruner_kind pruner;
    const char *weights;                   // file of the modules; NULL where the pruner has none
    struct lvp_prune_plan plan;            // n_points 0: nothing is pruned
    const struct lvp_partition *partition; // NULL: one stage
    int threads, max_rows, max_seqs;
};

// To be closed whatever is returned.
enum lvp_status lvp_chain_open(const struct lvp_chain_options *options, struct lvp_chain *chain) LVP_MUST_CHECK;
void lvp_chain_close(struct lvp_chain *chain);

// pixels [n_images, 3, size, size] into the image slots. n_images at most LVP_CHAIN_IMAGES.
enum lvp_status lvp_chain_encode(struct lvp_chain *chain, int n_images, const float *pixels,
                                 const int32_t *slots) LVP_MUST_CHECK;

// As lvp_stage_observe, for all stages.
enum lvp_status lvp_chain_observe(struct lvp_chain *chain, lvp_prune_observer *observer, void *context) LVP_MUST_CHECK;

// One step through all stages.
enum lvp_status lvp_chain_step(struct lvp_chain *chain, const struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens,
                               float *logprobs) LVP_MUST_CHECK;
void lvp_chain_release(struct lvp_chain *chain, int slot);

#endif
