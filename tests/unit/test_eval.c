// Metrics of lvpipe eval against scores worked out by hand, and its comparison of two runs.
#include "coordinator/eval/compare.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void expect_normalised(const char *text, const char *want)
{
    char *got = lvp_metric_normalise(text);
    assert_string_equal(got, want);
    free(got);
}

static void test_normalise(void **state)
{
    (void)state;
    expect_normalised("The  Dog.", "dog");
    expect_normalised("two cats, a bird!", "2 cats bird");
    expect_normalised("1,000.5 m", "1,000.5 m");
    expect_normalised("don't", "don't");
    expect_normalised("don\xE2\x80\x99t", "don't");
    expect_normalised("'The dogs' ball'", "dogs ball");
    expect_normalised("\xE2\x80\x9CRed\xE2\x80\x9D", "red");
    expect_normalised("Ten", "10");
    expect_normalised("", "");
    expect_normalised("A", "a"); // an option's letter: articles go only where something is left
    expect_normalised("the a", "the a");
}

static void expect_score(enum lvp_metric metric, const char *text, const char *answers, double want)
{
    json_t *list = json_loads(answers, 0, NULL), *vocabulary = json_object();
    const char *fault = NULL;
    double score = -1;
    static const char *const facts[] = {"dog", "cat", "red", "blue", "small", "top left", "top", "left"};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) json_object_set_new(vocabulary, facts[i], json_true());
    assert_int_equal(lvp_metric_check(metric, list, &fault), LVP_OK);
    if (fault != NULL) fail_msg("%s: %s", answers, fault);
    assert_int_equal(lvp_metric_score(metric, text, list, vocabulary, &score), LVP_OK);
    if (fabs(score - want) > 1e-12) fail_msg("'%s' for %s scores %.6f, not %.6f", text, answers, score, want);
    json_decref(list);
    json_decref(vocabulary);
}

static void test_scores(void **state)
{
    (void)state;
    expect_score(LVP_METRIC_EXACT, "The dog.", "[\"cat\", \"dog\"]", 1);
    expect_score(LVP_METRIC_EXACT, "dogs", "[\"dog\"]", 0);
    // Ten people, four of whom say so: leaving out one of the four leaves 3 (1), one of the six leaves 4 (1).
    expect_score(LVP_METRIC_SOFT, "red", "[\"red\",\"red\",\"red\",\"red\",\"b\",\"b\",\"b\",\"b\",\"b\",\"b\"]", 1);
    // Two of ten: twice 1/3, eight times 2/3 -> 0.6.
    expect_score(LVP_METRIC_SOFT, "red", "[\"red\",\"red\",\"b\",\"b\",\"b\",\"b\",\"b\",\"b\",\"b\",\"b\"]", 0.6);
    expect_score(LVP_METRIC_EXACT, "A", "[\"A\"]", 1);
    expect_score(LVP_METRIC_EXACT, "A。", "[\"A\"]", 1);
    expect_score(LVP_METRIC_EXACT, "（红色）", "[\"红色\"]", 1);
    expect_score(LVP_METRIC_EXACT, "red—blue", "[\"red blue\"]", 1);
    expect_score(LVP_METRIC_EXACT, "", "[\"A\"]", 0);
    expect_score(LVP_METRIC_EXACT, ".", "[\"?\", \"dog\"]", 0);
    expect_score(LVP_METRIC_SOFT, "red", "[\"Red\"]", 1);
    expect_score(LVP_METRIC_SOFT, "red", "[\"red\",\"red\",\"red\"]", 1);
    expect_score(LVP_METRIC_PARTS, "BUS and two", "[\"bus\", \"2\"]", 1);
    expect_score(LVP_METRIC_PARTS, "two and bus", "[\"bus\", \"2\"]", 0);
    expect_score(LVP_METRIC_PARTS, "bus", "[\"bus\", \"2\"]", 0.5);
    expect_score(LVP_METRIC_PARTS, "bus, two, and red.", "[\"bus\", \"2\", \"red\"]", 1);
    expect_score(LVP_METRIC_PARTS, "3.5 And 1,000.", "[\"3.5\", \"1,000\"]", 1);
    expect_score(LVP_METRIC_PARTS, "红色，蓝色。", "[\"红色\", \"蓝色\"]", 1);
    // All three facts of one object, and nothing else.
    expect_score(LVP_METRIC_FACTS, "The image shows a red dog at top left.", "[[\"dog\", \"red\", \"top left\"]]", 1);
    // 2 of 3 named (dog, top left; blue is wrong), 3 wanted: 2 * 2 / (3 + 3).
    expect_score(LVP_METRIC_FACTS, "a blue dog at top left", "[[\"dog\", \"red\", \"top left\"]]", 2.0 / 3);
    // Attributes of another object do not count: dog 1 of {dog, red}, cat 1 of {cat, blue}; named 4, wanted 4.
    expect_score(LVP_METRIC_FACTS, "a blue dog and a red cat", "[[\"dog\", \"red\"], [\"cat\", \"blue\"]]", 0.5);
    // Said twice, there once: 1 right, named 2, wanted 1.
    expect_score(LVP_METRIC_FACTS, "a dog, a dog", "[[\"dog\"]]", 2.0 / 3);
    // One phrase names a fact once: a red dog on red.
    expect_score(LVP_METRIC_FACTS, "a red dog on red", "[[\"dog\", \"red\"]]", 1);
    expect_score(LVP_METRIC_FACTS, "", "[[\"dog\"]]", 0);
    // A fact given twice is wanted once.
    expect_score(LVP_METRIC_FACTS, "a red dog", "[[\"dog\", \"red\", \"the dog\", \"red\"]]", 1);
}

