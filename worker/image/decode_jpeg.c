// JPEG through libjpeg-turbo's libjpeg interface, with the settings Pillow leaves alone (accurate integer DCT, fancy
// upsampling), so that the pixels are Pillow's. The TurboJPEG interface could not tell a truncated file from a damaged
// one, nor hand out the ink values of a CMYK file.
#include "worker/image/decode.h"

#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h> // jpeglib.h uses FILE
#include <stdlib.h>

#include <jerror.h>
#include <jpeglib.h>

// A progressive file may repeat tiny scans, each of which costs a pass over all coefficients ("Two Issues with the JPEG
// Standard", libjpeg-turbo.org). Encoders write about ten; libjpeg-turbo's own fuzzers stop at this number.
enum { MAX_SCANS = 500 };

// What the setjmp frame needs lives here, behind a pointer, because longjmp leaves changed locals indeterminate.
struct reader {
    struct jpeg_decompress_struct codec;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    char message[JMSG_LENGTH_MAX];
    int64_t max_pixels;
    struct lvp_raster *raster;
    struct lvp_sample_error *error;
    uint8_t *inks; // [width, 4], one row; CMYK only
};

static struct reader *reader_of(j_common_ptr codec)
{
    return (struct reader *)codec->client_data;
}

static _Noreturn void escape_on_error(j_common_ptr codec)
{
    struct reader *reader = reader_of(codec);
    codec->err->format_message(codec, reader->message);
    longjmp(reader->escape, 1);
}

// Warnings (a damaged block, data after the picture) are not failures: Pillow shows such pictures too.
static void ignore_message(j_common_ptr codec)
{
    (void)codec;
}

static void ignore_call(j_decompress_ptr codec)
{
    (void)codec;
}

// The whole file is in memory, so a request for more means that it ended early. Suspending reports just that; libjpeg's
// own memory source would make up an end marker and paint the missing part grey.
static boolean no_more_input(j_decompress_ptr codec)
{
    (void)codec;
    return FALSE;
}

static void skip_input(j_decompress_ptr codec, long n_bytes)
{
    struct jpeg_source_mgr *source = codec->src;
    size_t skipped = n_bytes > 0 ? (size_t)n_bytes : 0;
    if (skipped > source->bytes_in_buffer) skipped = source->bytes_in_buffer;
    source->next_input_byte += skipped;
    source->bytes_in_buffer -= skipped;
}

static void check_scans(j_common_ptr codec)
{
    if (!codec->is_decompressor || ((j_decompress_ptr)codec)->input_scan_number <= MAX_SCANS) return;
    struct reader *reader = reader_of(codec);
    (void)snprintf(reader->message, sizeof reader->message, "more than %d scans", MAX_SCANS);
    longjmp(reader->escape, 1);
}

// a * b / 255 rounded, exactly Pillow's MULDIV255 (libImaging/ImagingUtils.h).
static int scale_by_255ths(int a, int b)
{
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

// Pillow takes every four-channel JPEG as Adobe's, whose inks are stored inverted ("CMYK;I" in JpegImagePlugin.py), and
// converts without a colour profile (cmyk2rgb in libImaging/Convert.c): 255 - K - C * (255 - K) / 255.
static void inks_to_rgb(const uint8_t *inks, uint8_t *rgb, int width)
{
    for (int x = 0; x < width; x++, inks += 4, rgb += 3) {
        const int white = inks[3];
        for (int c = 0; c < 3; c++) rgb[c] = (uint8_t)(white - scale_by_255ths(255 - inks[c], white));
    }
}

static void set_truncated(struct reader *reader)
{
    lvp_sample_error_set(reader->error, LVP_SAMPLE_IMAGE_TRUNCATED, "the JPEG ends before its last row");
}

static enum lvp_status read_rows(struct reader *reader)
{
    j_decompress_ptr codec = &reader->codec;
    const bool four_inks = codec->out_color_space == JCS_CMYK;
    if (four_inks) {
        reader->inks = malloc((size_t)codec->output_width * 4);
        if (reader->inks == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for a row of a CMYK JPEG");
    }
    const size_t stride = (size_t)reader->raster->width * 3;
    while (codec->output_scanline < codec->output_height) {
        uint8_t *row = reader->raster->pixels + codec->output_scanline * stride;
        JSAMPROW target = four_inks ? reader->inks : row;
        if (jpeg_read_scanlines(codec, &target, 1) != 1) {
            set_truncated(reader);
            return LVP_OK;
        }
        if (four_inks) inks_to_rgb(reader->inks, row, reader->raster->width);
    }
    return LVP_OK; // an end marker missing after the last row is forgiven, as in Pillow
}

static enum lvp_status decode(struct reader *reader)
{
    j_decompress_ptr codec = &reader->codec;
    if (jpeg_read_header(codec, TRUE) == JPEG_SUSPENDED) {
        set_truncated(reader);
        return LVP_OK;
    }
    if (codec->num_components == 4) {
        codec->out_color_space = JCS_CMYK;
    } else if (codec->num_components == 3 || codec->num_components == 1) {
        codec->out_color_space = JCS_RGB;
    } else {
        lvp_sample_error_set(reader->error, LVP_SAMPLE_NOT_AN_IMAGE, "a JPEG of %d channels is not supported",
                             codec->num_components);
        return LVP_OK;
    }
    // The defaults, spelled out because equality with Pillow hangs on them.
    codec->dct_method = JDCT_ISLOW;
    codec->do_fancy_upsampling = TRUE;
    enum lvp_status status =
        lvp_raster_create(codec->image_height, codec->image_width, reader->max_pixels, reader->raster, reader->error);
    if (status != LVP_OK || reader->error->code != LVP_SAMPLE_OK) return status;
    if (!jpeg_start_decompress(codec)) {
        set_truncated(reader);
        return LVP_OK;
    }
    return read_rows(reader);
}

static enum lvp_status decode_or_report(struct reader *reader)
{
    if (setjmp(reader->escape) == 0) {
        jpeg_create_decompress(&reader->codec);
        reader->codec.client_data = reader; // creating clears it
        reader->codec.src = &reader->source;
        reader->codec.progress = &reader->progress;
        return decode(reader);
    }
    if (reader->errors.msg_code == JERR_OUT_OF_MEMORY) return lvp_fail(LVP_ERR_MEMORY, "no memory to decode a JPEG");
    lvp_sample_error_set(reader->error, LVP_SAMPLE_NOT_AN_IMAGE, "the JPEG cannot be decoded: %s", reader->message);
    return LVP_OK;
}

enum lvp_status lvp_decode_jpeg(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                                struct lvp_sample_error *error)
{
    struct reader reader = {.max_pixels = max_pixels, .raster = raster, .error = error};
    reader.codec.err = jpeg_std_error(&reader.errors);
    reader.codec.client_data = &reader; // for errors while creating
    reader.errors.error_exit = escape_on_error;
    reader.errors.output_message = ignore_message;
    reader.progress.progress_monitor = check_scans;
    reader.source = (struct jpeg_source_mgr){
        .next_input_byte = bytes,
        .bytes_in_buffer = n_bytes,
        .init_source = ignore_call,
        .fill_input_buffer = no_more_input,
        .skip_input_data = skip_input,
        .resync_to_restart = jpeg_resync_to_restart,
        .term_source = ignore_call,
    };
    *raster = (struct lvp_raster){0};
    enum lvp_status status = decode_or_report(&reader);
    jpeg_destroy_decompress(&reader.codec);
    free(reader.inks);
    if (status != LVP_OK || error->code != LVP_SAMPLE_OK) lvp_raster_free(raster);
    return status;
}
