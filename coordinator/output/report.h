// What a run was and did: run.json for programs, a summary with the bytes over every cut for people.
#ifndef LVP_COORDINATOR_REPORT_H
#define LVP_COORDINATOR_REPORT_H

#include "coordinator/caption.h"
#include "coordinator/output/captions.h"
#include "coordinator/run.h"

struct lvp_report { // all borrowed
    const struct lvp_caption_options *options;
    const struct lvp_model_config *config;
    const struct lvp_world *world; // with every worker's statistics
    const struct lvp_prune_counts *prune;
    const struct lvp_run_totals *totals;
    struct lvp_captions_counts counts;
    const char *model_hash, *kernel_set;
    double run_seconds, wall_seconds; // of requests; with loading
    bool mixed_numerics;
};

bool lvp_report_exists(const struct lvp_report *report); // an earlier run's
// run.json in the output folder, on stdout too with --json.
enum lvp_status lvp_report_write(const struct lvp_report *report) LVP_MUST_CHECK;
// The one that is there on stdout.
enum lvp_status lvp_report_repeat(const struct lvp_report *report) LVP_MUST_CHECK;
void lvp_report_print(const struct lvp_report *report); // the summary on stderr

#endif
