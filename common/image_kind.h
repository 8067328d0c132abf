// What an image is by its first bytes, since names lie.
#ifndef LVP_COMMON_IMAGE_KIND_H
#define LVP_COMMON_IMAGE_KIND_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum lvp_image_kind { LVP_IMAGE_UNKNOWN, LVP_IMAGE_JPEG, LVP_IMAGE_PNG, LVP_IMAGE_WEBP };
enum { LVP_SIGNATURE_BYTES = 12 };

static inline enum lvp_image_kind lvp_image_kind(const uint8_t *bytes, size_t n_bytes)
{
    if (n_bytes >= 3 && memcmp(bytes, "\xFF\xD8\xFF", 3) == 0) return LVP_IMAGE_JPEG;
    if (n_bytes >= 8 && memcmp(bytes, "\x89PNG\r\n\x1A\n", 8) == 0) return LVP_IMAGE_PNG;
    if (n_bytes >= 12 && memcmp(bytes, "RIFF", 4) == 0 && memcmp(bytes + 8, "WEBP", 4) == 0) return LVP_IMAGE_WEBP;
    return LVP_IMAGE_UNKNOWN;
}

#endif
