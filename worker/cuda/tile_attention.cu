// Attention of many rows at once on the tensor cores, with an online softmax: Dao, "FlashAttention-2", arXiv
// 2307.08691. A block takes 64 query rows of one head, a warp 16 of them, and walks the keys 64 at a time; while one
// tile of keys and values is multiplied the next is on its way into shared memory. Scores and sums stay in f32
// registers; queries, keys, values and weights are multiplied in the model's 16-bit type.
#include "worker/cuda/attention.h"

namespace
{

enum { WARPS = 4, THREADS = WARPS * LVP_WARP, ROWS = 16 * WARPS, SLOTS = 64, PAD = 8 };

__device__ int thread()
{
    return static_cast<int>(threadIdx.x);
}

// The rows that a block takes.
struct tile {
    int source, first_row, end_row; // end_row: of the source
};

// Number `i` of the tiles of all sources in a row; false where there are fewer. Each warp counts for itself: a lane
// takes a source, and the running sum of their tiles says whose number i is.
__device__ bool find_tile(const lvp_queries &q, int i, enum lvp_rows which, tile *found)
{
    int lane = thread() % LVP_WARP;
    for (int base = 0; base < q.n_sources; base += LVP_WARP) {
        int source = base + lane, tiles = 0;
        if (source < q.n_sources) {
            int rows = q.row_start[source + 1] - q.row_start[source];
            if (lvp_takes(which, rows)) tiles = (rows + ROWS - 1) / ROWS;
        }
        int before = tiles; // and this lane's own
        for (int step = 1; step < LVP_WARP; step *= 2) {
            int other = __shfl_up_sync(0xffffffffU, before, static_cast<unsigned>(step));
            if (lane >= step) before += other;
        }
        unsigned owner = __ballot_sync(0xffffffffU, i < before);
        if (owner != 0) {
            int winner = __ffs(static_cast<int>(owner)) - 1;
            int first = __shfl_sync(0xffffffffU, before - tiles, winner);
            found->source = base + winner;
            found->first_row = q.row_start[found->source] + (i - first) * ROWS;
            found->end_row = q.row_start[found->source + 1];
            return true;
        }
        i -= __shfl_sync(0xffffffffU, before, LVP_WARP - 1);
    }
    return false;
}

// A tile of keys in shared memory. Pages hold keys as columns: [HD][SLOTS + PAD]; dense rows stay rows: [SLOTS][HD +
// PAD].
template <class Keys, int HD> struct shapes {
    using T = typename Keys::T;
    enum {
        K_WIDTH = Keys::PAGED ? SLOTS + PAD : HD + PAD,
        K_ROWS = Keys::PAGED ? HD : SLOTS,
        V_WIDTH = HD + PAD,
        BUFFER = K_ROWS * K_WIDTH + SLOTS * V_WIDTH // elements of keys and values together
    };
};

// Slots first..first + SLOTS of paged keys and values; past `n_slots` keys may hold anything and values are zero.
// Features past the head's size are zero.
template <int HD, class T>
__device__ void load_tile(const lvp_paged_keys<T> &keys, int source, int head, int first, int n_slots, T *k, T *v)
{
    using S = shapes<lvp_paged_keys<T>, HD>;
    enum { PIECE = 8, PIECES = LVP_KV_PAGE / PIECE, PAGES = SLOTS / LVP_KV_PAGE }; // PIECE: elements in 16 bytes
    int head_dim = keys.head_dim;
    for (int j = thread(); j < HD * PAGES * PIECES; j += THREADS) {
        int i = j / (PAGES * PIECES), page = j / PIECES % PAGES, piece = j % PIECES;
        int slot = first + page * LVP_KV_PAGE;
        T *to = k + i * S::K_WIDTH + page * LVP_KV_PAGE + piece * PIECE;
        if (i < head_dim && slot < n_slots)
            lvp_copy_async(to, keys.k + keys.tile(source, head, slot) + i * LVP_KV_PAGE + piece * PIECE);
        else
            *reinterpret_cast<uint4 *>(to) = make_uint4(0, 0, 0, 0);
    }
    for (int j = thread(); j < SLOTS * (HD / PIECE); j += THREADS) {
        int slot = j / (HD / PIECE), i = j % (HD / PIECE) * PIECE;
        T *to = v + slot * S::V_WIDTH + i;
        if (first + slot >= n_slots || i >= head_dim) {
            *reinterpret_cast<uint4 *>(to) = make_uint4(0, 0, 0, 0);
        } else if (head_dim % PIECE == 0) {
            lvp_copy_async(to, keys.value(source, head, first + slot) + i);
        } else { // rows of the cache are not aligned
            const T *from = keys.value(source, head, first + slot);
            for (int e = 0; e < PIECE; e++) to[e] = i + e < head_dim ? from[i + e] : lvp_cast<T>(0.0f);
        }
    }
}

template <int HD, class T>
__device__ void load_tile(const lvp_dense_keys<T> &keys, int source, int head, int first, int n_slots, T *k, T *v)
{
    using S = shapes<lvp_dense_keys<T>, HD>;
    for (int j = thread(); j < SLOTS * (HD / 2); j += THREADS) {
        int slot = j / (HD / 2), i = j % (HD / 2) * 2;
        float pair[2][2] = {};
        if (first + slot < n_slots) {
            const float *key = keys.key(source, head, first + slot), *value = keys.value(source, head, first + slot);
            for (int e = 0; e < 2 && i + e < keys.head_dim; e++) {
                pair[0][e] = key[i + e];
                pair[1][e] = value[i + e];
            }
        }
        *reinterpret_cast<uint32_t *>(k + slot * S::K_WIDTH + i) = lvp_pair<T>(pair[0][0], pair[0][1]);
        *reinterpret_cast<uint32_t *>(v + slot * S::V_WIDTH + i) = lvp_pair<T>(pair[1][0], pair[1][1]);
    }
}

// Two neighbouring fragments of 8 columns each of a matrix B (lvp_mma): r[0], r[1] and r[2], r[3]. Rows k0..k0 + 16,
// columns n0..n0 + 16.
template <class T> __device__ void load_b(uint32_t (&r)[4], const T *matrix, int width, int k0, int n0)
{
    int lane = thread() % LVP_WARP, m = lane / 8;
    lvp_load_matrices<true>(r, matrix + (k0 + m % 2 * 8 + lane % 8) * width + n0 + m / 2 * 8);
}

// The same of a matrix that is stored transposed: rows n, columns k.
template <class T> __device__ void load_b_transposed(uint32_t (&r)[4], const T *matrix, int width, int k0, int n0)
{
    int lane = thread() % LVP_WARP, m = lane / 8;
    lvp_load_matrices<false>(r, matrix + (n0 + m / 2 * 8 + lane % 8) * width + k0 + m % 2 * 8);
}

// A warp's 16 query rows. A lane holds parts of rows g = lane / 4 and g + 8, as lvp_mma lays them out.
template <class Keys, int HD> struct warp_rows {
    using T = typename Keys::T;
    uint32_t q[HD / 16][4];
    float scores[SLOTS / 8][4];
    float out[HD / 8][4];
    float largest[2], total[2]; // of the two rows; total: this lane's columns only
    int visible[2];             // slots that the row sees; 0 for a row past the end

    // Scores become base-2 logarithms of the weights, so that one instruction raises them.
    __device__ void load_queries(const lvp_queries &queries, int head, int row, int end_row)
    {
        int t = thread() % 4, head_dim = queries.head_dim;
        float scale = queries.scale * 1.44269504088896340736f;
        LVP_UNROLL
        for (int k = 0; k < HD / 16; k++) LVP_UNROLL
        for (int part = 0; part < 4; part++) {
            int r = row + part % 2 * 8, i = k * 16 + part / 2 * 8 + 2 * t;
            float pair[2] = {};
            for (int e = 0; e < 2 && r < end_row && i + e < head_dim; e++)
                pair[e] = queries.q[static_cast<size_t>(r) * static_cast<size_t>(queries.stride) +
                                    static_cast<size_t>(head * head_dim + i + e)] *
                          scale;
            q[k][part] = lvp_pair<T>(pair[0], pair[1]);
        }
    }

    __device__ void multiply_keys(const T *k)
    {
        enum { WIDTH = shapes<Keys, HD>::K_WIDTH };
        LVP_UNROLL
        for (int n = 0; n < SLOTS / 16; n++) {
            LVP_UNROLL
            for (int e = 0; e < 4; e++) scores[2 * n][e] = scores[2 * n + 1][e] = 0.0f;
            LVP_UNROLL
            for (int i = 0; i < HD / 16; i++) {
                uint32_t b[4];
                if (Keys::PAGED)
                    load_b(b, k, WIDTH, i * 16, n * 16);
                else
                    load_b_transposed(b, k, WIDTH, i * 16, n * 16);
                lvp_mma<T>(scores[2 * n], q[i], b[0], b[1]);
                lvp_mma<T>(scores[2 * n + 1], q[i], b[2], b[3]);
            }
        }
    }

    // Scores of slots first.. become weights; what was summed before is scaled to the new largest score.
    __device__ void soften(int first)
    {
        int t = thread() % 4;
        LVP_UNROLL
        for (int r = 0; r < 2; r++) {
            float top = largest[r];
            LVP_UNROLL
            for (int n = 0; n < SLOTS / 8; n++) LVP_UNROLL
            for (int e = 0; e < 2; e++) {
                float *score = &scores[n][2 * r + e];
                if (first + n * 8 + 2 * t + e >= visible[r]) *score = -INFINITY;
                top = lvp_max()(top, *score);
            }
            top = lvp_warp_reduce(top, lvp_max(), 4); // the four lanes of a row
            float base = top == -INFINITY ? 0.0f : top, shrink = exp2f(largest[r] - base), sum = 0.0f;
            largest[r] = top;
            LVP_UNROLL
            for (int n = 0; n < SLOTS / 8; n++) LVP_UNROLL
            for (int e = 0; e < 2; e++) {
                float weight = exp2f(scores[n][2 * r + e] - base);
                scores[n][2 * r + e] = weight;
                sum += weight;
            }
            total[r] = total[r] * shrink + sum;
            LVP_UNROLL
            for (int n = 0; n < HD / 8; n++) {
                out[n][2 * r] *= shrink;
                out[n][2 * r + 1] *= shrink;
            }
        }
    }

    __device__ void multiply_values(const T *v)
    {
        enum { WIDTH = shapes<Keys, HD>::V_WIDTH };
        LVP_UNROLL
        for (int k = 0; k < SLOTS / 16; k++) {
            const float *low = scores[2 * k], *high = scores[2 * k + 1];
            uint32_t weights[4] = {lvp_pair<T>(low[0], low[1]), lvp_pair<T>(low[2], low[3]),
                                   lvp_pair<T>(high[0], high[1]), lvp_pair<T>(high[2], high[3])};
            LVP_UNROLL
            for (int n = 0; n < HD / 16; n++) {
                uint32_t b[4];
                load_b(b, v, WIDTH, k * 16, n * 16);
                lvp_mma<T>(out[2 * n], weights, b[0], b[1]);
                lvp_mma<T>(out[2 * n + 1], weights, b[2], b[3]);
            }
        }
    }

    __device__ void store(const lvp_queries &queries, int head, int row, int end_row)
    {
        int t = thread() % 4, head_dim = queries.head_dim;
        LVP_UNROLL
        for (int r = 0; r < 2; r++) {
            float sum = lvp_warp_reduce(total[r], lvp_sum(), 4), scale = sum > 0.0f ? 1.0f / sum : 0.0f;
            if (row + 8 * r >= end_row) continue;
            float *to = queries.out + (static_cast<size_t>(row + 8 * r) * static_cast<size_t>(queries.heads) +
                                       static_cast<size_t>(head)) *
                                          static_cast<size_t>(head_dim);
            LVP_UNROLL
            for (int n = 0; n < HD / 8; n++) LVP_UNROLL
            for (int e = 0; e < 2; e++)
                if (n * 8 + 2 * t + e < head_dim) to[n * 8 + 2 * t + e] = out[n][2 * r + e] * scale;
        }
    }
};

// Grid: tiles (as many as there can be) x heads.
template <class Keys, int HD>
__global__ void __launch_bounds__(THREADS) tile_attention_kernel(lvp_queries q, Keys keys, enum lvp_rows which)
{
    using T = typename Keys::T;
    using S = shapes<Keys, HD>;
    LVP_DYNAMIC_SHARED(T, memory); // two buffers of a tile of keys and one of values each
    tile here;
    if (!find_tile(q, static_cast<int>(blockIdx.x), which, &here)) return;
    int head = static_cast<int>(blockIdx.y), kv_head = head / (q.heads / q.kv_heads);
    int row = here.first_row + thread() / LVP_WARP * 16 + thread() % LVP_WARP / 4; // g; the other one is row + 8
    int last_row = (here.first_row + ROWS < here.end_row ? here.first_row + ROWS : here.end_row) - 1;
    int n_slots = keys.visible(here.source, last_row, here.end_row); // the last row sees most

    warp_rows<Keys, HD> rows = {};
    rows.load_queries(q, head, row, here.end_row);
    for (int r = 0; r < 2; r++) {
        rows.largest[r] = -INFINITY;
        rows.visible[r] = row + 8 * r < here.end_row ? keys.visible(here.source, row + 8 * r, here.end_row) : 0;
    }
    load_tile<HD>(keys, here.source, kv_head, 0, n_slots, memory, memory + S::K_ROWS * S::K_WIDTH);
    lvp_copy_commit();
    for (int first = 0, buffer = 0; first < n_slots; first += SLOTS, buffer = 1 - buffer) {
        T *k = memory + buffer * S::BUFFER, *v = k + S::K_ROWS * S::K_WIDTH, *next = memory + (1 - buffer) * S::BUFFER;
        if (first + SLOTS < n_slots)
            load_tile<HD>(keys, here.source, kv_head, first + SLOTS, n_slots, next, next + S::K_ROWS * S::K_WIDTH);
        lvp_copy_commit();
        lvp_copy_wait<1>();
        __syncthreads();
        rows.multiply_keys(k);
        rows.soften(first);
        rows.multiply_values(v);
        __syncthreads(); // before the buffer is filled again
    }
    rows.store(q, head, row, here.end_row);
}

template <class Keys, int HD> void launch(lvp_cuda *cuda, const lvp_queries &q, const Keys &keys, enum lvp_rows which)
{
    unsigned tiles = static_cast<unsigned>(q.n_rows / ROWS + q.n_sources);
    lvp_launch(tile_attention_kernel<Keys, HD>, dim3(tiles, static_cast<unsigned>(q.heads)), dim3(THREADS),
               2 * shapes<Keys, HD>::BUFFER * sizeof(typename Keys::T), cuda->stream, q, keys, which);
}

} // namespace

template <class Keys>
void lvp_tile_attention(struct lvp_cuda *cuda, const struct lvp_queries &q, const Keys &keys, enum lvp_rows which)
{
    if (q.n_rows == 0 || q.n_sources == 0) return;
    if (q.head_dim <= 32)
        launch<Keys, 32>(cuda, q, keys, which);
    else if (q.head_dim <= 64)
        launch<Keys, 64>(cuda, q, keys, which);
    else if (q.head_dim <= 96)
        launch<Keys, 96>(cuda, q, keys, which);
    else
        launch<Keys, LVP_TILE_HEAD_DIM>(cuda, q, keys, which);
}

template void lvp_tile_attention(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<__nv_bfloat16> &, enum lvp_rows);
template void lvp_tile_attention(lvp_cuda *, const lvp_queries &, const lvp_paged_keys<__half> &, enum lvp_rows);
template void lvp_tile_attention(lvp_cuda *, const lvp_queries &, const lvp_dense_keys<__nv_bfloat16> &, enum lvp_rows);
template void lvp_tile_attention(lvp_cuda *, const lvp_queries &, const lvp_dense_keys<__half> &, enum lvp_rows);
