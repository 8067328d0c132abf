// Attention of single rows: softmax(scale q K^T) V with f32 arithmetic. A block takes a row and some heads that share
// their keys, and walks the keys in chunks; where a row is alone in its sequence (decode) the chunks go to blocks of
// their own and are merged afterwards ("flash decoding"), in the same order and with the same arithmetic. So a row's
// result does not depend on which of the two ways it went.
//
// Online softmax: Milakov, Gimelshein, arXiv 1805.02867.
#include "worker/cuda/attention.h"

namespace
{

enum { THREADS = 128, CHUNK = 256, HEADS = 8 }; // HEADS: of one block

// A chunk's, or all chunks', result of a head: the largest logit, the sum of exp(logit - largest), and the values
// weighted alike.
struct partials {
    float *data; // [n_sources, heads, max_chunks, head_dim + 2]; NULL: chunks are merged in the block
    int max_chunks;
    __device__ float *at(const lvp_queries &q, int source, int head, int chunk) const
    {
        size_t i = (static_cast<size_t>(source) * static_cast<size_t>(q.heads) + static_cast<size_t>(head)) *
                       static_cast<size_t>(max_chunks) +
                   static_cast<size_t>(chunk);
        return data + i * static_cast<size_t>(q.head_dim + 2);
    }
};

// How much of `old` and of `now` goes into their merger. A side without keys has -infinity and weighs nothing.
__device__ void merge_weights(float old_largest, float largest, float *old_weight, float *weight)
{
    float both = old_largest > largest ? old_largest : largest;
    *old_weight = old_largest == -INFINITY ? 0.0f : expf(old_largest - both);
    *weight = largest == -INFINITY ? 0.0f : expf(largest - both);
}

// Logits of a chunk: thread t takes slots t, t + THREADS. q [HEADS, head_dim] and logits [HEADS, CHUNK] are shared.
template <class Keys>
__device__ void chunk_logits(const Keys &keys, int source, int kv_head, int first, int n, int head_dim, const float *q,
                             float *logits)
{
    for (int slot = static_cast<int>(threadIdx.x); slot < n; slot += THREADS) {
        auto *k = keys.key(source, kv_head, first + slot);
        float sum[HEADS] = {};
        for (int i = 0; i < head_dim; i++) {
            float x = lvp_float(k[i * Keys::K_STEP]);
            LVP_UNROLL
            for (int h = 0; h < HEADS; h++) sum[h] = fmaf(q[h * head_dim + i], x, sum[h]);
        }
        LVP_UNROLL
        for (int h = 0; h < HEADS; h++) logits[h * CHUNK + slot] = sum[h];
    }
}

// Turns logits into exp(logit - largest); a warp takes every fourth head.
__device__ void chunk_softmax(int n, float *logits, float *largest, float *total)
{
    int lane = static_cast<int>(threadIdx.x) % LVP_WARP;
    for (int h = static_cast<int>(threadIdx.x) / LVP_WARP; h < HEADS; h += THREADS / LVP_WARP) {
        float top = -INFINITY, sum = 0;
        for (int i = lane; i < n; i += LVP_WARP) top = lvp_max()(top, logits[h * CHUNK + i]);
        top = lvp_warp_reduce(top, lvp_max());
        for (int i = lane; i < n; i += LVP_WARP) {
            float weight = expf(logits[h * CHUNK + i] - top);
            logits[h * CHUNK + i] = weight;
            sum += weight;
        }
        sum = lvp_warp_reduce(sum, lvp_sum());
        if (lane == 0) {
            largest[h] = top;
            total[h] = sum;
        }
    }
}

// Shared memory of a block.
struct room {
    float *q;      // [HEADS, head_dim]
    float *logits; // [HEADS, CHUNK]
    float *slices; // [slices, HEADS, head_dim] sums of values over a slice of the chunk each
    float *sums;   // [HEADS, head_dim] of all chunks so far
};

__host__ __device__ int slices_of(int head_dim)
{
    return head_dim < THREADS ? THREADS / head_dim : 1;
}

__host__ size_t room_bytes(int head_dim)
{
    size_t rows = static_cast<size_t>(HEADS * head_dim);
    return (rows * static_cast<size_t>(2 + slices_of(head_dim)) + HEADS * CHUNK) * sizeof(float);
}

// slices [slices, HEADS, head_dim] = weighted values of each slice of the chunk.
template <class Keys>
__device__ void chunk_values(const Keys &keys, int source, int kv_head, int first, int n, int head_dim, const room &r)
{
    int slices = slices_of(head_dim), per_slice = (n + slices - 1) / slices;
    for (int j = static_cast<int>(threadIdx.x); j < slices * head_dim; j += THREADS) {
        int slice = j / head_dim, i = j % head_dim;
        int end = (slice + 1) * per_slice < n ? (slice + 1) * per_slice : n;
        float sum[HEADS] = {};
        for (int slot = slice * per_slice; slot < end; slot++) {
            float x = lvp_float(keys.value(source, kv_head, first + slot)[i]);
            LVP_UNROLL
            for (int h = 0; h < HEADS; h++) sum[h] = fmaf(r.logits[h * CHUNK + slot], x, sum[h]);
        }
        LVP_UNROLL
        for (int h = 0; h < HEADS; h++) r.slices[(slice * HEADS + h) * head_dim + i] = sum[h];
    }
}

// Grid: rows (or sources, for single rows) x groups of heads x chunks.
template <class Keys>
__global__ void row_attention_kernel(lvp_queries q, Keys keys, enum lvp_rows which, partials split)
{
    LVP_DYNAMIC_SHARED(float, memory);
    LVP_SHARED(float, largest, HEADS);
    LVP_SHARED(float, total, HEADS);
    LVP_SHARED(float, so_far, 2 * HEADS); // largest, then total, of the chunks before
    int head_dim = q.head_dim, group = q.heads / q.kv_heads, per_group = (group + HEADS - 1) / HEADS;
    room r = {memory, memory + HEADS * head_dim, memory + HEADS * (head_dim + CHUNK),
              memory + HEADS * (head_dim + CHUNK) + slices_of(head_dim) * HEADS * head_dim};

    int row = static_cast<int>(blockIdx.x), source = row;
    if (which == LVP_SINGLE_ROWS)
        row = q.row_start[source];
    else
        source = lvp_source_of(q.row_start, q.n_sources, row);
    if (!lvp_takes(which, q.row_start[source + 1] - q.row_start[source])) return;
    int visible = keys.visible(source, row, q.row_start[source + 1]);
    int kv_head = static_cast<int>(blockIdx.y) / per_group;
    int first_head = kv_head * group + static_cast<int>(blockIdx.y) % per_group * HEADS;
    int n_heads = (kv_head + 1) * group - first_head < HEADS ? (kv_head + 1) * group - first_head : HEADS;
    int chunk = static_cast<int>(blockIdx.z), end_chunk = (visible + CHUNK - 1) / CHUNK;
    if (split.data != nullptr) {
        if (chunk > 0 && chunk >= end_chunk) return;
        end_chunk = chunk + 1;
    }

    for (int j = static_cast<int>(threadIdx.x); j < HEADS * head_dim; j += THREADS) {
        const float *from = q.q + static_cast<size_t>(row) * static_cast<size_t>(q.stride);
        r.q[j] = j < n_heads * head_dim ? from[first_head * head_dim + j] * q.scale : 0.0f;
        r.sums[j] = 0.0f;
    }
    if (threadIdx.x < HEADS) {
        so_far[threadIdx.x] = -INFINITY;
        so_far[HEADS + threadIdx.x] = 0.0f;
    }
    __syncthreads();
    for (; chunk < end_chunk; chunk++) {
        int first = chunk * CHUNK, n = visible - first < CHUNK ? visible - first : CHUNK;
        if (n < 0) n = 0;
        chunk_logits(keys, source, kv_head, first, n, head_dim, r.q, r.logits);
        __syncthreads();
        chunk_softmax(n, r.logits, largest, total);
        __syncthreads();
        chunk_values(keys, source, kv_head, first, n, head_dim, r);
        __syncthreads();
        for (int j = static_cast<int>(threadIdx.x); j < HEADS * head_dim; j += THREADS) {
            int h = j / head_dim;
            float value = 0.0f, old_weight, weight;
            for (int slice = 0; slice < slices_of(head_dim); slice++) value += r.slices[slice * HEADS * head_dim + j];
            merge_weights(so_far[h], largest[h], &old_weight, &weight);
            r.sums[j] = r.sums[j] * old_weight + value * weight;
        }
        __syncthreads();
        if (threadIdx.x < HEADS) {
            int h = static_cast<int>(threadIdx.x);
            float old_weight, weight;
            merge_weights(so_far[h], largest[h], &old_weight, &weight);
            so_far[HEADS + h] = so_far[HEADS + h] * old_weight + total[h] * weight;
            so_far[h] = lvp_max()(so_far[h], largest[h]);
        }
        __syncthreads();
    }
    for (int j = static_cast<int>(threadIdx.x); j < n_heads * head_dim; j += THREADS) {
        int h = j / head_dim, head = first_head + h;
        if (split.data != nullptr) {
            float *to = split.at(q, source, head, static_cast<int>(blockIdx.z));
            to[j % head_dim] = r.sums[j];
            if (j % head_dim == 0) {
                to[head_dim] = so_far[h];
                to[head_dim + 1] = so_far[HEADS + h];
            }
        } else {
            float sum = so_far[HEADS + h];
            q.out[(static_cast<size_t>(row) * static_cast<size_t>(q.heads) + static_cast<size_t>(first_head)) *
                      static_cast<size_t>(head_dim) +
                  static_cast<size_t>(j)] = sum > 0.0f ? r.sums[j] / sum : 0.0f;
        }
    }
}

// Grid: sources x heads.
template <class Keys> __global__ void merge_kernel(lvp_queries q, Keys keys, partials split)
{
    int source = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), row = q.row_start[source];
    if (q.row_start[source + 1] - row != 1) return;
    int chunks = (keys.visible(source, row, row + 1) + CHUNK - 1) / CHUNK;
    for (int i = static_cast<int>(threadIdx.x); i < q.head_dim; i += static_cast<int>(blockDim.x)) {
        float largest = -INFINITY, total = 0.0f, sum = 0.0f;
        for (int chunk = 0; chunk < chunks; chunk++) {
            const float *from = split.at(q, source, head, chunk);
            float old_weight, weight;
            merge_weights(largest, from[q.head_dim], &old_weight, &weight);
            sum = sum * old_weight + from[i] * weight;
            total = total * old_weight + from[q.head_dim + 1] * weight;
            largest = lvp_max()(largest, from[q.head_dim]);
        }
        q.out[(static_cast<size_t>(row) * static_cast<size_t>(q.heads) + static_cast<size_t>(head)) *
                  static_cast<size_t>(q.head_dim) +
              static_cast<size_t>(i)] = total > 0.0f ? sum / total : 0.0f;
    }
}

} // namespace