static void expect_fault(enum lvp_metric metric, const char *answers, const char *says)
{
    json_t *list = answers == NULL ? NULL : json_loads(answers, 0, NULL);
    const char *fault = NULL;
    assert_int_equal(lvp_metric_check(metric, list, &fault), LVP_OK);
    if (fault == NULL || strstr(fault, says) == NULL)
        fail_msg("%s: '%s', not '%s'", answers != NULL ? answers : "no answers", fault != NULL ? fault : "", says);
    json_decref(list);
}

static void test_forms(void **state)
{
    (void)state;
    expect_fault(LVP_METRIC_EXACT, NULL, "a list of strings");
    expect_fault(LVP_METRIC_EXACT, "[]", "a list of strings");
    expect_fault(LVP_METRIC_EXACT, "[[\"a\"]]", "a list of strings");
    expect_fault(LVP_METRIC_FACTS, "[\"a\"]", "a list of lists of strings");
    expect_fault(LVP_METRIC_FACTS, "[[\"a\"], []]", "a list of lists of strings");
    expect_fault(LVP_METRIC_FACTS, NULL, "a list of lists of strings");
    expect_fault(LVP_METRIC_EXACT, "[\"?\", \"-\"]", "none of them");
    expect_fault(LVP_METRIC_PARTS, "[\"red\", \"-\"]", "neither letter nor digit");
    expect_fault(LVP_METRIC_PARTS, "[\"red, blue\"]", "never matches");
    expect_fault(LVP_METRIC_FACTS, "[[\"salt And pepper\"]]", "never matches");
    expect_fault(LVP_METRIC_FACTS, "[[\"one two three four five\"]]", "4 words");
}

// --- a task in a folder of its own

static char folder[64];

