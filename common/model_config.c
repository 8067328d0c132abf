// config.json as a whole, and the fields beside its vision_config and text_config.
#include "common/model_config_parts.h"

#include <stdio.h>
#include <string.h>

// Values of the fields that config.json leaves out: transformers 4.57, LlavaConfig.
enum { DEFAULT_IMAGE_TOKEN = 32000, DEFAULT_FEATURE_LAYER = -2, DEFAULT_BOS = 1, DEFAULT_EOS = 2 };

// The three documents a configuration is read from. `generation` may be NULL.
struct sources {
    json_t *config, *processor, *generation; // owned
    char config_file[512], processor_file[512], generation_file[512];
};

int lvp_vit_layers_used(const struct lvp_model_config *config)
{
    int used = 0;
    for (int i = 0; i < config->n_feature_layers; i++)
        if (config->feature_layers[i] > used) used = config->feature_layers[i];
    return used;
}

int lvp_patch_count(const struct lvp_model_config *config)
{
    int side = config->vision.image_size / config->vision.patch_size;
    return side * side;
}

int lvp_vision_tokens(const struct lvp_model_config *config)
{
    return lvp_patch_count(config) + (config->select_full ? 1 : 0);
}

int lvp_feature_width(const struct lvp_model_config *config)
{
    return config->vision.hidden * config->n_feature_layers;
}

// hidden_states[i] of transformers is the residual stream after i layers (0: after pre_layrnorm), so a list of
// layers + 1 entries that negative indices count from the end of.
static enum lvp_status read_feature_layers(const struct lvp_json *root, struct lvp_model_config *config)
{
    int layers = config->vision.layers;
    config->feature_layers[0] = DEFAULT_FEATURE_LAYER;
    config->n_feature_layers = 1;
    LVP_TRY(lvp_json_ints(root, "vision_feature_layer", -(layers + 1), layers, LVP_MAX_FEATURE_LAYERS,
                          config->feature_layers, &config->n_feature_layers));
    for (int i = 0; i < config->n_feature_layers; i++)
        if (config->feature_layers[i] < 0) config->feature_layers[i] += layers + 1;
    return LVP_OK;
}

static enum lvp_status read_select_strategy(const struct lvp_json *root, bool *full)
{
    const char *strategy = "default";
    LVP_TRY(lvp_json_string(root, "vision_feature_select_strategy", &strategy));
    *full = strcmp(strategy, "full") == 0;
    if (!*full && strcmp(strategy, "default") != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: vision_feature_select_strategy \"%s\" is neither default nor full",
                        root->file, strategy);
    return LVP_OK;
}

// The newer and the older name of the type, in the root or, as folders of one sub-model have it, in text_config.
static enum lvp_status read_dtype(const struct lvp_json *root, enum lvp_dtype *dtype)
{
    static const char *const keys[] = {"dtype", "torch_dtype"};
    *dtype = LVP_F32;
    struct lvp_json places[2] = {*root};
    int n_places = 1;
    if (lvp_json_has(root, "text_config")) LVP_TRY(lvp_json_child(root, "text_config", &places[n_places++]));
    for (int i = 0; i < n_places; i++) {
        for (int k = 0; k < 2; k++) {
            if (!lvp_json_has(&places[i], keys[k])) continue;
            const char *name = NULL;
            LVP_TRY(lvp_json_string(&places[i], keys[k], &name));
            const char *plain = strncmp(name, "torch.", 6) == 0 ? name + 6 : name;
            if (strcmp(plain, "float32") == 0) return *dtype = LVP_F32, LVP_OK;
            if (strcmp(plain, "float16") == 0) return *dtype = LVP_F16, LVP_OK;
            if (strcmp(plain, "bfloat16") == 0) return *dtype = LVP_BF16, LVP_OK;
            return lvp_fail(LVP_ERR_MODEL, "%s: %s%s \"%s\" is not supported (float32, float16 and bfloat16 are)",
                            root->file, places[i].path, keys[k], name);
        }
    }
    return LVP_OK;
}

// Ids that end and begin a text: generation_config first, then text_config, then LLaMA's.
static enum lvp_status read_special_ids(const struct lvp_json *root, const struct lvp_json *generation,
                                        struct lvp_model_config *config)
{
    struct lvp_json text;
    bool has_text = lvp_json_has(root, "text_config");
    if (has_text) LVP_TRY(lvp_json_child(root, "text_config", &text));
    const struct lvp_json *const places[] = {generation, has_text ? &text : NULL};

    int last_id = config->text.vocab - 1;
    bool has_eos = false;
    bool has_bos = false;
    config->eos_ids[0] = DEFAULT_EOS;
    config->n_eos = 1;
    config->bos_id = DEFAULT_BOS;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        if (places[i] == NULL) continue;
        if (!has_eos && lvp_json_has(places[i], "eos_token_id")) {
            has_eos = true;
            LVP_TRY(lvp_json_ints(places[i], "eos_token_id", 0, last_id, LVP_MAX_EOS, config->eos_ids, &config->n_eos));
        }
        if (!has_bos && lvp_json_has(places[i], "bos_token_id")) {
            has_bos = true;
            LVP_TRY(lvp_json_int(places[i], "bos_token_id", 0, last_id, &config->bos_id));
        }
    }
    return LVP_OK;
}

