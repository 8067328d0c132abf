#include "common/plan.h"

#include <ctype.h>
#include <stdlib.h>

void lvp_prune_default_points(int n_layers, struct lvp_prune_plan *plan)
{
    static const int divisors[] = {32, 4, 2};
    plan->n_points = 0;
    int previous = 0;
    for (int s = 0; s < 3; s++) {
        int after = (2 * n_layers + divisors[s]) / (2 * divisors[s]);
        if (after <= previous) after = previous + 1;
        if (after > n_layers) break;
        plan->after[plan->n_points++] = previous = after;
    }
}

enum lvp_status lvp_prune_parse_points(const char *text, int n_layers, struct lvp_prune_plan *plan)
{
    int n = 0;
    long previous = 0;
    const char *at = text;
    for (;;) {
        char *end;
        long after = isdigit((unsigned char)*at) ? strtol(at, &end, 10) : -1;
        if (after < 0 || (*end != ',' && *end != '\0'))
            return lvp_fail(LVP_ERR_USAGE, "--prune-after %s: give decoder layers as whole numbers, like 1,8,16", text);
        if (after < 1 || after > n_layers)
            return lvp_fail(LVP_ERR_USAGE, "--prune-after %s: %ld is outside 1..%d, the model's decoder layers", text,
                            after, n_layers);
        if (after <= previous)
            return lvp_fail(LVP_ERR_USAGE, "--prune-after %s: the layers must increase strictly", text);
        if (n == LVP_MAX_PRUNE_POINTS)
            return lvp_fail(LVP_ERR_USAGE, "--prune-after %s: at most %d points", text, LVP_MAX_PRUNE_POINTS);
        plan->after[n++] = (int)after;
        previous = after;
        if (*end == '\0') break;
        at = end + 1;
    }
    plan->n_points = n;
    return LVP_OK;
}

// Reads a decimal number at *text into units of 1e-12 and moves *text behind it. Digits past the twelfth decimal are
// dropped: over a million tokens they cannot move a count. Saturates far outside [0, 1].
static bool parse_decimal(const char **text, int64_t *value)
{
    const char *at = *text;
    bool negative = *at == '-', any = false;
    if (*at == '-' || *at == '+') at++;
    int64_t whole = 0, fraction = 0, unit = LVP_KEEP_ONE / 10;
    for (; isdigit((unsigned char)*at); at++, any = true)
        if (whole < 1000) whole = whole * 10 + (*at - '0');
    if (*at == '.') {
        for (at++; isdigit((unsigned char)*at); at++, any = true, unit /= 10) fraction += (*at - '0') * unit;
    }
    if (!any) return false;
    *value = whole * LVP_KEEP_ONE + fraction;
    if (negative) *value = -*value;
    *text = at;
    return true;
}

static lvp_keep_share clamp_share(int64_t value)
{
    return value < 0 ? 0 : value > LVP_KEEP_ONE ? LVP_KEEP_ONE : value;
}

enum lvp_status lvp_prune_parse_keep(const char *text, struct lvp_prune_plan *plan)
{
    int64_t values[LVP_MAX_PRUNE_POINTS];
    int n = 0;
    for (const char *at = text;; at++) {
        int64_t value;
        if (!parse_decimal(&at, &value) || (*at != ',' && *at != '\0'))
            return lvp_fail(LVP_ERR_USAGE,
                            "--keep %s: give one decimal number or a list of them, like 0.5 or 0.5,0.3,0.1", text);
        if (n == LVP_MAX_PRUNE_POINTS)
            return lvp_fail(LVP_ERR_USAGE, "--keep %s: more numbers than prune points", text);
        values[n++] = value;
        if (*at == '\0') break;
    }
    if (n != 1 && n != plan->n_points)
        return lvp_fail(LVP_ERR_USAGE, "--keep %s: %d numbers for %d prune points; give one number, or one per point",
                        text, n, plan->n_points);
    for (int s = 0; s < plan->n_points; s++)
        plan->keep[s] = clamp_share(n == 1 ? values[0] - s * (LVP_KEEP_ONE / 5) : values[s]);
    return LVP_OK;
}

int lvp_keep_count(const struct lvp_prune_plan *plan, int point, int n_tokens)
{
    int64_t left = n_tokens;
    for (int s = 0; s <= point; s++) {
        // floor(r n + 0.5 + 1e-9) in units of 1e-12; the last term keeps a decimal that was typed with fewer digits
        // than it has (0.0833333333 x 576) on the side its author meant.
        int64_t kept = (plan->keep[s] * n_tokens + LVP_KEEP_ONE / 2 + 1000) / LVP_KEEP_ONE;
        if (kept < left) left = kept;
    }
    return (int)left;
}

int lvp_layer_group(const struct lvp_prune_plan *plan, int layer)
{
    int group = 0;
    while (group < plan->n_points && plan->after[group] <= layer) group++;
    return group;
}

int lvp_vision_rows_at(const struct lvp_prune_plan *plan, int layer, int n_tokens)
{
    int group = lvp_layer_group(plan, layer);
    return group == 0 ? n_tokens : lvp_keep_count(plan, group - 1, n_tokens);
}

void lvp_prune_counts(const struct lvp_prune_plan *plan, int n_tokens, struct lvp_prune_counts *counts)
{
    *counts = (struct lvp_prune_counts){.n_points = plan->n_points, .rows = {n_tokens}, .vary = plan->counts_vary};
    for (int s = 0; s < plan->n_points; s++) {
        counts->after[s] = plan->after[s];
        counts->rows[s + 1] = lvp_keep_count(plan, s, n_tokens);
    }
}
