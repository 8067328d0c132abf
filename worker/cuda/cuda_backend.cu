// Opening and closing the CUDA backend, memory, and copies between host and device.
#include "worker/cuda/plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace
{

enum { STAGE_BYTES = 8 << 20, PARTIAL_FLOATS = 16 << 20 };

enum lvp_status failed(cudaError_t error, const char *what)
{
    (void)cudaGetLastError(); // so that it is not taken for another call's
    return lvp_fail(error == cudaErrorMemoryAllocation ? LVP_ERR_MEMORY : LVP_ERR_LOST, "%s: %s", what,
                    cudaGetErrorString(error));
}

// --- operations

enum lvp_status cuda_alloc(struct lvp_backend *backend, size_t n_bytes, void **memory)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    lvp_cuda_bind(backend);
    *memory = nullptr;
    cudaError_t error = cudaMalloc(memory, n_bytes == 0 ? 1 : n_bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, all_bytes = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&free_bytes, &all_bytes);
        return lvp_fail(LVP_ERR_MEMORY, "GPU %d is out of memory: %zu MiB more than the %zu of %zu MiB that are free",
                        cuda->device, n_bytes >> 20, free_bytes >> 20, all_bytes >> 20);
    }
    if (error == cudaSuccess) error = cudaMemsetAsync(*memory, 0, n_bytes, cuda->stream);
    if (error == cudaSuccess) return LVP_OK;
    (void)cudaFree(*memory);
    *memory = nullptr;
    return failed(error, "GPU memory");
}

void cuda_free(struct lvp_backend *backend, void *memory)
{
    lvp_cuda_bind(backend);
    (void)cudaFree(memory); // waits for the device
}

// The source may change at once: it passes through pinned memory of our own.
void cuda_upload(struct lvp_backend *backend, void *to, const void *host, size_t n_bytes)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    for (size_t start = 0; start < n_bytes; start += STAGE_BYTES) {
        lvp_cuda_staging *stage = &cuda->staging[cuda->next_staging];
        size_t rest = n_bytes - start, most = STAGE_BYTES, n = rest < most ? rest : most;
        cuda->next_staging = (cuda->next_staging + 1) % LVP_CUDA_STAGES;
        lvp_cuda_note(cuda, cudaEventSynchronize(stage->done), "upload");
        memcpy(stage->memory, static_cast<const char *>(host) + start, n);
        lvp_cuda_note(
            cuda,
            cudaMemcpyAsync(static_cast<char *>(to) + start, stage->memory, n, cudaMemcpyHostToDevice, cuda->stream),
            "upload");
        lvp_cuda_note(cuda, cudaEventRecord(stage->done, cuda->stream), "upload");
    }
}

void cuda_download(struct lvp_backend *backend, void *host, const void *from, size_t n_bytes)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    if (n_bytes == 0) return;
    lvp_cuda_note(cuda, cudaMemcpyAsync(host, from, n_bytes, cudaMemcpyDeviceToHost, cuda->stream), "download");
    lvp_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "download");
}

enum lvp_status cuda_sync(struct lvp_backend *backend)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    lvp_cuda_note(cuda, cudaGetLastError(), "a launch");
    lvp_cuda_note(cuda, cudaStreamSynchronize(cuda->stream), "the device");
    if (cuda->error == cudaSuccess) return LVP_OK;
    return lvp_fail(LVP_ERR_LOST, "GPU %d failed at %s: %s", cuda->device, cuda->error_at,
                    cudaGetErrorString(cuda->error));
}

