// Attention of one tile of queries (up to LVP_ATTENTION_TILE) over one key head: softmax(scale q K^T) V.
//
// K and V are unpacked, a chunk of slots at a time, into f32 tiles in which lanes are slots (K) or features (V); dense
// and paged attention differ in that step and in how far a query sees, nothing else. Two passes over the slots: all
// scores first, then softmax over whole rows, then the weighted sum. A query's bits depend on its own q, keys and
// values only:
//   score    one lane per slot, fma over head_dim in order
//   softmax  vector i of the row is added to one accumulator in order; slots it cannot see are replaced, not
//   multiplied, by
//            0, so that NaN in memory that nobody has written stays there
//   output   one lane per feature, fma over the slots it sees in order
// Neither the tile's other queries nor the chunk size enter any of these.
#include "worker/cpu/kernels/act.h"
#include "worker/cpu/kernels/table.h"

enum { PAD = 16, CHUNK = LVP_ATTENTION_CHUNK, TILE = LVP_ATTENTION_TILE, BLOCK_ROWS = 6 };
_Static_assert(CHUNK % LVP_KV_PAGE == 0 && PAD % VF_LANES == 0 && CHUNK % PAD == 0,
               "chunks hold whole pages and vectors");

static int min_int(int a, int b)
{
    return a < b ? a : b;
}
static int round_up(int n)
{
    return (n + PAD - 1) / PAD * PAD;
}

// What a tile computes on; the paged and the dense entry fill it in.
struct tile {
    const struct lvp_attention_scratch *scratch;
    int n_queries, head_dim;
    float scale;
    int seen[TILE];        // slots each query sees, ascending
    const float *q[TILE];  // [head_dim] of each query
    float *out[TILE];      // [head_dim] of each query
    const void *attention; // for unpack
    enum lvp_dtype dtype;  // of K and V
    int source, kv_head;   // sequence or segment, and head, that K and V are of
    // Fills scratch->k (keys) or scratch->v with the slots [first, first + n_slots), rounded up to whole vectors.
    void (*unpack)(const struct tile *tile, int first, int n_slots, bool keys);
};

