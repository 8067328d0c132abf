// Tiles of f32, bf16 and f16 weights. Each output is one accumulator lane that walks k = 0, 1, ... with the same
// instruction, whatever the number of rows and the panels walked at once.
#include "worker/cpu/kernels/tile.h"

enum { STEP = PANEL * 4, VECTOR = STEP / 2, HALF_VECTOR = VECTOR / 2 }; // bytes of weights

// How weights and x meet.
enum kind {
    F32,  // a word is one k
    PAIR, // a word of weights is two k in bf16, x is f32 (two words a step)
    DOT,  // both are two k in bf16
    HALF, // f16, a row of columns for each of two k; x as for PAIR
};

INLINE vu load_words(const char *from)
{
    vu words;
    memcpy(&words, from, sizeof words);
    return words;
}

INLINE vu load_halves(const char *from)
{
    vh halves;
    memcpy(&halves, from, sizeof halves);
    return (vu)vf_from_half(halves, LVP_F16);
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

// Half a cache line, one or two.
INLINE void prefetch(const char *step)
{
    __builtin_prefetch(step, 0, 2);
    if (STEP > 64) __builtin_prefetch(step + 64, 0, 2);
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
    const uint32_t *x = tile->x;
    const char *w = tile->w;
    const size_t w_stride = tile->w_stride;
    float *sums = tile->sums;
    vf sum[ROW_TILE * 2];
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) sum[i] = tile->first ? vf_zero() : vf_load(sums + i * VF_LANES);
    for (int step = tile->steps; step > 0; step--, w += STEP) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const char *from = w + (size_t)p * w_stride;
            prefetch(from + PREFETCH_STEPS * STEP);
            if (kind == HALF) {
                step_panel(sum + 2 * p, rows, vectors, x, load_halves(from), load_halves(from + HALF_VECTOR), kind);
                step_panel(sum + 2 * p, rows, vectors, x + rows, load_halves(from + VECTOR),
                           load_halves(from + VECTOR + HALF_VECTOR), kind);
                continue;
            }
            vu w0 = load_words(from), w1 = load_words(from + VECTOR);
            if (kind == PAIR) {
                step_panel(sum + 2 * p, rows, vectors, x, even_k(w0), even_k(w1), kind);
                // Load the words again rather than keep them: six rows use all other registers.
                __asm__ volatile("" : : : "memory");
                w0 = odd_k(load_words(from)), w1 = odd_k(load_words(from + VECTOR));
                step_panel(sum + 2 * p, rows, vectors, x + rows, w0, w1, kind);
            } else {
                step_panel(sum + 2 * p, rows, vectors, x, w0, w1, kind);
            }
        }
        x += kind == PAIR || kind == HALF ? 2 * rows : rows;
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) vf_store(sums + i * VF_LANES, sum[i]);
}

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
    static void bf16_group_##rows(const struct tile *tile) { run_tile(tile, rows, GROUP_FOR(rows), BF16_KIND); }   \
    static void f16_##rows(const struct tile *tile) { run_tile(tile, rows, 1, HALF); }                             \
    static void f16_group_##rows(const struct tile *tile) { run_tile(tile, rows, GROUP_FOR(rows), HALF); }

#define F32_TILES(rows) {f32_##rows, f32_group_##rows},
#define BF16_TILES(rows) {bf16_##rows, bf16_group_##rows},
#define F16_TILES(rows) {f16_##rows, f16_group_##rows},
// clang-format on

FOR_ALL_ROWS(DEFINE_TILES)
tile_fn *const LVP_KERNEL(lvp_f32_tiles)[ROW_TILE][2] = {FOR_ALL_ROWS(F32_TILES)};
tile_fn *const LVP_KERNEL(lvp_bf16_tiles)[ROW_TILE][2] = {FOR_ALL_ROWS(BF16_TILES)};
tile_fn *const LVP_KERNEL(lvp_f16_tiles)[ROW_TILE][2] = {FOR_ALL_ROWS(F16_TILES)};
