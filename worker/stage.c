#include "worker/stage.h"

#include "worker/decoder.h"
#include "worker/kv_cache.h"
#include "worker/vision.h"
#include "worker/weights.h"

#include <stdlib.h>

struct head {
    float *norm;
    struct lvp_linear *lm_head;
    float *rows;                   // [max_seqs, C] last rows, then normed
    float *logits;                 // [max_seqs, vocab]
    int32_t *tokens;               // [max_seqs]
    float *logprobs;               // [max_seqs]
    struct lvp_sampling *sampling; // [max_seqs] host
};

struct lvp_stage {
    struct lvp_backend *backend;
    struct lvp_model_config config;
    struct lvp_prune_counts prune;
    struct lvp_stage_range range;
    struct lvp_stage_limits limits;
    enum lvp_pruner_kind pruner_kind;
    int depth_in, depth_out; // prune points passed by the rows that enter and leave

    struct lvp_vision *vision;
    float *vision_in, *vision_out; // [max_images, elements of one image]
    float *parked;                 // [image_slots * tokens, C], with merge

    void *embedding; // [vocab, C] in the model's dtype, with merge
    struct lvp_decoder *decoder;
    struct lvp_kv_cache *cache;
    struct lvp_pruner *pruner;
    struct lvp_layout *layout;
    struct head head;
    float *x[2];           // [max_rows, C] residual stream; pruning copies from one to the other
    int32_t *positions[2]; // [max_rows]
    int32_t *survivors;    // [max_rows]
    int current;           // which of x and positions holds the rows
    int n_rows;
    float *wide; // host staging, for payloads in bf16
};

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

static struct lvp_vision_range vision_range(struct lvp_stage_range range)
{
    return (struct lvp_vision_range){range.patch_embed, range.vit_first, range.vit_end, range.project};
}

static bool range_has_vision(struct lvp_stage_range range)
{
    return range.patch_embed || range.vit_end > range.vit_first || range.project;
}

