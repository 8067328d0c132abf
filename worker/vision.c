#include "worker/vision.h"

#include "common/record.h"
#include "worker/weights.h"

#include <math.h>
#include <stdlib.h>

struct vit_layer {
    float *norm1_w, *norm1_b, *norm2_w, *norm2_b;
    struct lvp_linear *qkv, *out, *fc1, *fc2;
};

struct lvp_vision {
    struct lvp_backend *backend;
    struct lvp_model_config config;
    struct lvp_vision_range range;
    int max_images;
    int rows_per_image; // patches + class row
    int tokens;         // rows of one image after the projector
    // weights
    struct lvp_linear *patch;
    float *cls, *position, *pre_norm_w, *pre_norm_b;
    struct vit_layer *layers; // [vit_end - vit_first]
    struct lvp_linear *project1, *project2;
    // work space, for max_images
    float *patches;        // [max_images * P, 3 p p], with patch_embed
    float *embedded;       // [max_images * P, V], with patch_embed
    float *stream;         // [rows, V] residual stream, with patch_embed and project
    float *hidden;         // [rows, V]
    float *qkv;            // [rows, 3 V]
    float *mlp;            // [rows, mlp]
    float *features;       // [max_images * tokens, feature width], with project
    float *projected;      // [max_images * tokens, C], with project
    int32_t *segments;     // [max_images + 1] first row of each image
    int32_t *feature_from; // [max_images * tokens] row of the ViT that a feature row is taken from
    int32_t *feature_to[LVP_MAX_FEATURE_LAYERS]; // [max_images * tokens] V-wide sub-row of `features`
};

size_t lvp_vision_in_elements(const struct lvp_model_config *config, struct lvp_vision_range range)
{
    size_t side = (size_t)config->vision.image_size;
    if (range.patch_embed) return 3 * side * side;
    return ((size_t)lvp_patch_count(config) + 1) * (size_t)config->vision.hidden;
}

size_t lvp_vision_out_elements(const struct lvp_model_config *config, struct lvp_vision_range range)
{
    if (range.project) return (size_t)lvp_vision_tokens(config) * (size_t)config->text.hidden;
    return ((size_t)lvp_patch_count(config) + 1) * (size_t)config->vision.hidden;
}

static enum lvp_status load_layer(struct lvp_backend *backend, const struct lvp_checkpoint *ckpt, int i,
                                  struct vit_layer *layer)
{
    struct lvp_linear_part qkv[3] = {
        {lvp_checkpoint_weight(ckpt, LVP_W_VIT_Q, i), lvp_checkpoint_weight(ckpt, LVP_W_VIT_Q_B, i)},
        {lvp_checkpoint_weight(ckpt, LVP_W_VIT_K, i), lvp_checkpoint_weight(ckpt, LVP_W_VIT_K_B, i)},
        {lvp_checkpoint_weight(ckpt, LVP_W_VIT_V, i), lvp_checkpoint_weight(ckpt, LVP_W_VIT_V_B, i)},
    };
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_NORM1_W, i), &layer->norm1_w));
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_NORM1_B, i), &layer->norm1_b));
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_NORM2_W, i), &layer->norm2_w));
    LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_NORM2_B, i), &layer->norm2_b));
    LVP_TRY(backend->ops->linear_create(backend, qkv, 3, backend->weights, &layer->qkv));
    LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_O, i),
                            lvp_checkpoint_weight(ckpt, LVP_W_VIT_O_B, i), backend->weights, &layer->out));
    LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_FC1, i),
                            lvp_checkpoint_weight(ckpt, LVP_W_VIT_FC1_B, i), backend->weights, &layer->fc1));
    return lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_FC2, i),
                           lvp_checkpoint_weight(ckpt, LVP_W_VIT_FC2_B, i), backend->weights, &layer->fc2);
}

static enum lvp_status load_weights(struct lvp_vision *v, const struct lvp_checkpoint *ckpt)
{
    struct lvp_backend *backend = v->backend;
    if (v->range.patch_embed) {
        LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_PATCH, 0), NULL, backend->weights,
                                &v->patch));
        LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_CLASS, 0), &v->cls));
        LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_POSITION, 0), &v->position));
        LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_PRE_NORM_W, 0), &v->pre_norm_w));
        LVP_TRY(lvp_vector_create(backend, lvp_checkpoint_weight(ckpt, LVP_W_VIT_PRE_NORM_B, 0), &v->pre_norm_b));
    }
    for (int i = v->range.vit_first; i < v->range.vit_end; i++) {
        LVP_TRY(load_layer(backend, ckpt, i, &v->layers[i - v->range.vit_first]));
        lvp_record_tick();
    }
    if (v->range.project) {
        LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_PROJ1, 0),
                                lvp_checkpoint_weight(ckpt, LVP_W_PROJ1_B, 0), backend->weights, &v->project1));
        LVP_TRY(lvp_linear_from(backend, lvp_checkpoint_weight(ckpt, LVP_W_PROJ2, 0),
                                lvp_checkpoint_weight(ckpt, LVP_W_PROJ2_B, 0), backend->weights, &v->project2));
    }
    return LVP_OK;
}