void cuda_close(struct lvp_backend *backend)
{
    lvp_cuda *cuda = lvp_cuda_of(backend);
    lvp_cuda_bind(backend);
    if (cuda->stream != nullptr) (void)cudaStreamSynchronize(cuda->stream);
    for (lvp_cuda_staging &stage : cuda->staging) {
        if (stage.done != nullptr) (void)cudaEventDestroy(stage.done);
        (void)cudaFreeHost(stage.memory);
    }
    lvp_cuda_forget(cuda);
    void *memory[] = {cuda->cublas_space, cuda->narrow, cuda->partial};
    for (void *block : memory) (void)cudaFree(block);
    if (cuda->cublas != nullptr) (void)cublasLtDestroy(cuda->cublas);
    if (cuda->stream != nullptr) (void)cudaStreamDestroy(cuda->stream);
    free(cuda);
}

// Seconds that `n` runs of f take.
template <class F> double seconds_of(lvp_cuda *cuda, int n, F f)
{
    cudaEvent_t start = nullptr, end = nullptr;
    float milliseconds = 0;
    f(); // warm
    lvp_cuda_note(cuda, cudaEventCreate(&start), "timing");
    lvp_cuda_note(cuda, cudaEventCreate(&end), "timing");
    lvp_cuda_note(cuda, cudaEventRecord(start, cuda->stream), "timing");
    for (int i = 0; i < n; i++) f();
    lvp_cuda_note(cuda, cudaEventRecord(end, cuda->stream), "timing");
    lvp_cuda_note(cuda, cudaEventSynchronize(end), "timing");
    lvp_cuda_note(cuda, cudaEventElapsedTime(&milliseconds, start, end), "timing");
    (void)cudaEventDestroy(start);
    (void)cudaEventDestroy(end);
    return static_cast<double>(milliseconds) * 1e-3 / n;
}

// cuBLAS's rate on a square layer, and the traffic of a copy on the device.
enum lvp_status cuda_roof(struct lvp_backend *backend, struct lvp_roof *roof)
{
    enum { WIDTH = 4096, RUNS = 20 };
    lvp_cuda *cuda = lvp_cuda_of(backend);
    int rows = cuda->limits.max_rows < WIDTH ? cuda->limits.max_rows : WIDTH;
    size_t square = static_cast<size_t>(WIDTH) * WIDTH;
    lvp_cuda_bind(backend); // the communication thread asks
    float *zeros = static_cast<float *>(calloc(square, sizeof *zeros));
    struct lvp_tensor_view weight = {};
    weight.name = "roof";
    weight.dtype = LVP_F32;
    weight.n_dims = 2;
    weight.shape[0] = weight.shape[1] = WIDTH;
    weight.data = zeros;
    weight.n_bytes = square * sizeof *zeros;
    struct lvp_linear_part part = {&weight, nullptr};
    struct lvp_linear *linear = nullptr;
    void *x = nullptr, *y = nullptr;
    enum lvp_status status = zeros == nullptr ? lvp_fail(LVP_ERR_MEMORY, "out of memory for measuring") : LVP_OK;
    if (status == LVP_OK) status = lvp_cuda_linear_create(backend, &part, 1, backend->dtype, &linear);
    if (status == LVP_OK) status = cuda_alloc(backend, square * sizeof(float), &x);
    if (status == LVP_OK) status = cuda_alloc(backend, square * sizeof(float), &y);
    if (status == LVP_OK) {
        struct lvp_epilogue plain = {};
        double seconds = seconds_of(cuda, RUNS, [&] {
            lvp_cuda_linear(backend, linear, static_cast<float *>(x), rows, plain, static_cast<float *>(y));
        });
        roof->flops = 2.0 * rows * static_cast<double>(square) / seconds;
        seconds = seconds_of(cuda, RUNS, [&] {
            lvp_cuda_note(cuda, cudaMemcpyAsync(y, x, square * sizeof(float), cudaMemcpyDeviceToDevice, cuda->stream),
                          "timing");
        });
        roof->read_bytes = 2.0 * static_cast<double>(square * sizeof(float)) / seconds;
        status = cuda_sync(backend);
    }
    cuda_free(backend, x);
    cuda_free(backend, y);
    lvp_cuda_linear_destroy(backend, linear);
    free(zeros);
    return status;
}

