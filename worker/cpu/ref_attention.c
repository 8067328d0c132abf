// Reference of rotary embedding and attention: softmax(scale q K^T) V per head, as two passes over the keys.
#include "worker/cpu/ref_ops.h"

#include <math.h>

static void store(const struct lvp_backend *backend, void *data, size_t i, float value)
{
    if (backend->dtype == LVP_F32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = lvp_to_half(value, backend->dtype);
}

// Rotary position embedding (Su et al., arXiv 2104.09864) with the pairing of Hugging Face's LLaMA: x -> y [head_dim].
// An odd head's last element has no partner and stays.
static void rotate(const float *x, int head_dim, const float *angle, float *y)
{
    int half = head_dim / 2;
    const float *cosine = angle, *sine = angle + half;
    for (int i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        y[i] = first * cosine[i] - second * sine[i];
        y[i + half] = second * cosine[i] + first * sine[i];
    }
    if (head_dim % 2 != 0) y[head_dim - 1] = x[head_dim - 1];
}

void lvp_ref_rope_kv_write(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                           const int32_t *positions, const float *rope, const int32_t *slots, struct lvp_kv_layer cache)
{
    size_t head_dim = (size_t)shape.head_dim, kv_heads = (size_t)shape.kv_heads;
    size_t width = ((size_t)shape.heads + 2 * kv_heads) * head_dim;
    for (int row = 0; row < n_rows; row++) {
        float *q = qkv + (size_t)row * width;
        const float *angle = rope + (size_t)positions[row] * head_dim;
        const float *k = q + (size_t)shape.heads * head_dim, *v = k + kv_heads * head_dim;
        size_t page = (size_t)(slots[row] / LVP_KV_PAGE), place = (size_t)(slots[row] % LVP_KV_PAGE);
        for (int h = 0; h < shape.heads; h++)
            rotate(q + (size_t)h * head_dim, shape.head_dim, angle, q + (size_t)h * head_dim);
        for (size_t h = 0; h < kv_heads; h++) {
            size_t tile = (page * kv_heads + h) * head_dim * LVP_KV_PAGE;
            size_t half = head_dim / 2;
            for (size_t i = 0; i < head_dim; i++) {
                const float *x = k + h * head_dim;
                float rotated = i < half       ? x[i] * angle[i] - x[i + half] * angle[half + i]
                                : i < 2 * half ? x[i] * angle[i - half] + x[i - half] * angle[i]
                                               : x[i];
                store(backend, cache.k, tile + i * LVP_KV_PAGE + place, rotated);
                store(backend, cache.v, tile + place * head_dim + i, v[h * head_dim + i]);
            }
        }
    }
}

// Where one key or value element of the cache is: slot `slot` of a sequence, element i of kv head h.
struct paged_view {
    const struct lvp_backend *backend;
    const struct lvp_paged_attention *attention;
    const int32_t *block_table; // the sequence's row
    size_t kv_head;
};

static size_t tile_of(const struct paged_view *view, int slot)
{
    const struct lvp_qkv_shape *shape = &view->attention->shape;
    size_t page = (size_t)view->block_table[slot / LVP_KV_PAGE];
    return (page * (size_t)shape->kv_heads + view->kv_head) * (size_t)shape->head_dim * LVP_KV_PAGE;
}

static double paged_score(const struct paged_view *view, const float *q, int slot)
{
    const struct lvp_paged_attention *attention = view->attention;
    size_t head_dim = (size_t)attention->shape.head_dim, place = (size_t)(slot % LVP_KV_PAGE);
    double score = 0.0;
    for (size_t i = 0; i < head_dim; i++) {
        score += (double)q[i] * (double)lvp_load_f32(attention->cache.k, view->backend->dtype,
                                                     tile_of(view, slot) + i * LVP_KV_PAGE + place);
    }
    return score / sqrt((double)head_dim);
}

// One query row of one head over the first n slots of its sequence: out [head_dim].
static void paged_row(const struct paged_view *view, const float *q, int n, float *out)
{
    const struct lvp_paged_attention *attention = view->attention;
    size_t head_dim = (size_t)attention->shape.head_dim;
    double largest = -INFINITY, total = 0.0;
    for (int slot = 0; slot < n; slot++) largest = fmax(largest, paged_score(view, q, slot));
    for (int slot = 0; slot < n; slot++) total += exp(paged_score(view, q, slot) - largest);
    for (size_t i = 0; i < head_dim; i++) out[i] = 0.0f;
    for (int slot = 0; slot < n; slot++) {
        double weight = exp(paged_score(view, q, slot) - largest) / total;
        size_t value = tile_of(view, slot) + (size_t)(slot % LVP_KV_PAGE) * head_dim;
        for (size_t i = 0; i < head_dim; i++) {
            out[i] += (float)(weight * (double)lvp_load_f32(attention->cache.v, view->backend->dtype, value + i));
        }
    }
}

void lvp_ref_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *attention)
{
    const struct lvp_qkv_shape shape = attention->shape;
    size_t head_dim = (size_t)shape.head_dim, width = (size_t)(shape.heads + 2 * shape.kv_heads) * head_dim;
    for (int s = 0; s < attention->n_seqs; s++) {
        int first = attention->row_start[s], n_rows = attention->row_start[s + 1] - first;
        for (int j = 0; j < n_rows; j++) {
            size_t row = (size_t)(first + j);
            for (int h = 0; h < shape.heads; h++) {
                struct paged_view view = {backend, attention,
                                          attention->block_table + (size_t)s * (size_t)attention->max_pages,
                                          (size_t)(h / (shape.heads / shape.kv_heads))};
                paged_row(&view, attention->qkv + row * width + (size_t)h * head_dim,
                          attention->kv_len[s] - n_rows + j + 1,
                          attention->out + (row * (size_t)shape.heads + (size_t)h) * head_dim);
            }
        }
    }
}

