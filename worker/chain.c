#include "worker/chain.h"

#include "worker/kv_cache.h"

#include <stdlib.h>
#include <string.h>

static enum lvp_status open_stage(struct lvp_chain *chain, const struct lvp_chain_options *options, int s)
{
    struct lvp_stage_options stage = {
        .checkpoint = chain->checkpoint,
        .weights = &chain->weights,
        .pruner = options->pruner,
        .prune = chain->prune,
        .range = lvp_stage_range_of(chain->config, chain->partition.first[s], chain->partition.first[s + 1]),
        .limits = {.max_rows = options->max_rows,
                   .max_seqs = options->max_seqs,
                   .max_images = LVP_CHAIN_IMAGES,
                   .image_slots = LVP_CHAIN_SLOTS,
                   .max_kv_len = chain->config->text.max_positions},
    };
    for (int d = 0; d <= chain->prune.n_points; d++)
        stage.limits.kv_pages[d] = options->max_seqs * lvp_kv_pages(chain->config->text.max_positions);
    struct lvp_backend_limits limits;
    lvp_stage_backend_limits(chain->config, &chain->prune, chain->weights.inner_width, stage.range, &stage.limits,
                             &limits);
    if (strcmp(options->kernel_set, "ref") == 0)
        LVP_TRY(lvp_ref_backend_open(options->dtype, &chain->backends[s]));
    else
        LVP_TRY(
            lvp_cpu_backend_open(options->kernel_set, options->dtype, options->threads, &limits, &chain->backends[s]));
    stage.backend = chain->backends[s];
    chain->ranges[s] = stage.range;
    return lvp_stage_create(&stage, &chain->stages[s]);
}

enum lvp_status lvp_chain_open(const struct lvp_chain_options *options, struct lvp_chain *chain)
{
    *chain = (struct lvp_chain){0};
    LVP_TRY(lvp_checkpoint_open(options->model, &chain->checkpoint));
    chain->config = lvp_checkpoint_config(chain->checkpoint);
    if (options->weights != NULL) LVP_TRY(lvp_pruner_weights_open(options->weights, chain->config, &chain->weights));
    lvp_prune_counts(&options->plan, lvp_vision_tokens(chain->config), &chain->prune);
    chain->partition = (struct lvp_partition){.n_stages = 1, .first = {0, lvp_block_count(chain->config)}};
    if (options->partition != NULL) chain->partition = *options->partition;
    LVP_TRY(lvp_partition_check(chain->config, &chain->partition));
    for (int s = 0; s < chain->partition.n_stages; s++) LVP_TRY(open_stage(chain, options, s));
    size_t rows = (size_t)options->max_rows, step = rows * (size_t)chain->config->text.hidden * 4;
    size_t images = LVP_CHAIN_IMAGES * ((size_t)lvp_patch_count(chain->config) + 1) * 4 *
                    (size_t)(chain->config->text.hidden + chain->config->vision.hidden);
    for (int i = 0; i < 2; i++) {
        chain->payload[i] = malloc(step > images ? step : images);
        chain->positions[i] = malloc(rows * sizeof(int32_t));
        if (chain->payload[i] == NULL || chain->positions[i] == NULL)
            return lvp_fail(LVP_ERR_MEMORY, "out of memory for the rows between stages");
    }
    return LVP_OK;
}

void lvp_chain_close(struct lvp_chain *chain)
{
    for (int s = 0; s < chain->partition.n_stages; s++) {
        lvp_stage_destroy(chain->stages[s]);
        if (chain->backends[s] != NULL) chain->backends[s]->ops->close(chain->backends[s]);
    }
    for (int i = 0; i < 2; i++) {
        free(chain->payload[i]);
        free(chain->positions[i]);
    }
    lvp_pruner_weights_close(&chain->weights);
    lvp_checkpoint_close(chain->checkpoint);
    *chain = (struct lvp_chain){0};
}

enum lvp_status lvp_chain_encode(struct lvp_chain *chain, int n_images, const float *pixels, const int32_t *slots)
{
    int from = 0;
    for (int s = 0; s < chain->partition.n_stages; s++) {
        struct lvp_stage *stage = chain->stages[s];
        const void *in[LVP_CHAIN_IMAGES];
        size_t bytes = lvp_stage_image_in_bytes(stage);
        const unsigned char *base = s == 0 ? (const unsigned char *)pixels : chain->payload[from];
        for (int i = 0; i < n_images; i++) in[i] = base + (size_t)i * bytes;
        if (lvp_stage_has_vision(stage))
            LVP_TRY(lvp_stage_encode(stage, n_images, in, slots, chain->payload[1 - from]));
        else
            LVP_TRY(lvp_stage_park(stage, n_images, base, slots));
        if (chain->ranges[s].merge) return LVP_OK;
        from = 1 - from;
    }
    return LVP_OK;
}

enum lvp_status lvp_chain_observe(struct lvp_chain *chain, lvp_prune_observer *observer, void *context)
{
    for (int s = 0; s < chain->partition.n_stages; s++) LVP_TRY(lvp_stage_observe(chain->stages[s], observer, context));
    return LVP_OK;
}

enum lvp_status lvp_chain_step(struct lvp_chain *chain, const struct lvp_step_seq *seqs, int n_seqs, int32_t *tokens,
                               float *logprobs)
{
    struct lvp_step step = {.number = ++chain->number, .n_seqs = n_seqs, .seqs = seqs};
    int from = 0, n_rows = 0;
    for (int s = 0; s < chain->partition.n_stages; s++) {
        if (!lvp_stage_has_decoder(chain->stages[s])) continue;
        struct lvp_step_output output = {.x = chain->payload[1 - from],
                                         .positions = chain->positions[1 - from],
                                         .tokens = tokens,
                                         .logprobs = logprobs};
        bool first = chain->ranges[s].merge;
        LVP_TRY(lvp_stage_step(chain->stages[s], &step, first ? NULL : chain->payload[from],
                               first ? NULL : chain->positions[from], n_rows, &output));
        n_rows = output.n_rows;
        from = 1 - from;
    }
    return LVP_OK;
}

void lvp_chain_release(struct lvp_chain *chain, int slot)
{
    for (int s = 0; s < chain->partition.n_stages; s++) lvp_stage_release(chain->stages[s], slot);
}
