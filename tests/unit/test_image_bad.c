// Images that are not what they should be: each gets its code, none ends the process. Run under ASan and UBSan as well.
#include "worker/image/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/images/"

enum { SIDE = 32, MAX_PIXELS = 178956970 };

static const struct lvp_image_config config = {
    .do_resize = true,
    .do_center_crop = true,
    .do_rescale = true,
    .do_normalize = true,
    .shortest_edge = SIDE,
    .crop_height = SIDE,
    .crop_width = SIDE,
    .resample = LVP_RESAMPLE_BICUBIC,
    .rescale_factor = 1.0 / 255.0,
    .std = {1, 1, 1},
};

struct bytes {
    uint8_t *at;
    size_t n;
};

static struct bytes read_golden(const char *name)
{
    char path[256];
    (void)snprintf(path, sizeof path, GOLDEN "%s", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    struct bytes bytes = {malloc(1 << 20), 0};
    assert_non_null(bytes.at);
    bytes.n = fread(bytes.at, 1, 1 << 20, file);
    (void)fclose(file);
    assert_true(bytes.n > 0);
    return bytes;
}

static void expect(enum lvp_sample_error_code expected, const struct lvp_sample_error *error)
{
    if (error->code != expected) print_error("%s: %s\n", lvp_sample_error_name(error->code), error->message);
    assert_int_equal(error->code, expected);
    if (expected != LVP_SAMPLE_OK) assert_true(error->message[0] != '\0');
}

static enum lvp_sample_error_code code_of(const void *bytes, size_t n_bytes, int64_t max_pixels)
{
    // A copy of exactly this size: a read beyond it is one that ASan sees.
    uint8_t *copy = malloc(n_bytes > 0 ? n_bytes : 1);
    float *pixels = malloc(3 * SIDE * SIDE * sizeof *pixels);
    assert_non_null(copy);
    assert_non_null(pixels);
    if (n_bytes > 0) memcpy(copy, bytes, n_bytes);
    struct lvp_sample_error error;
    assert_int_equal(lvp_image_load_bytes(copy, n_bytes, &config, max_pixels, pixels, &error), LVP_OK);
    free(copy);
    free(pixels);
    return error.code;
}

static void expect_path(const char *path, enum lvp_sample_error_code expected)
{
    float pixels[3 * SIDE * SIDE];
    struct lvp_sample_error error;
    const struct lvp_image_file file = {.path = path};
    assert_int_equal(lvp_image_load(&file, &config, MAX_PIXELS, pixels, &error), LVP_OK);
    expect(expected, &error);
}

static void write_file(const char *path, const void *bytes, size_t n_bytes)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
}

static void test_paths(void **state)
{
    (void)state;
    char folder[] = "/tmp/lvp_image_bad_XXXXXX";
    assert_non_null(mkdtemp(folder));
    char path[sizeof folder + 32];
    expect_path(folder, LVP_SAMPLE_NOT_AN_IMAGE);
    expect_path("/dev/zero", LVP_SAMPLE_NOT_AN_IMAGE);
    expect_path("tests/no/such/file.jpg", LVP_SAMPLE_FILE_MISSING);
    expect_path("CMakeLists.txt/below_a_file.jpg", LVP_SAMPLE_FILE_MISSING);
    expect_path("", LVP_SAMPLE_FILE_MISSING);
    expect_path("CMakeLists.txt", LVP_SAMPLE_NOT_AN_IMAGE);
    expect_path(GOLDEN "jpeg_420.jpg", LVP_SAMPLE_OK);

    (void)snprintf(path, sizeof path, "%s/fifo.jpg", folder);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_path(path, LVP_SAMPLE_NOT_AN_IMAGE); // and does not wait for a writer
    (void)unlink(path);

    (void)snprintf(path, sizeof path, "%s/socket.jpg", folder);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    expect_path(path, LVP_SAMPLE_NOT_AN_IMAGE);
    (void)close(listener);
    (void)unlink(path);

    (void)snprintf(path, sizeof path, "%s/loop.jpg", folder);
    assert_int_equal(symlink(path, path), 0);
    expect_path(path, LVP_SAMPLE_FILE_MISSING);
    (void)unlink(path);

    (void)snprintf(path, sizeof path, "%s/empty.jpg", folder);
    write_file(path, "", 0);
    expect_path(path, LVP_SAMPLE_NOT_AN_IMAGE);
    (void)unlink(path);

    (void)snprintf(path, sizeof path, "%s/sparse.jpg", folder); // 1 TiB that begins like a JPEG is not read
    write_file(path, "\xFF\xD8\xFF\xE0", 4);
    assert_int_equal(truncate(path, (off_t)1 << 40), 0);
    expect_path(path, LVP_SAMPLE_IMAGE_TOO_LARGE);
    (void)unlink(path);
    (void)rmdir(folder);
}

static const char *const one_of_each[] = {"jpeg_420.jpg",    "jpeg_progressive.jpg",      "jpeg_cmyk_adobe.jpg",
                                          "png_rgb8.png",    "png_rgba16_interlaced.png", "png_palette4.png",
                                          "webp_lossy.webp", "webp_lossless.webp",        "webp_animated.webp"};
