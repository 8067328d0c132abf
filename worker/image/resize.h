// Pillow's Image.resize on 8-bit RGB, byte for byte, for a window of the result only. Memory is the window's, not the
// resized picture's: a 1 x 20,000 picture enlarged to 336 x 6,720,000 costs no more than the 336 x 336 that are kept.
// Thread: any; no shared state.
#ifndef LVP_WORKER_IMAGE_RESIZE_H
#define LVP_WORKER_IMAGE_RESIZE_H

#include "common/model_config.h"
#include "worker/image/decode.h"

// One direction, in pixels. The canvas is the source with its padding; it is resized as a whole, and `count` pixels
// from `first` on are computed. 0 <= before, before + source <= canvas, 0 <= first, first + count <= resized, count >
// 0.
struct lvp_resize_axis {
    int64_t before; // padding in front of the source
    int64_t source;
    int64_t canvas;
    int64_t resized;
    int64_t first;
    int count;
};

struct lvp_resize_plan {
    struct lvp_resize_axis y, x;
    enum lvp_resample filter;
    uint8_t background[3]; // RGB of the padding
};

// `out` is [y.count, x.count, 3] with out_stride bytes from row to row. image_too_large in *error where a side shrinks
// more than a million times, which the fixed-point sums cannot hold.
enum lvp_status lvp_resize(const struct lvp_raster *source, const struct lvp_resize_plan *plan, uint8_t *out,
                           size_t out_stride, struct lvp_sample_error *error) LVP_MUST_CHECK;

#endif
