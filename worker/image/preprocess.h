// An upright RGB picture to the ViT's input, as transformers' CLIPImageProcessor and LlavaImageProcessor prepare it:
// pad to a square, resize, centre crop, rescale, normalise. Thread: any; no shared state.
#ifndef LVP_WORKER_IMAGE_PREPROCESS_H
#define LVP_WORKER_IMAGE_PREPROCESS_H

#include "common/model_config.h"
#include "worker/image/decode.h"

// `pixels` is [3, crop_height, crop_width] f32. LVP_ERR_MODEL where the settings do not lead to that size for this
// picture.
enum lvp_status lvp_image_preprocess(const struct lvp_raster *source, const struct lvp_image_config *config,
                                     float *pixels, struct lvp_sample_error *error) LVP_MUST_CHECK;

#endif