static void put_file(const char *dir, const char *name, const char *text)
{
    char path[200];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    (void)fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static int make_folder(void **state)
{
    (void)state;
    (void)snprintf(folder, sizeof folder, "/tmp/lvpipe-eval-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static const char questions[] = // which an editor may begin with a byte order mark
    "\xEF\xBB\xBF{\"id\":\"1\",\"image\":\"a\",\"family\":\"color\",\"answers\":[\"red\"],\"answer\":\"red\"}\n"
    "{\"id\":\"2\",\"image\":\"b\",\"family\":\"color\",\"answers\":[\"blue\"],\"answer\":\"blue\"}\n"
    "\n"
    "{\"id\":\"3\",\"image\":\"a\",\"family\":\"letters\",\"group\":7,\"answers\":[\"A\"],\"answer\":\"A\"}\n"
    "{\"id\":\"4\",\"image\":\"a\",\"family\":\"letters\",\"group\":7,\"answers\":[\"B\"],\"answer\":\"B\"}\n"
    "{\"id\":\"5\",\"image\":\"b\",\"family\":\"is\",\"answers\":[\"Yes\"],\"answer\":\"Yes\"}\n";

static void test_comparison(void **state)
{
    (void)state;
    struct lvp_task task;
    struct lvp_outcome dense, pruned;
    struct lvp_comparison same, less;
    put_file(folder, "questions.jsonl", questions);
    assert_int_equal(lvp_task_load(folder, -1, &task), LVP_OK);
    assert_int_equal(task.n, 5);
    assert_int_equal(task.n_units, 4);
    assert_int_equal(task.n_images, 2);
    assert_true(task.has_answer && task.yes_no[2] && !task.yes_no[0]);
    lvp_task_free(&task);
    assert_int_equal(lvp_task_load(folder, 2, &task), LVP_OK);
    assert_int_equal(task.n, 2);
    lvp_task_free(&task);
    assert_int_equal(lvp_task_load(folder, -1, &task), LVP_OK);
    put_file(folder, "captions.jsonl",
             "{\"id\":\"1\",\"caption\":\"red\",\"logprobs\":[-0.5,-0.25]}\n{\"id\":\"2\",\"caption\":\"blue\","
             "\"logprobs\":[-0.25]}\n"
             "{\"id\":\"3\",\"caption\":\"A\",\"logprobs\":[-1]}\n{\"id\":\"4\",\"caption\":\"B\",\"logprobs\":[-1]}\n"
             "{\"id\":\"5\",\"caption\":\"Yes.\",\"logprobs\":[0]}\n");
    assert_int_equal(lvp_outcome_read(&task, folder, folder, &dense), LVP_OK);
    assert_int_equal(dense.unanswered, 0);
    assert_true(dense.yes[2].is == 1 && dense.yes[2].said == 1 && dense.yes[2].right == 1 && dense.yes[0].is == 0);
    // One colour wrong, one letter of the group wrong, "is" without an answer.
    put_file(folder, "captions.jsonl",
             "{\"id\":\"1\",\"caption\":\"green\"}\n{\"id\":\"2\",\"caption\":\"blue\"}\n"
             "{\"id\":\"3\",\"caption\":\"A\"}\n{\"id\":\"4\",\"caption\":\"C\"}\n");
    assert_int_equal(lvp_outcome_read(&task, folder, NULL, &pruned), LVP_OK);
    assert_int_equal(pruned.unanswered, 1);
    assert_true(pruned.yes[2].is == 1 && pruned.yes[2].said == 0); // missed, though it has no row
    assert_int_equal(lvp_compare(&task, &dense, &dense, &same), LVP_OK);
    assert_true(same.loss.value == 0 && same.loss.low == 0 && same.loss.high == 0);
    assert_true(fabs(same.families[0].nll - 1.0 / 3) < 1e-12); // (0.5 + 0.25 + 0.25) / 3 tokens
    assert_int_equal(lvp_compare(&task, &dense, &pruned, &less), LVP_OK);
    assert_true(less.families[0].n == 2 && less.families[0].worse == 1 && less.families[0].better == 0);
    assert_true(less.families[0].score.value == 0.5 && less.families[0].change.value == -0.5);
    assert_true(less.families[1].n == 1 && less.families[1].score.value == 0);
    assert_true(less.families[0].tokens == 0);
    assert_true(fabs(less.loss.value - (0.5 + 1 + 1) / 3) < 1e-12);
    // Two images: the first one twice loses everything, the second one twice keeps its colour.
    assert_true(less.families[0].change.low == -1 && less.families[0].change.high == 0);
    // "is" is about the second one alone: a draw without it says nothing about "is", rather than 0.
    assert_true(same.families[2].score.low == 1 && same.families[2].score.high == 1);
    lvp_outcome_free(&dense);
    lvp_outcome_free(&pruned);
    put_file(folder, "captions.jsonl", "{\"id\":\"1\",\"caption\":\"red\"}\n{\"id\":\"1\",\"caption\":\"red\"}\n");
    assert_int_equal(lvp_outcome_read(&task, folder, NULL, &dense), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), "captions.jsonl, line 2: a second row of 1"));
    lvp_error_clear();
    lvp_outcome_free(&dense);
    put_file(folder, "captions.jsonl", "{\"id\":\"1\",\"caption\":\"red\",\"logprobs\":[-0.5,null]}\n");
    assert_int_equal(lvp_outcome_read(&task, folder, folder, &dense), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), "captions.jsonl, line 1: a log-probability is not a number"));
    lvp_error_clear();
    lvp_outcome_free(&dense);
    lvp_task_free(&task);
}

