#include "coordinator/input/tar_list.h"

#include "common/file.h"

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

enum { READ_BYTES = 16 << 10, BLOCK = 512 }; // one read per header where images are larger

// What the members of a sample may be; the images first.
enum member { JPG, JPEG, PNG, WEBP, JSON, TEXT, N_NAMED };
static const char *const extensions[N_NAMED] = {"jpg", "jpeg", "png", "webp", "json", "txt"};

// The sample that is being put together.
struct group {
    bool beside_damage;
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
    return dot != NULL && dot > base ? (size_t)(dot - path) : 0;
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
    if (group->beside_damage && group->sample.fault != LVP_TAR_TRUNCATED) group->sample.fault = LVP_TAR_BESIDE_DAMAGE;
    enum lvp_status status = add_sample(list, group->name, &group->sample);
    free_group(group);
    return status;
}

// A stretch of the shard that no header describes: after the sample at hand, which ends here.
static enum lvp_status add_damage(struct lvp_tar_list *list, struct group *group, uint64_t offset,
                                  enum lvp_tar_fault fault)
{
    struct lvp_tar_sample damage = {.image_offset = offset, .fault = fault};
    group->beside_damage = true;
    LVP_TRY(end_group(list, group));
    list->damaged = true;
    group->beside_damage = true; // and the one that comes
    return add_sample(list, "", &damage);
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
        bool beside_damage = group->key == NULL && group->beside_damage;
        LVP_TRY(end_group(list, group));
        *group = (struct group){.beside_damage = beside_damage,
                                .key = strndup(path, key_length),
                                .key_length = key_length,
                                .name = strdup(path),
                                .sample.image_offset = offset};
        if (group->key == NULL || group->name == NULL) return out_of_memory(list);
    }
    const char *extension = path + key_length + 1;
    enum member member = member_of(extension);
    if (member == N_NAMED) {
        bool named = (group->seen & (1U << JPG | 1U << JPEG | 1U << PNG | 1U << WEBP)) != 0;
        if (!lvp_is_image_name(extension) || named) return LVP_OK;
        return group->n_dotted++ > 0 ? LVP_OK : take_image(list, group, path, offset, entry);
    }
    if ((group->seen & 1U << member) != 0 && list->damaged) {
        group->beside_damage = true;
        return LVP_OK;
    }
    if ((group->seen & 1U << member) != 0)
        return lvp_fail(LVP_ERR_USAGE, "--input %s: the key \"%s\" has two members .%s", list->path, group->key,
                        extensions[member]);
    bool first_image = member <= WEBP && (group->seen & (1U << JPG | 1U << JPEG | 1U << PNG | 1U << WEBP)) == 0;
    group->seen |= 1U << member;
    if (first_image) return take_image(list, group, path, offset, entry);
    uint64_t size = (uint64_t)archive_entry_size(entry);
    uint32_t bytes = size < UINT32_MAX && archive_entry_sparse_count(entry) == 0 ? (uint32_t)size : UINT32_MAX;
    if (member == JSON) {
        group->sample.json_offset = offset;
        group->sample.json_bytes = bytes;
    } else if (member == TEXT) {
        group->sample.text_offset = offset;
        group->sample.text_bytes = bytes;
    }
    return LVP_OK;
}

// Reads headers from byte `from` on, until one cannot be read, or there are no more. *at: where that is; *end: where
// the last member's bytes end, in whole blocks.
static enum lvp_status read_headers(struct lvp_tar_list *list, int file, struct group *group, uint64_t from,
                                    uint64_t *at, uint64_t *end, bool *ended)
{
    enum lvp_status status = LVP_OK;
    struct archive *archive = archive_read_new();
    *at = *end = from;
    *ended = false;
    if (archive == NULL || archive_read_support_format_tar(archive) != ARCHIVE_OK) {
        status = out_of_memory(list);
        goto fail;
    }
    if (lseek(file, (off_t)from, SEEK_SET) < 0) {
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: %s", list->path, strerror(errno));
        goto fail;
    }
    if (archive_read_open_fd(archive, file, READ_BYTES) != ARCHIVE_OK) goto fail; // no header here
    for (;;) {
        struct archive_entry *entry = NULL;
        int code = archive_read_next_header(archive, &entry);
        *at = from + (uint64_t)archive_filter_bytes(archive, -1);
        *ended = code == ARCHIVE_EOF;
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN) break;
        *end = (*at + (uint64_t)archive_entry_size(entry) + BLOCK - 1) / BLOCK * BLOCK;
        const char *path = archive_entry_pathname(entry); // raw bytes, whatever the locale (a warning then)
        if (path == NULL) path = archive_entry_pathname_utf8(entry);
        if (path == NULL || archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry) != NULL)
            continue;
        while (strncmp(path, "./", 2) == 0) path += 2;
        LVP_CHECK(add_member(list, group, path, *at, entry));
    }