const struct lvp_backend_ops cuda_ops = {
    /* close */ cuda_close,
    /* alloc */ cuda_alloc,
    /* free */ cuda_free,
    /* upload */ cuda_upload,
    /* download */ cuda_download,
    /* sync */ cuda_sync,
    /* linear_create */ lvp_cuda_linear_create,
    /* linear_destroy */ lvp_cuda_linear_destroy,
    /* linear */ lvp_cuda_linear,
    /* layer_norm */ lvp_cuda_layer_norm,
    /* rms_norm */ lvp_cuda_rms_norm,
    /* glu */ lvp_cuda_glu,
    /* unfold_patches */ lvp_cuda_unfold_patches,
    /* vit_embed */ lvp_cuda_vit_embed,
    /* embed */ lvp_cuda_embed,
    /* copy_rows */ lvp_cuda_copy_rows,
    /* rope_kv_write */ lvp_cuda_rope_kv_write,
    /* paged_attention */ lvp_cuda_paged_attention,
    /* dense_attention */ lvp_cuda_dense_attention,
    /* last_attention */ lvp_cuda_last_attention,
    /* soft_nms */ lvp_cuda_soft_nms,
    /* select_rows */ lvp_cuda_select_rows,
    /* sample */ lvp_cuda_sample,
    /* payload_alloc */ lvp_cuda_payload_alloc,
    /* payload_free */ lvp_cuda_payload_free,
    /* load */ lvp_cuda_load,
    /* store */ lvp_cuda_store,
    /* begin */ lvp_cuda_begin,
    /* end */ lvp_cuda_end,
    /* roof */ cuda_roof,
    /* max_head_dim */ 768, // in the shared memory that every GPU from sm_80 on gives a block (row_attention.cu)
};

enum lvp_status create(lvp_cuda *cuda)
{
    cudaError_t error = cudaSetDevice(cuda->device);
    if (error == cudaSuccess) error = lvp_cuda_has_code();
    if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    for (lvp_cuda_staging &stage : cuda->staging) {
        if (error == cudaSuccess) error = cudaHostAlloc(&stage.memory, STAGE_BYTES, cudaHostAllocDefault);
        if (error == cudaSuccess) error = cudaEventCreateWithFlags(&stage.done, cudaEventDisableTiming);
    }
    if (error == cudaSuccess) error = cudaMalloc(&cuda->cublas_space, LVP_CUDA_BLAS_SPACE);
    if (error == cudaSuccess)
        error = cudaMalloc(reinterpret_cast<void **>(&cuda->partial), PARTIAL_FLOATS * sizeof(float));
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return lvp_fail(error == cudaErrorMemoryAllocation ? LVP_ERR_MEMORY : LVP_ERR_USAGE,
                        "GPU %d cannot be opened: %s", cuda->device, cudaGetErrorString(error));
    }
    cuda->partial_floats = PARTIAL_FLOATS;
    cublasStatus_t started = cublasLtCreate(&cuda->cublas);
    if (started == CUBLAS_STATUS_SUCCESS) return LVP_OK;
    return lvp_fail(started == CUBLAS_STATUS_ALLOC_FAILED ? LVP_ERR_MEMORY : LVP_ERR_USAGE,
                    "GPU %d cannot be opened: cuBLAS does not start (status %d)", cuda->device,
                    static_cast<int>(started));
}

enum lvp_status open_backend(int device, enum lvp_dtype dtype, const struct lvp_backend_limits *limits,
                             struct lvp_backend **backend)
{
    *backend = nullptr;
    lvp_cuda *cuda = static_cast<lvp_cuda *>(calloc(1, sizeof *cuda));
    if (cuda == nullptr) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the CUDA backend");
    cuda->base = {&cuda_ops, dtype, dtype, "cuda", 1};
    cuda->device = device;
    cuda->limits = *limits;
    enum lvp_status status = create(cuda);
    if (status == LVP_OK)
        *backend = &cuda->base;
    else
        cuda_close(&cuda->base);
    return status;
}

