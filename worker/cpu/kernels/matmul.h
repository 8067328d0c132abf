// What linear.c and the matmul kernels of each instruction set agree on: packed layouts, the plan of one product and
// the table of kernels.
//
// Weights [out, in] are packed as panels of `panel` output columns, each panel contiguous over the whole of K:
//   f32   [out / panel][in][panel] f32
//   bf16  [out / panel][in / 2][panel][2] bf16: one 32-bit word holds k and k + 1 of a column. vdpbf16ps takes words as
//         they are; the other sets widen one with shifts.
//   f16   [out / panel][in / 2][2][panel] f16: vectors of columns, as vcvtph2ps takes them
//   int8  [out / panel][in / 2][panel][2] int8
// Columns behind `out` and the k behind an odd `in` are 0.
//
// Rows of x are packed as panels of `row_tile` rows or fewer, in blocks over K, so that a kernel reads one contiguous
// stream: [K block][row panel][k in block][row in panel] in 32-bit words: f32, or a pair (k, k + 1) of bf16 where the
// kernels take x rounded, or of 16-bit integers for int8 weights.
#ifndef LVP_WORKER_CPU_KERNELS_MATMUL_H
#define LVP_WORKER_CPU_KERNELS_MATMUL_H

#include "worker/backend.h"
#include "worker/cpu/int8.h"

enum {
    LVP_MATMUL_K_BLOCK = 512,       // k of a block where several row panels share it; even
    LVP_MATMUL_BLOCK_ROWS = 120,    // most rows of a task
    LVP_MATMUL_BLOCK_COLUMNS = 256, // most columns of a task; a multiple of every panel width times LVP_MATMUL_GROUP
    LVP_MATMUL_GROUP = 4,           // most panels of weights that one kernel walks at once
    LVP_MATMUL_MAX_PANEL = 32,      // widest panel of any kernel set
};

// Memory of one thread while it runs tasks, 64-byte aligned.
struct lvp_matmul_scratch {
    float sums[LVP_MATMUL_BLOCK_ROWS * LVP_MATMUL_BLOCK_COLUMNS]; // a task's outputs between K blocks
};

// One product y = round(add + act(x W^T + bias)) and how it is cut. The cut never changes a result's bits.
struct lvp_matmul {
    int n_rows, out, in;
    int k;                          // in, made even where weights come in pairs
    enum lvp_dtype dtype;           // what the epilogue rounds to
    enum lvp_dtype weights_dtype;   // as packed: dtype or LVP_INT8
    const void *weights;            // packed
    const float *weight_scale;      // [out, padded to whole panels], of int8 weights
    const float *bias;              // [out, padded to whole panels]
    const float *x;                 // [n_rows, in]
    uint32_t *packed_x;             // n_rows * k words or half of that
    struct lvp_int8_scale *x_scale; // [n_rows], for int8 weights: pack_rows fills it
    struct lvp_epilogue epilogue;
    float *y; // [n_rows, out]

    int row_panels;    // panel p is rows row_start(p) .. row_start(p + 1)
    int row_blocks;    // groups of row panels
    int column_panels; // panels of weights
    int column_blocks; // groups of column panels
    int k_block;       // even
    int group;         // panels of weights walked at once
};

struct lvp_matmul_kernels {
    const char *kernel_set;
    int panel;                  // output columns of a panel
    int row_tile;               // most rows of a row panel
    bool rounds_x;              // bf16 weights meet x rounded to bf16
    int (*group_for)(int rows); // panels of weights that suit row panels of at most `rows` rows
    // Packs row panels [first, last) of x.
    void (*pack_rows)(const struct lvp_matmul *m, int first, int last);
    // Computes the outputs of one row block in one column block, all of K and the epilogue.
    void (*run_block)(const struct lvp_matmul *m, int row_block, int column_block, struct lvp_matmul_scratch *scratch);
};

extern const struct lvp_matmul_kernels lvp_matmul_portable;
#if defined(__x86_64__)
extern const struct lvp_matmul_kernels lvp_matmul_avx2, lvp_matmul_avx512, lvp_matmul_avx512bf16;
#endif

// Share `i` of `n` items in `shares` even parts starts here.
static inline int lvp_matmul_start(int n, int shares, int i)
{
    return (int)((int64_t)n * i / shares);
}

#endif
