// From what a benchmark measured to the object it reports.
#ifndef LVP_COORDINATOR_BENCH_RESULT_H
#define LVP_COORDINATOR_BENCH_RESULT_H

#include "coordinator/bench.h"
#include "coordinator/run.h"

struct lvp_bench_repeat {
    double seconds;
    struct lvp_run_totals totals;
    Lvp__Statistics *statistics; // [n_workers]
    json_t *trace;               // of all workers (coordinator/output/timeline.h); NULL: none
};

// What the device of a worker could do.
struct lvp_roof_rates {
    double flops, read_bytes; // a second
    struct lvp_link link;     // to the next stage; zeros for the last
};

struct lvp_bench_measurement {
    const struct lvp_bench_options *options;
    const struct lvp_deployment *deployment;
    const struct lvp_world *world;
    const struct lvp_roof_rates *roofs; // [n_workers]
    const struct lvp_bench_repeat *repeats;
    int n_repeats; // at least 1
};

// One request of the benchmark.
struct lvp_workload lvp_bench_workload(const struct lvp_bench_options *options);

json_t *lvp_bench_result(const struct lvp_bench_measurement *measurement); // a new object; NULL when out of memory

#endif
