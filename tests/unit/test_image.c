// Every kind of image against what Pillow and transformers make of it (tests/golden/images, train/golden_images.py).
#include "worker/image/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#define GOLDEN "tests/golden/images/"

enum { MAX_PIXELS = 178956970 };

// openai/clip-vit-large-patch14-336's preprocessor_config.json, as all llava-1.5 folders have it.
static struct lvp_image_config clip_settings(void)
{
    return (struct lvp_image_config){
        .rescale_factor = 1.0 / 255.0,
        .mean = {0.48145466f, 0.4578275f, 0.40821073f},
        .std = {0.26862954f, 0.26130258f, 0.27577711f},
    };
}

static int integer(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    assert_non_null(value);
    return json_is_boolean(value) ? json_is_true(value) : (int)json_integer_value(value);
}

static struct lvp_image_config settings_of(const json_t *test)
{
    struct lvp_image_config config = clip_settings();
    config.do_pad = integer(test, "do_pad") != 0;
    config.do_resize = integer(test, "do_resize") != 0;
    config.do_center_crop = integer(test, "do_center_crop") != 0;
    config.shortest_edge = integer(test, "shortest_edge");
    config.resize_height = integer(test, "height");
    config.resize_width = integer(test, "width");
    config.crop_height = integer(test, "crop_height");
    config.crop_width = integer(test, "crop_width");
    config.resample = (enum lvp_resample)integer(test, "resample");
    return config;
}

static float *load(const char *name, const struct lvp_image_config *config)
{
    char path[256];
    (void)snprintf(path, sizeof path, GOLDEN "%s", name);
    float *pixels = malloc((size_t)config->crop_height * (size_t)config->crop_width * 3 * sizeof *pixels);
    assert_non_null(pixels);
    struct lvp_sample_error error;
    const struct lvp_image_file file = {.path = path};
    assert_int_equal(lvp_image_load(&file, config, MAX_PIXELS, pixels, &error), LVP_OK);
    if (error.code != LVP_SAMPLE_OK) print_error("%s: %s\n", name, error.message);
    assert_int_equal(error.code, LVP_SAMPLE_OK);
    return pixels;
}

static void read_expected(const char *name, void *bytes, size_t n_bytes)
{
    char path[256];
    (void)snprintf(path, sizeof path, GOLDEN "%s", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    if (strstr(name, ".ppm") != NULL) assert_int_equal(fscanf(file, "P6 %*d %*d 255%*c"), 0);
    assert_int_equal(fread(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fgetc(file), EOF);
    (void)fclose(file);
}

struct tally {
    size_t values, exact;
    int largest;
};

static void compare_bytes(const char *name, const struct lvp_image_config *config, const float *pixels,
                          struct tally *all)
{
    const size_t n_pixels = (size_t)config->crop_height * (size_t)config->crop_width;
    uint8_t *expected = malloc(n_pixels * 3);
    assert_non_null(expected);
    read_expected(name, expected, n_pixels * 3);
    struct tally own = {.values = n_pixels * 3};
    for (size_t i = 0; i < n_pixels; i++) {
        for (size_t c = 0; c < 3; c++) {
            const int difference = abs((int)pixels[c * n_pixels + i] - (int)expected[i * 3 + c]);
            if (difference == 0) own.exact++;
            if (difference > own.largest) own.largest = difference;
        }
    }
    free(expected);
    if (own.exact != own.values) {
        print_message("%-40s %7.3f %% exact, max difference %d\n", name, 100.0 * (double)own.exact / (double)own.values,
                      own.largest);
    }
    all->values += own.values;
    all->exact += own.exact;
    if (own.largest > all->largest) all->largest = own.largest;
}

static void test_pixels_equal_pillow(void **state)
{
    const json_t *cases = *state;
    struct tally all = {0};
    size_t n_cases = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        const char *expected = json_string_value(json_object_get(test, "expected"));
        if (strstr(expected, ".ppm") == NULL) continue;
        struct lvp_image_config config = settings_of(test); // neither rescaled nor normalised: the bytes themselves
        float *pixels = load(json_string_value(json_object_get(test, "image")), &config);
        compare_bytes(expected, &config, pixels, &all);
        free(pixels);
        n_cases++;
    }
    const double share = (double)all.exact / (double)all.values;
    print_message("%zu cases, %zu values: %.4f %% exact, max difference %d\n", n_cases, all.values, 100.0 * share,
                  all.largest);
    assert_true(n_cases >= 40);
    assert_true(all.largest <= 1);
    assert_true(share >= 0.999);
}

static void test_floats_equal_transformers(void **state)
{
    const json_t *cases = *state;
    size_t n_cases = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *test = json_array_get(cases, i);
        const char *name = json_string_value(json_object_get(test, "expected"));
        if (strstr(name, ".f32") == NULL) continue;
        struct lvp_image_config config = settings_of(test);
        config.do_rescale = config.do_normalize = true;
        float *pixels = load(json_string_value(json_object_get(test, "image")), &config);
        const size_t n_bytes = (size_t)config.crop_height * (size_t)config.crop_width * 3 * sizeof *pixels;
        float *expected = malloc(n_bytes);
        assert_non_null(expected);
        read_expected(name, expected, n_bytes);
        assert_memory_equal(pixels, expected, n_bytes); // the same bits
        free(expected);
        free(pixels);
        n_cases++;
    }
    assert_true(n_cases >= 4);
}

int main(void)
{
    json_error_t error;
    json_t *golden = json_load_file(GOLDEN "cases.json", 0, &error);
    if (golden == NULL) {
        (void)fprintf(stderr, GOLDEN "cases.json: %s\n", error.text);
        return 1;
    }
    json_t *cases = json_object_get(golden, "cases");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_pixels_equal_pillow, cases),
        cmocka_unit_test_prestate(test_floats_equal_transformers, cases),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(golden);
    return failed;
}
