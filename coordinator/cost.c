#include "coordinator/cost.h"

#include <string.h>

// Multiply-adds per row and parameters of the linear layers of a block.

static double vit_layer_macs(const struct lvp_vision_config *v)
{
    return 4.0 * v->hidden * v->hidden + 2.0 * v->hidden * v->mlp;
}

static double decoder_macs(const struct lvp_text_config *t)
{
    double c = t->hidden, q = (double)t->heads * t->head_dim, kv = (double)t->kv_heads * t->head_dim;
    return c * q + 2 * c * kv + q * c + 3 * c * t->mlp;
}

// QK^T and PV of one query and one key.
static double attention_macs(const struct lvp_text_config *t)
{
    return 2.0 * t->heads * t->head_dim;
}

static double projector_macs(const struct lvp_model_config *config)
{
    double c = config->text.hidden;
    return lvp_feature_width(config) * c + c * c;
}

static double patch_macs(const struct lvp_vision_config *v)
{
    return 3.0 * v->patch_size * v->patch_size * v->hidden;
}

// Linear layers of one decision module (two blocks and the gate) on n_vision rows and n_text rows.
static double module_macs(const struct lvp_workload *w, double n_vision, double n_text)
{
    double c = w->config->text.hidden, d = w->pruner_width;
    double per_block = n_vision * (d * d + 4 * d * d) + n_text * 2 * c * d; // o_proj, FFN; k and v of the text rows
    return n_vision * (c * d + d * d) + 2 * per_block + n_vision * 2 * d;   // q_proj of both blocks, gate
}

static double module_attention_macs(const struct lvp_workload *w, double n_vision, double n_text)
{
    return 2 * 2 * n_vision * n_text * w->pruner_width; // two blocks, QK^T and PV
}

static int64_t module_params(const struct lvp_workload *w)
{
    int64_t c = w->config->text.hidden, d = w->pruner_width;
    int64_t shared = 2 * c * d + d * d + 4 * d * d + 4 * d + 3 * d; // k, v, o, FFN, norms, FFN biases
    return (c * d + shared) + (d * d + shared) + 2 * d;
}

static int64_t vit_layer_params(const struct lvp_vision_config *v)
{
    int64_t h = v->hidden, m = v->mlp;
    return 4 * h * h + 4 * h + 2 * h * m + m + h + 4 * h;
}

static int64_t decoder_params(const struct lvp_text_config *t)
{
    int64_t c = t->hidden, q = (int64_t)t->heads * t->head_dim, kv = (int64_t)t->kv_heads * t->head_dim, m = t->mlp;
    int64_t params = 2 * c * q + 2 * c * kv + 3 * c * m + 2 * c;
    if (t->attention_bias) params += q + 2 * kv + c;
    if (t->mlp_bias) params += 2 * m + c;
    return params;
}

// Bytes of a value of a linear layer. Norms, biases and scales are too few to count.
static int64_t weight_size(const struct lvp_workload *w)
{
    return (int64_t)lvp_dtype_size(w->weights);
}

static int rows_at(const struct lvp_workload *w, int layer)
{
    return w->text_tokens + lvp_vision_rows_at(&w->prune, layer, lvp_vision_tokens(w->config));
}

int lvp_point_after(const struct lvp_prune_plan *plan, int layer)
{
    for (int s = 0; s < plan->n_points; s++)
        if (plan->after[s] == layer + 1) return s;
    return -1;
}

double lvp_layer_linear_flops(const struct lvp_text_config *t, double rows)
{
    return 2 * rows * decoder_macs(t);
}

double lvp_layer_attention_flops(const struct lvp_text_config *t, double rows)
{
    return 2 * rows * (rows + 1) / 2 * attention_macs(t);
}

double lvp_layer_kv_slot_bytes(const struct lvp_text_config *t, enum lvp_dtype dtype)
{
    return 2.0 * t->kv_heads * t->head_dim * (double)lvp_dtype_size(dtype);
}

