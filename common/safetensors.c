#include "common/safetensors.h"

#include "common/checked.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors is little-endian and read in place");

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100 * 1000 * 1000 }; // the upstream reader's bound

struct lvp_safetensors {
    char *path;
    const unsigned char *bytes; // the whole file
    size_t n_bytes;
    bool mapped;
    json_t *header;                // keeps the names alive
    struct lvp_tensor_view *views; // [n_views] by name
    size_t n_views;
};

// Types with a whole number of bytes per element. Others (4- and 6-bit floats, what may come) have their bytes listed
// without a check against the shape; nothing computes with them.
static const struct {
    const char *name;
    enum lvp_dtype dtype;
    size_t size;
} dtypes[] = {
    {"F32", LVP_F32, 4},          {"BF16", LVP_BF16, 2},       {"F16", LVP_F16, 2},         {"F64", LVP_DTYPE_OTHER, 8},
    {"I64", LVP_DTYPE_OTHER, 8},  {"U64", LVP_DTYPE_OTHER, 8}, {"I32", LVP_DTYPE_OTHER, 4}, {"U32", LVP_DTYPE_OTHER, 4},
    {"I16", LVP_DTYPE_OTHER, 2},  {"U16", LVP_DTYPE_OTHER, 2}, {"I8", LVP_DTYPE_OTHER, 1},  {"U8", LVP_DTYPE_OTHER, 1},
    {"BOOL", LVP_DTYPE_OTHER, 1},
};

static enum lvp_status read_size(const struct lvp_safetensors *file, const char *tensor, const char *field,
                                 const json_t *value, size_t *size)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s: %s holds something else than a size", file->path, tensor, field);
    *size = (size_t)json_integer_value(value);
    return LVP_OK;
}

static enum lvp_status read_shape(const struct lvp_safetensors *file, const json_t *shape, struct lvp_tensor_view *view,
                                  size_t *n_elements)
{
    if (!json_is_array(shape)) return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has no shape", file->path, view->name);
    size_t n_dims = json_array_size(shape);
    if (n_dims > LVP_TENSOR_MAX_DIMS)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has %zu dimensions, more than %d", file->path, view->name, n_dims,
                        LVP_TENSOR_MAX_DIMS);
    view->n_dims = (int)n_dims;
    *n_elements = 1;
    for (size_t i = 0; i < n_dims; i++) {
        size_t size = 0;
        LVP_TRY(read_size(file, view->name, "shape", json_array_get(shape, i), &size));
        view->shape[i] = (int64_t)size;
        if (!lvp_checked_mul(*n_elements, size, n_elements))
            return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s: the shape is larger than memory", file->path, view->name);
    }
    return LVP_OK;
}

static enum lvp_status read_dtype(const struct lvp_safetensors *file, const json_t *dtype, size_t n_elements,
                                  struct lvp_tensor_view *view)
{
    if (!json_is_string(dtype)) return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has no dtype", file->path, view->name);
    view->dtype = LVP_DTYPE_OTHER;
    view->dtype_name = json_string_value(dtype);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(view->dtype_name, dtypes[i].name) != 0) continue;
        view->dtype = dtypes[i].dtype;
        size_t expected;
        if (!lvp_checked_mul(n_elements, dtypes[i].size, &expected) || expected != view->n_bytes)
            return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s: %zu bytes do not fit its shape and dtype %s", file->path,
                            view->name, view->n_bytes, view->dtype_name);
    }
    return LVP_OK;
}

