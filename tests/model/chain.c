#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
// cmocka wants these before it
#include <cmocka.h>

static void check(enum lvp_status status, const char *what)
{
    if (status != LVP_OK) fail_msg("%s: %s", what, lvp_error_text());
}

// The points of the folder's modules, or the pruner's own.
static void make_plan(const struct chain_options *options, const char *path, struct lvp_prune_plan *plan)
{
    struct lvp_model_config config;
    struct lvp_pruner_weights weights;
    check(lvp_model_config_load(options->model, &config), options->model);
    if (options->pruner == LVP_PRUNER_LVPRUNING) {
        check(lvp_pruner_weights_open(path, &config, &weights), path);
        plan->n_points = weights.n_points;
        memcpy(plan->after, weights.after_layers, sizeof plan->after);
        lvp_pruner_weights_close(&weights);
    } else if (options->pruner != LVP_PRUNER_NONE) {
        lvp_pruner_default_points(options->pruner, config.text.layers, plan);
    }
    if (plan->n_points > 0) check(lvp_prune_parse_keep(options->keep, plan), "keep");
}

void chain_open(const struct chain_options *options, struct lvp_chain *chain)
{
    char path[512];
    struct lvp_chain_options inner = {.model = options->model,
                                      .kernel_set = options->kernel_set,
                                      .dtype = options->dtype,
                                      .pruner = options->pruner,
                                      .partition = options->partition,
                                      .threads = options->threads,
                                      .max_rows = options->max_rows,
                                      .max_seqs = options->max_seqs};
    (void)snprintf(path, sizeof path, "%s/lvpruning.safetensors", options->model);
    if (options->pruner == LVP_PRUNER_LVPRUNING) inner.weights = path;
    lvp_error_clear();
    make_plan(options, path, &inner.plan);
    inner.plan.counts_vary = options->counts_vary;
    check(lvp_chain_open(&inner, chain), "chain");
}

void chain_encode(struct lvp_chain *chain, int n_images, const float *pixels, const int32_t *slots)
{
    check(lvp_chain_encode(chain, n_images, pixels, slots), "encode");
}

void chain_step(struct lvp_chain *chain, const struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens, float *logprobs)
{
    check(lvp_chain_step(chain, seqs, n_seqs, tokens, logprobs), "step");
}

struct lvp_stage *chain_last(const struct lvp_chain *chain)
{
    return chain->stages[chain->partition.n_stages - 1];
}
