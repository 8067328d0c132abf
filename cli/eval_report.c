#include "cli/eval_report.h"

#include <math.h>

static double of_run(const struct lvp_eval_setting *setting, const char *field)
{
    return json_number_value(json_object_get(setting->run, field));
}

// Vision rows that a decoder layer saw on the mean, as a share of all: what the pruner saves.
static double rows_share(const struct lvp_eval_setting *setting)
{
    const json_t *plan = json_object_get(setting->run, "plan");
    double all = json_number_value(json_array_get(json_object_get(plan, "vision_rows"), 0));
    return all > 0 ? json_number_value(json_object_get(plan, "mean_vision_rows")) / all : 1;
}

// Of a question with its image: prefill, modules included, and decoding.
static double flops(const struct lvp_eval_setting *setting)
{
    const struct lvp_workload *w = &setting->workload;
    struct lvp_block_cost cost = lvp_range_cost(w, 0, lvp_block_count(w->config));
    return cost.prefill_flops + cost.decode_flops;
}

static void print_counts(FILE *out, const struct lvp_eval_setting *setting)
{
    const json_t *rows = json_object_get(json_object_get(setting->run, "plan"), "vision_rows");
    for (size_t i = 0; i < json_array_size(rows); i++)
        (void)fprintf(out, "%s %" JSON_INTEGER_FORMAT, i > 0 ? "," : "", json_integer_value(json_array_get(rows, i)));
}

// The rate of a run is that of its last life: of one that was begun before it says nothing.
static bool whole_run(const struct lvp_eval_setting *setting)
{
    const json_t *counts = json_object_get(setting->run, "counts");
    return json_integer_value(json_object_get(counts, "resumed")) == 0 &&
           json_integer_value(json_object_get(counts, "restarts")) == 0;
}

// In points of a hundred; the ends only where there are enough images for them.
static void print_interval(FILE *out, const struct lvp_interval *interval, bool sign)
{
    (void)fprintf(out, sign ? "%+.2f" : "%.2f", 100 * interval->value);
    if (!isnan(interval->low))
        (void)fprintf(out, sign ? " (%+.2f to %+.2f)" : " (%.2f to %.2f)", 100 * interval->low, 100 * interval->high);
}

static void print_family(FILE *out, const struct lvp_task *task, int f, const struct lvp_eval_setting *setting)
{
    const struct lvp_family_comparison *c = &setting->comparison.families[f];
    (void)fprintf(out, "| %s | %s | %d | ", task->families[f], setting->name, c->n);
    print_interval(out, &c->score, false);
    (void)fprintf(out, " | ");
    print_interval(out, &c->change, true);
    (void)fprintf(out, " | %d / %d | ", c->better, c->worse);
    if (c->tokens > 0)
        (void)fprintf(out, "%.4f |\n", c->nll);
    else
        (void)fprintf(out, "|\n");
}

// F1 of answering yes; negative where the family's answers are not yes and no, or nowhere yes.
static double f1_of_yes(const struct lvp_task *task, int f, const struct lvp_eval_setting *setting)
{
    const struct lvp_yes_count *yes = &setting->outcome.yes[f];
    return task->yes_no[f] && yes->is > 0 ? 2.0 * yes->right / (yes->said + yes->is) : -1;
}

static void print_yes(FILE *out, const struct lvp_task *task, int f, const struct lvp_eval_setting *settings, int n)
{
    if (f1_of_yes(task, f, &settings[0]) < 0) return;
    (void)fprintf(out, "\n%s, F1 of yes: ", task->families[f]);
    for (int s = 0; s < n; s++)
        (void)fprintf(out, "%s %.4f%s", settings[s].name, f1_of_yes(task, f, &settings[s]), s == n - 1 ? "\n" : "; ");
}

