// The vector kernels that every instruction set is built with, as a table per set, and the choice among them.
//
// A row kernel computes rows [begin, end) of an operation whose arguments are one of the structs below; the thread pool
// hands out the ranges. Shapes and meaning are those of struct lvp_backend_ops; only what differs is said here.
#ifndef LVP_WORKER_CPU_KERNELS_H
#define LVP_WORKER_CPU_KERNELS_H

#include "worker/backend.h"

typedef void lvp_row_kernel(const void *args, int begin, int end);

struct lvp_norm_args { // layer_norm and rms_norm; the latter uses x, width, weight, eps and y
    const float *x;    // [n_rows, width]
    int width;
    const float *weight, *bias; // [width]
    float eps;
    const float *add; // [n_rows, width] or NULL
    enum lvp_dtype round_to;
    float *y; // [n_rows, width]
};

struct lvp_glu_args {
    const float *gate_up; // [n_rows, 2 * width]
    int width;
    enum lvp_activation activation;
    float *y; // [n_rows, width]
};

struct lvp_embed_args {
    const void *table; // [vocab, width]
    enum lvp_dtype dtype;
    const int32_t *ids, *to;
    int width;
    float *y;
};

struct lvp_rope_args {
    float *qkv; // [n_rows, (heads + 2 kv_heads) * head_dim]
    struct lvp_qkv_shape shape;
    const int32_t *positions, *slots; // [n_rows]
    const float *rope;                // [max_positions, head_dim]
    struct lvp_kv_layer cache;
    enum lvp_dtype dtype;
};

enum {
    LVP_ATTENTION_TILE = 96,  // queries that share one reading of the keys
    LVP_ATTENTION_CHUNK = 64, // slots unpacked at a time: whole pages
};

// One thread's work space for attention; head_dim is at most max_head_dim, slots at most max_slots (multiple of a
// chunk). Widths called padded are rounded up to 16, so that no inner loop has a tail.
struct lvp_attention_scratch {
    float *q;      // [TILE, head_dim]
    float *k;      // [head_dim, CHUNK]: transposed, lanes are slots
    float *v;      // [CHUNK, padded head_dim]
    float *scores; // [TILE, max_slots]
    float *out;    // [TILE, padded head_dim]
    int max_slots;
};

// Queries of one tile: the TILE ones that start at first_query, of the n_rows * (heads / kv_heads) that use one key
// head of one sequence or segment. Query i is row i / group, head kv_head * group + i % group, so the kv length never
// falls along i.
struct lvp_kernels {
    const char *name;
    lvp_row_kernel *layer_norm, *rms_norm, *glu, *embed, *rope_kv_write;
    void (*paged_attention)(const struct lvp_paged_attention *attention, enum lvp_dtype dtype, int seq, int kv_head,
                            int first_query, const struct lvp_attention_scratch *scratch);
    void (*dense_attention)(const struct lvp_dense_attention *attention, int segment, int head, int first_query,
                            const struct lvp_attention_scratch *scratch);
    // Largest of x [n]; NaN does not count, -infinity when nothing else is there.
    float (*largest)(const float *x, int n);
    // weights[i] = exp((x[i] - largest) / temperature), 0 for NaN; returns the sum, in a fixed order. weights may be
    // NULL.
    double (*exp_weights)(const float *x, int n, float largest, float temperature, float *weights);
    // For benchmarks. Multiply-adds on registers: in f32, and as products of bf16 weights are computed; FLOPs done.
    double (*fma_loop)(long rounds, float *result), (*dot_loop)(long rounds, float *result);
    // Reads all of it, but for what is left over; in order, or four quarters side by side.
    float (*read_loop)(const float *from, size_t n, bool side_by_side);
};

// The table called `kernel_set`; NULL takes the best this CPU has, or what LVP_ISA in the environment names.
// LVP_ERR_USAGE where this CPU lacks it or the name is unknown.
enum lvp_status lvp_kernels_find(const char *kernel_set, const struct lvp_kernels **kernels) LVP_MUST_CHECK;

#endif
