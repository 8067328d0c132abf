#include "coordinator/folder_list.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum lvp_status lvp_name_list_add(struct lvp_name_list *list, const char *name)
{
    size_t length = strlen(name) + 1;
    if (length > list->capacity - list->n_bytes) {
        size_t capacity = 2 * list->capacity + length + 4096;
        char *bytes = realloc(list->bytes, capacity);
        if (bytes == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
        list->bytes = bytes;
        list->capacity = capacity;
    }
    if (list->n == list->max) {
        size_t max = 2 * list->max + 64;
        uint64_t *starts = realloc(list->starts, max * sizeof *starts);
        if (starts == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
        list->starts = starts;
        list->max = max;
    }
    memcpy(list->bytes + list->n_bytes, name, length);
    list->starts[list->n++] = list->n_bytes;
    list->n_bytes += length;
    return LVP_OK;
}

static int compare_names(const void *a, const void *b, void *bytes)
{
    return strcmp((const char *)bytes + *(const uint64_t *)a, (const char *)bytes + *(const uint64_t *)b);
}

void lvp_name_list_sort(struct lvp_name_list *list)
{
    if (list->n > 1) qsort_r(list->starts, list->n, sizeof *list->starts, compare_names, list->bytes);
}

void lvp_name_list_free(struct lvp_name_list *list)
{
    free(list->bytes);
    free(list->starts);
    *list = (struct lvp_name_list){0};
}

int lvp_is_image_name(const char *name)
{
    static const char *const endings[] = {".jpg", ".jpeg", ".png", ".webp"};
    size_t length = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]);
        if (length > n && strcasecmp(name + length - n, endings[i]) == 0) return 1;
    }
    return 0;
}

// A folder found and not read yet, or read and kept as the ancestor of others.
struct folder {
    char *path; // relative to the root, "" for the root itself
    dev_t device;
    ino_t inode;
    size_t parent; // index; the root is its own
};

struct walk {
    const char *root;
    struct folder *folders;
    size_t n, max;
    struct lvp_name_list *files;
};

static bool is_own_ancestor(const struct walk *walk, size_t parent, const struct stat *info)
{
    for (size_t i = parent;; i = walk->folders[i].parent) {
        if (walk->folders[i].device == info->st_dev && walk->folders[i].inode == info->st_ino) return true;
        if (i == walk->folders[i].parent) return false;
    }
}

// Takes `path`.
static enum lvp_status add_folder(struct walk *walk, char *path, size_t parent, const struct stat *info)
{
    if (walk->n == walk->max) {
        size_t max = 2 * walk->max + 16;
        struct folder *folders = realloc(walk->folders, max * sizeof *folders);
        if (folders == NULL) {
            free(path);
            return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
        }
        walk->folders = folders;
        walk->max = max;
    }
    walk->folders[walk->n++] =
        (struct folder){.path = path, .device = info->st_dev, .inode = info->st_ino, .parent = parent};
    return LVP_OK;
}

static char *join(const char *folder, const char *name)
{
    char *path = NULL;
    if (asprintf(&path, "%s%s%s", folder, folder[0] != '\0' ? "/" : "", name) < 0) return NULL;
    return path;
}

static enum lvp_status add_entry(struct walk *walk, size_t parent, const struct dirent *entry)
{
    bool image = lvp_is_image_name(entry->d_name) != 0;
    if (entry->d_type == DT_REG && !image) return LVP_OK;
    if (entry->d_type == DT_FIFO || entry->d_type == DT_SOCK || entry->d_type == DT_CHR || entry->d_type == DT_BLK)
        return LVP_OK;
    char *path = join(walk->folders[parent].path, entry->d_name);
    char *full = path != NULL ? join(walk->root, path) : NULL;
    struct stat info = {.st_mode = S_IFREG};
    enum lvp_status status = LVP_OK;
    if (full == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
    } else {
        // Plain files need no stat, which on a network file system is a round trip each.
        bool missing = entry->d_type != DT_REG && stat(full, &info) != 0;
        if (!missing && S_ISDIR(info.st_mode)) {
            if (!is_own_ancestor(walk, parent, &info)) {
                status = add_folder(walk, path, parent, &info);
                path = NULL;
            }
        } else if (image && (missing || S_ISREG(info.st_mode))) {
            status = lvp_name_list_add(walk->files, path);
        }
    }
    free(path);
    free(full);
    return status;
}

static enum lvp_status read_folder(struct walk *walk, size_t index)
{
    char *full = join(walk->root, walk->folders[index].path);
    if (full == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
    enum lvp_status status = LVP_OK;
    DIR *dir = opendir(full);
    if (dir == NULL) {
        status = lvp_fail(LVP_ERR_USAGE, "--input: the folder %s cannot be read: %s", full, strerror(errno));
        goto fail;
    }
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) break;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        LVP_CHECK(add_entry(walk, index, entry));
    }
    if (errno != 0)
        status = lvp_fail(LVP_ERR_USAGE, "--input: the folder %s cannot be read: %s", full, strerror(errno));
fail:
    if (dir != NULL) (void)closedir(dir);
    free(full);
    return status;
}

enum lvp_status lvp_folder_list(const char *root, struct lvp_name_list *list)
{
    struct walk walk = {.root = root, .files = list};
    struct stat info;
    enum lvp_status status = LVP_OK;
    char *top = strdup("");
    if (top == NULL) return lvp_fail(LVP_ERR_MEMORY, "listing the input: out of memory");
    if (stat(root, &info) != 0) {
        free(top);
        return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", root, strerror(errno));
    }
    LVP_CHECK(add_folder(&walk, top, 0, &info));
    for (size_t i = 0; i < walk.n; i++) LVP_CHECK(read_folder(&walk, i));
    lvp_name_list_sort(list);
fail:
    for (size_t i = 0; i < walk.n; i++) free(walk.folders[i].path);
    free(walk.folders);
    return status;
}
