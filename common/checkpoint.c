#include "common/checkpoint.h"

#include "common/checked.h"
#include "common/hash.h"
#include "common/log.h"
#include "common/tensor_set.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSOR_NAME = 256 };

// Parts of the model whose names share a prefix, which depends on the version of transformers that saved the folder.
enum part { PART_VIT, PART_PROJECTOR, PART_TEXT, PART_HEAD, PART_COUNT };

static const struct {
    const char *anchor; // a tensor every such part has: the prefix in front of it is the folder's
    const char *prefixes[4];
} parts[PART_COUNT] = {
    [PART_VIT] = {"embeddings.patch_embedding.weight",
                  {"vision_tower.vision_model.", "model.vision_tower.vision_model.", "vision_tower.",
                   "model.vision_tower."}},
    [PART_PROJECTOR] = {"linear_1.weight", {"multi_modal_projector.", "model.multi_modal_projector."}},
    [PART_TEXT] = {"embed_tokens.weight", {"language_model.model.", "model.language_model."}},
    [PART_HEAD] = {"lm_head.weight", {"language_model.", ""}},
};
enum { N_PREFIXES = sizeof parts[0].prefixes / sizeof parts[0].prefixes[0] };

// Sizes that shapes are made of.
enum size { NONE, VIT, VIT_MLP, RGB, PATCH, POSITIONS, FEATURE, TEXT, TEXT_MLP, HEADS, KV_HEADS, VOCAB, SIZE_COUNT };

// When a tensor is part of the model.
enum presence { ALWAYS, PROJECTOR_BIAS, ATTENTION_BIAS, MLP_BIAS };

