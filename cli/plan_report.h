// What `lvpipe plan` prints: a table for people, or JSON with exact numbers. Its load, and its cuts where none are
// asked for, are by typical rates.
#ifndef LVP_CLI_PLAN_REPORT_H
#define LVP_CLI_PLAN_REPORT_H

#include "coordinator/forecast.h"

#include <jansson.h>

enum lvp_pruner_source {
    LVP_PRUNER_OFF,       // nothing is pruned
    LVP_PRUNER_FROM_FILE, // width and points of a weights file
    LVP_PRUNER_ASSUMED,   // full-width decision modules, as the paper's
    LVP_PRUNER_WEIGHTLESS // counts only: scoring costs next to nothing
};

struct lvp_plan_report {
    const char *model;  // folder or shape, borrowed
    const char *pruner; // name, borrowed
    enum lvp_pruner_source source;
    int images;                   // the figures are for so many requests of one image each
    struct lvp_workload workload; // pruned, one request
    struct lvp_planner_input planner;
    struct lvp_partition partition;
};

// Layouts of a cluster, the best first, and where the time of the best goes.
void lvp_forecasts_print(const struct lvp_forecast_input *input, const struct lvp_forecast *forecasts, int n);
json_t *lvp_forecasts_json(const struct lvp_forecast *forecasts, int n); // owned by the caller; NULL when out of memory

void lvp_plan_report_print(const struct lvp_plan_report *report);
json_t *lvp_plan_report_json(const struct lvp_plan_report *report); // owned by the caller; NULL when out of memory

#endif
