// Kernels that treat each row by itself: norms, gated units, embedding lookup, rotary embedding with the write of K and
// V. A reduction over the width adds vector i to accumulator i % 4 and then the four as a fixed tree, so a row's bits
// are a function of the row alone.
#include "worker/cpu/kernels/act.h"
#include "worker/cpu/kernels/table.h"

enum { ACCUMULATORS = 4 };

// Lanes below n: -1, others 0.
static inline vi first_lanes(int n)
{
    return vi_iota() < vi_set1(n);
}

static inline float sum_accumulators(const vf *accumulators)
{
    return vf_sum((accumulators[0] + accumulators[1]) + (accumulators[2] + accumulators[3]));
}

static float row_sum(const float *x, int n)
{
    vf sum[ACCUMULATORS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()};
    int i = 0;
    for (; i + ACCUMULATORS * VF_LANES <= n; i += ACCUMULATORS * VF_LANES) {
        for (int a = 0; a < ACCUMULATORS; a++) sum[a] += vf_load(x + i + a * VF_LANES);
    }
    for (int a = 0; i < n; i += VF_LANES, a++) {
        sum[a] += vf_load_n(x + i, n - i);
    }
    return sum_accumulators(sum);
}

// Sum of (x - centre)^2
static float row_squares(const float *x, int n, float centre)
{
    vf sum[ACCUMULATORS] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, middle = vf_set1(centre);
    int i = 0;
    for (; i + ACCUMULATORS * VF_LANES <= n; i += ACCUMULATORS * VF_LANES) {
        for (int a = 0; a < ACCUMULATORS; a++) {
            vf distance = vf_load(x + i + a * VF_LANES) - middle;
            sum[a] = vf_fma(distance, distance, sum[a]);
        }
    }
    for (int a = 0; i < n; i += VF_LANES, a++) {
        vf distance = vf_select(first_lanes(n - i), vf_load_n(x + i, n - i) - middle, vf_zero());
        sum[a] = vf_fma(distance, distance, sum[a]);
    }
    return sum_accumulators(sum);
}

void LVP_KERNEL(lvp_layer_norm)(const void *arguments, int begin, int end)
{
    const struct lvp_norm_args *args = arguments;
    int width = args->width;
    for (int row = begin; row < end; row++) {
        const float *x = args->x + (size_t)row * (size_t)width;
        const float *add = args->add == NULL ? NULL : args->add + (size_t)row * (size_t)width;
        float *y = args->y + (size_t)row * (size_t)width;
        float mean = row_sum(x, width) / (float)width;
        float variance = row_squares(x, width, mean) / (float)width;
        vf middle = vf_set1(mean), scale = vf_set1(1.0f / sqrtf(variance + args->eps));
        for (int i = 0; i < width; i += VF_LANES) {
            int n = width - i;
            vf normed = (vf_load_n(x + i, n) - middle) * scale;
            vf value = vf_fma(normed, vf_load_n(args->weight + i, n), vf_load_n(args->bias + i, n));
            if (add != NULL) value += vf_load_n(add + i, n);
            vf_store_n(y + i, vf_round(value, args->round_to), n);
        }
    }
}

void LVP_KERNEL(lvp_rms_norm)(const void *arguments, int begin, int end)
{
    const struct lvp_norm_args *args = arguments;
    int width = args->width;
    for (int row = begin; row < end; row++) {
        const float *x = args->x + (size_t)row * (size_t)width;
        float *y = args->y + (size_t)row * (size_t)width;
        vf scale = vf_set1(1.0f / sqrtf(row_squares(x, width, 0.0f) / (float)width + args->eps));
        for (int i = 0; i < width; i += VF_LANES) {
            int n = width - i;
            vf_store_n(y + i, vf_load_n(x + i, n) * scale * vf_load_n(args->weight + i, n), n);
        }
    }
}

void LVP_KERNEL(lvp_glu)(const void *arguments, int begin, int end)
{
    const struct lvp_glu_args *args = arguments;
    int width = args->width;
    for (int row = begin; row < end; row++) {
        const float *gate = args->gate_up + (size_t)row * 2 * (size_t)width, *up = gate + width;
        float *y = args->y + (size_t)row * (size_t)width;
        for (int i = 0; i < width; i += VF_LANES) {
            int n = width - i;
            vf value = vf_activate(args->activation, vf_load_n(gate + i, n));
            vf_store_n(y + i, value * vf_load_n(up + i, n), n);
        }
    }
}

