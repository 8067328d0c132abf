// The thread of rank 0 that touches the output folder during a run, so that a slow file system never keeps the
// coordinator from its workers. It brings rows to two files and to the disk, after looking whether the folder's lock is
// still ours, and replaces small files whole (status, metrics).
//
// Rows are written at their place, not at the end: bytes that a run which has lost the folder still has under way fall
// on the same bytes of its successor's.
// Thread: every call from the coordinator's; nothing here blocks but lvp_writer_flush and lvp_writer_close.
#ifndef LVP_COORDINATOR_WRITER_H
#define LVP_COORDINATOR_WRITER_H

#include "coordinator/output/lock.h"

#include <stddef.h>
#include <stdint.h>

enum { LVP_WRITER_FILES = 2, LVP_WRITER_POSTS = 2 };
enum { LVP_WRITER_HANG_SECONDS = 600 }; // a file system that takes longer has failed

struct lvp_writer;

// Keeps the lock beating. It stays the caller's, who must not release it before the close, nor after one that failed.
enum lvp_status lvp_writer_open(struct lvp_lock *lock, struct lvp_writer **writer) LVP_MUST_CHECK;

// File f (0 or 1) from now on: rows go to `offset` and behind it. Descriptor and name stay the caller's. Nothing must
// be under way.
void lvp_writer_set_file(struct lvp_writer *writer, int f, int fd, const char *name, uint64_t offset);

// Rows are on the disk within 2 s. The first failure of the thread (LVP_ERR_IO) is returned by every later call.
enum lvp_status lvp_writer_append(struct lvp_writer *writer, int f, const char *bytes, size_t n_bytes) LVP_MUST_CHECK;

// Has the thread call act(context) once everything appended so far is on the disk; one at a time. What it returns
// counts as the thread's failure.
enum lvp_status lvp_writer_act(struct lvp_writer *writer, enum lvp_status (*act)(void *context),
                               void *context) LVP_MUST_CHECK;
bool lvp_writer_acting(struct lvp_writer *writer); // it has not been called, or not returned yet

// Replaces the file `path` by `text` some time soon; a later post of the same number p overtakes an earlier one.
// Failures are only warned of, once: nothing is lost with a status.
enum lvp_status lvp_writer_post(struct lvp_writer *writer, int p, const char *path, const char *text) LVP_MUST_CHECK;

// The thread's failure, or that it has hung for LVP_WRITER_HANG_SECONDS.
enum lvp_status lvp_writer_status(struct lvp_writer *writer) LVP_MUST_CHECK;

size_t lvp_writer_pending(struct lvp_writer *writer); // bytes that are not on the disk yet

// Waits until everything is done that was asked for; the guard is ticked meanwhile.
enum lvp_status lvp_writer_flush(struct lvp_writer *writer) LVP_MUST_CHECK;

// Flushes and ends the thread; one that hangs is left behind, with its memory, and descriptors must stay open then:
// *left_behind. NULL is allowed.
enum lvp_status lvp_writer_close(struct lvp_writer *writer, bool *left_behind) LVP_MUST_CHECK;

#endif
