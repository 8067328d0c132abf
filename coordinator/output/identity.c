#include "coordinator/output/identity.h"

#include "coordinator/output/output_folder.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HASH_WINDOW = 8192 };

enum lvp_status lvp_identity_read(const char *dir, json_t **identity)
{
    *identity = NULL;
    if (!lvp_output_exists(dir, LVP_IDENTITY_FILE)) return LVP_OK;
    char *path = lvp_output_path(dir, LVP_IDENTITY_FILE);
    if (path == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
    json_error_t error;
    *identity = json_load_file(path, 0, &error);
    free(path);
    if (json_is_object(*identity)) return LVP_OK;
    json_decref(*identity);
    *identity = NULL;
    return lvp_fail(LVP_ERR_USAGE, "--output %s: %s cannot be read (%s); use another folder or --overwrite", dir,
                    LVP_IDENTITY_FILE, error.text);
}

// A field's value for people. Shares are stored in units of 1e-12, and shown as they are typed.
static char *field_text(const char *key, const json_t *value)
{
    if (value == NULL) return NULL;
    if (strcmp(key, "keep") != 0 || !json_is_array(value)) return json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    json_t *shares = json_array();
    for (size_t i = 0; i < json_array_size(value); i++)
        json_array_append_new(shares, json_real((double)json_integer_value(json_array_get(value, i)) * 1e-12));
    char *text = json_dumps(shares, JSON_COMPACT | JSON_REAL_PRECISION(6));
    json_decref(shares);
    return text;
}

static enum lvp_status field_differs(const char *dir, const char *key, const json_t *stored, const json_t *wanted)
{
    char *old_text = field_text(key, stored);
    char *new_text = field_text(key, wanted);
    enum lvp_status status = lvp_fail(
        LVP_ERR_USAGE,
        "--output %s holds a run with %s %s, not %s; resume it with the same, or use another folder or --overwrite",
        dir, key, old_text != NULL ? old_text : "absent", new_text != NULL ? new_text : "absent");
    free(old_text);
    free(new_text);
    return status;
}

enum lvp_status lvp_identity_compare(const char *dir, const json_t *stored, const json_t *wanted,
                                     bool allow_mixed_numerics, bool *mixed)
{
    *mixed = json_is_true(json_object_get(stored, LVP_MIXED_NUMERICS));
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)wanted, key, value)
    {
        const json_t *old_value = json_object_get(stored, key);
        if (json_equal(old_value, value)) continue;
        if (old_value == NULL && strcmp(key, LVP_CONFIG_HASH) == 0) continue;
        if (!allow_mixed_numerics || strcmp(key, LVP_NUMERIC_PATH) != 0)
            return field_differs(dir, key, old_value, value);
        *mixed = true;
    }
    json_object_foreach((json_t *)stored, key, value)
    {
        if (strcmp(key, LVP_MIXED_NUMERICS) != 0 && json_object_get(wanted, key) == NULL)
            return field_differs(dir, key, value, NULL);
    }
    return LVP_OK;
}

enum lvp_status lvp_hashes_open(const char *dir, bool fresh, struct lvp_request_hashes *hashes)
{
    *hashes = (struct lvp_request_hashes){.fd = -1, .dir = dir};
    char *path = lvp_output_path(dir, LVP_HASHES_FILE);
    if (path == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
    hashes->fd = open(path, fresh ? O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC : O_RDWR | O_CLOEXEC, 0666);
    int reason = errno;
    free(path);
    struct stat info;
    if (hashes->fd < 0 || fstat(hashes->fd, &info) != 0)
        return lvp_fail(LVP_ERR_USAGE, "--output %s: %s cannot be opened: %s; use another folder or --overwrite", dir,
                        LVP_HASHES_FILE, strerror(reason));
    hashes->n_stored = (uint64_t)info.st_size / sizeof(uint64_t); // a torn last one is written again
    hashes->window = malloc(HASH_WINDOW * sizeof *hashes->window);
    return hashes->window != NULL ? LVP_OK : lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", dir);
}

static enum lvp_status load_window(struct lvp_request_hashes *hashes, uint64_t index)
{
    uint64_t n = hashes->n_stored - index;
    if (n > HASH_WINDOW) n = HASH_WINDOW;
    size_t n_bytes = (size_t)n * sizeof *hashes->window;
    if (pread(hashes->fd, hashes->window, n_bytes, (off_t)(index * sizeof *hashes->window)) != (ssize_t)n_bytes)
        return lvp_fail(LVP_ERR_USAGE, "--output %s: %s cannot be read", hashes->dir, LVP_HASHES_FILE);
    hashes->first = index;
    hashes->n = n;
    return LVP_OK;
}

enum lvp_status lvp_hashes_check(struct lvp_request_hashes *hashes, uint64_t index, uint64_t identity, bool *same)
{
    uint64_t hash = htole64(identity);
    *same = true;
    if (index < hashes->n_stored) {
        if (index < hashes->first || index >= hashes->first + hashes->n) LVP_TRY(load_window(hashes, index));
        *same = hashes->window[index - hashes->first] == hash;
        return LVP_OK;
    }
    if (hashes->n_added == hashes->max_added) {
        uint64_t max = hashes->max_added + hashes->max_added / 2 + 1024;
        uint64_t *added = realloc(hashes->added, max * sizeof *added);
        if (added == NULL) return lvp_fail(LVP_ERR_MEMORY, "--output %s: out of memory", hashes->dir);
        hashes->added = added;
        hashes->max_added = max;
    }
    hashes->added[hashes->n_added++] = hash;
    return LVP_OK;
}

enum lvp_status lvp_hashes_replace(struct lvp_request_hashes *hashes, uint64_t index, uint64_t identity)
{
    uint64_t hash = htole64(identity);
    if (pwrite(hashes->fd, &hash, sizeof hash, (off_t)(index * sizeof hash)) != (ssize_t)sizeof hash)
        return lvp_fail(LVP_ERR_IO, "writing %s: %s", LVP_HASHES_FILE, strerror(errno));
    return LVP_OK;
}

enum lvp_status lvp_hashes_store(struct lvp_request_hashes *hashes)
{
    if (hashes->n_added == 0) return LVP_OK;
    if (lseek(hashes->fd, (off_t)(hashes->n_stored * sizeof *hashes->added), SEEK_SET) < 0)
        return lvp_fail(LVP_ERR_IO, "writing %s: %s", LVP_HASHES_FILE, strerror(errno));
    LVP_TRY(lvp_write_all(hashes->fd, LVP_HASHES_FILE, hashes->added, (size_t)hashes->n_added * sizeof *hashes->added));
    if (fsync(hashes->fd) != 0) return lvp_fail(LVP_ERR_IO, "writing %s: %s", LVP_HASHES_FILE, strerror(errno));
    hashes->n_stored += hashes->n_added;
    hashes->n_added = 0;
    return LVP_OK;
}

void lvp_hashes_close(struct lvp_request_hashes *hashes)
{
    if (hashes->fd >= 0) (void)close(hashes->fd);
    free(hashes->window);
    free(hashes->added);
    *hashes = (struct lvp_request_hashes){.fd = -1};
}
