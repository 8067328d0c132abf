#include "coordinator/eval/task.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum lvp_status no_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "an evaluation: out of memory");
}

// Calls take with every line's object. `bad` is the status of a line that is none.
static enum lvp_status each_line(const char *path, enum lvp_status bad,
                                 enum lvp_status (*take)(void *context, int line, json_t *row), void *context)
{
    FILE *file = fopen(path, "r");
    if (file == NULL) return lvp_fail(bad, "%s: %s", path, strerror(errno));
    enum lvp_status status = LVP_OK;
    char *text = NULL;
    size_t room = 0;
    for (int line = 1; status == LVP_OK && getline(&text, &room, file) > 0; line++) {
        json_error_t error;
        if (text[strspn(text, " \t\r\n")] == '\0') continue;
        json_t *row = json_loads(text, 0, &error);
        if (json_is_object(row))
            status = take(context, line, row);
        else
            status = lvp_fail(bad, "%s, line %d: %s", path, line, row == NULL ? error.text : "not an object");
        json_decref(row);
    }
    if (status == LVP_OK && ferror(file)) status = lvp_fail(LVP_ERR_IO, "%s: %s", path, strerror(errno));
    free(text);
    (void)fclose(file);
    return status;
}

// --- questions

// The number of a name among those met so far.
static json_int_t number_of(json_t *names, const char *kind, const char *name, int *n)
{
    char key[600];
    (void)snprintf(key, sizeof key, "%s %.500s", kind, name);
    json_t *known = json_object_get(names, key);
    if (known != NULL) return json_integer_value(known);
    json_object_set_new(names, key, json_integer(*n));
    return (*n)++;
}

struct loading {
    struct lvp_task *task;
    json_t *names; // "image ...", "family ...", "group ..." -> number
    long limit;    // negative: none
};

static enum lvp_status bad(const struct lvp_task *task, int line, const char *what)
{
    return lvp_fail(LVP_ERR_USAGE, "%s, line %d: %s", task->path, line, what);
}

static enum lvp_status learn_facts(struct lvp_task *task, const json_t *answers)
{
    for (size_t i = 0; i < json_array_size(answers); i++)
        for (size_t f = 0; f < json_array_size(json_array_get(answers, i)); f++) {
            char *fact = lvp_metric_normalise(json_string_value(json_array_get(json_array_get(answers, i), f)));
            if (fact == NULL || json_object_set_new(task->vocabulary, fact, json_true()) != 0) return no_memory();
            free(fact);
        }
    return LVP_OK;
}

static enum lvp_status take_question(void *context, int line, json_t *row)
{
    struct loading *loading = context;
    struct lvp_task *task = loading->task;
    if (loading->limit >= 0 && task->n >= loading->limit) return LVP_OK;
    const char *id = json_string_value(json_object_get(row, "id"));
    const char *image = json_string_value(json_object_get(row, "image"));
    const char *family = json_string_value(json_object_get(row, "family"));
    const char *metric = json_string_value(json_object_get(row, "metric"));
    const char *group = json_string_value(json_object_get(row, "group"));
    json_t *answers = json_object_get(row, "answers");
    struct lvp_question question = {.metric = LVP_METRIC_EXACT, .answers = answers};
    if (id == NULL || image == NULL) return bad(task, line, "the fields id and image must be strings");
    if (json_object_get(task->index, id) != NULL) return bad(task, line, "its id was there before");
    if (metric != NULL && !lvp_metric_find(metric, &question.metric))
        return bad(task, line, "metric: give exact, soft, parts or facts");
    if (!lvp_metric_takes(question.metric, answers))
        return bad(task, line, "answers: give a list of strings (with facts, of lists of strings)");
    if (question.metric == LVP_METRIC_FACTS) LVP_TRY(learn_facts(task, answers));
    int n_families = task->n_families;
    struct lvp_unit unit = {.family =
                                (int)number_of(loading->names, "family", family != NULL ? family : "all", &n_families),
                            .image = (int)number_of(loading->names, "image", image, &task->n_images)};
    if (n_families > LVP_MAX_FAMILIES) return bad(task, line, "too many families");
    if (n_families > task->n_families) {
        task->families[unit.family] = family != NULL ? family : "all";
        task->yes_no[unit.family] = true;
        task->n_families = n_families;
    }
    const char *first = json_string_value(json_array_get(answers, 0));
    task->yes_no[unit.family] =
        task->yes_no[unit.family] && first != NULL && (strcmp(first, "yes") == 0 || strcmp(first, "no") == 0);
    int n_units = task->n_units;
    question.unit = group != NULL ? (int)number_of(loading->names, "group", group, &n_units) : n_units++;
    if ((task->n & (task->n - 1)) == 0) { // powers of two
        size_t room = task->n == 0 ? 1 : 2 * (size_t)task->n;
        void *questions = realloc(task->questions, room * sizeof *task->questions);
        if (questions != NULL) task->questions = questions;
        void *units = realloc(task->units, room * sizeof *task->units); // never more than questions
        if (units != NULL) task->units = units;
        if (questions == NULL || units == NULL) return no_memory();
    }
    task->units[question.unit] = unit;
    task->n_units = n_units;
    task->has_answer = task->has_answer || json_object_get(row, "answer") != NULL;
    if (json_object_set_new(task->index, id, json_integer(task->n)) != 0 || json_array_append(task->rows, row) != 0)
        return no_memory();
    task->questions[task->n++] = question;
    return LVP_OK;
}

