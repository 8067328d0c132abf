// cuBLASLt's calls that worker/cuda uses: y^T = W x^T as it describes it, in plain loops. What it is not asked for ends
// the process. LVP_CUDAHOST_BIAS=apart: it has no algorithm that adds the bias.
#include "tests/cudahost/fibers.h"

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

namespace
{

struct layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t stride;
};

struct description {
    bool transpose_a;
    cublasLtEpilogue_t epilogue;
    const float *bias;
};

[[noreturn]] void unexpected(const char *what)
{
    fprintf(stderr, "cudahost: cuBLASLt was asked for what the stand-in does not know: %s\n", what);
    abort();
}

float element(const void *data, cudaDataType_t type, size_t i)
{
    if (type == CUDA_R_16BF) return static_cast<float>(static_cast<const __nv_bfloat16 *>(data)[i]);
    if (type == CUDA_R_16F) return static_cast<float>(static_cast<const __half *>(data)[i]);
    return static_cast<const float *>(data)[i];
}

std::vector<float> widened(const void *data, cudaDataType_t type, size_t n)
{
    std::vector<float> wide(n);
    for (size_t i = 0; i < n; i++) wide[i] = element(data, type, i);
    return wide;
}

struct multiplication {
    description how;
    layout a, b, d;
    const void *a_data, *b_data;
    const float *c;
    float *d_data;
    float alpha, beta;

    void run() const
    {
        size_t k = a.rows, m = a.columns, n = b.columns;
        std::vector<float> left = widened(a_data, a.type, m * k), right = widened(b_data, b.type, n * k);
        for (size_t column = 0; column < n; column++)
            for (size_t row = 0; row < m; row++) {
                enum { LANES = 8 }; // sums that a compiler can keep in a vector
                float sums[LANES] = {}, sum = 0;
                const float *x = &left[row * k], *y = &right[column * k];
                size_t i = 0;
                for (; i + LANES <= k; i += LANES)
                    for (size_t l = 0; l < LANES; l++) sums[l] += x[i + l] * y[i + l];
                for (; i < k; i++) sum += x[i] * y[i];
                for (float part : sums) sum += part;
                size_t at = column * static_cast<size_t>(d.stride) + row;
                float value = alpha * sum;
                if (beta != 0) value += beta * c[at];
                if (how.epilogue == CUBLASLT_EPILOGUE_BIAS) value += how.bias[row];
                d_data[at] = value;
            }
    }
};

layout *as_layout(cublasLtMatrixLayout_t opaque)
{
    return reinterpret_cast<layout *>(opaque);
}
description *as_description(cublasLtMatmulDesc_t opaque)
{
    return reinterpret_cast<description *>(opaque);
}

bool lacks(const description *how)
{
    const char *bias = lvp_host::setting("LVP_CUDAHOST_BIAS");
    return bias != nullptr && strcmp(bias, "apart") == 0 && how->epilogue == CUBLASLT_EPILOGUE_BIAS;
}

} // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = reinterpret_cast<cublasLtHandle_t>(malloc(1));
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *result, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t stride)
{
    *result = reinterpret_cast<cublasLtMatrixLayout_t>(new layout{type, rows, columns, stride});
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t opaque)
{
    delete as_layout(opaque);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *result, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) unexpected("a type of sums other than f32");
    *result = reinterpret_cast<cublasLtMatmulDesc_t>(new description{false, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t opaque)
{
    delete as_description(opaque);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t)
{
    description *d = as_description(opaque);
    if (attribute == CUBLASLT_MATMUL_DESC_TRANSA)
        d->transpose_a = *static_cast<const cublasOperation_t *>(value) == CUBLAS_OP_T;
    else if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE)
        d->epilogue = *static_cast<const cublasLtEpilogue_t *>(value);
    else if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER)
        memcpy(&d->bias, value, sizeof d->bias);
    else
        unexpected("an attribute of a product");
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *result)
{
    *result = reinterpret_cast<cublasLtMatmulPreference_t>(malloc(1));
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t how, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t results[], int *n)
{
    *n = lacks(as_description(how)) ? 0 : 1;
    if (*n == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0] = {};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t how, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *, void *, size_t,
                              cudaStream_t stream)
{
    multiplication m = {*as_description(how),
                        *as_layout(a_layout),
                        *as_layout(b_layout),
                        *as_layout(d_layout),
                        a,
                        b,
                        static_cast<const float *>(c),
                        static_cast<float *>(d),
                        *static_cast<const float *>(alpha),
                        *static_cast<const float *>(beta)};
    if (lacks(&m.how)) return CUBLAS_STATUS_NOT_SUPPORTED; // with the algorithm of another product
    if (!m.how.transpose_a || m.a.rows != m.b.rows || m.d.rows != m.a.columns || m.d.columns != m.b.columns ||
        m.a.type != m.b.type || m.d.type != CUDA_R_32F || as_layout(c_layout)->rows != m.d.rows)
        unexpected("shapes or types");
    if (m.a.stride != static_cast<int64_t>(m.a.rows) || m.b.stride != static_cast<int64_t>(m.b.rows))
        unexpected("rows with gaps");
    lvp_host::queue_work(stream, [m] { m.run(); });
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
