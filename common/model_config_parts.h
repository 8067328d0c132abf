// The pieces lvp_model_config_load is made of; only for common/model_config*.c.
#ifndef LVP_COMMON_MODEL_CONFIG_PARTS_H
#define LVP_COMMON_MODEL_CONFIG_PARTS_H

#include "common/json.h"
#include "common/model_config.h"

// Bounds of what a model may be: far above any published one, and low enough that no product of them overflows size_t
// and that a typing error is named instead of becoming a giant allocation.
enum {
    LVP_BOUND_WIDTH = 1 << 16,
    LVP_BOUND_MLP = 1 << 20,
    LVP_BOUND_HEADS = 1 << 10,
    LVP_BOUND_VOCAB = 1 << 22,
    LVP_BOUND_POSITIONS = 1 << 20,
    LVP_BOUND_IMAGE_SIZE = 1 << 14,
    LVP_BOUND_PATCHES = 1 << 16,
};

// text_config and vision_config, `config` being the root of config.json.
enum lvp_status lvp_text_config_read(const struct lvp_json *config, struct lvp_text_config *text) LVP_MUST_CHECK;
enum lvp_status lvp_vision_config_read(const struct lvp_json *config, struct lvp_vision_config *vision) LVP_MUST_CHECK;

// Image settings from the root of preprocessor_config.json or processor_config.json; they must end in images of
// image_size x image_size.
enum lvp_status lvp_image_config_read(const struct lvp_json *processor, int image_size,
                                      struct lvp_image_config *image) LVP_MUST_CHECK;

enum lvp_status lvp_activation_read(const struct lvp_json *object, const char *key,
                                    enum lvp_activation *activation) LVP_MUST_CHECK;

// `model_type` must be `wanted`. Absent is accepted with `optional`.
enum lvp_status lvp_model_type_check(const struct lvp_json *object, const char *wanted, bool optional) LVP_MUST_CHECK;

#endif
