// Small files of a model folder, read whole.
#ifndef LVP_COMMON_FILE_H
#define LVP_COMMON_FILE_H

#include "common/status.h"

#include <stddef.h>

// Reads the regular file DIR/NAME. `*bytes` is malloc'ed, NUL-terminated and owned by the caller; it is NULL, with
// LVP_OK, when there is no such file. LVP_ERR_MODEL when it is not a regular file, cannot be read or has more than
// `max_bytes`.
enum lvp_status lvp_file_read(const char *dir, const char *name, size_t max_bytes, char **bytes,
                              size_t *n_bytes) LVP_MUST_CHECK;

#endif
