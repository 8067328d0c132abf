// PNG through libspng. Grey and palette files become RGB, alpha and tRNS are dropped, gamma is left alone: what
// Pillow's convert("RGB") does. Sixteen bits become eight by their high byte, v >> 8, which is Pillow's result for
// 16-bit colour (its result for 16-bit grey has changed between versions).
#include "worker/image/decode.h"

#include <spng.h>

#include <limits.h>
#include <stdbool.h>

// Ancillary chunks are not used, so a longer one is refused rather than kept: an ICC profile is at most a few MiB.
enum { MAX_CHUNK_BYTES = 64 << 20, MAX_CACHED_BYTES = 128 << 20 };

static enum lvp_status report(int code, struct lvp_sample_error *error)
{
    if (code == SPNG_EMEM) return lvp_fail(LVP_ERR_MEMORY, "no memory to decode a PNG");
    if (code == SPNG_EOVERFLOW) { // in the header: a row or the whole does not fit a size_t with room to spare
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOO_LARGE, "the PNG's header: %s", spng_strerror(code));
    } else if (code == SPNG_IO_EOF || code == SPNG_EIDAT_TOO_SHORT) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TRUNCATED, "the PNG ends before its last row");
    } else {
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "the PNG cannot be decoded: %s", spng_strerror(code));
    }
    return LVP_OK;
}

static enum lvp_status decode(spng_ctx *context, int64_t max_pixels, struct lvp_raster *raster,
                              struct lvp_sample_error *error)
{
    struct spng_ihdr header;
    int code = spng_get_ihdr(context, &header);
    if (code != 0) return report(code, error);
    enum lvp_status status = lvp_raster_create(header.height, header.width, max_pixels, raster, error);
    if (status != LVP_OK || error->code != LVP_SAMPLE_OK) return status;
    code = spng_decode_image(context, raster->pixels, (size_t)raster->height * (size_t)raster->width * 3, SPNG_FMT_RGB8,
                             0);
    return code == 0 ? LVP_OK : report(code, error);
}

enum lvp_status lvp_decode_png(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                               struct lvp_sample_error *error)
{
    *raster = (struct lvp_raster){0};
    spng_ctx *context = spng_ctx_new(0);
    if (context == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory to decode a PNG");
    enum lvp_status status = LVP_OK;
    // A wrong checksum of an ancillary chunk does not touch the pixels.
    int code = spng_set_crc_action(context, SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
    if (code == 0) code = spng_set_image_limits(context, INT_MAX, INT_MAX); // max_pixels is checked in decode
    if (code == 0) code = spng_set_chunk_limits(context, MAX_CHUNK_BYTES, MAX_CACHED_BYTES);
    if (code == 0) code = spng_set_png_buffer(context, bytes, n_bytes);
    status = code == 0 ? decode(context, max_pixels, raster, error) : report(code, error);
    spng_ctx_free(context);
    if (status != LVP_OK || error->code != LVP_SAMPLE_OK) lvp_raster_free(raster);
    return status;
}
