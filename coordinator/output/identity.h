// What a run is, so that only the same run is resumed: identity.json holds the options that decide the captions' bytes,
// requests.xxh one 64-bit little-endian hash per request (id, prompt), in order.
#ifndef LVP_COORDINATOR_IDENTITY_H
#define LVP_COORDINATOR_IDENTITY_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define LVP_IDENTITY_FILE  "identity.json"
#define LVP_HASHES_FILE    "requests.xxh"
#define LVP_CONFIG_HASH    "config"         // the field that early runs lack: "model" covers it
#define LVP_NUMERIC_PATH   "numeric_path"   // the field that allow_mixed_numerics lets differ
#define LVP_MIXED_NUMERICS "mixed_numerics" // the field that remembers that it did

// The identity of the run in a folder; *identity NULL when there is none. Owned by the caller (json_decref).
// LVP_ERR_USAGE for a file that cannot be read.
enum lvp_status lvp_identity_read(const char *dir, json_t **identity) LVP_MUST_CHECK;

// LVP_ERR_USAGE naming the first field that differs, with both values. With allow_mixed_numerics a different numeric
// path is no difference; *mixed then says whether it was one, now or earlier.
enum lvp_status lvp_identity_compare(const char *dir, const json_t *stored, const json_t *wanted,
                                     bool allow_mixed_numerics, bool *mixed) LVP_MUST_CHECK;

// The hash file, open for checking old requests and adding new ones in order.
struct lvp_request_hashes {
    int fd;
    const char *dir;   // borrowed
    uint64_t n_stored; // hashes in the file
    uint64_t *window;  // those around the last check, owned
    uint64_t first, n; // what the window holds
    uint64_t *added;   // hashes to be appended, owned
    uint64_t n_added, max_added;
};

// Creates the file empty with `fresh`. LVP_ERR_USAGE when it cannot be opened.
enum lvp_status lvp_hashes_open(const char *dir, bool fresh, struct lvp_request_hashes *hashes) LVP_MUST_CHECK;
// Request `index` as it is now: compared where the file has it, else noted. In order from 0.
enum lvp_status lvp_hashes_check(struct lvp_request_hashes *hashes, uint64_t index, uint64_t identity,
                                 bool *same) LVP_MUST_CHECK;
// Another hash for a request that the file has; in the file at once.
enum lvp_status lvp_hashes_replace(struct lvp_request_hashes *hashes, uint64_t index, uint64_t identity) LVP_MUST_CHECK;
enum lvp_status lvp_hashes_store(struct lvp_request_hashes *hashes) LVP_MUST_CHECK; // writes what was noted
void lvp_hashes_close(struct lvp_request_hashes *hashes);

#endif