static const struct rule {
    enum part part;
    enum presence presence;
    const char *layers; // what stands before the layer number; NULL: not per layer
    const char *name;
    enum size sizes[4];
} rules[LVP_W_COUNT] = {
    [LVP_W_VIT_CLASS] = {PART_VIT, ALWAYS, NULL, "embeddings.class_embedding", {VIT}},
    [LVP_W_VIT_PATCH] = {PART_VIT, ALWAYS, NULL, "embeddings.patch_embedding.weight", {VIT, RGB, PATCH, PATCH}},
    [LVP_W_VIT_POSITION] = {PART_VIT, ALWAYS, NULL, "embeddings.position_embedding.weight", {POSITIONS, VIT}},
    [LVP_W_VIT_PRE_NORM_W] = {PART_VIT, ALWAYS, NULL, "pre_layrnorm.weight", {VIT}}, // transformers' spelling
    [LVP_W_VIT_PRE_NORM_B] = {PART_VIT, ALWAYS, NULL, "pre_layrnorm.bias", {VIT}},
    [LVP_W_VIT_NORM1_W] = {PART_VIT, ALWAYS, "encoder.layers.", "layer_norm1.weight", {VIT}},
    [LVP_W_VIT_NORM1_B] = {PART_VIT, ALWAYS, "encoder.layers.", "layer_norm1.bias", {VIT}},
    [LVP_W_VIT_Q] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.q_proj.weight", {VIT, VIT}},
    [LVP_W_VIT_Q_B] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.q_proj.bias", {VIT}},
    [LVP_W_VIT_K] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.k_proj.weight", {VIT, VIT}},
    [LVP_W_VIT_K_B] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.k_proj.bias", {VIT}},
    [LVP_W_VIT_V] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.v_proj.weight", {VIT, VIT}},
    [LVP_W_VIT_V_B] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.v_proj.bias", {VIT}},
    [LVP_W_VIT_O] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.out_proj.weight", {VIT, VIT}},
    [LVP_W_VIT_O_B] = {PART_VIT, ALWAYS, "encoder.layers.", "self_attn.out_proj.bias", {VIT}},
    [LVP_W_VIT_NORM2_W] = {PART_VIT, ALWAYS, "encoder.layers.", "layer_norm2.weight", {VIT}},
    [LVP_W_VIT_NORM2_B] = {PART_VIT, ALWAYS, "encoder.layers.", "layer_norm2.bias", {VIT}},
    [LVP_W_VIT_FC1] = {PART_VIT, ALWAYS, "encoder.layers.", "mlp.fc1.weight", {VIT_MLP, VIT}},
    [LVP_W_VIT_FC1_B] = {PART_VIT, ALWAYS, "encoder.layers.", "mlp.fc1.bias", {VIT_MLP}},
    [LVP_W_VIT_FC2] = {PART_VIT, ALWAYS, "encoder.layers.", "mlp.fc2.weight", {VIT, VIT_MLP}},
    [LVP_W_VIT_FC2_B] = {PART_VIT, ALWAYS, "encoder.layers.", "mlp.fc2.bias", {VIT}},
    [LVP_W_PROJ1] = {PART_PROJECTOR, ALWAYS, NULL, "linear_1.weight", {TEXT, FEATURE}},
    [LVP_W_PROJ1_B] = {PART_PROJECTOR, PROJECTOR_BIAS, NULL, "linear_1.bias", {TEXT}},
    [LVP_W_PROJ2] = {PART_PROJECTOR, ALWAYS, NULL, "linear_2.weight", {TEXT, TEXT}},
    [LVP_W_PROJ2_B] = {PART_PROJECTOR, PROJECTOR_BIAS, NULL, "linear_2.bias", {TEXT}},
    [LVP_W_EMBED] = {PART_TEXT, ALWAYS, NULL, "embed_tokens.weight", {VOCAB, TEXT}},
    [LVP_W_FINAL_NORM] = {PART_TEXT, ALWAYS, NULL, "norm.weight", {TEXT}},
    [LVP_W_LM_HEAD] = {PART_HEAD, ALWAYS, NULL, "lm_head.weight", {VOCAB, TEXT}},
    [LVP_W_NORM1] = {PART_TEXT, ALWAYS, "layers.", "input_layernorm.weight", {TEXT}},
    [LVP_W_NORM2] = {PART_TEXT, ALWAYS, "layers.", "post_attention_layernorm.weight", {TEXT}},
    [LVP_W_Q] = {PART_TEXT, ALWAYS, "layers.", "self_attn.q_proj.weight", {HEADS, TEXT}},
    [LVP_W_Q_B] = {PART_TEXT, ATTENTION_BIAS, "layers.", "self_attn.q_proj.bias", {HEADS}},
    [LVP_W_K] = {PART_TEXT, ALWAYS, "layers.", "self_attn.k_proj.weight", {KV_HEADS, TEXT}},
    [LVP_W_K_B] = {PART_TEXT, ATTENTION_BIAS, "layers.", "self_attn.k_proj.bias", {KV_HEADS}},
    [LVP_W_V] = {PART_TEXT, ALWAYS, "layers.", "self_attn.v_proj.weight", {KV_HEADS, TEXT}},
    [LVP_W_V_B] = {PART_TEXT, ATTENTION_BIAS, "layers.", "self_attn.v_proj.bias", {KV_HEADS}},
    [LVP_W_O] = {PART_TEXT, ALWAYS, "layers.", "self_attn.o_proj.weight", {TEXT, HEADS}},
    [LVP_W_O_B] = {PART_TEXT, ATTENTION_BIAS, "layers.", "self_attn.o_proj.bias", {TEXT}},
    [LVP_W_GATE] = {PART_TEXT, ALWAYS, "layers.", "mlp.gate_proj.weight", {TEXT_MLP, TEXT}},
    [LVP_W_GATE_B] = {PART_TEXT, MLP_BIAS, "layers.", "mlp.gate_proj.bias", {TEXT_MLP}},
    [LVP_W_UP] = {PART_TEXT, ALWAYS, "layers.", "mlp.up_proj.weight", {TEXT_MLP, TEXT}},
    [LVP_W_UP_B] = {PART_TEXT, MLP_BIAS, "layers.", "mlp.up_proj.bias", {TEXT_MLP}},
    [LVP_W_DOWN] = {PART_TEXT, ALWAYS, "layers.", "mlp.down_proj.weight", {TEXT, TEXT_MLP}},
    [LVP_W_DOWN_B] = {PART_TEXT, MLP_BIAS, "layers.", "mlp.down_proj.bias", {TEXT}},
};

