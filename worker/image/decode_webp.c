// WebP through libwebp. Of an animation the first frame is taken, on a canvas of zeros as libwebp's animation decoder
// (and so Pillow) has it; decoding straight into the canvas saves that decoder's two RGBA canvases. Alpha is dropped.
#include "worker/image/decode.h"

#include <string.h>

#include <webp/decode.h>
#include <webp/demux.h>

static enum lvp_status report(VP8StatusCode code, struct lvp_sample_error *error)
{
    switch (code) {
    case VP8_STATUS_OK:
        break;
    case VP8_STATUS_OUT_OF_MEMORY:
        return lvp_fail(LVP_ERR_MEMORY, "no memory to decode a WebP");
    case VP8_STATUS_NOT_ENOUGH_DATA:
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TRUNCATED, "the WebP ends before its last row");
        break;
    default:
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "the WebP cannot be decoded (libwebp status %d)",
                             (int)code);
    }
    return LVP_OK;
}

static enum lvp_status decode_frame(const WebPIterator *frame, struct lvp_raster *raster,
                                    struct lvp_sample_error *error)
{
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config))
        return lvp_fail(LVP_ERR_INTERNAL, "libwebp is of another version than its header");
    VP8StatusCode code = WebPGetFeatures(frame->fragment.bytes, frame->fragment.size, &config.input);
    if (code != VP8_STATUS_OK) return report(code, error);
    // The frame's own header is what the decoder will write by; the container's numbers are only claims about it.
    if (frame->x_offset < 0 || frame->y_offset < 0 || frame->x_offset > raster->width - config.input.width ||
        frame->y_offset > raster->height - config.input.height) {
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "the WebP's first frame reaches over its canvas");
        return LVP_OK;
    }
    const size_t stride = (size_t)raster->width * 3;
    if (stride > INT32_MAX) { // libwebp's strides are int; its canvases are at most 2^24 wide
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOO_LARGE, "a WebP %d pixels wide", raster->width);
        return LVP_OK;
    }
    const size_t offset = (size_t)frame->y_offset * stride + (size_t)frame->x_offset * 3;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = raster->pixels + offset;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = (size_t)raster->height * stride - offset;
    code = WebPDecode(frame->fragment.bytes, frame->fragment.size, &config);
    WebPFreeDecBuffer(&config.output);
    return report(code, error);
}

enum lvp_status lvp_decode_webp(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                                struct lvp_sample_error *error)
{
    *raster = (struct lvp_raster){0};
    const WebPData data = {bytes, n_bytes};
    WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
    WebPDemuxer *demuxer = WebPDemuxPartial(&data, &state);
    if (demuxer == NULL || state != WEBP_DEMUX_DONE) {
        WebPDemuxDelete(demuxer);
        return report(state == WEBP_DEMUX_PARSE_ERROR ? VP8_STATUS_BITSTREAM_ERROR : VP8_STATUS_NOT_ENOUGH_DATA, error);
    }
    enum lvp_status status = LVP_OK;
    WebPIterator frame = {0};
    LVP_CHECK(lvp_raster_create(WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_HEIGHT),
                                WebPDemuxGetI(demuxer, WEBP_FF_CANVAS_WIDTH), max_pixels, raster, error));
    if (error->code != LVP_SAMPLE_OK) goto fail;
    if (!WebPDemuxGetFrame(demuxer, 1, &frame) || !frame.complete) {
        LVP_CHECK(report(VP8_STATUS_NOT_ENOUGH_DATA, error));
        goto fail;
    }
    memset(raster->pixels, 0, (size_t)raster->height * (size_t)raster->width * 3);
    status = decode_frame(&frame, raster, error);
fail:
    WebPDemuxReleaseIterator(&frame);
    WebPDemuxDelete(demuxer);
    if (status != LVP_OK || error->code != LVP_SAMPLE_OK) lvp_raster_free(raster);
    return status;
}
