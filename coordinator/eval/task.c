#include "coordinator/eval/task.h"

#include "coordinator/input/sample.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_LINE_BYTES = 16 << 20 }; // as caption's manifests

static enum lvp_status no_memory(void)
{
    return lvp_fail(LVP_ERR_MEMORY, "an evaluation: out of memory");
}

// The next line without its end into text [MAX_LINE_BYTES]; *n is -1 at the end of the file.
static enum lvp_status next_line(FILE *file, const char *path, enum lvp_status bad, int line, char *text, long *n)
{
    int c;
    *n = 0;
    while ((c = getc_unlocked(file)) != EOF && c != '\n') {
        if (*n == MAX_LINE_BYTES) return lvp_fail(bad, "%s, line %d: longer than 16 MiB", path, line);
        text[(*n)++] = (char)c;
    }
    if (ferror(file)) return lvp_fail(LVP_ERR_IO, "%s: %s", path, strerror(errno));
    if (c == EOF && *n == 0) *n = -1;
    return LVP_OK;
}

static bool is_blank(const char *text, long n)
{
    for (long i = 0; i < n; i++)
        if (memchr(" \t\r", text[i], 3) == NULL) return false;
    return true;
}

// Calls take with every line's object: of questions as caption reads a manifest, else of rows that caption wrote, whose
// answers may hold a NUL.
static enum lvp_status each_line(const char *path, bool questions,
                                 enum lvp_status (*take)(void *context, int line, json_t *row), void *context)
{
    const enum lvp_status bad = questions ? LVP_ERR_USAGE : LVP_ERR_FORMAT;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // opening a FIFO must not wait for its writer
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (file == NULL) return lvp_fail(bad, "%s: %s", path, strerror(errno));
    char *text = malloc(MAX_LINE_BYTES); // pages that no line reaches are never touched
    enum lvp_status status = text != NULL ? LVP_OK : no_memory();
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) status = lvp_fail(bad, "%s: not a regular file", path);
    long n = 0, mark = 0;
    for (int line = 1; status == LVP_OK; line++) {
        json_error_t error;
        LVP_CHECK(next_line(file, path, bad, line, text, &n));
        if (n < 0) break;
        mark = line == 1 && n >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0; // some editors begin UTF-8 so
        if (is_blank(text + mark, n - mark)) continue;
        json_t *row = questions ? lvp_parse_row(text + mark, (size_t)(n - mark), &error)
                                : json_loadb(text, (size_t)n, JSON_ALLOW_NUL, &error);
        if (json_is_object(row))
            status = take(context, line, row);
        else
            status = lvp_fail(bad, "%s, line %d: %s", path, line, row == NULL ? error.text : "not an object");
        json_decref(row);
    }
fail:
    free(text);
    (void)fclose(file);
    return status;
}

// --- questions

struct loading {
    struct lvp_task *task;
    json_t *names;   // "image ...", "family ...", "group ..." -> number
    long limit;      // negative: none
    int first_line;  // of a question
    bool has_answer; // that one
};

static enum lvp_status bad(const struct lvp_task *task, int line, const char *field, const char *what)
{
    return lvp_fail(LVP_ERR_USAGE, "%s, line %d: %s: %s", task->path, line, field, what);
}

// A field that is a text or, absent or null, NULL.
static enum lvp_status get_text(const struct lvp_task *task, int line, const json_t *row, const char *field,
                                const char **text)
{
    const json_t *value = json_object_get(row, field);
    *text = json_string_value(value);
    if (value == NULL || json_is_null(value) || *text != NULL) return LVP_OK;
    return bad(task, line, field, "must be a string");
}

// The number of a name among those met so far.
static enum lvp_status number_of(json_t *names, const char *kind, const char *name, int *n, int *number)
{
    char *key = NULL;
    enum lvp_status status = LVP_OK;
    if (asprintf(&key, "%s %s", kind, name) < 0) return no_memory();
    const json_t *known = json_object_get(names, key);
    *number = known != NULL ? (int)json_integer_value(known) : *n;
    if (known == NULL && json_object_set_new(names, key, json_integer(*n)) != 0)
        status = no_memory();
    else
        *n += known == NULL;
    free(key);
    return status;
}

static enum lvp_status learn_facts(struct lvp_task *task, const json_t *answers)
{
    for (size_t i = 0; i < json_array_size(answers); i++)
        for (size_t f = 0; f < json_array_size(json_array_get(answers, i)); f++) {
            char *fact = lvp_metric_normalise(json_string_value(json_array_get(json_array_get(answers, i), f)));
            bool learned = fact != NULL && json_object_set_new(task->vocabulary, fact, json_true()) == 0;
            free(fact);
            if (!learned) return no_memory();
        }
    return LVP_OK;
}