enum lvp_status lvp_task_load(const char *dir, long limit, struct lvp_task *task)
{
    *task = (struct lvp_task){.rows = json_array(), .index = json_object(), .vocabulary = json_object()};
    struct loading loading = {.task = task, .names = json_object(), .limit = limit};
    if (asprintf(&task->path, "%s/questions.jsonl", dir) < 0) return no_memory();
    enum lvp_status status = each_line(task->path, LVP_ERR_USAGE, take_question, &loading);
    json_decref(loading.names);
    if (status == LVP_OK && task->n == 0) status = lvp_fail(LVP_ERR_USAGE, "%s holds no question", task->path);
    return status;
}

void lvp_task_free(struct lvp_task *task)
{
    json_decref(task->rows);
    json_decref(task->index);
    json_decref(task->vocabulary);
    free(task->path);
    free(task->questions);
    free(task->units);
    *task = (struct lvp_task){0};
}

// --- results

struct reading {
    const struct lvp_task *task;
    struct lvp_outcome *outcome;
    const char *path;
    bool *answered; // [n]
};

static enum lvp_status question_of(const struct reading *reading, int line, const json_t *row, int *question)
{
    const char *id = json_string_value(json_object_get(row, "id"));
    const json_t *known = id == NULL ? NULL : json_object_get(reading->task->index, id);
    if (known == NULL)
        return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: its id is none of %s", reading->path, line, reading->task->path);
    *question = (int)json_integer_value(known);
    return LVP_OK;
}

static void count_yes(struct lvp_outcome *outcome, const char *text, const struct lvp_question *question)
{
    bool yes = strcmp(json_string_value(json_array_get(question->answers, 0)), "yes") == 0;
    char *said = lvp_metric_normalise(text);
    bool said_yes = said != NULL && strcmp(said, "yes") == 0;
    free(said);
    outcome->is_yes += yes;
    outcome->said_yes += said_yes;
    outcome->right_yes += yes && said_yes;
}

static enum lvp_status take_answer(void *context, int line, json_t *row)
{
    struct reading *reading = context;
    struct lvp_outcome *outcome = reading->outcome;
    const char *text = json_string_value(json_object_get(row, "caption"));
    double score = 0;
    int q = 0;
    if (text == NULL) return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: no caption", reading->path, line);
    LVP_TRY(question_of(reading, line, row, &q));
    const struct lvp_question *question = &reading->task->questions[q];
    LVP_TRY(lvp_metric_score(question->metric, text, question->answers, reading->task->vocabulary, &score));
    if (reading->task->yes_no[reading->task->units[question->unit].family]) count_yes(outcome, text, question);
    if (score < outcome->score[question->unit]) outcome->score[question->unit] = score;
    reading->answered[q] = true;
    return LVP_OK;
}

static enum lvp_status take_scores(void *context, int line, json_t *row)
{
    struct reading *reading = context;
    const json_t *logprobs = json_object_get(row, "logprobs");
    int q = 0;
    LVP_TRY(question_of(reading, line, row, &q));
    int unit = reading->task->questions[q].unit;
    if (json_array_size(logprobs) == 0)
        return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: no logprobs", reading->path, line);
    for (size_t i = 0; i < json_array_size(logprobs); i++)
        reading->outcome->nll[unit] -= json_number_value(json_array_get(logprobs, i));
    reading->outcome->tokens[unit] += (double)json_array_size(logprobs);
    return LVP_OK;
}

static enum lvp_status read_rows(struct reading *reading, const char *dir,
                                 enum lvp_status (*take)(void *context, int line, json_t *row))
{
    char *path = NULL;
    if (asprintf(&path, "%s/captions.jsonl", dir) < 0) return no_memory();
    reading->path = path;
    enum lvp_status status = each_line(path, LVP_ERR_FORMAT, take, reading);
    free(path);
    return status;
}

enum lvp_status lvp_outcome_read(const struct lvp_task *task, const char *answers, const char *scores,
                                 struct lvp_outcome *outcome)
{
    size_t n = (size_t)task->n_units;
    struct reading reading = {.task = task, .outcome = outcome, .answered = calloc((size_t)task->n, sizeof(bool))};
    *outcome = (struct lvp_outcome){
        .score = malloc(n * sizeof(double)), .nll = calloc(n, sizeof(double)), .tokens = calloc(n, sizeof(double))};
    enum lvp_status status = LVP_OK;
    if (reading.answered == NULL || outcome->score == NULL || outcome->nll == NULL || outcome->tokens == NULL)
        status = no_memory();
    for (size_t u = 0; u < n && status == LVP_OK; u++) outcome->score[u] = 1; // until a question of it scores less
    if (status == LVP_OK) status = read_rows(&reading, answers, take_answer);
    for (int q = 0; q < task->n && status == LVP_OK; q++)
        if (!reading.answered[q]) {
            outcome->score[task->questions[q].unit] = 0;
            outcome->unanswered++;
        }
    if (status == LVP_OK && scores != NULL) status = read_rows(&reading, scores, take_scores);
    free(reading.answered);
    return status;
}

void lvp_outcome_free(struct lvp_outcome *outcome)
{
    free(outcome->score);
    free(outcome->nll);
    free(outcome->tokens);
    *outcome = (struct lvp_outcome){0};
}
