// The image settings of preprocessor_config.json, or of the image_processor inside processor_config.json, with the
// defaults of transformers 4.57 (CLIPImageProcessor, LlavaImageProcessor). null stands for the default, as it does
// there.
#include "common/model_config_parts.h"

#include <string.h>

// Kinds whose steps are the ones of worker/image; other kinds (tiles, other crops) would silently give other pixels.
static const char *const supported[] = {
    "CLIPImageProcessor",      "CLIPImageProcessorFast", "CLIPImageProcessorPil", "LlavaImageProcessor",
    "LlavaImageProcessorFast", "LlavaImageProcessorPil", "CLIPFeatureExtractor",
};

static enum lvp_status read_kind(const struct lvp_json *object, bool *is_llava)
{
    static const char *const keys[] = {"image_processor_type", "feature_extractor_type"};
    *is_llava = false;
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        if (!lvp_json_has(object, keys[k])) continue;
        const char *kind = NULL;
        LVP_TRY(lvp_json_string(object, keys[k], &kind));
        for (size_t i = 0; i < sizeof supported / sizeof supported[0]; i++) {
            if (strcmp(kind, supported[i]) != 0) continue;
            *is_llava = strncmp(kind, "Llava", 5) == 0;
            return LVP_OK;
        }
        return lvp_fail(LVP_ERR_MODEL,
                        "%s: %s%s \"%s\" is not supported (CLIPImageProcessor and LlavaImageProcessor are)",
                        object->file, object->path, keys[k], kind);
    }
    return LVP_OK;
}

// `size`: a number or {shortest_edge} keeps the aspect, {height, width} does not.
static enum lvp_status read_size(const struct lvp_json *object, struct lvp_image_config *image)
{
    image->shortest_edge = 224;
    if (!lvp_json_has(object, "size")) return LVP_OK;
    if (!json_is_object(json_object_get(object->value, "size")))
        return lvp_json_int(object, "size", 1, LVP_BOUND_IMAGE_SIZE, &image->shortest_edge);
    struct lvp_json size;
    LVP_TRY(lvp_json_child(object, "size", &size));
    if (lvp_json_has(&size, "shortest_edge"))
        return lvp_json_int(&size, "shortest_edge", 1, LVP_BOUND_IMAGE_SIZE, &image->shortest_edge);
    if (!lvp_json_has(&size, "height") || !lvp_json_has(&size, "width"))
        return lvp_fail(LVP_ERR_MODEL, "%s: %ssize has neither shortest_edge nor height and width", object->file,
                        object->path);
    image->shortest_edge = 0;
    LVP_TRY(lvp_json_int(&size, "height", 1, LVP_BOUND_IMAGE_SIZE, &image->resize_height));
    return lvp_json_int(&size, "width", 1, LVP_BOUND_IMAGE_SIZE, &image->resize_width);
}

// `crop_size`: a number is a square, else {height, width}.
static enum lvp_status read_crop_size(const struct lvp_json *object, struct lvp_image_config *image)
{
    image->crop_height = 224;
    image->crop_width = 224;
    if (!lvp_json_has(object, "crop_size")) return LVP_OK;
    if (!json_is_object(json_object_get(object->value, "crop_size"))) {
        LVP_TRY(lvp_json_int(object, "crop_size", 1, LVP_BOUND_IMAGE_SIZE, &image->crop_height));
        image->crop_width = image->crop_height;
        return LVP_OK;
    }
    struct lvp_json size;
    LVP_TRY(lvp_json_child(object, "crop_size", &size));
    if (!lvp_json_has(&size, "height") || !lvp_json_has(&size, "width"))
        return lvp_fail(LVP_ERR_MODEL, "%s: %scrop_size has no height and width", object->file, object->path);
    LVP_TRY(lvp_json_int(&size, "height", 1, LVP_BOUND_IMAGE_SIZE, &image->crop_height));
    return lvp_json_int(&size, "width", 1, LVP_BOUND_IMAGE_SIZE, &image->crop_width);
}

