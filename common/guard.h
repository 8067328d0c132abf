// The guard of a rank: a thread that keeps the rank's record alive (common/record.h) and ends the process when its main
// thread has not come round for too long, saying where it hangs. MPI calls and file systems can block for ever; a guard
// cannot. One per process. Thread: calls from the main thread.
#ifndef LVP_COMMON_GUARD_H
#define LVP_COMMON_GUARD_H

#include "common/status.h"

// `who` is put into the message ("rank 2"); copied.
enum lvp_status lvp_guard_start(const char *who) LVP_MUST_CHECK;
void lvp_guard_stop(void);

// The main thread has come round. Cheap.
void lvp_guard_tick(void);

// What the main thread goes into, and how long it may stay away (seconds) from now on. `what` has static storage.
void lvp_guard_allow(double seconds, const char *what);

// The process is to end: whatever happens, it does within `seconds`, with this status.
void lvp_guard_end_within(double seconds, int exit_status);

#endif
