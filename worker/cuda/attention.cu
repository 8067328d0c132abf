// Which attention kernel takes what: rows that come alone (decode), f32 models and very wide heads go row by row,
// prompts and segments in tiles.
#include "worker/cuda/attention.h"

#include <math.h>

namespace
{

bool tiles_fit(const lvp_cuda *cuda, int head_dim)
{
    return cuda->base.dtype != LVP_F32 && head_dim <= LVP_TILE_HEAD_DIM;
}

// f32 has no tensor cores to go to, and tiles_fit says so before.
void tiles(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<float> &, enum lvp_rows) {}
void tiles(lvp_cuda *, const lvp_queries &, const lvp_dense_keys<float> &, enum lvp_rows) {}
template <class Keys> void tiles(lvp_cuda *cuda, const lvp_queries &queries, const Keys &keys, enum lvp_rows which)
{
    lvp_tile_attention(cuda, queries, keys, which);
}

} // namespace

void lvp_cuda_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *a)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    int head_dim = a->shape.head_dim;
    lvp_queries queries = {a->row_start,
                           a->n_seqs,
                           a->n_rows,
                           a->shape.heads,
                           a->shape.kv_heads,
                           head_dim,
                           a->qkv,
                           (a->shape.heads + 2 * a->shape.kv_heads) * head_dim,
                           1.0f / sqrtf(static_cast<float>(head_dim)),
                           a->out};
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_paged_keys<T> keys = {static_cast<const T *>(a->cache.k),
                                  static_cast<const T *>(a->cache.v),
                                  a->kv_len,
                                  a->block_table,
                                  a->max_pages,
                                  a->shape.kv_heads,
                                  head_dim};
        lvp_row_attention(cuda, queries, keys, a->max_kv_len, LVP_SINGLE_ROWS);
        if (a->max_rows < 2) return;
        if (tiles_fit(cuda, head_dim))
            tiles(cuda, queries, keys, LVP_MANY_ROWS);
        else
            lvp_row_attention(cuda, queries, keys, a->max_kv_len, LVP_MANY_ROWS);
    });
}

void lvp_cuda_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *a)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    lvp_queries queries = {a->q_start,  a->n_segments, a->n_queries, a->heads, a->heads,
                           a->head_dim, a->q,          a->q_stride,  a->scale, a->out};
    lvp_with_type(backend->dtype, [&](auto zero) {
        using T = decltype(zero);
        lvp_dense_keys<T> keys = {a->k, a->v, a->kv_start, a->kv_stride, a->head_dim};
        if (tiles_fit(cuda, a->head_dim)) return tiles(cuda, queries, keys, LVP_ALL_ROWS);
        lvp_dense_keys<float> wide = {a->k, a->v, a->kv_start, a->kv_stride, a->head_dim};
        lvp_row_attention(cuda, queries, wide, 0, LVP_ALL_ROWS);
    });
}