static bool range_has_decoder(struct lvp_stage_range range)
{
    return range.merge || range.dec_end > range.dec_first || range.head;
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
    if (range_has_vision(range)) {
        result->max_rows = limits->max_images * (lvp_patch_count(config) + 1);
        result->max_width = larger(larger(3 * vit->hidden, vit->mlp), 3 * vit->patch_size * vit->patch_size);
        result->max_width = larger(result->max_width, larger(lvp_feature_width(config), text->hidden));
        result->max_kv_len = larger(result->max_kv_len, lvp_patch_count(config) + 1);
    }
    if (range_has_decoder(range)) {
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
    struct lvp_vision_range range = vision_range(stage->range);
    size_t n = (size_t)stage->limits.max_images;
    LVP_TRY(lvp_vision_create(backend, checkpoint, range, stage->limits.max_images, &stage->vision));
    LVP_TRY(lvp_floats_create(backend, n * lvp_vision_in_elements(&stage->config, range), &stage->vision_in));
    return lvp_floats_create(backend, n * lvp_vision_out_elements(&stage->config, range), &stage->vision_out);
}

static enum lvp_status create_head(struct lvp_stage *stage, const struct lvp_checkpoint *checkpoint)
{
    struct lvp_backend *backend = stage->backend;
    struct head *head = &stage->head;
    size_t seqs = (size_t)stage->limits.max_seqs;
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(checkpoint, LVP_W_FINAL_NORM, 0), &head->norm));
    LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(checkpoint, LVP_W_LM_HEAD, 0), NULL, &head->lm_head));
    LVP_TRY(lvp_floats_create(backend, seqs * (size_t)stage->config.text.hidden, &head->rows));
    LVP_TRY(lvp_floats_create(backend, seqs * (size_t)stage->config.text.vocab, &head->logits));
    LVP_TRY(lvp_ints_create(backend, seqs, &head->tokens));
    LVP_TRY(lvp_floats_create(backend, seqs, &head->logprobs));
    head->sampling = calloc(seqs, sizeof *head->sampling);
    if (head->sampling == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for sampling");
    return LVP_OK;
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
        LVP_TRY(lvp_pruner_create(backend, stage->pruner_kind, options->weights, text->hidden, stage->depth_in,
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

static enum lvp_status create_staging(struct lvp_stage *stage)
{
    size_t n = 0;
    if (range_has_vision(stage->range)) {
        size_t in = lvp_vision_in_elements(&stage->config, vision_range(stage->range));
        size_t out = lvp_vision_out_elements(&stage->config, vision_range(stage->range));
        n = (size_t)stage->limits.max_images * (in > out ? in : out);
    }
    size_t rows = (size_t)stage->limits.max_rows;
    size_t parked = (size_t)stage->limits.max_images * (size_t)lvp_vision_tokens(&stage->config);
    if (parked > rows) rows = parked;
    size_t step = range_has_decoder(stage->range) ? rows * (size_t)stage->config.text.hidden : 0;
    stage->wide = malloc((n > step ? n : step) * sizeof *stage->wide + 1);
    return stage->wide == NULL ? lvp_fail(LVP_ERR_MEMORY, "out of memory for staging buffers") : LVP_OK;
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
    if (range_has_vision(stage->range)) LVP_CHECK(create_vision(stage, options->checkpoint));
    if (range_has_decoder(stage->range)) LVP_CHECK(create_decoder(stage, options));
    LVP_CHECK(create_staging(stage));
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
    void *memory[] = {stage->vision_in, stage->vision_out,   stage->parked,       stage->embedding,    stage->x[0],
                      stage->x[1],      stage->positions[0], stage->positions[1], stage->survivors,    stage->head.norm,
                      stage->head.rows, stage->head.logits,  stage->head.tokens,  stage->head.logprobs};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) ops->free(backend, memory[i]);
    ops->linear_destroy(backend, stage->head.lm_head);
    free(stage->head.sampling);
    free(stage->wide);
    free(stage);
}

bool lvp_stage_has_vision(const struct lvp_stage *stage)
{
    return range_has_vision(stage->range);
}
bool lvp_stage_has_decoder(const struct lvp_stage *stage)
{
    return range_has_decoder(stage->range);
}

size_t lvp_stage_image_in_bytes(const struct lvp_stage *stage)
{
    if (!range_has_vision(stage->range)) // projected rows for `merge`
        return (size_t)lvp_vision_tokens(&stage->config) * (size_t)stage->config.text.hidden *
               lvp_dtype_size(stage->backend->dtype);
    size_t size = stage->range.patch_embed ? sizeof(float) : lvp_dtype_size(stage->backend->dtype);
    return lvp_vision_in_elements(&stage->config, vision_range(stage->range)) * size;
}

size_t lvp_stage_image_out_bytes(const struct lvp_stage *stage)
{
    return lvp_vision_out_elements(&stage->config, vision_range(stage->range)) * lvp_dtype_size(stage->backend->dtype);
}

// Copies payload rows that arrived in the model's dtype into backend memory.
static void load_payload(struct lvp_stage *stage, const void *payload, size_t n, float *to)
{
    lvp_widen(payload, n, stage->backend->dtype, stage->wide);
    stage->backend->ops->upload(stage->backend, to, stage->wide, n * sizeof *to);
}

static void store_payload(struct lvp_stage *stage, const float *from, size_t n, void *payload)
{
    stage->backend->ops->download(stage->backend, stage->wide, from, n * sizeof *from);
    lvp_narrow(stage->wide, n, stage->backend->dtype, payload);
}

static enum lvp_status check_image_slots(const struct lvp_stage *stage, int n_images, const int32_t *slots)
{
    if (n_images < 1 || n_images > stage->limits.max_images)
        return lvp_fail(LVP_ERR_FORMAT, "an encode job has %d images, the stage takes %d", n_images,
                        stage->limits.max_images);
    for (int i = 0; i < n_images; i++)
        if (slots[i] < 0 || slots[i] >= stage->limits.image_slots)
            return lvp_fail(LVP_ERR_FORMAT, "image slot %d is out of range", slots[i]);
    return LVP_OK;
}

static float *parked_image(struct lvp_stage *stage, int slot)
{
    return stage->parked + (size_t)slot * (size_t)lvp_vision_tokens(&stage->config) * (size_t)stage->config.text.hidden;
}

enum lvp_status lvp_stage_encode(struct lvp_stage *stage, int n_images, const void *const *in, const int32_t *slots,
                                 void *out)
{
    struct lvp_backend *backend = stage->backend;
    struct lvp_vision_range range = vision_range(stage->range);
    size_t in_elements = lvp_vision_in_elements(&stage->config, range);
    size_t out_elements = lvp_vision_out_elements(&stage->config, range);
    LVP_TRY(check_image_slots(stage, n_images, slots));
    for (int i = 0; i < n_images; i++) {
        float *to = stage->vision_in + (size_t)i * in_elements;
        if (range.patch_embed)
            backend->ops->upload(backend, to, in[i], in_elements * sizeof *to);
        else
            load_payload(stage, in[i], in_elements, to);
    }
    lvp_vision_run(stage->vision, n_images, stage->vision_in, stage->vision_out);
    if (stage->range.merge) {
        int tokens = lvp_vision_tokens(&stage->config);
        for (int i = 0; i < n_images; i++)
            backend->ops->copy_rows(backend, stage->vision_out + (size_t)i * out_elements, NULL, tokens,
                                    stage->config.text.hidden, parked_image(stage, slots[i]), NULL);
    } else {
        store_payload(stage, stage->vision_out, (size_t)n_images * out_elements, out);
    }
    return backend->ops->sync(backend);
}

enum lvp_status lvp_stage_park(struct lvp_stage *stage, int n_images, const void *in, const int32_t *slots)
{
    size_t n = (size_t)lvp_vision_tokens(&stage->config) * (size_t)stage->config.text.hidden;
    LVP_TRY(check_image_slots(stage, n_images, slots));
    for (int i = 0; i < n_images; i++)
        load_payload(stage, (const char *)in + (size_t)i * lvp_stage_image_in_bytes(stage), n,
                     parked_image(stage, slots[i]));
    return stage->backend->ops->sync(stage->backend);
}

int lvp_stage_rows_in(const struct lvp_stage *stage, const struct lvp_step *step)
{
    return lvp_step_rows(&stage->prune, step, stage->depth_in);
}

int lvp_stage_rows_out(const struct lvp_stage *stage, const struct lvp_step *step)
{
    return lvp_step_rows(&stage->prune, step, stage->depth_out);
}

static void merge_rows(struct lvp_stage *stage)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_merge_layout *merge = lvp_layout_merge(stage->layout);
    int width = stage->config.text.hidden;
    backend->ops->embed(backend, stage->embedding, merge->text_id, merge->n_text, width, merge->text_to, stage->x[0]);
    backend->ops->copy_rows(backend, stage->parked, merge->parked_from, merge->n_vision, width, stage->x[0],
                            merge->vision_to);
    backend->ops->copy_rows(backend, merge->positions, NULL, merge->n_text + merge->n_vision, 1, stage->positions[0],
                            NULL);
}

// Scores the vision rows and copies the survivors down; every row of the step keeps its order and its original
// position.
static void prune_rows(struct lvp_stage *stage, const struct lvp_step *step, int point)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_depth_layout *before = lvp_layout_depth(stage->layout, point);
    int n_after = lvp_layout_depth(stage->layout, point + 1)->n_rows;
    if (before->n_images == 0 || n_after == before->n_rows) {
        stage->n_rows = n_after;
        return;
    }
    int from = stage->current, to = 1 - from;
    const float *gate = lvp_pruner_score(stage->pruner, point, step, before, stage->x[from]);
    struct lvp_row_selection selection = {
        .n_rows = before->n_rows,
        .n_images = before->n_images,
        .image_row = before->image_row,
        .image_len = before->image_len,
        .gate_start = before->gate_start,
        .keep = before->image_keep,
        .gate = gate,
        .survivors = stage->survivors,
    };
    backend->ops->select_rows(backend, &selection);
    backend->ops->copy_rows(backend, stage->x[from], stage->survivors, n_after, stage->config.text.hidden, stage->x[to],
                            NULL);
    backend->ops->copy_rows(backend, stage->positions[from], stage->survivors, n_after, 1, stage->positions[to], NULL);
    stage->current = to;
    stage->n_rows = n_after;
}

