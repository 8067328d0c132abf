// The output folder as a place: names, files replaced whole. Nothing here knows what a caption is.
#ifndef LVP_COORDINATOR_OUTPUT_FOLDER_H
#define LVP_COORDINATOR_OUTPUT_FOLDER_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

// "DIR/NAME", malloc'ed; NULL when out of memory.
char *lvp_output_path(const char *dir, const char *name);

bool lvp_output_exists(const char *dir, const char *name);
enum lvp_status lvp_output_remove(const char *dir, const char *name) LVP_MUST_CHECK; // absent is fine
enum lvp_status lvp_output_rename(const char *dir, const char *from,
                                  const char *to) LVP_MUST_CHECK; // and syncs the folder

enum lvp_status lvp_output_sync(const char *dir) LVP_MUST_CHECK; // the folder's entries; LVP_ERR_IO

// Writes all bytes. LVP_ERR_IO naming `label`.
enum lvp_status lvp_write_all(int fd, const char *label, const void *bytes, size_t n_bytes) LVP_MUST_CHECK;

// Replaces a file whole: a reader sees the old or the new one, never a part; with `sync` also after a power cut.
// LVP_ERR_IO.
enum lvp_status lvp_replace_file(const char *path, const char *text, bool sync) LVP_MUST_CHECK;

// The same for a short text in the folder, synced (LVP_ERR_IO), and whether that is what is there; NULL never is.
enum lvp_status lvp_output_write_text(const char *dir, const char *name, const char *text) LVP_MUST_CHECK;
bool lvp_output_text_is(const char *dir, const char *name, const char *text);

// The same for a JSON file of the folder: synced. LVP_ERR_IO.
enum lvp_status lvp_output_write_json(const char *dir, const char *name, const json_t *json) LVP_MUST_CHECK;

#endif
