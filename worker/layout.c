#include "worker/layout.h"

#include "common/mix.h"
#include "worker/weights.h"

#include <stdlib.h>

struct lvp_layout {
    struct lvp_backend *backend;
    struct lvp_prune_counts prune;
    int first_depth, last_depth;
    bool merge;
    int max_rows, max_seqs, max_pages;
    // One host array for everything and its copy on the device; arrays are carved from it in order.
    int32_t *host, *device;
    size_t capacity, used;
    struct lvp_depth_layout depths[LVP_MAX_DEPTHS];
    int32_t *image_rows[LVP_MAX_DEPTHS]; // host: [n_images] rows of each image of the step at a depth
    struct lvp_merge_layout merging;
    const int32_t *last_rows;
    uint64_t key;
};

enum lvp_status lvp_layout_create(struct lvp_backend *backend, const struct lvp_prune_counts *prune, int first_depth,
                                  int last_depth, bool merge, int max_rows, int max_seqs, int max_pages,
                                  struct lvp_layout **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_layout *layout = calloc(1, sizeof *layout);
    if (layout == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the step layout");
    *layout = (struct lvp_layout){.backend = backend,
                                  .prune = *prune,
                                  .first_depth = first_depth,
                                  .last_depth = last_depth,
                                  .merge = merge,
                                  .max_rows = max_rows,
                                  .max_seqs = max_seqs,
                                  .max_pages = max_pages};
    size_t rows = (size_t)max_rows, seqs = (size_t)max_seqs + 1;
    // per depth: slots, text_row, vision_row, five arrays of images (an image has a row at least at depth 0), and the
    // per-sequence arrays; then the merge's five arrays of rows
    size_t per_depth = 8 * rows + 1 + seqs * (5 + (size_t)max_pages);
    layout->capacity = per_depth * (size_t)(last_depth - first_depth + 1) + 5 * rows + 2 * seqs;
    layout->host = malloc(layout->capacity * sizeof *layout->host);
    if (layout->host == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the step layout");
        goto fail;
    }
    LVP_CHECK(lvp_ints_create(backend, layout->capacity, &layout->device));
    *result = layout;
    return LVP_OK;
fail:
    lvp_layout_destroy(layout);
    return status;
}

void lvp_layout_destroy(struct lvp_layout *layout)
{
    if (layout == NULL) return;
    layout->backend->ops->free(layout->backend, layout->device);
    free(layout->host);
    free(layout);
}

// Host array of n ints; its device twin is at the same offset.
static int32_t *carve(struct lvp_layout *layout, size_t n)
{
    int32_t *array = layout->host + layout->used;
    layout->used += n;
    return array;
}

static const int32_t *on_device(const struct lvp_layout *layout, const int32_t *host)
{
    return layout->device + (host - layout->host);
}

static enum lvp_status check_step(const struct lvp_layout *layout, const struct lvp_step *step,
                                  const struct lvp_model_config *config, int image_slots)
{
    if (step->n_seqs < 1 || step->n_seqs > layout->max_seqs)
        return lvp_fail(LVP_ERR_FORMAT, "step %llu has %d sequences, the stage holds %d",
                        (unsigned long long)step->number, step->n_seqs, layout->max_seqs);
    int64_t n_rows = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        int n_images = 0;
        if (seq->n_ids < 1 || seq->n_ids > layout->max_rows ||
            (!seq->prefill && (seq->n_ids != 1 || seq->n_images != 0)))
            return lvp_fail(LVP_ERR_FORMAT, "step %llu: sequence %d has %d ids", (unsigned long long)step->number, s,
                            seq->n_ids);
        for (int i = 0; i < seq->n_ids; i++) {
            bool image = seq->prefill && seq->ids[i] == config->image_token_id;
            if (image)
                n_images++;
            else if (seq->ids[i] < 0 || seq->ids[i] >= config->text.vocab)
                return lvp_fail(LVP_ERR_FORMAT, "token id %d is outside the model's vocabulary of %d", seq->ids[i],
                                config->text.vocab);
        }
        if (n_images != seq->n_images)
            return lvp_fail(LVP_ERR_FORMAT, "a prompt holds %d image tokens, %d were announced", n_images,
                            seq->n_images);
        for (int i = 0; i < n_images; i++)
            if (seq->image_slots[i] < 0 || seq->image_slots[i] >= image_slots)
                return lvp_fail(LVP_ERR_FORMAT, "image slot %d is out of range", seq->image_slots[i]);
        if (!seq->prefill && (seq->position < 0 || seq->position >= config->text.max_positions))
            return lvp_fail(LVP_ERR_FORMAT, "position %d is outside the context", seq->position);
        if (seq->prefill && n_images == seq->n_ids) // it might be left without a row
            return lvp_fail(LVP_ERR_FORMAT, "step %llu: sequence %d has no text", (unsigned long long)step->number, s);
        n_rows += lvp_seq_rows(&layout->prune, seq, 0);
        if (seq->prefill && lvp_seq_rows(&layout->prune, seq, 0) > config->text.max_positions)
            return lvp_fail(LVP_ERR_FORMAT, "a prompt of %d rows is over the context",
                            lvp_seq_rows(&layout->prune, seq, 0));
    }
    if (n_rows > layout->max_rows)
        return lvp_fail(LVP_ERR_FORMAT, "step %llu has %lld rows, the stage holds %d", (unsigned long long)step->number,
                        (long long)n_rows, layout->max_rows);
    return LVP_OK;
}

