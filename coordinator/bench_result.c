#include "coordinator/bench_result.h"

#include <stdio.h>
#include <stdlib.h>

static int by_seconds(const void *a, const void *b)
{
    const struct lvp_bench_repeat *const *x = a, *const *y = b;
    return ((*x)->seconds > (*y)->seconds) - ((*x)->seconds < (*y)->seconds);
}

static double ratio(double value, double of)
{
    return of > 0 ? value / of : 0;
}

struct lvp_workload lvp_bench_workload(const struct lvp_bench_options *options)
{
    return (struct lvp_workload){.config = options->config,
                                 .prune = options->prune,
                                 .pruner_width = options->pruner_width,
                                 .text_tokens = options->text_tokens,
                                 .new_tokens = options->new_tokens,
                                 .dtype = options->dtype,
                                 .weights = options->weights};
}

// Costs of the part of a stage before `merge`, and from there on.
struct stage_cost {
    struct lvp_block_cost vision, language;
};

static struct stage_cost cost_of(const struct lvp_bench_measurement *m, const struct lvp_workload *workload, int stage)
{
    const struct lvp_partition *partition = &m->deployment->partition;
    int merge = lvp_block_index(workload->config, LVP_BLOCK_MERGE, 0);
    int first = partition->first[stage], end = partition->first[stage + 1];
    return (struct stage_cost){.vision = lvp_range_cost(workload, first, end < merge ? end : merge),
                               .language = lvp_range_cost(workload, first > merge ? first : merge, end)};
}

// What one worker did in one repeat. Rates of a kind of work are over the time spent on it; decode's are over the steps
// that held nothing else.
static json_t *worker_json(const struct lvp_bench_measurement *m, const struct lvp_workload *workload,
                           const struct lvp_bench_repeat *repeat, int w)
{
    const struct lvp_worker_info *worker = &m->world->workers[w];
    const Lvp__Statistics *s = &repeat->statistics[w];
    const struct lvp_roof_rates *roof = &m->roofs[w];
    struct stage_cost cost = cost_of(m, workload, worker->stage);
    double share = (double)m->options->images / m->world->n_replicas; // requests of one replica
    double vision = cost.vision.prefill_flops * share;
    double language = (cost.language.prefill_flops + cost.language.decode_flops) * share;
    double prefill = cost.language.prefill_flops * share;
    double flops_rate = ratio(vision + language, s->compute_seconds);
    double decode_bytes = (double)cost.language.decode_weight_bytes * (double)s->decode_steps;
    double read_rate = ratio(decode_bytes, s->decode_seconds);
    char first[LVP_BLOCK_NAME], last[LVP_BLOCK_NAME];
    json_t *what = json_pack(
        "{s:i, s:s, s:i, s:i, s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:f}", "rank", w + 1, "host", worker->host, "replica",
        worker->replica, "stage", worker->stage, "first_block",
        lvp_block_name(workload->config, m->deployment->partition.first[worker->stage], first), "last_block",
        lvp_block_name(workload->config, m->deployment->partition.first[worker->stage + 1] - 1, last), "threads",
        worker->threads, "load_seconds", worker->load_seconds, "roof_flops", roof->flops, "roof_read_bytes",
        roof->read_bytes, "link_bytes_per_second", roof->link.bytes, "link_seconds", roof->link.seconds);
    json_t *time =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "busy_seconds", s->compute_seconds,
                  "encode_seconds", s->encode_seconds, "prefill_seconds", s->prefill_seconds, "select_seconds",
                  s->select_seconds, "decode_seconds", s->decode_seconds, "input_wait_seconds", s->input_wait_seconds,
                  "send_wait_seconds", s->send_wait_seconds, "steps", (json_int_t)s->steps, "decode_steps",
                  (json_int_t)s->decode_steps, "encode_jobs", (json_int_t)s->encodes);
    json_t *rates =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:I, s:I}", "flops_per_second", flops_rate, "of_roof",
                  ratio(flops_rate, roof->flops), "encode_flops_per_second", ratio(vision, s->encode_seconds),
                  "prefill_flops_per_second", ratio(prefill, s->prefill_seconds), "select_share",
                  ratio(s->select_seconds, s->prefill_seconds + s->encode_seconds), "decode_weight_bytes_per_second",
                  read_rate, "decode_of_read_roof", ratio(read_rate, roof->read_bytes), "rows_out",
                  (json_int_t)(s->prefill_rows + s->decode_rows), "bytes_out",
                  (json_int_t)(s->prefill_bytes + s->decode_bytes + s->vision_bytes + s->framing_bytes),
                  "unpruned_rows_out", (json_int_t)(s->unpruned_prefill_rows + s->decode_rows));
    json_object_update(what, time);
    json_object_update(what, rates);
    json_decref(time);
    json_decref(rates);
    return what;
}

