// Arguments of the table's operations at a prune point (worker/backend.h): scores, a choice, the rows that stay.
#ifndef LVP_WORKER_PRUNE_OPS_H
#define LVP_WORKER_PRUNE_OPS_H

#include "worker/attention_ops.h"

// Which rows survive a prune point. Image i owns the contiguous rows [image_row[i], image_row[i] + image_len[i]) of the
// batch and the gate rows [gate_start[i], gate_start[i + 1]). Score = gate column 0 - column 1; the keep[i] best stay,
// ties go to the lower row. All other rows stay. NaN scores count as the lowest.
struct lvp_row_selection {
    int n_rows, n_images;
    const int32_t *image_row, *image_len, *gate_start, *keep;
    const float *gate;  // [n_vision_rows, 2]
    int32_t *survivors; // [n_rows - removed] surviving row indices, ascending
};

// How much the last row of a sequence attends to an image's rows, in the layer just computed. The sequence is prefilled
// in this step, so that row r of it lies in slot r - row_start. Per head: softmax over all of the sequence's slots; the
// score is the mean of the heads' probabilities (FastV, arXiv 2403.06764).
struct lvp_last_attention {
    int n_images;
    const int32_t *image_row, *image_len, *gate_start; // as in struct lvp_row_selection
    const int32_t *image_seq;                          // [n_images] whose rows they are
    const int32_t *row_start;                          // [n_seqs + 1]
    const int32_t *block_table;                        // [n_seqs, max_pages]
    int max_pages;
    struct lvp_qkv_shape shape;
    struct lvp_kv_layer cache;
    const float *qkv; // [n_rows, (heads + 2 kv_heads) * head_dim], q already rotated
    float *gate;      // [n_vision_rows, 2]: the score and 0
};

// Greedy choice of rows that lie apart: soft-NMS (arXiv 1704.04503) as AdaptPrune (arXiv 2503.08019) has it.
// Score of a row = gate column 0, at most 1, * prior of its place; NaN counts as -infinity. keep[i] times the best row
// of image i is taken, ties to the lower one, and every other row of the image within a distance of LVP_NMS_RADIUS has
// its score multiplied by
//     1 - exp(-d^2 / (2 * 1.5^2)) * exp(-(1 - cos)^2 / (2 * 0.05^2)),    1 where cos is not a number
// d: distance on the image's grid; cos: cosine similarity of the rows' keys, each length at least 1e-8.
enum { LVP_NMS_RADIUS = 5 };
struct lvp_soft_nms {
    int n_images;
    const int32_t *image_row, *image_len, *gate_start, *keep; // as in struct lvp_row_selection
    const int32_t *positions;                                 // [n_rows] original positions
    const int32_t *image_position;                            // [n_images] that of the image's first token
    int grid;                                                 // tokens along a side
    const float *prior;                                       // [grid * grid]
    const float *keys;                                        // [key_width] of row r starts at keys[r * key_stride]
    int key_width, key_stride;
    float *gate; // [n_vision_rows, 2]: column 0 scores in; out, keep + 1 for the first taken row, 2 for the last, what
                 // is left of its score for another; column 1 is 0 then
};

#endif
