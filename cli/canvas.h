// A picture to draw on: panels of pixels and lines of text, written as PNG.
#ifndef LVP_CLI_CANVAS_H
#define LVP_CLI_CANVAS_H

#include "common/status.h"

#include <stdint.h>

enum { LVP_LETTER_WIDTH = 8, LVP_LINE_HEIGHT = 18 };

struct lvp_canvas {
    int width, height;
    uint8_t *pixels; // [height, width, 3]; owned
};

// White. LVP_ERR_MEMORY, LVP_ERR_USAGE above 1 GiB.
enum lvp_status lvp_canvas_create(int width, int height, struct lvp_canvas *canvas) LVP_MUST_CHECK;
void lvp_canvas_free(struct lvp_canvas *canvas); // safe on a zeroed one

// One dot, cut off at the edges.
void lvp_canvas_dot(struct lvp_canvas *canvas, int x, int y, const uint8_t colour[3]);

// Lines of at most `width` pixels, broken at spaces, from x, y down; returns their number. `canvas` NULL: only counts.
// What is not ASCII shows as a question mark.
int lvp_canvas_text(struct lvp_canvas *canvas, int x, int y, int width, const char *text);

// Replaces what is there as a whole, by way of path.tmp. LVP_ERR_IO.
enum lvp_status lvp_canvas_write(const struct lvp_canvas *canvas, const char *path) LVP_MUST_CHECK;

#endif
