// Answers the coordinator's Probe: what this machine, its device and the link to another worker could do. For
// benchmarks and calibration: blocks for seconds, while nothing else is under way. Thread: the communication thread.
#ifndef LVP_WORKER_PROBE_H
#define LVP_WORKER_PROBE_H

#include "common/transport.h"
#include "worker/calibrate.h"
#include "worker/compute.h"

struct lvp_probe {
    Lvp__Roof answer; // points into the rest
    Lvp__Roof__Experiment experiments[LVP_MAX_EXPERIMENTS], *pointers[LVP_MAX_EXPERIMENTS];
};

// The compute lock is held. LVP_ERR_FORMAT for a question that cannot be, or comes while work is under way.
enum lvp_status lvp_probe_run(struct lvp_compute *compute, struct lvp_transport *transport, int rank, int n_ranks,
                              const Lvp__Probe *question, struct lvp_probe *probe) LVP_MUST_CHECK;

#endif
