#include "worker/cpu/choose.h"

#include <math.h>

// A key that ascends as the value falls; NaN comes last, with -infinity, and the two zeros are one.
static uint32_t descending_key(float value)
{
    uint32_t bits;
    value = isnan(value) ? -INFINITY : value + 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x80000000U) != 0 ? bits : ~bits & 0x7fffffffU;
}

// Radix sort, least significant byte first: stable, so equal keys keep their order. An even number of passes leaves the
// result in `items`.
static void sort_items(struct lvp_sort_item *items, struct lvp_sort_item *spare, int n)
{
    for (int shift = 0; shift < 32; shift += 8) {
        int start[257] = {0};
        for (int i = 0; i < n; i++) start[(items[i].key >> shift & 0xff) + 1]++;
        for (int digit = 0; digit < 256; digit++) start[digit + 1] += start[digit];
        for (int i = 0; i < n; i++) spare[start[items[i].key >> shift & 0xff]++] = items[i];
        struct lvp_sort_item *swapped = items;
        items = spare;
        spare = swapped;
    }
}

void lvp_cpu_select_rows(const struct lvp_row_selection *selection, const struct lvp_choose_scratch *scratch,
                         uint8_t *removed)
{
    memset(removed, 0, (size_t)selection->n_rows);
    for (int image = 0; image < selection->n_images; image++) {
        int n = selection->image_len[image];
        const float *gate = selection->gate + 2 * (size_t)selection->gate_start[image];
        for (int i = 0; i < n; i++) {
            scratch->items[i] = (struct lvp_sort_item){descending_key(gate[2 * i] - gate[2 * i + 1]), i};
        }
        sort_items(scratch->items, scratch->spare, n);
        int keep = selection->keep[image] < 0 ? 0 : selection->keep[image];
        for (int i = keep; i < n; i++) removed[selection->image_row[image] + scratch->items[i].index] = 1;
    }
    int n_survivors = 0;
    for (int row = 0; row < selection->n_rows; row++) {
        if (!removed[row]) selection->survivors[n_survivors++] = row;
    }
}

// Draws from the smallest prefix of the sorted tokens that holds top_p of the total weight; see ref_sample.c for the
// rule.
static int draw(const struct lvp_kernels *kernels, const float *logits, int vocab, float largest,
                const struct lvp_draw *how, const struct lvp_choose_scratch *scratch)
{
    double total = kernels->exp_weights(logits, vocab, largest, how->temperature, scratch->weights);
    for (int i = 0; i < vocab; i++) scratch->items[i] = (struct lvp_sort_item){descending_key(logits[i]), i};
    sort_items(scratch->items, scratch->spare, vocab);
    int n_prefix = vocab;
    double prefix = total;
    if (how->top_p < 1.0f) {
        prefix = (double)scratch->weights[scratch->items[0].index];
        n_prefix = 1;
        while (n_prefix < vocab && prefix < (double)how->top_p * total) {
            prefix += (double)scratch->weights[scratch->items[n_prefix++].index];
        }
    }
    double target = how->uniform * prefix;
    double running = (double)scratch->weights[scratch->items[0].index];
    int chosen = 0;
    while (running <= target && chosen + 1 < n_prefix) {
        running += (double)scratch->weights[scratch->items[++chosen].index];
    }
    return scratch->items[chosen].index;
}

void lvp_cpu_sample_row(const struct lvp_kernels *kernels, const float *logits, int vocab, const struct lvp_draw *how,
                        const struct lvp_choose_scratch *scratch, int32_t *token, float *logprob)
{
    float largest = kernels->largest(logits, vocab);
    int chosen = 0;
    if (how->temperature > 0.0f && isfinite(largest)) {
        chosen = draw(kernels, logits, vocab, largest, how, scratch);
    } else if (largest > -INFINITY) {
        while (logits[chosen] != largest) chosen++;
    }
    double total = kernels->exp_weights(logits, vocab, largest, 1.0f, NULL);
    int scored = how->scored >= 0 ? how->scored : chosen;
    float logit = isnan(logits[scored]) ? -INFINITY : logits[scored];
    *token = chosen;
    *logprob = (float)((double)logit - (double)largest - log(total));
}