static size_t count_images(const struct lvp_step *step)
{
    size_t n = 0;
    for (int s = 0; s < step->n_seqs; s++) n += (size_t)step->seqs[s].n_images;
    return n;
}

// Positions come from another rank, and how many rows an image has and their places on its grid follow from them. A
// text row has the one that it can have; what is left of an image lies inside it, in order.
static enum lvp_status read_positions(const struct lvp_layout *layout, const struct lvp_step *step, int image_token_id,
                                      const int32_t *positions, int n_rows, int32_t *image_rows)
{
    const struct lvp_prune_counts *prune = &layout->prune;
    int row = 0, n_images = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        int32_t first = seq->prefill ? 0 : seq->position;
        for (int i = 0; i < seq->n_ids; i++) {
            bool image = seq->prefill && seq->ids[i] == image_token_id;
            int n = 0, most = image ? prune->rows[layout->first_depth] : 1;
            int32_t least = first, end = first + (image ? prune->rows[0] : 1);
            for (; n < most && row < n_rows && positions[row] >= least && positions[row] < end; n++)
                least = positions[row++] + 1;
            if (image) image_rows[n_images++] = n;
            first = end;
            if (n == most || (image && prune->vary && layout->first_depth > 0)) continue;
            if (row == n_rows)
                return lvp_fail(LVP_ERR_FORMAT, "step %llu arrived with %d rows, more belong to it",
                                (unsigned long long)step->number, n_rows);
            return lvp_fail(LVP_ERR_FORMAT, "row %d of step %llu arrived with position %d, not within %d..%d", row,
                            (unsigned long long)step->number, positions[row], least, end - 1);
        }
    }
    if (row == n_rows) return LVP_OK;
    return lvp_fail(LVP_ERR_FORMAT, "row %d of step %llu arrived with position %d, where the step ends", row,
                    (unsigned long long)step->number, positions[row]);
}

// Rows of every image at the depths of this stage.
static enum lvp_status count_image_rows(struct lvp_layout *layout, const struct lvp_step *step, int image_token_id,
                                        const int32_t *positions, int n_rows)
{
    size_t n_images = count_images(step);
    for (int d = layout->first_depth; d <= layout->last_depth; d++) {
        int32_t *rows = carve(layout, n_images), most = layout->prune.rows[d];
        const int32_t *before = d > layout->first_depth ? layout->image_rows[d - 1] : NULL;
        for (size_t i = 0; i < n_images; i++) rows[i] = before != NULL && before[i] < most ? before[i] : most;
        layout->image_rows[d] = rows;
        if (before == NULL && positions != NULL)
            LVP_TRY(read_positions(layout, step, image_token_id, positions, n_rows, rows));
    }
    return LVP_OK;
}

// Rows of a sequence at a depth; its first image is the step's `image`th.
static int count_rows(const struct lvp_layout *layout, const struct lvp_step_seq *seq, size_t image, int depth)
{
    if (!seq->prefill) return 1;
    int n = seq->n_ids - seq->n_images;
    for (int i = 0; i < seq->n_images; i++) n += layout->image_rows[depth][image + (size_t)i];
    return n;
}

static int count_step_rows(const struct lvp_layout *layout, const struct lvp_step *step, int depth)
{
    int n = 0;
    size_t image = 0;
    for (int s = 0; s < step->n_seqs; image += (size_t)step->seqs[s++].n_images)
        n += count_rows(layout, &step->seqs[s], image, depth);
    return n;
}