template <class Keys>
void lvp_row_attention(struct lvp_cuda *cuda, const struct lvp_queries &q, const Keys &keys, int max_kv_len,
                       enum lvp_rows which)
{
    int n = which == LVP_SINGLE_ROWS ? q.n_sources : q.n_rows, group = q.heads / q.kv_heads;
    if (n == 0 || q.n_sources == 0) return;
    unsigned head_groups = static_cast<unsigned>(q.kv_heads * ((group + HEADS - 1) / HEADS));
    partials split = {nullptr, max_kv_len > CHUNK ? (max_kv_len + CHUNK - 1) / CHUNK : 1};
    size_t floats = static_cast<size_t>(n) * static_cast<size_t>(q.heads) * static_cast<size_t>(split.max_chunks) *
                    static_cast<size_t>(q.head_dim + 2);
    if (which == LVP_SINGLE_ROWS && split.max_chunks > 1 && floats <= cuda->partial_floats) split.data = cuda->partial;
    dim3 grid(static_cast<unsigned>(n), head_groups,
              split.data != nullptr ? static_cast<unsigned>(split.max_chunks) : 1);
    lvp_launch(row_attention_kernel<Keys>, grid, dim3(THREADS), room_bytes(q.head_dim), cuda->stream, q, keys, which,
               split);
    if (split.data != nullptr)
        lvp_launch(merge_kernel<Keys>, dim3(static_cast<unsigned>(n), static_cast<unsigned>(q.heads)), dim3(THREADS), 0,
                   cuda->stream, q, keys, split);
}

template void lvp_row_attention(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<float> &, int, enum lvp_rows);
template void lvp_row_attention(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<__nv_bfloat16> &, int,
                                enum lvp_rows);
template void lvp_row_attention(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<__half> &, int, enum lvp_rows);
template void lvp_row_attention(lvp_cuda *, const lvp_queries &, const lvp_dense_keys<float> &, int, enum lvp_rows);