static enum lvp_status take_metric(struct lvp_task *task, int line, const json_t *row, struct lvp_question *question)
{
    const char *metric, *fault;
    LVP_TRY(get_text(task, line, row, "metric", &metric));
    if (metric != NULL && !lvp_metric_find(metric, &question->metric))
        return bad(task, line, "metric", "give exact, soft, parts or facts");
    LVP_TRY(lvp_metric_check(question->metric, question->answers, &fault));
    if (fault != NULL) return bad(task, line, "answers", fault);
    if (question->metric == LVP_METRIC_FACTS) LVP_TRY(learn_facts(task, question->answers));
    return LVP_OK;
}

// The answer whose log-probability is measured: in all questions or in none. Rows without would only be errors of the
// run that measures, and enough of them end it.
static enum lvp_status take_given_answer(struct loading *loading, int line, const json_t *row)
{
    struct lvp_task *task = loading->task;
    const char *answer;
    LVP_TRY(get_text(task, line, row, "answer", &answer));
    if (answer != NULL && answer[strspn(answer, " \t\r\n")] == '\0') return bad(task, line, "answer", "is empty");
    if (loading->first_line == 0) {
        loading->first_line = line;
        loading->has_answer = answer != NULL;
    }
    if (loading->has_answer == (answer != NULL)) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "%s, line %d: %s answer, unlike line %d: give it in all questions or in none",
                    task->path, line, answer != NULL ? "has an" : "has no", loading->first_line);
}

static enum lvp_status grow(struct lvp_task *task)
{
    if ((task->n & (task->n - 1)) != 0) return LVP_OK; // powers of two
    size_t room = task->n == 0 ? 1 : 2 * (size_t)task->n;
    void *questions = realloc(task->questions, room * sizeof *task->questions);
    if (questions != NULL) task->questions = questions;
    void *units = realloc(task->units, room * sizeof *task->units); // never more than questions
    if (units != NULL) task->units = units;
    return questions != NULL && units != NULL ? LVP_OK : no_memory();
}

// What the question counts towards: a unit of its own, or its group's.
static enum lvp_status take_unit(struct loading *loading, int line, const json_t *row, const char *image,
                                 struct lvp_question *question)
{
    struct lvp_task *task = loading->task;
    const json_t *group = json_object_get(row, "group");
    const char *family, *name = json_string_value(group);
    char digits[32];
    struct lvp_unit unit;
    int n_families = task->n_families, n_units = task->n_units;
    LVP_TRY(get_text(task, line, row, "family", &family));
    if (family != NULL && strpbrk(family, "|\r\n") != NULL)
        return bad(task, line, "family", "must be one line without |");
    if (json_is_integer(group)) {
        (void)snprintf(digits, sizeof digits, "%" JSON_INTEGER_FORMAT, json_integer_value(group));
        name = digits;
    }
    if (name == NULL && group != NULL && !json_is_null(group))
        return bad(task, line, "group", "must be a string or a whole number");
    LVP_TRY(number_of(loading->names, "family", family != NULL ? family : "all", &n_families, &unit.family));
    LVP_TRY(number_of(loading->names, "image", image, &task->n_images, &unit.image));
    if (n_families > LVP_MAX_FAMILIES)
        return lvp_fail(LVP_ERR_USAGE, "%s, line %d: more than %d families", task->path, line, LVP_MAX_FAMILIES);
    question->unit = n_units;
    if (name != NULL)
        LVP_TRY(number_of(loading->names, "group", name, &n_units, &question->unit));
    else
        n_units++;
    const struct lvp_unit *known = question->unit < task->n_units ? &task->units[question->unit] : NULL;
    if (known != NULL && (known->family != unit.family || known->image != unit.image))
        return bad(task, line, "group", "it was there before with another family or image");
    if (n_families > task->n_families) {
        task->families[unit.family] = family != NULL ? family : "all"; // the row is kept
        task->yes_no[unit.family] = true;
        task->n_families = n_families;
    }
    task->units[question->unit] = unit;
    task->n_units = n_units;
    return LVP_OK;
}

static enum lvp_status take_yes_no(struct lvp_task *task, struct lvp_question *question)
{
    bool text = question->metric != LVP_METRIC_FACTS;
    char *first = lvp_metric_normalise(text ? json_string_value(json_array_get(question->answers, 0)) : "");
    if (first == NULL) return no_memory();
    question->is_yes = strcmp(first, "yes") == 0;
    bool no = strcmp(first, "no") == 0;
    free(first);
    int family = task->units[question->unit].family;
    task->yes_no[family] = task->yes_no[family] && (question->is_yes || no);
    return LVP_OK;
}

