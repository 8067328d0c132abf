// The decoders behind image.h. Each turns the bytes of one kind of file into RGB, checks the header's size against
// max_pixels before it allocates pixels, and reports a bad file in *error with LVP_OK: then there is no raster.
// Thread: any; no shared state.
#ifndef LVP_WORKER_IMAGE_DECODE_H
#define LVP_WORKER_IMAGE_DECODE_H

#include "common/sample_error.h"

#include <stddef.h>
#include <stdint.h>

struct lvp_raster {
    uint8_t *pixels; // [height, width, 3] RGB; owned, freed by lvp_raster_free
    int height, width;
};

// Allocates the pixels, uninitialised. image_too_large in *error where height x width is over max_pixels; not_an_image
// where one of them is 0.
enum lvp_status lvp_raster_create(int64_t height, int64_t width, int64_t max_pixels, struct lvp_raster *raster,
                                  struct lvp_sample_error *error) LVP_MUST_CHECK;
void lvp_raster_free(struct lvp_raster *raster);

enum lvp_status lvp_decode_jpeg(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                                struct lvp_sample_error *error) LVP_MUST_CHECK;
enum lvp_status lvp_decode_png(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                               struct lvp_sample_error *error) LVP_MUST_CHECK;
enum lvp_status lvp_decode_webp(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                                struct lvp_sample_error *error) LVP_MUST_CHECK;

// The EXIF orientation, 1..8; 1 where the file has none or a malformed one.
int lvp_exif_orientation_jpeg(const uint8_t *bytes, size_t n_bytes);
int lvp_exif_orientation_png(const uint8_t *bytes, size_t n_bytes);
int lvp_exif_orientation_webp(const uint8_t *bytes, size_t n_bytes);

// Turns the raster upright, replacing its pixels. Needs a second raster while it runs, except for orientation 1.
enum lvp_status lvp_raster_orient(struct lvp_raster *raster, int orientation) LVP_MUST_CHECK;

#endif
