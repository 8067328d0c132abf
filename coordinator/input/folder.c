// A folder of images, and a single image. Links are followed; a folder that is its own ancestor is not entered again.
// Anything but regular files is left out, except dangling links, which are listed so that the run reports them.
#include "common/file.h"
#include "common/image_kind.h"
#include "coordinator/input/name_list.h"
#include "coordinator/input/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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
    bool image = lvp_is_image_name(entry->d_name);
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

// Adds the paths, relative to `root`, of all image files below it, sorted byte-wise.
static enum lvp_status list_folder(const char *root, struct lvp_name_list *list)
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

// --- The source ----------------------------------------------------------------------------------------------------

struct folder_source {
    struct lvp_source base;
    char *root;                 // folder that the names start from
    struct lvp_name_list names; // [base.n]
};

static enum lvp_status load(const struct lvp_source *source, struct lvp_cursor *cursor, uint64_t i, bool only_id,
                            struct lvp_sample *sample)
{
    (void)only_id;
    const struct folder_source *folder = (const struct folder_source *)source;
    const char *name = lvp_name_list_at(&folder->names, i);
    (void)cursor;
    LVP_TRY(lvp_sample_make_images(sample, 1));
    sample->id = lvp_utf8_name(name);
    sample->images[0] = lvp_utf8_name(name);
    if (asprintf(&sample->places[0].path, "%s/%s", folder->root, name) < 0) sample->places[0].path = NULL;
    if (sample->id != NULL && sample->images[0] != NULL && sample->places[0].path != NULL) return LVP_OK;
    return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
}

static void place(const struct lvp_source *source, uint64_t i, char *text, size_t size)
{
    const struct folder_source *folder = (const struct folder_source *)source;
    (void)snprintf(text, size, "%s/%s", folder->root, lvp_name_list_at(&folder->names, i));
}

static void close_folder(struct lvp_source *source)
{
    struct folder_source *folder = (struct folder_source *)source;
    lvp_name_list_free(&folder->names);
    free(folder->root);
    free(folder->base.label);
    free(folder);
}

static const struct lvp_source_ops ops = {load, place, close_folder};

// A file that is an image neither by name nor by content is most likely meant as something else.
static enum lvp_status check_image(const char *path)
{
    uint8_t bytes[LVP_SIGNATURE_BYTES];
    if (lvp_is_image_name(path)) return LVP_OK; // a broken one is an error record
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", path, strerror(errno));
    ssize_t n = lvp_read_at(file, 0, bytes, sizeof bytes);
    (void)close(file);
    if (n > 0 && lvp_image_kind(bytes, (size_t)n) != LVP_IMAGE_UNKNOWN) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE,
                    "--input %s: neither JPEG, PNG nor WebP by content; manifests end in .jsonl, shards in .tar "
                    "(compressed ones must be unpacked)",
                    path);
}

static enum lvp_status fill_folder(struct folder_source *folder, bool is_folder)
{
    const char *input = folder->base.label, *slash = strrchr(input, '/');
    if (!is_folder) {
        LVP_TRY(check_image(input));
        return lvp_name_list_add(&folder->names, slash != NULL ? slash + 1 : input);
    }
    LVP_TRY(list_folder(input, &folder->names));
    if (folder->names.n > 0) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE,
                    "--input %s: no .jpg, .jpeg, .png or .webp file in the folder (tar shards are given as a pattern, "
                    "like '%s/shard-{0000..0099}.tar')",
                    input, input);
}

static enum lvp_status open_folder(const char *input, bool is_folder, struct lvp_source **source)
{
    *source = NULL;
    struct folder_source *folder = calloc(1, sizeof *folder);
    if (folder == NULL) return lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
    *folder = (struct folder_source){.base = {.ops = &ops, .label = strdup(input)},
                                     .root = lvp_source_root(input, is_folder)};
    enum lvp_status status = folder->base.label != NULL && folder->root != NULL
                                 ? fill_folder(folder, is_folder)
                                 : lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
    if (status != LVP_OK) {
        close_folder(&folder->base);
        return status;
    }
    folder->base.n = folder->names.n;
    *source = &folder->base;
    return LVP_OK;
}

enum lvp_status lvp_folder_open(const char *input, struct lvp_source **source)
{
    return open_folder(input, true, source);
}

enum lvp_status lvp_image_file_open(const char *input, struct lvp_source **source)
{
    return open_folder(input, false, source);
}
