// A request is what becomes one row of captions.jsonl or errors.jsonl: one sample asked with one prompt.
#ifndef LVP_COORDINATOR_REQUEST_H
#define LVP_COORDINATOR_REQUEST_H

#include "common/sample_error.h"

#include <stdint.h>

// One line of the input: its images and columns. Owned by the manifest.
struct lvp_sample {
    const char *id;           // unique
    const char *const *images; // [n_images] as written in the manifest (folder input: path relative to the folder)
    const char *const *paths;  // [n_images] paths to open
    int n_images;
    const char *prompt;       // the manifest's column, NULL when absent
    const char *columns;      // the manifest line (JSON) for {name} placeholders, NULL for folders
    struct lvp_sample_error error; // a bad manifest line: code set, reported instead of run
};

#endif
