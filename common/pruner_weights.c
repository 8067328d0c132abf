// Decision modules of LVPruning; docs/formats.md describes the file.
#include "common/checkpoint.h"

#include "common/hash.h"
#include "common/log.h"
#include "common/tensor_set.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WIDTH = 1 << 16, MAX_HEADS = 1 << 10 };

// What the shapes are made of: d, 2d, the model's C, and block 0's C or block 1's d.
enum size { NONE, INNER, TWICE_INNER, MODEL, BLOCK_INPUT };

static const struct {
    const char *name;
    size_t offset; // of the view in struct lvp_pruner_block
    enum size sizes[2];
} block_tensors[] = {
    {"q_proj.weight", offsetof(struct lvp_pruner_block, q), {INNER, BLOCK_INPUT}},
    {"k_proj.weight", offsetof(struct lvp_pruner_block, k), {INNER, MODEL}},
    {"v_proj.weight", offsetof(struct lvp_pruner_block, v), {INNER, MODEL}},
    {"o_proj.weight", offsetof(struct lvp_pruner_block, o), {INNER, INNER}},
    {"norm1.weight", offsetof(struct lvp_pruner_block, norm1_w), {INNER}},
    {"norm1.bias", offsetof(struct lvp_pruner_block, norm1_b), {INNER}},
    {"fc1.weight", offsetof(struct lvp_pruner_block, fc1_w), {TWICE_INNER, INNER}},
    {"fc1.bias", offsetof(struct lvp_pruner_block, fc1_b), {TWICE_INNER}},
    {"fc2.weight", offsetof(struct lvp_pruner_block, fc2_w), {INNER, TWICE_INNER}},
    {"fc2.bias", offsetof(struct lvp_pruner_block, fc2_b), {INNER}},
    {"norm2.weight", offsetof(struct lvp_pruner_block, norm2_w), {INNER}},
    {"norm2.bias", offsetof(struct lvp_pruner_block, norm2_b), {INNER}},
};
enum { N_BLOCK_TENSORS = sizeof block_tensors / sizeof block_tensors[0] };

