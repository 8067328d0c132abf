// What the two attention kernels share: where queries, keys and values are, over a paged cache or over dense rows.
#ifndef LVP_WORKER_CUDA_ATTENTION_H
#define LVP_WORKER_CUDA_ATTENTION_H

#include "worker/cuda/cuda_backend.h"

// Queries of n_sources sequences (or segments): source s owns the query rows row_start[s]..row_start[s + 1].
struct lvp_queries {
    const int32_t *row_start; // [n_sources + 1]
    int n_sources, n_rows;
    int heads, kv_heads, head_dim;
    const float *q; // head h of row r starts at q[r * stride + h * head_dim]
    int stride;
    float scale; // of the logits
    float *out;  // [n_rows, heads * head_dim]
};

// Keys and values in pages (struct lvp_kv_layer). A row sees the cache up to itself.
template <class Type> struct lvp_paged_keys {
    using T = Type;
    enum { PAGED = 1, K_STEP = LVP_KV_PAGE }; // elements between neighbours of a key
    const T *k, *v;
    const int32_t *kv_len, *block_table;
    int max_pages, kv_heads, head_dim;

    __device__ int visible(int source, int row, int end_row) const { return kv_len[source] - (end_row - 1 - row); }
    __device__ size_t tile(int source, int head, int slot) const
    {
        size_t page = static_cast<size_t>(
            block_table[static_cast<size_t>(source) * static_cast<size_t>(max_pages) + slot / LVP_KV_PAGE]);
        return (page * static_cast<size_t>(kv_heads) + static_cast<size_t>(head)) *
               static_cast<size_t>(head_dim * LVP_KV_PAGE);
    }
    __device__ const T *key(int source, int head, int slot) const
    {
        return k + tile(source, head, slot) + slot % LVP_KV_PAGE;
    }
    __device__ const T *value(int source, int head, int slot) const
    {
        return v + tile(source, head, slot) + slot % LVP_KV_PAGE * head_dim;
    }
};

// Keys and values in rows of f32; every row of a segment sees all of its keys. T: what the tensor cores multiply.
template <class Type> struct lvp_dense_keys {
    using T = Type;
    enum { PAGED = 0, K_STEP = 1 };
    const float *k, *v;
    const int32_t *kv_start; // [n_sources + 1]
    int stride, head_dim;

    __device__ int visible(int source, int, int) const { return kv_start[source + 1] - kv_start[source]; }
    __device__ size_t row(int source, int head, int slot) const
    {
        return static_cast<size_t>(kv_start[source] + slot) * static_cast<size_t>(stride) +
               static_cast<size_t>(head * head_dim);
    }
    __device__ const float *key(int source, int head, int slot) const { return k + row(source, head, slot); }
    __device__ const float *value(int source, int head, int slot) const { return v + row(source, head, slot); }
};

// The source that a row belongs to: the last one that starts at or before it and is not empty.
static __device__ inline int lvp_source_of(const int32_t *row_start, int n_sources, int row)
{
    int low = 0, high = n_sources - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (row_start[middle] <= row)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Whose rows a launch takes.
enum lvp_rows {
    LVP_ALL_ROWS,
    LVP_SINGLE_ROWS, // of sources with one row
    LVP_MANY_ROWS    // of sources with more
};

static __device__ inline bool lvp_takes(enum lvp_rows which, int rows)
{
    return which == LVP_ALL_ROWS || (which == LVP_SINGLE_ROWS) == (rows == 1);
}

// row_attention.cu: a block per row, f32 arithmetic; decode steps, f32 models and heads wider than the tiles'. Of
// single rows the keys are split over blocks.
template <class Keys>
void lvp_row_attention(struct lvp_cuda *cuda, const struct lvp_queries &queries, const Keys &keys, int max_kv_len,
                       enum lvp_rows which);

// tile_attention.cu: 64 rows a block on the tensor cores.
enum { LVP_TILE_HEAD_DIM = 128 }; // largest
template <class Keys>
void lvp_tile_attention(struct lvp_cuda *cuda, const struct lvp_queries &queries, const Keys &keys,
                        enum lvp_rows which);

#endif
