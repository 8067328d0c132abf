// Image bytes to the ViT's pixels, equal to transformers' CLIPImageProcessor with Pillow: decode (kind by content),
// EXIF orientation, RGB, antialiased resize, centre crop, rescale, normalise. Only the crop window is computed.
//
// Thread: any; no shared state.
#ifndef LVP_WORKER_IMAGE_IMAGE_H
#define LVP_WORKER_IMAGE_IMAGE_H

#include "common/model_config.h"
#include "common/sample_error.h"

// Where an image's bytes are: a file of its own, or a part of a tar shard.
struct lvp_image_file {
    const char *path;
    uint64_t offset, n_bytes; // of a shard
    uint64_t shard_bytes;     // size that the shard must have; 0: the file is the image
    int64_t shard_time;       // and when it was changed last (lvp_file_time)
};

// Reads a regular file, or its part of one, and prepares it. `pixels` is [3, crop_height, crop_width] f32, owned by the
// caller. A bad image is reported in *error with LVP_OK. Failures of the call: LVP_ERR_MEMORY; LVP_ERR_IO out of file
// descriptors, or a shard that is gone or not what was listed, which is no fault of the image; LVP_ERR_MODEL where the
// settings do not lead to the crop's size (no centre crop, and another size after resizing).
enum lvp_status lvp_image_load(const struct lvp_image_file *file, const struct lvp_image_config *config,
                               int64_t max_pixels, float *pixels, struct lvp_sample_error *error) LVP_MUST_CHECK;

// The same from bytes in memory.
enum lvp_status lvp_image_load_bytes(const void *bytes, size_t n_bytes, const struct lvp_image_config *config,
                                     int64_t max_pixels, float *pixels, struct lvp_sample_error *error) LVP_MUST_CHECK;

#endif
