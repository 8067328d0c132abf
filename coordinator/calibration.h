// Measures a machine for the planner, on rank 0: what one of its devices does with so many threads, and how fast the
// link between two ranks is.
#ifndef LVP_COORDINATOR_CALIBRATION_H
#define LVP_COORDINATOR_CALIBRATION_H

#include "coordinator/profile.h"

#include <mpi.h>
#include <stdbool.h>

struct lvp_calibration_options {
    const char *model;                     // a shape's name
    const struct lvp_model_config *config; // the shape
    enum lvp_dtype dtype, weights;
    int threads; // 1, 2, 4, .. up to so many are measured
};

// Needs two workers, which hold the shape's narrow stand-in. *clean as lvp_caption.
enum lvp_status lvp_calibrate_profile(const struct lvp_calibration_options *options, MPI_Comm control, int n_workers,
                                      bool *clean, struct lvp_profile *profile) LVP_MUST_CHECK;

#endif
