// What the tests of the operations share: every kernel set this CPU has, the GPU where there is one, random values,
// comparison.
#ifndef LVP_TESTS_OPS_FIXTURE_H
#define LVP_TESTS_OPS_FIXTURE_H

#include "tests/ops/hosted.h"
#include "worker/device.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const kernel_sets[] = {"portable", "avx2", "avx512", "avx512bf16"};
static const enum lvp_dtype dtypes[] = {LVP_F32, LVP_BF16, LVP_F16};
static const struct lvp_backend_limits test_limits = {
    .max_rows = 3072, .max_width = 2048, .max_kv_len = 3072, .max_vocab = 4096};

// NULL where this CPU lacks the kernel set.
static inline struct lvp_backend *open_fast(const char *kernel_set, enum lvp_dtype dtype, int threads)
{
    struct lvp_backend *backend = NULL;
    enum lvp_status status = lvp_cpu_backend_open(kernel_set, dtype, threads, &test_limits, &backend);
    if (status == LVP_ERR_USAGE) {
        lvp_error_clear();
        return NULL;
    }
    assert_int_equal(status, LVP_OK);
    return backend;
}

// LVP_TESTS_GPU_ONLY: the CPU's kernels have been tested elsewhere.
static inline bool gpu_only(void)
{
    return getenv("LVP_TESTS_GPU_ONLY") != NULL;
}

// Runs `test` with the reference and each fast backend of one thread.
static inline void for_each_backend(void (*test)(struct lvp_backend *fast, struct lvp_backend *ref))
{
    if (gpu_only()) return;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        struct lvp_backend *ref = NULL;
        assert_int_equal(lvp_ref_backend_open(dtypes[d], &ref), LVP_OK);
        for (size_t k = 0; k < sizeof kernel_sets / sizeof *kernel_sets; k++) {
            struct lvp_backend *fast = open_fast(kernel_sets[k], dtypes[d], 1);
            if (fast == NULL) continue;
            test(fast, ref);
            fast->ops->close(fast);
        }
        ref->ops->close(ref);
    }
}

// NULL where there is no GPU.
static inline struct lvp_backend *open_gpu(enum lvp_dtype dtype)
{
    struct lvp_backend *backend = NULL;
    if (lvp_gpus_find()->n == 0) return NULL;
    assert_int_equal(lvp_backend_open(0, NULL, dtype, 1, &test_limits, &backend), LVP_OK);
    return hosted_open(backend);
}

// Runs `test` with the reference and each kernel set, and with the GPU.
static inline void for_each_device(void (*test)(struct lvp_backend *fast, struct lvp_backend *ref))
{
    for_each_backend(test);
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        struct lvp_backend *ref = NULL, *gpu = open_gpu(dtypes[d]);
        if (gpu == NULL) continue;
        assert_int_equal(lvp_ref_backend_open(dtypes[d], &ref), LVP_OK);
        test(gpu, ref);
        gpu->ops->close(gpu);
        ref->ops->close(ref);
    }
}

static inline bool is_gpu(const struct lvp_backend *backend)
{
    return strcmp(backend->kernel_set, "cuda") == 0;
}

// Runs `test` with a one-threaded backend and others of the same kernel set with 2, 3 and 4 threads.
static inline void for_each_thread_count(void (*test)(struct lvp_backend *one, struct lvp_backend *many))
{
    if (gpu_only()) return;
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) {
        for (size_t k = 0; k < sizeof kernel_sets / sizeof *kernel_sets; k++) {
            struct lvp_backend *one = open_fast(kernel_sets[k], dtypes[d], 1);
            for (int threads = 2; one != NULL && threads <= 4; threads++) {
                struct lvp_backend *many = open_fast(kernel_sets[k], dtypes[d], threads);
                test(one, many);
                many->ops->close(many);
            }
            if (one != NULL) one->ops->close(one);
        }
    }
}

static uint64_t random_state = 0x9E3779B97F4A7C15U;

// xorshift64* (Vigna, arXiv 1402.6246)
static inline uint32_t random_bits(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 0x2545F4914F6CDD1DU) >> 32);
}

static inline int random_below(int n)
{
    return (int)(random_bits() % (uint32_t)n);
}

// Uniform in (-1, 1)
static inline float random_float(void)
{
    return (float)((double)random_bits() * 0x1p-31 - 1.0);
}

static inline void *make(size_t n, size_t size)
{
    if (n > SIZE_MAX / 64) abort(); // tells the compiler that no count is negative
    void *memory = calloc(n + 1, size);
    assert_non_null(memory);
    return memory;
}

static inline float *random_floats(size_t n)
{
    float *x = make(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_float();
    return x;
}

// |got - want| <= tolerance * max(1, |want|), and NaN only where NaN is wanted.
static inline void check_close(const char *what, const float *got, const float *want, size_t n, double tolerance)
{
    for (size_t i = 0; i < n; i++) {
        double bound = tolerance * fmax(1.0, fabs((double)want[i]));
        if ((isnan(got[i]) && isnan(want[i])) || got[i] == want[i]) continue; // infinities are equal
        if (!(fabs((double)got[i] - (double)want[i]) <= bound)) {
            fail_msg("%s: element %zu is %.9g, not %.9g +- %.3g", what, i, (double)got[i], (double)want[i], bound);
        }
    }
}

// The promise: not close, equal.
static inline void check_bits(const char *what, const void *got, const void *want, size_t n)
{
    const uint32_t *a = got, *b = want;
    for (size_t i = 0; i < n; i++) {
        if (a[i] != b[i]) fail_msg("%s: element %zu has bits %08x, not %08x", what, i, a[i], b[i]);
    }
}

// One step of bf16 is 2^-7 of the value at most, of f16 2^-10; where the operation rounds, a last-place f32 difference
// can cost one step.
static inline double rounding_step(const struct lvp_backend *backend, bool rounds)
{
    return !rounds || backend->dtype == LVP_F32 ? 0.0 : backend->dtype == LVP_BF16 ? 0x1p-7 : 0x1p-10;
}

#endif
