// vision_config and text_config of config.json, with the defaults of transformers 4.57: CLIPVisionConfig, LlamaConfig,
// and LlavaConfig for a vision_config that is not there at all.
#include "common/model_config_parts.h"

#include <string.h>

static const struct {
    const char *name;
    enum lvp_activation activation;
} activations[] = {
    {"gelu", LVP_ACT_GELU}, // the first name of each is the one that is printed
    {"gelu_python", LVP_ACT_GELU},
    {"gelu_pytorch_tanh", LVP_ACT_GELU_TANH},
    {"gelu_python_tanh", LVP_ACT_GELU_TANH},
    {"gelu_new", LVP_ACT_GELU_TANH},
    {"gelu_fast", LVP_ACT_GELU_TANH},
    {"gelu_accurate", LVP_ACT_GELU_TANH},
    {"quick_gelu", LVP_ACT_QUICK_GELU},
    {"silu", LVP_ACT_SILU},
    {"swish", LVP_ACT_SILU},
    {"relu", LVP_ACT_RELU},
    {"linear", LVP_ACT_NONE},
};
enum { N_ACTIVATIONS = sizeof activations / sizeof activations[0] };

const char *lvp_activation_name(enum lvp_activation activation)
{
    for (int i = 0; i < N_ACTIVATIONS; i++)
        if (activations[i].activation == activation) return activations[i].name;
    return "unknown";
}

enum lvp_status lvp_activation_read(const struct lvp_json *object, const char *key, enum lvp_activation *activation)
{
    const char *name = NULL;
    LVP_TRY(lvp_json_string(object, key, &name));
    if (name == NULL) return LVP_OK;
    for (int i = 0; i < N_ACTIVATIONS; i++) {
        if (strcmp(name, activations[i].name) != 0) continue;
        *activation = activations[i].activation;
        return LVP_OK;
    }
    return lvp_fail(LVP_ERR_MODEL, "%s: %s%s: the activation \"%s\" is not supported", object->file, object->path, key,
                    name);
}

enum lvp_status lvp_model_type_check(const struct lvp_json *object, const char *wanted, bool optional)
{
    const char *type = NULL;
    LVP_TRY(lvp_json_string(object, "model_type", &type));
    if (type == NULL && optional) return LVP_OK;
    if (type == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: %smodel_type is missing", object->file, object->path);
    if (strcmp(type, wanted) != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %smodel_type \"%s\" is not supported (%s is)", object->file, object->path,
                        type, wanted);
    return LVP_OK;
}

static enum lvp_status check_vision(const struct lvp_json *object, const struct lvp_vision_config *vision, int channels)
{
    if (channels != 3)
        return lvp_fail(LVP_ERR_MODEL, "%s: %snum_channels is %d, only 3 is supported", object->file, object->path,
                        channels);
    if (vision->hidden % vision->heads != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %shidden_size %d is not a multiple of num_attention_heads %d", object->file,
                        object->path, vision->hidden, vision->heads);
    if (vision->patch_size >
        vision->image_size) // a rest of image_size over patch_size is legal: the last pixels are unused
        return lvp_fail(LVP_ERR_MODEL, "%s: %spatch_size %d is larger than image_size %d", object->file, object->path,
                        vision->patch_size, vision->image_size);
    int side = vision->image_size / vision->patch_size;
    if (side * side > LVP_BOUND_PATCHES)
        return lvp_fail(LVP_ERR_MODEL, "%s: %simage_size %d with patch_size %d gives %d patches, more than %d",
                        object->file, object->path, vision->image_size, vision->patch_size, side * side,
                        LVP_BOUND_PATCHES);
    return LVP_OK;
}

enum lvp_status lvp_vision_config_read(const struct lvp_json *config, struct lvp_vision_config *vision)
{
    *vision = (struct lvp_vision_config){.hidden = 1024,
                                         .layers = 24,
                                         .heads = 16,
                                         .mlp = 4096,
                                         .image_size = 336,
                                         .patch_size = 14,
                                         .activation = LVP_ACT_QUICK_GELU,
                                         .norm_eps = 1e-5F};
    if (!lvp_json_has(config, "vision_config")) return LVP_OK;
    *vision = (struct lvp_vision_config){.hidden = 768,
                                         .layers = 12,
                                         .heads = 12,
                                         .mlp = 3072,
                                         .image_size = 224,
                                         .patch_size = 32,
                                         .activation = LVP_ACT_QUICK_GELU,
                                         .norm_eps = 1e-5F};
    struct lvp_json object;
    int channels = 3;
    LVP_TRY(lvp_json_child(config, "vision_config", &object));
    LVP_TRY(lvp_model_type_check(&object, "clip_vision_model", true));
    LVP_TRY(lvp_json_int(&object, "hidden_size", 1, LVP_BOUND_WIDTH, &vision->hidden));
    LVP_TRY(lvp_json_int(&object, "num_hidden_layers", 1, LVP_MAX_LAYERS, &vision->layers));
    LVP_TRY(lvp_json_int(&object, "num_attention_heads", 1, LVP_BOUND_HEADS, &vision->heads));
    LVP_TRY(lvp_json_int(&object, "intermediate_size", 1, LVP_BOUND_MLP, &vision->mlp));
    LVP_TRY(lvp_json_int(&object, "image_size", 1, LVP_BOUND_IMAGE_SIZE, &vision->image_size));
    LVP_TRY(lvp_json_int(&object, "patch_size", 1, LVP_BOUND_IMAGE_SIZE, &vision->patch_size));
    LVP_TRY(lvp_json_int(&object, "num_channels", 1, 64, &channels));
    LVP_TRY(lvp_json_float(&object, "layer_norm_eps", 1e-12, 1.0, &vision->norm_eps));
    LVP_TRY(lvp_activation_read(&object, "hidden_act", &vision->activation));
    return check_vision(&object, vision, channels);
}

// One of rope_parameters (newer: theta inside) and rope_scaling (older). Its kind is `rope_type` or `type`.
static enum lvp_status read_rope_object(const struct lvp_json *object, const char *key, struct lvp_text_config *text)
{
    if (!lvp_json_has(object, key)) return LVP_OK;
    struct lvp_json rope;
    const char *type = "default";
    LVP_TRY(lvp_json_child(object, key, &rope));
    LVP_TRY(lvp_json_string(&rope, "type", &type));
    LVP_TRY(lvp_json_string(&rope, "rope_type", &type));
    LVP_TRY(lvp_json_float(&rope, "rope_theta", 1.0, 1e12, &text->rope_theta));
    if (strcmp(type, "default") == 0) return LVP_OK;
    if (strcmp(type, "linear") != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s: the type \"%s\" is not supported (default and linear are)",
                        object->file, object->path, key, type);
    if (!lvp_json_has(&rope, "factor")) return lvp_fail(LVP_ERR_MODEL, "%s: %sfactor is missing", rope.file, rope.path);
    return lvp_json_float(&rope, "factor", 1.0, 1e6, &text->rope_factor);
}

static enum lvp_status read_rope(const struct lvp_json *object, struct lvp_text_config *text)
{
    float rotary_share = 1.0F;
    LVP_TRY(lvp_json_float(object, "partial_rotary_factor", 0.0, 1.0, &rotary_share));
    if (rotary_share < 1.0F)
        return lvp_fail(LVP_ERR_MODEL, "%s: %spartial_rotary_factor below 1 is not supported", object->file,
                        object->path);
    LVP_TRY(lvp_json_float(object, "rope_theta", 1.0, 1e12, &text->rope_theta));
    LVP_TRY(read_rope_object(object, "rope_scaling", text));
    return read_rope_object(object, "rope_parameters", text);
}

// Heads, their widths and what is derived from the other fields when it is left out.
static enum lvp_status read_heads(const struct lvp_json *object, struct lvp_text_config *text)
{
    LVP_TRY(lvp_json_int(object, "num_attention_heads", 1, LVP_BOUND_HEADS, &text->heads));
    text->kv_heads = text->heads;
    if (lvp_json_has(object, "num_key_value_heads"))
        LVP_TRY(lvp_json_int(object, "num_key_value_heads", 1, LVP_BOUND_HEADS, &text->kv_heads));
    if (text->heads % text->kv_heads != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %snum_attention_heads %d is not a multiple of num_key_value_heads %d",
                        object->file, object->path, text->heads, text->kv_heads);