struct lvp_checkpoint {
    char *dir;
    struct lvp_model_config config;
    struct lvp_tensor_set tensors;
    const char *prefixes[PART_COUNT];
    int sizes[SIZE_COUNT];
    int n_layers;                           // rows of `weights`: the ViT's or the decoder's layers, whichever are more
    struct lvp_weight_pool *pool;           // of synthetic weights,
    struct lvp_tensor_view *views;          // and their tensors, as `weights`
    const struct lvp_tensor_view **weights; // [n_layers][LVP_W_COUNT]; row 0 has those that are not per layer too
};

static void fill_sizes(struct lvp_checkpoint *checkpoint)
{
    const struct lvp_model_config *config = &checkpoint->config;
    int *sizes = checkpoint->sizes;
    sizes[VIT] = config->vision.hidden;
    sizes[VIT_MLP] = config->vision.mlp;
    sizes[RGB] = 3;
    sizes[PATCH] = config->vision.patch_size;
    sizes[POSITIONS] = lvp_patch_count(config) + 1;
    sizes[FEATURE] = lvp_feature_width(config);
    sizes[TEXT] = config->text.hidden;
    sizes[TEXT_MLP] = config->text.mlp;
    sizes[HEADS] = config->text.heads * config->text.head_dim;
    sizes[KV_HEADS] = config->text.kv_heads * config->text.head_dim;
    sizes[VOCAB] = config->text.vocab;
}

static bool is_present(const struct rule *rule, const struct lvp_model_config *config)
{
    switch (rule->presence) {
    case ALWAYS:
        return true;
    case PROJECTOR_BIAS:
        return config->projector_bias;
    case ATTENTION_BIAS:
        return config->text.attention_bias;
    case MLP_BIAS:
        return config->text.mlp_bias;
    }
    return true;
}

static enum lvp_status find_prefixes(struct lvp_checkpoint *checkpoint)
{
    for (int part = 0; part < PART_COUNT; part++) {
        for (int i = 0; i < N_PREFIXES && parts[part].prefixes[i] != NULL; i++) {
            char name[MAX_TENSOR_NAME];
            (void)snprintf(name, sizeof name, "%s%s", parts[part].prefixes[i], parts[part].anchor);
            if (lvp_tensor_set_find(&checkpoint->tensors, name) == NULL) continue;
            checkpoint->prefixes[part] = parts[part].prefixes[i];
            break;
        }
        if (checkpoint->prefixes[part] == NULL && part != PART_HEAD)
            return lvp_fail(LVP_ERR_MODEL, "%s: no tensor %s%s, under none of the names in use", checkpoint->dir,
                            parts[part].prefixes[0], parts[part].anchor);
    }
    return LVP_OK;
}