void LVP_KERNEL(lvp_embed)(const void *arguments, int begin, int end)
{
    const struct lvp_embed_args *args = arguments;
    size_t width = (size_t)args->width;
    for (int row = begin; row < end; row++) {
        float *y = args->y + (size_t)(args->to == NULL ? row : args->to[row]) * width;
        size_t from = (size_t)args->ids[row] * width;
        if (args->dtype == LVP_F32) {
            memcpy(y, (const float *)args->table + from, width * sizeof *y);
            continue;
        }
        const uint16_t *x = (const uint16_t *)args->table + from;
        for (int i = 0; i < args->width; i += VF_LANES)
            vf_store_n(y + i, vf_load_half_n(x + i, args->width - i, args->dtype), args->width - i);
    }
}

// x [head_dim] -> y [head_dim], which may be x. Products and sums are rounded one by one, as in the reference.
static void rotate(const float *x, int head_dim, const float *angle, float *y)
{
    int half = head_dim / 2;
    for (int i = 0; i < half; i += VF_LANES) {
        int n = half - i;
        vf first = vf_load_n(x + i, n), second = vf_load_n(x + half + i, n);
        vf cosine = vf_load_n(angle + i, n), sine = vf_load_n(angle + half + i, n);
        vf_store_n(y + i, first * cosine - second * sine, n);
        vf_store_n(y + half + i, second * cosine + first * sine, n);
    }
    if (head_dim % 2 != 0) y[head_dim - 1] = x[head_dim - 1];
}

// n elements of a key, from element i of its tile [head_dim, PAGE], at `place`.
static void put_key(const struct lvp_rope_args *args, size_t tile, int place, int i, int n, vf value)
{
    size_t at = tile + (size_t)i * LVP_KV_PAGE + (size_t)place;
    if (n > VF_LANES) n = VF_LANES;
    if (args->dtype == LVP_F32) {
        float lanes[VF_LANES];
        vf_store(lanes, value);
        for (int j = 0; j < n; j++) ((float *)args->cache.k)[at + (size_t)j * LVP_KV_PAGE] = lanes[j];
        return;
    }
    uint16_t lanes[VF_LANES];
    vf_store_half_n(lanes, value, VF_LANES, args->dtype);
    for (int j = 0; j < n; j++) ((uint16_t *)args->cache.k)[at + (size_t)j * LVP_KV_PAGE] = lanes[j];
}

// Rotates a key head [head_dim] as `rotate` does, on its way into its page: in qkv it stays as it was.
static void write_key(const struct lvp_rope_args *args, size_t tile, int place, const float *k, const float *angle)
{
    int head_dim = args->shape.head_dim, half = head_dim / 2;
    for (int i = 0; i < half; i += VF_LANES) {
        int n = half - i;
        vf first = vf_load_n(k + i, n), second = vf_load_n(k + half + i, n);
        vf cosine = vf_load_n(angle + i, n), sine = vf_load_n(angle + half + i, n);
        put_key(args, tile, place, i, n, first * cosine - second * sine);
        put_key(args, tile, place, half + i, n, second * cosine + first * sine);
    }
    if (head_dim % 2 != 0) put_key(args, tile, place, head_dim - 1, 1, vf_set1(k[head_dim - 1]));
}

// A value head into its page [PAGE, head_dim].
static void write_value(const struct lvp_rope_args *args, size_t tile, int place, const float *v)
{
    int head_dim = args->shape.head_dim;
    size_t at = tile + (size_t)place * (size_t)head_dim;
    if (args->dtype == LVP_F32) {
        memcpy((float *)args->cache.v + at, v, (size_t)head_dim * sizeof *v);
        return;
    }
    for (int i = 0; i < head_dim; i += VF_LANES) {
        int n = head_dim - i < VF_LANES ? head_dim - i : VF_LANES;
        vf_store_half_n((uint16_t *)args->cache.v + at + i, vf_load_n(v + i, n), n, args->dtype);
    }
}

void LVP_KERNEL(lvp_rope_kv_write)(const void *arguments, int begin, int end)
{
    const struct lvp_rope_args *args = arguments;
    size_t head_dim = (size_t)args->shape.head_dim, kv_heads = (size_t)args->shape.kv_heads;
    size_t width = ((size_t)args->shape.heads + 2 * kv_heads) * head_dim;
    for (int row = begin; row < end; row++) {
        float *q = args->qkv + (size_t)row * width;
        const float *k = q + (size_t)args->shape.heads * head_dim, *v = k + kv_heads * head_dim;
        const float *angle = args->rope + (size_t)args->positions[row] * head_dim;
        size_t page = (size_t)(args->slots[row] / LVP_KV_PAGE);
        int place = args->slots[row] % LVP_KV_PAGE;
        for (float *head = q; head < k; head += head_dim) rotate(head, args->shape.head_dim, angle, head);
        for (size_t h = 0; h < kv_heads; h++) {
            size_t tile = (page * kv_heads + h) * head_dim * LVP_KV_PAGE;
            write_key(args, tile, place, k + h * head_dim, angle);
            write_value(args, tile, place, v + h * head_dim);
        }
    }
}
