// The output of a run: captions.jsonl and errors.jsonl, in request order, whatever order requests finish in. A finished
// request waits in a bounded window for those before it. Every row is written once; a run that was killed anywhere goes
// on to the same bytes. Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_CAPTIONS_H
#define LVP_COORDINATOR_CAPTIONS_H

#include "coordinator/output_folder.h"
#include "coordinator/rows.h"

#define LVP_CAPTIONS_FILE "captions.jsonl"
#define LVP_ERRORS_FILE   "errors.jsonl"

enum { LVP_CAPTIONS_WINDOW = 4096 }; // finished requests that may wait for a predecessor

struct lvp_captions;

struct lvp_captions_options {
    const char *dir;                     // made where it is missing
    const struct lvp_requests *requests; // borrowed while open
    const json_t *identity;              // object: the options that decide the bytes (see interface, resume identity)
    bool overwrite;                      // remove an earlier run's files first
    bool retry_failed;                   // run the requests in errors.jsonl again
    bool allow_mixed_numerics;           // the numeric path may differ from the run that is resumed
    unsigned window;                     // 0: LVP_CAPTIONS_WINDOW
};

struct lvp_captions_counts {
    uint64_t total;            // requests
    uint64_t captions, failed; // finished, in the files or waiting in the window
    uint64_t resumed;          // of them, finished by earlier runs
};

// Locks the folder, checks that an earlier run there is the same one, repairs what a kill left. LVP_ERR_USAGE where
// another run holds the folder, the identity differs (naming what) or the folder cannot be written to. Asks for every
// request once.
enum lvp_status lvp_captions_open(const struct lvp_captions_options *options,
                                  struct lvp_captions **captions) LVP_MUST_CHECK;

// Writes and syncs what can be written, unlocks. Finished requests that wait for a predecessor are lost (and run
// again). NULL is allowed. The memory is freed whatever is returned.
enum lvp_status lvp_captions_close(struct lvp_captions *captions) LVP_MUST_CHECK;

// First request >= `from` that has not been finished by an earlier run; the total when there is none. A scheduler walks
// with it: i = next(0), then next(i + 1).
uint64_t lvp_captions_next(const struct lvp_captions *captions, uint64_t from);

// Whether the window has room for request `index`. Always true for the first one that is not finished.
bool lvp_captions_accepts(const struct lvp_captions *captions, uint64_t index);

// The result of request `index`, which must be accepted and not have one yet. Copies. LVP_ERR_IO when writing fails.
enum lvp_status lvp_captions_add(struct lvp_captions *captions, uint64_t index, const struct lvp_request *request,
                                 const struct lvp_caption *caption) LVP_MUST_CHECK;
enum lvp_status lvp_captions_add_error(struct lvp_captions *captions, uint64_t index, const struct lvp_request *request,
                                       const struct lvp_sample_error *error, int attempts) LVP_MUST_CHECK;

// To be called often (every 100 ms or so): rows are on the disk within 2 s after they could be written.
enum lvp_status lvp_captions_tick(struct lvp_captions *captions) LVP_MUST_CHECK;

struct lvp_captions_counts lvp_captions_counts(const struct lvp_captions *captions);
bool lvp_captions_mixed_numerics(const struct lvp_captions *captions); // for run.json

#endif
