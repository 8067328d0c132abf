#include "worker/decision.h"

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

struct lvp_decision {
    struct lvp_backend *backend;
    int hidden, width, heads; // C, d
    int first_point, n_modules;
    struct module *modules;
    // work space
    float *vision, *text;    // [max_rows, C] gathered rows
    float *q, *kv;           // [max_rows, d], [max_rows, 2 d]
    float *attended, *mixed; // [max_rows, d]
    float *inner;            // [max_rows, 2 d]
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

enum lvp_status lvp_decision_create(struct lvp_backend *backend, const struct lvp_pruner_weights *weights, int hidden,
                                    int first_point, int end_point, int max_rows, struct lvp_decision **result)
{
    enum lvp_status status = LVP_OK;
    size_t rows = (size_t)max_rows, width = (size_t)weights->inner_width;
    int head_dim = weights->inner_width / weights->heads, widest = backend->ops->max_head_dim;
    if (widest > 0 && head_dim > widest)
        return lvp_fail(LVP_ERR_MODEL,
                        "pruning modules of width %d with %d heads: heads of %d channels, %s computes %d at most",
                        weights->inner_width, weights->heads, head_dim, backend->kernel_set, widest);
    struct lvp_decision *d = calloc(1, sizeof *d);
    if (d == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the decision modules");
    *d = (struct lvp_decision){.backend = backend,
                               .hidden = hidden,
                               .width = weights->inner_width,
                               .heads = weights->heads,
                               .first_point = first_point,
                               .n_modules = end_point - first_point};
    d->modules = calloc((size_t)d->n_modules, sizeof *d->modules);
    if (d->modules == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the decision modules");
        goto fail;
    }
    for (int m = 0; m < d->n_modules; m++) {
        int point = first_point + m;
        for (int b = 0; b < BLOCKS; b++)
            LVP_CHECK(load_block(backend, &weights->blocks[point][b], &d->modules[m].blocks[b]));
        LVP_CHECK(lvp_linear_from(backend, weights->gate[point], NULL, backend->dtype, &d->modules[m].gate));
    }
    LVP_CHECK(lvp_floats_create(backend, rows * (size_t)hidden, &d->vision));
    LVP_CHECK(lvp_floats_create(backend, rows * (size_t)hidden, &d->text));
    LVP_CHECK(lvp_floats_create(backend, rows * width, &d->q));
    LVP_CHECK(lvp_floats_create(backend, rows * 2 * width, &d->kv));
    LVP_CHECK(lvp_floats_create(backend, rows * width, &d->attended));
    LVP_CHECK(lvp_floats_create(backend, rows * width, &d->mixed));
    LVP_CHECK(lvp_floats_create(backend, rows * 2 * width, &d->inner));
    *result = d;
    return LVP_OK;
fail:
    lvp_decision_destroy(d);
    return status;
}

void lvp_decision_destroy(struct lvp_decision *d)
{
    if (d == NULL) return;
    struct lvp_backend *backend = d->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    for (int m = 0; d->modules != NULL && m < d->n_modules; m++) {
        for (int b = 0; b < BLOCKS; b++) {
            struct block *block = &d->modules[m].blocks[b];
            struct lvp_linear *linears[] = {block->q, block->kv, block->out, block->fc1, block->fc2};
            float *vectors[] = {block->norm1_w, block->norm1_b, block->norm2_w, block->norm2_b};
            for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) ops->linear_destroy(backend, linears[i]);
            for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) ops->free(backend, vectors[i]);
        }
        ops->linear_destroy(backend, d->modules[m].gate);
    }
    float *floats[] = {d->vision, d->text, d->q, d->kv, d->attended, d->mixed, d->inner};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) ops->free(backend, floats[i]);
    free(d->modules);
    free(d);
}

void lvp_decision_score(struct lvp_decision *p, int point, const struct lvp_depth_layout *layout, const float *h,
                        float *gate)
{
    const struct module *module = &p->modules[point - p->first_point];
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
    ops->linear(backend, module->gate, x, n_v, plain, gate);
}
