// Pillow's resampling (libImaging/Resample.c, 8 bits per channel): every output pixel is a weighted mean of the input
// pixels under the filter's window, which widens with the scale when shrinking; weights are rounded to 22 fractional
// bits. One pass is horizontal and one vertical, with rounding to 8 bits in between; see goes_vertical_first for their
// order.
//
// Pillow keeps the whole picture between the passes, and the weights of all outputs. Here rows stream through instead:
// horizontal first, each source row is resized once, then added to the sums of the output rows whose window it lies in;
// vertical first, each output row is summed from the source, then resized. Integer sums do not depend on their order,
// so the bytes are the same. Padding is never materialised either: its weights are added up, and enter once, times the
// background.
#include "worker/image/resize.h"

#include "common/checked.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHANNELS = 3,
    PRECISION_BITS = 32 - 8 - 2, // Resample.c: 8 bits of pixel, 2 spare since weights overshoot 1 and go below 0
    ONE = 1 << PRECISION_BITS,
    HALF = 1 << (PRECISION_BITS - 1), // makes the final shift round to nearest
    // With weights of at least 4 units at the window's centre, rounding them adds at most half of ONE to their sum, and
    // 255 x (1.25 + 0.5) x ONE + HALF is below 2^31.
    MAX_SHRINK = 1 << 20,
    MAX_TABLE_WEIGHTS = 4 << 20, // of the horizontal weights; wider pictures compute them again for each row
};

// The source pixels under one output's window.
struct window {
    int first, count;   // in source pixels, without padding
    int32_t pad_weight; // sum of the fixed-point weights that fall on padding
    int64_t start;      // of the whole window, in canvas pixels
    double centre;      // in canvas pixels
    double sum;         // of the window's weights, before they are normalised
    size_t at;          // of its weights in the table
};

struct axis {
    enum lvp_resample filter;
    bool identity;               // the pass is skipped, as in Pillow
    double scale;                // canvas pixels per output pixel
    double support;              // half the window's width, canvas pixels
    double inverse;              // of the filter's stretch, at least 1 when shrinking
    int count;                   // outputs
    struct window *windows;      // [count]; first and first + count never decrease
    size_t n_weights;            // of all windows
    int widest;                  // largest window count
    int first_source, n_source;  // the source pixels that some window needs
    int first_output, n_outputs; // the outputs whose window holds source pixels; the others are all padding
};

