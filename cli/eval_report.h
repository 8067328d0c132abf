// Tables of an evaluation: for people on stdout and in eval.md, for programs in eval.json.
#ifndef LVP_CLI_EVAL_REPORT_H
#define LVP_CLI_EVAL_REPORT_H

#include "coordinator/cost.h"
#include "coordinator/eval/compare.h"

#include <stdio.h>

// One row of the table: a pruner at a share.
struct lvp_eval_setting {
    char name[64]; // "none", "lvpruning-0.5"
    char pruner[32], keep[24];
    json_t *run;                  // run.json of its answers; owned
    struct lvp_workload workload; // a question of the mean lengths, with its image
    struct lvp_outcome outcome;
    struct lvp_comparison comparison; // with the first setting, which is unpruned
};

// Markdown: a line for every family and setting.
void lvp_eval_print(FILE *out, const struct lvp_task *task, const struct lvp_eval_setting *settings, int n);

// The same with every figure. NULL: no memory.
json_t *lvp_eval_json(const struct lvp_task *task, const struct lvp_eval_setting *settings, int n);

#endif
