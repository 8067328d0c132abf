// What a core can do at best, for benchmarks: multiply-adds on registers only, and reading memory in order.
#include "worker/cpu/kernels/table.h"

#define CHAINS 12 // independent chains: enough to cover the latency of two FMA units

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

float LVP_KERNEL(lvp_read_loop)(const float *from, size_t n)
{
    vf sum[CHAINS];
    size_t i = 0;
    for (int c = 0; c < CHAINS; c++) sum[c] = vf_zero();
    for (; i + CHAINS * VF_LANES <= n; i += CHAINS * VF_LANES) {
#pragma GCC unroll 12
        for (int c = 0; c < CHAINS; c++) sum[c] += vf_load(from + i + (size_t)c * VF_LANES);
    }
    for (int c = 1; c < CHAINS; c++) sum[0] += sum[c];
    return vf_sum(sum[0]);
}
