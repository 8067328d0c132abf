// Conversions between element types, against their definitions.
#include "common/dtype.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

// What 16 bits of binary16 mean (IEEE 754-2019, table 3.5: 5 bits of exponent, 10 of fraction).
static double value_of_f16(uint16_t half)
{
    int sign = half >> 15, exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                       : exponent == 0 ? ldexp(fraction, -24)
                                       : ldexp(1024 + fraction, exponent - 25);
    return sign != 0 ? -magnitude : magnitude;
}

static void test_every_half(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 65536; bits++) {
        uint16_t half = (uint16_t)bits;
        float wide = lvp_f16_to_f32(half);
        double meant = value_of_f16(half);
        if (isnan(meant)) {
            assert_true(isnan(wide));
            assert_true(isnan(lvp_f16_to_f32(lvp_f32_to_f16(wide))));
            continue;
        }
        if ((double)wide != meant || lvp_f32_to_f16(wide) != half) fail_msg("f16 %04x is %g", bits, (double)wide);
        if (!isnan(lvp_bf16_to_f32(half))) assert_int_equal(lvp_f32_to_bf16(lvp_bf16_to_f32(half)), half);
    }
}

// Between two neighbours the nearer one, in the middle the even one; past the last, infinity.
static void test_rounding_to_f16(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x7c00; bits++) {
        double low = value_of_f16((uint16_t)bits), high = bits == 0x7bff ? 65536 : value_of_f16((uint16_t)(bits + 1));
        float middle = (float)((low + high) / 2); // exact: one bit more than f16 has
        unsigned even = bits % 2 == 0 ? bits : bits + 1;
        assert_int_equal(lvp_f32_to_f16(middle), even);
        assert_int_equal(lvp_f32_to_f16(-middle), even | 0x8000U);
        assert_int_equal(lvp_f32_to_f16(nextafterf(middle, 0)), bits);
        assert_int_equal(lvp_f32_to_f16(nextafterf(middle, INFINITY)), bits + 1);
    }
    assert_int_equal(lvp_f32_to_f16(0x1p-26f), 0);
    assert_int_equal(lvp_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(lvp_f32_to_f16(-INFINITY), 0xfc00);
    assert_true(isnan(lvp_f16_to_f32(lvp_f32_to_f16(NAN))));
    uint32_t quiet = 0x7f800001; // a NaN whose upper bits are those of infinity
    float nan;
    memcpy(&nan, &quiet, sizeof nan);
    assert_true(isnan(lvp_f16_to_f32(lvp_f32_to_f16(nan))));
    assert_true(isnan(lvp_bf16_to_f32(lvp_f32_to_bf16(nan))));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_half), cmocka_unit_test(test_rounding_to_f16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
