// The image pool of the first vision stage: threads that read, decode and preprocess images ahead of need, each into
// the pixel buffer of its slot. A slot is busy from submit until its result is taken; the coordinator hands slots out.
// Thread: submit, take and destroy from the communication thread; pixels from the compute thread, for slots that were
// taken.
#ifndef LVP_WORKER_PREPARE_H
#define LVP_WORKER_PREPARE_H

#include "worker/image/image.h"

#include <stdbool.h>
#include <time.h>

struct lvp_prepare;

struct lvp_prepared {
    int slot;
    double start;                  // lvp_wall_seconds() when its thread took it
    struct lvp_sample_error error; // code LVP_SAMPLE_OK: the pixels are ready; crashed: memory ran out over it
};

enum lvp_status lvp_prepare_create(const struct lvp_image_config *config, int64_t max_pixels, int n_slots,
                                   int n_threads, struct lvp_prepare **prepare) LVP_MUST_CHECK;
// Waits for images being decoded. False when that takes longer than `until` (CLOCK_REALTIME): nothing is freed then.
// NULL is allowed.
bool lvp_prepare_destroy(struct lvp_prepare *prepare, const struct timespec *until);

// `sample` is whose image it is, for the rank's record; the path is copied. An empty path makes an image up.
// LVP_ERR_FORMAT for a slot that is out of range or busy.
enum lvp_status lvp_prepare_submit(struct lvp_prepare *prepare, int slot, const struct lvp_image_file *file,
                                   uint64_t sample) LVP_MUST_CHECK;
// The next result, if there is one. LVP_ERR_IO and LVP_ERR_MODEL as lvp_image_load.
enum lvp_status lvp_prepare_take(struct lvp_prepare *prepare, struct lvp_prepared *result, bool *taken) LVP_MUST_CHECK;
bool lvp_prepare_busy(struct lvp_prepare *prepare);

// [3, crop_height, crop_width] f32
const float *lvp_prepare_pixels(const struct lvp_prepare *prepare, int slot);

#endif
