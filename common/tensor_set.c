#include "common/tensor_set.h"

#include "common/json.h"
#include "common/log.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_SHARDS = 4096, NAMES_IN_WARNING = 4 };

static enum lvp_status join(const char *dir, const char *name, char path[PATH_MAX])
{
    int n = snprintf(path, PATH_MAX, "%s/%s", dir, name);
    if (n < 0 || n >= PATH_MAX) return lvp_fail(LVP_ERR_MODEL, "%s: the path is too long", dir);
    return LVP_OK;
}

static enum lvp_status add_file(const char *dir, const char *name, struct lvp_tensor_set *set)
{
    char path[PATH_MAX];
    LVP_TRY(join(dir, name, path));
    struct lvp_safetensors **files = realloc(set->files, (set->n_files + 1) * sizeof(struct lvp_safetensors *));
    if (files == NULL) return lvp_fail(LVP_ERR_MEMORY, "%s: no memory for the list of files", dir);
    set->files = files;
    LVP_TRY(lvp_safetensors_open(path, &files[set->n_files]));
    set->n_files++;
    return LVP_OK;
}

static const struct lvp_safetensors *file_named(const struct lvp_tensor_set *set, const char *name)
{
    for (size_t i = 0; i < set->n_files; i++) {
        const char *path = lvp_safetensors_path(set->files[i]);
        if (strcmp(strrchr(path, '/') + 1, name) == 0) return set->files[i];
    }
    return NULL;
}

// Opens each shard that the weight_map names, and finds there what the map says is there.
static enum lvp_status add_shards(const char *dir, const struct lvp_json *index, struct lvp_tensor_set *set)
{
    struct lvp_json map;
    LVP_TRY(lvp_json_child(index, "weight_map", &map));
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)map.value, tensor, value)
    { // the macro wants it writable but only reads
        const char *shard = json_string_value(value);
        // A plain name: an index must not reach out of its folder.
        if (shard == NULL || shard[0] == '\0' || shard[0] == '.' || strchr(shard, '/') != NULL)
            return lvp_fail(LVP_ERR_MODEL, "%s: weight_map.%s is not a file name", map.file, tensor);
        const struct lvp_safetensors *file = file_named(set, shard);
        if (file == NULL) {
            if (set->n_files == MAX_SHARDS)
                return lvp_fail(LVP_ERR_MODEL, "%s: more than %d shards", map.file, MAX_SHARDS);
            LVP_TRY(add_file(dir, shard, set));
            file = set->files[set->n_files - 1];
        }
        if (lvp_safetensors_find(file, tensor) == NULL)
            return lvp_fail(LVP_ERR_MODEL, "%s: no tensor %s, which %s says is there", lvp_safetensors_path(file),
                            tensor, map.file);
    }
    return LVP_OK;
}

static enum lvp_status add_files(const char *dir, struct lvp_tensor_set *set)
{
    char path[PATH_MAX];
    struct stat info;
    LVP_TRY(join(dir, "model.safetensors", path));
    if (stat(path, &info) == 0) return add_file(dir, "model.safetensors", set);

    LVP_TRY(join(dir, "model.safetensors.index.json", path));
    json_t *root;
    LVP_TRY(lvp_json_load(path, true, &root));
    if (root == NULL)
        return lvp_fail(LVP_ERR_MODEL, "%s: no weights: neither model.safetensors nor model.safetensors.index.json",
                        dir);
    struct lvp_json index;
    enum lvp_status status = lvp_json_root(root, path, &index);
    if (status == LVP_OK) status = add_shards(dir, &index, set);
    json_decref(root);
    return status;
}

static int by_name(const void *left, const void *right)
{
    const struct lvp_tensor_entry *a = left;
    const struct lvp_tensor_entry *b = right;
    return strcmp(a->view->name, b->view->name);
}

