// What a kind of device, and the links between devices, can really do: measured by `lvpipe bench --calibrate`, read by
// the planner. One timing model for planner and simulator. Plain data.
#ifndef LVP_COORDINATOR_PROFILE_H
#define LVP_COORDINATOR_PROFILE_H

#include "coordinator/cost.h"

#include <jansson.h>

enum { LVP_MAX_RATE_POINTS = 16, LVP_MAX_PROFILED_DEVICES = 8 };

// A device: so many threads of the profiled machine.
struct lvp_device_rates {
    int threads;
    double roof_flops, roof_read_bytes; // a second
    // FLOP/s of a decoder layer without attention, by the rows of a step, ascending
    int n_points;
    int rows[LVP_MAX_RATE_POINTS];
    double row_flops[LVP_MAX_RATE_POINTS];
    double prefill_attention_flops; // FLOP/s
    double decode_attention_bytes;  // bytes/s of KV
    double encode_flops;            // FLOP/s of the ViT
};

struct lvp_link {
    double bytes;   // a second, one direction
    double seconds; // of an empty message
};

struct lvp_profile {
    char cpu[64], kernel_set[16];
    enum lvp_dtype dtype, weights;
    int n_devices;
    struct lvp_device_rates devices[LVP_MAX_PROFILED_DEVICES]; // ascending threads
    struct lvp_link link;                                      // between ranks of this machine; bytes 0: not measured
};

// {"bytes_per_second", "latency_seconds"}, of a file that `option` names. LVP_ERR_USAGE naming file and field.
enum lvp_status lvp_link_read(const char *option, const char *path, const json_t *json, const char *field,
                              struct lvp_link *link) LVP_MUST_CHECK;

// LVP_ERR_USAGE naming file and field.
enum lvp_status lvp_profile_read(const char *path, struct lvp_profile *profile) LVP_MUST_CHECK;
enum lvp_status lvp_profile_write(const char *path, const struct lvp_profile *profile) LVP_MUST_CHECK; // LVP_ERR_IO

// LVP_ERR_USAGE where the profile was measured with other types.
enum lvp_status lvp_profile_check(const struct lvp_profile *profile, const char *path, enum lvp_dtype dtype,
                                  enum lvp_dtype weights) LVP_MUST_CHECK;

// The device of so many threads; where it was not measured, the next smaller one scaled up.
struct lvp_device_rates lvp_profile_device(const struct lvp_profile *profile, int threads);

// What a step holds, as far as its time depends on it.
struct lvp_step_load {
    int n_prompts;                // prefilled, one image and workload->text_tokens each
    int n_decodes;                // decode rows
    double decode_text, n_images; // of the decode rows: slots that are no image's, and images, summed
};

// Seconds of one block: for a step, or for encoding n images (blocks before `merge`).
double lvp_block_step_seconds(const struct lvp_workload *workload, const struct lvp_device_rates *rates, int block,
                              const struct lvp_step_load *load);
double lvp_block_encode_seconds(const struct lvp_workload *workload, const struct lvp_device_rates *rates, int block,
                                int n_images);

#endif