// Between the two in the middle where their number is even.
static double median_seconds(const struct lvp_bench_repeat *const *sorted, int n)
{
    return (sorted[(n - 1) / 2]->seconds + sorted[n / 2]->seconds) / 2;
}

static json_t *spread(const struct lvp_bench_repeat *const *sorted, int n, double amount)
{
    return json_pack("{s:f, s:f, s:f}", "median", ratio(amount, median_seconds(sorted, n)), "min",
                     ratio(amount, sorted[n - 1]->seconds), "max", ratio(amount, sorted[0]->seconds));
}

static json_t *setting_json(const struct lvp_bench_measurement *m)
{
    const struct lvp_bench_options *o = m->options;
    json_t *partition = json_array(), *rows = json_array();
    for (int s = 0; s < o->stages; s++)
        json_array_append_new(partition, json_integer(m->deployment->partition.first[s]));
    for (int d = 0; d <= m->deployment->prune.n_points; d++)
        json_array_append_new(rows, json_integer(m->deployment->prune.rows[d]));
    return json_pack("{s:s, s:b, s:s, s:s, s:s, s:s, s:i, s:s, s:i, s:i, s:o, s:o, s:i, s:i, s:i, s:i, s:i}", "model",
                     o->model, "synthetic", o->synthetic, "dtype", lvp_dtype_name(o->dtype), "weights",
                     lvp_dtype_name(o->weights), "keep", o->keep, "pruner", lvp_pruner_name(o->pruner), "pruner_width",
                     o->pruner_width, "kernel_set", m->deployment->kernel_set, "stages", o->stages, "replicas",
                     o->replicas, "first_blocks", partition, "vision_rows", rows, "concurrency",
                     m->deployment->scheduler.max_seqs, "batch_tokens", m->deployment->scheduler.batch_tokens, "images",
                     o->images, "text_tokens", o->text_tokens, "new_tokens", o->new_tokens);
}

json_t *lvp_bench_result(const struct lvp_bench_measurement *m)
{
    const struct lvp_bench_options *options = m->options;
    struct lvp_workload workload = lvp_bench_workload(options);
    struct lvp_block_cost cost = lvp_range_cost(&workload, 0, lvp_block_count(options->config));
    const struct lvp_bench_repeat **sorted = calloc((size_t)m->n_repeats, sizeof(const struct lvp_bench_repeat *));
    if (sorted == NULL) return NULL;
    for (int r = 0; r < m->n_repeats; r++) sorted[r] = &m->repeats[r];
    qsort(sorted, (size_t)m->n_repeats, sizeof *sorted, by_seconds);
    const struct lvp_bench_repeat *median = sorted[m->n_repeats / 2]; // of which the workers' figures are
    json_t *seconds = json_array(), *workers = json_array();
    double busy = 0, roof = 0;
    for (int r = 0; r < m->n_repeats; r++) json_array_append_new(seconds, json_real(m->repeats[r].seconds));
    for (int w = 0; w < m->world->n_workers; w++) {
        json_array_append_new(workers, worker_json(m, &workload, median, w));
        busy += median->statistics[w].compute_seconds;
        roof += m->roofs[w].flops;
    }
    double images = options->images, flops = (cost.prefill_flops + cost.decode_flops) * images;
    double flops_rate = ratio(flops, median_seconds(sorted, m->n_repeats));
    const struct lvp_prune_counts *prune = &m->deployment->prune;
    double before = prune->rows[0] + options->text_tokens, after = prune->rows[prune->n_points] + options->text_tokens;
    json_t *result = setting_json(m);
    json_t *rates = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o}", "seconds", seconds, "images_per_second",
        spread(sorted, m->n_repeats, images), "prompt_rows_per_second", spread(sorted, m->n_repeats, images * before),
        "kept_rows_per_second", spread(sorted, m->n_repeats, images * after), "tokens_per_second",
        spread(sorted, m->n_repeats, (double)median->totals.generated_tokens), "seconds_to_first_token",
        ratio(median->totals.first_token_seconds, (double)median->totals.answers), "seconds_per_later_token",
        ratio(median->totals.later_seconds, (double)median->totals.later_tokens), "flops_per_image", flops / images,
        "flops_per_second", flops_rate, "roof_flops", roof, "of_roof", ratio(flops_rate, roof), "bubble_share",
        1 - ratio(busy, median->seconds * m->world->n_workers), "workers", workers);
    free(sorted);
    if (median->trace != NULL) json_object_set(result, "trace", median->trace);
    json_object_update(result, rates);
    json_decref(rates);
    return result;
}
