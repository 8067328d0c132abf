// Samples that have brought ranks down: .lvpipe/crashes.jsonl, one row per crash, kept over restarts. Only a fault in a
// thread that had the sample in hand counts; ranks that were killed or lost say nothing about samples.
// Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_CRASHES_H
#define LVP_COORDINATOR_CRASHES_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>

#define LVP_CRASHES_FILE ".lvpipe/crashes.jsonl"

// Sorted by sample, one entry per crash. Zeroed: none.
struct lvp_crashes {
    uint64_t *samples;
    size_t n, max;
};

// Adds what the records of the last world in the folder say, removes them, and reads all crashes. The folder is locked.
enum lvp_status lvp_crashes_collect(const char *dir, struct lvp_crashes *crashes) LVP_MUST_CHECK;
int lvp_crashes_of(const struct lvp_crashes *crashes, uint64_t sample);
void lvp_crashes_free(struct lvp_crashes *crashes);

#endif
