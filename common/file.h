// Reading files: small ones of a model folder whole, and parts of any.
#ifndef LVP_COMMON_FILE_H
#define LVP_COMMON_FILE_H

#include "common/status.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

// Reads the regular file DIR/NAME. `*bytes` is malloc'ed, NUL-terminated and owned by the caller; it is NULL, with
// LVP_OK, when there is no such file. LVP_ERR_MODEL when it is not a regular file, cannot be read or has more than
// `max_bytes`.
enum lvp_status lvp_file_read(const char *dir, const char *name, size_t max_bytes, char **bytes,
                              size_t *n_bytes) LVP_MUST_CHECK;

// Up to n_bytes from an offset; fewer at the file's end. -1 with errno. Goes on after signals and short reads.
ssize_t lvp_read_at(int fd, uint64_t offset, void *bytes, size_t n_bytes);

// When the file was changed last, ns since 1970.
static inline int64_t lvp_file_time(const struct stat *info)
{
    return (int64_t)info->st_mtim.tv_sec * 1000000000 + info->st_mtim.tv_nsec;
}

#endif
