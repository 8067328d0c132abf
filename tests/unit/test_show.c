// The picture of lvpipe show, dot by dot: what is kept keeps its colours, what is removed is dimmed, scores are
// colours.
#include "cli/show_picture.h"
#include "common/step.h"

#include <math.h>
#include <setjmp.h>
#include <spng.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SIDE = 4, PATCH = 2, PANEL = 300, MARGIN = 12, WIDTH = 2 * (PANEL + MARGIN) + MARGIN };

static char path[] = "/tmp/lvp-show-XXXXXX";
static uint8_t *picture; // [height, WIDTH, 3]
static size_t picture_bytes;

static void draw(bool scores, char *answer)
{
    static struct lvp_model_config config = {.vision = {.image_size = SIDE, .patch_size = PATCH},
                                             .image = {.crop_height = SIDE, .crop_width = SIDE}};
    const struct lvp_prune_counts prune = {.n_points = 1, .after = {3}, .rows = {4, 3}};
    float pixels[3][SIDE][SIDE];
    uint8_t kept[] = {1, 1, 0, 1}; // not the patch at the bottom left
    float heights[] = {2, 3, 0, 1};
    char question[] = "Who?";
    const struct lvp_shown_prompt prompt = {.text = question, .answer = answer, .points = {{kept, heights}}};
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++) {
            pixels[0][y][x] = 100;
            pixels[1][y][x] = (float)(50 * x);
            pixels[2][y][x] = (float)(60 * y);
        }
    assert_int_equal(lvp_show_draw(&config, &prune, &pixels[0][0][0], &prompt, 1, scores, path), LVP_OK);
    FILE *file = fopen(path, "rb");
    spng_ctx *context = spng_ctx_new(0);
    struct spng_ihdr header;
    assert_true(file != NULL && context != NULL);
    assert_int_equal(spng_set_png_file(context, file), 0);
    assert_int_equal(spng_get_ihdr(context, &header), 0);
    assert_int_equal(header.width, WIDTH);
    assert_int_equal(spng_decoded_image_size(context, SPNG_FMT_RGB8, &picture_bytes), 0);
    free(picture);
    picture = malloc(picture_bytes);
    assert_non_null(picture);
    assert_int_equal(spng_decode_image(context, picture, picture_bytes, SPNG_FMT_RGB8, 0), 0);
    spng_ctx_free(context);
    (void)fclose(file);
}

// The dot in the middle of the image's pixel x, y in a panel.
static const uint8_t *dot(int panel, int x, int y)
{
    int scale = PANEL / SIDE;
    int left = MARGIN + panel * (PANEL + MARGIN) + x * scale + scale / 2;
    int top = MARGIN + LVP_LINE_HEIGHT + y * scale + scale / 2;
    return picture + ((size_t)top * WIDTH + (size_t)left) * 3;
}

static void expect_colour(const uint8_t *dot, int red, int green, int blue)
{
    if (dot[0] != red || dot[1] != green || dot[2] != blue)
        fail_msg("%d %d %d, not %d %d %d", dot[0], dot[1], dot[2], red, green, blue);
}

static void test_removed_patches_are_dimmed(void **state)
{
    (void)state;
    char answer[] = "Nobody.";
    draw(false, answer);
    for (int y = 0; y < SIDE; y++)
        for (int x = 0; x < SIDE; x++) {
            bool removed = x < PATCH && y >= PATCH;
            int red = 100, green = 50 * x, blue = 60 * y;
            expect_colour(dot(0, x, y), red, green, blue);
            if (removed)
                expect_colour(dot(1, x, y), 205 + (red - 128) / 8, 205 + (green - 128) / 8, 205 + (blue - 128) / 8);
            else
                expect_colour(dot(1, x, y), red, green, blue);
        }
}

static void test_scores_are_colours(void **state)
{
    (void)state;
    char answer[] = "Nobody.";
    draw(true, answer);
    // A patch is two pixels wide here, all of it edge: what is kept is all frame, the lowest score of all is blue.
    expect_colour(dot(1, 0, 0), 20, 20, 20);
    expect_colour(dot(1, 3, 3), 20, 20, 20);
    double grey = (100 + 0 + 120) / 3.0;
    expect_colour(dot(1, 0, 2), (int)lround(0.55 * 40 + 0.45 * grey), (int)lround(0.55 * 70 + 0.45 * grey),
                  (int)lround(0.55 * 200 + 0.45 * grey));
}

static void test_text_takes_lines(void **state)
{
    (void)state;
    // Letters count, not bytes; a line breaks at the last space that fits, and a word that is too long anywhere.
    assert_int_equal(lvp_canvas_text(NULL, 0, 0, 5 * LVP_LETTER_WIDTH, "\u00e4\u00e4\u00e4\u00e4\u00e4"), 1);
    assert_int_equal(lvp_canvas_text(NULL, 0, 0, 5 * LVP_LETTER_WIDTH, "ab cd ef"), 2);
    assert_int_equal(lvp_canvas_text(NULL, 0, 0, 5 * LVP_LETTER_WIDTH, "abcdefghijk"), 3);
    assert_int_equal(lvp_canvas_text(NULL, 0, 0, 5 * LVP_LETTER_WIDTH, "a\n\nb"), 3);
    char brief[] = "a", lengthy[3000];
    memset(lengthy, 'x', sizeof lengthy - 1);
    lengthy[sizeof lengthy - 1] = '\0';
    draw(false, brief);
    size_t low = picture_bytes;
    draw(false, lengthy);
    // "A:", then 1900 + 3 letters without a space in lines of 76, instead of one line.
    assert_int_equal((picture_bytes - low) / (3 * (size_t)WIDTH), (1 + 26 - 1) * LVP_LINE_HEIGHT);
}

static void test_a_picture_has_a_bound(void **state)
{
    (void)state;
    struct lvp_canvas canvas;
    assert_int_equal(lvp_canvas_create(1 << 15, 1 << 15, &canvas), LVP_ERR_USAGE);
    lvp_error_clear();
    lvp_canvas_free(&canvas);
}

static int make_file(void **state)
{
    (void)state;
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    (void)state;
    free(picture);
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_removed_patches_are_dimmed),
        cmocka_unit_test(test_scores_are_colours),
        cmocka_unit_test(test_text_takes_lines),
        cmocka_unit_test(test_a_picture_has_a_bound),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
