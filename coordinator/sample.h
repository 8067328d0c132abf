// A sample: one line of the input.
#ifndef LVP_COORDINATOR_SAMPLE_H
#define LVP_COORDINATOR_SAMPLE_H

#include "common/sample_error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

// One line of the input: its images and columns. Owned by who loaded it; lvp_sample_free.
struct lvp_sample {
    char *id;        // unique, valid UTF-8
    char **images;   // [n_images] as written in the manifest; folder input: path relative to the folder. Valid UTF-8
    char **paths;    // [n_images] paths to open, bytes as the file system has them
    int n_images;    // 0 for a bad line
    bool image_list; // the manifest has a list, and so has the output
    char *prompt;    // the manifest's column, NULL when absent
    json_t *columns; // the manifest's row for {name} placeholders, NULL for folders and bad lines
    struct lvp_sample_error error; // a bad manifest line: code set, reported instead of run
};

void lvp_sample_free(struct lvp_sample *sample); // safe on a zeroed one

#endif
