#include "coordinator/eval/compare.h"

#include "common/mix.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 1000, ENOUGH = 200 }; // draws; of those that count, for an end at 2.5 %

// Sums over the units of one image, or of a resampled set of images.
struct sums {
    double n[LVP_MAX_FAMILIES], dense[LVP_MAX_FAMILIES], score[LVP_MAX_FAMILIES];
};

static double mean_loss(const struct lvp_task *task, const struct sums *sums)
{
    double loss = 0;
    int n = 0;
    for (int f = 0; f < task->n_families; f++) {
        if (!(sums->dense[f] > 0)) continue; // nothing to lose
        loss += (sums->dense[f] - sums->score[f]) / sums->dense[f];
        n++;
    }
    return n > 0 ? loss / n : 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct lvp_interval interval(double value, double *draws, int n)
{
    if (n < ENOUGH) return (struct lvp_interval){value, NAN, NAN};
    qsort(draws, (size_t)n, sizeof *draws, by_value);
    return (struct lvp_interval){value, draws[n / 40], draws[n - 1 - n / 40]};
}

// Units of one image lie together in order[first[image]..first[image + 1]).
static void sort_by_image(const struct lvp_task *task, int *first, int *order)
{
    for (int u = 0; u < task->n_units; u++) first[task->units[u].image + 1]++;
    for (int i = 0; i < task->n_images; i++) first[i + 1] += first[i];
    int *next = order + task->n_units; // room for n_images
    memcpy(next, first, (size_t)task->n_images * sizeof *next);
    for (int u = 0; u < task->n_units; u++) order[next[task->units[u].image]++] = u;
}

static void add_unit(const struct lvp_task *task, const struct lvp_outcome *dense, const struct lvp_outcome *outcome,
                     int u, struct sums *sums)
{
    int f = task->units[u].family;
    sums->n[f]++;
    sums->dense[f] += dense->score[u];
    sums->score[f] += outcome->score[u];
}

static void count(const struct lvp_task *task, const struct lvp_outcome *dense, const struct lvp_outcome *outcome,
                  struct lvp_comparison *comparison)
{
    for (int u = 0; u < task->n_units; u++) {
        struct lvp_family_comparison *family = &comparison->families[task->units[u].family];
        family->n++;
        family->better += outcome->score[u] > dense->score[u];
        family->worse += outcome->score[u] < dense->score[u];
        family->nll += outcome->nll[u];
        family->tokens += outcome->tokens[u];
    }
    for (int f = 0; f < task->n_families; f++)
        if (comparison->families[f].tokens > 0) comparison->families[f].nll /= comparison->families[f].tokens;
}

enum lvp_status lvp_compare(const struct lvp_task *task, const struct lvp_outcome *dense,
                            const struct lvp_outcome *outcome, struct lvp_comparison *comparison)
{
    size_t n_families = (size_t)task->n_families;
    int *first = calloc((size_t)task->n_images + 1, sizeof *first);
    int *order = calloc((size_t)task->n_units + (size_t)task->n_images, sizeof *order);
    double *draws = calloc((2 * n_families + 1) * ROUNDS, sizeof *draws);
    struct sums all = {0};
    uint64_t counter = 1;
    int n_draws[LVP_MAX_FAMILIES] = {0}, n_losses = 0;
    enum lvp_status status = LVP_OK;
    *comparison = (struct lvp_comparison){0};
    if (first == NULL || order == NULL || draws == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "comparing runs: out of memory");
        goto fail;
    }
    count(task, dense, outcome, comparison);
    sort_by_image(task, first, order);
    for (int u = 0; u < task->n_units; u++) add_unit(task, dense, outcome, u, &all);
    double *losses = draws + 2 * n_families * ROUNDS;
    for (int round = 0; round < ROUNDS; round++) {
        struct sums drawn = {0};
        for (int i = 0; i < task->n_images; i++) {
            int image = (int)(lvp_mix(counter) % (uint64_t)task->n_images);
            counter += LVP_MIX_STEP;
            for (int u = first[image]; u < first[image + 1]; u++) add_unit(task, dense, outcome, order[u], &drawn);
        }
        for (size_t f = 0; f < n_families; f++) {
            double n = drawn.n[f];
            if (!(n > 0)) continue; // a draw without the family's images says nothing about it
            size_t at = (size_t)n_draws[f]++;
            draws[2 * f * ROUNDS + at] = drawn.score[f] / n;
            draws[(2 * f + 1) * ROUNDS + at] = (drawn.score[f] - drawn.dense[f]) / n;
        }
        bool whole = true; // families that are not in the draw would make it a mean over others
        for (size_t f = 0; f < n_families; f++) whole = whole && (drawn.dense[f] > 0 || !(all.dense[f] > 0));
        if (whole) losses[n_losses++] = mean_loss(task, &drawn);
    }
    for (size_t f = 0; f < n_families; f++) {
        struct lvp_family_comparison *family = &comparison->families[f];
        family->score = interval(all.score[f] / all.n[f], draws + 2 * f * ROUNDS, n_draws[f]);
        family->change = interval((all.score[f] - all.dense[f]) / all.n[f], draws + (2 * f + 1) * ROUNDS, n_draws[f]);
    }
    comparison->loss = interval(mean_loss(task, &all), losses, n_losses);
fail:
    free(first);
    free(order);
    free(draws);
    return status;
}
