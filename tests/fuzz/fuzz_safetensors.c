// Any bytes as a safetensors file: refused, or every tensor readable to its last byte.
#include "common/safetensors.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lvp_safetensors *file;
    lvp_error_clear();
    if (size == 0) return 0;
    // The eight bytes of length are rarely guessed: with an odd first byte the header's length is the one that fits.
    uint8_t *bytes = malloc(size + 8);
    if (bytes == NULL) return 0;
    memcpy(bytes, data, size);
    if (size > 8 && (data[0] & 1U) != 0) {
        const uint8_t *end = memchr(data + 8, '\n', size - 8); // the header ends at the first line feed
        uint64_t length = end != NULL ? (uint64_t)(end - data) - 8 : (uint64_t)size - 8;
        memcpy(bytes, &length, sizeof length);
    }
    if (lvp_safetensors_parse("fuzz", bytes, size, &file) == LVP_OK) {
        volatile unsigned sum = 0;
        for (size_t i = 0; i < lvp_safetensors_count(file); i++) {
            const struct lvp_tensor_view *view = lvp_safetensors_at(file, i);
            const unsigned char *at = view->data;
            if (view->n_bytes > 0) sum += at[0] + at[view->n_bytes - 1];
            if (lvp_safetensors_find(file, view->name) != view) abort();
            if (lvp_dtype_size(view->dtype) > 0) {
                size_t n = lvp_dtype_size(view->dtype);
                for (int d = 0; d < view->n_dims; d++) n *= (size_t)view->shape[d];
                if (n != view->n_bytes) abort();
            }
        }
        (void)sum;
        lvp_safetensors_close(file);
    }
    free(bytes);
    return 0;
}
