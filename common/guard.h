// The guard of a rank: a thread that ends the process when its main thread has not come round for too long, saying
// where it hangs, since MPI calls and file systems can block for ever; and a second one that may block, which brings
// the rank's record to its file (common/record.h). One per process. Thread: calls from the main thread.
#ifndef LVP_COMMON_GUARD_H
#define LVP_COMMON_GUARD_H

#include "common/status.h"

#include <stdbool.h>

// `who` is put into the message ("rank 2"); copied.
enum lvp_status lvp_guard_start(const char *who) LVP_MUST_CHECK;
void lvp_guard_stop(void); // writes the record a last time

// The main thread has come round. Cheap.
void lvp_guard_tick(void);

// What the main thread goes into, and how long it may stay away (seconds) from now on. `what` has static storage.
void lvp_guard_allow(double seconds, const char *what);

// The process is to end: whatever happens, it does within `seconds`, with this status.
void lvp_guard_end_within(double seconds, int exit_status);

// Calls beat(context) every second on the thread that may block; NULL ends that. False where the last call hangs: what
// `context` points to must then stay.
bool lvp_guard_every_second(void (*beat)(void *context), void *context);

#endif
