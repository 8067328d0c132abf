// What the matmul driver (matmul.c) and its innermost loops (tile_float.c, tile_int8.c) share.
#ifndef LVP_WORKER_CPU_KERNELS_TILE_H
#define LVP_WORKER_CPU_KERNELS_TILE_H

#include "worker/cpu/kernels/matmul.h"
#include "worker/cpu/kernels/vec.h"

#if defined(LVP_KERNEL_avx512bf16)
#define HAVE_DOT 1
#else
#define HAVE_DOT 0
#endif

// Weights come from memory when rows are few, and the hardware's prefetch stops at every 4 KiB page. They are asked for
// into the second level cache, which can wait for more lines at once than the first (docs/SPEED.md).
enum { PREFETCH_STEPS = 64 };

// Two vectors of columns by ROW_TILE rows of accumulators, the weights and one broadcast fill the registers: 16, or 32.
enum { PANEL = 2 * VF_LANES, ROW_TILE = VF_LANES == 16 ? 12 : 6 };

#define INLINE static inline __attribute__((always_inline))

// One tile: the rows of one row panel by one or several panels of weights, over one K block. A step is one word of
// packed x along K, or two (f32 rows with 16-bit weights).
struct tile {
    const uint32_t *x; // [steps][rows] words
    const char *w;     // first panel, [steps][step of a panel]
    size_t w_stride;   // bytes between panels
    int steps;
    bool first;  // sums start at 0
    float *sums; // [rows][panels * PANEL]; of int8 weights, int32
};

typedef void tile_fn(const struct tile *tile);

// Panels walked at once for this many rows: few rows leave registers idle, and one accumulator is a chain of dependent
// additions, so eight or more are needed to keep the units busy. A group is only walked for one row panel: more rows
// than fit one fill at least half of each.
#define GROUP_FOR(rows) ((rows)*4 <= ROW_TILE ? 4 : (rows)*2 <= ROW_TILE ? 2 : 1)

// DEFINE(rows) for every number of rows.
#if defined(__AVX512F__)
#define FOR_ALL_ROWS(DEFINE)                                                                                           \
    DEFINE(1)                                                                                                          \
    DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6) DEFINE(7) DEFINE(8) DEFINE(9) DEFINE(10) DEFINE(11) DEFINE(12)
#else
#define FOR_ALL_ROWS(DEFINE) DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6)
#endif

// [rows - 1][group]
extern tile_fn *const LVP_KERNEL(lvp_f32_tiles)[ROW_TILE][2], *const LVP_KERNEL(lvp_bf16_tiles)[ROW_TILE][2],
                                                                  *const LVP_KERNEL(lvp_f16_tiles)[ROW_TILE][2],
                                                                      *const LVP_KERNEL(lvp_int8_tiles)[ROW_TILE][2];

#endif
