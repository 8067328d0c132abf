// How linear layers with int8 weights round, on every kernel set alike: the products are sums of integers, so they are
// exact, and no order of adding up changes them.
//
// weights: one scale per output; the largest magnitude of its row becomes 127.
// x: one scale per row; its largest magnitude becomes lvp_int8_x_limit(in), the most that cannot overflow 32 bits in a
// sum of `in` products: 13 bits and more up to 4,096 features, 11 at 14,336. The weights' 8 bits are what costs
// accuracy. y = sum * (scale of the weights * scale of x).
#ifndef LVP_WORKER_CPU_INT8_H
#define LVP_WORKER_CPU_INT8_H

#include <math.h>
#include <stdint.h>

enum {
    LVP_INT8_LARGEST = 127,
    LVP_INT8_MOST_FEATURES = INT32_MAX / (LVP_INT8_LARGEST * LVP_INT8_LARGEST),
};

// The largest of `largest` and |value|; what is not a number stays.
static inline float lvp_int8_larger(float largest, float value)
{
    return fabsf(value) <= largest || isnan(largest) ? largest : fabsf(value);
}

static inline float lvp_int8_x_limit(int in)
{
    int32_t limit = INT32_MAX / LVP_INT8_LARGEST / in;
    return (float)(limit < INT16_MAX ? limit : INT16_MAX);
}

// What to multiply by before rounding to the nearest integer, ties to even, and after: `largest` becomes `limit`. Rows
// too small to have a reciprocal count as 0; a row that is not finite gives NaN, since it has no largest.
struct lvp_int8_scale {
    float to, back;
};

static inline struct lvp_int8_scale lvp_int8_scale(float largest, float limit)
{
    if (!isfinite(largest)) return (struct lvp_int8_scale){0, NAN};
    if (largest < 0x1p-100f) return (struct lvp_int8_scale){0, 0};
    return (struct lvp_int8_scale){limit / largest, largest / limit};
}

#endif
