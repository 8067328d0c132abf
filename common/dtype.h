// Element types of weights and activations, and the conversions between them.
// bf16 is the upper half of an IEEE binary32, f16 is binary16; narrowing rounds to nearest, ties to even, NaN stays
// NaN.
#ifndef LVP_COMMON_DTYPE_H
#define LVP_COMMON_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// LVP_INT8 is a type of packed weights only (worker/cpu/linear.h). LVP_DTYPE_OTHER: a tensor of a file whose type is
// none of the float types (I64, U8, F64, ...); nothing computes with it.
enum lvp_dtype { LVP_F32, LVP_BF16, LVP_F16, LVP_INT8, LVP_DTYPE_OTHER };

// 0 for LVP_DTYPE_OTHER.
static inline size_t lvp_dtype_size(enum lvp_dtype dtype)
{
    static const size_t sizes[] = {4, 2, 2, 1, 0};
    return sizes[dtype];
}

static inline const char *lvp_dtype_name(enum lvp_dtype dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16", "int8", "other"};
    return names[dtype];
}

// What a model can be computed in: the type of its residual stream and KV.
static inline bool lvp_dtype_computes(int dtype)
{
    return dtype == LVP_F32 || dtype == LVP_BF16 || dtype == LVP_F16;
}

static inline float lvp_bf16_to_f32(uint16_t value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline uint16_t lvp_f32_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffU) > 0x7f800000U) return (uint16_t)((bits >> 16) | 0x40U);
    return (uint16_t)((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

static inline float lvp_f16_to_f32(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000U) << 16;
    uint32_t exponent = (value >> 10) & 0x1fU;
    uint32_t mantissa = value & 0x3ffU;
    float result;
    uint32_t bits;
    if (exponent == 0) { // zero and subnormals: mantissa * 2^-24, exact in binary32
        result = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &result, sizeof bits);
        bits |= sign;
    } else if (exponent == 0x1f) {
        bits = sign | 0x7f800000U | (mantissa << 13) | (mantissa != 0 ? 0x400000U : 0); // as the hardware: a quiet NaN
    } else {
        bits = sign | ((exponent + 112U) << 23) | (mantissa << 13);
    }
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline uint16_t lvp_f32_to_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000U);
    bits &= 0x7fffffffU;
    if (bits > 0x7f800000U) return (uint16_t)(sign | 0x7e00U | (bits >> 13 & 0x3ffU));
    if (bits >= 0x477ff000U) return (uint16_t)(sign | 0x7c00U); // 65520 and more round to infinity
    if (bits < 0x38800000U) { // below 2^-14, subnormal: 0.5 has a last place of 2^-24, so the addition rounds to that
        float magnitude, sum;
        memcpy(&magnitude, &bits, sizeof magnitude);
        sum = magnitude + 0.5f;
        memcpy(&bits, &sum, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000U));
    }
    bits += 0xfffU + ((bits >> 13) & 1U);
    return (uint16_t)(sign | ((bits >> 13) - (112U << 10)));
}

// A 16-bit type, LVP_BF16 or LVP_F16.
static inline uint16_t lvp_to_half(float value, enum lvp_dtype dtype)
{
    return dtype == LVP_BF16 ? lvp_f32_to_bf16(value) : lvp_f32_to_f16(value);
}

static inline float lvp_from_half(uint16_t half, enum lvp_dtype dtype)
{
    return dtype == LVP_BF16 ? lvp_bf16_to_f32(half) : lvp_f16_to_f32(half);
}

// What a value becomes when it is stored in the model's type: f32, bf16 or f16.
static inline float lvp_round_to(float value, enum lvp_dtype dtype)
{
    return dtype == LVP_F32 ? value : lvp_from_half(lvp_to_half(value, dtype), dtype);
}

// Element i of an array of a float type, widened.
static inline float lvp_load_f32(const void *data, enum lvp_dtype dtype, size_t i)
{
    if (dtype == LVP_F32) {
        float value;
        memcpy(&value, (const char *)data + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)data + 2 * i, sizeof half);
    return lvp_from_half(half, dtype);
}

// n f32 values rounded to an array of `dtype` (a float type), and back.
void lvp_narrow(const float *from, size_t n, enum lvp_dtype dtype, void *to);
void lvp_widen(const void *from, size_t n, enum lvp_dtype dtype, float *to);

#endif
