// The operations of the fast backend that choose, rows at a prune point or tokens, by stable sorting in linear time.
#ifndef LVP_WORKER_CPU_CHOOSE_H
#define LVP_WORKER_CPU_CHOOSE_H

#include "worker/cpu/kernels.h"

struct lvp_sort_item {
    uint32_t key; // ascending
    int32_t index;
};

// Work space for choosing among n things: sampling needs all three, selection no weights.
struct lvp_choose_scratch {
    struct lvp_sort_item *items, *spare; // [n]
    float *weights;                      // [n]
};

// As struct lvp_backend_ops.select_rows; `removed` [n_rows] and a scratch for the longest image are work space.
void lvp_cpu_select_rows(const struct lvp_row_selection *selection, const struct lvp_choose_scratch *scratch,
                         uint8_t *removed);

// One row of struct lvp_backend_ops.sample: logits [vocab].
void lvp_cpu_sample_row(const struct lvp_kernels *kernels, const float *logits, int vocab, const struct lvp_draw *how,
                        const struct lvp_choose_scratch *scratch, int32_t *token, float *logprob);

#endif
