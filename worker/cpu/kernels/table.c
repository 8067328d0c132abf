#include "worker/cpu/kernels/table.h"

#define TEXT_(isa) #isa
#define TEXT(isa)  TEXT_(isa)

const struct lvp_kernels LVP_KERNEL(lvp_kernels) = {
    .name = TEXT(LVP_KERNEL_ISA),
    .layer_norm = LVP_KERNEL(lvp_layer_norm),
    .rms_norm = LVP_KERNEL(lvp_rms_norm),
    .glu = LVP_KERNEL(lvp_glu),
    .embed = LVP_KERNEL(lvp_embed),
    .rope_kv_write = LVP_KERNEL(lvp_rope_kv_write),
    .paged_attention = LVP_KERNEL(lvp_paged_attention),
    .dense_attention = LVP_KERNEL(lvp_dense_attention),
    .largest = LVP_KERNEL(lvp_largest),
    .exp_weights = LVP_KERNEL(lvp_exp_weights),
    .fma_loop = LVP_KERNEL(lvp_fma_loop),
    .dot_loop = LVP_KERNEL(lvp_dot_loop),
    .read_loop = LVP_KERNEL(lvp_read_loop),
};
