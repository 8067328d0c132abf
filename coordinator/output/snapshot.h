// One look at a run, and what it says as text for programs: status.json, members of a JSON log line, metrics for
// Prometheus.
#ifndef LVP_COORDINATOR_SNAPSHOT_H
#define LVP_COORDINATOR_SNAPSHOT_H

#include "common/json_text.h"
#include "coordinator/output/captions.h"
#include "coordinator/run.h"

struct lvp_snapshot {
    struct lvp_captions_counts counts;
    struct lvp_run_gauges gauges;
    double seconds; // since this life of the run began to work
    int n_ranks, restarts;
};

struct lvp_rates {
    double images, tokens; // encoded and generated per second of this life; 0: not known yet
    double seconds_left;   // negative: not known
};

struct lvp_rates lvp_rates_of(const struct lvp_snapshot *snapshot);
uint64_t lvp_snapshot_done(const struct lvp_snapshot *snapshot); // requests, failed ones too

// "done":5,"total":10,... without braces.
void lvp_snapshot_members(const struct lvp_snapshot *snapshot, struct lvp_json_text *text);

// status.json, NUL-terminated. `state`: "loading", "running", "draining", "done", "drained", "stopped" or "failed";
// `error` "" for none.
void lvp_snapshot_status(const struct lvp_snapshot *snapshot, const char *state, const char *error,
                         struct lvp_json_text *text);

// Prometheus' text format, for node exporter's textfile collector; NUL-terminated.
void lvp_snapshot_metrics(const struct lvp_snapshot *snapshot, struct lvp_json_text *text);

#endif
