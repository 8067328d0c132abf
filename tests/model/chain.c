#include "tests/model/chain.h"

#include "worker/kv_cache.h"

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

static void open_stage(struct chain *chain, const struct chain_options *options, int s)
{
    struct lvp_stage_options stage = {
        .checkpoint = chain->checkpoint,
        .weights = &chain->weights,
        .pruner = options->pruner,
        .prune = chain->prune,
        .range = lvp_stage_range_of(chain->config, chain->partition.first[s], chain->partition.first[s + 1]),
        .limits = {.max_rows = options->max_rows,
                   .max_seqs = options->max_seqs,
                   .max_images = 8,
                   .image_slots = 16,
                   .max_kv_len = chain->config->text.max_positions},
    };
    for (int d = 0; d <= chain->prune.n_points; d++)
        stage.limits.kv_pages[d] = options->max_seqs * lvp_kv_pages(chain->config->text.max_positions);
    struct lvp_backend_limits limits;
    lvp_stage_backend_limits(chain->config, &chain->prune, chain->weights.inner_width, stage.range, &stage.limits,
                             &limits);
    if (strcmp(options->kernel_set, "ref") == 0)
        check(lvp_ref_backend_open(options->dtype, &chain->backends[s]), "ref backend");
    else
        check(lvp_cpu_backend_open(options->kernel_set, options->dtype, options->threads, &limits, &chain->backends[s]),
              "cpu backend");
    stage.backend = chain->backends[s];
    chain->ranges[s] = stage.range;
    check(lvp_stage_create(&stage, &chain->stages[s]), "stage");
}

void chain_open(const struct chain_options *options, struct chain *chain)
{
    *chain = (struct chain){0};
    lvp_error_clear();
    check(lvp_checkpoint_open(options->model, &chain->checkpoint), options->model);
    chain->config = lvp_checkpoint_config(chain->checkpoint);
    int tokens = lvp_vision_tokens(chain->config);
    struct lvp_prune_plan plan = {0};
    if (options->pruner == LVP_PRUNER_LVPRUNING) {
        char path[512];
        (void)snprintf(path, sizeof path, "%s/lvpruning.safetensors", options->model);
        check(lvp_pruner_weights_open(path, chain->config, &chain->weights), path);
        plan.n_points = chain->weights.n_points;
        memcpy(plan.after, chain->weights.after_layers, sizeof plan.after);
    } else if (options->pruner == LVP_PRUNER_RANDOM) {
        lvp_prune_default_points(chain->config->text.layers, &plan);
    }
    if (plan.n_points > 0) check(lvp_prune_parse_keep(options->keep, &plan), "keep");
    lvp_prune_counts(&plan, tokens, &chain->prune);
    if (options->partition != NULL)
        chain->partition = *options->partition;
    else
        chain->partition = (struct lvp_partition){.n_stages = 1, .first = {0, lvp_block_count(chain->config)}};
    check(lvp_partition_check(chain->config, &chain->partition), "partition");
    for (int s = 0; s < chain->partition.n_stages; s++) open_stage(chain, options, s);
    size_t rows = (size_t)options->max_rows;
    size_t step = rows * (size_t)chain->config->text.hidden * 4;
    size_t images = 8 * ((size_t)lvp_patch_count(chain->config) + 1) * 4 *
                    (size_t)(chain->config->text.hidden + chain->config->vision.hidden);
    for (int i = 0; i < 2; i++) {
        chain->payload[i] = malloc(step > images ? step : images);
        chain->positions[i] = malloc(rows * sizeof(int32_t));
    }
}

void chain_close(struct chain *chain)
{
    for (int s = 0; s < chain->partition.n_stages; s++) {
        lvp_stage_destroy(chain->stages[s]);
        chain->backends[s]->ops->close(chain->backends[s]);
    }
    for (int i = 0; i < 2; i++) {
        free(chain->payload[i]);
        free(chain->positions[i]);
    }
    lvp_pruner_weights_close(&chain->weights);
    lvp_checkpoint_close(chain->checkpoint);
}

void chain_encode(struct chain *chain, int n_images, const float *pixels, const int32_t *slots)
{
    int from = 0;
    for (int s = 0; s < chain->partition.n_stages; s++) {
        struct lvp_stage *stage = chain->stages[s];
        const void *in[8];
        size_t bytes = lvp_stage_image_in_bytes(stage);
        const unsigned char *base = s == 0 ? (const unsigned char *)pixels : chain->payload[from];
        for (int i = 0; i < n_images; i++) in[i] = base + (size_t)i * bytes;
        if (lvp_stage_has_vision(stage))
            check(lvp_stage_encode(stage, n_images, in, slots, chain->payload[1 - from]), "encode");
        else
            check(lvp_stage_park(stage, n_images, base, slots), "park");
        if (chain->ranges[s].merge) return;
        from = 1 - from;
    }
}

void chain_step(struct chain *chain, struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens, float *logprobs)
{
    struct lvp_step step = {.number = ++chain->number, .n_seqs = n_seqs, .seqs = seqs};
    int from = 0;
    for (int s = 0; s < chain->partition.n_stages; s++) {
        if (!lvp_stage_has_decoder(chain->stages[s])) continue;
        struct lvp_step_output output = {.x = chain->payload[1 - from],
                                         .positions = chain->positions[1 - from],
                                         .tokens = tokens,
                                         .logprobs = logprobs};
        bool first = chain->ranges[s].merge;
        check(lvp_stage_step(chain->stages[s], &step, first ? NULL : chain->payload[from],
                             first ? NULL : chain->positions[from], &output),
              "step");
        from = 1 - from;
    }
}

struct lvp_stage *chain_last(const struct chain *chain)
{
    return chain->stages[chain->partition.n_stages - 1];
}

void chain_release(struct chain *chain, int slot)
{
    for (int s = 0; s < chain->partition.n_stages; s++) lvp_stage_release(chain->stages[s], slot);
}
