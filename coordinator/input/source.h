// A kind of input: the samples it holds, in order, and how to load one. folder.c, jsonl.c and tar.c each fill this
// table; manifest.c chooses. A source is listed once and then only read: many threads may load from it, each with a
// cursor of its own.
#ifndef LVP_COORDINATOR_SOURCE_H
#define LVP_COORDINATOR_SOURCE_H

#include "common/tick.h"
#include "coordinator/input/sample.h"

#include <stddef.h>

// Members of tar samples that are loaded with them.
struct lvp_columns {
    bool json, text;
};

// What a thread has read last, so that samples in order cost few reads. Zeroed: nothing.
struct lvp_cursor {
    char *bytes; // part of a .jsonl
    uint64_t offset;
    size_t n_bytes;
    bool open; // a shard
    int file;
    size_t shard;
};

void lvp_cursor_close(struct lvp_cursor *cursor); // safe on a zeroed one

struct lvp_source;

struct lvp_source_ops {
    // Sample i. A fault of the sample is its `error`; LVP_ERR_IO when the input cannot be read any more. `sample` comes
    // zeroed, and is to be freed whatever is returned.
    // `only_id`: nothing else is needed.
    enum lvp_status (*load)(const struct lvp_source *source, struct lvp_cursor *cursor, uint64_t i, bool only_id,
                            struct lvp_sample *sample) LVP_MUST_CHECK;
    // Where sample i stands, for a message: "line 12", "b/1.jpg".
    void (*place)(const struct lvp_source *source, uint64_t i, char *text, size_t size);
    void (*close)(struct lvp_source *source);
};

struct lvp_source {
    const struct lvp_source_ops *ops;
    char *label; // the input as the user wrote it; owned
    uint64_t n;  // samples
};

// The kinds. LVP_ERR_USAGE for an input that cannot be listed; *source is NULL then.
enum lvp_status lvp_folder_open(const char *input, struct lvp_source **source) LVP_MUST_CHECK;
enum lvp_status lvp_image_file_open(const char *input, struct lvp_source **source) LVP_MUST_CHECK;
enum lvp_status lvp_jsonl_open(const char *input, const struct lvp_tick *tick,
                               struct lvp_source **source) LVP_MUST_CHECK;
// One shard, or a pattern of them.
enum lvp_status lvp_tar_open(const char *input, struct lvp_columns columns, const struct lvp_tick *tick,
                             struct lvp_source **source) LVP_MUST_CHECK;

// Folder that relative paths start from: the input itself, or the one it lies in. malloc'ed.
char *lvp_source_root(const char *input, bool folder);

#endif