    text->head_dim = text->hidden / text->heads;
    if (lvp_json_has(object, "head_dim"))
        LVP_TRY(lvp_json_int(object, "head_dim", 2, LVP_BOUND_WIDTH, &text->head_dim));
    else if (text->hidden % text->heads != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %shidden_size %d is not a multiple of num_attention_heads %d", object->file,
                        object->path, text->hidden, text->heads);
    if (text->head_dim < 2 || text->head_dim % 2 != 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %shead_dim %d is not a positive even number", object->file, object->path,
                        text->head_dim);
    if (text->head_dim > LVP_BOUND_WIDTH / text->heads)
        return lvp_fail(LVP_ERR_MODEL, "%s: %shead_dim %d with %d heads is wider than %d", object->file, object->path,
                        text->head_dim, text->heads, LVP_BOUND_WIDTH);
    return LVP_OK;
}

enum lvp_status lvp_text_config_read(const struct lvp_json *config, struct lvp_text_config *text)
{
    *text = (struct lvp_text_config){.vocab = 32000,
                                     .hidden = 4096,
                                     .layers = 32,
                                     .heads = 32,
                                     .kv_heads = 32,
                                     .head_dim = 128,
                                     .mlp = 11008,
                                     .max_positions = 2048,
                                     .norm_eps = 1e-6F,
                                     .rope_theta = 10000.0F,
                                     .rope_factor = 1.0F,
                                     .activation = LVP_ACT_SILU};
    if (!lvp_json_has(config, "text_config")) return LVP_OK;
    struct lvp_json object;
    LVP_TRY(lvp_json_child(config, "text_config", &object));
    LVP_TRY(lvp_model_type_check(&object, "llama", true));
    LVP_TRY(lvp_json_int(&object, "vocab_size", 1, LVP_BOUND_VOCAB, &text->vocab));
    LVP_TRY(lvp_json_int(&object, "hidden_size", 1, LVP_BOUND_WIDTH, &text->hidden));
    LVP_TRY(lvp_json_int(&object, "num_hidden_layers", 1, LVP_MAX_LAYERS, &text->layers));
    LVP_TRY(lvp_json_int(&object, "intermediate_size", 1, LVP_BOUND_MLP, &text->mlp));
    LVP_TRY(lvp_json_int(&object, "max_position_embeddings", 1, LVP_BOUND_POSITIONS, &text->max_positions));
    LVP_TRY(lvp_json_float(&object, "rms_norm_eps", 1e-12, 1.0, &text->norm_eps));
    LVP_TRY(lvp_json_bool(&object, "attention_bias", &text->attention_bias));
    LVP_TRY(lvp_json_bool(&object, "mlp_bias", &text->mlp_bias));
    LVP_TRY(lvp_json_bool(&object, "tie_word_embeddings", &text->tied_embeddings));
    LVP_TRY(lvp_activation_read(&object, "hidden_act", &text->activation));
    LVP_TRY(read_heads(&object, text));
    return read_rope(&object, text);
}