static void run_head(struct lvp_stage *stage, const struct lvp_step *step, const struct lvp_step_output *output)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_text_config *text = &stage->config.text;
    struct head *head = &stage->head;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    int n = step->n_seqs;
    for (int s = 0; s < n; s++)
        head->sampling[s] = (struct lvp_sampling){step->seqs[s].temperature, step->seqs[s].top_p,
                                                  step->seqs[s].sampling_key, step->seqs[s].token_index};
    backend->ops->copy_rows(backend, stage->x[stage->current], lvp_layout_last_rows(stage->layout), n, text->hidden,
                            head->rows, NULL);
    backend->ops->rms_norm(backend, head->rows, n, text->hidden, head->norm, text->norm_eps, head->rows);
    backend->ops->linear(backend, head->lm_head, head->rows, n, plain, head->logits);
    backend->ops->sample(backend, head->logits, n, text->vocab, head->sampling, head->tokens, head->logprobs);
    backend->ops->download(backend, output->tokens, head->tokens, (size_t)n * sizeof *output->tokens);
    backend->ops->download(backend, output->logprobs, head->logprobs, (size_t)n * sizeof *output->logprobs);
}

enum lvp_status lvp_stage_step(struct lvp_stage *stage, const struct lvp_step *step, const void *x,
                               const int32_t *positions, const struct lvp_step_output *output)
{
    struct lvp_backend *backend = stage->backend;
    size_t width = (size_t)stage->config.text.hidden;
    LVP_TRY(lvp_layout_build(stage->layout, step, &stage->config, stage->limits.image_slots, stage->cache));
    stage->current = 0;
    stage->n_rows = lvp_stage_rows_in(stage, step);
    if (stage->range.merge) {
        merge_rows(stage);
    } else {
        for (int i = 0; i < stage->n_rows; i++)
            if (positions[i] < 0 || positions[i] >= stage->config.text.max_positions)
                return lvp_fail(LVP_ERR_FORMAT, "row %d arrived with position %d, outside the context", i,
                                positions[i]);
        load_payload(stage, x, (size_t)stage->n_rows * width, stage->x[0]);
        backend->ops->upload(backend, stage->positions[0], positions, (size_t)stage->n_rows * sizeof *positions);
    }
    int depth = stage->depth_in;
    for (int layer = stage->range.dec_first; layer < stage->range.dec_end; layer++) {
        lvp_decoder_run_layer(stage->decoder, layer, step->n_seqs, lvp_layout_depth(stage->layout, depth), stage->cache,
                              stage->positions[stage->current], stage->x[stage->current]);
        if (depth < stage->prune.n_points && stage->prune.after[depth] == layer + 1) prune_rows(stage, step, depth++);
    }
    if (stage->range.head) {
        run_head(stage, step, output);
    } else {
        store_payload(stage, stage->x[stage->current], (size_t)stage->n_rows * width, output->x);
        backend->ops->download(backend, output->positions, stage->positions[stage->current],
                               (size_t)stage->n_rows * sizeof *output->positions);
    }
    return backend->ops->sync(backend);
}

void lvp_stage_release(struct lvp_stage *stage, int slot)
{
    if (stage->cache != NULL) lvp_kv_cache_release(stage->cache, slot);
}

enum lvp_status lvp_stage_all_logits(struct lvp_stage *stage, float *logits, int32_t *positions, int *n_rows)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_text_config *text = &stage->config.text;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    size_t vocab = (size_t)text->vocab;
    for (int row = 0; row < stage->n_rows; row++) {
        const float *x = stage->x[stage->current] + (size_t)row * (size_t)text->hidden;
        backend->ops->rms_norm(backend, x, 1, text->hidden, stage->head.norm, text->norm_eps, stage->head.rows);
        backend->ops->linear(backend, stage->head.lm_head, stage->head.rows, 1, plain, stage->head.logits);
        backend->ops->download(backend, logits + (size_t)row * vocab, stage->head.logits, vocab * sizeof *logits);
    }
    backend->ops->download(backend, positions, stage->positions[stage->current],
                           (size_t)stage->n_rows * sizeof *positions);
    *n_rows = stage->n_rows;
    return backend->ops->sync(backend);
}
