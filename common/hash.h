// XXH3 (128 bits) of files and memory, as hex: tells contents apart, is no protection against a forger.
#ifndef LVP_COMMON_HASH_H
#define LVP_COMMON_HASH_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>

enum { LVP_HASH_CHARS = 33 }; // 32 hex digits and NUL

struct lvp_hash; // owned by the caller, one thread at a time

enum lvp_status lvp_hash_new(struct lvp_hash **hash) LVP_MUST_CHECK;
void lvp_hash_free(struct lvp_hash *hash); // NULL is allowed

void lvp_hash_add(struct lvp_hash *hash, const void *bytes, size_t n_bytes);

// Adds the size and the whole content of a regular file. With `optional`, a file that does not exist adds a mark of its
// own. LVP_ERR_MODEL when it cannot be read.
enum lvp_status lvp_hash_add_file(struct lvp_hash *hash, const char *path, bool optional) LVP_MUST_CHECK;

void lvp_hash_hex(const struct lvp_hash *hash, char hex[LVP_HASH_CHARS]); // of what was added so far

#endif
