#include "worker/image/image.h"

#include "common/file.h"
#include "common/image_kind.h"

#include "worker/image/decode.h"
#include "worker/image/preprocess.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    // A file larger than its largest honest pixels (16-bit RGBA, uncompressed) and this much metadata is not read.
    MAX_BYTES_PER_PIXEL = 8,
    MAX_METADATA_BYTES = 64 << 20,
};

struct kind {
    enum lvp_status (*decode)(const uint8_t *bytes, size_t n_bytes, int64_t max_pixels, struct lvp_raster *raster,
                              struct lvp_sample_error *error);
    int (*orientation)(const uint8_t *bytes, size_t n_bytes);
};

static const struct kind kinds[] = {
    [LVP_IMAGE_JPEG] = {lvp_decode_jpeg, lvp_exif_orientation_jpeg},
    [LVP_IMAGE_PNG] = {lvp_decode_png, lvp_exif_orientation_png},
    [LVP_IMAGE_WEBP] = {lvp_decode_webp, lvp_exif_orientation_webp},
};

// The kind by content; NULL for anything else.
static const struct kind *kind_of(const uint8_t *bytes, size_t n_bytes)
{
    enum lvp_image_kind kind = lvp_image_kind(bytes, n_bytes);
    return kind != LVP_IMAGE_UNKNOWN ? &kinds[kind] : NULL;
}

static void set_unknown_kind(size_t n_bytes, struct lvp_sample_error *error)
{
    lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "%s",
                         n_bytes == 0 ? "the file is empty" : "neither JPEG, PNG nor WebP by content");
}

enum lvp_status lvp_image_load_bytes(const void *bytes, size_t n_bytes, const struct lvp_image_config *config,
                                     int64_t max_pixels, float *pixels, struct lvp_sample_error *error)
{
    *error = (struct lvp_sample_error){0};
    const struct kind *kind = kind_of(bytes, n_bytes);
    if (kind == NULL) {
        set_unknown_kind(n_bytes, error);
        return LVP_OK;
    }
    struct lvp_raster raster;
    enum lvp_status status = kind->decode(bytes, n_bytes, max_pixels, &raster, error);
    if (status != LVP_OK || error->code != LVP_SAMPLE_OK) return status;
    LVP_CHECK(lvp_raster_orient(&raster, kind->orientation(bytes, n_bytes)));
    status = lvp_image_preprocess(&raster, config, pixels, error);
fail:
    lvp_raster_free(&raster);
    return status;
}

static enum lvp_status shard_lost(const struct lvp_image_file *from, const char *why)
{
    return lvp_fail(LVP_ERR_IO, "the shard %s cannot be read any more: %s; nothing is lost, resume when it is back",
                    from->path, why);
}

// Running out of descriptors or memory is this process's trouble, and whatever keeps a shard from being read is its
// storage's; anything else is the sample's.
static enum lvp_status report_errno(const struct lvp_image_file *from, const char *what, struct lvp_sample_error *error)
{
    const int code = errno;
    char text[128];
    const char *reason = strerror_r(code, text, sizeof text); // the GNU form, which returns the text
    if (code == ENOMEM) return lvp_fail(LVP_ERR_MEMORY, "%s: %s", what, reason);
    if (code == EMFILE || code == ENFILE) return lvp_fail(LVP_ERR_IO, "%s: %s", what, reason);
    if (from->shard_bytes > 0) return shard_lost(from, reason);
    lvp_sample_error_set(error, LVP_SAMPLE_FILE_MISSING, "%s: %s", what, reason);
    return LVP_OK;
}

// Checks that the file is what it should be, and where in it the image lies.
static enum lvp_status find_bytes(const struct lvp_image_file *from, int file, uint64_t *offset, uint64_t *n_bytes,
                                  struct lvp_sample_error *error)
{
    struct stat info;
    if (fstat(file, &info) != 0) return report_errno(from, "cannot stat the file", error);
    if (from->shard_bytes > 0) {
        if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size != from->shard_bytes ||
            lvp_file_time(&info) != from->shard_time)
            return shard_lost(from, "it has changed since it was listed");
        *offset = from->offset;
        *n_bytes = from->n_bytes;
        return LVP_OK;
    }
    if (!S_ISREG(info.st_mode)) {
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "%s, not a regular file",
                             S_ISDIR(info.st_mode) ? "a directory" : "a pipe, socket or device");
        return LVP_OK;
    }
    *offset = 0;
    *n_bytes = (uint64_t)info.st_size;
    return LVP_OK;
}

