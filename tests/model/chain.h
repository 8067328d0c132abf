// worker/chain.h for tests: any failure fails the cmocka test with the error's text.
#ifndef LVP_TESTS_MODEL_CHAIN_H
#define LVP_TESTS_MODEL_CHAIN_H

#include "worker/chain.h"

struct chain_options {
    const char *model;      // folder with lvpruning.safetensors
    const char *kernel_set; // "ref" or one of the CPU's
    enum lvp_dtype dtype;
    const char *keep; // NULL: dense
    enum lvp_pruner_kind pruner;
    bool counts_vary; // struct lvp_prune_plan
    int threads, max_rows, max_seqs;
    const struct lvp_partition *partition; // NULL: one stage
};

void chain_open(const struct chain_options *options, struct lvp_chain *chain);
// pixels [n_images, 3, size, size]
void chain_encode(struct lvp_chain *chain, int n_images, const float *pixels, const int32_t *slots);
void chain_step(struct lvp_chain *chain, const struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens, float *logprobs);
struct lvp_stage *chain_last(const struct lvp_chain *chain);

#endif
