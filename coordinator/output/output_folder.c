#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *lvp_output_path(const char *dir, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static enum lvp_status out_of_memory(const char *dir)
{
    return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
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

enum lvp_status lvp_replace_file(const char *path, const char *text, bool sync)
{
    enum lvp_status status = LVP_OK;
    char *temporary = NULL;
    int fd = -1;
    if (asprintf(&temporary, "%s.tmp", path) < 0) return lvp_fail(LVP_ERR_MEMORY, "%s: out of memory", path);
    fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = lvp_fail(LVP_ERR_IO, "writing %s: %s", temporary, strerror(errno));
        goto fail;
    }
    LVP_CHECK(lvp_write_all(fd, temporary, text, strlen(text)));
    if ((sync && fsync(fd) != 0) || rename(temporary, path) != 0)
        status = lvp_fail(LVP_ERR_IO, "writing %s: %s", path, strerror(errno));
fail:
    if (fd >= 0) (void)close(fd);
    free(temporary);
    return status;
}

enum lvp_status lvp_output_write_text(const char *dir, const char *name, const char *text)
{
    char *path = lvp_output_path(dir, name);
    if (path == NULL) return out_of_memory(dir);
    enum lvp_status status = lvp_replace_file(path, text, true);
    free(path);
    return status;
}

bool lvp_output_text_is(const char *dir, const char *name, const char *text)
{
    char there[128] = "";
    char *path = text != NULL ? lvp_output_path(dir, name) : NULL;
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    size_t n = file != NULL ? fread(there, 1, sizeof there - 1, file) : 0;
    if (file != NULL) (void)fclose(file);
    free(path);
    return n > 0 && strcmp(there, text) == 0;
}

enum lvp_status lvp_output_write_json(const char *dir, const char *name, const json_t *json)
{
    char *path = lvp_output_path(dir, name), *text = NULL;
    char *dump = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    enum lvp_status status = LVP_OK;
    if (path == NULL || dump == NULL || asprintf(&text, "%s\n", dump) < 0) {
        text = NULL;
        status = out_of_memory(dir);
        goto fail;
    }
    LVP_CHECK(lvp_replace_file(path, text, true));
    status = lvp_output_sync(dir);
fail:
    free(path);
    free(dump);
    free(text);
    return status;
}
