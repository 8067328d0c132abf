// The thread of rank 0 that touches the output folder during a run, so that a slow file system never keeps the
// coordinator from its workers. It appends rows to two files, brings them to the disk, beats the folder's lock (and
// checks it before writing), and replaces small files whole (status, metrics).
// Thread: every call from the coordinator's; nothing here blocks but lvp_writer_flush and lvp_writer_close.
#ifndef LVP_COORDINATOR_WRITER_H
#define LVP_COORDINATOR_WRITER_H

#include "coordinator/output/lock.h"

#include <stddef.h>
#include <stdint.h>

enum { LVP_WRITER_FILES = 2, LVP_WRITER_POSTS = 2 };
enum { LVP_WRITER_HANG_SECONDS = 600 }; // a file system that takes longer has failed

struct lvp_writer;

// The lock stays the caller's, who must not touch it until the close.
enum lvp_status lvp_writer_open(struct lvp_lock *lock, struct lvp_writer **writer) LVP_MUST_CHECK;

// Appends to file f (0 or 1), whose descriptor and name for messages are given each time and stay the caller's. Rows
// are on the disk within 2 s. The first failure of the thread (LVP_ERR_IO) is returned by every later call.
enum lvp_status lvp_writer_append(struct lvp_writer *writer, int f, int fd, const char *name, const char *bytes,
                                  size_t n_bytes) LVP_MUST_CHECK;

// Replaces the file `path` by `text` some time soon; a later post of the same number p overtakes an earlier one.
// Failures are only warned of, once: nothing is lost with a status.
enum lvp_status lvp_writer_post(struct lvp_writer *writer, int p, const char *path, const char *text) LVP_MUST_CHECK;

// The thread's failure, or that it has hung for LVP_WRITER_HANG_SECONDS.
enum lvp_status lvp_writer_status(struct lvp_writer *writer) LVP_MUST_CHECK;

size_t lvp_writer_pending(struct lvp_writer *writer); // bytes that are not on the disk yet

// Waits until everything appended and posted is on the disk.
enum lvp_status lvp_writer_flush(struct lvp_writer *writer) LVP_MUST_CHECK;

// Flushes and ends the thread; one that hangs is left behind (and its memory). NULL is allowed.
enum lvp_status lvp_writer_close(struct lvp_writer *writer) LVP_MUST_CHECK;

#endif
