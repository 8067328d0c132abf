#include "worker/pruner.h"

#include "common/mix.h"
#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>

enum { BLOCKS = 2 };

static const float norm_eps = 1e-5f; // PyTorch's LayerNorm default, as the modules are trained

struct block {
    struct lvp_linear *q, *kv, *out, *fc1, *fc2;
    float *norm1_w, *norm1_b, *norm2_w, *norm2_b;
};

struct module {
    struct block blocks[BLOCKS];
    struct lvp_linear *gate;
};

struct lvp_pruner {
    struct lvp_backend *backend;
    enum lvp_pruner_kind kind;
    int hidden, width, heads; // C, d
    int first_point, n_modules;
    struct module *modules;
    // work space
    float *vision, *text;    // [max_rows, C] gathered rows
    float *q, *kv;           // [max_rows, d], [max_rows, 2 d]
    float *attended, *mixed; // [max_rows, d]
    float *inner;            // [max_rows, 2 d]
    float *gate;             // [max_rows, 2]
    float *host_gate;        // random: [max_rows, 2]
};

// The modules are small and decide what is lost for good: they keep the model's dtype whatever its weights have.
static enum lvp_status load_block(struct lvp_backend *backend, const struct lvp_pruner_block *from, struct block *to)
{
    struct lvp_linear_part kv[2] = {{.weight = from->k}, {.weight = from->v}};
    LVP_TRY(lvp_linear_from(backend, from->q, NULL, backend->dtype, &to->q));
    LVP_TRY(backend->ops->linear_create(backend, kv, 2, backend->dtype, &to->kv));
    LVP_TRY(lvp_linear_from(backend, from->o, NULL, backend->dtype, &to->out));
    LVP_TRY(lvp_linear_from(backend, from->fc1_w, from->fc1_b, backend->dtype, &to->fc1));
    LVP_TRY(lvp_linear_from(backend, from->fc2_w, from->fc2_b, backend->dtype, &to->fc2));
    LVP_TRY(lvp_vector_create(backend, from->norm1_w, &to->norm1_w));
    LVP_TRY(lvp_vector_create(backend, from->norm1_b, &to->norm1_b));
    LVP_TRY(lvp_vector_create(backend, from->norm2_w, &to->norm2_w));
    return lvp_vector_create(backend, from->norm2_b, &to->norm2_b);
}

static enum lvp_status create_modules(struct lvp_pruner *p, const struct lvp_pruner_weights *weights, int end_point,
                                      size_t rows)
{
    struct lvp_backend *backend = p->backend;
    p->width = weights->inner_width;
    p->heads = weights->heads;
    p->n_modules = end_point - p->first_point;
    p->modules = calloc((size_t)p->n_modules, sizeof *p->modules);
    if (p->modules == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruning modules");
    for (int m = 0; m < p->n_modules; m++) {
        int point = p->first_point + m;
        for (int b = 0; b < BLOCKS; b++)
            LVP_TRY(load_block(backend, &weights->blocks[point][b], &p->modules[m].blocks[b]));
        LVP_TRY(lvp_linear_from(backend, weights->gate[point], NULL, backend->dtype, &p->modules[m].gate));
    }
    size_t width = (size_t)p->width;
    LVP_TRY(lvp_floats_create(backend, rows * (size_t)p->hidden, &p->vision));
    LVP_TRY(lvp_floats_create(backend, rows * (size_t)p->hidden, &p->text));
    LVP_TRY(lvp_floats_create(backend, rows * width, &p->q));
    LVP_TRY(lvp_floats_create(backend, rows * 2 * width, &p->kv));
    LVP_TRY(lvp_floats_create(backend, rows * width, &p->attended));
    LVP_TRY(lvp_floats_create(backend, rows * width, &p->mixed));
    return lvp_floats_create(backend, rows * 2 * width, &p->inner);
}

enum lvp_status lvp_pruner_create(struct lvp_backend *backend, enum lvp_pruner_kind kind,
                                  const struct lvp_pruner_weights *weights, int hidden, int first_point, int end_point,
                                  int max_rows, struct lvp_pruner **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_pruner *p = calloc(1, sizeof *p);
    if (p == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruner");
    *p = (struct lvp_pruner){.backend = backend, .kind = kind, .hidden = hidden, .first_point = first_point};
    LVP_CHECK(lvp_floats_create(backend, 2 * (size_t)max_rows, &p->gate));
    if (kind == LVP_PRUNER_RANDOM) {
        p->host_gate = calloc(2 * (size_t)max_rows, sizeof *p->host_gate);
        if (p->host_gate == NULL) {
            status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the pruner");
            goto fail;
        }
    }
    if (kind == LVP_PRUNER_LVPRUNING) LVP_CHECK(create_modules(p, weights, end_point, (size_t)max_rows));
    *result = p;
    return LVP_OK;
fail:
    lvp_pruner_destroy(p);
    return status;
}

void lvp_pruner_destroy(struct lvp_pruner *p)
{
    if (p == NULL) return;
    struct lvp_backend *backend = p->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    for (int m = 0; p->modules != NULL && m < p->n_modules; m++) {
        for (int b = 0; b < BLOCKS; b++) {
            struct block *block = &p->modules[m].blocks[b];
            struct lvp_linear *linears[] = {block->q, block->kv, block->out, block->fc1, block->fc2};
            float *vectors[] = {block->norm1_w, block->norm1_b, block->norm2_w, block->norm2_b};
            for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) ops->linear_destroy(backend, linears[i]);
            for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) ops->free(backend, vectors[i]);
        }
        ops->linear_destroy(backend, p->modules[m].gate);
    }
    float *floats[] = {p->vision, p->text, p->q, p->kv, p->attended, p->mixed, p->inner, p->gate};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) ops->free(backend, floats[i]);
    free(p->host_gate);
    free(p->modules);
    free(p);
}

