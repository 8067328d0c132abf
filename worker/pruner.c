#include "worker/pruner.h"

#include "common/mix.h"
#include "worker/decision.h"
#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>

struct lvp_pruner {
    struct lvp_backend *backend;
    enum lvp_pruner_kind kind;
    struct lvp_qkv_shape shape;
    int grid;                      // tokens along a side of an image; 0 where they form no square
    float *gate;                   // [max_rows, 2]
    struct lvp_decision *decision; // lvpruning
    float *host_gate;              // random: [max_rows, 2]
    float *prior;                  // adaptprune: [grid * grid]
};

// A Gaussian around the image's centre with its peak at 1: sigma is half the grid, places are spread evenly over
// [-sigma, sigma].
static enum lvp_status create_prior(struct lvp_pruner *p)
{
    size_t n = (size_t)p->grid * (size_t)p->grid;
    double sigma = p->grid / 2.0, step = p->grid > 1 ? 2.0 * sigma / (p->grid - 1) : 0.0, peak = 0.0;
    float *host = malloc(n * sizeof *host);
    if (host == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruner");
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < n; i++) {
            double x = -sigma + step * (double)(i % (size_t)p->grid), y = -sigma + step * (double)(i / (size_t)p->grid);
            double value = exp(-(x * x + y * y) / (2.0 * sigma * sigma));
            if (pass == 0 && value > peak) peak = value;
            if (pass == 1) host[i] = (float)(value / peak);
        }
    }
    enum lvp_status status = lvp_floats_create(p->backend, n, &p->prior);
    if (status == LVP_OK) p->backend->ops->upload(p->backend, p->prior, host, n * sizeof *host);
    free(host);
    return status;
}

enum lvp_status lvp_pruner_create(struct lvp_backend *backend, enum lvp_pruner_kind kind,
                                  const struct lvp_pruner_weights *weights, const struct lvp_model_config *config,
                                  int first_point, int end_point, int max_rows, struct lvp_pruner **result)
{
    enum lvp_status status = LVP_OK;
    const struct lvp_text_config *text = &config->text;
    LVP_TRY(lvp_pruner_check(kind, config));
    struct lvp_pruner *p = calloc(1, sizeof *p);
    if (p == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruner");
    *p = (struct lvp_pruner){.backend = backend,
                             .kind = kind,
                             .shape = {text->heads, text->kv_heads, text->head_dim},
                             .grid = lvp_token_grid(lvp_vision_tokens(config))};
    LVP_CHECK(lvp_floats_create(backend, 2 * (size_t)max_rows, &p->gate));
    if (lvp_pruners[kind].needs_weights)
        LVP_CHECK(lvp_decision_create(backend, weights, text->hidden, first_point, end_point, max_rows, &p->decision));
    if (kind == LVP_PRUNER_ADAPTPRUNE) LVP_CHECK(create_prior(p));
    if (kind == LVP_PRUNER_RANDOM) {
        p->host_gate = calloc(2 * (size_t)max_rows, sizeof *p->host_gate);
        if (p->host_gate == NULL) {
            status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruner");
            goto fail;
        }
    }
    *result = p;
    return LVP_OK;
fail:
    lvp_pruner_destroy(p);
    return status;
}

void lvp_pruner_destroy(struct lvp_pruner *p)
{
    if (p == NULL) return;
    lvp_decision_destroy(p->decision);
    p->backend->ops->free(p->backend, p->gate);
    p->backend->ops->free(p->backend, p->prior);
    free(p->host_gate);
    free(p);
}

static void score_modules(struct lvp_pruner *p, int point, const struct lvp_prune_view *view)
{
    lvp_decision_score(p->decision, point, view->layout, view->x, p->gate);
}

static void score_random(struct lvp_pruner *p, int point, const struct lvp_prune_view *view)
{
    const struct lvp_step *step = view->step;
    const int32_t *image_len = view->layout->host_image_len;
    size_t row = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        int n = 0;
        for (int i = 0; i < seq->n_images; i++) n += *image_len++;
        for (int place = 0; place < n; place++, row++) {
            uint64_t word = lvp_mix(seq->random_key ^ lvp_mix(((uint64_t)point << 32) | (uint64_t)place));
            p->host_gate[2 * row] = (float)(word >> 40) * 0x1p-24f;
        }
    }
    p->backend->ops->upload(p->backend, p->gate, p->host_gate, 2 * row * sizeof *p->gate);
}

static void score_attention(struct lvp_pruner *p, int point, const struct lvp_prune_view *view)
{
    (void)point;
    const struct lvp_depth_layout *layout = view->layout;
    struct lvp_last_attention attention = {
        .n_images = layout->n_images,
        .image_row = layout->image_row,
        .image_len = layout->image_len,
        .gate_start = layout->gate_start,
        .image_seq = layout->image_seq,
        .row_start = layout->row_start,
        .block_table = layout->block_table,
        .max_pages = view->max_pages,
        .shape = p->shape,
        .cache = view->cache,
        .qkv = view->qkv,
        .gate = p->gate,
    };
    p->backend->ops->last_attention(p->backend, &attention);
}

static void spread_choice(struct lvp_pruner *p, const struct lvp_prune_view *view)
{
    const struct lvp_depth_layout *layout = view->layout;
    int head_dim = p->shape.head_dim;
    struct lvp_soft_nms nms = {
        .n_images = layout->n_images,
        .image_row = layout->image_row,
        .image_len = layout->image_len,
        .gate_start = layout->gate_start,
        .keep = layout->image_keep,
        .positions = view->positions,
        .image_position = layout->image_position,
        .grid = p->grid,
        .prior = p->prior,
        .keys = view->qkv + p->shape.heads * head_dim,
        .key_width = p->shape.kv_heads * head_dim,
        .key_stride = (p->shape.heads + 2 * p->shape.kv_heads) * head_dim,
        .gate = p->gate,
    };
    p->backend->ops->soft_nms(p->backend, &nms);
}

static void score_adaptprune(struct lvp_pruner *p, int point, const struct lvp_prune_view *view)
{
    score_attention(p, point, view);
    spread_choice(p, view);
}

static void (*const scorers[LVP_PRUNER_COUNT])(struct lvp_pruner *, int point, const struct lvp_prune_view *) = {
    [LVP_PRUNER_LVPRUNING] = score_modules,
    [LVP_PRUNER_RANDOM] = score_random,
    [LVP_PRUNER_LAST_ATTENTION] = score_attention,
    [LVP_PRUNER_ADAPTPRUNE] = score_adaptprune,
}; // none has no prune point

const float *lvp_pruner_score(struct lvp_pruner *p, int point, const struct lvp_prune_view *view)
{
    scorers[p->kind](p, point, view);
    return p->gate;
}