// Of `n_images` images with `each` questions: every other image is answered wrongly as a whole.
static double width_of_interval(int n_images, int each)
{
    int n = n_images * each;
    struct lvp_task task = {.n = n, .n_units = n, .n_images = n_images, .n_families = 1, .families = {"all"}};
    double *scores = calloc((size_t)n, sizeof *scores), *ones = calloc((size_t)n, sizeof *ones);
    double *zeros = calloc((size_t)n, sizeof *zeros);
    struct lvp_comparison comparison;
    task.units = calloc((size_t)n, sizeof *task.units);
    assert_true(scores != NULL && ones != NULL && zeros != NULL && task.units != NULL);
    for (int u = 0; u < n; u++) {
        task.units[u].image = u / each;
        scores[u] = u / each % 2;
        ones[u] = 1;
    }
    const struct lvp_outcome dense = {.score = ones, .nll = zeros, .tokens = zeros};
    const struct lvp_outcome pruned = {.score = scores, .nll = zeros, .tokens = zeros};
    assert_int_equal(lvp_compare(&task, &dense, &pruned, &comparison), LVP_OK);
    free(task.units);
    free(scores);
    free(ones);
    free(zeros);
    assert_true(comparison.loss.value == 0.5 && comparison.families[0].score.value == 0.5);
    return comparison.loss.high - comparison.loss.low;
}

static void test_questions_about_an_image_fall_together(void **state)
{
    (void)state;
    double alone = width_of_interval(200, 1), together = width_of_interval(40, 5);
    // 1.96 standard errors to both sides, of 200 and of 40 draws of one half.
    assert_true(fabs(alone - 2 * 1.96 * 0.5 / sqrt(200)) < 0.02);
    assert_true(fabs(together - 2 * 1.96 * 0.5 / sqrt(40)) < 0.04);
}

// Nine families of one image each: hardly a draw has all of them, and the ends of an interval would be of those few.
static void test_no_interval_without_draws(void **state)
{
    (void)state;
    enum { N = 9 };
    struct lvp_unit units[N] = {0};
    struct lvp_task task = {.n = N, .n_units = N, .n_images = N, .n_families = N, .units = units};
    double ones[N], zeros[N] = {0};
    struct lvp_comparison comparison;
    for (int u = 0; u < N; u++) {
        units[u].image = units[u].family = u;
        ones[u] = 1;
    }
    const struct lvp_outcome dense = {.score = ones, .nll = zeros, .tokens = zeros};
    assert_int_equal(lvp_compare(&task, &dense, &dense, &comparison), LVP_OK);
    assert_true(comparison.loss.value == 0 && isnan(comparison.loss.low) && isnan(comparison.loss.high));
    assert_true(comparison.families[0].score.low == 1); // two draws of three have its image
}

static void expect_refused(const char *text, const char *says)
{
    struct lvp_task task;
    put_file(folder, "questions.jsonl", text);
    assert_int_equal(lvp_task_load(folder, -1, &task), LVP_ERR_USAGE);
    if (strstr(lvp_error_text(), says) == NULL) fail_msg("'%s' does not say '%s'", lvp_error_text(), says);
    lvp_error_clear();
    lvp_task_free(&task);
}

#define ROW(id, image, more) "{\"id\":\"" id "\",\"image\":\"" image "\",\"answers\":[\"x\"]," more "}\n"

