// What a core can do at best, for benchmarks: multiply-adds on registers only, and reading memory in order.
#include "worker/cpu/kernels/table.h"

#define CHAINS 12 // independent chains: enough to cover the latency of two FMA units

enum { LINE = 16, AHEAD = 16 * LINE }; // floats: a cache line, and how far ahead lines are asked for

// Makes a value opaque, so that the loop below is not folded.
static vf hidden(vf x)
{
    __asm__ volatile("" : "+x"(x));
    return x;
}

double LVP_KERNEL(lvp_fma_loop)(long rounds, float *result)
{
    vf chain[CHAINS], factor = hidden(vf_set1(0.999f)), term = hidden(vf_set1(0.001f));
    for (int i = 0; i < CHAINS; i++) chain[i] = vf_set1((float)i);
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) chain[i] = vf_fma(chain[i], factor, term);
    }
    for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
    *result = vf_sum(chain[0]);
    return 2.0 * CHAINS * VF_LANES * (double)rounds;
}

double LVP_KERNEL(lvp_dot_loop)(long rounds, float *result)
{
#if defined(__AVX512BF16__)
    vf chain[CHAINS], factor = hidden(vf_set1(0.999f)), term = hidden(vf_set1(0.001f));
    for (int i = 0; i < CHAINS; i++) chain[i] = vf_set1((float)i);
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            chain[i] = (vf)_mm512_dpbf16_ps((__m512)chain[i], (__m512bh)factor, (__m512bh)term);
    }
    for (int i = 1; i < CHAINS; i++) chain[0] += chain[i];
    *result = vf_sum(chain[0]);
    return 4.0 * CHAINS * VF_LANES * (double)rounds;
#else
    return LVP_KERNEL(lvp_fma_loop)(rounds, result); // bf16 is widened and multiplied in f32
#endif
}

// As kernels read weights: lines are asked for before they are needed, by so many walks side by side.
static inline __attribute__((always_inline)) float read_walks(const float *from, size_t n, const int walks)
{
    const int chains = CHAINS / walks; // of each
    const size_t part = n / (size_t)walks;
    vf sum[CHAINS];
    for (int c = 0; c < CHAINS; c++) sum[c] = vf_zero();
    for (size_t i = 0; i + (size_t)chains * VF_LANES <= part; i += (size_t)chains * VF_LANES) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) {
            const float *at = from + (size_t)(c / chains) * part + i + (size_t)(c % chains) * VF_LANES;
            if (c % chains * VF_LANES % LINE == 0) __builtin_prefetch(at + AHEAD);
            sum[c] += vf_load(at);
        }
    }
    for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
    return vf_sum(sum[0]);
}

float LVP_KERNEL(lvp_read_loop)(const float *from, size_t n, bool side_by_side)
{
    return side_by_side ? read_walks(from, n, 4) : read_walks(from, n, 1);
}
