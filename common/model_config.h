// What a Hugging Face LLaVA folder says the model is: config.json, preprocessor_config.json (or processor_config.json)
// and generation_config.json, with transformers' defaults for fields that are left out. Plain data, no ownership.
#ifndef LVP_COMMON_MODEL_CONFIG_H
#define LVP_COMMON_MODEL_CONFIG_H

#include "common/dtype.h"
#include "common/status.h"

#include <stdbool.h>

enum { LVP_MAX_FEATURE_LAYERS = 8, LVP_MAX_EOS = 8, LVP_MAX_PRUNE_POINTS = 8, LVP_MAX_LAYERS = 512 };

enum lvp_activation {
    LVP_ACT_NONE,
    LVP_ACT_GELU /* erf form */,
    LVP_ACT_GELU_TANH,
    LVP_ACT_QUICK_GELU,
    LVP_ACT_SILU,
    LVP_ACT_RELU
};

enum lvp_resample { LVP_RESAMPLE_NEAREST = 0, LVP_RESAMPLE_BILINEAR = 2, LVP_RESAMPLE_BICUBIC = 3 }; // Pillow's numbers

struct lvp_vision_config {
    int hidden;     // width of the ViT's residual stream
    int layers;     // layers in the checkpoint; how many are computed: lvp_vit_layers_used
    int heads;      // divides hidden
    int mlp;        // inner width of the feed-forward block
    int image_size; // pixels a side, after preprocessing
    int patch_size; // pixels a side
    enum lvp_activation activation;
    float norm_eps;
};

struct lvp_text_config {
    int vocab;
    int hidden;
    int layers;
    int heads;
    int kv_heads; // divides heads; equal to heads: multi-head attention
    int head_dim;
    int mlp;
    int max_positions;              // context length
    float norm_eps;                 // RMSNorm
    float rope_theta;               // base of the rotary frequencies
    float rope_factor;              // linear scaling: positions are divided by it; 1 = none
    bool attention_bias;            // q, k, v and o projections
    bool mlp_bias;                  // gate, up and down projections
    bool tied_embeddings;           // as config.json says; an lm_head in the file wins
    enum lvp_activation activation; // of the gate
};

struct lvp_image_config {
    bool do_resize, do_center_crop, do_rescale, do_normalize,
        do_pad;                      // pad: to a square with the mean colour, before resizing
    int shortest_edge;               // > 0: resize keeps the aspect; else resize_height x resize_width
    int resize_height, resize_width; // pixels
    int crop_height, crop_width;     // pixels
    enum lvp_resample resample;
    double rescale_factor; // double: transformers multiplies in float64 and rounds once
    float mean[3], std[3]; // RGB, after rescaling
};

struct lvp_model_config {
    struct lvp_vision_config vision;
    struct lvp_text_config text;
    struct lvp_image_config image;
    int feature_layers[LVP_MAX_FEATURE_LAYERS]; // resolved: number of ViT layers that have run, 0..vision.layers, as
                                                // listed
    int n_feature_layers;                       // several: features are concatenated along the width
    bool select_full;                           // true: the class token's row is kept too
    enum lvp_activation projector_activation;
    bool projector_bias;
    int image_token_id;
    int bos_id;
    int eos_ids[LVP_MAX_EOS];
    int n_eos;
    enum lvp_dtype dtype; // of the checkpoint, as config.json says; f32 where it does not
};

// Reads DIR's JSON files. LVP_ERR_MODEL with file and field for anything missing, malformed, out of bounds or not
// supported.
enum lvp_status lvp_model_config_load(const char *dir, struct lvp_model_config *config) LVP_MUST_CHECK;

// The same on the texts of config.json, preprocessor_config.json and generation_config.json in memory (the last may be
// NULL: no such file); for the fuzzer and tests.
enum lvp_status lvp_model_config_parse(const char *config_text, const char *image_text, const char *generation_text,
                                       struct lvp_model_config *config) LVP_MUST_CHECK;

// "quick_gelu", ... as transformers spells it.
const char *lvp_activation_name(enum lvp_activation activation);

// ViT layers that have to run: the largest feature layer.
int lvp_vit_layers_used(const struct lvp_model_config *config);

// Patches of one image: (image_size / patch_size)^2, without the class token.
int lvp_patch_count(const struct lvp_model_config *config);

// Rows one image takes in the prompt: the patches, plus one with select_full.
int lvp_vision_tokens(const struct lvp_model_config *config);

// Width of the projector's input: vision.hidden x n_feature_layers.
int lvp_feature_width(const struct lvp_model_config *config);

#endif
