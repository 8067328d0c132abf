// llava-1.5-7b and a small model as the cost and planner tests use them; written out here, so that the built-in shapes
// are not their own witness.
#ifndef LVP_TESTS_SHAPES_FOR_TESTS_H
#define LVP_TESTS_SHAPES_FOR_TESTS_H

#include "common/plan.h"

static inline struct lvp_model_config test_llava_7b(void)
{
    struct lvp_model_config config = {.feature_layers = {23}, .n_feature_layers = 1, .projector_bias = true};
    config.vision.hidden = 1024;
    config.vision.layers = 24;
    config.vision.heads = 16;
    config.vision.mlp = 4096;
    config.vision.image_size = 336;
    config.vision.patch_size = 14;
    config.text.vocab = 32064;
    config.text.hidden = 4096;
    config.text.layers = 32;
    config.text.heads = config.text.kv_heads = 32;
    config.text.head_dim = 128;
    config.text.mlp = 11008;
    config.text.max_positions = 4096;
    return config;
}

static inline struct lvp_model_config test_small_model(void)
{
    struct lvp_model_config config = test_llava_7b();
    config.vision.hidden = 64;
    config.vision.layers = 4;
    config.vision.heads = 4;
    config.vision.mlp = 256;
    config.vision.image_size = 56;
    config.feature_layers[0] = 3;
    config.text.vocab = 320;
    config.text.hidden = 96;
    config.text.layers = 6;
    config.text.heads = 4;
    config.text.kv_heads = 2;
    config.text.head_dim = 24;
    config.text.mlp = 256;
    return config;
}

// The default prune points with --keep `keep`; NULL: dense.
static inline struct lvp_prune_plan test_prune_plan(const struct lvp_model_config *config, const char *keep)
{
    struct lvp_prune_plan plan = {0};
    if (keep == NULL) return plan;
    lvp_prune_default_points(config->text.layers, &plan);
    if (lvp_prune_parse_keep(keep, &plan) != LVP_OK) plan.n_points = 0;
    return plan;
}

#endif
