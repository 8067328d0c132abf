#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum lvp_status read_all(int fd, const char *path, size_t size, char *bytes)
{
    size_t done = 0;
    while (done < size) {
        ssize_t got = read(fd, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));
        if (got == 0) return lvp_fail(LVP_ERR_MODEL, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    bytes[size] = '\0';
    return LVP_OK;
}

enum lvp_status lvp_file_read(const char *dir, const char *name, size_t max_bytes, char **bytes, size_t *n_bytes)
{
    enum lvp_status status = LVP_OK;
    char path[4096];
    char *content = NULL;
    struct stat info;
    int fd = -1;

    *bytes = NULL;
    *n_bytes = 0;
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    if (length < 0 || (size_t)length >= sizeof path) return lvp_fail(LVP_ERR_MODEL, "%s/%s: path too long", dir, name);
    // O_NONBLOCK: opening a pipe that somebody put there must not wait for its writer.
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return LVP_OK;
    if (fd < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: not a regular file", path);
        goto fail;
    }
    if ((unsigned long long)info.st_size > max_bytes) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: %lld bytes, more than the %zu allowed", path, (long long)info.st_size,
                          max_bytes);
        goto fail;
    }
    content = malloc((size_t)info.st_size + 1);
    if (content == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "%s: no memory for %lld bytes", path, (long long)info.st_size);
        goto fail;
    }
    LVP_CHECK(read_all(fd, path, (size_t)info.st_size, content));
    *bytes = content;
    *n_bytes = (size_t)info.st_size;
    content = NULL;
fail:
    free(content);
    close(fd);
    return status;
}

ssize_t lvp_read_at(int fd, uint64_t offset, void *bytes, size_t n_bytes)
{
    size_t done = 0;
    while (done < n_bytes) {
        ssize_t got = pread(fd, (char *)bytes + done, n_bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}
