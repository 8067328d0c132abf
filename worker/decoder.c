#include "worker/decoder.h"

#include "common/record.h"
#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>

// The feed-forward block runs this many rows at a time, so that its wide buffers stay small for long prompts. Rows do
// not influence each other, so the split changes no bit.
enum { MLP_ROWS = 1024 };

struct layer {
    float *norm1, *norm2;
    struct lvp_linear *qkv, *out, *gate_up, *down;
};

struct lvp_decoder {
    struct lvp_backend *backend;
    struct lvp_text_config config;
    int first, end;
    struct layer *layers; // [end - first]
    float *rope;          // [max_positions, head_dim]: cosines, then sines
    // work space
    float *hidden;        // [max_rows, C]
    float *qkv;           // [max_rows, (heads + 2 kv_heads) head_dim]
    float *attended;      // [max_rows, heads head_dim]
    float *gate_up, *mlp; // [MLP_ROWS, 2 mlp], [MLP_ROWS, mlp]
};

static enum lvp_status load_layer(struct lvp_backend *backend, const struct lvp_checkpoint *ckpt, int i,
                                  struct layer *layer)
{
    struct lvp_linear_part qkv[3] = {
        {lvp_checkpoint_weight(ckpt, LVP_W_Q, i), lvp_checkpoint_weight(ckpt, LVP_W_Q_B, i)},
        {lvp_checkpoint_weight(ckpt, LVP_W_K, i), lvp_checkpoint_weight(ckpt, LVP_W_K_B, i)},
        {lvp_checkpoint_weight(ckpt, LVP_W_V, i), lvp_checkpoint_weight(ckpt, LVP_W_V_B, i)},
    };
    struct lvp_linear_part gate_up[2] = {
        {lvp_checkpoint_weight(ckpt, LVP_W_GATE, i), lvp_checkpoint_weight(ckpt, LVP_W_GATE_B, i)},
        {lvp_checkpoint_weight(ckpt, LVP_W_UP, i), lvp_checkpoint_weight(ckpt, LVP_W_UP_B, i)},
    };
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_NORM1, i), &layer->norm1));
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_NORM2, i), &layer->norm2));
    LVP_TRY(backend->ops->linear_create(backend, qkv, 3, backend->weights, &layer->qkv));
    LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_O, i), lvp_checkpoint_weight(ckpt, LVP_W_O_B, i),
                            backend->weights, &layer->out));
    LVP_TRY(backend->ops->linear_create(backend, gate_up, 2, backend->weights, &layer->gate_up));
    return lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_DOWN, i),
                           lvp_checkpoint_weight(ckpt, LVP_W_DOWN_B, i), backend->weights, &layer->down);
}

// Angles are products of f32 numbers, as transformers computes them: position / factor * theta^(-2i / head_dim).
static enum lvp_status create_rope(struct lvp_decoder *decoder)
{
    const struct lvp_text_config *config = &decoder->config;
    int half = config->head_dim / 2;
    size_t n = (size_t)config->max_positions * (size_t)config->head_dim;
    float *host = malloc(n * sizeof *host);
    if (host == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the rotary table");
    for (int i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)config->head_dim;
        float frequency = 1.0f / powf(config->rope_theta, exponent) / config->rope_factor;
        for (int p = 0; p < config->max_positions; p++) {
            float angle = (float)p * frequency;
            float *row = host + (size_t)p * (size_t)config->head_dim;
            row[i] = cosf(angle);
            row[half + i] = sinf(angle);
        }
    }
    enum lvp_status status = lvp_floats_create(decoder->backend, n, &decoder->rope);
    if (status == LVP_OK) decoder->backend->ops->upload(decoder->backend, decoder->rope, host, n * sizeof *host);
    free(host);
    return status;
}

static enum lvp_status create_work_space(struct lvp_decoder *decoder, size_t max_rows)
{
    struct lvp_backend *backend = decoder->backend;
    const struct lvp_text_config *config = &decoder->config;
    size_t q_width = (size_t)config->heads * (size_t)config->head_dim;
    size_t qkv_width = q_width + 2 * (size_t)config->kv_heads * (size_t)config->head_dim;
    size_t mlp_rows = max_rows < MLP_ROWS ? max_rows : MLP_ROWS;
    LVP_TRY(lvp_floats_create(backend, max_rows * (size_t)config->hidden, &decoder->hidden));
    LVP_TRY(lvp_floats_create(backend, max_rows * qkv_width, &decoder->qkv));
    LVP_TRY(lvp_floats_create(backend, max_rows * q_width, &decoder->attended));
    LVP_TRY(lvp_floats_create(backend, mlp_rows * 2 * (size_t)config->mlp, &decoder->gate_up));
    return lvp_floats_create(backend, mlp_rows * (size_t)config->mlp, &decoder->mlp);
}