// One entry of the header. `data` is where the offsets count from, n_data what the file holds there.
static enum lvp_status read_entry(const struct lvp_safetensors *file, const char *name, const json_t *entry,
                                  const unsigned char *data, size_t n_data, struct lvp_tensor_view *view)
{
    view->name = name;
    view->mapped = file->mapped;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has no data_offsets", file->path, name);
    size_t begin = 0;
    size_t end = 0;
    LVP_TRY(read_size(file, name, "data_offsets", json_array_get(offsets, 0), &begin));
    LVP_TRY(read_size(file, name, "data_offsets", json_array_get(offsets, 1), &end));
    if (begin > end)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s ends at byte %zu, before its begin %zu", file->path, name, end,
                        begin);
    if (end > n_data)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s ends at byte %zu of the data, the file has %zu (truncated?)",
                        file->path, name, end, n_data);
    view->data = data + begin;
    view->n_bytes = end - begin;
    size_t n_elements = 0;
    LVP_TRY(read_shape(file, json_object_get(entry, "shape"), view, &n_elements));
    return read_dtype(file, json_object_get(entry, "dtype"), n_elements, view);
}

static int by_place(const void *left, const void *right)
{
    const struct lvp_tensor_view *a = left;
    const struct lvp_tensor_view *b = right;
    const unsigned char *a_data = a->data;
    const unsigned char *b_data = b->data;
    if (a_data != b_data) return a_data < b_data ? -1 : 1;
    return (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

static int by_name(const void *left, const void *right)
{
    const struct lvp_tensor_view *a = left;
    const struct lvp_tensor_view *b = right;
    return strcmp(a->name, b->name);
}

// The tensors must fill the data part exactly, as upstream demands: no overlap, no hole, nothing behind the last one.
static enum lvp_status check_places(const struct lvp_safetensors *file, const unsigned char *data, size_t n_data)
{
    qsort(file->views, file->n_views, sizeof *file->views, by_place);
    const unsigned char *end = data;
    for (size_t i = 0; i < file->n_views; i++) {
        const struct lvp_tensor_view *view = &file->views[i];
        if (view->data != end)
            return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s begins at byte %td of the data, the one before ends at %td",
                            file->path, view->name, (const unsigned char *)view->data - data, end - data);
        end += view->n_bytes;
    }
    if (end != data + n_data)
        return lvp_fail(LVP_ERR_MODEL, "%s: %td bytes behind the last tensor", file->path, data + n_data - end);
    return LVP_OK;
}

static enum lvp_status check_metadata(const struct lvp_safetensors *file, const json_t *metadata)
{
    if (!json_is_object(metadata)) return lvp_fail(LVP_ERR_MODEL, "%s: __metadata__ is not an object", file->path);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value) // the macro wants it writable but only reads
        if (!json_is_string(value)) return lvp_fail(LVP_ERR_MODEL, "%s: __metadata__ %s is not a string", file->path,
                                                    key);
    return LVP_OK;
}

static enum lvp_status read_header(struct lvp_safetensors *file)
{
    if (file->bytes == NULL || file->n_bytes < LENGTH_BYTES)
        return lvp_fail(LVP_ERR_MODEL, "%s: %zu bytes are too few for a safetensors file", file->path, file->n_bytes);
    uint64_t length;
    memcpy(&length, file->bytes, sizeof length);
    if (length > MAX_HEADER_BYTES)
        return lvp_fail(LVP_ERR_MODEL, "%s: a header of %llu bytes, more than %d", file->path,
                        (unsigned long long)length, MAX_HEADER_BYTES);
    if (length > file->n_bytes - LENGTH_BYTES)
        return lvp_fail(LVP_ERR_MODEL, "%s: the header's %llu bytes go beyond the end of the file (truncated?)",
                        file->path, (unsigned long long)length);

    json_error_t error;
    const char *text = (const char *)file->bytes + LENGTH_BYTES;
    file->header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (file->header == NULL)
        return lvp_fail(LVP_ERR_MODEL, "%s: header: %s (byte %d)", file->path, error.text, error.position);
    if (!json_is_object(file->header))
        return lvp_fail(LVP_ERR_MODEL, "%s: the header is not a JSON object", file->path);

