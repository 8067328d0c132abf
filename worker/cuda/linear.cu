// Linear layers: weights in the model's dtype on the device, products by cuBLASLt with f32 sums and results. An addend
// and the bias are part of the product where that is all and cuBLASLt can; the rest is a pass over the result.
#include "worker/cuda/act.h"

extern "C" {
#include "worker/weights.h"
}

#include <limits.h>
#include <stdlib.h>
#include <string.h>

namespace
{

// The fastest algorithm for about so many rows, as cuBLASLt's heuristic sees it.
enum { BUCKETS = 24 };

struct algorithm {
    bool known;
    cublasLtMatmulAlgo_t algo;
};

struct cuda_linear {
    int out, in;
    cudaDataType_t type;
    void *weight; // [out, in]
    float *bias;  // [out]; NULL where no part has one
    cublasLtMatrixLayout_t weight_layout;
    cublasLtMatmulDesc_t plain, with_bias;
    algorithm algorithms[2][BUCKETS]; // without and with an addend
    bool bias_apart[2][BUCKETS];      // cuBLASLt has no product that adds it
};

cuda_linear *linear_of(const struct lvp_linear *linear)
{
    return reinterpret_cast<cuda_linear *>(const_cast<struct lvp_linear *>(linear));
}

// Rows 1..16 have a bucket each; then powers of two.
int bucket_of(int n_rows)
{
    if (n_rows <= 16) return n_rows - 1;
    int bucket = 16;
    for (int limit = 32; limit < n_rows && bucket < BUCKETS - 1; limit *= 2) bucket++;
    return bucket;
}

cudaDataType_t cuda_type(enum lvp_dtype dtype)
{
    return dtype == LVP_BF16 ? CUDA_R_16BF : dtype == LVP_F16 ? CUDA_R_16F : CUDA_R_32F;
}

// --- creation

struct sizes {
    int out, in;
    bool bias;
};

enum lvp_status check_parts(const struct lvp_linear_part *parts, int n_parts, sizes *sizes)
{
    int64_t total = 0;
    *sizes = {};
    for (int p = 0; p < n_parts; p++) {
        const struct lvp_tensor_view *weight = parts[p].weight, *bias = parts[p].bias;
        int64_t width = 1;
        bool fits = weight->n_dims >= 2;
        for (int i = 1; i < weight->n_dims && fits; i++)
            fits = !__builtin_mul_overflow(width, weight->shape[i], &width) && width <= INT_MAX;
        if (!fits || width < 1 || weight->shape[0] < 1)
            return lvp_fail(LVP_ERR_MODEL, "%s is not a matrix", weight->name);
        if (weight->dtype == LVP_DTYPE_OTHER || (bias != nullptr && bias->dtype == LVP_DTYPE_OTHER))
            return lvp_fail(LVP_ERR_MODEL, "%s is not of a float type", weight->name);
        if (p > 0 && width != sizes->in)
            return lvp_fail(LVP_ERR_MODEL, "%s reads %lld features, %s reads %d", weight->name,
                            static_cast<long long>(width), parts[0].weight->name, sizes->in);
        if (bias != nullptr && (bias->n_dims != 1 || bias->shape[0] != weight->shape[0]))
            return lvp_fail(LVP_ERR_MODEL, "%s does not fit %s", bias->name, weight->name);
        sizes->in = static_cast<int>(width);
        sizes->bias |= bias != nullptr;
        total += weight->shape[0];
        if (total > INT_MAX)
            return lvp_fail(LVP_ERR_MODEL, "%s and its companions are too large", parts[0].weight->name);
    }
    sizes->out = static_cast<int>(total);
    return LVP_OK;
}

// Uploads a tensor's elements rounded to `dtype`, and widened again where `widen`. The device copies one piece while
// the next is converted.
enum lvp_status upload_tensor(struct lvp_backend *backend, const struct lvp_tensor_view *tensor, enum lvp_dtype dtype,
                              bool widen, void *to)
{
    enum { PIECE = 1 << 18 }; // elements
    size_t n = tensor->n_bytes / lvp_dtype_size(tensor->dtype), size = widen ? sizeof(float) : lvp_dtype_size(dtype);
    if (tensor->dtype == dtype && (!widen || dtype == LVP_F32)) {
        backend->ops->upload(backend, to, tensor->data, tensor->n_bytes);
        lvp_safetensors_drop_pages(tensor);
        return LVP_OK;
    }
    float *wide = static_cast<float *>(malloc(PIECE * sizeof *wide));
    char *narrow = static_cast<char *>(malloc(PIECE * sizeof(float)));
    if (wide != nullptr && narrow != nullptr)
        for (size_t start = 0; start < n; start += PIECE) {
            size_t rest = n - start, most = PIECE, count = rest < most ? rest : most;
            for (size_t i = 0; i < count; i++) wide[i] = lvp_load_f32(tensor->data, tensor->dtype, start + i);
            lvp_narrow(wide, count, dtype, narrow);
            if (widen) lvp_widen(narrow, count, dtype, wide);
            backend->ops->upload(backend, static_cast<char *>(to) + start * size, widen ? (const void *)wide : narrow,
                                 count * size);
        }
    enum lvp_status status = wide == nullptr || narrow == nullptr
                                 ? lvp_fail(LVP_ERR_MEMORY, "out of memory while loading %s", tensor->name)
                                 : LVP_OK;
    free(wide);
    free(narrow);
    if (status == LVP_OK) lvp_safetensors_drop_pages(tensor);
    return status;
}

enum lvp_status create_descriptions(cuda_linear *linear)
{
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    cublasOperation_t transpose = CUBLAS_OP_T;
    cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    const void *bias_at = linear->bias;
    bool ok = cublasLtMatrixLayoutCreate(&linear->weight_layout, linear->type, static_cast<uint64_t>(linear->in),
                                         static_cast<uint64_t>(linear->out), linear->in) == CUBLAS_STATUS_SUCCESS;
    cublasLtMatmulDesc_t *both[] = {&linear->plain, &linear->with_bias};
    for (int i = 0; i < (linear->bias != nullptr ? 2 : 1); i++) {
        ok = ok && cublasLtMatmulDescCreate(both[i], compute, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
             cublasLtMatmulDescSetAttribute(*both[i], CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose) ==
                 CUBLAS_STATUS_SUCCESS;
        if (i == 1)
            ok = ok &&
                 cublasLtMatmulDescSetAttribute(*both[i], CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias) ==
                     CUBLAS_STATUS_SUCCESS &&
                 cublasLtMatmulDescSetAttribute(*both[i], CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias_at,
                                                sizeof bias_at) == CUBLAS_STATUS_SUCCESS;
    }
    return ok ? LVP_OK : lvp_fail(LVP_ERR_INTERNAL, "cuBLASLt refused to describe a linear layer");
}

enum lvp_status fill(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts, bool bias,
                     cuda_linear *linear)
{
    size_t size = lvp_dtype_size(backend->dtype), in = static_cast<size_t>(linear->in), row = 0;
    void *bias_memory = nullptr;
    LVP_TRY(backend->ops->alloc(backend, static_cast<size_t>(linear->out) * in * size, &linear->weight));
    if (bias) LVP_TRY(backend->ops->alloc(backend, static_cast<size_t>(linear->out) * sizeof(float), &bias_memory));
    linear->bias = static_cast<float *>(bias_memory); // zeros where a part has none
    for (int p = 0; p < n_parts; p++) {
        char *to = static_cast<char *>(linear->weight) + row * in * size;
        LVP_TRY(upload_tensor(backend, parts[p].weight, backend->dtype, false, to));
        if (parts[p].bias != nullptr)
            LVP_TRY(upload_tensor(backend, parts[p].bias, backend->dtype, true, linear->bias + row));
        row += static_cast<size_t>(parts[p].weight->shape[0]);
    }
    return create_descriptions(linear);
}

// --- running

template <class T> __global__ void narrow_kernel(const float *x, size_t n, T *y)
{
    size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) y[i] = lvp_cast<T>(x[i]);
}

struct finish {
    const float *bias, *add; // or NULL
    enum lvp_activation activation;
    int width;
    float *y;
};

// y = round(add + act(y + bias)): what the product has not done.
template <class T> __global__ void finish_kernel(finish f)
{
    int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
    if (i >= f.width) return;
    size_t at = static_cast<size_t>(blockIdx.x) * static_cast<size_t>(f.width) + static_cast<size_t>(i);
    float value = f.y[at] + (f.bias == nullptr ? 0.0f : f.bias[i]);
    value = lvp_activate(f.activation, value);
    if (f.add != nullptr) value += f.add[at];
    f.y[at] = lvp_rounded<T>(value);
}

struct product {
    const void *x;
    const float *add; // or NULL: nothing is added
    float *y;
    int n_rows;
};

// The layouts of x^T [in, n_rows] and y^T [out, n_rows], column-major as cuBLAS counts.
struct layouts {
    cublasLtMatrixLayout_t x, y;
    bool ok;
    layouts(const cuda_linear *linear, int n_rows) : x(nullptr), y(nullptr)
    {
        uint64_t rows = static_cast<uint64_t>(n_rows);
        ok = cublasLtMatrixLayoutCreate(&x, linear->type, static_cast<uint64_t>(linear->in), rows, linear->in) ==
                 CUBLAS_STATUS_SUCCESS &&
             cublasLtMatrixLayoutCreate(&y, CUDA_R_32F, static_cast<uint64_t>(linear->out), rows, linear->out) ==
                 CUBLAS_STATUS_SUCCESS;
    }
    ~layouts()
    {
        if (x != nullptr) (void)cublasLtMatrixLayoutDestroy(x);
        if (y != nullptr) (void)cublasLtMatrixLayoutDestroy(y);
    }
    layouts(const layouts &) = delete;
    layouts &operator=(const layouts &) = delete;
};

bool choose(lvp_cuda *cuda, cuda_linear *linear, cublasLtMatmulDesc_t description, const layouts &l, algorithm *choice)
{
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t result = {};
    size_t space = LVP_CUDA_BLAS_SPACE;
    int n = 0;
    bool ok = cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space,
                                                   sizeof space) == CUBLAS_STATUS_SUCCESS &&
              cublasLtMatmulAlgoGetHeuristic(cuda->cublas, description, linear->weight_layout, l.x, l.y, l.y,
                                             preference, 1, &result, &n) == CUBLAS_STATUS_SUCCESS &&
              n > 0;
    if (preference != nullptr) (void)cublasLtMatmulPreferenceDestroy(preference);
    if (ok) *choice = {true, result.algo};
    return ok;
}