enum { N_KINDS = sizeof one_of_each / sizeof one_of_each[0] };

static void test_truncated(void **state)
{
    (void)state;
    for (int i = 0; i < N_KINDS; i++) {
        const struct bytes file = read_golden(one_of_each[i]);
        for (int tenth = 1; tenth <= 8; tenth++) {
            const enum lvp_sample_error_code code = code_of(file.at, file.n * (size_t)tenth / 10, MAX_PIXELS);
            if (code != LVP_SAMPLE_IMAGE_TRUNCATED) {
                print_error("%s at %d/10: %s\n", one_of_each[i], tenth, lvp_sample_error_name(code));
            }
            assert_int_equal(code, LVP_SAMPLE_IMAGE_TRUNCATED);
        }
        for (size_t n = 0; n < 200 && n < file.n; n++) { // in the middle of each header field
            const enum lvp_sample_error_code code = code_of(file.at, n, MAX_PIXELS);
            assert_true(code == LVP_SAMPLE_IMAGE_TRUNCATED || code == LVP_SAMPLE_NOT_AN_IMAGE);
            if (n >= 12) assert_int_equal(code, LVP_SAMPLE_IMAGE_TRUNCATED);
        }
        free(file.at);
    }
}

static void test_damaged(void **state)
{
    (void)state;
    uint32_t random = 1;
    for (int i = 0; i < N_KINDS; i++) {
        const struct bytes file = read_golden(one_of_each[i]);
        for (int round = 0; round < 150; round++) {
            uint8_t *copy = malloc(file.n);
            assert_non_null(copy);
            memcpy(copy, file.at, file.n);
            for (int change = 0; change < 1 + round % 4; change++) {
                random = random * 1664525 + 1013904223;                    // Numerical Recipes' generator
                const size_t range = round % 2 == 0 ? file.n : file.n / 8; // headers more often
                copy[(random >> 8) % range] ^= (uint8_t)(1U << (random & 7));
            }
            (void)code_of(copy, file.n, 1 << 20); // damaged pixels may still be a picture; no crash is what counts
            free(copy);
        }
        free(file.at);
    }
}

static void test_max_pixels(void **state)
{
    (void)state;
    const char *const names[] = {"jpeg_420.jpg", "jpeg_progressive.jpg", "png_rgb8.png", "webp_lossy.webp"};
    const int64_t sizes[] = {97 * 75, 97 * 75, 61 * 53, 83 * 64};
    for (int i = 0; i < 4; i++) {
        const struct bytes file = read_golden(names[i]);
        assert_int_equal(code_of(file.at, file.n, sizes[i]), LVP_SAMPLE_OK);
        assert_int_equal(code_of(file.at, file.n, sizes[i] - 1), LVP_SAMPLE_IMAGE_TOO_LARGE);
        assert_int_equal(code_of(file.at, file.n, 0), LVP_SAMPLE_IMAGE_TOO_LARGE);
        free(file.at);
    }
}

static uint32_t crc_of(const uint8_t *bytes, size_t n_bytes) // PNG specification, annex D
{
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < n_bytes; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
    }
    return ~crc;
}

static void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

static void set_png_size(uint8_t *png, uint32_t width, uint32_t height)
{
    put_u32(png + 16, width); // signature, length, "IHDR", width, height
    put_u32(png + 20, height);
    put_u32(png + 29, crc_of(png + 12, 17));
}

static uint8_t *find(const struct bytes *file, const char *pattern, size_t length)
{
    uint8_t *found = memmem(file->at, file->n, pattern, length);
    assert_non_null(found);
    return found;
}

static void test_sizes_in_headers(void **state)
{
    (void)state;
    const uint32_t sizes[][2] = {{100000, 100000}, {0x7FFFFFFF, 0x7FFFFFFF}, {0x7FFFFFFF, 2}, {178956971, 1}};
    struct bytes png = read_golden("png_rgb8.png");
    for (int i = 0; i < 4; i++) {
        set_png_size(png.at, sizes[i][0], sizes[i][1]);
        assert_int_equal(code_of(png.at, png.n, MAX_PIXELS), LVP_SAMPLE_IMAGE_TOO_LARGE);
    }
    set_png_size(png.at, 0, 5);
    assert_int_equal(code_of(png.at, png.n, MAX_PIXELS), LVP_SAMPLE_NOT_AN_IMAGE);
    set_png_size(png.at, 61, 54); // one row more than there is
    assert_int_equal(code_of(png.at, png.n, MAX_PIXELS), LVP_SAMPLE_IMAGE_TRUNCATED);
    free(png.at);

    struct bytes jpeg = read_golden("jpeg_420.jpg");
    uint8_t *frame = find(&jpeg, "\xFF\xC0", 2); // marker, length, precision, height, width
    memcpy(frame + 5, "\xFF\xDC\xFF\xDC", 4);    // 65,500 x 65,500
    assert_int_equal(code_of(jpeg.at, jpeg.n, MAX_PIXELS), LVP_SAMPLE_IMAGE_TOO_LARGE);
    memcpy(frame + 5, "\0\0", 2);
    assert_int_equal(code_of(jpeg.at, jpeg.n, MAX_PIXELS), LVP_SAMPLE_NOT_AN_IMAGE);
    free(jpeg.at);

    struct bytes webp = read_golden("webp_offset_frame.webp");
    uint8_t *extended = find(&webp, "VP8X", 4);       // type, length, flags, width - 1 and height - 1 in 24 bits each
    memcpy(extended + 12, "\xFE\xFF\0\xFE\xFF\0", 6); // 65,535 x 65,535, the format ends there
    assert_int_equal(code_of(webp.at, webp.n, MAX_PIXELS), LVP_SAMPLE_IMAGE_TOO_LARGE);
    memcpy(extended + 12, "\x10\0\0\x10\0\0", 6); // smaller than its frame
    assert_int_equal(code_of(webp.at, webp.n, MAX_PIXELS), LVP_SAMPLE_NOT_AN_IMAGE);
    free(webp.at);
}

