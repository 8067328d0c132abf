// Builds small safetensors files and LLaVA folders in a temporary directory. For tests that include it; the fill of a
// tensor is a running number so that two tensors never hold the same bytes.
#ifndef LVP_TESTS_SMALL_MODEL_H
#define LVP_TESTS_SMALL_MODEL_H

#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct tensor_file {
    json_t *header;
    unsigned char *data;
    size_t n_bytes;
    unsigned counter;
};

static inline void tensor_file_begin(struct tensor_file *file)
{
    *file = (struct tensor_file){.header = json_object()};
}

// Appends a tensor of `element` bytes per element with the dimensions that follow, ended by -1.
static inline void tensor_file_add(struct tensor_file *file, const char *name, const char *dtype, size_t element, ...)
{
    size_t n = element;
    json_t *shape = json_array();
    va_list dims;
    va_start(dims, element);
    for (int dim = va_arg(dims, int); dim >= 0; dim = va_arg(dims, int)) {
        json_array_append_new(shape, json_integer(dim));
        n *= (size_t)dim;
    }
    va_end(dims);
    file->data = realloc(file->data, file->n_bytes + n + 1);
    for (size_t i = 0; i < n; i++) file->data[file->n_bytes + i] = (unsigned char)(file->counter++ & 0x3f);
    json_object_set_new(file->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets",
                                  (json_int_t)file->n_bytes, (json_int_t)(file->n_bytes + n)));
    file->n_bytes += n;
}

static inline void tensor_file_metadata(struct tensor_file *file, const char *key, const char *value)
{
    json_t *metadata = json_object_get(file->header, "__metadata__");
    if (metadata == NULL) {
        metadata = json_object();
        json_object_set_new(file->header, "__metadata__", metadata);
    }
    json_object_set_new(metadata, key, json_string(value));
}

// The file's bytes, malloc'ed; the builder is emptied.
static inline unsigned char *tensor_file_end(struct tensor_file *file, size_t *n_bytes)
{
    char *text = json_dumps(file->header, JSON_COMPACT);
    uint64_t length = strlen(text);
    *n_bytes = 8 + (size_t)length + file->n_bytes;
    unsigned char *bytes = malloc(*n_bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, text, (size_t)length);
    if (file->n_bytes > 0) memcpy(bytes + 8 + length, file->data, file->n_bytes);
    free(text);
    free(file->data);
    json_decref(file->header);
    return bytes;
}

static inline void write_bytes(const char *dir, const char *name, const void *bytes, size_t n_bytes)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *out = fopen(path, "wb");
    if (out == NULL || fwrite(bytes, 1, n_bytes, out) != n_bytes || fclose(out) != 0) abort();
}

static inline void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}

static inline void tensor_file_write(struct tensor_file *file, const char *dir, const char *name)
{
    size_t n_bytes;
    unsigned char *bytes = tensor_file_end(file, &n_bytes);
    write_bytes(dir, name, bytes, n_bytes);
    free(bytes);
}

static inline void make_temp_dir(char dir[64])
{
    strcpy(dir, "/tmp/lvp_test_XXXXXX");
    if (mkdtemp(dir) == NULL) abort();
}

static inline void remove_temp_dir(const char *dir)
{
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", dir);
    if (system(command) != 0) abort();
}

// A LLaVA with a ViT of 3 layers (2 used), width 8, 4 patches; a decoder of 2 layers, width 12, 3 heads of 4, 1 KV
// head.
static const char small_config[] =
    "{\"model_type\":\"llava\",\"image_token_index\":39,\"dtype\":\"bfloat16\","
    "\"vision_config\":{\"model_type\":\"clip_vision_model\",\"hidden_size\":8,\"num_hidden_layers\":3,"
    "\"num_attention_heads\":2,\"intermediate_size\":16,\"image_size\":28,\"patch_size\":14},"
    "\"text_config\":{\"model_type\":\"llama\",\"vocab_size\":40,\"hidden_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":3,\"num_key_value_heads\":1,\"intermediate_size\":20}}";
static const char small_image_config[] =
    "{\"image_processor_type\":\"CLIPImageProcessor\",\"size\":{\"shortest_edge\":28},\"crop_size\":28}";

