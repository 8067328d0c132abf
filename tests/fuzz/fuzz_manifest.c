// Any bytes as a .jsonl manifest: every line is a sample or an error record, whatever order they are asked for in.
#include "coordinator/input/source.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    const struct lvp_tick tick = {0};
    struct lvp_source *source = NULL;
    int file = memfd_create("x.jsonl", 0);
    lvp_error_clear();
    if (file < 0 || write(file, data, size) != (ssize_t)size) abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (lvp_jsonl_open(path, &tick, &source) != LVP_OK) abort(); // any bytes are lines
    struct lvp_cursor cursor = {0};
    for (uint64_t i = source->n; i-- > 0;) {
        struct lvp_sample sample = {0};
        if (source->ops->load(source, &cursor, i, false, &sample) != LVP_OK || sample.id == NULL) abort();
        if (sample.error.code == LVP_SAMPLE_OK && sample.n_images < 1) abort();
        lvp_sample_free(&sample);
    }
    lvp_cursor_close(&cursor);
    source->ops->close(source);
    (void)close(file);
    return 0;
}