static enum lvp_status find_weight(struct lvp_checkpoint *checkpoint, int weight, int layer)
{
    const struct rule *rule = &rules[weight];
    char name[MAX_TENSOR_NAME];
    if (rule->layers == NULL)
        (void)snprintf(name, sizeof name, "%s%s", checkpoint->prefixes[rule->part], rule->name);
    else
        (void)snprintf(name, sizeof name, "%s%s%d.%s", checkpoint->prefixes[rule->part], rule->layers, layer,
                       rule->name);
    struct lvp_tensor_entry *entry = lvp_tensor_set_find(&checkpoint->tensors, name);
    if (entry == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: no tensor %s in the weights", checkpoint->dir, name);

    int sizes[5] = {0};
    for (int i = 0; i < 4; i++) sizes[i] = checkpoint->sizes[rule->sizes[i]]; // sizes[NONE] is 0: the end
    LVP_TRY(lvp_tensor_check(entry->view, lvp_safetensors_path(entry->file), sizes));
    entry->used = true;
    checkpoint->weights[(size_t)layer * LVP_W_COUNT + (size_t)weight] = entry->view;
    return LVP_OK;
}

static enum lvp_status create_weights(struct lvp_checkpoint *checkpoint)
{
    int vit_layers = lvp_vit_layers_used(&checkpoint->config), text_layers = checkpoint->config.text.layers;
    checkpoint->n_layers = vit_layers > text_layers ? vit_layers : text_layers;
    checkpoint->weights = calloc((size_t)checkpoint->n_layers * LVP_W_COUNT, sizeof(const struct lvp_tensor_view *));
    return checkpoint->weights != NULL ? LVP_OK : lvp_fail(LVP_ERR_MEMORY, "no memory for the weights");
}

// Layers that have a tensor of this role.
static int count_layers(const struct rule *rule, const struct lvp_model_config *config)
{
    return rule->layers == NULL ? 1 : rule->part == PART_VIT ? lvp_vit_layers_used(config) : config->text.layers;
}

static enum lvp_status find_weights(struct lvp_checkpoint *checkpoint)
{
    const struct lvp_model_config *config = &checkpoint->config;
    LVP_TRY(create_weights(checkpoint));
    for (int weight = 0; weight < LVP_W_COUNT; weight++) {
        const struct rule *rule = &rules[weight];
        if (!is_present(rule, config)) continue;
        if (weight == LVP_W_LM_HEAD && checkpoint->prefixes[PART_HEAD] == NULL) {
            checkpoint->weights[weight] = checkpoint->weights[LVP_W_EMBED];
            continue;
        }
        int n = count_layers(rule, config);
        for (int layer = 0; layer < n; layer++) LVP_TRY(find_weight(checkpoint, weight, layer));
    }
    if (config->text.tied_embeddings && checkpoint->prefixes[PART_HEAD] != NULL)
        lvp_warn("%s: config.json says tie_word_embeddings, but the weights have an lm_head: it is used",
                 checkpoint->dir);
    return LVP_OK;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text);
    size_t m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

// Tensors that published folders carry and the model does not compute with: buffers, what follows the last feature
// layer.
static bool needs_no_loading(const char *name, const void *context)
{
    const struct lvp_checkpoint *checkpoint = context;
    if (ends_with(name, ".position_ids") || ends_with(name, ".inv_freq")) return true;
    size_t n = strlen(checkpoint->prefixes[PART_VIT]);
    if (strncmp(name, checkpoint->prefixes[PART_VIT], n) != 0) return false;
    if (strncmp(name + n, "post_layernorm.", strlen("post_layernorm.")) == 0) return true;
    int layer;
    return sscanf(name + n, "encoder.layers.%9d.", &layer) == 1 && layer >= lvp_vit_layers_used(&checkpoint->config) &&
           layer < checkpoint->config.vision.layers;
}

enum lvp_status lvp_checkpoint_open(const char *dir, struct lvp_checkpoint **result)
{
    *result = NULL;
    enum lvp_status status = LVP_OK;
    struct lvp_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL || (checkpoint->dir = strdup(dir)) == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "%s: no memory to open it", dir);
        goto fail;
    }
    LVP_CHECK(lvp_model_config_load(dir, &checkpoint->config));
    fill_sizes(checkpoint);
    LVP_CHECK(lvp_tensor_set_open(dir, &checkpoint->tensors));
    LVP_CHECK(find_prefixes(checkpoint));
    LVP_CHECK(find_weights(checkpoint));
    lvp_tensor_set_warn_unused(&checkpoint->tensors, dir, needs_no_loading, checkpoint);
    *result = checkpoint;
    return LVP_OK;
fail:
    lvp_checkpoint_close(checkpoint);
    return status;
}

