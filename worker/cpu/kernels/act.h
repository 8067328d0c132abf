// exp and the activations on vectors. Every lane is computed by the same instructions whatever its neighbours hold, so
// a value gives the same bits in a full vector, in a tail, in any batch.
#ifndef LVP_WORKER_CPU_KERNELS_ACT_H
#define LVP_WORKER_CPU_KERNELS_ACT_H

#include "common/model_config.h"
#include "worker/cpu/kernels/vec.h"

static inline vf vf_abs(vf x)
{
    return (vf)((vi)x & vi_set1(0x7fffffff));
}

// e^x within 2 ulp; 0 below -104, infinity above 88.73, subnormal results kept, NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; e^r is the polynomial of the Cephes library (Moshier, expf.c).
static inline vf vf_exp(vf x)
{
    x = vf_max(vf_set1(-104.0F), x); // in this order NaN passes
    x = vf_min(vf_set1(89.0F), x);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const vf magic = vf_set1(12582912.0F);
    vf shifted = vf_fma(x, vf_set1(1.44269504F), magic);
    vf n = shifted - magic;
    vf r = vf_fma(n, vf_set1(-0.693359375F), x); // 9 bits: n times it is exact
    r = vf_fma(n, vf_set1(2.12194440e-4F), r);
    vf p = vf_fma(vf_set1(1.9875691500e-4F), r, vf_set1(1.3981999507e-3F));
    p = vf_fma(p, r, vf_set1(8.3334519073e-3F));
    p = vf_fma(p, r, vf_set1(4.1665795894e-2F));
    p = vf_fma(p, r, vf_set1(1.6666665459e-1F));
    p = vf_fma(p, r, vf_set1(5.0000001201e-1F));
    p = vf_fma(p, r * r, r) + 1.0F;
    // 2^n in two factors, because n reaches from -150 to 128 and a binary32 exponent does not.
    vi exponent = (vi)shifted - (vi)magic;
    vi half = exponent >> 1;
    vf scale_a = (vf)((half + 127) << 23);
    vf scale_b = (vf)((exponent - half + 127) << 23);
    return p * scale_a * scale_b;
}

// 1 / (1 + e^-x)
static inline vf vf_sigmoid(vf x)
{
    return 1.0F / (1.0F + vf_exp(-x));
}

// Standard normal distribution function, (1 + erf(x / sqrt 2)) / 2. Near 0 a polynomial of erf; further out erfc as
// e^polynomial, so that the negative tail keeps its relative accuracy. train/fit_normal_cdf.py fits both polynomials
// and measures, in steps of 7e-5 over [-8, 8], an error below 7e-8.
static inline vf vf_normal_cdf(vf x)
{
    vf z = x * 0.70710678F;
    vf t = vf_min(vf_set1(11.0F), vf_abs(z)); // erfc(11) is 0 in binary32; keeps the polynomial finite
    vf s = t * t;

    vf far = vf_fma(vf_set1(-1.4507601e-5F), t, vf_set1(3.45069973e-4F));
    vf middle = vf_fma(vf_set1(-3.67818098e-3F), t, vf_set1(2.36955155e-2F));
    far = vf_fma(far, s, middle);
    far = vf_fma(far, t, vf_set1(-1.05966277e-1F));
    far = vf_fma(far, t, vf_set1(-6.35445774e-1F));
    far = vf_fma(far, t, vf_set1(-1.28541529e-1F));
    far = vf_fma(far, t, -t);
    vf half_erfc = 0.5F * vf_exp(far);
    vf outer = vf_select(z < 0.0F, half_erfc, 1.0F - half_erfc);

    vf near = vf_fma(vf_set1(-5.94294106e-4F), s, vf_set1(4.98380978e-3F));
    near = vf_fma(near, s, vf_set1(-2.67602615e-2F));
    near = vf_fma(near, s, vf_set1(1.12816423e-1F));
    near = vf_fma(near, s, vf_set1(-3.76124769e-1F));
    near = vf_fma(near, s, vf_set1(1.28379151e-1F));
    near = vf_fma(near, z, z);
    vf inner = vf_fma(vf_set1(0.5F), near, vf_set1(0.5F));

    return vf_select(t > 0.927734375F, outer, inner);
}

// Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv 1606.08415. The tanh form is written with the identity
// (1 + tanh u) / 2 = sigmoid(2 u), which cancels nothing for negative x.
static inline vf vf_activate(enum lvp_activation activation, vf x)
{
    switch (activation) {
    case LVP_ACT_NONE:
        return x;
    case LVP_ACT_GELU:
        return x * vf_normal_cdf(x);
    case LVP_ACT_GELU_TANH: {
        vf cube = x * x * x;
        return x * vf_sigmoid(1.59576912F * vf_fma(vf_set1(0.044715F), cube, x));
    }
    case LVP_ACT_QUICK_GELU:
        return x * vf_sigmoid(1.702F * x);
    case LVP_ACT_SILU:
        return x * vf_sigmoid(x);
    case LVP_ACT_RELU:
        return vf_select(x < 0.0F, vf_zero(), x); // written so that NaN stays NaN
    }
    return x;
}

#endif
