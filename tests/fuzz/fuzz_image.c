// Any bytes through the decoders, EXIF and the resizer. The first byte chooses the settings, so that padding, each
// filter and both orders of the passes are met; max_pixels is small, because large pictures only make the fuzzer slow.
#include "worker/image/image.h"

#include <stdlib.h>

enum { SIDE = 24, MAX_PIXELS = 1 << 14 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const enum lvp_resample filters[4] = {LVP_RESAMPLE_BICUBIC, LVP_RESAMPLE_BILINEAR, LVP_RESAMPLE_NEAREST,
                                                 LVP_RESAMPLE_BICUBIC};
    if (size == 0) return 0;
    const struct lvp_image_config config = {
        .do_resize = (data[0] & 1) == 0,
        .do_center_crop = true,
        .do_rescale = true,
        .do_normalize = true,
        .do_pad = (data[0] & 2) != 0,
        .shortest_edge = (data[0] & 4) != 0 ? 0 : SIDE,
        .resize_height = 10,
        .resize_width = 40,
        .crop_height = SIDE,
        .crop_width = SIDE,
        .resample = filters[data[0] >> 3 & 3],
        .rescale_factor = 1.0 / 255.0,
        .mean = {0.5f, 0.5f, 0.5f},
        .std = {0.5f, 0.5f, 0.5f},
    };
    float pixels[3 * SIDE * SIDE];
    struct lvp_sample_error error;
    if (lvp_image_load_bytes(data + 1, size - 1, &config, MAX_PIXELS, pixels, &error) != LVP_OK) abort();
    return 0;
}
