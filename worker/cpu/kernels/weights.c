// What sampling needs of a row of logits: its largest, and the exponentials with their sum.
#include "worker/cpu/kernels/act.h"
#include "worker/cpu/kernels/table.h"

float LVP_KERNEL(lvp_largest)(const float *x, int n)
{
    vf largest = vf_set1(-INFINITY);
    int i = 0;
    for (; i + VF_LANES <= n; i += VF_LANES) largest = vf_max(vf_load(x + i), largest); // keeps `largest` on NaN
    float result = vf_largest(largest);
    for (; i < n; i++) result = x[i] > result ? x[i] : result;
    return result;
}

// Lanes are added up in f32 over blocks short enough to cost no accuracy; the blocks in double.
enum { BLOCK = 512 };

double LVP_KERNEL(lvp_exp_weights)(const float *x, int n, float largest, float temperature, float *weights)
{
    double total = 0.0;
    vf shift = vf_set1(largest), divisor = vf_set1(temperature);
    for (int block = 0; block < n; block += BLOCK) {
        int end = n - block < BLOCK ? n : block + BLOCK;
        vf sum = vf_zero();
        for (int i = block; i < end; i += VF_LANES) {
            vf logit = vf_load_n(x + i, end - i);
            vi counts = (vi_iota() < vi_set1(end - i)) & (logit == logit);
            vf weight = vf_select(counts, vf_exp((logit - shift) / divisor), vf_zero());
            sum += weight;
            if (weights != NULL) vf_store_n(weights + i, weight, end - i);
        }
        total += (double)vf_sum(sum);
    }
    return total;
}