static void test_bad_questions(void **state)
{
    (void)state;
    struct lvp_task task;
    expect_refused("", "holds no question");
    expect_refused("{\"id\":\"1\",\"image\":\"a\",\"answers\":[\"x\"]}\n{\"id\":", "line 2");
    expect_refused("[1]\n", "line 1: not an object");
    expect_refused("{\"id\":1,\"image\":\"a\",\"answers\":[\"x\"]}", "id: must be a string");
    expect_refused("{\"id\":\"1\",\"answers\":[\"x\"]}", "image: must be a string");
    expect_refused("{\"id\":\"1\",\"image\":\"a\"}", "answers");
    expect_refused("{\"id\":\"1\",\"image\":\"a\",\"answers\":\"x\"}", "answers");
    expect_refused("{\"id\":\"1\",\"image\":\"a\",\"answers\":[\"x\"],\"metric\":\"f1\"}", "metric");
    expect_refused(
        "{\"id\":\"1\",\"image\":\"a\",\"answers\":[\"x\"]}\n{\"id\":\"1\",\"image\":\"a\",\"answers\":[\"x\"]}",
        "line 2: id: it was there before");
    expect_refused(ROW("1", "a", "\"metric\":5"), "line 1: metric: must be a string");
    expect_refused(ROW("1", "a", "\"family\":5"), "line 1: family: must be a string");
    expect_refused(ROW("1", "a", "\"family\":\"a|b\""), "line 1: family: must be one line");
    expect_refused(ROW("1", "a", "\"family\":\"a\\nb\""), "line 1: family: must be one line");
    expect_refused(ROW("1", "a", "\"group\":[]"), "line 1: group: must be a string or a whole number");
    expect_refused(ROW("1", "a", "\"answer\":5"), "line 1: answer: must be a string");
    expect_refused(ROW("1", "a", "\"answer\":\" \""), "line 1: answer: is empty");
    expect_refused(ROW("1", "a", "\"answer\":\"x\"") ROW("2", "a", "\"answer\":null"),
                   "line 2: has no answer, unlike line 1");
    expect_refused(ROW("1", "a", "\"group\":241") ROW("2", "b", "\"group\":\"241\""), "line 2: group:");
    expect_refused(ROW("1", "a", "\"group\":\"g\"") ROW("2", "a", "\"group\":\"g\",\"family\":\"f\""),
                   "line 2: group:");
    assert_int_equal(lvp_task_load("/nonexistent", -1, &task), LVP_ERR_USAGE);
    lvp_task_free(&task);
}

// Facts beyond --limit are facts all the same, and long names that differ at their ends are two.
static void test_limits(void **state)
{
    (void)state;
    struct lvp_task task;
    char text[2000];
    put_file(folder, "questions.jsonl",
             "{\"id\":\"1\",\"image\":\"a\",\"metric\":\"facts\",\"answers\":[[\"dog\"]]}\n"
             "{\"id\":\"2\",\"image\":\"a\",\"metric\":\"facts\",\"answers\":[[\"cat\",\"top left\"]]}\n");
    assert_int_equal(lvp_task_load(folder, 1, &task), LVP_OK);
    assert_true(task.n == 1 && json_object_get(task.vocabulary, "top left") != NULL);
    lvp_task_free(&task);
    (void)snprintf(text, sizeof text, ROW("1", "%0600d1", "\"family\":\"f\"") ROW("2", "%0600d2", "\"family\":\"f\""),
                   0, 0);
    put_file(folder, "questions.jsonl", text);
    assert_int_equal(lvp_task_load(folder, -1, &task), LVP_OK);
    assert_int_equal(task.n_images, 2);
    lvp_task_free(&task);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_normalise),
                                       cmocka_unit_test(test_scores),
                                       cmocka_unit_test(test_forms),
                                       cmocka_unit_test_setup_teardown(test_comparison, make_folder, remove_folder),
                                       cmocka_unit_test(test_questions_about_an_image_fall_together),
                                       cmocka_unit_test(test_no_interval_without_draws),
                                       cmocka_unit_test_setup_teardown(test_bad_questions, make_folder, remove_folder),
                                       cmocka_unit_test_setup_teardown(test_limits, make_folder, remove_folder)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