// y = x W^T [+ bias] [+ add]. An algorithm that was chosen for another number of rows of the same bucket is tried
// first.
bool multiply(lvp_cuda *cuda, cuda_linear *linear, const product &p, bool bias)
{
    layouts l(linear, p.n_rows);
    cublasLtMatmulDesc_t description = bias ? linear->with_bias : linear->plain;
    algorithm *choice = &linear->algorithms[p.add != nullptr][bucket_of(p.n_rows)];
    float one = 1.0f, beta = p.add != nullptr ? 1.0f : 0.0f;
    const void *add = p.add != nullptr ? p.add : p.y;
    for (int attempt = 0; l.ok && attempt < 2; attempt++) {
        if ((!choice->known || attempt > 0) && !choose(cuda, linear, description, l, choice)) return false;
        if (cublasLtMatmul(cuda->cublas, description, &one, linear->weight, linear->weight_layout, p.x, l.x, &beta, add,
                           l.y, p.y, l.y, &choice->algo, cuda->cublas_space, LVP_CUDA_BLAS_SPACE,
                           cuda->stream) == CUBLAS_STATUS_SUCCESS)
            return true;
    }
    return false;
}

} // namespace

enum lvp_status lvp_cuda_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                       enum lvp_dtype weights, struct lvp_linear **result)
{
    sizes sizes;
    *result = nullptr;
    if (weights != backend->dtype)
        return lvp_fail(LVP_ERR_USAGE, "--weights %s runs on the CPU only", lvp_dtype_name(weights));
    LVP_TRY(check_parts(parts, n_parts, &sizes));
    cuda_linear *linear = static_cast<cuda_linear *>(calloc(1, sizeof *linear));
    if (linear == nullptr) return lvp_fail(LVP_ERR_MEMORY, "out of memory for %s", parts[0].weight->name);
    linear->out = sizes.out;
    linear->in = sizes.in;
    linear->type = cuda_type(backend->dtype);
    enum lvp_status status = lvp_cuda_reserve_narrow(lvp_cuda_of(backend), linear->in);
    if (status == LVP_OK) status = fill(backend, parts, n_parts, sizes.bias, linear);
    if (status == LVP_OK)
        *result = reinterpret_cast<struct lvp_linear *>(linear);
    else
        lvp_cuda_linear_destroy(backend, reinterpret_cast<struct lvp_linear *>(linear));
    return status;
}

