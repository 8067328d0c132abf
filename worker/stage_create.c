#include "worker/stage_state.h"
#include "worker/weights.h"

#include <stdlib.h>

static int clamp(int value, int low, int high)
{
    return value < low ? low : value > high ? high : value;
}

struct lvp_stage_range lvp_stage_range_of(const struct lvp_model_config *config, int first, int end)
{
    int vit = lvp_block_index(config, LVP_BLOCK_VIT, 0), n_vit = lvp_vit_layers_used(config);
    int project = lvp_block_index(config, LVP_BLOCK_PROJECT, 0), merge = lvp_block_index(config, LVP_BLOCK_MERGE, 0);
    int dec = lvp_block_index(config, LVP_BLOCK_DEC, 0), head = lvp_block_index(config, LVP_BLOCK_HEAD, 0);
    return (struct lvp_stage_range){
        .patch_embed = first == 0,
        .vit_first = clamp(first - vit, 0, n_vit),
        .vit_end = clamp(end - vit, 0, n_vit),
        .project = first <= project && project < end,
        .merge = first <= merge && merge < end,
        .dec_first = clamp(first - dec, 0, config->text.layers),
        .dec_end = clamp(end - dec, 0, config->text.layers),
        .head = first <= head && head < end,
    };
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

void lvp_stage_backend_limits(const struct lvp_model_config *config, const struct lvp_prune_counts *prune,
                              int pruner_width, struct lvp_stage_range range, const struct lvp_stage_limits *limits,
                              struct lvp_backend_limits *result)
{
    const struct lvp_text_config *text = &config->text;
    const struct lvp_vision_config *vit = &config->vision;
    *result = (struct lvp_backend_limits){
        .max_rows = 1, .max_width = 1, .max_kv_len = limits->max_kv_len, .max_vocab = text->vocab};
    if (lvp_range_has_vision(range)) {
        result->max_rows = limits->max_images * (lvp_patch_count(config) + 1);
        result->max_width = larger(larger(3 * vit->hidden, vit->mlp), 3 * vit->patch_size * vit->patch_size);
        result->max_width = larger(result->max_width, larger(lvp_feature_width(config), text->hidden));
        result->max_kv_len = larger(result->max_kv_len, lvp_patch_count(config) + 1);
    }
    if (lvp_range_has_decoder(range)) {
        result->max_rows = larger(result->max_rows, limits->max_rows);
        result->max_width =
            larger(result->max_width, larger(2 * text->mlp, (text->heads + 2 * text->kv_heads) * text->head_dim));
        result->max_width = larger(result->max_width, larger(text->hidden, text->vocab));
        if (prune->n_points > 0) result->max_width = larger(result->max_width, 2 * pruner_width);
    }
}

static enum lvp_status create_vision(struct lvp_stage *stage, const struct lvp_checkpoint *checkpoint)
{
    struct lvp_backend *backend = stage->backend;
    struct lvp_vision_range range = lvp_stage_vision_range(stage->range);
    size_t n = (size_t)stage->limits.max_images;
    LVP_TRY(lvp_vision_create(backend, checkpoint, range, stage->limits.max_images, &stage->vision));
    LVP_TRY(lvp_floats_create(backend, n * lvp_vision_in_elements(&stage->config, range), &stage->vision_in));
    return lvp_floats_create(backend, n * lvp_vision_out_elements(&stage->config, range), &stage->vision_out);
}

static enum lvp_status create_head(struct lvp_stage *stage, const struct lvp_checkpoint *checkpoint)
{
    struct lvp_backend *backend = stage->backend;
    struct lvp_head *head = &stage->head;
    size_t seqs = (size_t)stage->limits.max_seqs;
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(checkpoint, LVP_W_FINAL_NORM, 0), &head->norm));
    LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(checkpoint, LVP_W_LM_HEAD, 0), NULL, backend->weights,
                            &head->lm_head));
    LVP_TRY(lvp_floats_create(backend, seqs * (size_t)stage->config.text.hidden, &head->rows));
    LVP_TRY(lvp_floats_create(backend, seqs * (size_t)stage->config.text.vocab, &head->logits));
    LVP_TRY(lvp_ints_create(backend, seqs, &head->tokens));
    LVP_TRY(lvp_floats_create(backend, seqs, &head->logprobs));
    head->host_draws = calloc(seqs, sizeof *head->host_draws);
    if (head->host_draws == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for sampling");
    return backend->ops->alloc(backend, seqs * sizeof *head->draws, (void **)&head->draws);
}