static double filter_weight(enum lvp_resample filter, double x)
{
    x = fabs(x);
    if (filter == LVP_RESAMPLE_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    const double a = -0.5; // bicubic convolution, Keys 1981, with Pillow's parameter and order of operations
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double raw_weight(const struct axis *axis, const struct window *window, int64_t at)
{
    return filter_weight(axis->filter, ((double)at - window->centre + 0.5) * axis->inverse);
}

// Of the canvas pixel `at`; normalize_coeffs_8bpc in Resample.c.
static int32_t fixed_weight(const struct axis *axis, const struct window *window, int64_t at)
{
    if (axis->identity) return ONE;
    double weight = raw_weight(axis, window, at);
    if (window->sum != 0.0) weight /= window->sum;
    return (int32_t)(weight < 0.0 ? -0.5 + weight * ONE : 0.5 + weight * ONE);
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

// precompute_coeffs in Resample.c, for output `index` of the resized picture.
static void place_window(const struct axis *axis, const struct lvp_resize_axis *plan, int64_t index,
                         struct window *window)
{
    int64_t end;
    if (axis->identity) {
        window->start = index;
        end = index + 1;
    } else {
        window->centre = ((double)index + 0.5) * axis->scale;
        window->start = clamp((int64_t)(window->centre - axis->support + 0.5), 0, plan->canvas);
        end = clamp((int64_t)(window->centre + axis->support + 0.5), window->start, plan->canvas);
        for (int64_t at = window->start; at < end; at++) window->sum += raw_weight(axis, window, at);
    }
    const int64_t first = clamp(window->start - plan->before, 0, plan->source);
    const int64_t last = clamp(end - plan->before, first, plan->source);
    window->first = (int)first;
    window->count = (int)(last - first);
    for (int64_t at = window->start; at < end; at++) {
        if (at >= plan->before && at < plan->before + plan->source) {
            at = plan->before + last - 1; // skip the source itself
        } else {
            window->pad_weight += fixed_weight(axis, window, at);
        }
    }
}

static enum lvp_status axis_create(const struct lvp_resize_axis *plan, enum lvp_resample filter, struct axis *axis)
{
    *axis = (struct axis){.filter = filter, .identity = plan->canvas == plan->resized, .count = plan->count};
    // Pillow holds the box in float: sides over 2^24 are rounded there.
    axis->scale = (double)(float)plan->canvas / (double)plan->resized;
    const double stretch = axis->scale < 1.0 ? 1.0 : axis->scale;
    axis->support = (filter == LVP_RESAMPLE_BILINEAR ? 1.0 : 2.0) * stretch;
    axis->inverse = 1.0 / stretch;
    axis->windows = calloc((size_t)plan->count, sizeof *axis->windows);
    if (axis->windows == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory to resize an image");
    for (int i = 0; i < plan->count; i++) {
        struct window *window = &axis->windows[i];
        place_window(axis, plan, plan->first + i, window);
        window->start = plan->before + window->first; // from here on only the source's part counts
        window->at = axis->n_weights;
        axis->n_weights += (size_t)window->count;
        if (window->count > axis->widest) axis->widest = window->count;
        if (window->count > 0 && axis->n_outputs++ == 0) axis->first_output = i;
    }
    const struct window *last = &axis->windows[plan->count - 1];
    axis->first_source = axis->windows[0].first;
    axis->n_source = last->first + last->count - axis->first_source;
    return LVP_OK;
}

static void fill_weights(const struct axis *axis, const struct window *window, int32_t *weights)
{
    for (int k = 0; k < window->count; k++) weights[k] = fixed_weight(axis, window, window->start + k);
}

static uint8_t round_to_byte(int32_t sum)
{
    const int32_t value = sum >> PRECISION_BITS;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

struct resizer {
    const struct lvp_raster *source;
    const struct lvp_resize_plan *plan;
    struct axis y, x;
    int32_t *x_weights; // all of x's, or room for its widest window
    bool tabled;        // x_weights holds all
    uint8_t *padding;   // [x.count, 3] a row of nothing but background, resized horizontally
    uint8_t *row;       // one row after the first pass: [x.n_outputs, 3], or [x.n_source, 3] where that is vertical
    int32_t *sums;      // of the vertical pass: [y.count, x.n_outputs, 3], or [x.n_source, 3] for one row at a time
    int32_t *totals;    // [y.count] sums of the vertical weights
};

static const int32_t *weights_of(struct resizer *resizer, const struct window *window)
{
    if (resizer->tabled) return resizer->x_weights + window->at;
    fill_weights(&resizer->x, window, resizer->x_weights);
    return resizer->x_weights;
}

// The horizontal pass for outputs [from, from + count): `pixels` is a row from x.first_source on, `out` is [count, 3].
static void resize_row(struct resizer *resizer, const uint8_t *pixels, const uint8_t background[CHANNELS], int from,
                       int count, uint8_t *out)
{
    for (int i = from; i < from + count; i++, out += CHANNELS) {
        const struct window *window = &resizer->x.windows[i];
        const int32_t *weights = weights_of(resizer, window);
        const uint8_t *pixel = pixels + (size_t)(window->first - resizer->x.first_source) * CHANNELS;
        int32_t r = HALF + window->pad_weight * background[0];
        int32_t g = HALF + window->pad_weight * background[1];
        int32_t b = HALF + window->pad_weight * background[2];
        for (int k = 0; k < window->count; k++, pixel += CHANNELS) {
            r += weights[k] * pixel[0];
            g += weights[k] * pixel[1];
            b += weights[k] * pixel[2];
        }
        out[0] = round_to_byte(r);
        out[1] = round_to_byte(g);
        out[2] = round_to_byte(b);
    }
}

// A row of nothing but background. Its bytes can differ from the background's by one: rounded weights need not add up
// to ONE.
static void resize_background_row(struct resizer *resizer)
{
    for (int i = 0; i < resizer->x.count; i++) {
        const struct window *window = &resizer->x.windows[i];
        const int32_t *weights = weights_of(resizer, window);
        int32_t total = window->pad_weight;
        for (int k = 0; k < window->count; k++) total += weights[k];
        for (int c = 0; c < CHANNELS; c++) {
            resizer->padding[i * CHANNELS + c] = round_to_byte(HALF + total * resizer->plan->background[c]);
        }
    }
}

static const uint8_t *source_row(const struct resizer *resizer, int row)
{
    const size_t pixel = (size_t)row * (size_t)resizer->source->width + (size_t)resizer->x.first_source;
    return resizer->source->pixels + pixel * CHANNELS;
}

static void add_row(int32_t *sums, int32_t weight, const uint8_t *row, size_t n_values)
{
    for (size_t v = 0; v < n_values; v++) sums[v] += weight * row[v];
}

static void round_row(const int32_t *sums, size_t n_values, uint8_t *out)
{
    for (size_t v = 0; v < n_values; v++) out[v] = round_to_byte(sums[v]);
}

// Columns that are all padding have the same bytes in every row: only their vertical pass is left, one multiplication.
// This keeps a picture a pixel wide and millions high cheap to pad.
static void resample_horizontal_first(struct resizer *resizer, uint8_t *out, size_t out_stride)
{
    const struct axis *y = &resizer->y;
    const struct axis *x = &resizer->x;
    const size_t n_values = (size_t)x->n_outputs * CHANNELS;
    const size_t offset = (size_t)x->first_output * CHANNELS;
    resize_background_row(resizer);
    for (int i = 0; i < y->count; i++) {
        int32_t *sums = resizer->sums + (size_t)i * n_values;
        resizer->totals[i] = y->windows[i].pad_weight;
        for (size_t v = 0; v < n_values; v++) sums[v] = HALF + resizer->totals[i] * resizer->padding[offset + v];
    }
    int open = 0; // first output row whose window has not ended
    for (int from = y->first_source; from < y->first_source + y->n_source; from++) {
        while (y->windows[open].first + y->windows[open].count <= from) open++;
        resize_row(resizer, source_row(resizer, from), resizer->plan->background, x->first_output, x->n_outputs,
                   resizer->row);
        for (int i = open; i < y->count && y->windows[i].first <= from; i++) {
            const struct window *window = &y->windows[i];
            const int32_t weight = fixed_weight(y, window, window->start + (from - window->first));
            add_row(resizer->sums + (size_t)i * n_values, weight, resizer->row, n_values);
            resizer->totals[i] += weight;
        }
    }
    for (int i = 0; i < y->count; i++, out += out_stride) {
        for (size_t v = 0; v < (size_t)x->count * CHANNELS; v++) {
            out[v] = round_to_byte(HALF + resizer->totals[i] * resizer->padding[v]);
        }
        round_row(resizer->sums + (size_t)i * n_values, n_values, out + offset);
    }
}

static void resample_vertical_first(struct resizer *resizer, uint8_t *out, size_t out_stride)
{
    const size_t n_values = (size_t)resizer->x.n_source * CHANNELS;
    for (int i = 0; i < resizer->y.count; i++, out += out_stride) {
        const struct window *window = &resizer->y.windows[i];
        for (size_t v = 0; v < n_values; v++) {
            resizer->sums[v] = HALF + window->pad_weight * resizer->plan->background[v % CHANNELS];
        }
        int32_t total = window->pad_weight;
        for (int k = 0; k < window->count; k++) {
            const int32_t weight = fixed_weight(&resizer->y, window, window->start + k);
            add_row(resizer->sums, weight, source_row(resizer, window->first + k), n_values);
            total += weight;
        }
        round_row(resizer->sums, n_values, resizer->row);
        uint8_t background[CHANNELS]; // the columns of padding, after their own vertical pass
        for (int c = 0; c < CHANNELS; c++) background[c] = round_to_byte(HALF + total * resizer->plan->background[c]);
        resize_row(resizer, resizer->row, background, 0, resizer->x.count, out);
    }
}

// ImagingResampleInner in Resample.c, since Pillow 13: where the height shrinks by more than twice the pixels that the
// width does, the vertical pass goes first, because that is faster. Rounding in between makes the order visible (by a
// few levels at hard edges, where the filter overshoots); Pillow 12 and older always go horizontally first.
static bool goes_vertical_first(const struct lvp_resize_plan *plan)
{
    const int64_t fewer_rows = plan->y.canvas - plan->y.resized;
    const int64_t fewer_columns = plan->x.canvas - plan->x.resized;
    return fewer_rows > 0 && fewer_rows > fewer_columns * 2;
}

static enum lvp_status resizer_create(const struct lvp_raster *source, const struct lvp_resize_plan *plan,
                                      bool vertical_first, struct resizer *resizer)
{
    *resizer = (struct resizer){.source = source, .plan = plan};
    LVP_TRY(axis_create(&plan->y, plan->filter, &resizer->y));
    LVP_TRY(axis_create(&plan->x, plan->filter, &resizer->x));
    resizer->tabled = resizer->x.n_weights <= MAX_TABLE_WEIGHTS;
    const size_t n_weights = resizer->tabled ? resizer->x.n_weights : (size_t)resizer->x.widest;
    const size_t row_values = (size_t)(vertical_first ? resizer->x.n_source : resizer->x.n_outputs) * CHANNELS;
    size_t n_sums = row_values;
    if (!vertical_first && !lvp_checked_mul(row_values, (size_t)resizer->y.count, &n_sums)) n_sums = SIZE_MAX / 8;
    // One more of each: a window that lies in the padding needs no values at all, and malloc(0) may be NULL.
    resizer->x_weights = malloc((n_weights + 1) * sizeof *resizer->x_weights);
    resizer->padding = malloc((size_t)resizer->x.count * CHANNELS);
    resizer->row = malloc(row_values + 1);
    resizer->sums = malloc((n_sums + 1) * sizeof *resizer->sums);
    resizer->totals = malloc((size_t)resizer->y.count * sizeof *resizer->totals);
    if (resizer->x_weights == NULL || resizer->padding == NULL || resizer->row == NULL || resizer->sums == NULL ||
        resizer->totals == NULL) {
        return lvp_fail(LVP_ERR_MEMORY, "no memory to resize an image");
    }
    for (int i = 0; resizer->tabled && i < resizer->x.count; i++) {
        const struct window *window = &resizer->x.windows[i];
        fill_weights(&resizer->x, window, resizer->x_weights + window->at);
    }
    return LVP_OK;
}

static void resizer_free(struct resizer *resizer)
{
    free(resizer->y.windows);
    free(resizer->x.windows);
    free(resizer->x_weights);
    free(resizer->padding);
    free(resizer->row);
    free(resizer->sums);
    free(resizer->totals);
}

static enum lvp_status resize_filtered(const struct lvp_raster *source, const struct lvp_resize_plan *plan,
                                       uint8_t *out, size_t out_stride)
{
    const bool vertical_first = goes_vertical_first(plan);
    struct resizer resizer;
    enum lvp_status status = resizer_create(source, plan, vertical_first, &resizer);
    if (status == LVP_OK && vertical_first) resample_vertical_first(&resizer, out, out_stride);
    if (status == LVP_OK && !vertical_first) resample_horizontal_first(&resizer, out, out_stride);
    resizer_free(&resizer);
    return status;
}

// Source pixel of each output, or -1 on padding. ImagingScaleAffine in libImaging/Geometry.c steps by repeated
// addition, and its rounding decides which pixel a tie takes; Pillow's sizes end at 2^31, and beyond a product does.
static void nearest_pixels(const struct lvp_resize_axis *axis, int *pixels)
{
    const double step = (double)(float)axis->canvas / (double)axis->resized;
    double at = step * 0.5;
    if (axis->first <= INT32_MAX) {
        for (int64_t i = 0; i < axis->first; i++) at += step;
    } else {
        at += (double)axis->first * step;
    }
    for (int i = 0; i < axis->count; i++, at += step) {
        const int64_t pixel = clamp((int64_t)at, 0, axis->canvas - 1) - axis->before;
        pixels[i] = pixel >= 0 && pixel < axis->source ? (int)pixel : -1;
    }
}

static enum lvp_status resize_nearest(const struct lvp_raster *source, const struct lvp_resize_plan *plan, uint8_t *out,
                                      size_t out_stride)
{
    int *rows = malloc(((size_t)plan->y.count + (size_t)plan->x.count) * sizeof *rows);
    if (rows == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory to resize an image");
    int *columns = rows + plan->y.count;
    nearest_pixels(&plan->y, rows);
    nearest_pixels(&plan->x, columns);
    for (int y = 0; y < plan->y.count; y++) {
        for (int x = 0; x < plan->x.count; x++) {
            const uint8_t *pixel = plan->background;
            if (rows[y] >= 0 && columns[x] >= 0) {
                pixel = source->pixels + ((size_t)rows[y] * (size_t)source->width + (size_t)columns[x]) * CHANNELS;
            }
            memcpy(out + (size_t)y * out_stride + (size_t)x * CHANNELS, pixel, CHANNELS);
        }
    }
    free(rows);
    return LVP_OK;
}

enum lvp_status lvp_resize(const struct lvp_raster *source, const struct lvp_resize_plan *plan, uint8_t *out,
                           size_t out_stride, struct lvp_sample_error *error)
{
    if (plan->filter == LVP_RESAMPLE_NEAREST) return resize_nearest(source, plan, out, out_stride);
    if (plan->y.canvas / plan->y.resized >= MAX_SHRINK || plan->x.canvas / plan->x.resized >= MAX_SHRINK) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOO_LARGE, "%d x %d pixels are too many to shrink to %lld x %lld",
                             source->width, source->height, (long long)plan->x.resized, (long long)plan->y.resized);
        return LVP_OK;
    }
    return resize_filtered(source, plan, out, out_stride);
}