static enum lvp_status take_question(void *context, int line, json_t *row)
{
    struct loading *loading = context;
    struct lvp_task *task = loading->task;
    const char *id, *image;
    struct lvp_question question = {.metric = LVP_METRIC_EXACT, .answers = json_object_get(row, "answers")};
    LVP_TRY(get_text(task, line, row, "id", &id));
    LVP_TRY(get_text(task, line, row, "image", &image));
    if (id == NULL || image == NULL) return bad(task, line, id == NULL ? "id" : "image", "must be a string");
    // Facts are learned from all rows, and rows beyond the limit are checked: a smaller limit makes no other task.
    LVP_TRY(take_metric(task, line, row, &question));
    LVP_TRY(take_given_answer(loading, line, row));
    if (loading->limit >= 0 && task->n >= loading->limit) return LVP_OK;
    if (json_object_get(task->index, id) != NULL) return bad(task, line, "id", "it was there before");
    LVP_TRY(grow(task));
    LVP_TRY(take_unit(loading, line, row, image, &question));
    LVP_TRY(take_yes_no(task, &question));
    if (json_object_set_new(task->index, id, json_integer(task->n)) != 0 || json_array_append(task->rows, row) != 0)
        return no_memory();
    task->questions[task->n++] = question;
    return LVP_OK;
}

enum lvp_status lvp_task_load(const char *dir, long limit, struct lvp_task *task)
{
    *task = (struct lvp_task){.rows = json_array(), .index = json_object(), .vocabulary = json_object()};
    struct loading loading = {.task = task, .names = json_object(), .limit = limit};
    enum lvp_status status = LVP_OK;
    if (asprintf(&task->path, "%s/questions.jsonl", dir) < 0) {
        task->path = NULL;
        status = no_memory();
        goto fail;
    }
    if (access(task->path, F_OK) != 0) {
        status = lvp_fail(LVP_ERR_USAGE, "%s: %s; --tasks is a folder with questions.jsonl, docs/eval.md says which",
                          task->path, strerror(errno));
        goto fail;
    }
    LVP_CHECK(each_line(task->path, true, take_question, &loading));
    if (task->n == 0) status = lvp_fail(LVP_ERR_USAGE, "%s holds no question", task->path);
    task->has_answer = loading.has_answer;
fail:
    json_decref(loading.names);
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
    bool *answered; // [n] has a row in the file that is read
};

static enum lvp_status question_of(const struct reading *reading, int line, const json_t *row, int *question)
{
    const char *id = json_string_value(json_object_get(row, "id"));
    const json_t *known = id == NULL ? NULL : json_object_get(reading->task->index, id);
    if (known == NULL)
        return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: its id is none of %s", reading->path, line, reading->task->path);
    *question = (int)json_integer_value(known);
    if (reading->answered[*question])
        return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: a second row of %s", reading->path, line, id);
    reading->answered[*question] = true;
    return LVP_OK;
}

// Questions without an answer count too, so what is yes was counted beforehand.
static enum lvp_status count_yes(struct lvp_yes_count *count, const char *text, const struct lvp_question *question)
{
    char *said = lvp_metric_normalise(text);
    if (said == NULL) return no_memory();
    bool said_yes = strcmp(said, "yes") == 0;
    free(said);
    count->said += said_yes;
    count->right += question->is_yes && said_yes;
    return LVP_OK;
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
    int family = reading->task->units[question->unit].family;
    if (reading->task->yes_no[family]) LVP_TRY(count_yes(&outcome->yes[family], text, question));
    if (score < outcome->score[question->unit]) outcome->score[question->unit] = score;
    outcome->prompt_rows += json_number_value(json_object_get(row, "prompt_tokens"));
    outcome->new_tokens += (double)json_array_size(json_object_get(row, "token_ids"));
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
    for (size_t i = 0; i < json_array_size(logprobs); i++) {
        const json_t *logprob = json_array_get(logprobs, i);
        if (!json_is_number(logprob)) // null stands for what is not finite
            return lvp_fail(LVP_ERR_FORMAT, "%s, line %d: a log-probability is not a number", reading->path, line);
        reading->outcome->nll[unit] -= json_number_value(logprob);
    }
    reading->outcome->tokens[unit] += (double)json_array_size(logprobs);
    return LVP_OK;
}

static enum lvp_status read_rows(struct reading *reading, const char *dir,
                                 enum lvp_status (*take)(void *context, int line, json_t *row))
{
    char *path = NULL;
    if (asprintf(&path, "%s/captions.jsonl", dir) < 0) return no_memory();
    reading->path = path;
    memset(reading->answered, 0, (size_t)reading->task->n * sizeof *reading->answered);
    enum lvp_status status = each_line(path, false, take, reading);
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
    for (int q = 0; q < task->n; q++) {
        int family = task->units[task->questions[q].unit].family;
        outcome->yes[family].is += task->yes_no[family] && task->questions[q].is_yes;
    }
    if (status == LVP_OK) status = read_rows(&reading, answers, take_answer);
    for (int q = 0; q < task->n && status == LVP_OK; q++)
        if (!reading.answered[q]) {
            outcome->score[task->questions[q].unit] = 0;
            outcome->unanswered++;
        }
    if (outcome->unanswered < task->n) {
        outcome->prompt_rows /= task->n - outcome->unanswered;
        outcome->new_tokens /= task->n - outcome->unanswered;
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
