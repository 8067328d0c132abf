// A snapshot of a run as text for programs: status.json, members of a JSON log line, metrics for Prometheus.
#ifndef LVP_COORDINATOR_STATUS_TEXT_H
#define LVP_COORDINATOR_STATUS_TEXT_H

#include "common/json_text.h"
#include "coordinator/output/progress.h"

// "done":5,"total":10,... without braces.
void lvp_status_members(const struct lvp_snapshot *snapshot, struct lvp_json_text *text);

// status.json, NUL-terminated. `error` "" for none.
void lvp_status_text(const struct lvp_snapshot *snapshot, const struct lvp_progress_options *options, const char *state,
                     const char *error, struct lvp_json_text *text);

// Prometheus' text format, for node exporter's textfile collector; NUL-terminated.
void lvp_metrics_text(const struct lvp_snapshot *snapshot, struct lvp_json_text *text);

#endif