static const float *score_modules(struct lvp_pruner *p, const struct module *module,
                                  const struct lvp_depth_layout *layout, const float *h)
{
    struct lvp_backend *backend = p->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    int n_v = layout->n_vision, n_t = layout->n_text, d = p->width;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE}, silu = {.activation = LVP_ACT_SILU};
    struct lvp_epilogue add_q = {.activation = LVP_ACT_NONE, .add = p->q};
    ops->copy_rows(backend, h, layout->vision_row, n_v, p->hidden, p->vision, NULL);
    ops->copy_rows(backend, h, layout->text_row, n_t, p->hidden, p->text, NULL);
    const float *x = p->vision;
    for (int b = 0; b < BLOCKS; b++) {
        const struct block *block = &module->blocks[b];
        ops->linear(backend, block->q, x, n_v, plain, p->q);
        ops->linear(backend, block->kv, p->text, n_t, plain, p->kv);
        struct lvp_dense_attention attention = {
            .n_segments = layout->n_segments,
            .n_queries = n_v,
            .heads = p->heads,
            .head_dim = d / p->heads,
            .q_start = layout->vision_start,
            .kv_start = layout->text_start,
            .q = p->q,
            .k = p->kv,
            .v = p->kv + d,
            .q_stride = d,
            .kv_stride = 2 * d,
            .scale = 1.0f / sqrtf((float)(d / p->heads)),
            .out = p->attended,
        };
        ops->dense_attention(backend, &attention);
        ops->linear(backend, block->out, p->attended, n_v, add_q, p->mixed);
        ops->layer_norm(backend, p->mixed, n_v, d, block->norm1_w, block->norm1_b, norm_eps, NULL, false, p->attended);
        ops->linear(backend, block->fc1, p->attended, n_v, silu, p->inner);
        ops->linear(backend, block->fc2, p->inner, n_v, plain, p->attended);
        ops->layer_norm(backend, p->attended, n_v, d, block->norm2_w, block->norm2_b, norm_eps, p->mixed, false,
                        p->attended);
        x = p->attended;
    }
    ops->linear(backend, module->gate, x, n_v, plain, p->gate);
    return p->gate;
}

// `rows_per_image`: vision rows of every image at this depth.
static const float *score_random(struct lvp_pruner *p, int point, const struct lvp_step *step, int rows_per_image)
{
    size_t row = 0;
    for (int s = 0; s < step->n_seqs; s++) {
        const struct lvp_step_seq *seq = &step->seqs[s];
        for (int place = 0; place < seq->n_images * rows_per_image; place++, row++) {
            uint64_t word = lvp_mix(seq->random_key ^ lvp_mix(((uint64_t)point << 32) | (uint64_t)place));
            p->host_gate[2 * row] = (float)(word >> 40) * 0x1p-24f;
        }
    }
    p->backend->ops->upload(p->backend, p->gate, p->host_gate, 2 * row * sizeof *p->gate);
    return p->gate;
}

const float *lvp_pruner_score(struct lvp_pruner *p, int point, const struct lvp_step *step,
                              const struct lvp_depth_layout *layout, const float *x)
{
    if (p->kind == LVP_PRUNER_RANDOM)
        return score_random(p, point, step, layout->n_images == 0 ? 0 : layout->n_vision / layout->n_images);
    return score_modules(p, &p->modules[point - p->first_point], layout, x);
}
