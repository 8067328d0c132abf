// The lock of an output folder: one run writes there at a time, on any host. Two means together: the kernel's flock,
// which a dead owner lets go of at once but which some shared file systems keep to one host; and a file that names the
// owner, beside one in which only that owner counts heartbeats. A lock is taken over when flock is free and the owner
// is either of this host (so it is dead) or has not beaten while we watched. Thread: taking and releasing on one;
// beating and checking on any.
#ifndef LVP_COORDINATOR_LOCK_H
#define LVP_COORDINATOR_LOCK_H

#include "common/tick.h"

#include <stdbool.h>
#include <stdint.h>

#define LVP_STATE_FOLDER ".lvpipe" // in the output folder: what only lvpipe reads
#define LVP_LOCK_FILE    LVP_STATE_FOLDER "/lock"

struct lvp_lock;

// Makes the folder with its parents, and locks it. May wait 30 s where a run on another host did not end in good order.
// LVP_ERR_USAGE when the folder cannot be written to or another run holds it, naming its job and host. `tick` is called
// while it waits.
enum lvp_status lvp_lock_take(const char *dir, const struct lvp_tick *tick, struct lvp_lock **lock) LVP_MUST_CHECK;

// A heartbeat, wanted every second. For lvp_guard_every_second; failures are left to lvp_lock_check.
void lvp_lock_beat(void *lock);

// Whether the folder is still ours; to be asked before each write. LVP_ERR_IO when somebody else has taken it over, or
// that cannot be found out: nothing may be written any more.
enum lvp_status lvp_lock_check(const struct lvp_lock *lock) LVP_MUST_CHECK;

void lvp_lock_release(struct lvp_lock *lock); // NULL is allowed

// The lock as a reader sees it; for `lvpipe status`. False when nobody holds it or nothing can be read.
struct lvp_lock_owner {
    char token[33], job[96], host[128];
    long long pid, beat;
    double time; // seconds since 1970, of the last beat; 0: none is known
};
bool lvp_lock_read(const char *dir, struct lvp_lock_owner *owner);

#endif
