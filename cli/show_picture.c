#include "cli/show_picture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MARGIN = 12, LEAST_SIDE = 300, MAX_TEXT = 4000 };

struct layout {
    const struct lvp_model_config *config;
    const float *pixels;
    int scale, width, height, grid; // of a panel; patches along a side
    int n_panels;
    int text_width; // below a row of panels
    bool scores;
    double *ranks; // [patches] work space
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

// From blue over yellow to red as x goes from 0 to 1.
static void heat(double x, double colour[3])
{
    static const double stops[3][3] = {{40, 70, 200}, {250, 220, 60}, {210, 30, 30}};
    int from = x < 0.5 ? 0 : 1;
    double share = 2 * x - from;
    for (int c = 0; c < 3; c++) colour[c] = stops[from][c] + share * (stops[from + 1][c] - stops[from][c]);
}

// Share of a point's scored patches whose score is lower, by patch: scores of all pruners look alike so.
static void rank_scores(const float *scores, int n, double *ranks)
{
    int n_scored = 0;
    for (int i = 0; i < n; i++) n_scored += !isnan(scores[i]);
    for (int i = 0; i < n; i++) {
        int lower = 0, equal = 0;
        for (int j = 0; j < n; j++) {
            lower += scores[j] < scores[i];
            equal += scores[j] == scores[i];
        }
        ranks[i] = n_scored > equal ? (double)lower / (n_scored - equal) : 1;
    }
}

// Colour of the pixel x, y of the image behind a point: a removed patch is a shadow of itself, or with `ranks` every
// scored patch has its rank's colour and a kept one a frame.
static void tint(const struct layout *layout, const struct lvp_shown_point *point, const double *ranks, int x, int y,
                 uint8_t colour[3])
{
    int size = layout->config->vision.patch_size, column = x / size, row = y / size;
    bool in_patch = column < layout->grid && row < layout->grid; // a rest at the edges is in none
    int patch = in_patch ? row * layout->grid + column : -1;
    if (ranks == NULL || patch < 0 || isnan(point->scores[patch])) {
        bool kept = patch >= 0 && point->kept[patch];
        for (int c = 0; c < 3 && !kept; c++) colour[c] = (uint8_t)(205 + (colour[c] - 128) / 8);
        return;
    }
    double of_rank[3], grey = (colour[0] + colour[1] + colour[2]) / 3.0;
    bool edge = x % size == 0 || y % size == 0 || x % size == size - 1 || y % size == size - 1;
    heat(ranks[patch], of_rank);
    for (int c = 0; c < 3; c++)
        colour[c] = point->kept[patch] && edge ? 20 : (uint8_t)lround(0.55 * of_rank[c] + 0.45 * grey);
}

// point NULL: the whole image.
static void draw_panel(const struct layout *layout, struct lvp_canvas *canvas, int left, int top,
                       const struct lvp_shown_point *point)
{
    if (point != NULL && layout->scores) rank_scores(point->scores, layout->grid * layout->grid, layout->ranks);
    for (int y = 0; y < layout->height; y++)
        for (int x = 0; x < layout->width; x++) {
            int px = x / layout->scale, py = y / layout->scale;
            uint8_t colour[3];
            for (int c = 0; c < 3; c++) colour[c] = grey_level(layout, c, px, py);
            if (point != NULL) tint(layout, point, layout->scores ? layout->ranks : NULL, px, py, colour);
            lvp_canvas_dot(canvas, left + x, top + y, colour);
        }
}

static void text_below(const struct lvp_shown_prompt *prompt, char *text)
{
    enum { MOST = 1900 };
    const char *cut_q = strlen(prompt->text) > MOST ? "..." : "", *cut_a = strlen(prompt->answer) > MOST ? "..." : "";
    (void)snprintf(text, MAX_TEXT, "Q: %.*s%s\nA: %.*s%s", MOST, prompt->text, cut_q, MOST, prompt->answer, cut_a);
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
        draw_panel(layout, canvas, left, top + LVP_LINE_HEIGHT, p == 0 ? NULL : &prompt->points[p - 1]);
    }
    text_below(prompt, text);
    (void)lvp_canvas_text(canvas, MARGIN, top + LVP_LINE_HEIGHT + layout->height + 4, layout->text_width, text);
}

enum lvp_status lvp_show_draw(const struct lvp_model_config *config, const struct lvp_prune_counts *prune,
                              const float *pixels, const struct lvp_shown_prompt *prompts, int n_prompts, bool scores,
                              const char *path)
{
    int side = config->vision.image_size, height = MARGIN;
    struct layout layout = {.config = config,
                            .pixels = pixels,
                            .scale = (LEAST_SIDE + side - 1) / side,
                            .grid = side / config->vision.patch_size,
                            .n_panels = prune->n_points + 1,
                            .scores = scores};
    layout.width = layout.height = side * layout.scale;
    layout.text_width = layout.n_panels * (layout.width + MARGIN) - MARGIN;
    for (int i = 0; i < n_prompts; i++) height += row_height(&layout, &prompts[i]);
    struct lvp_canvas canvas;
    LVP_TRY(lvp_canvas_create(layout.text_width + 2 * MARGIN, height, &canvas));
    layout.ranks = malloc((size_t)layout.grid * (size_t)layout.grid * sizeof *layout.ranks);
    if (layout.ranks == NULL) {
        lvp_canvas_free(&canvas);
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the picture");
    }
    for (int i = 0, top = MARGIN; i < n_prompts; i++) {
        draw_row(&layout, prune, &prompts[i], &canvas, top);
        top += row_height(&layout, &prompts[i]);
    }
    enum lvp_status status = lvp_canvas_write(&canvas, path);
    free(layout.ranks);
    lvp_canvas_free(&canvas);
    return status;
}
