#include "coordinator/input/tar_list.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BYTES = 16 << 10 }; // one read per header where images are larger

// What the members of a sample may be; the images first.
enum member { JPG, JPEG, PNG, WEBP, JSON, TEXT, N_NAMED };
static const char *const extensions[N_NAMED] = {"jpg", "jpeg", "png", "webp", "json", "txt"};

// The sample that is being put together.
struct group {
    char *key; // owned; NULL: none
    size_t key_length;
    char *name;    // path of the image so far, of the first member where there is none; owned
    unsigned seen; // bit m: member m was there
    int n_dotted;  // images whose extension has a dot of its own
    struct lvp_tar_sample sample;
};

static enum lvp_status out_of_memory(const struct lvp_tar_list *list)
{
    return lvp_fail(LVP_ERR_MEMORY, "%s: listing the shard: out of memory", list->path);
}

size_t lvp_tar_key_length(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash != NULL ? slash + 1 : path, *dot = strchr(base, '.');
    size_t length = dot != NULL ? (size_t)(dot - base) : 0;
    if (length == 0) return 0;
    if (length > 4 && strncmp(base, "__", 2) == 0 && strncmp(dot - 2, "__", 2) == 0) return 0;
    return (size_t)(dot - path);
}

static enum lvp_status add_sample(struct lvp_tar_list *list, const char *name, const struct lvp_tar_sample *sample)
{
    if (list->n == list->max) {
        size_t max = list->max + list->max / 2 + 64;
        struct lvp_tar_sample *samples = realloc(list->samples, max * sizeof *samples);
        if (samples == NULL) return out_of_memory(list);
        list->samples = samples;
        list->max = max;
    }
    LVP_TRY(lvp_name_list_add(&list->names, name));
    list->samples[list->n++] = *sample;
    return LVP_OK;
}

static void free_group(struct group *group)
{
    free(group->key);
    free(group->name);
    *group = (struct group){0};
}

static enum lvp_status end_group(struct lvp_tar_list *list, struct group *group)
{
    if (group->key == NULL) return LVP_OK;
    bool named = (group->seen & (1U << JPG | 1U << JPEG | 1U << PNG | 1U << WEBP)) != 0;
    if (!named && group->n_dotted != 1)
        group->sample.fault = group->n_dotted == 0 ? LVP_TAR_NO_IMAGE : LVP_TAR_MANY_IMAGES;
    enum lvp_status status = add_sample(list, group->name, &group->sample);
    free_group(group);
    return status;
}

// A part of the shard that no header describes.
static enum lvp_status add_damage(struct lvp_tar_list *list, uint64_t offset)
{
    const struct lvp_tar_sample *last = list->n > 0 ? &list->samples[list->n - 1] : NULL;
    struct lvp_tar_sample damage = {.image_offset = offset, .fault = LVP_TAR_DAMAGED};
    return last != NULL && last->fault == LVP_TAR_DAMAGED ? LVP_OK : add_sample(list, "", &damage);
}

static enum member member_of(const char *extension)
{
    int m = 0;
    while (m < N_NAMED && strcasecmp(extension, extensions[m]) != 0) m++;
    return (enum member)m;
}

static enum lvp_status take_image(struct lvp_tar_list *list, struct group *group, const char *path, uint64_t offset,
                                  struct archive_entry *entry)
{
    char *name = strdup(path);
    if (name == NULL) return out_of_memory(list);
    free(group->name);
    group->name = name;
    group->sample.image_offset = offset;
    group->sample.image_bytes = (uint64_t)archive_entry_size(entry);
    group->sample.fault = archive_entry_sparse_count(entry) > 0                ? LVP_TAR_SPARSE
                          : offset + group->sample.image_bytes > list->n_bytes ? LVP_TAR_TRUNCATED
                                                                               : LVP_TAR_OK;
    return LVP_OK;
}

static enum lvp_status add_member(struct lvp_tar_list *list, struct group *group, const char *path, uint64_t offset,
                                  struct archive_entry *entry)
{
    size_t key_length = lvp_tar_key_length(path);
    if (key_length == 0) return LVP_OK;
    if (group->key == NULL || key_length != group->key_length || memcmp(path, group->key, key_length) != 0) {
        LVP_TRY(end_group(list, group));
        *group = (struct group){.key = strndup(path, key_length), .key_length = key_length, .name = strdup(path)};
        if (group->key == NULL || group->name == NULL) return out_of_memory(list);
    }
    const char *extension = path + key_length + 1;
    enum member member = member_of(extension);
    if (member == N_NAMED) {
        bool named = (group->seen & (1U << JPG | 1U << JPEG | 1U << PNG | 1U << WEBP)) != 0;
        if (!lvp_is_image_name(extension) || named) return LVP_OK;
        return group->n_dotted++ > 0 ? LVP_OK : take_image(list, group, path, offset, entry);
    }
    if ((group->seen & 1U << member) != 0)
        return lvp_fail(LVP_ERR_USAGE, "--input %s: the key \"%s\" has two members .%s", list->path, group->key,
                        extensions[member]);
    bool first_image = member <= WEBP && (group->seen & (1U << JPG | 1U << JPEG | 1U << PNG | 1U << WEBP)) == 0;
    group->seen |= 1U << member;
    if (first_image) return take_image(list, group, path, offset, entry);
    uint64_t size = (uint64_t)archive_entry_size(entry);
    uint32_t bytes = size < UINT32_MAX ? (uint32_t)size : UINT32_MAX;
    if (member == JSON) {
        group->sample.json_offset = offset;
        group->sample.json_bytes = bytes;
    } else if (member == TEXT) {
        group->sample.text_offset = offset;
        group->sample.text_bytes = bytes;
    }
    return LVP_OK;
}

