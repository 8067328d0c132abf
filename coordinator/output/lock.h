// The lock of an output folder: one run writes there at a time, on any host. Two means together: the kernel's flock,
// which a dead owner lets go of at once but which some shared file systems keep to one host; and a file that names the
// owner and counts heartbeats, which any host can read. A lock is taken over when flock is free and the owner is either
// of this host (so it is dead) or has not beaten while we watched.
// Thread: one at a time.
#ifndef LVP_COORDINATOR_LOCK_H
#define LVP_COORDINATOR_LOCK_H

#include "common/status.h"

#include <stdbool.h>

#define LVP_STATE_FOLDER ".lvpipe" // in the output folder: what only lvpipe reads
#define LVP_LOCK_FILE    LVP_STATE_FOLDER "/lock"

enum { LVP_LOCK_BEAT_SECONDS = 2 };

struct lvp_lock;

// Makes the folder with its parents, and locks it. May wait 10 s where a run on another host did not end in good order.
// LVP_ERR_USAGE when the folder cannot be written to or another run holds it, naming its job and host.
enum lvp_status lvp_lock_take(const char *dir, struct lvp_lock **lock) LVP_MUST_CHECK;

// To be called every LVP_LOCK_BEAT_SECONDS, and before writing when the last beat is longer ago. LVP_ERR_IO when the
// folder is somebody else's by now: nothing may be written any more.
enum lvp_status lvp_lock_beat(struct lvp_lock *lock) LVP_MUST_CHECK;
double lvp_lock_last_beat(const struct lvp_lock *lock); // lvp_now()

void lvp_lock_release(struct lvp_lock *lock); // NULL is allowed

// The lock as a reader sees it; for `lvpipe status`. False when nobody holds it or nothing can be read.
struct lvp_lock_owner {
    char token[33], job[96], host[128];
    long long pid, beat;
    double time; // seconds since 1970, of the last beat
};
bool lvp_lock_read(const char *dir, struct lvp_lock_owner *owner);

#endif