// Reads all bytes of the image, once its first ones look like an image. *bytes is the caller's to free, NULL where
// *error is set.
static enum lvp_status read_file(const struct lvp_image_file *from, int file, int64_t max_pixels, uint8_t **bytes,
                                 size_t *n_bytes, struct lvp_sample_error *error)
{
    uint64_t offset = 0, size = 0;
    LVP_TRY(find_bytes(from, file, &offset, &size, error));
    if (error->code != LVP_SAMPLE_OK) return LVP_OK;
    uint8_t signature[LVP_SIGNATURE_BYTES];
    ssize_t got = lvp_read_at(file, offset, signature, size < sizeof signature ? (size_t)size : sizeof signature);
    if (got < 0) return report_errno(from, "cannot read the file", error);
    if (kind_of(signature, (size_t)got) == NULL) {
        set_unknown_kind((size_t)got, error);
        return LVP_OK;
    }
    const uint64_t limit = max_pixels < (INT64_MAX - MAX_METADATA_BYTES) / MAX_BYTES_PER_PIXEL
                               ? (uint64_t)(max_pixels * MAX_BYTES_PER_PIXEL + MAX_METADATA_BYTES)
                               : INT64_MAX;
    if (size > limit) {
        lvp_sample_error_set(error, LVP_SAMPLE_IMAGE_TOO_LARGE, "%llu bytes for at most %lld pixels",
                             (unsigned long long)size, (long long)max_pixels);
        return LVP_OK;
    }
    *bytes = malloc((size_t)size + 1); // never 0 bytes, even if the file has just shrunk
    if (*bytes == NULL) return lvp_fail(LVP_ERR_MEMORY, "no memory for %llu bytes", (unsigned long long)size);
    got = lvp_read_at(file, offset, *bytes, (size_t)size);
    *n_bytes = got > 0 ? (size_t)got : 0;
    if (got >= 0 && (*n_bytes == size || from->shard_bytes == 0)) return LVP_OK;
    enum lvp_status status =
        got < 0 ? report_errno(from, "cannot read the file", error) : shard_lost(from, "it ends early");
    free(*bytes);
    *bytes = NULL;
    return status;
}

// A file system that has just moved on (a stale handle, an I/O error of a moment) often answers the second time.
static int open_patiently(const char *path)
{
    enum { TRIES = 3, REST_NS = 200000000 };
    for (int i = 1;; i++) {
        // Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
        const int file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        if (file >= 0 || i == TRIES || (errno != ESTALE && errno != EIO && errno != EAGAIN)) return file;
        const struct timespec rest = {0, REST_NS};
        (void)nanosleep(&rest, NULL);
    }
}

enum lvp_status lvp_image_load(const struct lvp_image_file *from, const struct lvp_image_config *config,
                               int64_t max_pixels, float *pixels, struct lvp_sample_error *error)
{
    *error = (struct lvp_sample_error){0};
    const int file = open_patiently(from->path);
    // A socket, or a device without a driver, cannot even be opened.
    if (file < 0 && errno == ENXIO) {
        lvp_sample_error_set(error, LVP_SAMPLE_NOT_AN_IMAGE, "a pipe, socket or device, not a regular file");
        return LVP_OK;
    }
    if (file < 0) return report_errno(from, "cannot open the file", error);
    uint8_t *bytes = NULL;
    size_t n_bytes = 0;
    enum lvp_status status = read_file(from, file, max_pixels, &bytes, &n_bytes, error);
    (void)close(file);
    if (status == LVP_OK && error->code == LVP_SAMPLE_OK) {
        status = lvp_image_load_bytes(bytes, n_bytes, config, max_pixels, pixels, error);
    }
    free(bytes);
    return status;
}
