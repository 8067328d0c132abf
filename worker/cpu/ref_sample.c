// Reference of the choice of a token. NaN logits count as -infinity; with no finite logit the token is 0.
//
// With temperature T > 0: p_i = exp((logit_i - max) / T), tokens sorted by logit descending and then by id; the
// smallest prefix whose sum reaches top_p of the total stays (Holtzman et al., arXiv 1904.09751, section 3.1); one
// uniform number u picks the first token of it whose running sum exceeds u times the prefix's sum.
#include "worker/cpu/ref_ops.h"

#include <math.h>

static float logit_at(const float *logits, int i)
{
    return isnan(logits[i]) ? -INFINITY : logits[i];
}

static int greedy(const float *logits, int vocab)
{
    int best = 0;
    for (int i = 1; i < vocab; i++) {
        if (logit_at(logits, i) > logit_at(logits, best)) best = i;
    }
    return best;
}

// The token that follows `previous` in the sorted order; -1 starts, -1 ends. Selection instead of sorting: no scratch.
static int next_in_order(const float *logits, int vocab, int previous)
{
    int best = -1;
    for (int i = 0; i < vocab; i++) {
        float logit = logit_at(logits, i);
        if (previous >= 0) {
            float last = logit_at(logits, previous);
            if (logit > last || (logit == last && i <= previous)) continue;
        }
        if (best < 0 || logit > logit_at(logits, best)) best = i;
    }
    return best;
}

static double weight_of(const float *logits, int i, float largest, float temperature)
{
    return exp(((double)logit_at(logits, i) - (double)largest) / (double)temperature);
}

static int draw(const float *logits, int vocab, const struct lvp_draw *how)
{
    int first = greedy(logits, vocab);
    float largest = logit_at(logits, first);
    if (!isfinite(largest)) return first;
    double total = 0.0, prefix = 0.0;
    for (int i = 0; i < vocab; i++) total += weight_of(logits, i, largest, how->temperature);
    int last = -1; // of the prefix; -1: everything
    if (how->top_p < 1.0f) {
        do {
            last = next_in_order(logits, vocab, last);
            prefix += weight_of(logits, last, largest, how->temperature);
        } while (prefix < (double)how->top_p * total && next_in_order(logits, vocab, last) >= 0);
    } else {
        prefix = total;
    }

    double target = how->uniform * prefix;
    double running = weight_of(logits, first, largest, how->temperature);
    int token = first;
    while (running <= target && token != last) {
        int next = next_in_order(logits, vocab, token);
        if (next < 0) break;
        token = next;
        running += weight_of(logits, token, largest, how->temperature);
    }
    return token;
}

void lvp_ref_sample(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *how,
                    int32_t *tokens, float *logprobs)
{
    (void)backend;
    for (int row = 0; row < n; row++, logits += vocab) {
        float largest = logit_at(logits, greedy(logits, vocab));
        double total = 0.0;
        for (int i = 0; i < vocab; i++) total += exp((double)logit_at(logits, i) - (double)largest);
        tokens[row] = how[row].temperature > 0.0f ? draw(logits, vocab, &how[row]) : greedy(logits, vocab);
        int scored = how[row].scored >= 0 ? how[row].scored : tokens[row];
        logprobs[row] = (float)((double)logit_at(logits, scored) - (double)largest - log(total));
    }
}