static enum lvp_status read_config(const struct lvp_json *root, struct lvp_model_config *config)
{
    LVP_TRY(lvp_model_type_check(root, "llava", false));
    if (lvp_json_has(root, "quantization_config"))
        return lvp_fail(LVP_ERR_MODEL, "%s: quantization_config: quantized weights are not supported", root->file);
    LVP_TRY(lvp_vision_config_read(root, &config->vision));
    LVP_TRY(lvp_text_config_read(root, &config->text));
    LVP_TRY(read_feature_layers(root, config));
    LVP_TRY(read_select_strategy(root, &config->select_full));

    config->projector_activation = LVP_ACT_GELU;
    config->projector_bias = true;
    LVP_TRY(lvp_activation_read(root, "projector_hidden_act", &config->projector_activation));
    LVP_TRY(lvp_json_bool(root, "multimodal_projector_bias", &config->projector_bias));

    // The image token is replaced before the embedding is looked up, so it may lie beyond the vocabulary.
    config->image_token_id = DEFAULT_IMAGE_TOKEN;
    LVP_TRY(lvp_json_int(root, "image_token_id", 0, LVP_BOUND_VOCAB, &config->image_token_id));
    LVP_TRY(lvp_json_int(root, "image_token_index", 0, LVP_BOUND_VOCAB, &config->image_token_id));
    return read_dtype(root, &config->dtype);
}

static enum lvp_status read_sources(const struct sources *sources, struct lvp_model_config *config)
{
    *config = (struct lvp_model_config){0};
    struct lvp_json root;
    struct lvp_json processor;
    struct lvp_json generation;
    LVP_TRY(lvp_json_root(sources->config, sources->config_file, &root));
    LVP_TRY(read_config(&root, config));
    LVP_TRY(lvp_json_root(sources->processor, sources->processor_file, &processor));
    LVP_TRY(lvp_image_config_read(&processor, config->vision.image_size, &config->image));
    if (sources->generation != NULL) LVP_TRY(lvp_json_root(sources->generation, sources->generation_file, &generation));
    return read_special_ids(&root, sources->generation != NULL ? &generation : NULL, config);
}

static void release(struct sources *sources)
{
    json_decref(sources->config);
    json_decref(sources->processor);
    json_decref(sources->generation);
}

// Loads DIR/NAME and keeps the path for messages.
static enum lvp_status load_one(const char *dir, const char *name, bool optional, char path[512], json_t **root)
{
    *root = NULL;
    int n = snprintf(path, 512, "%s/%s", dir, name);
    if (n < 0 || n >= 512) return lvp_fail(LVP_ERR_MODEL, "%s: the path is too long", dir);
    return lvp_json_load(path, optional, root);
}

enum lvp_status lvp_model_config_load(const char *dir, struct lvp_model_config *config)
{
    enum lvp_status status = LVP_OK;
    struct sources sources = {0};
    LVP_CHECK(load_one(dir, "config.json", false, sources.config_file, &sources.config));
    LVP_CHECK(load_one(dir, "preprocessor_config.json", true, sources.processor_file, &sources.processor));
    if (sources.processor == NULL) {
        LVP_CHECK(load_one(dir, "processor_config.json", true, sources.processor_file, &sources.processor));
        // Older folders have a processor_config.json too, without image settings.
        if (sources.processor == NULL || !json_is_object(json_object_get(sources.processor, "image_processor"))) {
            status =
                lvp_fail(LVP_ERR_MODEL,
                         "%s: no image settings: neither preprocessor_config.json nor a processor_config.json with "
                         "image_processor inside",
                         dir);
            goto fail;
        }
    }
    LVP_CHECK(load_one(dir, "generation_config.json", true, sources.generation_file, &sources.generation));
    LVP_CHECK(read_sources(&sources, config));
fail:
    release(&sources);
    return status;
}

enum lvp_status lvp_model_config_parse(const char *config_text, const char *image_text, const char *generation_text,
                                       struct lvp_model_config *config)
{
    enum lvp_status status = LVP_OK;
    struct sources sources = {.config_file = "config.json",
                              .processor_file = "preprocessor_config.json",
                              .generation_file = "generation_config.json"};
    LVP_CHECK(lvp_json_parse(sources.config_file, config_text, strlen(config_text), &sources.config));
    LVP_CHECK(lvp_json_parse(sources.processor_file, image_text, strlen(image_text), &sources.processor));
    if (generation_text != NULL)
        LVP_CHECK(
            lvp_json_parse(sources.generation_file, generation_text, strlen(generation_text), &sources.generation));
    LVP_CHECK(read_sources(&sources, config));
fail:
    release(&sources);
    return status;
}
