#include "cli/eval_report.h"

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

static void print_family(FILE *out, const struct lvp_task *task, int f, const struct lvp_eval_setting *setting)
{
    const struct lvp_family_comparison *c = &setting->comparison.families[f];
    (void)fprintf(out, "| %s | %s | %d | %.2f (%.2f to %.2f) | %+.2f (%+.2f to %+.2f) | %d / %d | ", task->families[f],
                  setting->name, c->n, 100 * c->score.value, 100 * c->score.low, 100 * c->score.high,
                  100 * c->change.value, 100 * c->change.low, 100 * c->change.high, c->better, c->worse);
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
    (void)fprintf(out, "%d questions about %d images, 95 %% intervals by a bootstrap over images\n\n", task->n,
                  task->n_images);
    (void)fprintf(out, "| family | setting | n | score, %% | change, points | better / worse | NLL per token |\n"
                       "|---|---|---|---|---|---|---|\n");
    for (int f = 0; f < task->n_families; f++)
        for (int s = 0; s < n; s++) print_family(out, task, f, &settings[s]);
    (void)fprintf(out, "\n| setting | mean relative loss, %% | vision rows | questions/s | without an answer |\n"
                       "|---|---|---|---|---|\n");
    for (int s = 0; s < n; s++) {
        const struct lvp_interval *loss = &settings[s].comparison.loss;
        (void)fprintf(out, "| %s | %.2f (%.2f to %.2f) | %.1f %% | %.2f | %d |\n", settings[s].name, 100 * loss->value,
                      100 * loss->low, 100 * loss->high, 100 * rows_share(&settings[s]),
                      of_run(&settings[s], "requests_per_second"), settings[s].outcome.unanswered);
    }
    for (int f = 0; f < task->n_families; f++) print_yes(out, task, f, settings, n);
}

static json_t *pack(const struct lvp_interval *interval)
{
    return json_pack("{s:f, s:f, s:f}", "value", interval->value, "low", interval->low, "high", interval->high);
}

json_t *lvp_eval_json(const struct lvp_task *task, const struct lvp_eval_setting *settings, int n)
{
    json_t *list = json_array();
    for (int s = 0; s < n; s++) {
        const struct lvp_eval_setting *setting = &settings[s];
        json_t *families = json_object();
        for (int f = 0; f < task->n_families; f++) {
            const struct lvp_family_comparison *c = &setting->comparison.families[f];
            double f1 = f1_of_yes(task, f, setting);
            json_object_set_new(families, task->families[f],
                                json_pack("{s:i, s:o, s:o, s:i, s:i, s:f, s:f, s:o*}", "n", c->n, "score",
                                          pack(&c->score), "change", pack(&c->change), "better", c->better, "worse",
                                          c->worse, "nll", c->nll, "tokens", c->tokens, "f1_of_yes",
                                          f1 < 0 ? NULL : json_real(f1)));
        }
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:s, s:o, s:o, s:f, s:f, s:i}", "setting", setting->name, "pruner",
                                        setting->pruner, "keep", setting->keep, "families", families, "relative_loss",
                                        pack(&setting->comparison.loss), "vision_rows_share", rows_share(setting),
                                        "questions_per_second", of_run(setting, "requests_per_second"), "unanswered",
                                        setting->outcome.unanswered));
    }
    return json_pack("{s:i, s:i, s:i, s:o}", "questions", task->n, "images", task->n_images, "units", task->n_units,
                     "settings", list);
}
