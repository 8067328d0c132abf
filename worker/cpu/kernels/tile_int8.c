// Tiles of int8 weights and 16-bit integer rows. Pairs of products are added up in 32 bits, exactly
// (worker/cpu/int8.h). One vpmaddwd does the work of two fused multiply-adds, and its additions have ports of their
// own.
#include "worker/cpu/kernels/tile.h"

typedef int8_t vb __attribute__((vector_size(VF_LANES * 2)));  // a pair of k of VF_LANES columns
typedef int16_t vs __attribute__((vector_size(VF_LANES * 4))); // the same, widened

INLINE vs load_pairs(const char *from)
{
    vb bytes;
    memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
    return (vs)_mm512_cvtepi8_epi16((__m256i)bytes);
#elif defined(__AVX2__)
    return (vs)_mm256_cvtepi8_epi16((__m128i)bytes); // the compiler widens halves and joins them
#else
    return __builtin_convertvector(bytes, vs);
#endif
}

// sum + x.even * w.even + x.odd * w.odd, per column
INLINE vi add_pairs(vi sum, vs w, vi x)
{
#if defined(__AVX512F__)
    return sum + (vi)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    return sum + (vi)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
    vi even = (vi)((vu)w << 16) >> 16, odd = (vi)w >> 16;
    return sum + even * ((vi)((vu)x << 16) >> 16) + odd * (x >> 16);
#endif
}

INLINE vi load_sums(const float *from)
{
    return (vi)vf_load(from);
}

INLINE void run_tile(const struct tile *tile, int rows, int panels)
{
    enum { STEP = 2 * PANEL }; // bytes
    const int vectors = 2 * panels;
    const uint32_t *x = tile->x;
    const char *w = tile->w;
    const size_t w_stride = tile->w_stride;
    vi sum[ROW_TILE * 2];
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) sum[i] = tile->first ? vi_set1(0) : load_sums(tile->sums + i * VF_LANES);
    for (int step = tile->steps; step > 0; step--, w += STEP, x += rows) {
#pragma GCC unroll 4
        for (int p = 0; p < panels; p++) {
            const char *from = w + (size_t)p * w_stride;
            __builtin_prefetch(from + PREFETCH_STEPS * STEP, 0, 2);
            vs w0 = load_pairs(from), w1 = load_pairs(from + STEP / 2);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                vi *to = sum + r * vectors + 2 * p;
                vi factor = vi_set1((int32_t)x[r]);
                to[0] = add_pairs(to[0], w0, factor);
                to[1] = add_pairs(to[1], w1, factor);
            }
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; i++) vf_store(tile->sums + i * VF_LANES, (vf)sum[i]);
}

#define DEFINE_TILES(rows)                                                                                             \
    static void one_##rows(const struct tile *tile)                                                                    \
    {                                                                                                                  \
        run_tile(tile, rows, 1);                                                                                       \
    }                                                                                                                  \
    static void group_##rows(const struct tile *tile)                                                                  \
    {                                                                                                                  \
        run_tile(tile, rows, GROUP_FOR(rows));                                                                         \
    }
#define TILES(rows) {one_##rows, group_##rows},

FOR_ALL_ROWS(DEFINE_TILES)
tile_fn *const LVP_KERNEL(lvp_int8_tiles)[ROW_TILE][2] = {FOR_ALL_ROWS(TILES)};