// The rows of one image-bearing prefill at `depth`: text rows, vision rows and image ranges, as row indices of the
// step.
struct segment_cursor {
    int row, n_text, n_vision, n_images;
    int32_t *text_row, *vision_row, *image_row, *gate_start, *image_seq, *image_position;
};

static void walk_segment(const struct lvp_layout *layout, const struct lvp_step *step, int s, int image_token_id,
                         int depth, struct segment_cursor *at)
{
    const struct lvp_step_seq *seq = &step->seqs[s];
    int position = 0;
    for (int i = 0; i < seq->n_ids; i++) {
        if (seq->ids[i] != image_token_id) {
            at->text_row[at->n_text++] = at->row++;
            position++;
            continue;
        }
        at->image_seq[at->n_images] = s;
        at->image_position[at->n_images] = position;
        position += layout->prune.rows[0];
        at->image_row[at->n_images] = at->row;
        at->gate_start[at->n_images] = at->n_vision;
        int n = layout->image_rows[depth][at->n_images++];
        for (int v = 0; v < n; v++) at->vision_row[at->n_vision++] = at->row++;
    }
}

static void build_segments(struct lvp_layout *layout, const struct lvp_step *step, int image_token_id, int depth,
                           struct lvp_depth_layout *out)
{
    size_t n_rows = (size_t)out->n_rows, n_seqs = (size_t)step->n_seqs, n_images = count_images(step);
    const int32_t *len = layout->image_rows[depth];
    const int32_t *keep = layout->image_rows[depth < layout->last_depth ? depth + 1 : depth];
    int32_t *text_start = carve(layout, n_seqs + 1), *vision_start = carve(layout, n_seqs + 1);
    struct segment_cursor at = {.text_row = carve(layout, n_rows),
                                .vision_row = carve(layout, n_rows),
                                .image_row = carve(layout, n_images),
                                .gate_start = carve(layout, n_images + 1),
                                .image_seq = carve(layout, n_images),
                                .image_position = carve(layout, n_images)};
    int n_segments = 0;
    text_start[0] = vision_start[0] = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        if (seq->n_images == 0) {
            at.row += count_rows(layout, seq, (size_t)at.n_images, depth);
            continue;
        }
        walk_segment(layout, step, s, image_token_id, depth, &at);
        n_segments++;
        text_start[n_segments] = at.n_text;
        vision_start[n_segments] = at.n_vision;
    }
    at.gate_start[at.n_images] = at.n_vision;
    out->n_segments = n_segments;
    out->n_text = at.n_text;
    out->n_vision = at.n_vision;
    out->n_images = at.n_images;
    out->text_row = on_device(layout, at.text_row);
    out->text_start = on_device(layout, text_start);
    out->vision_row = on_device(layout, at.vision_row);
    out->vision_start = on_device(layout, vision_start);
    out->image_row = on_device(layout, at.image_row);
    out->image_len = on_device(layout, len);
    out->image_keep = on_device(layout, keep);
    out->host_image_len = len;
    out->gate_start = on_device(layout, at.gate_start);
    out->image_seq = on_device(layout, at.image_seq);
    out->image_position = on_device(layout, at.image_position);
}

static enum lvp_status build_depth(struct lvp_layout *layout, const struct lvp_step *step, int image_token_id,
                                   int depth, struct lvp_kv_cache *cache)
{
    struct lvp_depth_layout *out = &layout->depths[depth];
    size_t n_seqs = (size_t)step->n_seqs;
    size_t image = 0;
    *out = (struct lvp_depth_layout){.n_rows = count_step_rows(layout, step, depth)};
    int32_t *row_start = carve(layout, n_seqs + 1), *slots = carve(layout, (size_t)out->n_rows);
    int32_t *kv_len = carve(layout, n_seqs), *table = carve(layout, n_seqs * (size_t)layout->max_pages);
    row_start[0] = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        int n = count_rows(layout, &step->seqs[s], image, depth);
        image += (size_t)step->seqs[s].n_images;
        row_start[s + 1] = row_start[s] + n;
        if (n > out->max_rows) out->max_rows = n;
        if (cache == NULL || !lvp_kv_cache_has(cache, depth)) continue; // the next stage's layers
        int slot = step->seqs[s].slot;
        LVP_TRY(lvp_kv_cache_append(cache, slot, depth, n, slots + row_start[s]));
        kv_len[s] = lvp_kv_cache_length(cache, slot, depth);
        if (kv_len[s] > out->max_kv_len) out->max_kv_len = kv_len[s];
        memcpy(table + s * layout->max_pages, lvp_kv_cache_pages(cache, slot, depth),
               (size_t)layout->max_pages * sizeof *table);
    }
    out->row_start = on_device(layout, row_start);
    out->slots = on_device(layout, slots);
    out->kv_len = on_device(layout, kv_len);
    out->block_table = on_device(layout, table);
    build_segments(layout, step, image_token_id, depth, out);
    if (depth == layout->last_depth) {
        int32_t *last = carve(layout, n_seqs);
        for (int s = 0; s < step->n_seqs; s++) last[s] = row_start[s + 1] - 1;
        layout->last_rows = on_device(layout, last);
    }
    return LVP_OK;
}