static enum lvp_status create_decoder(struct lvp_stage *stage, const struct lvp_stage_options *options)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_text_config *text = &stage->config.text;
    const struct lvp_stage_limits *limits = &stage->limits;
    size_t rows = (size_t)limits->max_rows, width = (size_t)text->hidden;
    struct lvp_stage_range range = stage->range;
    int max_pages = lvp_kv_pages(limits->max_kv_len);
    if (range.merge) {
        size_t parked = (size_t)limits->image_slots * (size_t)lvp_vision_tokens(&stage->config);
        LVP_TRY(lvp_table_create(backend, lvp_checkpoint_weight(options->checkpoint, LVP_W_EMBED, 0), backend->dtype,
                                 &stage->embedding));
        LVP_TRY(lvp_floats_create(backend, parked * width, &stage->parked));
    }
    if (range.dec_end > range.dec_first) {
        struct lvp_kv_cache_config kv = {.first_layer = range.dec_first,
                                         .end_layer = range.dec_end,
                                         .max_seqs = limits->max_seqs,
                                         .max_kv_len = limits->max_kv_len,
                                         .kv_heads = text->kv_heads,
                                         .head_dim = text->head_dim};
        memcpy(kv.n_pages, limits->kv_pages, sizeof kv.n_pages);
        LVP_TRY(lvp_decoder_create(backend, options->checkpoint, range.dec_first, range.dec_end, limits->max_rows,
                                   &stage->decoder));
        LVP_TRY(lvp_kv_cache_create(backend, &stage->prune, &kv, &stage->cache));
    }
    if (stage->depth_out > stage->depth_in)
        LVP_TRY(lvp_pruner_create(backend, stage->pruner_kind, options->weights, &stage->config, stage->depth_in,
                                  stage->depth_out, limits->max_rows, &stage->pruner));
    if (range.head) LVP_TRY(create_head(stage, options->checkpoint));
    LVP_TRY(lvp_layout_create(backend, &stage->prune, stage->depth_in, stage->depth_out, range.merge, limits->max_rows,
                              limits->max_seqs, max_pages, &stage->layout));
    for (int i = 0; i < 2; i++) {
        LVP_TRY(lvp_floats_create(backend, rows * width, &stage->x[i]));
        LVP_TRY(lvp_ints_create(backend, rows, &stage->positions[i]));
    }
    return lvp_ints_create(backend, rows, &stage->survivors);
}

enum lvp_status lvp_stage_create(const struct lvp_stage_options *options, struct lvp_stage **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_stage *stage = calloc(1, sizeof *stage);
    if (stage == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the stage");
    stage->backend = options->backend;
    stage->config = *lvp_checkpoint_config(options->checkpoint);
    stage->prune = options->prune;
    stage->range = options->range;
    stage->limits = options->limits;
    stage->pruner_kind = options->pruner;
    stage->depth_in = lvp_depth_of_layer(&stage->prune, stage->range.dec_first);
    stage->depth_out = lvp_depth_of_layer(&stage->prune, stage->range.dec_end);
    if (lvp_range_has_vision(stage->range)) LVP_CHECK(create_vision(stage, options->checkpoint));
    if (lvp_range_has_decoder(stage->range)) LVP_CHECK(create_decoder(stage, options));
    *result = stage;
    return LVP_OK;
fail:
    lvp_stage_destroy(stage);
    return status;
}

void lvp_stage_destroy(struct lvp_stage *stage)
{
    if (stage == NULL) return;
    struct lvp_backend *backend = stage->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    lvp_vision_destroy(stage->vision);
    lvp_decoder_destroy(stage->decoder);
    lvp_kv_cache_destroy(stage->cache);
    lvp_pruner_destroy(stage->pruner);
    lvp_layout_destroy(stage->layout);
    void *memory[] = {stage->vision_in,   stage->vision_out,    stage->parked,       stage->embedding,
                      stage->x[0],        stage->x[1],          stage->positions[0], stage->positions[1],
                      stage->survivors,   stage->head.norm,     stage->head.rows,    stage->head.logits,
                      stage->head.tokens, stage->head.logprobs, stage->head.draws};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) ops->free(backend, memory[i]);
    ops->linear_destroy(backend, stage->head.lm_head);
    free(stage->head.host_draws);
    free(stage->seen_rows);
    free(stage->seen_gate);
    free(stage);
}