// One block of R rows and V vectors of columns: c += a b, or c = a b with `start`. Each element of c is one chain of
// fma over k = 0 .. n_k - 1, whatever R and V are.
//   a [R, n_k] with row stride a_stride; b [n_k, V * VF_LANES] with b_stride; c [R, V * VF_LANES] with c_stride
__attribute__((always_inline)) static inline void multiply_block(const int R, const int V, const float *a,
                                                                 size_t a_stride, const float *b, size_t b_stride,
                                                                 int n_k, bool start, float *c, size_t c_stride)
{
    vf sum[BLOCK_ROWS * 2 > 8 ? BLOCK_ROWS * 2 : 8];
#pragma GCC unroll 16
    for (int i = 0; i < R * V; i++) {
        sum[i] = start ? vf_zero() : vf_load(c + (size_t)(i / V) * c_stride + (size_t)(i % V * VF_LANES));
    }
    for (size_t k = 0; k < (size_t)n_k; k++) {
        const float *line = b + k * b_stride;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            vf factor = vf_set1(a[(size_t)r * a_stride + k]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[r * V + v] = vf_fma(factor, vf_load(line + v * VF_LANES), sum[r * V + v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R * V; i++) vf_store(c + (size_t)(i / V) * c_stride + (size_t)(i % V * VF_LANES), sum[i]);
}

// c [n_rows, n_columns] (+)= a [n_rows, n_k] b [n_k, n_columns]; n_columns a multiple of PAD, n_rows <= BLOCK_ROWS.
static void multiply(int n_rows, int n_columns, const float *a, size_t a_stride, const float *b, size_t b_stride,
                     int n_k, bool start, float *c, size_t c_stride)
{
    int column = 0;
    // A single row has only its columns to hide the latency of the fma behind.
    for (; n_rows == 1 && column + 8 * VF_LANES <= n_columns; column += 8 * VF_LANES) {
        multiply_block(1, 8, a, a_stride, b + column, b_stride, n_k, start, c + column, c_stride);
    }
    for (; column + 2 * VF_LANES <= n_columns; column += 2 * VF_LANES) {
        const float *from = b + column;
        float *to = c + column;
        switch (n_rows) {
        case 1:
            multiply_block(1, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        case 2:
            multiply_block(2, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        case 3:
            multiply_block(3, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        case 4:
            multiply_block(4, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        case 5:
            multiply_block(5, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        default:
            multiply_block(6, 2, a, a_stride, from, b_stride, n_k, start, to, c_stride);
            break;
        }
    }
    for (; column < n_columns; column += VF_LANES) { // AVX-512 has a single vector left in an odd multiple of PAD
        for (int r = 0; r < n_rows; r++) {
            multiply_block(1, 1, a + (size_t)r * a_stride, a_stride, b + column, b_stride, n_k, start,
                           c + (size_t)r * c_stride + column, c_stride);
        }
    }
}

// scores[q][slot] for the chunk's n_slots slots from `first`: raw products, for every query that sees any of them.
static void score_chunk(const struct tile *tile, int first, int n_slots)
{
    const struct lvp_attention_scratch *scratch = tile->scratch;
    size_t head_dim = (size_t)tile->head_dim, stride = (size_t)scratch->max_slots;
    for (int q = 0; q < tile->n_queries; q += BLOCK_ROWS) {
        int n_rows = min_int(BLOCK_ROWS, tile->n_queries - q);
        int n = min_int(n_slots, tile->seen[q + n_rows - 1] - first);
        if (n <= 0) continue;
        multiply(n_rows, round_up(n), scratch->q + (size_t)q * head_dim, head_dim, scratch->k, CHUNK, tile->head_dim,
                 true, scratch->scores + (size_t)q * stride + first, stride);
    }
}

// scores [n] -> probabilities, not yet divided by their sum, which is returned. Readable up to the next vector's end.
static float softmax(float *scores, int n, float scale)
{
    vf largest = vf_set1(-INFINITY), factor = vf_set1(scale), sum = vf_zero();
    for (int i = 0; i < n; i += VF_LANES) {
        vi seen = vi_iota() < vi_set1(n - i);
        vf score = vf_select(seen, vf_load(scores + i) * factor, vf_set1(-INFINITY));
        vf_store(scores + i, score);
        largest = vf_max(score, largest);
    }
    vf shift = vf_set1(vf_largest(largest));
    for (int i = 0; i < n; i += VF_LANES) {
        vi seen = vi_iota() < vi_set1(n - i);
        vf weight = vf_select(seen, vf_exp(vf_load(scores + i) - shift), vf_zero());
        vf_store(scores + i, weight);
        sum += weight;
    }
    return vf_sum(sum);
}

// out[q] += weights of the chunk's slots times V. Queries of a block go together over the slots that all of them see,
// then one by one over the rest, so that each adds up its own slots in order and touches no other.
static void add_chunk(const struct tile *tile, int first, int n_slots)
{
    const struct lvp_attention_scratch *scratch = tile->scratch;
    int width = round_up(tile->head_dim);
    size_t stride = (size_t)scratch->max_slots;
    for (int q = 0; q < tile->n_queries; q += BLOCK_ROWS) {
        int n_rows = min_int(BLOCK_ROWS, tile->n_queries - q);
        int common = min_int(n_slots, tile->seen[q] - first);
        common = common < 0 ? 0 : common;
        float *weights = scratch->scores + (size_t)q * stride + first, *out = scratch->out + (size_t)q * (size_t)width;
        multiply(n_rows, width, weights, stride, scratch->v, (size_t)width, common, false, out, (size_t)width);
        for (int r = 0; r < n_rows; r++) {
            int own = min_int(n_slots, tile->seen[q + r] - first) - common;
            if (own <= 0) continue;
            multiply(1, width, weights + (size_t)r * stride + common, stride,
                     scratch->v + (size_t)common * (size_t)width, (size_t)width, own, false,
                     out + (size_t)r * (size_t)width, (size_t)width);
        }
    }
}

// The query's output = scratch->out / sum; zeros for a query that sees nothing.
static void store_output(const struct tile *tile, int q, float sum)
{
    float *to = tile->out[q];
    const float *out = tile->scratch->out + (size_t)q * (size_t)round_up(tile->head_dim);
    vf factor = vf_set1(tile->seen[q] > 0 ? 1.0f / sum : 0.0f);
    for (int i = 0; i < tile->head_dim; i += VF_LANES)
        vf_store_n(to + i, vf_load(out + i) * factor, tile->head_dim - i);
}

static void attend(const struct tile *tile)
{
    const struct lvp_attention_scratch *scratch = tile->scratch;
    int n_slots = tile->seen[tile->n_queries - 1];
    size_t head_dim = (size_t)tile->head_dim;
    for (int q = 0; q < tile->n_queries; q++) {
        memcpy(scratch->q + (size_t)q * head_dim, tile->q[q], head_dim * sizeof(float));
    }
    memset(scratch->out, 0, (size_t)tile->n_queries * (size_t)round_up(tile->head_dim) * sizeof(float));

    for (int first = 0; first < n_slots; first += CHUNK) {
        tile->unpack(tile, first, min_int(CHUNK, n_slots - first), true);
        score_chunk(tile, first, min_int(CHUNK, n_slots - first));
    }
    float sum[TILE];
    for (int q = 0; q < tile->n_queries; q++) {
        sum[q] = softmax(scratch->scores + (size_t)q * (size_t)scratch->max_slots, tile->seen[q], tile->scale);
    }
    for (int first = 0; first < n_slots; first += CHUNK) {
        tile->unpack(tile, first, min_int(CHUNK, n_slots - first), false);
        add_chunk(tile, first, min_int(CHUNK, n_slots - first));
    }
    for (int q = 0; q < tile->n_queries; q++) store_output(tile, q, sum[q]);
}

static void widen(const void *from, enum lvp_dtype dtype, size_t at, float *to, int n)
{
    for (int i = 0; i < n; i += VF_LANES) {
        if (dtype == LVP_F32) {
            vf_store(to + i, vf_load_n((const float *)from + at + i, n - i));
        } else {
            vf_store(to + i, vf_load_half_n((const uint16_t *)from + at + i, n - i, dtype));
        }
    }
}

static void unpack_pages(const struct tile *tile, int first, int n_slots, bool keys)
{
    const struct lvp_paged_attention *attention = tile->attention;
    const struct lvp_attention_scratch *scratch = tile->scratch;
    int head_dim = tile->head_dim;
    size_t width = (size_t)round_up(head_dim), kv_heads = (size_t)attention->shape.kv_heads;
    const int32_t *pages = attention->block_table + (size_t)tile->source * (size_t)attention->max_pages;
    for (int slot = 0; slot < n_slots; slot += LVP_KV_PAGE) {
        size_t page = (size_t)pages[(first + slot) / LVP_KV_PAGE];
        size_t at = (page * kv_heads + (size_t)tile->kv_head) * (size_t)head_dim * LVP_KV_PAGE;
        if (keys) {
            for (int i = 0; i < head_dim; i++, at += LVP_KV_PAGE) {
                widen(attention->cache.k, tile->dtype, at, scratch->k + i * CHUNK + slot, LVP_KV_PAGE);
            }
        } else {
            for (int i = slot; i < min_int(slot + LVP_KV_PAGE, n_slots); i++, at += (size_t)head_dim) {
                widen(attention->cache.v, tile->dtype, at, scratch->v + (size_t)i * width, head_dim);
            }
        }
    }
}

// Four keys [head_dim] become four columns of to [head_dim, CHUNK].
static void transpose_keys(const float *const k[4], int head_dim, float *to)
{
    typedef float v4 __attribute__((vector_size(16)));
    int i = 0;
    for (; i + 4 <= head_dim; i += 4) {
        v4 row[4];
        for (int j = 0; j < 4; j++) memcpy(&row[j], k[j] + i, sizeof row[j]);
        v4 low_0 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
        v4 high_0 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
        v4 low_1 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
        v4 high_1 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
        row[0] = __builtin_shufflevector(low_0, low_1, 0, 1, 4, 5);
        row[1] = __builtin_shufflevector(low_0, low_1, 2, 3, 6, 7);
        row[2] = __builtin_shufflevector(high_0, high_1, 0, 1, 4, 5);
        row[3] = __builtin_shufflevector(high_0, high_1, 2, 3, 6, 7);
        for (int j = 0; j < 4; j++) memcpy(to + (i + j) * CHUNK, &row[j], sizeof row[j]);
    }
    for (; i < head_dim; i++) {
        for (int j = 0; j < 4; j++) to[i * CHUNK + j] = k[j][i];
    }
}

// Slots past the last, up to whole vectors, repeat it: they are computed and not looked at.
static void unpack_rows(const struct tile *tile, int first, int n_slots, bool keys)
{
    const struct lvp_dense_attention *attention = tile->attention;
    const struct lvp_attention_scratch *scratch = tile->scratch;
    int head_dim = tile->head_dim;
    size_t width = (size_t)round_up(head_dim), stride = (size_t)attention->kv_stride;
    size_t at = ((size_t)attention->kv_start[tile->source] + (size_t)first) * stride;
    at += (size_t)tile->kv_head * (size_t)head_dim;
    if (!keys) {
        for (int slot = 0; slot < n_slots; slot++, at += stride) {
            widen(attention->v, LVP_F32, at, scratch->v + (size_t)slot * width, head_dim);
        }
        return;
    }
    for (int slot = 0; slot < round_up(n_slots); slot += 4) {
        const float *k[4];
        for (int j = 0; j < 4; j++) k[j] = attention->k + at + (size_t)min_int(slot + j, n_slots - 1) * stride;
        transpose_keys(k, head_dim, scratch->k + slot);
    }
}

void LVP_KERNEL(lvp_paged_attention)(const struct lvp_paged_attention *attention, enum lvp_dtype dtype, int seq,
                                     int kv_head, int first_query, const struct lvp_attention_scratch *scratch)
{
    const struct lvp_qkv_shape shape = attention->shape;
    int first_row = attention->row_start[seq], n_rows = attention->row_start[seq + 1] - first_row;
    int group = shape.heads / shape.kv_heads;
    size_t head_dim = (size_t)shape.head_dim, row_width = (size_t)(shape.heads + 2 * shape.kv_heads) * head_dim;
    struct tile tile = {.scratch = scratch,
                        .n_queries = min_int(TILE, n_rows * group - first_query),
                        .head_dim = shape.head_dim,
                        .scale = 1.0f / sqrtf((float)shape.head_dim),
                        .attention = attention,
                        .dtype = dtype,
                        .source = seq,
                        .kv_head = kv_head,
                        .unpack = unpack_pages};
    for (int i = 0; i < tile.n_queries; i++) {
        int row_of_seq = (first_query + i) / group;
        size_t row = (size_t)(first_row + row_of_seq), head = (size_t)(kv_head * group + (first_query + i) % group);
        tile.seen[i] = attention->kv_len[seq] - n_rows + row_of_seq + 1;
        tile.q[i] = attention->qkv + row * row_width + head * head_dim;
        tile.out[i] = attention->out + (row * (size_t)shape.heads + head) * head_dim;
    }
    attend(&tile);
}

void LVP_KERNEL(lvp_dense_attention)(const struct lvp_dense_attention *attention, int segment, int head,
                                     int first_query, const struct lvp_attention_scratch *scratch)
{
    size_t head_dim = (size_t)attention->head_dim;
    int first_row = attention->q_start[segment] + first_query;
    struct tile tile = {.scratch = scratch,
                        .n_queries = min_int(TILE, attention->q_start[segment + 1] - first_row),
                        .head_dim = attention->head_dim,
                        .scale = attention->scale,
                        .attention = attention,
                        .dtype = LVP_F32,
                        .source = segment,
                        .kv_head = head,
                        .unpack = unpack_rows};
    for (int i = 0; i < tile.n_queries; i++) {
        size_t row = (size_t)(first_row + i);
        tile.seen[i] = attention->kv_start[segment + 1] - attention->kv_start[segment];
        tile.q[i] = attention->q + row * (size_t)attention->q_stride + (size_t)head * head_dim;
        tile.out[i] = attention->out + (row * (size_t)attention->heads + (size_t)head) * head_dim;
    }
    attend(&tile);
}