double lvp_module_flops(const struct lvp_workload *w, double n_vision, double n_text)
{
    return 2 * (module_macs(w, n_vision, n_text) + module_attention_macs(w, n_vision, n_text));
}

enum lvp_status lvp_workload_check(const struct lvp_workload *w)
{
    int positions = w->text_tokens + lvp_vision_tokens(w->config) + w->new_tokens;
    if (positions <= w->config->text.max_positions) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "prompt and answer take %d positions, the model has %d", positions,
                    w->config->text.max_positions);
}

static struct lvp_hop_bytes hop(const struct lvp_workload *w, int64_t rows, int64_t width, int64_t row_bytes)
{
    return (struct lvp_hop_bytes){.payload = rows * width * (int64_t)lvp_dtype_size(w->dtype),
                                  .framing = LVP_HOP_HEADER_BYTES + rows * row_bytes};
}

static void set_vision_out(const struct lvp_workload *w, int64_t rows, int64_t width, struct lvp_block_cost *cost)
{
    cost->rows_out = rows;
    cost->prefill_out = hop(w, rows, width, 0);
}

static void set_language_out(const struct lvp_workload *w, int next_layer, struct lvp_block_cost *cost)
{
    int64_t width = w->config->text.hidden;
    cost->rows_out = rows_at(w, next_layer);
    cost->prefill_out = hop(w, cost->rows_out, width, LVP_HOP_ROW_BYTES);
    if (lvp_decode_steps(w) > 0) cost->decode_out = hop(w, 1, width, LVP_HOP_ROW_BYTES);
}

static struct lvp_block_cost decoder_cost(const struct lvp_workload *w, int layer)
{
    const struct lvp_text_config *t = &w->config->text;
    double rows = rows_at(w, layer), steps = lvp_decode_steps(w), pair = attention_macs(t);
    int64_t size = (int64_t)lvp_dtype_size(w->dtype);
    struct lvp_block_cost cost = {0};
    cost.prefill_flops = lvp_layer_linear_flops(t, rows) + lvp_layer_attention_flops(t, rows);
    // Decode step i (from 1) sees rows + i slots.
    cost.decode_flops = 2 * (steps * decoder_macs(t) + (steps * rows + steps * (steps + 1) / 2) * pair);
    cost.weight_bytes = cost.decode_weight_bytes = decoder_params(t) * weight_size(w);
    int64_t slots = (int64_t)rows_at(w, layer) + w->new_tokens;
    slots = (slots + LVP_COST_KV_PAGE - 1) / LVP_COST_KV_PAGE * LVP_COST_KV_PAGE;
    cost.kv_bytes = slots * 2 * t->kv_heads * t->head_dim * size;
    if (lvp_point_after(&w->prune, layer) >= 0 && w->pruner_width > 0) {
        cost.prefill_flops += lvp_module_flops(w, rows - w->text_tokens, w->text_tokens);
        cost.weight_bytes += module_params(w) * size;
    }
    set_language_out(w, layer + 1, &cost);
    return cost;
}

static struct lvp_block_cost vision_cost(const struct lvp_workload *w, struct lvp_block block)
{
    const struct lvp_vision_config *v = &w->config->vision;
    int64_t patches = lvp_patch_count(w->config), size = weight_size(w);
    double rows = (double)patches + 1; // the class token takes part up to `project`
    struct lvp_block_cost cost = {0};
    if (block.kind == LVP_BLOCK_PATCH_EMBED) {
        cost.prefill_flops = 2 * (double)patches * patch_macs(v);
        cost.weight_bytes = ((int64_t)3 * v->patch_size * v->patch_size + 1 + (patches + 1) + 2) * v->hidden * size;
    } else {
        cost.prefill_flops = 2 * (rows * vit_layer_macs(v) + 2 * rows * rows * v->hidden);
        cost.weight_bytes = vit_layer_params(v) * size;
    }
    set_vision_out(w, patches + 1, v->hidden, &cost);
    return cost;
}

