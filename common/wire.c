#include "common/wire.h"

#include <xxhash.h>

enum { CHECKSUM_AT = 56 };

static void put(unsigned char *bytes, size_t at, size_t size, uint64_t value)
{
    for (size_t i = 0; i < size; i++) bytes[at + i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get(const unsigned char *bytes, size_t at, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value |= (uint64_t)bytes[at + i] << (8 * i);
    return value;
}

void lvp_hop_header_pack(const struct lvp_hop_header *header, unsigned char bytes[LVP_HOP_HEADER_BYTES])
{
    memset(bytes, 0, LVP_HOP_HEADER_BYTES);
    memcpy(bytes, "LVPH", 4);
    put(bytes, 4, 2, LVP_HOP_VERSION);
    put(bytes, 6, 2, (uint64_t)header->kind);
    put(bytes, 8, 8, header->number);
    put(bytes, 16, 4, header->n_rows);
    put(bytes, 20, 4, header->width);
    put(bytes, 24, 4, (uint64_t)header->dtype);
    put(bytes, 28, 4, header->n_parts);
    put(bytes, 32, 8, header->payload_bytes);
    put(bytes, 40, 8, header->vision_rows);
    put(bytes, CHECKSUM_AT, 8, XXH3_64bits(bytes, CHECKSUM_AT));
}

enum lvp_status lvp_hop_header_unpack(const void *from, size_t n_bytes, struct lvp_hop_header *header)
{
    const unsigned char *bytes = from;
    if (n_bytes < LVP_HOP_HEADER_BYTES)
        return lvp_fail(LVP_ERR_FORMAT, "hop header: %zu bytes, 64 are needed", n_bytes);
    if (memcmp(bytes, "LVPH", 4) != 0) return lvp_fail(LVP_ERR_FORMAT, "hop header: wrong magic");
    if (get(bytes, CHECKSUM_AT, 8) != XXH3_64bits(bytes, CHECKSUM_AT))
        return lvp_fail(LVP_ERR_FORMAT, "hop header: wrong checksum");
    if (get(bytes, 4, 2) != LVP_HOP_VERSION)
        return lvp_fail(LVP_ERR_FORMAT, "hop header: version %u, this program speaks %d", (unsigned)get(bytes, 4, 2),
                        LVP_HOP_VERSION);
    uint64_t kind = get(bytes, 6, 2), dtype = get(bytes, 24, 4);
    if (kind != LVP_HOP_STEP && kind != LVP_HOP_ENCODE)
        return lvp_fail(LVP_ERR_FORMAT, "hop header: unknown kind %u", (unsigned)kind);
    if (!lvp_dtype_computes(dtype > LVP_F16 ? -1 : (int)dtype))
        return lvp_fail(LVP_ERR_FORMAT, "hop header: unknown dtype %u", (unsigned)dtype);
    *header = (struct lvp_hop_header){.kind = (enum lvp_hop_kind)kind,
                                      .number = get(bytes, 8, 8),
                                      .n_rows = (uint32_t)get(bytes, 16, 4),
                                      .width = (uint32_t)get(bytes, 20, 4),
                                      .n_parts = (uint32_t)get(bytes, 28, 4),
                                      .dtype = (enum lvp_dtype)dtype,
                                      .payload_bytes = get(bytes, 32, 8),
                                      .vision_rows = get(bytes, 40, 8)};
    uint64_t expected = (uint64_t)header->n_rows * header->width; // two 32-bit factors cannot overflow
    if (expected > UINT64_MAX / 4 || expected * lvp_dtype_size(header->dtype) != header->payload_bytes)
        return lvp_fail(LVP_ERR_FORMAT, "hop header: %llu payload bytes do not fit %u rows of %u",
                        (unsigned long long)header->payload_bytes, header->n_rows, header->width);
    return LVP_OK;
}

static enum lvp_status expect(const char *field, uint64_t arrived, uint64_t announced)
{
    if (arrived == announced) return LVP_OK;
    return lvp_fail(LVP_ERR_FORMAT, "hop header: %s is %llu, %llu was announced", field, (unsigned long long)arrived,
                    (unsigned long long)announced);
}

enum lvp_status lvp_hop_header_expect(const struct lvp_hop_header *arrived, const struct lvp_hop_header *announced,
                                      bool vision_rows_vary)
{
    LVP_TRY(expect("kind", (uint64_t)arrived->kind, (uint64_t)announced->kind));
    LVP_TRY(expect("number", arrived->number, announced->number));
    uint64_t fewer = 0;
    if (vision_rows_vary && arrived->vision_rows < announced->vision_rows)
        fewer = announced->vision_rows - arrived->vision_rows;
    uint64_t row_bytes = announced->width * lvp_dtype_size(announced->dtype);
    LVP_TRY(expect("rows", arrived->n_rows, announced->n_rows - fewer));
    LVP_TRY(expect("width", arrived->width, announced->width));
    LVP_TRY(expect("dtype", (uint64_t)arrived->dtype, (uint64_t)announced->dtype));
    LVP_TRY(expect("parts", arrived->n_parts, announced->n_parts));
    LVP_TRY(expect("vision rows", arrived->vision_rows, announced->vision_rows - fewer));
    return expect("payload bytes", arrived->payload_bytes, announced->payload_bytes - fewer * row_bytes);
}
