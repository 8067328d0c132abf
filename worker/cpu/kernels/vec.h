// One vector type for every kernel source: vf holds VF_LANES floats (16 with AVX-512, 8 with AVX2, else 4), vi the
// 32-bit integers of the same width. Built on GCC's vector extensions, so + - * / and comparisons work on the types
// themselves (a comparison gives a vi of 0 and -1); what they lack is here.
//
// Contraction is off in every build: only vf_fma fuses, and only where the ISA has it. The portable set multiplies and
// adds, so its bits differ from the others', as those of every kernel set may.
#ifndef LVP_WORKER_CPU_KERNELS_VEC_H
#define LVP_WORKER_CPU_KERNELS_VEC_H

#include "common/dtype.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { VF_LANES = 16 };
#elif defined(__AVX2__)
enum { VF_LANES = 8 };
#else
enum { VF_LANES = 4 };
#endif

// LVP_KERNEL(lvp_softmax) is lvp_softmax_avx2 in the AVX2 build: what every kernel that crosses a file is called.
#define LVP_KERNEL_JOIN_(name, isa) name##_##isa
#define LVP_KERNEL_JOIN(name, isa)  LVP_KERNEL_JOIN_(name, isa)
#define LVP_KERNEL(name)            LVP_KERNEL_JOIN(name, LVP_KERNEL_ISA)

typedef float vf __attribute__((vector_size(VF_LANES * 4)));
typedef int32_t vi __attribute__((vector_size(VF_LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(VF_LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(VF_LANES * 2))); // bf16 or f16 as stored

static inline vf vf_zero(void)
{
    return (vf){0};
}

static inline vf vf_set1(float x)
{
#if defined(__AVX512F__)
    return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (vf)_mm256_set1_ps(x);
#else
    return (vf){x, x, x, x};
#endif
}

static inline vi vi_set1(int32_t x)
{
    return (vi){0} + x;
}

static inline vf vf_load(const float *from)
{
    vf x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void vf_store(float *to, vf x)
{
    memcpy(to, &x, sizeof x);
}

// The first n lanes (0 <= n <= VF_LANES); the others are 0 and their memory is not touched.
static inline vf vf_load_partial(const float *from, int n)
{
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps((__mmask16)((1U << n) - 1U), from);
#elif defined(__AVX2__)
    static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return (vf)_mm256_maskload_ps(from, _mm256_loadu_si256((const __m256i *)(const void *)(mask + 8 - n)));
#else
    vf x = vf_zero();
    for (int i = 0; i < n; i++) x[i] = from[i];
    return x;
#endif
}

static inline void vf_store_partial(float *to, vf x, int n)
{
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to, (__mmask16)((1U << n) - 1U), (__m512)x);
#elif defined(__AVX2__)
    static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    _mm256_maskstore_ps(to, _mm256_loadu_si256((const __m256i *)(const void *)(mask + 8 - n)), (__m256)x);
#else
    for (int i = 0; i < n; i++) to[i] = x[i];
#endif
}

// The same for a loop over n elements in steps of VF_LANES: all lanes while n >= VF_LANES.
static inline vf vf_load_n(const float *from, int n)
{
    return n >= VF_LANES ? vf_load(from) : vf_load_partial(from, n);
}

static inline void vf_store_n(float *to, vf x, int n)
{
    if (n >= VF_LANES) {
        vf_store(to, x);
    } else {
        vf_store_partial(to, x, n);
    }
}

// a * b + c
static inline vf vf_fma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

// mask lanes are 0 or -1.
static inline vf vf_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

// a > b ? a : b, so b where one of them is NaN: what maxps does.
static inline vf vf_max(vf a, vf b)
{
    return vf_select(a > b, a, b);
}
static inline vf vf_min(vf a, vf b)
{
    return vf_select(a < b, a, b);
}

// Lanes 0, 1, 2, ... as integers.
static inline vi vi_iota(void)
{
#if defined(__AVX512F__)
    return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
    return (vi){0, 1, 2, 3, 4, 5, 6, 7};
#else
    return (vi){0, 1, 2, 3};
#endif
}

// Sum of the lanes, always as the same tree: lane i + lane i + half, and so on.
static inline float vf_sum(vf x)
{
    float lane[VF_LANES];
    vf_store(lane, x);
    for (int half = VF_LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    }
    return lane[0];
}

// Largest lane; NaN lanes do not count unless all lanes are NaN.
static inline float vf_largest(vf x)
{
    float largest = x[0];
    for (int i = 1; i < VF_LANES; i++) largest = x[i] > largest || isnan(largest) ? x[i] : largest;
    return largest;
}

// 16-bit types. `dtype` is a constant where these are inlined, or the same for a whole row.
static inline vf vf_from_half(vh x, enum lvp_dtype dtype)
{
    if (dtype == LVP_BF16) return (vf)(__builtin_convertvector(x, vu) << 16);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)x);
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps((__m128i)x);
#else
    vf wide;
    for (int i = 0; i < VF_LANES; i++) wide[i] = lvp_f16_to_f32(x[i]);
    return wide;
#endif
}

// lvp_to_half of each lane. bf16 in integers in every ISA: vcvtneps2bf16 flushes subnormals, and one rule keeps the
// kernel sets' stored values alike.
static inline vh vf_to_half(vf x, enum lvp_dtype dtype)
{
    if (dtype == LVP_BF16) {
        vu bits = (vu)x;
        vu rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
        return __builtin_convertvector((vu)vf_select(x == x, (vf)rounded, (vf)(bits | 0x400000U)) >> 16, vh);
    }
#if defined(__AVX512F__)
    return (vh)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (vh)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
    vh half;
    for (int i = 0; i < VF_LANES; i++) half[i] = lvp_f32_to_f16(x[i]);
    return half;
#endif
}

static inline vf vf_round(vf x, enum lvp_dtype dtype)
{
    return dtype == LVP_F32 ? x : vf_from_half(vf_to_half(x, dtype), dtype);
}

// The first n lanes, as vf_load_n and vf_store_n.
static inline vf vf_load_half_n(const uint16_t *from, int n, enum lvp_dtype dtype)
{
    vh x = {0};
    if (n >= VF_LANES)
        memcpy(&x, from, sizeof x);
    else
        for (int i = 0; i < n; i++) x[i] = from[i];
    return vf_from_half(x, dtype);
}

static inline void vf_store_half_n(uint16_t *to, vf x, int n, enum lvp_dtype dtype)
{
    vh half = vf_to_half(x, dtype);
    if (n >= VF_LANES)
        memcpy(to, &half, sizeof half);
    else
        for (int i = 0; i < n; i++) to[i] = half[i];
}

#endif