static enum lvp_status cut_weights(struct lvp_checkpoint *checkpoint)
{
    const struct lvp_model_config *config = &checkpoint->config;
    size_t largest = 0;
    for (int weight = 0; weight < LVP_W_COUNT; weight++) {
        size_t n = 1;
        for (int i = 0; i < 4 && rules[weight].sizes[i] != NONE; i++)
            n *= (size_t)checkpoint->sizes[rules[weight].sizes[i]];
        if (n > largest) largest = n;
    }
    LVP_TRY(create_weights(checkpoint));
    LVP_TRY(lvp_weight_pool_create(largest, &checkpoint->pool));
    checkpoint->views = calloc((size_t)checkpoint->n_layers * LVP_W_COUNT, sizeof *checkpoint->views);
    if (checkpoint->views == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for the weights");
    for (int weight = 0; weight < LVP_W_COUNT; weight++) {
        const struct rule *rule = &rules[weight];
        int sizes[4], n = is_present(rule, config) ? count_layers(rule, config) : 0;
        for (int i = 0; i < 4; i++) sizes[i] = checkpoint->sizes[rule->sizes[i]];
        for (int layer = 0; layer < n; layer++) {
            size_t at = (size_t)layer * LVP_W_COUNT + (size_t)weight;
            checkpoint->views[at] = lvp_weight_pool_cut(checkpoint->pool, rule->name, sizes);
            checkpoint->weights[at] = &checkpoint->views[at];
        }
    }
    return LVP_OK;
}

enum lvp_status lvp_checkpoint_synthetic(const struct lvp_model_config *config, struct lvp_checkpoint **result)
{
    *result = NULL;
    enum lvp_status status = LVP_OK;
    struct lvp_checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (checkpoint == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for the weights");
    checkpoint->config = *config;
    fill_sizes(checkpoint);
    LVP_CHECK(cut_weights(checkpoint));
    *result = checkpoint;
    return LVP_OK;
fail:
    lvp_checkpoint_close(checkpoint);
    return status;
}

void lvp_checkpoint_close(struct lvp_checkpoint *checkpoint)
{
    if (checkpoint == NULL) return;
    lvp_weight_pool_free(checkpoint->pool);
    free(checkpoint->views);
    lvp_tensor_set_close(&checkpoint->tensors);
    free(checkpoint->weights);
    free(checkpoint->dir);
    free(checkpoint);
}

const struct lvp_model_config *lvp_checkpoint_config(const struct lvp_checkpoint *checkpoint)
{
    return &checkpoint->config;
}

const struct lvp_tensor_view *lvp_checkpoint_weight(const struct lvp_checkpoint *checkpoint, enum lvp_weight weight,
                                                    int layer)
{
    if (rules[weight].layers == NULL) layer = 0;
    if (layer < 0 || layer >= checkpoint->n_layers) return NULL;
    return checkpoint->weights[(size_t)layer * LVP_W_COUNT + (size_t)weight];
}

// A file's header in full and, where the file is large, samples spread over it; else all its bytes.
static void add_weights_file(struct lvp_hash *hash, const struct lvp_safetensors *file)
{
    enum { WHOLE_UP_TO = 64 << 20, SAMPLE = 4096, N_SAMPLES = 1024 };
    size_t size;
    const unsigned char *bytes = lvp_safetensors_bytes(file, &size);
    lvp_hash_add(hash, &size, sizeof size);
    if (size <= WHOLE_UP_TO) {
        lvp_hash_add(hash, bytes, size);
        return;
    }
    uint64_t header;
    memcpy(&header, bytes, sizeof header);
    lvp_hash_add(hash, bytes, sizeof header + (size_t)header);
    size_t stride = (size - SAMPLE) / (N_SAMPLES - 1);
    for (size_t i = 0; i < N_SAMPLES; i++) lvp_hash_add(hash, bytes + i * stride, SAMPLE);
}

// Of files of the folder, which may be missing, behind the weights where those are asked for.
static enum lvp_status hash_files(const struct lvp_checkpoint *checkpoint, bool weights, const char *const *names,
                                  size_t n_names, char hex[33])
{
    enum lvp_status status = LVP_OK;
    struct lvp_hash *hash;
    LVP_CHECK(lvp_hash_new(&hash));
    for (size_t i = 0; weights && i < checkpoint->tensors.n_files; i++)
        add_weights_file(hash, checkpoint->tensors.files[i]);
    for (size_t i = 0; i < n_names; i++) {
        char path[PATH_MAX];
        (void)snprintf(path, sizeof path, "%s/%s", checkpoint->dir, names[i]); // the folder was opened: it fits
        LVP_CHECK(lvp_hash_add_file(hash, path, true));
    }
    lvp_hash_hex(hash, hex);
fail:
    lvp_hash_free(hash);
    return status;
}

enum lvp_status lvp_checkpoint_hash(const struct lvp_checkpoint *checkpoint, char hex[33])
{
    // Every other file that decides what comes out of the model.
    static const char *const names[] = {
        "config.json",       "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "tokenizer.json",    "tokenizer.model",        "tokenizer_config.json",    "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja",    "chat_template.json",
    };
    return hash_files(checkpoint, true, names, sizeof names / sizeof *names, hex);
}

enum lvp_status lvp_checkpoint_config_hash(const struct lvp_checkpoint *checkpoint, char hex[33])
{
    static const char *const names[] = {"config.json",           "generation_config.json", "preprocessor_config.json",
                                        "processor_config.json", "chat_template.jinja",    "chat_template.json"};
    return hash_files(checkpoint, false, names, sizeof names / sizeof *names, hex);
}
