// 2,000 damaged inputs: tars, manifests and images with bytes flipped, cut, doubled and zeroed. None may crash or hang
// (sanitizers watch), and every sample that is there must load or be an error record.
#include "coordinator/input/manifest.h"
#include "coordinator/input/survey.h"
#include "tar_writer.h"
#include "temp_folder.h"
#include "worker/image/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
// cmocka.h needs those above.
#include <cmocka.h>

enum { N_TARS = 700, N_MANIFESTS = 650, N_IMAGES = 650, SIDE = 28 };

static const struct lvp_image_config config = {
    .do_resize = true, .do_center_crop = true, .shortest_edge = SIDE, .crop_height = SIDE, .crop_width = SIDE};

static uint64_t seed = 1;

static size_t any_below(size_t n)
{
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return n > 0 ? (size_t)(seed >> 33) % n : 0;
}

// One to four changes.
static size_t mutate(unsigned char *bytes, size_t n, size_t capacity)
{
    for (size_t changes = 1 + any_below(4); changes-- > 0 && n > 0;) {
        size_t at = any_below(n), length = 1 + any_below(n / 4 + 1);
        if (length > n - at) length = n - at;
        switch (any_below(6)) {
        case 0:
            bytes[at] ^= (unsigned char)(1U << any_below(8));
            break;
        case 1:
            bytes[at] = (unsigned char)any_below(256);
            break;
        case 2:
            n = at;
            break;
        case 3:
            memset(bytes + at, 0, length);
            break;
        case 4: // lost
            memmove(bytes + at, bytes + at + length, n - at - length);
            n -= length;
            break;
        default: // doubled
            if (n + length > capacity) break;
            memmove(bytes + at + length, bytes + at, n - at);
            n += length;
            break;
        }
    }
    return n;
}

static int n_images, n_errors;

static void load_image(const struct lvp_image_place *place)
{
    static float pixels[3 * SIDE * SIDE];
    struct lvp_sample_error error;
    const struct lvp_image_file file = {place->path, place->offset, place->n_bytes, place->shard_bytes,
                                        place->shard_time};
    enum lvp_status status = lvp_image_load(&file, &config, 1 << 22, pixels, &error);
    if (status != LVP_OK) fail_msg("%s", lvp_error_text());
    if (error.code == LVP_SAMPLE_OK)
        n_images++;
    else
        n_errors++;
}

// Lists and loads whatever is there.
static void run_input(const char *name, bool images)
{
    const struct lvp_manifest_options options = {.limit = -1, .columns = {.json = true, .text = true}};
    struct lvp_manifest *manifest = NULL;
    if (lvp_manifest_open(temp_path(name), &options, &manifest) != LVP_OK) {
        assert_true(lvp_error_text()[0] != '\0');
        lvp_error_clear();
        return;
    }
    const struct lvp_requests requests = {.manifest = manifest};
    enum lvp_status status = lvp_survey(&(struct lvp_survey){.requests = &requests, .threads = 2});
    assert_true(status == LVP_OK || status == LVP_ERR_USAGE); // an id twice
    lvp_error_clear();
    struct lvp_cursor cursor = {0};
    for (uint64_t i = 0; i < lvp_manifest_count(manifest); i++) {
        struct lvp_sample sample;
        assert_int_equal(lvp_manifest_sample(manifest, &cursor, i, &sample), LVP_OK);
        assert_non_null(sample.id);
        if (sample.error.code != LVP_SAMPLE_OK)
            n_errors++;
        else
            for (int image = 0; images && image < sample.n_images; image++) load_image(&sample.places[image]);
        lvp_sample_free(&sample);
    }
    lvp_cursor_close(&cursor);
    lvp_manifest_close(manifest);
}

static size_t read_file(const char *path, unsigned char *bytes, size_t capacity)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("%s is not there", path);
    size_t n = fread(bytes, 1, capacity, file);
    (void)fclose(file);
    return n;
}

static unsigned char original[1 << 20], changed[1 << 20];

static void test_tars(void **state)
{
    (void)state;
    static struct tar_bytes tar;
    static const char *const images[] = {"examples/images/scene-0000.png", "examples/images/scene-0006.png"};
    char name[32];
    for (int i = 0; i < 6; i++) {
        size_t n = read_file(images[i % 2], original, sizeof original);
        (void)snprintf(name, sizeof name, "%03d.png", i);
        tar_add(&tar, name, '0', original, n);
        (void)snprintf(name, sizeof name, "%03d.json", i);
        tar_text(&tar, name, "{\"prompt\":\"What is it?\",\"n\":[1,2,{\"x\":null}]}");
    }
    tar_end(&tar);
    n_images = n_errors = 0;
    for (int i = 0; i < N_TARS; i++) {
        memcpy(changed, tar.bytes, tar.n);
        temp_write_bytes("m.tar", changed, mutate(changed, tar.n, sizeof changed));
        run_input("m.tar", true);
    }
    assert_in_range(n_images, N_TARS, 6 * N_TARS); // most of what was not hit is still found
    assert_in_range(n_errors, N_TARS / 4, 12 * N_TARS);
}

static void test_manifests(void **state)
{
    (void)state;
    static const char rows[] = "{\"id\":\"one\",\"image\":\"a.jpg\",\"prompt\":\"What?\"}\n"
                               "{\"id\":42,\"image\":[\"a.jpg\",\"b.png\"],\"n\":1.5e3,\"t\":[true,null]}\n"
                               "{\"image\":\"\\u00e9\\ud83d\\ude00.jpg\",\"name\":\"\xc3\xa9\"}\r\n\n"
                               "{\"image\":\"c.jpg\"}";
    n_errors = 0;
    for (int i = 0; i < N_MANIFESTS; i++) {
        memcpy(changed, rows, sizeof rows - 1);
        temp_write_bytes("m.jsonl", changed, mutate(changed, sizeof rows - 1, sizeof changed));
        run_input("m.jsonl", false);
    }
    assert_in_range(n_errors, N_MANIFESTS / 4, 8 * N_MANIFESTS);
}

static void test_images(void **state)
{
    (void)state;
    static const char *const images[] = {
        "tests/golden/images/jpeg_640x427.jpg", "tests/golden/images/png_rgba16_interlaced.png",
        "tests/golden/images/webp_exif.webp", "examples/images/scene-0002.jpg", "examples/images/scene-0000.png"};
    n_images = n_errors = 0;
    for (int i = 0; i < N_IMAGES; i++) {
        size_t n = read_file(images[i % 5], original, sizeof original / 2);
        temp_write_bytes("m", original, mutate(original, n, sizeof original));
        load_image(&(struct lvp_image_place){.path = (char *)(size_t)temp_path("m")});
    }
    assert_int_equal(n_images + n_errors, N_IMAGES);
    assert_in_range(n_errors, N_IMAGES / 4, N_IMAGES);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, temp_folder_make, temp_folder_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_tars), TEST(test_manifests), TEST(test_images)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
