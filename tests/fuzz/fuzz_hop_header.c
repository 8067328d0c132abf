// Hop headers from another rank. Whatever is taken for one must be exactly what packing it gives back.
#include "common/wire.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

static void try_header(const unsigned char *bytes, size_t size)
{
    struct lvp_hop_header header, again;
    unsigned char packed[LVP_HOP_HEADER_BYTES];
    lvp_error_clear();
    if (lvp_hop_header_unpack(bytes, size, &header) != LVP_OK) {
        if (lvp_error_text()[0] == '\0') abort();
        return;
    }
    lvp_hop_header_pack(&header, packed);
    if (lvp_hop_header_unpack(packed, sizeof packed, &again) != LVP_OK) abort();
    if (lvp_hop_header_expect(&again, &header, false) != LVP_OK ||
        lvp_hop_header_expect(&again, &header, true) != LVP_OK)
        abort();
    if (header.payload_bytes != (uint64_t)header.n_rows * header.width * lvp_dtype_size(header.dtype)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char bytes[LVP_HOP_HEADER_BYTES] = {0};
    try_header(data, size);
    // The same bytes with a right magic and checksum: the fuzzer could not find those.
    memcpy(bytes, data, size < 56 ? size : 56);
    memcpy(bytes, "LVPH", 4);
    uint64_t checksum = XXH3_64bits(bytes, 56);
    for (size_t i = 0; i < 8; i++) bytes[56 + i] = (unsigned char)(checksum >> (8 * i));
    try_header(bytes, sizeof bytes);
    return 0;
}
