// How many stages and replicas a number of workers makes, for every command that runs a model.
#ifndef LVP_COORDINATOR_LAYOUT_H
#define LVP_COORDINATOR_LAYOUT_H

#include "common/status.h"

struct lvp_layout_request {
    int stages, replicas; // 0: from the number of workers
    int by_partition;     // stages that the partition makes by itself; 0: any
};

// LVP_ERR_USAGE saying the number of ranks that would be right.
enum lvp_status lvp_layout(const struct lvp_layout_request *asked, int n_workers, int *stages,
                           int *replicas) LVP_MUST_CHECK;

// Workers that a bare launch starts. Errors as lvp_layout.
enum lvp_status lvp_layout_workers(const struct lvp_layout_request *asked, int *n_workers) LVP_MUST_CHECK;

#endif