// Numbers separated by commas, each 1..max.
static enum lvp_status read_numbers(const struct lvp_safetensors *file, const char *key, int max, int max_numbers,
                                    int *numbers, int *n_numbers)
{
    const char *path = lvp_safetensors_path(file);
    const char *text = lvp_safetensors_metadata(file, key);
    if (text == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: __metadata__ has no %s", path, key);
    const char *at = text;
    *n_numbers = 0;
    for (;;) {
        int n_digits = 0;
        int number = 0;
        for (; at[n_digits] >= '0' && at[n_digits] <= '9' && n_digits < 9; n_digits++)
            number = 10 * number + (at[n_digits] - '0');
        at += n_digits;
        if (n_digits == 0 || (*at != ',' && *at != '\0') || *n_numbers == max_numbers)
            return lvp_fail(LVP_ERR_MODEL, "%s: %s \"%s\" is not a list of 1 to %d numbers", path, key, text,
                            max_numbers);
        if (number < 1 || number > max)
            return lvp_fail(LVP_ERR_MODEL, "%s: %s: %d is outside 1..%d", path, key, number, max);
        numbers[(*n_numbers)++] = number;
        if (*at++ == '\0') return LVP_OK;
    }
}

static enum lvp_status read_metadata(const struct lvp_model_config *config, struct lvp_pruner_weights *weights)
{
    const struct lvp_safetensors *file = weights->file;
    const char *path = lvp_safetensors_path(file);
    const char *version = lvp_safetensors_metadata(file, "lvpruning.version");
    if (version == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: __metadata__ has no lvpruning.version", path);
    if (strcmp(version, "1") != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: lvpruning.version \"%s\" is not supported (1 is)", path, version);

    int one;
    LVP_TRY(read_numbers(file, "lvpruning.after_layers", config->text.layers, LVP_MAX_PRUNE_POINTS,
                         weights->after_layers, &weights->n_points));
    LVP_TRY(read_numbers(file, "lvpruning.heads", MAX_HEADS, 1, &weights->heads, &one));
    LVP_TRY(read_numbers(file, "lvpruning.inner_width", MAX_WIDTH, 1, &weights->inner_width, &one));
    for (int i = 1; i < weights->n_points; i++)
        if (weights->after_layers[i] <= weights->after_layers[i - 1])
            return lvp_fail(LVP_ERR_MODEL, "%s: lvpruning.after_layers is not strictly increasing", path);
    if (weights->inner_width % weights->heads != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: lvpruning.inner_width %d is not a multiple of lvpruning.heads %d", path,
                        weights->inner_width, weights->heads);
    return LVP_OK;
}

// Sizes of a block's tensor, up to the first 0.
static void tensor_shape(const struct lvp_model_config *config, int inner, int block, int tensor, int shape[3])
{
    const int sizes[] = {[NONE] = 0,
                         [INNER] = inner,
                         [TWICE_INNER] = 2 * inner,
                         [MODEL] = config->text.hidden,
                         [BLOCK_INPUT] = block == 0 ? config->text.hidden : inner};
    shape[0] = sizes[block_tensors[tensor].sizes[0]];
    shape[1] = sizes[block_tensors[tensor].sizes[1]];
    shape[2] = 0;
}

static enum lvp_status find_tensor(const struct lvp_safetensors *file, const char *name, const int *sizes,
                                   const struct lvp_tensor_view **view)
{
    *view = lvp_safetensors_find(file, name);
    if (*view == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: no tensor %s", lvp_safetensors_path(file), name);
    return lvp_tensor_check(*view, lvp_safetensors_path(file), sizes);
}

static enum lvp_status find_tensors(const struct lvp_model_config *config, struct lvp_pruner_weights *weights)
{
    char name[128];
    int inner = weights->inner_width;
    for (int point = 0; point < weights->n_points; point++) {
        for (int b = 0; b < 2; b++) {
            for (int i = 0; i < N_BLOCK_TENSORS; i++) {
                int shape[3];
                tensor_shape(config, inner, b, i, shape);
                const struct lvp_tensor_view *view;
                (void)snprintf(name, sizeof name, "modules.%d.blocks.%d.%s", point, b, block_tensors[i].name);
                LVP_TRY(find_tensor(weights->file, name, shape, &view));
                void *member = (char *)&weights->blocks[point][b] + block_tensors[i].offset;
                *(const struct lvp_tensor_view **)member = view;
            }
        }
        (void)snprintf(name, sizeof name, "modules.%d.gate.weight", point);
        const int gate[] = {2, inner, 0};
        LVP_TRY(find_tensor(weights->file, name, gate, &weights->gate[point]));
    }
    size_t n_known = (size_t)weights->n_points * (2 * N_BLOCK_TENSORS + 1);
    if (lvp_safetensors_count(weights->file) > n_known)
        lvp_warn("%s: %zu tensors that belong to none of the %d prune points are not used",
                 lvp_safetensors_path(weights->file), lvp_safetensors_count(weights->file) - n_known,
                 weights->n_points);
    return LVP_OK;
}

static enum lvp_status hash_whole(const struct lvp_safetensors *file, char hex[33])
{
    enum lvp_status status = LVP_OK;
    struct lvp_hash *hash;
    size_t n_bytes;
    const void *bytes = lvp_safetensors_bytes(file, &n_bytes);
    LVP_CHECK(lvp_hash_new(&hash));
    lvp_hash_add(hash, bytes, n_bytes);
    lvp_hash_hex(hash, hex);
fail:
    lvp_hash_free(hash);
    return status;
}

enum lvp_status lvp_pruner_weights_open(const char *path, const struct lvp_model_config *config,
                                        struct lvp_pruner_weights *weights)
{
    *weights = (struct lvp_pruner_weights){0};
    enum lvp_status status = LVP_OK;
    LVP_CHECK(lvp_safetensors_open(path, &weights->file));
    LVP_CHECK(read_metadata(config, weights));
    LVP_CHECK(find_tensors(config, weights));
    LVP_CHECK(hash_whole(weights->file, weights->hash));
    return LVP_OK;
fail:
    lvp_pruner_weights_close(weights);
    return status;
}

static void cut_tensors(const struct lvp_model_config *config, struct lvp_pruner_weights *weights)
{
    int inner = weights->inner_width;
    struct lvp_tensor_view *view = weights->views;
    for (int point = 0; point < weights->n_points; point++) {
        for (int b = 0; b < 2; b++) {
            for (int i = 0; i < N_BLOCK_TENSORS; i++) {
                int shape[3];
                tensor_shape(config, inner, b, i, shape);
                *view = lvp_weight_pool_cut(weights->pool, block_tensors[i].name, shape);
                void *member = (char *)&weights->blocks[point][b] + block_tensors[i].offset;
                *(const struct lvp_tensor_view **)member = view++;
            }
        }
        const int gate[] = {2, inner, 0};
        *view = lvp_weight_pool_cut(weights->pool, "gate.weight", gate);
        weights->gate[point] = view++;
    }
}

enum lvp_status lvp_pruner_weights_synthetic(const struct lvp_model_config *config, int width, int n_points,
                                             const int *after, struct lvp_pruner_weights *weights)
{
    enum lvp_status status = LVP_OK;
    int heads = width / config->text.head_dim > 0 ? width / config->text.head_dim : 1;
    *weights = (struct lvp_pruner_weights){.inner_width = width};
    weights->n_points = n_points;
    memcpy(weights->after_layers, after, (size_t)n_points * sizeof *after);
    while (width % heads != 0) heads--;
    weights->heads = heads;
    size_t c = (size_t)config->text.hidden, d = (size_t)width;
    size_t n_views = (size_t)weights->n_points * (2 * N_BLOCK_TENSORS + 1);
    LVP_CHECK(lvp_weight_pool_create(d * (c > 2 * d ? c : 2 * d), &weights->pool));
    weights->views = calloc(n_views + 1, sizeof *weights->views);
    if (weights->views == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for synthetic pruning modules");
        goto fail;
    }
    cut_tensors(config, weights);
    return LVP_OK;
fail:
    lvp_pruner_weights_close(weights);
    return status;
}

void lvp_pruner_weights_close(struct lvp_pruner_weights *weights)
{
    lvp_weight_pool_free(weights->pool);
    free(weights->views);
    lvp_safetensors_close(weights->file);
    *weights = (struct lvp_pruner_weights){0};
}