static void build_merge(struct lvp_layout *layout, const struct lvp_step *step, int image_token_id)
{
    struct lvp_merge_layout *out = &layout->merging;
    int tokens = layout->prune.rows[0];
    size_t n_rows = (size_t)lvp_step_rows(&layout->prune, step, 0);
    int32_t *text_id = carve(layout, n_rows), *text_to = carve(layout, n_rows), *from = carve(layout, n_rows);
    int32_t *vision_to = carve(layout, n_rows), *positions = carve(layout, n_rows);
    int row = 0, n_text = 0, n_vision = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        int first = row, image = 0, base = seq->prefill ? 0 : seq->position;
        for (int i = 0; i < seq->n_ids; i++) {
            if (seq->prefill && seq->ids[i] == image_token_id) {
                int slot = seq->image_slots[image++];
                for (int v = 0; v < tokens; v++) {
                    from[n_vision] = slot * tokens + v;
                    vision_to[n_vision++] = row;
                    positions[row] = base + row - first;
                    row++;
                }
                continue;
            }
            text_id[n_text] = seq->ids[i];
            text_to[n_text++] = row;
            positions[row] = base + row - first;
            row++;
        }
    }
    *out = (struct lvp_merge_layout){.n_text = n_text,
                                     .n_vision = n_vision,
                                     .text_id = on_device(layout, text_id),
                                     .text_to = on_device(layout, text_to),
                                     .parked_from = on_device(layout, from),
                                     .vision_to = on_device(layout, vision_to),
                                     .positions = on_device(layout, positions)};
}

// A step of decode rows only looks the same as every other with as many rows whose caches reach into the same stretch.
static void set_key(struct lvp_layout *layout, const struct lvp_step *step)
{
    enum { STRETCH = 256 }; // slots
    layout->key = 0;
    for (int s = 0; s < step->n_seqs; s++)
        if (step->seqs[s].prefill) return;
    uint64_t key = (uint64_t)step->n_seqs;
    for (int d = layout->first_depth; d <= layout->last_depth; d++) {
        struct lvp_depth_layout *depth = &layout->depths[d];
        depth->max_kv_len = (depth->max_kv_len + STRETCH - 1) / STRETCH * STRETCH;
        key = lvp_mix(key ^ (uint64_t)depth->max_kv_len);
    }
    layout->key = key | 1;
}

uint64_t lvp_layout_key(const struct lvp_layout *layout)
{
    return layout->key;
}

enum lvp_status lvp_layout_build(struct lvp_layout *layout, const struct lvp_step *step,
                                 const struct lvp_model_config *config, int image_slots, const int32_t *positions,
                                 int n_rows, struct lvp_kv_cache *cache)
{
    LVP_TRY(check_step(layout, step, config, image_slots));
    layout->used = 0;
    LVP_TRY(count_image_rows(layout, step, config->image_token_id, positions, n_rows));
    for (int s = 0; cache != NULL && s < step->n_seqs; s++)
        if (step->seqs[s].prefill) LVP_TRY(lvp_kv_cache_reserve(cache, &step->seqs[s]));
    for (int d = layout->first_depth; d <= layout->last_depth; d++)
        LVP_TRY(build_depth(layout, step, config->image_token_id, d, cache));
    if (layout->merge) build_merge(layout, step, config->image_token_id);
    set_key(layout, step);
    layout->backend->ops->upload(layout->backend, layout->device, layout->host, layout->used * sizeof *layout->host);
    return LVP_OK;
}

const struct lvp_depth_layout *lvp_layout_depth(const struct lvp_layout *layout, int depth)
{
    return &layout->depths[depth];
}

const struct lvp_merge_layout *lvp_layout_merge(const struct lvp_layout *layout)
{
    return &layout->merging;
}

const int32_t *lvp_layout_last_rows(const struct lvp_layout *layout)
{
    return layout->last_rows;
}
