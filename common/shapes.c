#include "common/shapes.h"

#include "common/json.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The fields that differ from transformers' defaults, as the published folders have them (llava-hf/llava-1.5-7b-hf,
// llava-hf/llava-1.5-13b-hf, bczhou/tiny-llava-v1-hf: TinyLlama-1.1B with the same vision tower).
static const struct {
    const char *name, *config;
} shapes[] = {
    {"llava-1.5-7b",
     "{\"text_config\": {\"vocab_size\": 32064, \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-5},"
     " \"torch_dtype\": \"float16\"}"},
    {"llava-1.5-13b", "{\"text_config\": {\"vocab_size\": 32064, \"hidden_size\": 5120, \"intermediate_size\": 13824,"
                      " \"num_hidden_layers\": 40, \"num_attention_heads\": 40, \"num_key_value_heads\": 40,"
                      " \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-5}, \"torch_dtype\": \"float16\"}"},
    {"tiny-llava", "{\"text_config\": {\"vocab_size\": 32064, \"hidden_size\": 2048, \"intermediate_size\": 5632,"
                   " \"num_hidden_layers\": 22, \"num_attention_heads\": 32, \"num_key_value_heads\": 4,"
                   " \"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-5}, \"torch_dtype\": \"float16\"}"},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

// CLIP's preprocessing at the shape's own image size.
static const char image_format[] = "{\"do_resize\": true, \"size\": {\"shortest_edge\": %d}, \"do_center_crop\": true,"
                                   " \"crop_size\": {\"height\": %d, \"width\": %d}}";

static int image_size_of(const json_t *config)
{
    const json_t *vision = json_object_get(config, "vision_config");
    if (vision == NULL) return 336; // LlavaConfig's own vision tower
    const json_t *size = json_object_get(vision, "image_size");
    json_int_t value = json_is_integer(size) ? json_integer_value(size) : 224; // CLIPVisionConfig
    return value < 1 || value > 1 << 20 ? 1 : (int)value; // out of bounds: refused where the config is read
}

// Takes `root`.
static enum lvp_status shape_from_json(const char *name, json_t *root, struct lvp_model_config *config)
{
    char image[256];
    int size = image_size_of(root);
    (void)snprintf(image, sizeof image, image_format, size, size, size);
    if (json_object_get(root, "model_type") == NULL &&
        json_object_set_new(root, "model_type", json_string("llava")) != 0) {
        json_decref(root);
        return lvp_fail(LVP_ERR_MODEL, "%s: not a JSON object", name);
    }
    char *text = json_dumps(root, 0);
    json_decref(root);
    if (text == NULL) return lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", name);
    enum lvp_status status = lvp_model_config_parse(text, image, NULL, config);
    free(text);
    if (status != LVP_OK) { // put the name in front: the reader knows the text only as config.json
        char reason[512];
        (void)snprintf(reason, sizeof reason, "%s", lvp_error_text());
        lvp_error_clear();
        return lvp_fail(status, "--shape %s: %s", name, reason);
    }
    return LVP_OK;
}

enum lvp_status lvp_shape_load(const char *name, struct lvp_model_config *config)
{
    json_error_t error;
    for (int i = 0; i < N_SHAPES; i++) {
        if (strcmp(name, shapes[i].name) != 0) continue;
        json_t *root = json_loads(shapes[i].config, 0, &error);
        if (root == NULL) return lvp_fail(LVP_ERR_INTERNAL, "--shape %s: %s", name, error.text);
        return shape_from_json(name, root, config);
    }
    size_t length = strlen(name);
    if (length < 5 || strcmp(name + length - 5, ".json") != 0)
        return lvp_fail(LVP_ERR_USAGE, "--shape %s: give llava-1.5-7b, llava-1.5-13b, tiny-llava or a FILE.json", name);
    json_t *root = NULL;
    LVP_TRY(lvp_json_load(name, true, &root));
    if (root == NULL) return lvp_fail(LVP_ERR_USAGE, "--shape %s: there is no such file", name);
    return shape_from_json(name, root, config);
}

// Decoder layers that take more than so many bytes in 16 bits.
static int layers_beyond(const struct lvp_text_config *text, double bytes)
{
    double layer_bytes = 2.0 * text->hidden * (2.0 * text->heads * text->head_dim + 3.0 * text->mlp);
    double enough = 1 + bytes / layer_bytes;
    return enough < text->layers ? (int)enough : text->layers;
}

int lvp_shape_layers_in_memory(const struct lvp_text_config *text, int threads)
{
    static const double of_a_thread = 128 << 20; // more than the L3 that a core reaches, but for a few servers' chips
    return layers_beyond(text, threads * of_a_thread);
}

struct lvp_model_config lvp_shape_narrow(const struct lvp_model_config *config)
{
    enum { WIDEST = 2048, ENOUGH_BYTES = 512 << 20 }; // more than a server's caches hold together
    struct lvp_model_config narrow = *config;
    struct lvp_text_config *text = &narrow.text;
    if (text->hidden > WIDEST) {
        int group = text->heads / text->kv_heads, kv_heads = WIDEST / text->head_dim / group;
        text->kv_heads = kv_heads > 0 ? kv_heads : 1;
        text->heads = text->kv_heads * group;
        text->mlp = (int)((long long)text->mlp * WIDEST / text->hidden);
        text->hidden = WIDEST;
    }
    text->layers = layers_beyond(text, ENOUGH_BYTES);
    text->vocab = 64;
    narrow.image_token_id = 63;
    narrow.vision.layers = narrow.feature_layers[0] = narrow.n_feature_layers = 1;
    return narrow;
}
