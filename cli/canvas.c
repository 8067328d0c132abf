#include "cli/canvas.h"

#include "cli/font.inc"

#include <errno.h>
#include <spng.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 30 };

enum lvp_status lvp_canvas_create(int width, int height, struct lvp_canvas *canvas)
{
    size_t n = (size_t)width * (size_t)height * 3;
    *canvas = (struct lvp_canvas){0};
    if (n > MAX_BYTES)
        return lvp_fail(LVP_ERR_USAGE, "a picture of %d x %d would be too large: give fewer prompts", width, height);
    *canvas = (struct lvp_canvas){.width = width, .height = height, .pixels = malloc(n)};
    if (canvas->pixels == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for a picture of %d x %d", width, height);
    memset(canvas->pixels, 0xff, n);
    return LVP_OK;
}

void lvp_canvas_free(struct lvp_canvas *canvas)
{
    free(canvas->pixels);
    *canvas = (struct lvp_canvas){0};
}

void lvp_canvas_dot(struct lvp_canvas *canvas, int x, int y, const uint8_t colour[3])
{
    if (x < 0 || y < 0 || x >= canvas->width || y >= canvas->height) return;
    memcpy(canvas->pixels + ((size_t)y * (size_t)canvas->width + (size_t)x) * 3, colour, 3);
}

static void draw_letter(struct lvp_canvas *canvas, int x, int y, char letter)
{
    static const uint8_t ink[3] = {20, 20, 20};
    const unsigned char *rows = font[letter >= ' ' && letter <= '~' ? letter - ' ' : '?' - ' '];
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < LVP_LETTER_WIDTH; column++)
            if (rows[row] >> (7 - column) & 1) lvp_canvas_dot(canvas, x + column, y + row, ink);
}

// Bytes of the next line of at most `most` letters: to the last space that fits, or as many letters as do.
static int line_length(const char *text, int most)
{
    int n = 0, space = 0;
    for (int letters = 0; text[n] != '\0' && text[n] != '\n'; n++) {
        bool starts = ((unsigned char)text[n] & 0xc0) != 0x80;
        if (text[n] == ' ') space = n;
        if (starts && letters++ == most) return space > 0 ? space : n;
    }
    return n;
}

int lvp_canvas_text(struct lvp_canvas *canvas, int x, int y, int width, const char *text)
{
    int lines = 0, most = width / LVP_LETTER_WIDTH > 0 ? width / LVP_LETTER_WIDTH : 1;
    while (*text != '\0') {
        int n = line_length(text, most);
        for (int i = 0, at = 0; i < n && canvas != NULL; i++) {
            if (((unsigned char)text[i] & 0xc0) == 0x80) continue; // the rest of a letter beyond ASCII
            draw_letter(canvas, x + at++ * LVP_LETTER_WIDTH, y + lines * LVP_LINE_HEIGHT, text[i]);
        }
        text += n;
        text += *text == ' ' || *text == '\n';
        lines++;
    }
    return lines;
}

enum lvp_status lvp_canvas_write(const struct lvp_canvas *canvas, const char *path)
{
    char part[4096];
    int length = snprintf(part, sizeof part, "%s.tmp", path);
    if (length < 0 || (size_t)length >= sizeof part) return lvp_fail(LVP_ERR_USAGE, "--output: the path is too long");
    FILE *file = fopen(part, "wb");
    if (file == NULL) return lvp_fail(LVP_ERR_IO, "--output %s: %s", path, strerror(errno));
    spng_ctx *context = spng_ctx_new(SPNG_CTX_ENCODER);
    struct spng_ihdr header = {.width = (uint32_t)canvas->width,
                               .height = (uint32_t)canvas->height,
                               .bit_depth = 8,
                               .color_type = SPNG_COLOR_TYPE_TRUECOLOR};
    size_t n = (size_t)canvas->width * (size_t)canvas->height * 3;
    int code = context == NULL ? SPNG_EMEM : spng_set_ihdr(context, &header);
    if (code == 0) code = spng_set_png_file(context, file);
    if (code == 0) code = spng_encode_image(context, canvas->pixels, n, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
    spng_ctx_free(context);
    bool there = fclose(file) == 0 && code == 0 && rename(part, path) == 0;
    if (there) return LVP_OK;
    enum lvp_status status =
        lvp_fail(LVP_ERR_IO, "--output %s: %s", path, code != 0 ? spng_strerror(code) : strerror(errno));
    (void)unlink(part);
    return status;
}
