// Samples that have brought ranks down: .lvpipe/crashes.jsonl, one row per crash, kept over restarts. Only a fault in a
// thread that had the sample in hand counts; ranks that were killed or lost say nothing about samples.
// Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_CRASHES_H
#define LVP_COORDINATOR_CRASHES_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LVP_CRASHES_FILE ".lvpipe/crashes.jsonl"

struct lvp_crash_count {
    uint64_t sample;
    int n;
    bool alone;         // the last one while nothing else was under way: surely its own fault
    uint64_t last_life; // hash of the rank and its start: one crash is counted once
};

// Sorted by sample. Zeroed: none.
struct lvp_crashes {
    struct lvp_crash_count *counts;
    size_t n, max;
};

// Moves what the records of the last world in the folder say into the file, and removes them. The folder is locked.
enum lvp_status lvp_crashes_collect(const char *dir) LVP_MUST_CHECK;

enum lvp_status lvp_crashes_read(const char *dir, struct lvp_crashes *crashes) LVP_MUST_CHECK;
void lvp_crashes_free(struct lvp_crashes *crashes);

// Zeros for a sample without any.
struct lvp_crash_count lvp_crashes_of(const struct lvp_crashes *crashes, uint64_t sample);

// A sample whose crash alone made it an error is to be tried again, alone: in the file, and here.
enum lvp_status lvp_crashes_forgive(const char *dir, struct lvp_crash_count *count) LVP_MUST_CHECK;

#endif
