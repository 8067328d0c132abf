// Reference of the operations that score and choose rows at a prune point; select_rows is in ref_rows.c.
#include "worker/cpu/ref_ops.h"

#include <math.h>

// --- attention of a prompt's last row

// Logit of one head's query q and the key in `slot` of sequence s.
static double key_logit(const struct lvp_backend *backend, const struct lvp_last_attention *a, int s, int kv_head,
                        const float *q, int slot)
{
    size_t head_dim = (size_t)a->shape.head_dim, place = (size_t)(slot % LVP_KV_PAGE);
    size_t page = (size_t)a->block_table[(size_t)s * (size_t)a->max_pages + (size_t)(slot / LVP_KV_PAGE)];
    size_t tile = (page * (size_t)a->shape.kv_heads + (size_t)kv_head) * head_dim * LVP_KV_PAGE;
    double sum = 0.0;
    for (size_t i = 0; i < head_dim; i++)
        sum += (double)q[i] * (double)lvp_load_f32(a->cache.k, backend->dtype, tile + i * LVP_KV_PAGE + place);
    return sum / sqrt((double)head_dim);
}

static void image_attention(const struct lvp_backend *backend, const struct lvp_last_attention *a, int image)
{
    int s = a->image_seq[image], n_slots = a->row_start[s + 1] - a->row_start[s];
    int first_slot = a->image_row[image] - a->row_start[s];
    size_t head_dim = (size_t)a->shape.head_dim, heads = (size_t)a->shape.heads, kv_heads = (size_t)a->shape.kv_heads;
    const float *last = a->qkv + (size_t)(a->row_start[s + 1] - 1) * (heads + 2 * kv_heads) * head_dim;
    float *gate = a->gate + 2 * (size_t)a->gate_start[image];
    for (int i = 0; i < 2 * a->image_len[image]; i++) gate[i] = 0.0f;
    for (size_t h = 0; h < heads; h++) {
        const float *q = last + h * head_dim;
        int kv_head = (int)(h / (heads / kv_heads));
        double largest = -INFINITY, total = 0.0;
        for (int slot = 0; slot < n_slots; slot++) largest = fmax(largest, key_logit(backend, a, s, kv_head, q, slot));
        for (int slot = 0; slot < n_slots; slot++) total += exp(key_logit(backend, a, s, kv_head, q, slot) - largest);
        for (int i = 0; i < a->image_len[image]; i++) {
            double weight = exp(key_logit(backend, a, s, kv_head, q, first_slot + i) - largest);
            gate[2 * i] += (float)(weight / total / (double)heads);
        }
    }
}

void lvp_ref_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *attention)
{
    for (int image = 0; image < attention->n_images; image++) image_attention(backend, attention, image);
}

// --- soft-NMS

static double similarity(const float *a, const float *b, int width)
{
    double dot = 0.0, a2 = 0.0, b2 = 0.0;
    for (int i = 0; i < width; i++) {
        dot += (double)a[i] * (double)b[i];
        a2 += (double)a[i] * (double)a[i];
        b2 += (double)b[i] * (double)b[i];
    }
    return dot / (fmax(sqrt(a2), 1e-8) * fmax(sqrt(b2), 1e-8));
}

// What taking row a leaves of row b's score.
static double nms_factor(const struct lvp_soft_nms *nms, int image, int a, int b)
{
    int place_a = nms->positions[a] - nms->image_position[image];
    int place_b = nms->positions[b] - nms->image_position[image];
    int dx = place_a % nms->grid - place_b % nms->grid, dy = place_a / nms->grid - place_b / nms->grid;
    int d2 = dx * dx + dy * dy;
    if (d2 > LVP_NMS_RADIUS * LVP_NMS_RADIUS) return 1.0;
    size_t stride = (size_t)nms->key_stride;
    double cosine = similarity(nms->keys + (size_t)a * stride, nms->keys + (size_t)b * stride, nms->key_width);
    double unlike = 1.0 - cosine;
    if (isnan(cosine)) return 1.0;
    return 1.0 - exp(-d2 / (2 * 1.5 * 1.5)) * exp(-unlike * unlike / (2 * 0.05 * 0.05));
}

void lvp_ref_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *nms)
{
    (void)backend;
    for (int image = 0; image < nms->n_images; image++) {
        int n = nms->image_len[image], first = nms->image_row[image];
        float *gate = nms->gate + 2 * (size_t)nms->gate_start[image]; // score, and a taken row's rank from 2 up
        for (int i = 0; i < n; i++) {
            gate[2 * i] *= nms->prior[nms->positions[first + i] - nms->image_position[image]];
            if (isnan(gate[2 * i])) gate[2 * i] = -INFINITY;
            gate[2 * i + 1] = 0.0f;
        }
        int keep = nms->keep[image] < n ? nms->keep[image] : n;
        for (int taken = 0; taken < keep; taken++) {
            int best = -1;
            for (int i = 0; i < n; i++)
                if (gate[2 * i + 1] == 0.0f && (best < 0 || gate[2 * i] > gate[2 * best])) best = i;
            gate[2 * best + 1] = (float)(keep - taken + 1);
            for (int i = 0; taken + 1 < keep && i < n; i++)
                if (gate[2 * i + 1] == 0.0f)
                    gate[2 * i] = (float)((double)gate[2 * i] * nms_factor(nms, image, first + best, first + i));
        }
        for (int i = 0; i < n; i++) {
            if (gate[2 * i + 1] != 0.0f) gate[2 * i] = gate[2 * i + 1];
            gate[2 * i + 1] = 0.0f;
        }
    }
}
