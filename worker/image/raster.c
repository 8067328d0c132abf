#include "worker/image/decode.h"

#include "common/checked.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS = 3, TILE = 32 /* pixels a side: source and target of a turned tile stay in the L1 cache */ };

enum lvp_status lvp_raster_create(int64_t height, int64_t width, int64_t max_pixels, struct lvp_raster *raster,
                                  struct lvp_sample_error *error)
{
    *raster = (struct lvp_raster){0};
    if (height <= 0 || width <= 0) {
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "the header says %lld x %lld pixels", (long long)width,
                             (long long)height);
        return LVP_OK;
    }
    size_t n_pixels;
    size_t n_bytes;
    if (height > INT_MAX || width > INT_MAX || !lvp_checked_mul((size_t)height, (size_t)width, &n_pixels) ||
        !lvp_checked_mul(n_pixels, CHANNELS, &n_bytes) || n_bytes > PTRDIFF_MAX || (int64_t)n_pixels > max_pixels) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOO_LARGE, "%lld x %lld pixels are more than the limit of %lld",
                             (long long)width, (long long)height, (long long)max_pixels);
        return LVP_OK;
    }
    raster->pixels = malloc(n_bytes);
    if (raster->pixels == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for an image of %zu bytes", n_bytes);
    raster->height = (int)height;
    raster->width = (int)width;
    return LVP_OK;
}

void lvp_raster_free(struct lvp_raster *raster)
{
    free(raster->pixels);
    *raster = (struct lvp_raster){0};
}

// Where the upright picture's pixel (y, x) lies in the stored one: origin + y * step_y + x * step_x, in pixels.
struct walk {
    ptrdiff_t origin, step_y, step_x;
};

// EXIF 2.32, tag 0x0112: which side of the picture the stored row 0 and column 0 are.
static struct walk upright_walk(int orientation, ptrdiff_t height, ptrdiff_t width)
{
    const ptrdiff_t last_row = (height - 1) * width;
    const ptrdiff_t last_column = width - 1;
    switch (orientation) {
    case 2:
        return (struct walk){last_column, width, -1}; // top, right: mirrored
    case 3:
        return (struct walk){last_row + last_column, -width, -1}; // bottom, right: upside down
    case 4:
        return (struct walk){last_row, -width, 1}; // bottom, left
    case 5:
        return (struct walk){0, 1, width}; // left, top: transposed
    case 6:
        return (struct walk){last_row, 1, -width}; // right, top: needs 90 degrees clockwise
    case 7:
        return (struct walk){last_row + last_column, -1, -width}; // right, bottom
    case 8:
        return (struct walk){last_column, -1, width}; // left, bottom: needs 90 degrees anticlockwise
    default:
        return (struct walk){0, width, 1};
    }
}

enum lvp_status lvp_raster_orient(struct lvp_raster *raster, int orientation)
{
    if (orientation <= 1 || orientation > 8) return LVP_OK;
    const struct walk walk = upright_walk(orientation, raster->height, raster->width);
    const ptrdiff_t height = orientation >= 5 ? raster->width : raster->height;
    const ptrdiff_t width = orientation >= 5 ? raster->height : raster->width;
    uint8_t *upright = malloc((size_t)height * (size_t)width * CHANNELS); // as large as the raster: cannot overflow
    if (upright == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "no memory to turn an image of %td x %td pixels", width, height);
    for (ptrdiff_t tile_y = 0; tile_y < height; tile_y += TILE) {
        const ptrdiff_t end_y = tile_y + TILE < height ? tile_y + TILE : height;
        for (ptrdiff_t tile_x = 0; tile_x < width; tile_x += TILE) {
            const ptrdiff_t end_x = tile_x + TILE < width ? tile_x + TILE : width;
            for (ptrdiff_t y = tile_y; y < end_y; y++) {
                for (ptrdiff_t x = tile_x; x < end_x; x++) {
                    const ptrdiff_t from = walk.origin + y * walk.step_y + x * walk.step_x;
                    memcpy(upright + (y * width + x) * CHANNELS, raster->pixels + from * CHANNELS, CHANNELS);
                }
            }
        }
    }
    free(raster->pixels);
    *raster = (struct lvp_raster){.pixels = upright, .height = (int)height, .width = (int)width};
    return LVP_OK;
}
