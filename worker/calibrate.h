// How fast this device does each kind of work, for the planner: short experiments on stages of a few layers with
// made-up weights. They run through the same code as the real stages, so that whatever a backend does is in them.
//
#ifndef LVP_WORKER_CALIBRATE_H
#define LVP_WORKER_CALIBRATE_H

#include "common/measure.h"
#include "worker/backend.h"

struct lvp_experiment_result {
    enum lvp_experiment kind;
    int n, kv_len;
    double seconds; // of one layer
};

enum { LVP_MAX_EXPERIMENTS = 24 };

// Runs all experiments on `threads` threads with layers of `config`, of which lvp_shape_narrow is the usual one; takes
// 10 to 60 s. results [LVP_MAX_EXPERIMENTS]; *roof is what those threads could do at best.
enum lvp_status lvp_calibrate(const struct lvp_model_config *config, int gpu, const char *kernel_set,
                              enum lvp_dtype dtype, enum lvp_dtype weights, int threads,
                              struct lvp_experiment_result *results, int *n_results,
                              struct lvp_roof *roof) LVP_MUST_CHECK;

#endif