    const unsigned char *data = file->bytes + LENGTH_BYTES + length;
    size_t n_data = file->n_bytes - LENGTH_BYTES - (size_t)length;
    file->views = calloc(json_object_size(file->header) + 1, sizeof *file->views);
    if (file->views == NULL) return lvp_fail(LVP_ERR_MEMORY, "%s: no memory for the list of tensors", file->path);
    const char *key;
    json_t *entry;
    json_object_foreach(file->header, key, entry)
    {
        if (strcmp(key, "__metadata__") == 0)
            LVP_TRY(check_metadata(file, entry));
        else
            LVP_TRY(read_entry(file, key, entry, data, n_data, &file->views[file->n_views++]));
    }
    LVP_TRY(check_places(file, data, n_data));
    qsort(file->views, file->n_views, sizeof *file->views, by_name);
    return LVP_OK;
}

// Takes over the mapping, also on failure.
static enum lvp_status open_bytes(const char *name, const void *bytes, size_t n_bytes, bool mapped,
                                  struct lvp_safetensors **result)
{
    *result = NULL;
    enum lvp_status status = LVP_OK;
    struct lvp_safetensors *file = calloc(1, sizeof *file);
    char *path = strdup(name);
    if (file == NULL || path == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "%s: no memory to open it", name);
        if (mapped) (void)munmap((void *)bytes, n_bytes);
        free(path);
        free(file);
        return status;
    }
    *file = (struct lvp_safetensors){.path = path, .bytes = bytes, .n_bytes = n_bytes, .mapped = mapped};
    LVP_CHECK(read_header(file));
    *result = file;
    return LVP_OK;
fail:
    lvp_safetensors_close(file);
    return status;
}

enum lvp_status lvp_safetensors_parse(const char *name, const void *bytes, size_t n_bytes,
                                      struct lvp_safetensors **file)
{
    return open_bytes(name, bytes, n_bytes, false, file);
}

enum lvp_status lvp_safetensors_open(const char *path, struct lvp_safetensors **file)
{
    *file = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return lvp_fail(LVP_ERR_MODEL, "%s: %s", path, strerror(errno));
    enum lvp_status status = LVP_OK;
    struct stat info;
    void *bytes = NULL;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        status = lvp_fail(LVP_ERR_MODEL, "%s: not a regular file", path);
    } else if (info.st_size < LENGTH_BYTES) { // an empty file cannot be mapped
        status =
            lvp_fail(LVP_ERR_MODEL, "%s: %lld bytes are too few for a safetensors file", path, (long long)info.st_size);
    } else {
        bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED) status = lvp_fail(LVP_ERR_MODEL, "%s: cannot be mapped: %s", path, strerror(errno));
    }
    (void)close(fd); // the mapping stays
    if (status != LVP_OK) return status;
    return open_bytes(path, bytes, (size_t)info.st_size, true, file);
}

void lvp_safetensors_close(struct lvp_safetensors *file)
{
    if (file == NULL) return;
    if (file->mapped) (void)munmap((void *)file->bytes, file->n_bytes);
    json_decref(file->header);
    free(file->views);
    free(file->path);
    free(file);
}

size_t lvp_safetensors_count(const struct lvp_safetensors *file)
{
    return file->n_views;
}

const struct lvp_tensor_view *lvp_safetensors_at(const struct lvp_safetensors *file, size_t i)
{
    return &file->views[i];
}

const struct lvp_tensor_view *lvp_safetensors_find(const struct lvp_safetensors *file, const char *name)
{
    struct lvp_tensor_view key = {.name = name};
    return bsearch(&key, file->views, file->n_views, sizeof *file->views, by_name);
}

const char *lvp_safetensors_metadata(const struct lvp_safetensors *file, const char *key)
{
    return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}

const void *lvp_safetensors_bytes(const struct lvp_safetensors *file, size_t *n_bytes)
{
    *n_bytes = file->n_bytes;
    return file->bytes;
}

const char *lvp_safetensors_path(const struct lvp_safetensors *file)
{
    return file->path;
}

void lvp_safetensors_drop_pages(const struct lvp_tensor_view *tensor)
{
    // On memory that is no file's, DONTNEED would lose the content.
    if (!tensor->mapped || tensor->n_bytes == 0) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)tensor->data / page * page; // a neighbour's page is read again if it is needed
    uintptr_t end = (uintptr_t)tensor->data + tensor->n_bytes;
    (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
}