// A number for all three channels, or a list of three.
static enum lvp_status read_channels(const struct lvp_json *object, const char *key, double min, double max,
                                     float values[3])
{
    if (!lvp_json_has(object, key)) return LVP_OK;
    const json_t *list = json_object_get(object->value, key);
    if (!json_is_array(list)) {
        LVP_TRY(lvp_json_float(object, key, min, max, &values[0]));
        values[1] = values[2] = values[0];
        return LVP_OK;
    }
    if (json_array_size(list) != 3)
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s has %zu elements, 3 are needed", object->file, object->path, key,
                        json_array_size(list));
    for (size_t i = 0; i < 3; i++) {
        const json_t *element = json_array_get(list, i);
        double number = json_number_value(element);
        if (!json_is_number(element) || !(number >= min && number <= max))
            return lvp_fail(LVP_ERR_MODEL, "%s: %s%s[%zu] is not a number in %g..%g", object->file, object->path, key,
                            i, min, max);
        values[i] = (float)number;
    }
    return LVP_OK;
}

static enum lvp_status read_resample(const struct lvp_json *object, enum lvp_resample *resample)
{
    int filter = LVP_RESAMPLE_BICUBIC;
    if (lvp_json_has(object, "resample")) LVP_TRY(lvp_json_int(object, "resample", 0, 5, &filter));
    if (filter != LVP_RESAMPLE_NEAREST && filter != LVP_RESAMPLE_BILINEAR && filter != LVP_RESAMPLE_BICUBIC)
        return lvp_fail(LVP_ERR_MODEL, "%s: %sresample %d is not supported (0 nearest, 2 bilinear and 3 bicubic are)",
                        object->file, object->path, filter);
    *resample = (enum lvp_resample)filter;
    return LVP_OK;
}

// The ViT takes squares of one size: whatever the steps are, they must end there for every image.
static enum lvp_status check_result(const struct lvp_json *object, const struct lvp_image_config *image, int image_size)
{
    int height = 0; // 0: depends on the image
    int width = 0;
    if (image->do_center_crop) {
        height = image->crop_height;
        width = image->crop_width;
    } else if (image->do_resize && image->shortest_edge == 0) {
        height = image->resize_height;
        width = image->resize_width;
    } else if (image->do_resize && image->do_pad) {
        height = width = image->shortest_edge;
    }
    if (height == 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: %sdo_center_crop is false and nothing else makes all images %d x %d",
                        object->file, object->path, image_size, image_size);
    if (height != image_size || width != image_size)
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s gives images of %d x %d, vision_config.image_size is %d", object->file,
                        object->path, image->do_center_crop ? "crop_size" : "size", height, width, image_size);
    return LVP_OK;
}

static enum lvp_status read_flag(const struct lvp_json *object, const char *key, bool *value)
{
    return lvp_json_has(object, key) ? lvp_json_bool(object, key, value) : LVP_OK;
}

enum lvp_status lvp_image_config_read(const struct lvp_json *processor, int image_size, struct lvp_image_config *image)
{
    struct lvp_json object = *processor;
    if (lvp_json_has(processor, "image_processor")) LVP_TRY(lvp_json_child(processor, "image_processor", &object));
    *image = (struct lvp_image_config){.do_resize = true,
                                       .do_center_crop = true,
                                       .do_rescale = true,
                                       .do_normalize = true,
                                       .rescale_factor = 1.0 / 255.0,
                                       .mean = {0.48145466F, 0.4578275F, 0.40821073F}, // OPENAI_CLIP_MEAN
                                       .std = {0.26862954F, 0.26130258F, 0.27577711F}};
    bool is_llava;
    LVP_TRY(read_kind(&object, &is_llava));
    if (is_llava) LVP_TRY(read_flag(&object, "do_pad", &image->do_pad)); // CLIP's ignores it
    LVP_TRY(read_flag(&object, "do_resize", &image->do_resize));
    LVP_TRY(read_flag(&object, "do_center_crop", &image->do_center_crop));
    LVP_TRY(read_flag(&object, "do_rescale", &image->do_rescale));
    LVP_TRY(read_flag(&object, "do_normalize", &image->do_normalize));
    LVP_TRY(read_size(&object, image));
    LVP_TRY(read_crop_size(&object, image));
    LVP_TRY(read_resample(&object, &image->resample));
    if (lvp_json_has(&object, "rescale_factor"))
        LVP_TRY(lvp_json_double(&object, "rescale_factor", 1e-9, 1e6, &image->rescale_factor));
    LVP_TRY(read_channels(&object, "image_mean", -1e6, 1e6, image->mean));
    LVP_TRY(read_channels(&object, "image_std", 1e-9, 1e6, image->std));
    LVP_TRY(check_result(&object, image, image_size));
    image->crop_height = image->crop_width = image_size; // the size that comes out, centre crop or not
    return LVP_OK;
}
