// The hop header: what is packed comes back, and nothing else is taken for a header.
#include "common/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>
#include <xxhash.h>

static const struct lvp_hop_header example = {.kind = LVP_HOP_STEP,
                                              .number = 0x0102030405060708,
                                              .n_rows = 305,
                                              .width = 4096,
                                              .n_parts = 3,
                                              .dtype = LVP_BF16,
                                              .payload_bytes = UINT64_C(305) * 4096 * 2,
                                              .vision_rows = 288};

static void expect_equal(const struct lvp_hop_header *a, const struct lvp_hop_header *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_true(a->number == b->number);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->n_parts, b->n_parts);
    assert_int_equal(a->dtype, b->dtype);
    assert_true(a->payload_bytes == b->payload_bytes);
    assert_true(a->vision_rows == b->vision_rows);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct lvp_hop_header cases[] = {example, example, example};
    cases[1] = (struct lvp_hop_header){.kind = LVP_HOP_ENCODE, .dtype = LVP_F32}; // no rows: a hop of nothing
    cases[2].n_rows = cases[2].width = UINT32_MAX / 2;
    cases[2].dtype = LVP_F32;
    cases[2].payload_bytes = UINT64_C(0x7fffffff) * 0x7fffffff * 4;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char bytes[LVP_HOP_HEADER_BYTES];
        struct lvp_hop_header back;
        lvp_hop_header_pack(&cases[i], bytes);
        assert_int_equal(lvp_hop_header_unpack(bytes, sizeof bytes, &back), LVP_OK);
        expect_equal(&back, &cases[i]);
    }
}

// The layout is a promise to ranks of another build: it is spelled out here, byte for byte.
static void test_layout(void **state)
{
    (void)state;
    static const unsigned char expected[56] = {
        'L',  'V',  'P',  'H', 1, 0,    1, 0, 8,        7, 6, 5, 4, 3, 2, 1,  // magic, version, kind, number
        0x31, 1,    0,    0,   0, 0x10, 0, 0, LVP_BF16, 0, 0, 0, 3, 0, 0, 0,  // rows, width, dtype, parts
        0,    0x20, 0x26, 0,   0, 0,    0, 0, 0x20,     1, 0, 0, 0, 0, 0, 0}; // payload bytes, vision rows
    unsigned char bytes[LVP_HOP_HEADER_BYTES];
    lvp_hop_header_pack(&example, bytes);
    assert_memory_equal(bytes, expected, sizeof expected);
}

static void test_every_corrupted_byte_is_refused(void **state)
{
    (void)state;
    unsigned char bytes[LVP_HOP_HEADER_BYTES];
    struct lvp_hop_header back;
    for (size_t at = 0; at < sizeof bytes; at++) {
        for (unsigned flip = 1; flip < 256; flip++) {
            lvp_hop_header_pack(&example, bytes);
            bytes[at] = (unsigned char)(bytes[at] ^ flip);
            lvp_error_clear();
            assert_int_equal(lvp_hop_header_unpack(bytes, sizeof bytes, &back), LVP_ERR_FORMAT);
            assert_non_null(strstr(lvp_error_text(), "hop header"));
        }
    }
    for (size_t n = 0; n < sizeof bytes; n++) {
        lvp_hop_header_pack(&example, bytes);
        lvp_error_clear();
        assert_int_equal(lvp_hop_header_unpack(bytes, n, &back), LVP_ERR_FORMAT);
    }
}

// A well-checksummed header can still say what cannot be.
static void expect_refused(size_t at, unsigned char value, const char *text)
{
    unsigned char bytes[LVP_HOP_HEADER_BYTES];
    struct lvp_hop_header back;
    lvp_hop_header_pack(&example, bytes);
    bytes[at] = value;
    uint64_t checksum = XXH3_64bits(bytes, 56);
    for (size_t i = 0; i < 8; i++) bytes[56 + i] = (unsigned char)(checksum >> (8 * i));
    lvp_error_clear();
    assert_int_equal(lvp_hop_header_unpack(bytes, sizeof bytes, &back), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), text));
}

static void test_impossible_fields_are_refused(void **state)
{
    (void)state;
    expect_refused(0, 'l', "magic");
    expect_refused(4, 2, "version 2");
    expect_refused(6, 0, "kind 0");
    expect_refused(6, 3, "kind 3");
    expect_refused(24, 200, "dtype 200");
    expect_refused(16, 0x32, "payload bytes");
    expect_refused(39, 0xff, "payload bytes");
    expect_refused(23, 0xff, "payload bytes"); // a width whose product would pass 64 bits of bytes
}

static void expect_difference(struct lvp_hop_header arrived, const char *field)
{
    lvp_error_clear();
    assert_int_equal(lvp_hop_header_expect(&arrived, &example, false), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), field));
}

static void test_expect_names_the_first_difference(void **state)
{
    (void)state;
    struct lvp_hop_header other = example;
    assert_int_equal(lvp_hop_header_expect(&other, &example, false), LVP_OK);
    other.payload_bytes++;
    expect_difference(other, "payload bytes");
    other.vision_rows++;
    expect_difference(other, "vision rows");
    other.n_parts++;
    expect_difference(other, "parts");
    other.dtype = LVP_F32;
    expect_difference(other, "dtype");
    other.width++;
    expect_difference(other, "width");
    other.n_rows++;
    expect_difference(other, "rows");
    other.number++;
    expect_difference(other, "number");
    other.kind = LVP_HOP_ENCODE;
    expect_difference(other, "kind");
}

// Of what was announced, vision rows may be missing where their number varies, and nothing else.
static void test_fewer_vision_rows(void **state)
{
    (void)state;
    struct lvp_hop_header fewer = example, other;
    fewer.vision_rows -= 8;
    fewer.n_rows -= 8;
    fewer.payload_bytes -= UINT64_C(8) * 4096 * 2;
    assert_int_equal(lvp_hop_header_expect(&example, &example, true), LVP_OK);
    assert_int_equal(lvp_hop_header_expect(&fewer, &example, true), LVP_OK);
    assert_int_equal(lvp_hop_header_expect(&fewer, &example, false), LVP_ERR_FORMAT);
    assert_int_equal(lvp_hop_header_expect(&example, &fewer, true), LVP_ERR_FORMAT); // more than announced
    other = fewer;
    other.n_rows--; // a text row
    assert_int_equal(lvp_hop_header_expect(&other, &example, true), LVP_ERR_FORMAT);
    other = fewer;
    other.payload_bytes = example.payload_bytes;
    assert_int_equal(lvp_hop_header_expect(&other, &example, true), LVP_ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_every_corrupted_byte_is_refused),
        cmocka_unit_test(test_impossible_fields_are_refused),
        cmocka_unit_test(test_expect_names_the_first_difference),
        cmocka_unit_test(test_fewer_vision_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