static void test_checksums(void **state)
{
    (void)state;
    struct bytes png = read_golden("png_rgb8.png");
    uint8_t *data = find(&png, "IDAT", 4);
    data[10] ^= 1;
    assert_int_equal(code_of(png.at, png.n, MAX_PIXELS), LVP_SAMPLE_NOT_AN_IMAGE);
    free(png.at);
    png = read_golden("png_gamma.png");
    uint8_t *gamma = find(&png, "gAMA", 4);
    gamma[8] ^= 1; // an ancillary chunk's checksum does not matter
    assert_int_equal(code_of(png.at, png.n, MAX_PIXELS), LVP_SAMPLE_OK);
    free(png.at);
}

// A progressive JPEG whose last scan is repeated costs a pass over the picture for each repetition.
static void test_scan_bomb(void **state)
{
    (void)state;
    struct bytes jpeg = read_golden("jpeg_progressive.jpg");
    const uint8_t *scan = NULL;
    for (size_t i = 0; i + 1 < jpeg.n; i++) {
        if (jpeg.at[i] == 0xFF && jpeg.at[i + 1] == 0xDA) scan = jpeg.at + i;
    }
    assert_non_null(scan);
    const size_t head = (size_t)(scan - jpeg.at);
    const size_t length = jpeg.n - 2 - head; // less the end marker
    uint8_t *bomb = malloc(head + 600 * length + 2);
    assert_non_null(bomb);
    memcpy(bomb, jpeg.at, head);
    for (size_t i = 0; i < 600; i++) memcpy(bomb + head + i * length, scan, length);
    memcpy(bomb + head + 600 * length, "\xFF\xD9", 2);
    assert_int_equal(code_of(bomb, head + 600 * length + 2, MAX_PIXELS), LVP_SAMPLE_NOT_AN_IMAGE);
    free(bomb);
    free(jpeg.at);
}

// 1 x 20,000 pixels would be 336 x 6,720,000 resized, 6.8 GB of bytes: only the window may be computed.
static void test_narrow_costs_source_and_crop(void **state)
{
    (void)state;
    const char *const names[] = {"jpeg_1x20000.jpg", "jpeg_20000x1.jpg"};
    struct lvp_image_config large = config;
    large.shortest_edge = large.crop_height = large.crop_width = 336;
    float *pixels = malloc((size_t)3 * 336 * 336 * sizeof *pixels);
    assert_non_null(pixels);
    struct rusage before;
    struct rusage after;
    (void)getrusage(RUSAGE_SELF, &before);
    for (int i = 0; i < 8; i++) {
        const struct bytes file = read_golden(names[i % 2]);
        large.do_pad = i % 4 >= 2;
        large.resample = i >= 4 ? LVP_RESAMPLE_NEAREST : LVP_RESAMPLE_BICUBIC;
        struct lvp_sample_error error;
        assert_int_equal(lvp_image_load_bytes(file.at, file.n, &large, MAX_PIXELS, pixels, &error), LVP_OK);
        expect(LVP_SAMPLE_OK, &error);
        free(file.at);
    }
    (void)getrusage(RUSAGE_SELF, &after);
    assert_true(after.ru_maxrss - before.ru_maxrss < 64 * 1024); // KiB
    free(pixels);
}

static void test_settings_that_do_not_lead_to_the_crop(void **state)
{
    (void)state;
    const struct bytes file = read_golden("jpeg_420.jpg");
    struct lvp_image_config loose = config;
    loose.do_center_crop = false;
    float pixels[3 * SIDE * SIDE];
    struct lvp_sample_error error;
    assert_int_equal(lvp_image_load_bytes(file.at, file.n, &loose, MAX_PIXELS, pixels, &error), LVP_ERR_MODEL);
    assert_non_null(strstr(lvp_error_text(), "do_center_crop"));
    lvp_error_clear();
    free(file.at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_narrow_costs_source_and_crop), // first: it looks at the peak of memory
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_max_pixels),
        cmocka_unit_test(test_sizes_in_headers),
        cmocka_unit_test(test_checksums),
        cmocka_unit_test(test_scan_bomb),
        cmocka_unit_test(test_settings_that_do_not_lead_to_the_crop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
