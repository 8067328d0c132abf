#include "coordinator/output_folder.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char lock_name[] = ".lvpipe.lock";

char *lvp_output_path(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static enum lvp_status out_of_memory(const char *dir)
{
    return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
}

static enum lvp_status make_folders(const char *dir)
{
    char *path = strdup(dir);
    if (path == NULL) return out_of_memory(dir);
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0777); // what matters is whether the last one is there
        *slash = '/';
    }
    int failed = mkdir(path, 0777) != 0 && errno != EEXIST;
    int reason = errno;
    free(path);
    if (failed) return lvp_fail(LVP_ERR_USAGE, "--output %s cannot be made: %s", dir, strerror(reason));
    return LVP_OK;
}

// Says who holds the lock, as far as the file tells.
static enum lvp_status locked_by_another(const char *dir, int fd)
{
    char holder[200] = "";
    ssize_t n = pread(fd, holder, sizeof holder - 1, 0);
    if (n > 0 && holder[n - 1] == '\n') holder[n - 1] = '\0';
    return lvp_fail(LVP_ERR_USAGE,
                    "--output %s: another run is writing there (%s); wait for it or choose another folder", dir,
                    n > 0 ? holder : "unknown");
}

enum lvp_status lvp_output_lock(const char *dir, int *lock)
{
    LVP_TRY(make_folders(dir));
    char *path = lvp_output_path(dir, lock_name);
    if (path == NULL) return out_of_memory(dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    int reason = errno;
    free(path);
    if (fd < 0) return lvp_fail(LVP_ERR_USAGE, "--output %s cannot be written to: %s", dir, strerror(reason));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) {
            enum lvp_status status = locked_by_another(dir, fd);
            (void)close(fd);
            return status;
        }
        lvp_warn("--output %s: this file system has no locks (%s); take care that no other run writes there", dir,
                 strerror(errno));
    }
    char host[64] = "", holder[160];
    (void)gethostname(host, sizeof host - 1);
    int n = snprintf(holder, sizeof holder, "process %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, holder, (size_t)n, 0) != n) {
        enum lvp_status status = lvp_fail(LVP_ERR_USAGE, "--output %s cannot be written to: %s", dir, strerror(errno));
        (void)close(fd);
        return status;
    }
    *lock = fd;
    return LVP_OK;
}

bool lvp_output_exists(const char *dir, const char *name)
{
    char *path = lvp_output_path(dir, name);
    bool exists = path != NULL && access(path, F_OK) == 0;
    free(path);
    return exists;
}

enum lvp_status lvp_output_remove(const char *dir, const char *name)
{
    char *path = lvp_output_path(dir, name);
    if (path == NULL) return out_of_memory(dir);
    enum lvp_status status = LVP_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = lvp_fail(LVP_ERR_IO, "%s cannot be removed: %s", path, strerror(errno));
    free(path);
    return status;
}

enum lvp_status lvp_output_sync(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    // Some network file systems cannot sync a folder; renames are ordered there by the server.
    int failed = fd < 0 || (fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP);
    int reason = errno;
    if (fd >= 0) (void)close(fd);
    return failed ? lvp_fail(LVP_ERR_IO, "%s: %s", dir, strerror(reason)) : LVP_OK;
}

enum lvp_status lvp_output_rename(const char *dir, const char *from, const char *to)
{
    char *old_path = lvp_output_path(dir, from), *new_path = lvp_output_path(dir, to);
    enum lvp_status status = LVP_OK;
    if (old_path == NULL || new_path == NULL)
        status = out_of_memory(dir);
    else if (rename(old_path, new_path) != 0)
        status = lvp_fail(LVP_ERR_IO, "%s cannot be renamed: %s", old_path, strerror(errno));
    else
        status = lvp_output_sync(dir);
    free(old_path);
    free(new_path);
    return status;
}

enum lvp_status lvp_write_all(int fd, const char *label, const void *bytes, size_t n_bytes)
{
    const char *at = bytes;
    while (n_bytes > 0) {
        ssize_t n = write(fd, at, n_bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return lvp_fail(LVP_ERR_IO, "writing %s: %s", label, n < 0 ? strerror(errno) : "nothing was taken");
        at += n;
        n_bytes -= (size_t)n;
    }
    return LVP_OK;
}

enum lvp_status lvp_output_write_json(const char *dir, const char *name, const json_t *json)
{
    char temporary[128];
    (void)snprintf(temporary, sizeof temporary, "%s.tmp", name);
    char *path = lvp_output_path(dir, temporary);
    char *text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    enum lvp_status status = LVP_OK;
    int fd = -1;
    if (path == NULL || text == NULL) {
        status = out_of_memory(dir);
        goto fail;
    }
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = lvp_fail(LVP_ERR_IO, "writing %s: %s", path, strerror(errno));
        goto fail;
    }
    LVP_CHECK(lvp_write_all(fd, path, text, strlen(text)));
    LVP_CHECK(lvp_write_all(fd, path, "\n", 1));
    if (fsync(fd) != 0) {
        status = lvp_fail(LVP_ERR_IO, "writing %s: %s", path, strerror(errno));
        goto fail;
    }
    status = lvp_output_rename(dir, temporary, name);
fail:
    if (fd >= 0) (void)close(fd);
    free(path);
    free(text);
    return status;
}