// Index arrays that never change: which ViT row feeds which place of the features.
static enum lvp_status create_indices(struct lvp_vision *v)
{
    enum lvp_status status = LVP_OK;
    struct lvp_backend *backend = v->backend;
    int n = v->max_images * v->tokens;
    int n_taps = v->config.n_feature_layers;
    int skip = v->config.select_full ? 0 : 1;
    int32_t *host = calloc((size_t)(n > v->max_images ? n : v->max_images) + 1, sizeof *host);
    if (host == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the vision tables");
    for (int i = 0; i <= v->max_images; i++) host[i] = i * v->rows_per_image;
    LVP_CHECK(lvp_ints_create(backend, (size_t)v->max_images + 1, &v->segments));
    backend->ops->upload(backend, v->segments, host, ((size_t)v->max_images + 1) * sizeof *host);
    for (int i = 0; i < n; i++) host[i] = (i / v->tokens) * v->rows_per_image + skip + i % v->tokens;
    LVP_CHECK(lvp_ints_create(backend, (size_t)n, &v->feature_from));
    backend->ops->upload(backend, v->feature_from, host, (size_t)n * sizeof *host);
    for (int t = 0; t < n_taps; t++) {
        for (int i = 0; i < n; i++) host[i] = i * n_taps + t;
        LVP_CHECK(lvp_ints_create(backend, (size_t)n, &v->feature_to[t]));
        backend->ops->upload(backend, v->feature_to[t], host, (size_t)n * sizeof *host);
    }
fail:
    free(host);
    return status;
}

static enum lvp_status create_work_space(struct lvp_vision *v)
{
    struct lvp_backend *backend = v->backend;
    const struct lvp_vision_config *vit = &v->config.vision;
    size_t images = (size_t)v->max_images;
    size_t rows = images * (size_t)v->rows_per_image;
    size_t width = (size_t)vit->hidden;
    if (v->range.patch_embed) {
        size_t patches = images * (size_t)lvp_patch_count(&v->config);
        LVP_TRY(
            lvp_floats_create(backend, patches * 3 * (size_t)vit->patch_size * (size_t)vit->patch_size, &v->patches));
        LVP_TRY(lvp_floats_create(backend, patches * width, &v->embedded));
    }
    if (v->range.patch_embed && v->range.project) LVP_TRY(lvp_floats_create(backend, rows * width, &v->stream));
    LVP_TRY(lvp_floats_create(backend, rows * width, &v->hidden));
    LVP_TRY(lvp_floats_create(backend, rows * 3 * width, &v->qkv));
    LVP_TRY(lvp_floats_create(backend, rows * (size_t)vit->mlp, &v->mlp));
    if (v->range.project) {
        size_t tokens = images * (size_t)v->tokens;
        LVP_TRY(lvp_floats_create(backend, tokens * (size_t)lvp_feature_width(&v->config), &v->features));
        LVP_TRY(lvp_floats_create(backend, tokens * (size_t)v->config.text.hidden, &v->projected));
    }
    return create_indices(v);
}

enum lvp_status lvp_vision_create(struct lvp_backend *backend, const struct lvp_checkpoint *checkpoint,
                                  struct lvp_vision_range range, int max_images, struct lvp_vision **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_vision *v = calloc(1, sizeof *v);
    if (v == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the vision encoder");
    v->backend = backend;
    v->config = *lvp_checkpoint_config(checkpoint);
    v->range = range;
    v->max_images = max_images;
    v->rows_per_image = lvp_patch_count(&v->config) + 1;
    v->tokens = lvp_vision_tokens(&v->config);
    v->layers = calloc((size_t)(range.vit_end - range.vit_first) + 1, sizeof *v->layers);
    if (v->layers == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the vision encoder");
        goto fail;
    }
    LVP_CHECK(load_weights(v, checkpoint));
    LVP_CHECK(create_work_space(v));
    *result = v;
    return LVP_OK;
fail:
    lvp_vision_destroy(v);
    return status;
}

void lvp_vision_destroy(struct lvp_vision *v)
{
    if (v == NULL) return;
    struct lvp_backend *backend = v->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    for (int i = 0; v->layers != NULL && i < v->range.vit_end - v->range.vit_first; i++) {
        struct vit_layer *layer = &v->layers[i];
        float *vectors[] = {layer->norm1_w, layer->norm1_b, layer->norm2_w, layer->norm2_b};
        struct lvp_linear *linears[] = {layer->qkv, layer->out, layer->fc1, layer->fc2};
        for (int j = 0; j < 4; j++) {
            ops->free(backend, vectors[j]);
            ops->linear_destroy(backend, linears[j]);
        }
    }
    float *floats[] = {v->cls,    v->position, v->pre_norm_w, v->pre_norm_b, v->patches,  v->embedded,
                       v->stream, v->hidden,   v->qkv,        v->mlp,        v->features, v->projected};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) ops->free(backend, floats[i]);
    ops->free(backend, v->segments);
    ops->free(backend, v->feature_from);
    for (int t = 0; t < LVP_MAX_FEATURE_LAYERS; t++) ops->free(backend, v->feature_to[t]);
    ops->linear_destroy(backend, v->patch);
    ops->linear_destroy(backend, v->project1);
    ops->linear_destroy(backend, v->project2);
    free(v->layers);
    free(v);
}

static void embed_patches(struct lvp_vision *v, int n_images, const float *pixels, float *x)
{
    struct lvp_backend *backend = v->backend;
    const struct lvp_vision_config *vit = &v->config.vision;
    int n_patches = lvp_patch_count(&v->config);
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    backend->ops->unfold_patches(backend, pixels, n_images, vit->image_size, vit->patch_size, v->patches);
    backend->ops->linear(backend, v->patch, v->patches, n_images * n_patches, plain, v->embedded);
    backend->ops->vit_embed(backend, v->embedded, v->cls, v->position, n_images, n_patches, vit->hidden, x);
    backend->ops->layer_norm(backend, x, n_images * v->rows_per_image, vit->hidden, v->pre_norm_w, v->pre_norm_b,
                             vit->norm_eps, NULL, true, x);
}

static void run_layer(struct lvp_vision *v, const struct vit_layer *layer, int n_images, float *x)
{
    struct lvp_backend *backend = v->backend;
    const struct lvp_backend_ops *ops = backend->ops;
    const struct lvp_vision_config *vit = &v->config.vision;
    int n_rows = n_images * v->rows_per_image;
    int head_dim = vit->hidden / vit->heads;
    struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
    struct lvp_epilogue add_x = {.activation = LVP_ACT_NONE, .add = x};
    struct lvp_epilogue add_x_round = {.activation = LVP_ACT_NONE, .add = x, .round = true};
    struct lvp_epilogue activate = {.activation = vit->activation};
    ops->layer_norm(backend, x, n_rows, vit->hidden, layer->norm1_w, layer->norm1_b, vit->norm_eps, NULL, false,
                    v->hidden);
    ops->linear(backend, layer->qkv, v->hidden, n_rows, plain, v->qkv);
    struct lvp_dense_attention attention = {
        .n_segments = n_images,
        .n_queries = n_rows,
        .heads = vit->heads,
        .head_dim = head_dim,
        .q_start = v->segments,
        .kv_start = v->segments,
        .q = v->qkv,
        .k = v->qkv + vit->hidden,
        .v = v->qkv + 2 * (size_t)vit->hidden,
        .q_stride = 3 * vit->hidden,
        .kv_stride = 3 * vit->hidden,
        .scale = 1.0f / sqrtf((float)head_dim),
        .out = v->hidden,
    };
    ops->dense_attention(backend, &attention);
    ops->linear(backend, layer->out, v->hidden, n_rows, add_x, x);
    ops->layer_norm(backend, x, n_rows, vit->hidden, layer->norm2_w, layer->norm2_b, vit->norm_eps, NULL, false,
                    v->hidden);
    ops->linear(backend, layer->fc1, v->hidden, n_rows, activate, v->mlp);
    ops->linear(backend, layer->fc2, v->mlp, n_rows, add_x_round, x);
}

// Copies the patch rows into the features' columns of every tap that asks for the state after `layers_run` layers.
static void tap_features(struct lvp_vision *v, int layers_run, int n_images, const float *x)
{
    for (int t = 0; t < v->config.n_feature_layers; t++) {
        if (v->config.feature_layers[t] != layers_run) continue;
        v->backend->ops->copy_rows(v->backend, x, v->feature_from, n_images * v->tokens, v->config.vision.hidden,
                                   v->features, v->feature_to[t]);
    }
}

void lvp_vision_run(struct lvp_vision *v, int n_images, float *in, float *out)
{
    struct lvp_backend *backend = v->backend;
    int n_rows = n_images * v->rows_per_image;
    float *x = in;
    if (v->range.patch_embed) {
        x = v->range.project ? v->stream : out; // pixels take less room than rows, so the stream cannot live in `in`
        embed_patches(v, n_images, in, x);
    }
    if (v->range.project) tap_features(v, v->range.vit_first, n_images, x);
    for (int i = v->range.vit_first; i < v->range.vit_end; i++) {
        run_layer(v, &v->layers[i - v->range.vit_first], n_images, x);
        lvp_record_tick();
        if (v->range.project) tap_features(v, i + 1, n_images, x);
    }
    if (v->range.project) {
        int n = n_images * v->tokens;
        struct lvp_epilogue activate = {.activation = v->config.projector_activation};
        struct lvp_epilogue round = {.activation = LVP_ACT_NONE, .round = true};
        backend->ops->linear(backend, v->project1, v->features, n, activate, v->projected);
        backend->ops->linear(backend, v->project2, v->projected, n, round, out);
    } else if (x != out) {
        backend->ops->copy_rows(backend, x, NULL, n_rows, v->config.vision.hidden, out, NULL);
    }
}