struct small_layout {
    const char *vit, *projector, *text, *head; // prefixes; head NULL: no lm_head
};

static inline void add_linear(struct tensor_file *file, const char *prefix, const char *name, int out, int in,
                              bool bias)
{
    char key[512]; // longer than any prefix that is put in
    (void)snprintf(key, sizeof key, "%s%s.weight", prefix, name);
    if (in > 0)
        tensor_file_add(file, key, "BF16", 2, out, in, -1);
    else
        tensor_file_add(file, key, "BF16", 2, out, -1);
    (void)snprintf(key, sizeof key, "%s%s.bias", prefix, name);
    if (bias) tensor_file_add(file, key, "BF16", 2, out, -1);
}

static inline void small_model_vit(struct tensor_file *file, const char *prefix)
{
    char key[256];
    (void)snprintf(key, sizeof key, "%sembeddings.class_embedding", prefix);
    tensor_file_add(file, key, "BF16", 2, 8, -1);
    (void)snprintf(key, sizeof key, "%sembeddings.patch_embedding.weight", prefix);
    tensor_file_add(file, key, "BF16", 2, 8, 3, 14, 14, -1);
    (void)snprintf(key, sizeof key, "%sembeddings.position_ids", prefix);
    tensor_file_add(file, key, "I64", 8, 1, 5, -1);
    (void)snprintf(key, sizeof key, "%sembeddings.position_embedding.weight", prefix);
    tensor_file_add(file, key, "BF16", 2, 5, 8, -1);
    add_linear(file, prefix, "pre_layrnorm", 8, 0, true);
    add_linear(file, prefix, "post_layernorm", 8, 0, true);
    for (int layer = 0; layer < 3; layer++) {
        (void)snprintf(key, sizeof key, "%sencoder.layers.%d.", prefix, layer);
        add_linear(file, key, "layer_norm1", 8, 0, true);
        add_linear(file, key, "layer_norm2", 8, 0, true);
        add_linear(file, key, "self_attn.q_proj", 8, 8, true);
        add_linear(file, key, "self_attn.k_proj", 8, 8, true);
        add_linear(file, key, "self_attn.v_proj", 8, 8, true);
        add_linear(file, key, "self_attn.out_proj", 8, 8, true);
        add_linear(file, key, "mlp.fc1", 16, 8, true);
        add_linear(file, key, "mlp.fc2", 8, 16, true);
    }
}

static inline void small_model_text(struct tensor_file *file, const char *prefix)
{
    add_linear(file, prefix, "embed_tokens", 40, 12, false);
    add_linear(file, prefix, "norm", 12, 0, false);
    for (int layer = 0; layer < 2; layer++) {
        char key[256];
        (void)snprintf(key, sizeof key, "%slayers.%d.", prefix, layer);
        add_linear(file, key, "input_layernorm", 12, 0, false);
        add_linear(file, key, "post_attention_layernorm", 12, 0, false);
        add_linear(file, key, "self_attn.q_proj", 12, 12, false);
        add_linear(file, key, "self_attn.k_proj", 4, 12, false);
        add_linear(file, key, "self_attn.v_proj", 4, 12, false);
        add_linear(file, key, "self_attn.o_proj", 12, 12, false);
        add_linear(file, key, "mlp.gate_proj", 20, 12, false);
        add_linear(file, key, "mlp.up_proj", 20, 12, false);
        add_linear(file, key, "mlp.down_proj", 12, 20, false);
    }
}

static inline void small_model_rest(struct tensor_file *file, const struct small_layout *layout)
{
    add_linear(file, layout->projector, "linear_1", 12, 8, true);
    add_linear(file, layout->projector, "linear_2", 12, 12, true);
    if (layout->head != NULL) add_linear(file, layout->head, "lm_head", 40, 12, false);
}

// The whole model in one builder; write it as model.safetensors.
static inline void small_model_tensors(struct tensor_file *file, const struct small_layout *layout)
{
    tensor_file_begin(file);
    small_model_vit(file, layout->vit);
    small_model_text(file, layout->text);
    small_model_rest(file, layout);
}

static inline void small_model_json(const char *dir)
{
    write_text(dir, "config.json", small_config);
    write_text(dir, "preprocessor_config.json", small_image_config);
}

#endif
