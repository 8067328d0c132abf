#include "coordinator/planner.h"

#include <math.h>
#include <stdlib.h>

// Sequences that decode in one step: as many groups are under way as there are stages.
static int of_a_step(const struct lvp_planner_input *input)
{
    int n = input->sequences / input->n_stages;
    return n > 0 ? n : 1;
}

// Of one request in one block, by what was measured: encoding, prefill, and a share of the decode steps of all
// requests in flight.
static double block_seconds(const struct lvp_planner_input *input, const struct lvp_device_rates *rates, int block)
{
    const struct lvp_workload *w = input->workload;
    int steps = lvp_decode_steps(w), n = of_a_step(input);
    const struct lvp_step_load prompt = {.n_prompts = 1};
    const struct lvp_step_load decode = {
        .n_decodes = n, .n_images = n, .decode_text = n * (w->text_tokens + w->new_tokens / 2.0)};
    double seconds = lvp_block_encode_seconds(w, rates, block, 1) + lvp_block_step_seconds(w, rates, block, &prompt);
    return steps > 0 ? seconds + steps * lvp_block_step_seconds(w, rates, block, &decode) / n : seconds;
}

// `measured`: the sum of block_seconds, where the device has rates.
static double stage_seconds(const struct lvp_planner_input *input, int stage, const struct lvp_block_cost *cost,
                            double measured)
{
    const struct lvp_device *device = &input->devices[stage];
    double steps = lvp_decode_steps(input->workload);
    double sent = (double)(cost->prefill_out.payload + cost->prefill_out.framing) +
                  steps * (double)(cost->decode_out.payload + cost->decode_out.framing);
    if (device->rates != NULL) return measured + sent / device->link_rate;
    double read = steps * ((double)cost->decode_weight_bytes / of_a_step(input) + (double)cost->kv_bytes);
    return (cost->prefill_flops + cost->decode_flops) / device->flops + read / device->memory_rate +
           sent / device->link_rate;
}

static int64_t stage_memory(const struct lvp_planner_input *input, const struct lvp_block_cost *cost)
{
    return cost->weight_bytes + cost->kv_bytes * input->sequences;
}

double lvp_stage_seconds(const struct lvp_planner_input *input, int stage, int first, int end)
{
    struct lvp_block_cost cost = lvp_range_cost(input->workload, first, end);
    const struct lvp_device_rates *rates = input->devices[stage].rates;
    double measured = 0;
    for (int b = first; rates != NULL && b < end; b++) measured += block_seconds(input, rates, b);
    return stage_seconds(input, stage, &cost, measured);
}

int64_t lvp_stage_memory(const struct lvp_planner_input *input, int first, int end)
{
    struct lvp_block_cost cost = lvp_range_cost(input->workload, first, end);
    return stage_memory(input, &cost);
}

// Tables of the dynamic programming; index b is a boundary of the chain, 0..n_blocks.
struct tables {
    const struct lvp_planner_input *input;
    int n_blocks;
    struct lvp_block_cost *prefix; // [n_blocks + 1] sums of blocks 0..b-1; the *_out of block b-1
    bool *allowed;                 // [n_blocks + 1] a stage may end at b
    double *seconds;               // [n_stages][n_blocks + 1] sums of block_seconds on the stage's device
    double *value;                 // [n_stages + 1][n_blocks + 1] best value of the first s stages ending at b
    int *from;                     // the same shape: where stage s - 1 ended
};

static struct lvp_block_cost range_of(const struct tables *t, int first, int end)
{
    struct lvp_block_cost cost = t->prefix[end];
    const struct lvp_block_cost *before = &t->prefix[first];
    cost.prefill_flops -= before->prefill_flops;
    cost.decode_flops -= before->decode_flops;
    cost.weight_bytes -= before->weight_bytes;
    cost.decode_weight_bytes -= before->decode_weight_bytes;
    cost.kv_bytes -= before->kv_bytes;
    return cost;
}

