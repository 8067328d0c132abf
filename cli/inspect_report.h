// What `lvpipe inspect` finds out about a folder, and its two ways to say it.
#ifndef LVP_CLI_INSPECT_REPORT_H
#define LVP_CLI_INSPECT_REPORT_H

#include "common/checkpoint.h"
#include "common/prompt.h"
#include "common/tokenizer.h"

#include <stdint.h>

struct lvp_inspect_report {
    const char *dir; // borrowed
    struct lvp_checkpoint *checkpoint;
    struct lvp_tokenizer *tokenizer;
    struct lvp_pruner_weights pruner; // n_points 0: the folder has none
    char *prompt;                     // of one image and "TEXT"; NULL: the chat template is not one of the known ones
    char hash[33];
    int64_t n_parameters; // of the weights that are computed with
    int64_t n_bytes;
    int64_t parameters_of[LVP_DTYPE_OTHER]; // by dtype
};

// LVP_ERR_MODEL when the folder cannot run. The report is to be freed in either case.
enum lvp_status lvp_inspect_report_collect(const char *dir, struct lvp_inspect_report *report) LVP_MUST_CHECK;
void lvp_inspect_report_free(struct lvp_inspect_report *report);

void lvp_inspect_report_print(const struct lvp_inspect_report *report);
enum lvp_status lvp_inspect_report_print_json(const struct lvp_inspect_report *report) LVP_MUST_CHECK;

// {"path", "can_run": false, "error"} with the text of the first failure.
void lvp_inspect_print_failure(const char *dir);

#endif
