// A sample: one line, file or key of the input.
#ifndef LVP_COORDINATOR_SAMPLE_H
#define LVP_COORDINATOR_SAMPLE_H

#include "common/sample_error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

// Where an image's bytes are: a file, or a part of a tar shard.
struct lvp_image_place {
    char *path;           // bytes as the file system has them
    uint64_t offset;      // of the first byte
    uint64_t n_bytes;     // with shard_bytes 0: up to the end of the file
    uint64_t shard_bytes; // size of the whole shard when it was listed: another size later is another shard. 0: a file
    int64_t shard_time;   // when the shard was changed last, likewise
};

// Owned by who loaded it; lvp_sample_free.
struct lvp_sample {
    char *id;      // unique, valid UTF-8
    char **images; // [n_images] as written in the manifest; folder: path relative to it; tar: shard/member. Valid UTF-8
    struct lvp_image_place *places;        // [n_images]
    int n_images;                          // 0 for a sample that is an error
    bool image_list;                       // the manifest has a list, and so has the output
    char *prompt;                          // the row's own, NULL when absent
    json_t *columns;                       // the row for {name} placeholders, NULL where there is none
    struct lvp_sample_error error;         // e.g. a bad manifest line: reported instead of run
    struct lvp_sample_error columns_error; // of columns or prompt: reported by requests that need them
};

void lvp_sample_free(struct lvp_sample *sample); // safe on a zeroed one

// Room for n images, zeroed. LVP_ERR_MEMORY.
enum lvp_status lvp_sample_make_images(struct lvp_sample *sample, int n) LVP_MUST_CHECK;

// A row of columns. What programs write and JSON does not know is read too: NaN and Infinity as null, whole numbers
// beyond 64 bits as texts of their digits. NULL with *error for no JSON.
json_t *lvp_parse_row(const char *bytes, size_t n_bytes, json_error_t *error);

// Takes the row's own prompt; what is wrong with it goes to columns_error. `where` is put before. LVP_ERR_MEMORY.
enum lvp_status lvp_sample_take_prompt(struct lvp_sample *sample, const json_t *row, const char *where) LVP_MUST_CHECK;

// `name` with bytes that are no UTF-8 written as \xNN, malloc'ed: an id has to be text, and must not merge two files.
// NULL when out of memory.
char *lvp_utf8_name(const char *name);

#endif
