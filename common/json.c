#include "common/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum lvp_status parse(const char *name, const char *bytes, size_t n_bytes, size_t flags, json_t **root)
{
    json_error_t error;
    *root = json_loadb(bytes, n_bytes, flags, &error);
    if (*root == NULL) return lvp_fail(LVP_ERR_MODEL, "%s: line %d: %s", name, error.line, error.text);
    return LVP_OK;
}

enum lvp_status lvp_json_parse(const char *name, const char *bytes, size_t n_bytes, json_t **root)
{
    return parse(name, bytes, n_bytes, JSON_DECODE_ANY, root);
}

// Reads until the end or `size` bytes, whichever comes first.
static enum lvp_status read_all(int fd, const char *path, char *bytes, size_t size, size_t *n_read)
{
    *n_read = 0;
    while (*n_read < size) {
        ssize_t n = read(fd, bytes + *n_read, size - *n_read);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));
        if (n == 0) break;
        *n_read += (size_t)n;
    }
    return LVP_OK;
}

static enum lvp_status load(const char *path, bool optional, size_t flags, json_t **root)
{
    *root = NULL;
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && optional) return LVP_OK;
    if (fd < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));

    enum lvp_status status = LVP_OK;
    char *bytes = NULL;
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: not a regular file", path);
        goto fail;
    }
    if (info.st_size > LVP_JSON_MAX_BYTES) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: %lld bytes, more than the %d that are read", path,
                          (long long)info.st_size, LVP_JSON_MAX_BYTES);
        goto fail;
    }
    size_t size = (size_t)info.st_size;
    size_t n_read;
    bytes = malloc(size + 1);
    if (bytes == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "%s: no memory for %zu bytes", path, size);
        goto fail;
    }
    LVP_CHECK(read_all(fd, path, bytes, size, &n_read));
    LVP_CHECK(parse(path, bytes, n_read, flags, root));
fail:
    free(bytes);
    (void)close(fd);
    return status;
}

enum lvp_status lvp_json_load(const char *path, bool optional, json_t **root)
{
    return load(path, optional, JSON_DECODE_ANY, root);
}

enum lvp_status lvp_json_load_option(const char *option, const char *path, json_t **root)
{
    char reason[512];
    enum lvp_status status = load(path, false, JSON_REJECT_DUPLICATES, root);
    if (status != LVP_ERR_MODEL) return status;
    (void)snprintf(reason, sizeof reason, "%s", lvp_error_text());
    lvp_error_clear();
    return lvp_fail(LVP_ERR_USAGE, "%s %s", option, reason);
}

enum lvp_status lvp_json_only(const char *option, const char *path, const json_t *object, const char *const *known)
{
    json_t *fields = (json_t *)(size_t)object; // jansson's iterators take no const; nothing is changed
    for (void *at = json_object_iter(fields); at != NULL; at = json_object_iter_next(fields, at)) {
        const char *key = json_object_iter_key(at);
        int i = 0;
        while (known[i] != NULL && strcmp(known[i], key) != 0) i++;
        if (known[i] == NULL) return lvp_fail(LVP_ERR_USAGE, "%s %s: there is no field '%s'", option, path, key);
    }
    return LVP_OK;
}

enum lvp_status lvp_json_root(const json_t *root, const char *file, struct lvp_json *object)
{
    if (!json_is_object(root)) return lvp_fail(LVP_ERR_MODEL, "%s: not a JSON object", file);
    *object = (struct lvp_json){.value = root, .file = file, .path = ""};
    return LVP_OK;
}

bool lvp_json_has(const struct lvp_json *object, const char *key)
{
    const json_t *value = json_object_get(object->value, key);
    return value != NULL && !json_is_null(value);
}

static enum lvp_status wrong_type(const struct lvp_json *object, const char *key, const char *wanted)
{
    return lvp_fail(LVP_ERR_MODEL, "%s: %s%s is not %s", object->file, object->path, key, wanted);
}

enum lvp_status lvp_json_child(const struct lvp_json *object, const char *key, struct lvp_json *child)
{
    const json_t *value = json_object_get(object->value, key);
    if (!json_is_object(value)) return wrong_type(object, key, "an object");
    *child = (struct lvp_json){.value = value, .file = object->file};
    // A path that does not fit is cut: it only serves messages.
    size_t n = strlen(object->path);
    memcpy(child->path, object->path, n);
    while (*key != '\0' && n < sizeof child->path - 2) child->path[n++] = *key++;
    child->path[n++] = '.';
    child->path[n] = '\0';
    return LVP_OK;
}

static enum lvp_status int_in_range(const struct lvp_json *object, const char *key, const json_t *value, int min,
                                    int max, int *result)
{
    if (!json_is_integer(value)) return wrong_type(object, key, "an integer");
    json_int_t number = json_integer_value(value);
    if (number < min || number > max)
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s is %lld, outside %d..%d", object->file, object->path, key,
                        (long long)number, min, max);
    *result = (int)number;
    return LVP_OK;
}

enum lvp_status lvp_json_int(const struct lvp_json *object, const char *key, int min, int max, int *value)
{
    const json_t *member = json_object_get(object->value, key);
    return member == NULL ? LVP_OK : int_in_range(object, key, member, min, max, value);
}

enum lvp_status lvp_json_ints(const struct lvp_json *object, const char *key, int min, int max, int max_values,
                              int *values, int *n_values)
{
    const json_t *member = json_object_get(object->value, key);
    if (member == NULL) return LVP_OK;
    if (!json_is_array(member)) {
        LVP_TRY(int_in_range(object, key, member, min, max, &values[0]));
        *n_values = 1;
        return LVP_OK;
    }
    size_t n = json_array_size(member);
    if (n < 1 || n > (size_t)max_values)
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s has %zu elements, 1..%d are supported", object->file, object->path,
                        key, n, max_values);
    for (size_t i = 0; i < n; i++) LVP_TRY(int_in_range(object, key, json_array_get(member, i), min, max, &values[i]));
    *n_values = (int)n;
    return LVP_OK;
}

enum lvp_status lvp_json_float(const struct lvp_json *object, const char *key, double min, double max, float *value)
{
    double number = (double)*value;
    LVP_TRY(lvp_json_double(object, key, min, max, &number));
    *value = (float)number;
    return LVP_OK;
}

enum lvp_status lvp_json_double(const struct lvp_json *object, const char *key, double min, double max, double *value)
{
    const json_t *member = json_object_get(object->value, key);
    if (member == NULL) return LVP_OK;
    if (!json_is_number(member)) return wrong_type(object, key, "a number");
    double number = json_number_value(member);
    if (!(number >= min && number <= max))
        return lvp_fail(LVP_ERR_MODEL, "%s: %s%s is %g, outside %g..%g", object->file, object->path, key, number, min,
                        max);
    *value = number;
    return LVP_OK;
}

enum lvp_status lvp_json_bool(const struct lvp_json *object, const char *key, bool *value)
{
    const json_t *member = json_object_get(object->value, key);
    if (member == NULL) return LVP_OK;
    if (!json_is_boolean(member)) return wrong_type(object, key, "true or false");
    *value = json_is_true(member);
    return LVP_OK;
}

enum lvp_status lvp_json_string(const struct lvp_json *object, const char *key, const char **value)
{
    const json_t *member = json_object_get(object->value, key);
    if (member == NULL) return LVP_OK;
    if (!json_is_string(member)) return wrong_type(object, key, "a string");
    *value = json_string_value(member);
    return LVP_OK;
}