void lvp_cuda_linear_destroy(struct lvp_backend *backend, struct lvp_linear *opaque)
{
    cuda_linear *linear = linear_of(opaque);
    if (linear == nullptr) return;
    backend->ops->free(backend, linear->weight);
    backend->ops->free(backend, linear->bias);
    if (linear->weight_layout != nullptr) (void)cublasLtMatrixLayoutDestroy(linear->weight_layout);
    if (linear->plain != nullptr) (void)cublasLtMatmulDescDestroy(linear->plain);
    if (linear->with_bias != nullptr) (void)cublasLtMatmulDescDestroy(linear->with_bias);
    free(linear);
}

void lvp_cuda_linear(struct lvp_backend *backend, const struct lvp_linear *opaque, const float *x, int n_rows,
                     struct lvp_epilogue epilogue, float *y)
{
    enum { THREADS = 256 };
    lvp_cuda *cuda = lvp_cuda_of(backend);
    cuda_linear *linear = linear_of(opaque);
    if (n_rows == 0) return;
    size_t n = static_cast<size_t>(n_rows) * static_cast<size_t>(linear->in);
    bool rounds = epilogue.round && backend->dtype != LVP_F32;
    bool sum_only = epilogue.activation == LVP_ACT_NONE; // then add and bias belong to the product
    product p = {x, sum_only ? epilogue.add : nullptr, y, n_rows};
    if (backend->dtype != LVP_F32) {
        lvp_with_type(backend->dtype, [&](auto zero) {
            using T = decltype(zero);
            lvp_launch(narrow_kernel<T>, dim3(static_cast<unsigned>((n + THREADS - 1) / THREADS)), dim3(THREADS), 0,
                       cuda->stream, x, n, static_cast<T *>(cuda->narrow));
        });
        p.x = cuda->narrow;
    }
    bool *apart = &linear->bias_apart[p.add != nullptr][bucket_of(n_rows)];
    bool bias_inside = sum_only && linear->bias != nullptr && !*apart;
    bool done = multiply(cuda, linear, p, bias_inside);
    if (!done && bias_inside) {
        *apart = true;
        bias_inside = false;
        done = multiply(cuda, linear, p, false);
    }
    if (!done) lvp_cuda_note(cuda, cudaErrorNotSupported, "a product of cuBLASLt");
    const float *bias = bias_inside ? nullptr : linear->bias;
    if (sum_only && !rounds && bias == nullptr) return;
    finish f = {bias, sum_only ? nullptr : epilogue.add, epilogue.activation, linear->out, y};
    dim3 grid(static_cast<unsigned>(n_rows), static_cast<unsigned>((linear->out + THREADS - 1) / THREADS));
    lvp_with_type(rounds ? backend->dtype : LVP_F32, [&](auto zero) {
        lvp_launch(finish_kernel<decltype(zero)>, grid, dim3(THREADS), 0, cuda->stream, f);
    });
}