static enum lvp_status list_entries(const char *dir, struct lvp_tensor_set *set)
{
    size_t n = 0;
    for (size_t i = 0; i < set->n_files; i++) n += lvp_safetensors_count(set->files[i]);
    set->entries = calloc(n + 1, sizeof *set->entries);
    if (set->entries == NULL) return lvp_fail(LVP_ERR_MEMORY, "%s: no memory for the list of tensors", dir);
    for (size_t i = 0; i < set->n_files; i++) {
        const struct lvp_safetensors *file = set->files[i];
        for (size_t k = 0; k < lvp_safetensors_count(file); k++)
            set->entries[set->n_entries++] = (struct lvp_tensor_entry){lvp_safetensors_at(file, k), file, false};
    }
    qsort(set->entries, set->n_entries, sizeof *set->entries, by_name);
    for (size_t i = 1; i < set->n_entries; i++)
        if (by_name(&set->entries[i - 1], &set->entries[i]) == 0)
            return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s is in %s too", lvp_safetensors_path(set->entries[i - 1].file),
                            set->entries[i].view->name, lvp_safetensors_path(set->entries[i].file));
    return LVP_OK;
}

enum lvp_status lvp_tensor_set_open(const char *dir, struct lvp_tensor_set *set)
{
    *set = (struct lvp_tensor_set){0};
    enum lvp_status status = LVP_OK;
    LVP_CHECK(add_files(dir, set));
    LVP_CHECK(list_entries(dir, set));
    return LVP_OK;
fail:
    lvp_tensor_set_close(set);
    return status;
}

void lvp_tensor_set_close(struct lvp_tensor_set *set)
{
    for (size_t i = 0; i < set->n_files; i++) lvp_safetensors_close(set->files[i]);
    free(set->files);
    free(set->entries);
    *set = (struct lvp_tensor_set){0};
}

struct lvp_tensor_entry *lvp_tensor_set_find(const struct lvp_tensor_set *set, const char *name)
{
    struct lvp_tensor_view view = {.name = name};
    struct lvp_tensor_entry key = {.view = &view};
    return bsearch(&key, set->entries, set->n_entries, sizeof *set->entries, by_name);
}

void lvp_tensor_set_warn_unused(const struct lvp_tensor_set *set, const char *dir,
                                bool (*ignorable)(const char *name, const void *context), const void *context)
{
    char names[512] = "";
    size_t length = 0;
    size_t n_unused = 0;
    for (size_t i = 0; i < set->n_entries; i++) {
        const char *name = set->entries[i].view->name;
        if (set->entries[i].used || ignorable(name, context)) continue;
        if (n_unused++ >= NAMES_IN_WARNING) continue;
        int n = snprintf(names + length, sizeof names - length, "%s%s", length > 0 ? ", " : "", name);
        if (n > 0) length += (size_t)n < sizeof names - length ? (size_t)n : sizeof names - length - 1;
    }
    if (n_unused == 0) return;
    lvp_warn("%s: %zu tensor%s not used: %s%s", dir, n_unused, n_unused == 1 ? " is" : "s are", names,
             n_unused > NAMES_IN_WARNING ? ", ..." : "");
}

// "[4096, 1024]"
static void print_shape(const struct lvp_tensor_view *view, char text[192])
{
    size_t n = 0;
    text[n++] = '[';
    for (int i = 0; i < view->n_dims; i++)
        n += (size_t)snprintf(text + n, 192 - n, "%s%lld", i > 0 ? ", " : "", (long long)view->shape[i]);
    (void)snprintf(text + n, 192 - n, "]");
}

enum lvp_status lvp_tensor_check(const struct lvp_tensor_view *view, const char *path, const int *sizes)
{
    struct lvp_tensor_view wanted = {.n_dims = 0};
    while (wanted.n_dims < LVP_TENSOR_MAX_DIMS && sizes[wanted.n_dims] != 0) {
        wanted.shape[wanted.n_dims] = sizes[wanted.n_dims];
        wanted.n_dims++;
    }
    if (view->n_dims != wanted.n_dims ||
        memcmp(view->shape, wanted.shape, (size_t)wanted.n_dims * sizeof wanted.shape[0]) != 0) {
        char has[192];
        char needs[192];
        print_shape(view, has);
        print_shape(&wanted, needs);
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has shape %s, the configuration asks for %s", path, view->name,
                        has, needs);
    }
    if (view->dtype == LVP_DTYPE_OTHER)
        return lvp_fail(LVP_ERR_MODEL, "%s: tensor %s has dtype %s, F32, F16 and BF16 are supported", path, view->name,
                        view->dtype_name);
    return LVP_OK;
}
