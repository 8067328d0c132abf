// The matmul kernels, one source for every instruction set.
//
// Each output is one accumulator lane that walks k = 0, 1, ... with the same instruction, whatever the number of rows,
// the panels walked at once or the block sizes: between K blocks the f32 sums are stored and loaded again, which
// changes nothing. That is why the bits of a row never depend on its batch.
#include "worker/cpu/kernels/matmul.h"

#include "worker/cpu/kernels/act.h"
#include "worker/cpu/kernels/vec.h"

#if defined(LVP_KERNEL_avx512bf16)
#define HAVE_DOT 1
#else
#define HAVE_DOT 0
#endif

// Weights come from memory when rows are few, and the hardware's prefetch stops at every 4 KiB page.
enum { PREFETCH_STEPS = 16 };

// Two vectors of columns by ROW_TILE rows of accumulators, the weights and one broadcast fill the registers: 16, or 32.
enum { PANEL = 2 * VF_LANES, ROW_TILE = VF_LANES == 16 ? 12 : 6, PACK_CHUNK = 256 };

_Static_assert((int)PANEL <= (int)LVP_MATMUL_MAX_PANEL, "the scratch holds a panel");
_Static_assert((int)LVP_MATMUL_BLOCK_COLUMNS % ((int)PANEL * (int)LVP_MATMUL_GROUP) == 0,
               "a task is whole groups of panels");

#define STRING_(x) #x
#define STRING(x)  STRING_(x)
#define INLINE     static inline __attribute__((always_inline))

// One tile: the rows of one row panel by one or several panels of weights, over one K block.
struct tile {
    const uint32_t *x; // [steps][rows] words
    const uint32_t *w; // first panel, [steps][PANEL] words
    size_t w_stride;   // words between panels
    int steps;         // words along K
    bool first;        // sums start at 0
    float *sums;       // [rows][panels * PANEL]
};

typedef void tile_fn(const struct tile *tile);

// How weights and x meet. One step is one word along K.
enum kind {
    F32,  // a word is one k
    PAIR, // a word of weights is two k in bf16, x is f32 (two words a step)
    DOT,  // both are two k in bf16
};

INLINE vu load_words(const uint32_t *from)
{
    vu words;
    memcpy(&words, from, sizeof words);
    return words;
}

INLINE vu even_k(vu words)
{
    return words << 16;
}

INLINE vu odd_k(vu words)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    // Two shifts, which the compiler would fold: a mask would take the register that the sixth row needs.
    words >>= 16;
    __asm__("" : "+x"(words));
    return words << 16;
#else
    return words & 0xffff0000U;
#endif
}

// A step of a panel is PANEL * 4 bytes: half a cache line, one or two.
INLINE void prefetch(const uint32_t *words)
{
    __builtin_prefetch(words);
    if (PANEL * 4 > 64) __builtin_prefetch(words + 16);
}

INLINE vf broadcast(const uint32_t *word)
{
    float value;
    memcpy(&value, word, sizeof value);
    return vf_set1(value);
}

#if HAVE_DOT
INLINE vf dot(vf sum, uint32_t x, vu w)
{
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)x), (__m512bh)w);
}
#endif

// One k (or one pair of them for DOT) of `rows` rows by the two vectors of a panel. Rows are the outer loop so that one
// broadcast at a time is alive: six rows leave no register for more.
INLINE void step_panel(vf *sum, int rows, int vectors, const uint32_t *x, vu w0, vu w1, enum kind kind)
{
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        vf *to = sum + r * vectors;
#if HAVE_DOT
        if (kind == DOT) {
            to[0] = dot(to[0], x[r], w0);
            to[1] = dot(to[1], x[r], w1);
            continue;
        }
#endif
        vf value = broadcast(x + r);
        to[0] = vf_fma(value, (vf)w0, to[0]);
        to[1] = vf_fma(value, (vf)w1, to[1]);
    }
    (void)kind;
}

// `rows`, `panels` and `kind` are constants where this is inlined: the loops over them unroll and `sum` lives in
// registers.
INLINE void run_tile(const struct tile *tile, int rows, int panels, enum kind kind)
{
    const int vectors = 2 * panels;
    const uint32_t *x = tile->x, *w = tile->w;
    const size_t w_stride = tile->w_stride;
    float *sums = tile->sums;
    vf sum[ROW_TILE * 2];
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) sum[i] = tile->first ? vf_zero() : vf_load(sums + i * VF_LANES);
    for (int step = tile->steps; step > 0; step--, w += PANEL) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const uint32_t *from = w + (size_t)p * w_stride;
            prefetch(from + PREFETCH_STEPS * PANEL);
            vu w0 = load_words(from), w1 = load_words(from + VF_LANES);
            if (kind == PAIR) {
                step_panel(sum + 2 * p, rows, vectors, x, even_k(w0), even_k(w1), kind);
                // Load the words again rather than keep them: six rows use all other registers.
                __asm__ volatile("" : : : "memory");
                w0 = odd_k(load_words(from)), w1 = odd_k(load_words(from + VF_LANES));
                step_panel(sum + 2 * p, rows, vectors, x + rows, w0, w1, kind);
            } else {
                step_panel(sum + 2 * p, rows, vectors, x, w0, w1, kind);
            }
        }
        x += kind == PAIR ? 2 * rows : rows;
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) vf_store(sums + i * VF_LANES, sum[i]);
}

