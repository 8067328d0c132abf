// The output folder as a place: made, locked, files replaced whole. Nothing here knows what a caption is.
#ifndef LVP_COORDINATOR_OUTPUT_FOLDER_H
#define LVP_COORDINATOR_OUTPUT_FOLDER_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

// "DIR/NAME", malloc'ed; NULL when out of memory.
char *lvp_output_path(const char *dir, const char *name);

// Makes the folder (and its parents) and locks it against another run until the descriptor is closed, which the end of
// the process does as well. LVP_ERR_USAGE when it cannot be written to or another run holds it.
enum lvp_status lvp_output_lock(const char *dir, int *lock) LVP_MUST_CHECK;

bool lvp_output_exists(const char *dir, const char *name);
enum lvp_status lvp_output_remove(const char *dir, const char *name) LVP_MUST_CHECK; // absent is fine
enum lvp_status lvp_output_rename(const char *dir, const char *from,
                                  const char *to) LVP_MUST_CHECK; // and syncs the folder

enum lvp_status lvp_output_sync(const char *dir) LVP_MUST_CHECK; // the folder's entries; LVP_ERR_IO

// Writes all bytes. LVP_ERR_IO naming `label`.
enum lvp_status lvp_write_all(int fd, const char *label, const void *bytes, size_t n_bytes) LVP_MUST_CHECK;

// Replaces a JSON file whole: a reader sees the old or the new one, never a part, also after a power cut. LVP_ERR_IO.
enum lvp_status lvp_output_write_json(const char *dir, const char *name, const json_t *json) LVP_MUST_CHECK;

// run.json: options, plan and statistics of the run, made by the caller.
static inline LVP_MUST_CHECK enum lvp_status lvp_run_json_write(const char *dir, const json_t *json)
{
    return lvp_output_write_json(dir, "run.json", json);
}

#endif
