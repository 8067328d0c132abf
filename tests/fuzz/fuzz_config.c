// Any three texts, separated by NUL, as config.json, preprocessor_config.json and generation_config.json: refused, or
// within the bounds that the rest of the program relies on.
#include "common/model_config.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct lvp_model_config *config)
{
    int used = lvp_vit_layers_used(config);
    if (used < 0 || used > config->vision.layers) abort();
    if (config->n_feature_layers < 1 || config->n_feature_layers > LVP_MAX_FEATURE_LAYERS) abort();
    if (lvp_patch_count(config) < 1 || lvp_feature_width(config) < 1) abort();
    if (config->vision.hidden % config->vision.heads != 0 || config->text.heads % config->text.kv_heads != 0) abort();
    if (config->text.head_dim < 2 || config->text.heads * config->text.head_dim > 1 << 16) abort();
    if (config->n_eos < 1 || config->n_eos > LVP_MAX_EOS) abort();
    for (int i = 0; i < 3; i++)
        if (!(config->image.std[i] > 0.0F)) abort();
    if (!(config->text.rope_theta >= 1.0F) || !(config->text.rope_factor >= 1.0F) || !(config->text.norm_eps > 0.0F))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 3);
    if (text == NULL) return 0;
    memcpy(text, data, size);
    memset(text + size, 0, 3);
    const char *image = text + strlen(text) + 1;
    if (image > text + size) image = "{\"crop_size\":336}";
    const char *generation = image >= text && image < text + size ? image + strlen(image) + 1 : NULL;
    if (generation != NULL && generation >= text + size) generation = NULL;

    struct lvp_model_config config;
    lvp_error_clear();
    if (lvp_model_config_parse(text, image, generation, &config) == LVP_OK) check(&config);
    free(text);
    return 0;
}
