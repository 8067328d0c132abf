#include "worker/image/preprocess.h"

#include "common/checked.h"
#include "worker/image/resize.h"

#include <stdlib.h>

enum { CHANNELS = 3, LEVELS = 256 };

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

// LlavaImageProcessor.pad_to_square: the spare pixel of an odd difference goes behind the picture.
static void plan_padding(const struct lvp_image_config *config, struct lvp_resize_plan *plan)
{
    const int64_t side = larger(plan->y.source, plan->x.source);
    plan->y.canvas = plan->x.canvas = side;
    plan->y.before = (side - plan->y.source) / 2;
    plan->x.before = (side - plan->x.source) / 2;
    for (int c = 0; c < CHANNELS; c++) plan->background[c] = (uint8_t)(int)((double)config->mean[c] * 255.0);
}

// get_resize_output_image_size (transformers 4.57, image_transforms.py): the longer edge is cut off, not rounded.
static void plan_resizing(const struct lvp_image_config *config, struct lvp_resize_plan *plan)
{
    plan->filter = config->resample;
    if (config->shortest_edge <= 0) {
        plan->y.resized = config->resize_height;
        plan->x.resized = config->resize_width;
        return;
    }
    struct lvp_resize_axis *shorter = plan->x.canvas <= plan->y.canvas ? &plan->x : &plan->y;
    struct lvp_resize_axis *longer = shorter == &plan->x ? &plan->y : &plan->x;
    shorter->resized = config->shortest_edge;
    longer->resized = (int64_t)((double)(config->shortest_edge * longer->canvas) / (double)shorter->canvas);
}

// center_crop (image_transforms.py) in one direction: the window of the resized picture that is kept, and where it
// starts in the output, which is black around a picture smaller than the crop, the spare pixel of an odd difference in
// front.
static int plan_crop(struct lvp_resize_axis *axis, int crop)
{
    if (axis->resized >= crop) {
        axis->first = (axis->resized - crop) / 2;
        axis->count = crop;
        return 0;
    }
    axis->first = 0;
    axis->count = (int)axis->resized;
    return (int)(crop - axis->resized + 1) / 2;
}

// Each grey level's final value. transformers rescales in float64 and rounds to float32, then subtracts and divides in
// float32 (rescale and normalize in image_transforms.py); a pixel has 256 levels, so a table costs nothing.
static void fill_levels(const struct lvp_image_config *config, int channel, float levels[LEVELS])
{
    for (int level = 0; level < LEVELS; level++) {
        float value = (float)level;
        if (config->do_rescale) value = (float)((double)level * config->rescale_factor);
        if (config->do_normalize) value = (value - config->mean[channel]) / config->std[channel];
        levels[level] = value;
    }
}

// [n_pixels, 3] bytes to [3, n_pixels] floats.
static void normalise(const struct lvp_image_config *config, const uint8_t *crop, size_t n_pixels, float *pixels)
{
    for (int c = 0; c < CHANNELS; c++) {
        float levels[LEVELS];
        fill_levels(config, c, levels);
        float *plane = pixels + (size_t)c * n_pixels;
        for (size_t i = 0; i < n_pixels; i++) plane[i] = levels[crop[i * CHANNELS + (size_t)c]];
    }
}

enum lvp_status lvp_image_preprocess(const struct lvp_raster *source, const struct lvp_image_config *config,
                                     float *pixels, struct lvp_sample_error *error)
{
    struct lvp_resize_plan plan = {
        .y = {.source = source->height, .canvas = source->height},
        .x = {.source = source->width, .canvas = source->width},
        .filter = LVP_RESAMPLE_NEAREST, // a plain copy where nothing is resized
    };
    if (config->do_pad) plan_padding(config, &plan);
    plan.y.resized = plan.y.canvas;
    plan.x.resized = plan.x.canvas;
    if (config->do_resize) plan_resizing(config, &plan);
    if (!config->do_center_crop && (plan.y.resized != config->crop_height || plan.x.resized != config->crop_width)) {
        return lvp_fail(LVP_ERR_MODEL,
                        "without do_center_crop a picture of %d x %d pixels becomes %lld x %lld, not %d x %d",
                        source->width, source->height, (long long)plan.x.resized, (long long)plan.y.resized,
                        config->crop_width, config->crop_height);
    }
    const int top = plan_crop(&plan.y, config->crop_height);
    const int left = plan_crop(&plan.x, config->crop_width);
    const size_t stride = (size_t)config->crop_width * CHANNELS;
    const size_t n_pixels = (size_t)config->crop_height * (size_t)config->crop_width;
    uint8_t *crop = calloc(n_pixels, CHANNELS); // black where the picture does not reach
    if (crop == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a crop of %zu pixels", n_pixels);
    uint8_t *out = crop + (size_t)top * stride + (size_t)left * CHANNELS;
    enum lvp_status status = lvp_resize(source, &plan, out, stride, error);
    if (status == LVP_OK && error->code == LVP_SAMPLE_OK) normalise(config, crop, n_pixels, pixels);
    free(crop);
    return status;
}