// What is added up once the slowest stage is settled: bytes sent, and far below one byte the squared load, which evens
// out stages that differ in nothing else.
static double second_aim(const struct lvp_block_cost *cost, double load)
{
    return (double)cost->prefill_out.payload + (double)cost->decode_out.payload + load * load / 1000;
}

// Fills the tables. Without a bound, the value is the slowest stage's seconds; with one, the second aim of partitions
// whose stages all stay within it. Returns the value of the whole chain, INFINITY when there is none.
static double solve(struct tables *t, double bound)
{
    const struct lvp_planner_input *in = t->input;
    int n = t->n_blocks, width = n + 1;
    for (int b = 0; b <= n; b++) t->value[b] = b == 0 ? 0 : INFINITY;
    for (int s = 1; s <= in->n_stages; s++) {
        double *now = t->value + (ptrdiff_t)s * width, *before = now - width;
        int64_t limit = in->devices[s - 1].memory;
        for (int b = 0; b <= n; b++) {
            now[b] = INFINITY;
            if (b < s || !t->allowed[b]) continue;
            for (int a = s - 1; a < b; a++) {
                if (isinf(before[a])) continue;
                struct lvp_block_cost cost = range_of(t, a, b);
                if (limit > 0 && stage_memory(in, &cost) > limit) continue;
                const double *sums = t->seconds + (ptrdiff_t)(s - 1) * width;
                double seconds = stage_seconds(in, s - 1, &cost, sums[b] - sums[a]);
                if (seconds > bound) continue;
                double value = isinf(bound) ? fmax(before[a], seconds) : before[a] + second_aim(&cost, seconds / bound);
                if (value < now[b]) {
                    now[b] = value;
                    t->from[s * width + b] = a;
                }
            }
        }
    }
    return t->value[in->n_stages * width + n];
}

static void tables_free(struct tables *t)
{
    free(t->prefix);
    free(t->allowed);
    free(t->seconds);
    free(t->value);
    free(t->from);
}

static enum lvp_status tables_make(const struct lvp_planner_input *input, struct tables *t)
{
    const struct lvp_model_config *config = input->workload->config;
    int n = lvp_block_count(config);
    size_t cells = (size_t)(input->n_stages + 1) * (size_t)(n + 1);
    *t = (struct tables){.input = input, .n_blocks = n};
    t->prefix = calloc((size_t)n + 1, sizeof *t->prefix);
    t->allowed = calloc((size_t)n + 1, sizeof *t->allowed);
    t->seconds = calloc(cells, sizeof *t->seconds);
    t->value = calloc(cells, sizeof *t->value);
    t->from = calloc(cells, sizeof *t->from);
    if (t->prefix == NULL || t->allowed == NULL || t->seconds == NULL || t->value == NULL || t->from == NULL) {
        tables_free(t);
        (void)lvp_fail(LVP_ERR_MEMORY, "planning %d stages: out of memory", input->n_stages);
        return LVP_ERR_MEMORY;
    }
    for (int b = 0; b < n; b++) {
        struct lvp_block_cost cost = lvp_block_cost(input->workload, b);
        const struct lvp_block_cost *sum = &t->prefix[b];
        cost.prefill_flops += sum->prefill_flops;
        cost.decode_flops += sum->decode_flops;
        cost.weight_bytes += sum->weight_bytes;
        cost.decode_weight_bytes += sum->decode_weight_bytes;
        cost.kv_bytes += sum->kv_bytes;
        t->prefix[b + 1] = cost;
        t->allowed[b + 1] = b + 1 == n || lvp_cut_allowed(config, b + 1);
    }
    for (int s = 0; s < input->n_stages; s++) {
        double *sums = t->seconds + (ptrdiff_t)s * (n + 1);
        const struct lvp_device_rates *rates = input->devices[s].rates;
        for (int b = 0; rates != NULL && b < n; b++) sums[b + 1] = sums[b] + block_seconds(input, rates, b);
    }
    return LVP_OK;
}