// Reads headers from byte `*from` on, until the shard ends (*from is its size then) or libarchive gives up (*from is
// where).
static enum lvp_status read_headers(struct lvp_tar_list *list, int file, struct group *group, uint64_t *from)
{
    enum lvp_status status = LVP_OK;
    uint64_t base = *from;
    struct archive *archive = archive_read_new();
    if (archive == NULL || archive_read_support_format_tar(archive) != ARCHIVE_OK) {
        status = out_of_memory(list);
        goto fail;
    }
    if (lseek(file, (off_t)base, SEEK_SET) < 0) {
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", list->path, strerror(errno));
        goto fail;
    }
    if (archive_read_open_fd(archive, file, READ_BYTES) != ARCHIVE_OK) { // no header here
        status = add_damage(list, base);
        goto fail;
    }
    for (;;) {
        struct archive_entry *entry = NULL;
        int code = archive_read_next_header(archive, &entry);
        uint64_t at = base + (uint64_t)archive_filter_bytes(archive, -1);
        if (code == ARCHIVE_EOF || code == ARCHIVE_FATAL) {
            *from = code == ARCHIVE_EOF ? list->n_bytes : at;
            if (code == ARCHIVE_FATAL) LVP_CHECK(add_damage(list, at));
            break;
        }
        if (code == ARCHIVE_RETRY || code == ARCHIVE_FAILED) {
            LVP_CHECK(add_damage(list, at));
            continue;
        }
        const char *path = archive_entry_pathname(entry); // raw bytes, whatever the locale (a warning then)
        if (path == NULL) path = archive_entry_pathname_utf8(entry);
        if (path == NULL || archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry) != NULL)
            continue;
        while (strncmp(path, "./", 2) == 0) path += 2;
        LVP_CHECK(add_member(list, group, path, at, entry));
    }
fail:
    if (archive != NULL) (void)archive_read_free(archive);
    return status;
}

// The next block at or after `from` that looks like a header; the shard's size when there is none.
static uint64_t find_header(const struct lvp_tar_list *list, int file, uint64_t from)
{
    enum { BLOCK = 512, BLOCKS = 128, MAGIC_AT = 257 };
    char bytes[BLOCK * BLOCKS];
    for (uint64_t at = (from + BLOCK - 1) / BLOCK * BLOCK; at < list->n_bytes; at += sizeof bytes) {
        ssize_t got = pread(file, bytes, sizeof bytes, (off_t)at);
        for (ssize_t i = 0; i + BLOCK <= got; i += BLOCK)
            if (memcmp(bytes + i + MAGIC_AT, "ustar", 5) == 0) return at + (uint64_t)i;
        if (got < (ssize_t)sizeof bytes) break;
    }
    return list->n_bytes;
}

static bool is_compressed(int file)
{
    unsigned char head[6] = {0};
    if (pread(file, head, sizeof head, 0) < 4) return false;
    return memcmp(head, "\x1f\x8b", 2) == 0 || memcmp(head, "\x28\xb5\x2f\xfd", 4) == 0 ||
           memcmp(head,
                  "\xfd"
                  "7zXZ",
                  5) == 0 ||
           memcmp(head, "BZh", 3) == 0;
}

static enum lvp_status read_shard(struct lvp_tar_list *list, int file, struct group *group)
{
    struct stat info;
    if (fstat(file, &info) != 0) return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", list->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return lvp_fail(LVP_ERR_USAGE, "--input %s: not a regular file", list->path);
    if (is_compressed(file))
        return lvp_fail(LVP_ERR_USAGE, "--input %s: a compressed shard cannot be read by range; unpack it", list->path);
    list->n_bytes = (uint64_t)info.st_size;
    if (list->n_bytes == 0) return add_damage(list, 0);
    for (uint64_t at = 0; at < list->n_bytes;) {
        LVP_TRY(read_headers(list, file, group, &at));
        if (at < list->n_bytes) at = find_header(list, file, at + 1);
    }
    return end_group(list, group);
}

enum lvp_status lvp_tar_list_read(struct lvp_tar_list *list)
{
    struct group group = {0};
    int file = open(list->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe must not wait for its writer
    if (file < 0) return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", list->path, strerror(errno));
    enum lvp_status status = read_shard(list, file, &group);
    free_group(&group);
    (void)close(file);
    return status;
}

void lvp_tar_list_free(struct lvp_tar_list *list)
{
    lvp_name_list_free(&list->names);
    free(list->samples);
    free(list->path);
    *list = (struct lvp_tar_list){0};
}
