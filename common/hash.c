#include "common/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

// The struct is only ever a name for the library's state.
static XXH3_state_t *state_of(struct lvp_hash *hash)
{
    return (XXH3_state_t *)hash;
}

enum lvp_status lvp_hash_new(struct lvp_hash **hash)
{
    XXH3_state_t *state = XXH3_createState();
    *hash = (struct lvp_hash *)state;
    if (state == NULL || XXH3_128bits_reset(state) != XXH_OK) return lvp_fail(LVP_ERR_MEMORY, "no memory for a hash");
    return LVP_OK;
}

void lvp_hash_free(struct lvp_hash *hash)
{
    (void)XXH3_freeState(state_of(hash));
}

void lvp_hash_add(struct lvp_hash *hash, const void *bytes, size_t n_bytes)
{
    if (n_bytes > 0) (void)XXH3_128bits_update(state_of(hash), bytes, n_bytes);
}

static void add_size(struct lvp_hash *hash, uint64_t size)
{
    lvp_hash_add(hash, &size, sizeof size);
}

enum lvp_status lvp_hash_add_file(struct lvp_hash *hash, const char *path, bool optional)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && optional) {
        add_size(hash, UINT64_MAX); // absent is something else than empty
        return LVP_OK;
    }
    if (fd < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));

    enum lvp_status status = LVP_OK;
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: not a regular file", path);
        goto fail;
    }
    add_size(hash, (uint64_t)info.st_size);
    for (;;) {
        char buffer[16384];
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (n == 0) break;
        lvp_hash_add(hash, buffer, (size_t)n);
    }
fail:
    (void)close(fd);
    return status;
}

void lvp_hash_hex(const struct lvp_hash *hash, char hex[LVP_HASH_CHARS])
{
    XXH128_hash_t digest = XXH3_128bits_digest((const XXH3_state_t *)hash);
    (void)snprintf(hex, LVP_HASH_CHARS, "%016" PRIx64 "%016" PRIx64, (uint64_t)digest.high64, (uint64_t)digest.low64);
}
