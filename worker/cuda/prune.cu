// Operations of the pruners that need no training (worker/prune_ops.h). A block takes an image: both run once in an
// image's life. Sums run in an order that depends on shapes only.
#include "worker/cuda/cuda_backend.h"

namespace
{

enum { THREADS = 256, WARPS = THREADS / LVP_WARP };

__device__ int thread()
{
    return static_cast<int>(threadIdx.x);
}

// --- attention of a prompt's last row

template <class T> struct last_row {
    const T *k;
    const int32_t *pages; // of the sequence
    int kv_heads, head_dim;
    float scale;

    __device__ float logit(const float *q, int kv_head, int slot) const
    {
        size_t page = static_cast<size_t>(pages[slot / LVP_KV_PAGE]);
        const T *key = k +
                       (page * static_cast<size_t>(kv_heads) + static_cast<size_t>(kv_head)) *
                           static_cast<size_t>(head_dim * LVP_KV_PAGE) +
                       slot % LVP_KV_PAGE;
        float sum = 0;
        for (int i = 0; i < head_dim; i++) sum += q[i] * lvp_float(key[i * LVP_KV_PAGE]);
        return sum * scale;
    }
};

// Per head three passes over the slots: largest logit, sum, shares of the image's rows. Logits are computed anew
// instead of being kept: there may be more slots than shared memory holds.
template <class T> __global__ void __launch_bounds__(THREADS) last_attention_kernel(lvp_last_attention a)
{
    LVP_SHARED(float, room, LVP_WARP);
    int image = static_cast<int>(blockIdx.x), seq = a.image_seq[image], n = a.image_len[image];
    int n_slots = a.row_start[seq + 1] - a.row_start[seq], first = a.image_row[image] - a.row_start[seq];
    int heads = a.shape.heads, group = heads / a.shape.kv_heads, head_dim = a.shape.head_dim;
    size_t width = static_cast<size_t>((heads + 2 * a.shape.kv_heads) * head_dim);
    const float *last = a.qkv + static_cast<size_t>(a.row_start[seq + 1] - 1) * width;
    float *gate = a.gate + 2 * static_cast<size_t>(a.gate_start[image]);
    last_row<T> row = {static_cast<const T *>(a.cache.k),
                       a.block_table + static_cast<size_t>(seq) * static_cast<size_t>(a.max_pages), a.shape.kv_heads,
                       head_dim, 1.0f / sqrtf(static_cast<float>(head_dim))};
    for (int i = thread(); i < 2 * n; i += THREADS) gate[i] = 0;
    __syncthreads(); // from here on a thread writes the rows that it reads
    for (int h = 0; h < heads; h++) {
        const float *q = last + h * head_dim;
        float largest = -INFINITY, sum = 0;
        for (int slot = thread(); slot < n_slots; slot += THREADS)
            largest = fmaxf(largest, row.logit(q, h / group, slot));
        largest = lvp_block_reduce(largest, lvp_max(), -INFINITY, room);
        for (int slot = thread(); slot < n_slots; slot += THREADS) sum += expf(row.logit(q, h / group, slot) - largest);
        sum = lvp_block_reduce(sum, lvp_sum(), 0.0f, room);
        for (int i = thread(); i < n; i += THREADS)
            gate[2 * i] += expf(row.logit(q, h / group, first + i) - largest) / sum;
    }
    for (int i = thread(); i < n; i += THREADS) gate[2 * i] /= static_cast<float>(heads);
}

// --- soft-NMS

// Index of the largest score that is not taken, the lowest of equals. `scores` and `ids` [WARPS] are shared.
__device__ int find_best(const float *gate, int n, float *scores, int *ids)
{
    float top = -INFINITY;
    int best = n; // loses to any other at the same value
    for (int i = thread(); i < n; i += THREADS) {
        if (gate[2 * i + 1] != 0.0f || (best < n && !(gate[2 * i] > top))) continue;
        top = gate[2 * i];
        best = i;
    }
    lvp_block_best(&top, &best, scores, ids);
    return best;
}

// By a warp; every lane gets the result.
__device__ float dot(const float *a, const float *b, int n)
{
    float sum = 0;
    for (int i = thread() % LVP_WARP; i < n; i += LVP_WARP) sum += a[i] * b[i];
    return lvp_warp_reduce(sum, lvp_sum());
}

__device__ float length(const float *a, int n)
{
    return fmaxf(sqrtf(dot(a, a, n)), 1e-8f);
}

// Lowers the scores of the rows around row `taken`: a warp takes a row.
__device__ void suppress(const lvp_soft_nms &s, int image, int taken, float *gate)
{
    int first = s.image_row[image], place = s.positions[first + taken] - s.image_position[image];
    const float *key = s.keys + static_cast<size_t>(first + taken) * static_cast<size_t>(s.key_stride);
    float own_length = length(key, s.key_width);
    for (int i = thread() / LVP_WARP; i < s.image_len[image]; i += WARPS) {
        int other = s.positions[first + i] - s.image_position[image];
        int dx = place % s.grid - other % s.grid, dy = place / s.grid - other / s.grid, d2 = dx * dx + dy * dy;
        if (d2 > LVP_NMS_RADIUS * LVP_NMS_RADIUS || gate[2 * i + 1] != 0.0f) continue; // the same in the whole warp
        const float *k = s.keys + static_cast<size_t>(first + i) * static_cast<size_t>(s.key_stride);
        float unlike = 1.0f - dot(key, k, s.key_width) / (own_length * length(k, s.key_width));
        float exponent = -static_cast<float>(d2) / 4.5f - unlike * unlike * 200.0f; // 2 * 1.5^2, 1 / (2 * 0.05^2)
        if (thread() % LVP_WARP == 0 && !isnan(exponent)) gate[2 * i] *= 1.0f - expf(exponent);
    }
}

__global__ void __launch_bounds__(THREADS) soft_nms_kernel(lvp_soft_nms s)
{
    LVP_SHARED(float, scores, WARPS);
    LVP_SHARED(int, ids, WARPS);
    int image = static_cast<int>(blockIdx.x), n = s.image_len[image], keep = s.keep[image] < n ? s.keep[image] : n;
    const int32_t *positions = s.positions + s.image_row[image];
    float *gate = s.gate + 2 * static_cast<size_t>(s.gate_start[image]); // score, and a taken row's rank from 2 up
    for (int i = thread(); i < n; i += THREADS) {
        float score = gate[2 * i] * s.prior[positions[i] - s.image_position[image]];
        gate[2 * i] = isnan(score) ? -INFINITY : score;
        gate[2 * i + 1] = 0;
    }
    __syncthreads();
    for (int i = 0; i < keep; i++) {
        int best = find_best(gate, n, scores, ids);
        if (thread() == 0) gate[2 * best + 1] = static_cast<float>(keep - i + 1);
        __syncthreads();
        if (i + 1 < keep) suppress(s, image, best, gate);
        __syncthreads();
    }
    for (int i = thread(); i < n; i += THREADS) {
        if (gate[2 * i + 1] != 0.0f) gate[2 * i] = gate[2 * i + 1];
        gate[2 * i + 1] = 0;
    }
}

} // namespace

void lvp_cuda_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *attention)
{
    if (attention->n_images == 0) return;
    lvp_with_type(backend->dtype, [&](auto zero) {
        lvp_launch(last_attention_kernel<decltype(zero)>, dim3(static_cast<unsigned>(attention->n_images)),
                   dim3(THREADS), 0, lvp_cuda_of(backend)->stream, *attention);
    });
}

void lvp_cuda_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *nms)
{
    if (nms->n_images == 0) return;
    lvp_launch(soft_nms_kernel, dim3(static_cast<unsigned>(nms->n_images)), dim3(THREADS), 0,
               lvp_cuda_of(backend)->stream, *nms);
}