void lvp_eval_print(FILE *out, const struct lvp_task *task, const struct lvp_eval_setting *settings, int n)
{
    (void)fprintf(out, "%d question%s about %d image%s, 95 %% intervals by a bootstrap over images\n\n", task->n,
                  task->n == 1 ? "" : "s", task->n_images, task->n_images == 1 ? "" : "s");
    (void)fprintf(out, "| family | setting | n | score, %% | change, points | better / worse | NLL per token |\n"
                       "|---|---|---|---|---|---|---|\n");
    for (int f = 0; f < task->n_families; f++)
        for (int s = 0; s < n; s++) print_family(out, task, f, &settings[s]);
    (void)fprintf(out, "\n| setting | mean relative loss, %% | vision tokens | vision rows | GFLOPs | questions/s | "
                       "without an answer |\n|---|---|---|---|---|---|---|\n");
    for (int s = 0; s < n; s++) {
        (void)fprintf(out, "| %s | ", settings[s].name);
        print_interval(out, &settings[s].comparison.loss, false);
        (void)fprintf(out, " |");
        print_counts(out, &settings[s]);
        (void)fprintf(out, " | %.1f %% | %.3g | ", 100 * rows_share(&settings[s]), flops(&settings[s]) / 1e9);
        if (whole_run(&settings[s])) (void)fprintf(out, "%.2f", of_run(&settings[s], "requests_per_second"));
        (void)fprintf(out, " | %d |\n", settings[s].outcome.unanswered);
    }
    for (int f = 0; f < task->n_families; f++) print_yes(out, task, f, settings, n);
}

static json_t *pack(const struct lvp_interval *interval)
{
    if (isnan(interval->low)) return json_pack("{s:f, s:n, s:n}", "value", interval->value, "low", "high");
    return json_pack("{s:f, s:f, s:f}", "value", interval->value, "low", interval->low, "high", interval->high);
}

static json_t *family_json(const struct lvp_task *task, int f, const struct lvp_eval_setting *setting)
{
    const struct lvp_family_comparison *c = &setting->comparison.families[f];
    double f1 = f1_of_yes(task, f, setting);
    return json_pack("{s:i, s:o, s:o, s:i, s:i, s:o*, s:f, s:o*}", "n", c->n, "score", pack(&c->score), "change",
                     pack(&c->change), "better", c->better, "worse", c->worse, "nll",
                     c->tokens > 0 ? json_real(c->nll) : NULL, "tokens", c->tokens, "f1_of_yes",
                     f1 < 0 ? NULL : json_real(f1));
}

static json_t *setting_json(const struct lvp_task *task, const struct lvp_eval_setting *setting)
{
    json_t *families = json_object();
    bool whole = families != NULL;
    for (int f = 0; f < task->n_families; f++)
        whole = whole && json_object_set_new(families, task->families[f], family_json(task, f, setting)) == 0;
    if (!whole) return json_decref(families), NULL;
    json_t *rows = json_object_get(json_object_get(setting->run, "plan"), "vision_rows");
    double per_second = of_run(setting, "requests_per_second");
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:O*, s:f, s:f, s:o*, s:i}", "setting", setting->name, "pruner",
                     setting->pruner, "keep", setting->keep, "families", families, "relative_loss",
                     pack(&setting->comparison.loss), "vision_tokens", rows, "vision_rows_share", rows_share(setting),
                     "flops_per_question", flops(setting), "questions_per_second",
                     whole_run(setting) ? json_real(per_second) : NULL, "unanswered", setting->outcome.unanswered);
}

json_t *lvp_eval_json(const struct lvp_task *task, const struct lvp_eval_setting *settings, int n)
{
    json_t *list = json_array();
    bool whole = list != NULL;
    for (int s = 0; s < n; s++) whole = whole && json_array_append_new(list, setting_json(task, &settings[s])) == 0;
    if (!whole) return json_decref(list), NULL;
    return json_pack("{s:i, s:i, s:i, s:o}", "questions", task->n, "images", task->n_images, "units", task->n_units,
                     "settings", list);
}