static enum lvp_status no_partition(const struct tables *t)
{
    int most = 0;
    for (int b = 1; b <= t->n_blocks; b++) most += t->allowed[b] ? 1 : 0;
    if (t->input->n_stages > most)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d: this model can be cut into %d stages at most", t->input->n_stages,
                        most);
    int64_t largest = 0;
    for (int s = 0; s < t->input->n_stages; s++)
        if (t->input->devices[s].memory > largest) largest = t->input->devices[s].memory;
    return lvp_fail(
        LVP_ERR_USAGE,
        "no partition into %d stages fits: the model needs %.2f GB with the KV cache of %d sequences, the largest "
        "device has %.2f GB; use more stages or fewer sequences",
        t->input->n_stages, (double)stage_memory(t->input, &t->prefix[t->n_blocks]) / 1e9, t->input->sequences,
        (double)largest / 1e9);
}

enum lvp_status lvp_plan_partition(const struct lvp_planner_input *input, struct lvp_partition *partition)
{
    if (input->n_stages < 1 || input->n_stages > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d: at least 1, at most %d", input->n_stages, LVP_MAX_STAGES);
    struct tables tables;
    LVP_TRY(tables_make(input, &tables));
    enum lvp_status status = LVP_OK;
    double slowest = solve(&tables, INFINITY);
    if (isinf(slowest)) {
        status = no_partition(&tables);
    } else {
        // The margin only absorbs rounding of the prefix sums: the best partition must stay within its own bound.
        (void)solve(&tables, slowest * (1 + 1e-9));
        *partition = (struct lvp_partition){.n_stages = input->n_stages};
        int end = tables.n_blocks;
        for (int s = input->n_stages; s > 0; s--) {
            partition->first[s] = end;
            end = tables.from[s * (tables.n_blocks + 1) + end];
        }
    }
    tables_free(&tables);
    return status;
}

static double slowest_seconds(const struct lvp_planner_input *input, const struct lvp_partition *partition)
{
    double slowest = 0;
    for (int s = 0; s < input->n_stages; s++)
        slowest = fmax(slowest, lvp_stage_seconds(input, s, partition->first[s], partition->first[s + 1]));
    return slowest;
}

enum lvp_status lvp_plan_within_memory(struct lvp_planner_input *input, struct lvp_partition *partition)
{
    static const double little = 1.05;
    struct lvp_device unlimited[LVP_MAX_STAGES];
    for (int s = 0; s < input->n_stages && s < LVP_MAX_STAGES; s++) {
        unlimited[s] = input->devices[s];
        unlimited[s].memory = 0;
    }
    for (;; input->sequences /= 2) {
        struct lvp_planner_input without = *input;
        struct lvp_partition best;
        without.devices = unlimited;
        LVP_TRY(lvp_plan_partition(&without, &best));
        enum lvp_status status = lvp_plan_partition(input, partition);
        bool good = status == LVP_OK && slowest_seconds(input, partition) <= little * slowest_seconds(&without, &best);
        if (good || input->sequences < 2) return status;
        lvp_error_clear();
    }
}

static bool fits(const struct lvp_planner_input *input, const struct lvp_partition *partition)
{
    for (int s = 0; s < input->n_stages; s++)
        if (input->devices[s].memory > 0 &&
            lvp_stage_memory(input, partition->first[s], partition->first[s + 1]) > input->devices[s].memory)
            return false;
    return true;
}

enum lvp_status lvp_plan_choice(struct lvp_planner_input *input, const struct lvp_partition_choice *choice,
                                bool may_shrink, struct lvp_partition *partition)
{
    if (choice->mode == LVP_PARTITION_AUTO)
        return may_shrink ? lvp_plan_within_memory(input, partition) : lvp_plan_partition(input, partition);
    LVP_TRY(lvp_partition_resolve(choice, input->workload->config, &input->workload->prune, partition));
    if (!may_shrink) return LVP_OK;
    while (input->sequences > 1 && !fits(input, partition)) input->sequences /= 2;
    if (fits(input, partition)) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "a stage of this partition does not fit the memory; cut elsewhere, or more often");
}