enum lvp_status lvp_decoder_create(struct lvp_backend *backend, const struct lvp_checkpoint *checkpoint, int first,
                                   int end, int max_rows, struct lvp_decoder **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_decoder *decoder = calloc(1, sizeof *decoder);
    if (decoder == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the decoder");
    decoder->backend = backend;
    decoder->config = lvp_checkpoint_config(checkpoint)->text;
    decoder->first = first;
    decoder->end = end;
    decoder->layers = calloc((size_t)(end - first) + 1, sizeof *decoder->layers);
    if (decoder->layers == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the decoder");
        goto fail;
    }
    for (int i = first; i < end; i++) {
        LVP_CHECK(load_layer(backend, checkpoint, i, &decoder->layers[i - first]));
        lvp_record_tick();
    }
    LVP_CHECK(create_rope(decoder));
    LVP_CHECK(create_work_space(decoder, (size_t)max_rows));
    *result = decoder;
    return LVP_OK;
fail:
    lvp_decoder_destroy(decoder);
    return status;
}

void lvp_decoder_destroy(struct lvp_decoder *decoder)
{
    if (decoder == NULL) return;
    struct lvp_backend *backend = decoder->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    for (int i = 0; decoder->layers != NULL && i < decoder->end - decoder->first; i++) {
        struct layer *layer = &decoder->layers[i];
        ops->free(backend, layer->norm1);
        ops->free(backend, layer->norm2);
        ops->linear_destroy(backend, layer->qkv);
        ops->linear_destroy(backend, layer->out);
        ops->linear_destroy(backend, layer->gate_up);
        ops->linear_destroy(backend, layer->down);
    }
    float *floats[] = {decoder->rope, decoder->hidden, decoder->qkv, decoder->attended, decoder->gate_up, decoder->mlp};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) ops->free(backend, floats[i]);
    free(decoder->layers);
    free(decoder);
}

static void run_mlp(struct lvp_decoder *decoder, const struct layer *layer, int n_rows, float *x)
{
    struct lvp_backend *backend = decoder->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    const struct lvp_text_config *config = &decoder->config;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    ops->rms_norm(backend, x, n_rows, config->hidden, layer->norm2, config->norm_eps, decoder->hidden);
    for (int row = 0; row < n_rows; row += MLP_ROWS) {
        int n = n_rows - row < MLP_ROWS ? n_rows - row : MLP_ROWS;
        float *rows = x + (size_t)row * (size_t)config->hidden;
        const float *normed = decoder->hidden + (size_t)row * (size_t)config->hidden;
        struct lvp_epilogue add_round = {.activation = LVP_ACT_NONE, .add = rows, .round = true};
        ops->linear(backend, layer->gate_up, normed, n, plain, decoder->gate_up);
        ops->glu(backend, decoder->gate_up, n, config->mlp, config->activation, decoder->mlp);
        ops->linear(backend, layer->down, decoder->mlp, n, add_round, rows);
    }
}

const float *lvp_decoder_qkv(const struct lvp_decoder *decoder)
{
    return decoder->qkv;
}

void lvp_decoder_run_layer(struct lvp_decoder *decoder, int layer_index, int n_seqs,
                           const struct lvp_depth_layout *layout, const struct lvp_kv_cache *cache,
                           const int32_t *positions, float *x)
{
    struct lvp_backend *backend = decoder->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    const struct lvp_text_config *config = &decoder->config;
    const struct layer *layer = &decoder->layers[layer_index - decoder->first];
    struct lvp_qkv_shape shape = {config->heads, config->kv_heads, config->head_dim};
    struct lvp_kv_layer kv = lvp_kv_cache_layer(cache, layer_index);
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE}, add_x = {.activation = LVP_ACT_NONE, .add = x};
    int n_rows = layout->n_rows;
    ops->rms_norm(backend, x, n_rows, config->hidden, layer->norm1, config->norm_eps, decoder->hidden);
    ops->linear(backend, layer->qkv, decoder->hidden, n_rows, plain, decoder->qkv);
    ops->rope_kv_write(backend, decoder->qkv, n_rows, shape, positions, decoder->rope, layout->slots, kv);
    struct lvp_paged_attention attention = {
        .n_seqs = n_seqs,
        .n_rows = n_rows,
        .row_start = layout->row_start,
        .kv_len = layout->kv_len,
        .block_table = layout->block_table,
        .max_pages = lvp_kv_cache_max_pages(cache),
        .max_kv_len = layout->max_kv_len,
        .max_rows = layout->max_rows,
        .shape = shape,
        .cache = kv,
        .qkv = decoder->qkv,
        .out = decoder->attended,
    };
    ops->paged_attention(backend, &attention);
    ops->linear(backend, layer->out, decoder->attended, n_rows, add_x, x);
    run_mlp(decoder, layer, n_rows, x);
    lvp_record_tick();
}