struct lvp_block_cost lvp_block_cost(const struct lvp_workload *w, int index)
{
    const struct lvp_model_config *config = w->config;
    int64_t vocab = config->text.vocab, c = config->text.hidden, size = (int64_t)lvp_dtype_size(w->dtype);
    struct lvp_block block = lvp_block_at(config, index);
    struct lvp_block_cost cost = {0};
    switch (block.kind) {
    case LVP_BLOCK_PATCH_EMBED:
    case LVP_BLOCK_VIT:
        return vision_cost(w, block);
    case LVP_BLOCK_PROJECT:
        cost.prefill_flops = 2 * lvp_vision_tokens(config) * projector_macs(config);
        cost.weight_bytes =
            (lvp_feature_width(config) * c + c * c + (config->projector_bias ? 2 * c : 0)) * weight_size(w);
        set_vision_out(w, lvp_vision_tokens(config), c, &cost);
        return cost;
    case LVP_BLOCK_MERGE:
        cost.weight_bytes = vocab * c * size;
        set_language_out(w, 0, &cost);
        return cost;
    case LVP_BLOCK_DEC:
        return decoder_cost(w, block.layer);
    case LVP_BLOCK_HEAD:
        cost.weight_bytes = cost.decode_weight_bytes = (vocab * c + c) * weight_size(w);
        cost.prefill_flops = w->new_tokens > 0 ? 2.0 * (double)vocab * (double)c : 0;
        cost.decode_flops = 2.0 * lvp_decode_steps(w) * (double)vocab * (double)c;
        return cost;
    }
    return cost;
}

struct lvp_block_cost lvp_range_cost(const struct lvp_workload *workload, int first, int end)
{
    struct lvp_block_cost sum = {0};
    for (int b = first; b < end; b++) {
        struct lvp_block_cost cost = lvp_block_cost(workload, b);
        sum.prefill_flops += cost.prefill_flops;
        sum.decode_flops += cost.decode_flops;
        sum.weight_bytes += cost.weight_bytes;
        sum.decode_weight_bytes += cost.decode_weight_bytes;
        sum.kv_bytes += cost.kv_bytes;
        sum.rows_out = cost.rows_out;
        sum.prefill_out = cost.prefill_out;
        sum.decode_out = cost.decode_out;
    }
    return sum;
}

double lvp_paper_flops(const struct lvp_workload *w)
{
    const struct lvp_model_config *config = w->config;
    const struct lvp_text_config *t = &config->text;
    double patches = lvp_patch_count(config), n_vision = lvp_vision_tokens(config);
    double macs = patches * patch_macs(&config->vision) +
                  config->vision.layers * (patches + 1) * vit_layer_macs(&config->vision) +
                  n_vision * projector_macs(config);
    for (int layer = 0; layer < t->layers; layer++) {
        macs += rows_at(w, layer) * decoder_macs(t);
        if (lvp_point_after(&w->prune, layer) >= 0 && w->pruner_width > 0)
            macs += module_macs(w, rows_at(w, layer) - w->text_tokens, w->text_tokens);
    }
    return 2 * (macs + rows_at(w, t->layers) * (double)t->vocab * t->hidden);
}

struct lvp_workload lvp_dense_workload(const struct lvp_workload *workload)
{
    struct lvp_workload dense = *workload;
    memset(&dense.prune, 0, sizeof dense.prune);
    return dense;
}

int64_t lvp_prompt_kv_bytes(const struct lvp_workload *w)
{
    const struct lvp_text_config *t = &w->config->text;
    int64_t rows = 0;
    for (int layer = 0; layer < t->layers; layer++) rows += rows_at(w, layer);
    return rows * 2 * t->kv_heads * t->head_dim * (int64_t)lvp_dtype_size(w->dtype);
}
