// Which requests an earlier run has finished, read back from its two files. Both hold rows in request order, and every
// request has a row in exactly one of them; so walking the requests and looking at the next row of each file tells how
// far the run came. What does not fit any more (a torn row, rows after one that was lost) is cut off and computed
// again.
#ifndef LVP_COORDINATOR_RESUME_H
#define LVP_COORDINATOR_RESUME_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

// Reads the rows of a file one by one. Zeroed: a file without rows.
struct lvp_row_reader {
    FILE *file;
    char *row; // the row at hand, with its newline; owned
    size_t capacity;
    ssize_t length;   // of the row; -1 after the last
    bool whole;       // it begins with an id and ends as rows do: a power cut may leave half a row, or zeros
    uint64_t id_text; // hash of its id as a JSON string, as in struct lvp_request_mark
};

// A file that does not exist has no rows. LVP_ERR_IO when it cannot be read. Stands on the first row.
enum lvp_status lvp_row_reader_open(const char *dir, const char *name, struct lvp_row_reader *reader) LVP_MUST_CHECK;
void lvp_row_reader_next(struct lvp_row_reader *reader);
void lvp_row_reader_close(struct lvp_row_reader *reader);

struct lvp_resume {
    struct lvp_row_reader captions, errors;
    uint64_t n_done;       // requests 0..n_done-1 are finished
    uint64_t n_failed;     // of them, in errors
    unsigned char *failed; // bit i: request i is in errors; [n_done] bits, owned
    size_t failed_bytes;
    uint64_t captions_bytes, errors_bytes; // what is kept of each file
    bool ended;
};

enum lvp_status lvp_resume_open(const char *dir, const char *captions_name, const char *errors_name,
                                struct lvp_resume *resume) LVP_MUST_CHECK;
// The next request, by the hash of its id; to be called in order for as long as `ended` is false.
enum lvp_status lvp_resume_step(struct lvp_resume *resume, uint64_t id_text) LVP_MUST_CHECK;
void lvp_resume_close(struct lvp_resume *resume);

static inline bool lvp_resume_failed(const struct lvp_resume *resume, uint64_t i)
{
    return (resume->failed[i / 8] >> (i % 8) & 1) != 0;
}

#endif