// Architectures that this module was compiled for, as nvcc counts them: 800 is sm_80.
#ifdef __CUDA_ARCH_LIST__
constexpr int architectures[] = {__CUDA_ARCH_LIST__};
#else
constexpr int architectures[] = {800};
#endif

// Asks for no more than the device's description, which makes no context on it: ranks look at their neighbours' GPUs
// too. Code for a newer device than any of `architectures` may be there or not, which open_backend finds out.
bool too_old(const cudaDeviceProp &properties)
{
    return properties.major * 100 + properties.minor * 10 < architectures[0];
}

void describe(const cudaDeviceProp &first, const cudaDeviceProp &left_out, int n_left_out, int driver,
              struct lvp_cuda_devices *devices)
{
    char rest[128] = "";
    if (n_left_out > 0)
        (void)snprintf(rest, sizeof rest, "%d x %.60s (sm_%d%d) left out: older than sm_%d", n_left_out, left_out.name,
                       left_out.major, left_out.minor, architectures[0] / 10);
    if (devices->n > 0)
        (void)snprintf(devices->text, sizeof devices->text, "%d x %.60s (sm_%d%d), driver for CUDA %d.%d%s%s",
                       devices->n, first.name, first.major, first.minor, driver / 1000, driver % 1000 / 10,
                       n_left_out > 0 ? "; " : "", rest);
    else
        (void)snprintf(devices->text, sizeof devices->text, "%s", n_left_out > 0 ? rest : "no device tells what it is");
}

void probe(struct lvp_cuda_devices *devices)
{
    int count = 0, n_left_out = 0, driver = 0, runtime = 0;
    *devices = {};
    cudaError_t error = cudaGetDeviceCount(&count); // whatever the error, there is no device then
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error != cudaSuccess || count == 0) {
        (void)snprintf(devices->text, sizeof devices->text, "driver %d.%d for CUDA %d.%d: %s", driver / 1000,
                       driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
                       error != cudaSuccess ? cudaGetErrorString(error) : "no device");
        return;
    }
    cudaDeviceProp properties, first = {}, left_out = {};
    for (int d = 0; d < count && devices->n < LVP_CUDA_MAX_DEVICES; d++) {
        if (cudaGetDeviceProperties(&properties, d) != cudaSuccess) continue;
        if (too_old(properties)) {
            left_out = properties;
            n_left_out++;
            continue;
        }
        int i = devices->n++;
        if (i == 0) first = properties;
        devices->numbers[i] = d;
        devices->memory_bytes[i] = properties.totalGlobalMem;
        if (cudaDeviceGetPCIBusId(devices->names[i], sizeof devices->names[i], d) != cudaSuccess)
            (void)snprintf(devices->names[i], sizeof devices->names[i], "%d", d);
    }
    (void)cudaGetLastError();
    describe(first, left_out, n_left_out, driver, devices);
}

} // namespace

enum lvp_status lvp_cuda_reserve_narrow(struct lvp_cuda *cuda, int width)
{
    if (cuda->base.dtype == LVP_F32 || width <= cuda->narrow_width) return LVP_OK;
    (void)cudaFree(cuda->narrow);
    cuda->narrow = nullptr;
    cuda->narrow_width = 0;
    cudaError_t error = cudaMalloc(&cuda->narrow, static_cast<size_t>(cuda->limits.max_rows) *
                                                      static_cast<size_t>(width) * lvp_dtype_size(cuda->base.dtype));
    if (error != cudaSuccess) return failed(error, "work space of linear layers");
    cuda->narrow_width = width;
    return LVP_OK;
}

extern "C" __attribute__((visibility("default"))) const struct lvp_cuda_plugin lvp_cuda_plugin = {
    LVP_CUDA_SIZES, LVP_VERSION, probe, open_backend, lvp_nccl_version, lvp_transport_nccl_open,
};
