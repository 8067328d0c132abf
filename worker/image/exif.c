// The orientation tag of an EXIF block, which is a small TIFF file (EXIF 2.32, 4.5) inside a JPEG APP1 segment, a PNG
// eXIf chunk or a WebP EXIF chunk. Anything malformed means upright, as in Pillow: a picture is worth more than its
// metadata.
#include "worker/image/decode.h"

#include <stdbool.h>
#include <string.h>

enum {
    TAG_ORIENTATION = 0x0112,
    TYPE_SHORT = 3,
    TYPE_LONG = 4,
    IFD_ENTRY_BYTES = 12,
    UPRIGHT = 1,
};

static const uint8_t exif_prefix[6] = {'E', 'x', 'i', 'f', 0, 0};

static uint32_t read_u16(const uint8_t *p, bool big_endian)
{
    return big_endian ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static uint32_t read_u32(const uint8_t *p, bool big_endian)
{
    const uint32_t first = read_u16(p, big_endian);
    const uint32_t second = read_u16(p + 2, big_endian);
    return big_endian ? first << 16 | second : second << 16 | first;
}

// `tiff` is the block with or without its "Exif\0\0" in front: files in the wild have both in all three containers.
static int orientation_of_block(const uint8_t *tiff, size_t n_bytes)
{
    while (n_bytes >= sizeof exif_prefix && memcmp(tiff, exif_prefix, sizeof exif_prefix) == 0) {
        tiff += sizeof exif_prefix;
        n_bytes -= sizeof exif_prefix;
    }
    if (n_bytes < 8) return UPRIGHT;
    const bool big_endian = tiff[0] == 'M';
    if (memcmp(tiff, big_endian ? "MM" : "II", 2) != 0 || read_u16(tiff + 2, big_endian) != 42) return UPRIGHT;
    const size_t ifd = read_u32(tiff + 4, big_endian);
    if (ifd > n_bytes - 2) return UPRIGHT;
    const size_t room = (n_bytes - ifd - 2) / IFD_ENTRY_BYTES;
    size_t n_entries = read_u16(tiff + ifd, big_endian);
    if (n_entries > room) n_entries = room;
    for (size_t i = 0; i < n_entries; i++) {
        const uint8_t *entry = tiff + ifd + 2 + i * IFD_ENTRY_BYTES; // tag u16, type u16, count u32, value
        if (read_u16(entry, big_endian) != TAG_ORIENTATION || read_u32(entry + 4, big_endian) != 1) continue;
        const uint32_t type = read_u16(entry + 2, big_endian);
        uint32_t value = 0;
        if (type == TYPE_SHORT) value = read_u16(entry + 8, big_endian);
        if (type == TYPE_LONG) value = read_u32(entry + 8, big_endian);
        return value >= 1 && value <= 8 ? (int)value : UPRIGHT;
    }
    return UPRIGHT;
}

// Segments up to the first scan: 0xFF, marker, big-endian length that counts itself (ITU-T T.81, B.1.1.4).
int lvp_exif_orientation_jpeg(const uint8_t *bytes, size_t n_bytes)
{
    enum { SOI = 0xD8, EOI = 0xD9, SOS = 0xDA, APP1 = 0xE1, TEM = 0x01, RST0 = 0xD0, RST7 = 0xD7 };
    size_t at = 0;
    while (n_bytes - at >= 4) {
        if (bytes[at] != 0xFF || bytes[at + 1] == 0xFF) { // junk between segments, or a fill byte
            at++;
            continue;
        }
        const uint8_t marker = bytes[at + 1];
        if (marker == 0 || marker == SOI || marker == TEM || (marker >= RST0 && marker <= RST7)) { // no length
            at += 2;
            continue;
        }
        if (marker == SOS || marker == EOI) break;
        const size_t length = read_u16(bytes + at + 2, true);
        if (length < 2 || length > n_bytes - at - 2) break;
        const uint8_t *payload = bytes + at + 4;
        if (marker == APP1 && length - 2 >= sizeof exif_prefix &&
            memcmp(payload, exif_prefix, sizeof exif_prefix) == 0) {
            return orientation_of_block(payload, length - 2);
        }
        at += 2 + length;
    }
    return UPRIGHT;
}

// Chunks: big-endian length, type, data, CRC. eXIf may stand before or after the pixels.
int lvp_exif_orientation_png(const uint8_t *bytes, size_t n_bytes)
{
    size_t at = 8; // the signature
    while (n_bytes >= at && n_bytes - at >= 12) {
        const size_t length = read_u32(bytes + at, true);
        if (length > n_bytes - at - 12) break;
        if (memcmp(bytes + at + 4, "eXIf", 4) == 0) return orientation_of_block(bytes + at + 8, length);
        at += 12 + length;
    }
    return UPRIGHT;
}

// RIFF chunks: type, little-endian length, data, padded to an even length.
int lvp_exif_orientation_webp(const uint8_t *bytes, size_t n_bytes)
{
    size_t at = 12; // "RIFF", length, "WEBP"
    while (n_bytes >= at && n_bytes - at >= 8) {
        const size_t length = read_u32(bytes + at + 4, false);
        if (length > n_bytes - at - 8) break;
        if (memcmp(bytes + at, "EXIF", 4) == 0) return orientation_of_block(bytes + at + 8, length);
        at += 8 + length;
        if (length % 2 != 0) at++;
    }
    return UPRIGHT;
}
