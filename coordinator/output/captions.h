// The output of a run: captions.jsonl and errors.jsonl, in request order, whatever order requests finish in. A finished
// request waits in a bounded window for those before it. Every row is written once, by the writer's thread; a run that
// was killed anywhere goes on to the same bytes. Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_CAPTIONS_H
#define LVP_COORDINATOR_CAPTIONS_H

#include "coordinator/input/source.h"
#include "coordinator/output/rows.h"
#include "coordinator/output/writer.h"

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
    const char *launch_id;               // NULL: none
    bool restarted;                      // the launch was here before: what it overwrote or retried is not done again
    bool allow_mixed_numerics;           // the numeric path may differ from the run that is resumed
    unsigned window;                     // 0: LVP_CAPTIONS_WINDOW
    int threads;                         // that look through the input before work starts; 0: one
    struct lvp_tick tick;                // called meanwhile
};

struct lvp_captions_counts {
    uint64_t total;            // requests
    uint64_t captions, failed; // finished, in the files or waiting in the window
    uint64_t resumed;          // of them, finished by earlier runs
    // samples whose rows have found their place, in input order
    uint64_t failed_samples; // with an error row
    uint64_t failed_in_row;  // by this process, without a caption since the last one that had one
    bool any_caption;        // by this process
};

// Checks that an earlier run in the folder is the same one, repairs what a kill left. LVP_ERR_USAGE where the identity
// differs (naming what), an id is there twice or the folder cannot be written to. Looks at the whole input once. `lock`
// is the folder's, held by the caller until after the close.
enum lvp_status lvp_captions_open(const struct lvp_captions_options *options, struct lvp_lock *lock,
                                  struct lvp_captions **captions) LVP_MUST_CHECK;

// Writes and syncs what can be written. After a failure the lock must not be released: a thread may still hang in
// the file system. Finished requests that wait for a predecessor are lost (and run
// again). NULL is allowed. The memory is freed whatever is returned.
enum lvp_status lvp_captions_close(struct lvp_captions *captions) LVP_MUST_CHECK;

// First request >= `from` that has not been finished by an earlier run; the total when there is none. A scheduler walks
// with it: i = next(0), then next(i + 1).
uint64_t lvp_captions_next(const struct lvp_captions *captions, uint64_t from);

// Whether the window has room for request `index`. Always true for the first one that is not finished.
bool lvp_captions_accepts(const struct lvp_captions *captions, uint64_t index);

// The file system is behind by so much that no further request should be started.
bool lvp_captions_full(const struct lvp_captions *captions);

// The result of request `index`, which must be accepted and not have one yet. Copies. LVP_ERR_IO when writing fails.
enum lvp_status lvp_captions_add(struct lvp_captions *captions, uint64_t index, const struct lvp_request *request,
                                 const struct lvp_caption *caption) LVP_MUST_CHECK;
enum lvp_status lvp_captions_add_error(struct lvp_captions *captions, uint64_t index, const struct lvp_request *request,
                                       const struct lvp_sample_error *error, int attempts) LVP_MUST_CHECK;

// Goes on with what waited for the writer; its failure, if it had one. To be called often.
enum lvp_status lvp_captions_tick(struct lvp_captions *captions) LVP_MUST_CHECK;
bool lvp_captions_retries(const struct lvp_captions *captions, uint64_t index); // request `index` is tried again
struct lvp_writer *lvp_captions_writer(struct lvp_captions *captions);          // for files beside the rows

struct lvp_captions_counts lvp_captions_counts(const struct lvp_captions *captions);
bool lvp_captions_mixed_numerics(const struct lvp_captions *captions); // for run.json

#endif
