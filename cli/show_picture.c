#include "cli/show_picture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MARGIN = 12, LEAST_SIDE = 300, MAX_TEXT = 4000 };

struct layout {
    const struct lvp_model_config *config;
    const float *pixels;
    int scale, width, height, grid; // of a panel; patches along a side
    int n_panels;
    int text_width; // below a row of panels
};

static uint8_t grey_level(const struct layout *layout, int channel, int x, int y)
{
    const struct lvp_image_config *image = &layout->config->image;
    size_t at = ((size_t)channel * (size_t)image->crop_height + (size_t)y) * (size_t)image->crop_width + (size_t)x;
    double value = (double)layout->pixels[at];
    if (image->do_normalize) value = value * (double)image->std[channel] + (double)image->mean[channel];
    if (image->do_rescale && image->rescale_factor > 0) value /= image->rescale_factor;
    return (uint8_t)lround(fmin(255, fmax(0, value)));
}

// kept NULL: the whole image.
static void draw_panel(const struct layout *layout, struct lvp_canvas *canvas, int left, int top, const uint8_t *kept)
{
    int patch = layout->config->vision.patch_size;
    for (int y = 0; y < layout->height; y++)
        for (int x = 0; x < layout->width; x++) {
            int px = x / layout->scale, py = y / layout->scale, column = px / patch, row = py / patch;
            bool in_patch = column < layout->grid && row < layout->grid; // a rest at the edges is in none
            bool shown = kept == NULL || (in_patch && kept[row * layout->grid + column]);
            uint8_t colour[3];
            for (int c = 0; c < 3; c++) {
                int value = grey_level(layout, c, px, py);
                colour[c] = (uint8_t)(shown ? value : 205 + (value - 128) / 8); // a shadow of it
            }
            lvp_canvas_dot(canvas, left + x, top + y, colour);
        }
}

static void text_below(const struct lvp_shown_prompt *prompt, char *text)
{
    (void)snprintf(text, MAX_TEXT, "Q: %.1900s\nA: %.1900s", prompt->text, prompt->answer);
}

static int row_height(const struct layout *layout, const struct lvp_shown_prompt *prompt)
{
    char text[MAX_TEXT];
    text_below(prompt, text);
    int lines = lvp_canvas_text(NULL, 0, 0, layout->text_width, text);
    return LVP_LINE_HEIGHT + layout->height + (lines + 1) * LVP_LINE_HEIGHT;
}

static void draw_row(const struct layout *layout, const struct lvp_prune_counts *prune,
                     const struct lvp_shown_prompt *prompt, struct lvp_canvas *canvas, int top)
{
    char text[MAX_TEXT];
    for (int p = 0; p < layout->n_panels; p++) {
        int left = MARGIN + p * (layout->width + MARGIN);
        if (p == 0)
            (void)snprintf(text, sizeof text, "%d vision tokens", prune->rows[0]);
        else
            (void)snprintf(text, sizeof text, "%d after layer %d", prune->rows[p], prune->after[p - 1]);
        (void)lvp_canvas_text(canvas, left, top, layout->width, text);
        draw_panel(layout, canvas, left, top + LVP_LINE_HEIGHT, p == 0 ? NULL : prompt->kept[p - 1]);
    }
    text_below(prompt, text);
    (void)lvp_canvas_text(canvas, MARGIN, top + LVP_LINE_HEIGHT + layout->height + 4, layout->text_width, text);
}

enum lvp_status lvp_show_draw(const struct lvp_model_config *config, const struct lvp_prune_counts *prune,
                              const float *pixels, const struct lvp_shown_prompt *prompts, int n_prompts,
                              const char *path)
{
    int side = config->vision.image_size, height = MARGIN;
    struct layout layout = {.config = config,
                            .pixels = pixels,
                            .scale = (LEAST_SIDE + side - 1) / side,
                            .grid = side / config->vision.patch_size,
                            .n_panels = prune->n_points + 1};
    layout.width = layout.height = side * layout.scale;
    layout.text_width = layout.n_panels * (layout.width + MARGIN) - MARGIN;
    for (int i = 0; i < n_prompts; i++) height += row_height(&layout, &prompts[i]);
    struct lvp_canvas canvas;
    LVP_TRY(lvp_canvas_create(layout.text_width + 2 * MARGIN, height, &canvas));
    for (int i = 0, top = MARGIN; i < n_prompts; i++) {
        draw_row(&layout, prune, &prompts[i], &canvas, top);
        top += row_height(&layout, &prompts[i]);
    }
    enum lvp_status status = lvp_canvas_write(&canvas, path);
    lvp_canvas_free(&canvas);
    return status;
}
