// A setting against the unpruned run on the same questions, with intervals from a bootstrap whose unit is the image:
// questions about one image stand or fall together.
#ifndef LVP_COORDINATOR_COMPARE_H
#define LVP_COORDINATOR_COMPARE_H

#include "coordinator/eval/task.h"

struct lvp_interval {
    double value, low, high; // low..high: 95 %; NAN where too few draws hold what is averaged
};

struct lvp_family_comparison {
    int n;                      // units
    struct lvp_interval score;  // mean, in 0..1
    struct lvp_interval change; // less the unpruned run's
    int better, worse;          // discordant pairs: units that score higher, lower than unpruned
    double nll, tokens;         // mean per token of the given answers; tokens 0: not measured
};

struct lvp_comparison {
    struct lvp_family_comparison families[LVP_MAX_FAMILIES];
    struct lvp_interval loss; // mean over families of (unpruned - score) / unpruned
};

// Deterministic. `dense` may be the outcome itself. LVP_ERR_MEMORY.
enum lvp_status lvp_compare(const struct lvp_task *task, const struct lvp_outcome *dense,
                            const struct lvp_outcome *outcome, struct lvp_comparison *comparison) LVP_MUST_CHECK;

#endif
