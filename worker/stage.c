#include "common/clock.h"
#include "worker/philox.h"
#include "worker/stage_state.h"
#include "worker/weights.h"

#include <stdlib.h>

bool lvp_stage_has_vision(const struct lvp_stage *stage)
{
    return lvp_range_has_vision(stage->range);
}
bool lvp_stage_has_decoder(const struct lvp_stage *stage)
{
    return lvp_range_has_decoder(stage->range);
}

size_t lvp_stage_image_in_bytes(const struct lvp_stage *stage)
{
    if (!lvp_range_has_vision(stage->range)) // projected rows for `merge`
        return (size_t)lvp_vision_tokens(&stage->config) * (size_t)stage->config.text.hidden *
               lvp_dtype_size(stage->backend->dtype);
    size_t size = stage->range.patch_embed ? sizeof(float) : lvp_dtype_size(stage->backend->dtype);
    return lvp_vision_in_elements(&stage->config, lvp_stage_vision_range(stage->range)) * size;
}

size_t lvp_stage_image_out_bytes(const struct lvp_stage *stage)
{
    return lvp_vision_out_elements(&stage->config, lvp_stage_vision_range(stage->range)) *
           lvp_dtype_size(stage->backend->dtype);
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
    struct lvp_vision_range range = lvp_stage_vision_range(stage->range);
    size_t in_elements = lvp_vision_in_elements(&stage->config, range);
    size_t out_elements = lvp_vision_out_elements(&stage->config, range);
    LVP_TRY(check_image_slots(stage, n_images, slots));
    for (int i = 0; i < n_images; i++) {
        float *to = stage->vision_in + (size_t)i * in_elements;
        if (range.patch_embed)
            backend->ops->upload(backend, to, in[i], in_elements * sizeof *to);
        else
            backend->ops->load(backend, in[i], in_elements, to);
    }
    lvp_vision_run(stage->vision, n_images, stage->vision_in, stage->vision_out);
    if (stage->range.merge) {
        int tokens = lvp_vision_tokens(&stage->config);
        for (int i = 0; i < n_images; i++)
            backend->ops->copy_rows(backend, stage->vision_out + (size_t)i * out_elements, NULL, tokens,
                                    stage->config.text.hidden, parked_image(stage, slots[i]), NULL);
    } else {
        backend->ops->store(backend, stage->vision_out, (size_t)n_images * out_elements, out);
    }
    return backend->ops->sync(backend);
}

enum lvp_status lvp_stage_park(struct lvp_stage *stage, int n_images, const void *in, const int32_t *slots)
{
    size_t n = (size_t)lvp_vision_tokens(&stage->config) * (size_t)stage->config.text.hidden;
    LVP_TRY(check_image_slots(stage, n_images, slots));
    for (int i = 0; i < n_images; i++)
        stage->backend->ops->load(stage->backend, (const char *)in + (size_t)i * lvp_stage_image_in_bytes(stage), n,
                                  parked_image(stage, slots[i]));
    return stage->backend->ops->sync(stage->backend);
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

enum lvp_status lvp_stage_observe(struct lvp_stage *stage, lvp_prune_observer *observer, void *context)
{
    size_t rows = (size_t)stage->limits.max_rows;
    stage->observer = observer;
    stage->observer_context = context;
    if (stage->seen_rows == NULL) stage->seen_rows = malloc(3 * rows * sizeof *stage->seen_rows);
    if (stage->seen_gate == NULL) stage->seen_gate = malloc(2 * rows * sizeof *stage->seen_gate);
    return stage->seen_rows != NULL && stage->seen_gate != NULL
               ? LVP_OK
               : lvp_fail(LVP_ERR_MEMORY, "out of memory for looking at a stage");
}

// gate NULL: all rows stay.
static void tell_observer(struct lvp_stage *stage, int point, const struct lvp_depth_layout *before,
                          const int32_t *positions_before, const float *gate)
{
    struct lvp_backend *backend = stage->backend;
    size_t max_rows = (size_t)stage->limits.max_rows, n_scored = (size_t)before->n_vision;
    int32_t *all = stage->seen_rows, *scored = all + max_rows, *rows = scored + max_rows;
    backend->ops->download(backend, all, positions_before, (size_t)before->n_rows * sizeof *all);
    backend->ops->download(backend, scored, before->vision_row, n_scored * sizeof *scored);
    backend->ops->download(backend, rows, stage->positions[stage->current], (size_t)stage->n_rows * sizeof *rows);
    if (gate != NULL) backend->ops->download(backend, stage->seen_gate, gate, 2 * n_scored * sizeof *gate);
    for (size_t i = 0; i < n_scored; i++) scored[i] = all[scored[i]];
    struct lvp_prune_event event = {.point = point,
                                    .n_scored = before->n_vision,
                                    .scored = scored,
                                    .gate = gate != NULL ? stage->seen_gate : NULL,
                                    .n_rows = stage->n_rows,
                                    .rows = rows};
    stage->observer(stage->observer_context, &event);
}

// Behind `layer`: scores the vision rows and copies the survivors down; every row of the step keeps its order and its
// original position.
static void prune_rows(struct lvp_stage *stage, const struct lvp_step *step, int point, int layer)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_depth_layout *before = lvp_layout_depth(stage->layout, point);
    int n_after = lvp_layout_depth(stage->layout, point + 1)->n_rows;
    if (before->n_images == 0 || n_after == before->n_rows) {
        stage->n_rows = n_after;
        if (before->n_images > 0 && stage->observer != NULL)
            tell_observer(stage, point, before, stage->positions[stage->current], NULL);
        return;
    }
    int from = stage->current, to = 1 - from;
    struct lvp_prune_view view = {
        .step = step,
        .layout = before,
        .x = stage->x[from],
        .positions = stage->positions[from],
        .qkv = lvp_decoder_qkv(stage->decoder),
        .cache = lvp_kv_cache_layer(stage->cache, layer),
        .max_pages = lvp_kv_cache_max_pages(stage->cache),
    };
    const float *gate = lvp_pruner_score(stage->pruner, point, &view);
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
    if (stage->observer != NULL) tell_observer(stage, point, before, stage->positions[from], gate);
}

