#include "worker/cpu/prune.h"

#include <math.h>

// --- attention of a prompt's last row

// logits [n_slots], rounded up to whole pages: one chain of additions over head_dim per slot.
static void head_logits(const struct lvp_last_attention *a, enum lvp_dtype dtype, int seq, int kv_head, const float *q,
                        int n_slots, float *keys, float *logits)
{
    size_t head_dim = (size_t)a->shape.head_dim, tile = head_dim * LVP_KV_PAGE;
    const int32_t *pages = a->block_table + (size_t)seq * (size_t)a->max_pages;
    float scale = 1.0f / sqrtf((float)a->shape.head_dim);
    for (int slot = 0; slot < n_slots; slot += LVP_KV_PAGE) {
        size_t page = (size_t)pages[slot / LVP_KV_PAGE] * (size_t)a->shape.kv_heads + (size_t)kv_head;
        lvp_widen((const char *)a->cache.k + page * tile * lvp_dtype_size(dtype), tile, dtype, keys);
        float sum[LVP_KV_PAGE] = {0};
        for (size_t i = 0; i < head_dim; i++)
            for (int j = 0; j < LVP_KV_PAGE; j++) sum[j] += q[i] * keys[i * LVP_KV_PAGE + (size_t)j];
        for (int j = 0; j < LVP_KV_PAGE; j++) logits[slot + j] = sum[j] * scale;
    }
}

void lvp_cpu_last_attention(const struct lvp_kernels *kernels, enum lvp_dtype dtype, const struct lvp_last_attention *a,
                            int image, const struct lvp_attention_scratch *scratch)
{
    int seq = a->image_seq[image], n_slots = a->row_start[seq + 1] - a->row_start[seq], n = a->image_len[image];
    int heads = a->shape.heads, group = heads / a->shape.kv_heads, head_dim = a->shape.head_dim;
    size_t width = (size_t)(heads + 2 * a->shape.kv_heads) * (size_t)head_dim;
    const float *last = a->qkv + (size_t)(a->row_start[seq + 1] - 1) * width;
    float *logits = scratch->scores, *weights = scratch->scores + scratch->max_slots;
    const float *of_image = weights + (a->image_row[image] - a->row_start[seq]);
    float *gate = a->gate + 2 * (size_t)a->gate_start[image];
    memset(gate, 0, 2 * (size_t)n * sizeof *gate);
    for (int h = 0; h < heads; h++) {
        head_logits(a, dtype, seq, h / group, last + (size_t)h * (size_t)head_dim, n_slots, scratch->k, logits);
        double total = kernels->exp_weights(logits, n_slots, kernels->largest(logits, n_slots), 1.0f, weights);
        float share = (float)(1.0 / total);
        for (int i = 0; i < n; i++) gate[2 * i] += of_image[i] * share;
    }
    for (int i = 0; i < n; i++) gate[2 * i] /= (float)heads;
}

// --- soft-NMS

enum { LANES = 16 };

// Sum of a[i] * b[i]: lane i % LANES adds up its own products in order, then the lanes are added in order.
static float dot(const float *a, const float *b, int n)
{
    float sum[LANES] = {0}, all = 0.0f;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) sum[j] += a[i + j] * b[i + j];
    for (int j = 0; i + j < n; j++) sum[j] += a[i + j] * b[i + j];
    for (int j = 0; j < LANES; j++) all += sum[j];
    return all;
}

static float length(const float *a, int n)
{
    return fmaxf(sqrtf(dot(a, a, n)), 1e-8f);
}

// The best row that is not taken; ties go to the lower one.
static int find_best(const float *gate, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (gate[2 * i + 1] == 0.0f && (best < 0 || gate[2 * i] > gate[2 * best])) best = i;
    return best;
}

// Lowers the scores of the rows around row `taken` of the image.
static void suppress(const struct lvp_kernels *kernels, const struct lvp_soft_nms *nms, int image, int taken)
{
    enum { BOX = (2 * LVP_NMS_RADIUS + 1) * (2 * LVP_NMS_RADIUS + 1) };
    const int32_t *positions = nms->positions + nms->image_row[image];
    float *gate = nms->gate + 2 * (size_t)nms->gate_start[image];
    size_t first = (size_t)nms->image_row[image], stride = (size_t)nms->key_stride;
    const float *key = nms->keys + (first + (size_t)taken) * stride;
    float own_length = length(key, nms->key_width), exponents[BOX], weights[BOX];
    int place = positions[taken] - nms->image_position[image], near[BOX], n_near = 0;
    for (int i = 0; i < nms->image_len[image]; i++) {
        int other = positions[i] - nms->image_position[image];
        int dx = place % nms->grid - other % nms->grid, dy = place / nms->grid - other / nms->grid;
        int d2 = dx * dx + dy * dy;
        if (d2 > LVP_NMS_RADIUS * LVP_NMS_RADIUS || gate[2 * i + 1] != 0.0f) continue;
        const float *k = nms->keys + (first + (size_t)i) * stride;
        float cosine = dot(key, k, nms->key_width) / (own_length * length(k, nms->key_width));
        float unlike = 1.0f - cosine;
        near[n_near] = i;
        exponents[n_near++] = -(float)d2 / 4.5f - unlike * unlike * 200.0f; // 2 * 1.5^2, 1 / (2 * 0.05^2)
    }
    if (n_near == 0) return;
    (void)kernels->exp_weights(exponents, n_near, 0.0f, 1.0f, weights); // 0 for NaN
    for (int i = 0; i < n_near; i++) gate[2 * near[i]] *= 1.0f - weights[i];
}

void lvp_cpu_soft_nms(const struct lvp_kernels *kernels, const struct lvp_soft_nms *nms, int image)
{
    int n = nms->image_len[image], keep = nms->keep[image] < n ? nms->keep[image] : n;
    const int32_t *positions = nms->positions + nms->image_row[image];
    float *gate = nms->gate + 2 * (size_t)nms->gate_start[image]; // score, and a taken row's rank from 2 up
    for (int i = 0; i < n; i++) {
        float score = gate[2 * i] * nms->prior[positions[i] - nms->image_position[image]];
        gate[2 * i] = isnan(score) ? -INFINITY : score;
        gate[2 * i + 1] = 0.0f;
    }
    for (int i = 0; i < keep; i++) {
        int best = find_best(gate, n);
        gate[2 * best + 1] = (float)(keep - i + 1);
        if (i + 1 < keep) suppress(kernels, nms, image, best);
    }
    for (int i = 0; i < n; i++) {
        if (gate[2 * i + 1] != 0.0f) gate[2 * i] = gate[2 * i + 1];
        gate[2 * i + 1] = 0.0f;
    }
}