fail:
    if (archive != NULL) (void)archive_read_free(archive);
    return status;
}

// A header's checksum: the sum of its bytes, with blanks in the checksum's own place. Signed bytes in old tars.
static bool is_header(const unsigned char *block)
{
    enum { SUM_AT = 148, SUM_BYTES = 8 };
    long plain = 0, with_signs = 0;
    char field[SUM_BYTES + 1] = "";
    memcpy(field, block + SUM_AT, SUM_BYTES);
    for (int i = 0; i < BLOCK; i++) {
        int byte = i >= SUM_AT && i < SUM_AT + SUM_BYTES ? ' ' : block[i];
        plain += byte;
        with_signs += (signed char)byte;
    }
    char *end = NULL;
    long sum = strtol(field, &end, 8);
    return end != field && (sum == plain || sum == with_signs) && block[0] != '\0';
}

// The next header at or after `from`; the shard's size when there is none.
static uint64_t find_header(const struct lvp_tar_list *list, int file, uint64_t from)
{
    unsigned char bytes[BLOCK * 128];
    for (uint64_t at = (from + BLOCK - 1) / BLOCK * BLOCK; at < list->n_bytes; at += sizeof bytes) {
        ssize_t got = lvp_read_at(file, at, bytes, sizeof bytes);
        for (ssize_t i = 0; i + BLOCK <= got; i += BLOCK)
            if (is_header(bytes + i)) return at + (uint64_t)i;
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

static int compare_names(const void *a, const void *b, void *context)
{
    const struct lvp_tar_list *list = context;
    const size_t i = *(const size_t *)a, k = *(const size_t *)b;
    const char *x = lvp_name_list_at(&list->names, i), *y = lvp_name_list_at(&list->names, k);
    size_t n = lvp_tar_key_length(x), m = lvp_tar_key_length(y);
    int order = memcmp(x, y, n < m ? n : m);
    if (order != 0 || n != m) return order != 0 ? order : n < m ? -1 : 1;
    return i < k ? -1 : i > k;
}

// Behind damage, members of one sample may have been taken for two, or those of a tar inside for this one's: of samples
// with one key, all but the first become damage.
static enum lvp_status settle_keys(struct lvp_tar_list *list)
{
    size_t *order = calloc(list->n, sizeof *order);
    if (order == NULL) return out_of_memory(list);
    for (size_t i = 0; i < list->n; i++) order[i] = i;
    qsort_r(order, list->n, sizeof *order, compare_names, list);
    for (size_t i = 1; i < list->n; i++) {
        const char *a = lvp_name_list_at(&list->names, order[i - 1]), *b = lvp_name_list_at(&list->names, order[i]);
        size_t n = lvp_tar_key_length(a);
        if (n == 0 || n != lvp_tar_key_length(b) || memcmp(a, b, n) != 0) continue;
        list->samples[order[i]].fault = LVP_TAR_DAMAGED;
    }
    free(order);
    return LVP_OK;
}

static enum lvp_status read_shard(struct lvp_tar_list *list, int file, struct group *group)
{
    struct stat info;
    if (fstat(file, &info) != 0) return lvp_fail(LVP_ERR_USAGE, "--input %s: %s", list->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return lvp_fail(LVP_ERR_USAGE, "--input %s: not a regular file", list->path);
    if (is_compressed(file))
        return lvp_fail(LVP_ERR_USAGE, "--input %s: a compressed shard cannot be read by range; unpack it", list->path);
    list->n_bytes = (uint64_t)info.st_size;
    list->time = lvp_file_time(&info);
    if (list->n_bytes == 0) return add_damage(list, group, 0, LVP_TAR_DAMAGED);
    for (uint64_t from = 0; from < list->n_bytes;) {
        uint64_t at = 0, end = 0;
        bool ended = false;
        LVP_TRY(read_headers(list, file, group, from, &at, &end, &ended));
        // Behind the end mark are zeros to the end; a header there says that the zeros are a hole.
        from = find_header(list, file, ended ? at : end > from ? end : from + 1);
        bool cut_off = ended && from == list->n_bytes && end >= list->n_bytes;
        if (cut_off) LVP_TRY(add_damage(list, group, list->n_bytes, LVP_TAR_CUT_OFF));
        if (!ended || from < list->n_bytes)
            LVP_TRY(add_damage(list, group, end < list->n_bytes ? end : list->n_bytes, LVP_TAR_DAMAGED));
    }
    LVP_TRY(end_group(list, group));
    return list->damaged ? settle_keys(list) : LVP_OK;
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