// Panels walked at once for this many rows: few rows leave registers idle, and one accumulator is a chain of dependent
// additions, so eight or more are needed to keep the FMA units busy.
#define GROUP_FOR(rows) ((rows)*4 <= ROW_TILE ? 4 : (rows)*2 <= ROW_TILE ? 2 : 1)

#if HAVE_DOT
#define BF16_KIND DOT
#else
#define BF16_KIND PAIR
#endif

// clang-format off
#define DEFINE_TILES(rows)                                                                                         \
    static void f32_##rows(const struct tile *tile) { run_tile(tile, rows, 1, F32); }                              \
    static void f32_group_##rows(const struct tile *tile) { run_tile(tile, rows, GROUP_FOR(rows), F32); }          \
    static void bf16_##rows(const struct tile *tile) { run_tile(tile, rows, 1, BF16_KIND); }                       \
    static void bf16_group_##rows(const struct tile *tile) { run_tile(tile, rows, GROUP_FOR(rows), BF16_KIND); }

#define TILES(rows) {{f32_##rows, f32_group_##rows}, {bf16_##rows, bf16_group_##rows}}
// clang-format on

DEFINE_TILES(1)
DEFINE_TILES(2)
DEFINE_TILES(3)
DEFINE_TILES(4)
DEFINE_TILES(5)
DEFINE_TILES(6)
#if defined(__AVX512F__)
DEFINE_TILES(7)
DEFINE_TILES(8)
DEFINE_TILES(9)
DEFINE_TILES(10)
DEFINE_TILES(11)
DEFINE_TILES(12)
#endif

// A group is only walked for one row panel: more rows than fit one fill at least half of each.
static tile_fn *const tiles[ROW_TILE][2][2] = {
    // [rows - 1][bf16][group]
    TILES(1), TILES(2), TILES(3), TILES(4),  TILES(5),  TILES(6),
#if defined(__AVX512F__)
    TILES(7), TILES(8), TILES(9), TILES(10), TILES(11), TILES(12),
#endif
};

static int row_start(const struct lvp_matmul *m, int panel)
{
    return lvp_matmul_start(m->n_rows, m->row_panels, panel);
}

// Words of packed x, or of packed weights, that n values along K take.
static int x_words(const struct lvp_matmul *m, int n)
{
    return HAVE_DOT && m->dtype == LVP_BF16 ? n / 2 : n;
}

static int weight_words(const struct lvp_matmul *m, int n)
{
    return m->dtype == LVP_BF16 ? n / 2 : n;
}

// Words of x[row, k .. k + n), zero behind its end; returns how many.
static int row_words(const struct lvp_matmul *m, int row, int k, int n, uint32_t *words)
{
    const float *x = m->x + (size_t)row * (size_t)m->in + k;
    int present = m->in - k < n ? m->in - k : n;
    if (HAVE_DOT && m->dtype == LVP_BF16) {
        uint16_t half[PACK_CHUNK] = {0};
        int i = 0;
        for (; i + VF_LANES <= present; i += VF_LANES) vf_store_bf16(half + i, vf_load(x + i));
        if (i < present) vf_store_bf16_partial(half + i, vf_load_partial(x + i, present - i), present - i);
        memcpy(words, half, (size_t)n * sizeof *half);
        return n / 2;
    }
    memcpy(words, x, (size_t)present * sizeof *x);
    for (int i = present; i < n; i++) words[i] = 0;
    return n;
}

