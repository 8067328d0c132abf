// The kernels of this build's instruction set, as table.c collects them.
#ifndef LVP_WORKER_CPU_KERNELS_TABLE_H
#define LVP_WORKER_CPU_KERNELS_TABLE_H

#include "worker/cpu/kernels.h"
#include "worker/cpu/kernels/vec.h"

lvp_row_kernel LVP_KERNEL(lvp_layer_norm), LVP_KERNEL(lvp_rms_norm), LVP_KERNEL(lvp_glu), LVP_KERNEL(lvp_embed),
    LVP_KERNEL(lvp_rope_kv_write);

void LVP_KERNEL(lvp_paged_attention)(const struct lvp_paged_attention *attention, enum lvp_dtype dtype, int seq,
                                     int kv_head, int first_query, const struct lvp_attention_scratch *scratch);
void LVP_KERNEL(lvp_dense_attention)(const struct lvp_dense_attention *attention, int segment, int head,
                                     int first_query, const struct lvp_attention_scratch *scratch);

float LVP_KERNEL(lvp_largest)(const float *x, int n);
double LVP_KERNEL(lvp_exp_weights)(const float *x, int n, float largest, float temperature, float *weights);

double LVP_KERNEL(lvp_fma_loop)(long rounds, float *result);
double LVP_KERNEL(lvp_dot_loop)(long rounds, float *result);
float LVP_KERNEL(lvp_read_loop)(const float *from, size_t n, bool side_by_side);

extern const struct lvp_kernels LVP_KERNEL(lvp_kernels);

#endif
