// Arguments of the table's attention operations (worker/backend.h), and how a layer's KV cache lies in memory.
#ifndef LVP_WORKER_ATTENTION_OPS_H
#define LVP_WORKER_ATTENTION_OPS_H

#include <stdint.h>

enum { LVP_KV_PAGE = 16 }; // KV slots in a page

// Bidirectional attention inside segments: query row i of segment s sees every key row of segment s.
struct lvp_dense_attention {
    int n_segments, n_queries; // n_queries: all query rows, = q_start[n_segments]
    int heads, head_dim;
    const int32_t *q_start;  // [n_segments + 1] first query row
    const int32_t *kv_start; // [n_segments + 1] first key row; a segment without keys gives zeros
    const float *q, *k, *v;  // head h of row r starts at q[r * q_stride + h * head_dim]
    int q_stride, kv_stride; // elements between rows
    float scale;             // of the logits
    float *out;              // [n_queries, heads * head_dim]
};

// One layer's cache: pages of LVP_KV_PAGE slots. Slot index = page * LVP_KV_PAGE + place in the page.
struct lvp_kv_layer {
    void *k; // [n_pages, kv_heads, head_dim, LVP_KV_PAGE] in the model's dtype
    void *v; // [n_pages, kv_heads, LVP_KV_PAGE, head_dim]
};

struct lvp_qkv_shape {
    int heads, kv_heads,
        head_dim; // a row of qkv is q [heads, head_dim], k [kv_heads, head_dim], v [kv_heads, head_dim]
};

// Causal attention over the paged cache. Row j (of m) of sequence s sees the first kv_len[s] - m + j + 1 slots.
struct lvp_paged_attention {
    int n_seqs, n_rows;         // n_rows = row_start[n_seqs]
    const int32_t *row_start;   // [n_seqs + 1]
    const int32_t *kv_len;      // [n_seqs] slots filled, this step's rows included
    const int32_t *block_table; // [n_seqs, max_pages] page indices
    int max_pages;
    int max_kv_len; // no kv_len of the step is larger
    int max_rows;   // most rows of a sequence
    struct lvp_qkv_shape shape;
    struct lvp_kv_layer cache;
    const float *qkv; // [n_rows, (heads + 2 kv_heads) * head_dim], q already rotated
    float *out;       // [n_rows, heads * head_dim]
};

#endif
