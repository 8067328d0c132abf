// How an answer is scored against a question's own answers.
#ifndef LVP_COORDINATOR_METRIC_H
#define LVP_COORDINATOR_METRIC_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>

enum lvp_metric {
    LVP_METRIC_EXACT, // equal to one of the answers after normalising, after GQA, ScienceQA, POPE and MMBench
    LVP_METRIC_SOFT,  // VQA accuracy (Antol et al. 2015): mean over leaving one answer out of min(1, equal ones / 3)
    LVP_METRIC_PARTS, // share of the answers that the text's parts, cut at "and", commas and full stops outside
                      // numbers, give in order; in place of MM-Vet's judge
    LVP_METRIC_FACTS  // F1 of facts: answers are lists [object, attribute, ...], and the text a list of phrases
                      // in place of LLaVA-W's judge
};

// "exact", "soft", "parts", "facts".
bool lvp_metric_find(const char *name, enum lvp_metric *metric);

// Lower case, without punctuation, articles (unless there is nothing else) and needless space, small numbers as digits.
// Malloc'ed; NULL: no memory.
char *lvp_metric_normalise(const char *text);

// Whether `answers` has the metric's form: strings, for facts lists of them, that a text could match. *fault says what
// is wrong with them; NULL: nothing. LVP_ERR_MEMORY.
enum lvp_status lvp_metric_check(enum lvp_metric metric, const json_t *answers, const char **fault) LVP_MUST_CHECK;

// In 0..1. `vocabulary` (facts): an object whose keys are all facts of the task, normalised.
enum lvp_status lvp_metric_score(enum lvp_metric metric, const char *text, const json_t *answers,
                                 const json_t *vocabulary, double *score) LVP_MUST_CHECK;

#endif