// What the step's draws depend on is known before it is computed.
static void upload_draws(struct lvp_stage *stage, const struct lvp_step *step)
{
    struct lvp_head *head = &stage->head;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        head->host_draws[s] = (struct lvp_draw){.uniform = lvp_token_uniform(seq->sampling_key, seq->token_index),
                                                .temperature = seq->temperature,
                                                .top_p = seq->top_p,
                                                .scored = seq->scored - 1};
    }
    stage->backend->ops->upload(stage->backend, head->draws, head->host_draws,
                                (size_t)step->n_seqs * sizeof *head->draws);
}

static void run_head(struct lvp_stage *stage, int n_seqs)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_text_config *text = &stage->config.text;
    struct lvp_head *head = &stage->head;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    backend->ops->copy_rows(backend, stage->x[stage->current], lvp_layout_last_rows(stage->layout), n_seqs,
                            text->hidden, head->rows, NULL);
    backend->ops->rms_norm(backend, head->rows, n_seqs, text->hidden, head->norm, text->norm_eps, head->rows);
    backend->ops->linear(backend, head->lm_head, head->rows, n_seqs, plain, head->logits);
    backend->ops->sample(backend, head->logits, n_seqs, text->vocab, head->draws, head->tokens, head->logprobs);
}

// Everything that a step uploads: what follows is computation only.
static enum lvp_status take_in(struct lvp_stage *stage, const struct lvp_step *step, const void *x,
                               const int32_t *positions, int n_rows)
{
    struct lvp_backend *backend = stage->backend;
    LVP_TRY(lvp_layout_build(stage->layout, step, &stage->config, stage->limits.image_slots, positions, n_rows,
                             stage->cache));
    stage->current = 0;
    stage->n_rows = lvp_layout_depth(stage->layout, stage->depth_in)->n_rows;
    if (stage->range.head) upload_draws(stage, step);
    if (stage->range.merge) return LVP_OK;
    backend->ops->load(backend, x, (size_t)stage->n_rows * (size_t)stage->config.text.hidden, stage->x[0]);
    backend->ops->upload(backend, stage->positions[0], positions, (size_t)stage->n_rows * sizeof *positions);
    return LVP_OK;
}

static void run_blocks(struct lvp_stage *stage, const struct lvp_step *step)
{
    if (stage->range.merge) merge_rows(stage);
    int depth = stage->depth_in;
    for (int layer = stage->range.dec_first; layer < stage->range.dec_end; layer++) {
        lvp_decoder_run_layer(stage->decoder, layer, step->n_seqs, lvp_layout_depth(stage->layout, depth), stage->cache,
                              stage->positions[stage->current], stage->x[stage->current]);
        if (depth < stage->prune.n_points && stage->prune.after[depth] == layer + 1) {
            double start = lvp_now();
            prune_rows(stage, step, depth++, layer);
            stage->select_seconds += lvp_now() - start;
        }
    }
    if (stage->range.head) run_head(stage, step->n_seqs);
}

enum lvp_status lvp_stage_step(struct lvp_stage *stage, const struct lvp_step *step, const void *x,
                               const int32_t *positions, int n_rows, struct lvp_step_output *output)
{
    struct lvp_backend *backend = stage->backend;
    const struct lvp_head *head = &stage->head;
    size_t n_seqs = (size_t)step->n_seqs;
    LVP_TRY(take_in(stage, step, x, positions, n_rows));
    uint64_t key = lvp_layout_key(stage->layout);
    if (key == 0) {
        run_blocks(stage, step);
    } else if (backend->ops->begin(backend, key)) {
        run_blocks(stage, step);
        backend->ops->end(backend);
    }
    if (stage->range.head) {
        backend->ops->download(backend, output->tokens, head->tokens, n_seqs * sizeof *output->tokens);
        backend->ops->download(backend, output->logprobs, head->logprobs, n_seqs * sizeof *output->logprobs);
    } else {
        size_t n = (size_t)stage->n_rows * (size_t)stage->config.text.hidden;
        backend->ops->store(backend, stage->x[stage->current], n, output->x);
        backend->ops->download(backend, output->positions, stage->positions[stage->current],
                               (size_t)stage->n_rows * sizeof *output->positions);
    }
    output->n_rows = stage->n_rows;
    output->n_vision_rows = lvp_layout_depth(stage->layout, stage->depth_out)->n_vision;
    return backend->ops->sync(backend);
}

double lvp_stage_select_seconds(const struct lvp_stage *stage)
{
    return stage->select_seconds;
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
