// Any bytes as a tar shard: refused, or every sample's range lies where the list says it does, and its columns load.
#include "coordinator/input/source.h"
#include "coordinator/input/tar_list.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    const struct lvp_tick tick = {0};
    struct lvp_source *source = NULL;
    int file = memfd_create("x.tar", 0);
    lvp_error_clear();
    if (file < 0 || write(file, data, size) != (ssize_t)size) abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", file); // its last four bytes count as ".tar"
    if (lvp_tar_open(path, (struct lvp_columns){true, true}, &tick, &source) == LVP_OK) {
        struct lvp_cursor cursor = {0};
        for (uint64_t i = 0; i < source->n; i++) {
            struct lvp_sample sample = {0};
            if (source->ops->load(source, &cursor, i, false, &sample) != LVP_OK) abort(); // the shard has not changed
            for (int image = 0; sample.error.code == LVP_SAMPLE_OK && image < sample.n_images; image++)
                if (sample.places[image].offset + sample.places[image].n_bytes > size) abort();
            lvp_sample_free(&sample);
        }
        lvp_cursor_close(&cursor);
        source->ops->close(source);
    }
    (void)close(file);
    return 0;
}