static void pack_rows(const struct lvp_matmul *m, int first, int last)
{
    for (int k0 = 0; k0 < m->k; k0 += m->k_block) {
        int n_k = m->k - k0 < m->k_block ? m->k - k0 : m->k_block;
        for (int panel = first; panel < last; panel++) {
            int start = row_start(m, panel), rows = row_start(m, panel + 1) - start;
            uint32_t *block = m->packed_x + (size_t)x_words(m, k0) * (size_t)m->n_rows;
            uint32_t *to = block + (size_t)start * (size_t)x_words(m, n_k);
            for (int k = 0; k < n_k; k += PACK_CHUNK) {
                uint32_t words[PACK_CHUNK];
                int n_words = 0;
                for (int r = 0; r < rows; r++) {
                    n_words = row_words(m, start + r, k0 + k, n_k - k < PACK_CHUNK ? n_k - k : PACK_CHUNK, words);
                    for (int i = 0; i < n_words; i++) to[i * rows + r] = words[i];
                }
                to += n_words * rows;
            }
        }
    }
}

// y = round(add + act(sum + bias)) for `rows` rows by `columns` columns whose sums lie `stride` apart.
static void finish_tile(const struct lvp_matmul *m, int row, int rows, int column, int columns, const float *sums,
                        int stride)
{
    bool round = m->epilogue.round && m->dtype == LVP_BF16;
    for (int r = 0; r < rows; r++, sums += stride) {
        size_t at = (size_t)(row + r) * (size_t)m->out + (size_t)column;
        for (int c = 0; c < columns; c += VF_LANES) {
            int n = columns - c < VF_LANES ? columns - c : VF_LANES;
            vf value = vf_activate(m->epilogue.activation, vf_load(sums + c) + vf_load(m->bias + column + c));
            if (m->epilogue.add) {
                const float *add = m->epilogue.add + at + c;
                value += n == VF_LANES ? vf_load(add) : vf_load_partial(add, n);
            }
            if (round) value = vf_round_bf16(value);
            if (n == VF_LANES) {
                vf_store(m->y + at + c, value);
            } else {
                vf_store_partial(m->y + at + c, value, n);
            }
        }
    }
}

// The columns of one group (or one panel) for all row panels of a task, over one K block.
static void run_group(const struct lvp_matmul *m, int k0, int n_k, int column_panel, int panels, int first_row_panel,
                      int last_row_panel, float *sums)
{
    size_t panel_words = (size_t)weight_words(m, m->k) * PANEL;
    struct tile tile = {
        .w = (const uint32_t *)m->weights + (size_t)column_panel * panel_words + (size_t)weight_words(m, k0) * PANEL,
        .w_stride = panel_words,
        .steps = weight_words(m, n_k),
        .first = k0 == 0,
    };
    bool last = k0 + n_k == m->k;
    int columns = m->out - column_panel * PANEL < panels * PANEL ? m->out - column_panel * PANEL : panels * PANEL;
    const uint32_t *x = m->packed_x + (size_t)x_words(m, k0) * (size_t)m->n_rows;
    for (int p = first_row_panel; p < last_row_panel; p++) {
        int row = row_start(m, p), rows = row_start(m, p + 1) - row;
        tile.x = x + (size_t)row * (size_t)x_words(m, n_k);
        tile.sums = sums;
        tiles[rows - 1][m->dtype == LVP_BF16][panels > 1](&tile);
        if (last) finish_tile(m, row, rows, column_panel * PANEL, columns, sums, panels * PANEL);
        sums += rows * panels * PANEL;
    }
}

static void run_block(const struct lvp_matmul *m, int row_block, int column_block, struct lvp_matmul_scratch *scratch)
{
    int first_row_panel = lvp_matmul_start(m->row_panels, m->row_blocks, row_block);
    int last_row_panel = lvp_matmul_start(m->row_panels, m->row_blocks, row_block + 1);
    int rows = row_start(m, last_row_panel) - row_start(m, first_row_panel);
    int groups = (m->column_panels + m->group - 1) / m->group;
    int first = lvp_matmul_start(groups, m->column_blocks, column_block) * m->group;
    int last = lvp_matmul_start(groups, m->column_blocks, column_block + 1) * m->group;
    if (last > m->column_panels) last = m->column_panels;
    for (int k0 = 0; k0 < m->k; k0 += m->k_block) {
        int n_k = m->k - k0 < m->k_block ? m->k - k0 : m->k_block;
        float *sums = scratch->sums;
        for (int panel = first, panels; panel < last; panel += panels) {
            panels = last - panel >= m->group ? m->group : 1;
            run_group(m, k0, n_k, panel, panels, first_row_panel, last_row_panel, sums);
            sums += rows * panels * PANEL;
        }
    }
}

static int group_for(int rows)
{
    return GROUP_FOR(rows);
}

const struct lvp_matmul_kernels LVP_KERNEL(lvp_matmul) = {
    .kernel_set = STRING(LVP_KERNEL_ISA),
    .panel = PANEL,
    .row_tile = ROW_TILE,
    .rounds_x = HAVE_DOT,
    .group_for = group_for,
    .pack_rows = pack_rows,
    .run_block = run_block,
};
