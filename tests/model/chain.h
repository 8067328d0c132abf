// A model cut into stages inside one process, for tests: what the workers do, without ranks and threads.
#ifndef LVP_TESTS_MODEL_CHAIN_H
#define LVP_TESTS_MODEL_CHAIN_H

#include "common/checkpoint.h"
#include "worker/stage.h"

struct chain {
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

struct chain_options {
    const char *model;      // folder with lvpruning.safetensors
    const char *kernel_set; // "ref" or one of the CPU's
    enum lvp_dtype dtype;
    const char *keep; // NULL: dense
    enum lvp_pruner_kind pruner;
    int threads, max_rows, max_seqs;
    const struct lvp_partition *partition; // NULL: one stage
};

// Any failure fails the cmocka test with the error's text.
void chain_open(const struct chain_options *options, struct chain *chain);
void chain_close(struct chain *chain);
// pixels [n_images, 3, size, size]
void chain_encode(struct chain *chain, int n_images, const float *pixels, const int32_t *slots);
void chain_step(struct chain *chain, struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens, float *logprobs);
struct lvp_stage *chain_last(const struct chain *chain);
void chain_release(struct chain *chain, int slot);

#endif
