// Element types of weights and activations, and the conversions between them.
// bf16 is the upper half of an IEEE binary32; narrowing rounds to nearest, ties to even, NaN stays NaN.
#ifndef LVP_COMMON_DTYPE_H
#define LVP_COMMON_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// LVP_DTYPE_OTHER: a tensor of a file whose type is none of these (I64, U8, F64, ...); nothing computes with it.
enum lvp_dtype { LVP_F32, LVP_BF16, LVP_F16, LVP_DTYPE_OTHER };

// 0 for LVP_DTYPE_OTHER.
static inline size_t lvp_dtype_size(enum lvp_dtype dtype)
{
    return dtype == LVP_F32 ? 4 : dtype == LVP_DTYPE_OTHER ? 0 : 2;
}

static inline const char *lvp_dtype_name(enum lvp_dtype dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16", "other"};
    return names[dtype];
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

// Rounds to bf16 and back: what a value becomes when it is stored in the model's type.
static inline float lvp_round_bf16(float value)
{
    return lvp_bf16_to_f32(lvp_f32_to_bf16(value));
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
        bits = sign | 0x7f800000U | (mantissa << 13);
    } else {
        bits = sign | ((exponent + 112U) << 23) | (mantissa << 13);
    }
    memcpy(&result, &bits, sizeof result);
    return result;
}

// Element i of an array of `dtype`, widened.
static inline float lvp_load_f32(const void *data, enum lvp_dtype dtype, size_t i)
{
    if (dtype == LVP_F32) {
        float value;
        memcpy(&value, (const char *)data + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)data + 2 * i, sizeof half);
    return dtype == LVP_BF16 ? lvp_bf16_to_f32(half) : lvp_f16_to_f32(half);
}

#endif
