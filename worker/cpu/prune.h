// The operations of the fast backend that score and choose the rows of one image at a prune point, by one thread from
// start to end. Shapes and meaning are those of struct lvp_backend_ops.
#ifndef LVP_WORKER_CPU_PRUNE_H
#define LVP_WORKER_CPU_PRUNE_H

#include "worker/cpu/kernels.h"

// Work space: of `scratch` the buffers k [head_dim, LVP_KV_PAGE] and two rows of scores [max_slots].
void lvp_cpu_last_attention(const struct lvp_kernels *kernels, enum lvp_dtype dtype,
                            const struct lvp_last_attention *attention, int image,
                            const struct lvp_attention_scratch *scratch);

void lvp_cpu_soft_nms(const struct lvp_kernels *kernels, const struct lvp_soft_nms *nms, int image);

#endif
