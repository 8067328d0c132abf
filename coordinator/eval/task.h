// The questions of an evaluation, and what one run made of them.
//
// DIR/questions.jsonl is a manifest that lvpipe caption can run (id, image, prompt), with for every question
//   "answers"  list of strings; with metric "facts" list of [object, attribute, ...]
//   "metric"   exact (default), soft, parts or facts: coordinator/eval/metric.h
//   "family"   questions whose scores are averaged together ("all")
//   "group"    questions of one family and image that count as one, right where all are (MMBench's circular option);
//              a text or a whole number; absent: alone
//   "answer"   the one answer whose log-probability is measured; in all questions, or in none: not measured
#ifndef LVP_COORDINATOR_TASK_H
#define LVP_COORDINATOR_TASK_H

#include "coordinator/eval/metric.h"

#include <stddef.h>

enum { LVP_MAX_FAMILIES = 64 };

struct lvp_question {
    enum lvp_metric metric;
    json_t *answers; // borrowed from the task's rows
    int unit;
    bool is_yes; // the (first) answer is yes
};

// What is counted: a question, or a group of them.
struct lvp_unit {
    int family, image;
};

struct lvp_task {
    char *path;   // of questions.jsonl
    json_t *rows; // parsed lines
    json_t *index, *vocabulary;
    bool has_answer; // the questions have the field "answer"
    int n, n_units, n_images, n_families;
    struct lvp_question *questions; // [n]
    struct lvp_unit *units;         // [n_units]
    const char *families[LVP_MAX_FAMILIES];
    bool yes_no[LVP_MAX_FAMILIES]; // all (first) answers are yes or no
};

// The first `limit` questions, or all where it is negative. All are checked, and facts known from all of them.
// LVP_ERR_USAGE naming file, line and field, LVP_ERR_MEMORY; to be freed after a failure too.
enum lvp_status lvp_task_load(const char *dir, long limit, struct lvp_task *task) LVP_MUST_CHECK;
void lvp_task_free(struct lvp_task *task); // safe on a zeroed one

// Of a family answered by yes or no.
struct lvp_yes_count {
    int is;          // questions, answered or not
    int said, right; // answers
};

// One setting's results, by unit.
struct lvp_outcome {
    double *score;                  // [n_units] 0..1; a question without an answer has 0
    double *nll, *tokens;           // [n_units] summed; tokens 0 where nothing was scored
    int unanswered;                 // questions without a row
    double prompt_rows, new_tokens; // of a question, on the mean over the answers; 0 where there are none
    struct lvp_yes_count yes[LVP_MAX_FAMILIES];
};

// answers, scores: folders of lvpipe caption; scores NULL: not measured. LVP_ERR_MEMORY, LVP_ERR_FORMAT naming file and
// line. To be freed after a failure too, as a task.
enum lvp_status lvp_outcome_read(const struct lvp_task *task, const char *answers, const char *scores,
                                 struct lvp_outcome *outcome) LVP_MUST_CHECK;
void lvp_outcome_free(struct lvp_outcome *outcome);

#endif
