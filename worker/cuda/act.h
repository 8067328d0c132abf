// Activations on the device: Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415: the erf form, its tanh
// and its sigmoid approximation. NaN stays NaN.
#ifndef LVP_WORKER_CUDA_ACT_H
#define LVP_WORKER_CUDA_ACT_H

#include "worker/cuda/cuda_backend.h"

static __device__ inline float lvp_activate(enum lvp_activation activation, float x)
{
    switch (activation) {
    case LVP_ACT_NONE:
        return x;
    case LVP_ACT_GELU:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440f));
    case LVP_ACT_GELU_TANH:
        return 0.5f * x * (1.0f + tanhf(0.79788456080286535588f * (x + 0.044715f * x * x * x)));
    case LVP_ACT_QUICK_GELU:
        return x / (1.0f + expf(-1.702f * x));
    case LVP_ACT_SILU:
        return x / (1.0f + expf(-x));
    case LVP_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    }
    return x;
}

#endif
