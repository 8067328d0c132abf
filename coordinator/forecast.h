// What a cluster would do with a model, for every sensible number of stages: partitions by measured rates, and a
// simulated run of each, pruned and unpruned. Pure.
#ifndef LVP_COORDINATOR_FORECAST_H
#define LVP_COORDINATOR_FORECAST_H

#include "coordinator/planner.h"
#include "coordinator/simulate.h"

struct lvp_forecast_input {
    const struct lvp_workload *workload; // pruned as asked; the unpruned one is derived
    const struct lvp_profile *profile;
    const struct lvp_cluster *cluster;
    const struct lvp_partition_choice *choice;
    int images;
    int concurrency, batch_tokens; // 0: from the plan
};

struct lvp_forecast {
    int n_stages, n_replicas;
    int concurrency;                // requests in steps at once, of each replica
    bool fits;                      // in the devices' memory; if not, the rest is empty
    struct lvp_partition partition; // of the pruned run
    int64_t memory[LVP_MAX_STAGES]; // bytes of each stage: weights, KV of the requests in flight
    bool dense_fits;                // unpruned too; `dense` is empty if not
    struct lvp_simulation pruned, dense;
};

// One layout. LVP_ERR_USAGE where the cluster is too small.
enum lvp_status lvp_forecast(const struct lvp_forecast_input *input, int n_stages, int n_replicas,
                             struct lvp_forecast *forecast) LVP_MUST_CHECK;

enum { LVP_MAX_FORECASTS = 8 };

// Layouts that use all devices: 1, 2, 4, .. stages; the best first. forecasts [LVP_MAX_FORECASTS].
enum lvp_status lvp_forecast_all(const struct lvp_forecast_input *input, struct lvp_forecast *forecasts,
                                 int *n_forecasts) LVP_MUST_CHECK;

#endif