static double dense_score(const struct lvp_dense_attention *attention, const float *q, const float *k)
{
    double score = 0.0;
    for (int i = 0; i < attention->head_dim; i++) score += (double)q[i] * (double)k[i];
    return score * (double)attention->scale;
}

// One query row of one head over keys k [n, kv_stride] and values v: out [head_dim].
static void dense_row(const struct lvp_dense_attention *attention, const float *q, const float *k, const float *v,
                      int n, float *out)
{
    size_t stride = (size_t)attention->kv_stride;
    double largest = -INFINITY, total = 0.0;
    for (int i = 0; i < attention->head_dim; i++) out[i] = 0.0f;
    for (size_t key = 0; key < (size_t)n; key++) largest = fmax(largest, dense_score(attention, q, k + key * stride));
    for (size_t key = 0; key < (size_t)n; key++) total += exp(dense_score(attention, q, k + key * stride) - largest);
    for (size_t key = 0; key < (size_t)n; key++) {
        double weight = exp(dense_score(attention, q, k + key * stride) - largest) / total;
        for (int i = 0; i < attention->head_dim; i++) out[i] += (float)(weight * (double)v[key * stride + (size_t)i]);
    }
}

void lvp_ref_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *attention)
{
    (void)backend;
    size_t head_dim = (size_t)attention->head_dim, heads = (size_t)attention->heads;
    for (int s = 0; s < attention->n_segments; s++) {
        size_t first_key = (size_t)attention->kv_start[s] * (size_t)attention->kv_stride;
        for (size_t row = (size_t)attention->q_start[s]; row < (size_t)attention->q_start[s + 1]; row++) {
            for (size_t h = 0; h < heads; h++) {
                dense_row(attention, attention->q + row * (size_t)attention->q_stride + h * head_dim,
                          attention->k + first_key + h * head_dim, attention->v + first_key + h * head_dim,
                          attention->kv_start[s + 1] - attention->kv_start[s],
                          attention->out + (row * heads + h) * head_dim);
            }
        }
    }
}
