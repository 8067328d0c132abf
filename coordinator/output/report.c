#include "coordinator/output/report.h"

#include "common/json.h"
#include "common/json_text.h"
#include "common/log.h"
#include "common/text.h"
#include "coordinator/output/output_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What crossed the cut behind a stage, over all replicas.
struct cut {
    int64_t prefill_rows, prefill_vision_rows, unpruned_rows;
    int64_t prefill_bytes, unpruned_bytes; // of a cut before `merge`: the images' rows
    int64_t decode_rows, decode_bytes, framing_bytes, vision_bytes;
};

static struct cut sum_cut(const struct lvp_report *report, int stage)
{
    const struct lvp_world *world = report->world;
    struct cut cut = {0};
    int64_t row_bytes = (int64_t)report->config->text.hidden * (int64_t)lvp_dtype_size(report->options->dtype);
    for (int r = 0; r < world->n_replicas; r++) {
        const Lvp__Statistics *stats = &world->workers[lvp_world_rank(world, r, stage) - 1].statistics;
        cut.prefill_rows += stats->prefill_rows;
        cut.prefill_vision_rows += stats->prefill_vision_rows;
        cut.prefill_bytes += stats->prefill_bytes + stats->vision_bytes;
        cut.unpruned_rows += stats->unpruned_prefill_rows;
        cut.unpruned_bytes += stats->unpruned_prefill_rows * row_bytes + stats->vision_bytes;
        cut.decode_rows += stats->decode_rows;
        cut.decode_bytes += stats->decode_bytes;
        cut.framing_bytes += stats->framing_bytes;
        cut.vision_bytes += stats->vision_bytes;
    }
    return cut;
}

static json_t *cuts_json(const struct lvp_report *report)
{
    json_t *cuts = json_array();
    for (int s = 0; s + 1 < report->world->n_stages; s++) {
        struct cut cut = sum_cut(report, s);
        json_array_append_new(
            cuts, json_pack("{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "after_stage", s, "prefill_rows",
                            (json_int_t)cut.prefill_rows, "prefill_rows_without_pruning", (json_int_t)cut.unpruned_rows,
                            "prefill_vision_rows", (json_int_t)cut.prefill_vision_rows, "prefill_payload_bytes",
                            (json_int_t)cut.prefill_bytes, "prefill_payload_bytes_without_pruning",
                            (json_int_t)cut.unpruned_bytes, "decode_rows", (json_int_t)cut.decode_rows,
                            "decode_payload_bytes", (json_int_t)cut.decode_bytes, "vision_payload_bytes",
                            (json_int_t)cut.vision_bytes, "framing_bytes", (json_int_t)cut.framing_bytes));
    }
    return cuts;
}

static json_t *stages_json(const struct lvp_report *report)
{
    const struct lvp_world *world = report->world;
    json_t *stages = json_array();
    for (int w = 0; w < world->n_workers; w++) {
        const struct lvp_worker_info *worker = &world->workers[w];
        char first[LVP_BLOCK_NAME], last[LVP_BLOCK_NAME];
        json_array_append_new(
            stages,
            json_pack("{s:i, s:i, s:i, s:s, s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:I, s:I}", "rank", w + 1, "replica",
                      worker->replica, "stage", worker->stage, "host", worker->host, "first_block",
                      lvp_block_name(report->config, world->partition.first[worker->stage], first), "last_block",
                      lvp_block_name(report->config, world->partition.first[worker->stage + 1] - 1, last), "threads",
                      worker->threads, "load_seconds", worker->load_seconds, "busy_seconds",
                      worker->statistics.compute_seconds, "input_wait_seconds", worker->statistics.input_wait_seconds,
                      "send_wait_seconds", worker->statistics.send_wait_seconds, "steps",
                      (json_int_t)worker->statistics.steps, "encode_jobs", (json_int_t)worker->statistics.encodes));
    }
    return stages;
}

// Share of the stages' time in which they did not compute.
static double bubble_share(const struct lvp_report *report)
{
    double busy = 0;
    for (int w = 0; w < report->world->n_workers; w++) busy += report->world->workers[w].statistics.compute_seconds;
    double all = report->run_seconds * report->world->n_workers;
    return all > 0 && busy < all ? 1 - busy / all : 0;
}

// Text from the command line or the file system, which need not be UTF-8.
static json_t *text_json(const char *text)
{
    struct lvp_text repaired = {0};
    if (text == NULL || lvp_text_append_repaired(&repaired, text, strlen(text)) != LVP_OK) return json_null();
    json_t *json = json_string(repaired.bytes);
    free(repaired.bytes);
    return json;
}

// JSON's integers end at 2^63 here; larger seeds are written as text.
static json_t *seed_json(uint64_t seed)
{
    return seed <= INT64_MAX ? json_integer((json_int_t)seed) : json_sprintf("%llu", (unsigned long long)seed);
}

static json_t *options_json(const struct lvp_report *report)
{
    const struct lvp_caption_options *options = report->options;
    json_t *prompts = json_array(), *keep = json_array();
    for (int p = 0; p < options->n_prompts; p++) json_array_append_new(prompts, text_json(options->prompts[p]));
    for (int s = 0; s < options->prune.n_points; s++)
        json_array_append_new(keep, json_real((double)options->prune.keep[s] / (double)LVP_KEEP_ONE));
    json_t *what = json_pack("{s:o, s:o, s:o, s:o, s:s, s:o, s:s, s:s, s:o, s:b}", "model", text_json(options->model),
                             "input", text_json(options->input), "output", text_json(options->output), "pruner_weights",
                             text_json(options->pruner_weights), "pruner", lvp_pruner_name(options->pruner), "keep",
                             keep, "dtype", lvp_dtype_name(options->dtype), "weights", lvp_dtype_name(options->weights),
                             "system", text_json(options->system), "raw_prompt", options->raw_prompt);
    json_t *how =
        json_pack("{s:o, s:i, s:f, s:f, s:o, s:o, s:b, s:I, s:i, s:i, s:i, s:i}", "prompts", prompts, "max_new_tokens",
                  options->max_new_tokens, "temperature", (double)options->temperature, "top_p", (double)options->top_p,
                  "seed", seed_json(options->seed), "score", text_json(options->score), "logprobs", options->logprobs,
                  "limit", (json_int_t)options->limit, "shard", options->shard, "n_shards", options->n_shards,
                  "threads", options->threads, "batch_tokens", options->batch_tokens);
    json_object_set_new(how, "max_pixels", json_integer((json_int_t)options->max_pixels));
    json_object_set_new(how, "max_errors",
                        options->max_errors < 0 ? json_null() : json_integer((json_int_t)options->max_errors));
    json_object_update(what, how);
    json_decref(how);
    return what;
}

// Failures of the whole job by code, read back from errors.jsonl: earlier lives' too. An object; NULL when out of
// memory.
static json_t *count_errors(const struct lvp_report *report)
{
    json_t *codes = json_object();
    char *path = lvp_output_path(report->options->output, LVP_ERRORS_FILE), *row = NULL;
    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    size_t capacity = 0;
    for (ssize_t n; file != NULL && (n = getline(&row, &capacity, file)) > 0;) {
        json_t *json = json_loadb(row, (size_t)n, 0, NULL);
        const char *code = json_string_value(json_object_get(json, "error"));
        if (code != NULL)
            json_object_set_new(codes, code, json_integer(json_integer_value(json_object_get(codes, code)) + 1));
        json_decref(json);
    }
    if (file != NULL) (void)fclose(file);
    free(row);
    free(path);
    return codes;
}

// Share of an image's vision tokens that a decoder layer sees, on the mean over the layers.
static double mean_kept(const struct lvp_report *report)
{
    const struct lvp_prune_counts *prune = report->prune;
    double rows = 0;
    for (int layer = 0; layer < report->config->text.layers; layer++)
        rows += prune->rows[lvp_depth_of_layer(prune, layer)];
    return rows / report->config->text.layers;
}

// Bytes of prefilled rows over all cuts: sent, and not sent because of pruning.
static void sum_bytes(const struct lvp_report *report, int64_t *sent, int64_t *saved)
{
    *sent = *saved = 0;
    for (int s = 0; s + 1 < report->world->n_stages; s++) {
        struct cut cut = sum_cut(report, s);
        *sent += cut.prefill_bytes + cut.decode_bytes + cut.framing_bytes;
        *saved += cut.unpruned_bytes - cut.prefill_bytes;
    }
}

static json_t *report_json(const struct lvp_report *report)
{
    const struct lvp_world *world = report->world;
    json_t *partition = json_array(), *after = json_array(), *rows = json_array();
    for (int s = 0; s < world->n_stages; s++) json_array_append_new(partition, json_integer(world->partition.first[s]));
    for (int s = 0; s < report->prune->n_points; s++)
        json_array_append_new(after, json_integer(report->prune->after[s]));
    for (int d = 0; d <= report->prune->n_points; d++)
        json_array_append_new(rows, json_integer(report->prune->rows[d]));
    double per_second = report->run_seconds > 0 ? 1 / report->run_seconds : 0;
    json_t *opts = options_json(report);
    json_t *plan = json_pack("{s:o, s:o, s:o, s:f}", "first_blocks", partition, "prune_after", after, "vision_rows",
                             rows, "mean_vision_rows", mean_kept(report)); // of an image, over the decoder layers
    const char *device = strchr(world->numeric_path, '+') != NULL      ? "cpu+cuda"
                         : strncmp(world->numeric_path, "cpu", 3) == 0 ? "cpu"
                                                                       : "cuda";
    json_t *where = json_pack("{s:i, s:i, s:i, s:s, s:s, s:s, s:s, s:b}", "ranks", world->n_workers + 1, "stages",
                              world->n_stages, "replicas", world->n_replicas, "device", device, "numeric_path",
                              world->numeric_path, "transport", lvp_world_transport(world), "kernel_set",
                              report->kernel_set, "mixed_numerics", report->mixed_numerics);
    json_t *counts = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:i}", "requests", (json_int_t)report->counts.total, "captions",
        (json_int_t)report->counts.captions, "failed", (json_int_t)report->counts.failed, "resumed",
        (json_int_t)report->counts.resumed, "images", (json_int_t)report->totals->images, "generated_tokens",
        (json_int_t)report->totals->generated_tokens, "steps", (json_int_t)report->totals->steps, "failed_by_code",
        count_errors(report), "restarts", report->options->restarts);
    // Of this life.
    double requests = (double)(report->counts.captions + report->counts.failed - report->counts.resumed);
    return json_pack("{s:s, s:o, s:s, s:o, s:o, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:o}", "version", LVP_VERSION,
                     "options", opts, "model_hash", report->model_hash, "plan", plan, "world", where, "counts", counts,
                     "wall_seconds", report->wall_seconds, "run_seconds", report->run_seconds, "images_per_second",
                     (double)report->totals->images * per_second, "requests_per_second", requests * per_second,
                     "tokens_per_second", (double)report->totals->generated_tokens * per_second, "bubble_share",
                     bubble_share(report), "stages", stages_json(report), "cuts", cuts_json(report));
}

bool lvp_report_exists(const struct lvp_report *report)
{
    return lvp_output_exists(report->options->output, "run.json");
}

static void print_run(const json_t *json)
{
    (void)json_dumpf(json, stdout, JSON_INDENT(2));
    (void)putchar('\n');
}

enum lvp_status lvp_report_write(const struct lvp_report *report)
{
    json_t *json = report_json(report);
    if (json == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for run.json");
    enum lvp_status status = lvp_output_write_json(report->options->output, "run.json", json);
    if (status == LVP_OK && report->options->json) print_run(json);
    json_decref(json);
    return status;
}

enum lvp_status lvp_report_repeat(const struct lvp_report *report)
{
    json_t *json = NULL;
    char *path = lvp_output_path(report->options->output, "run.json");
    enum lvp_status status =
        path != NULL ? lvp_json_load(path, false, &json) : lvp_fail(LVP_ERR_MEMORY, "out of memory");
    if (status == LVP_OK) print_run(json);
    json_decref(json);
    free(path);
    if (status != LVP_ERR_MODEL) return status;
    lvp_error_clear(); // it is damaged: better a new one
    return lvp_report_write(report);
}

static void print_cuts(const struct lvp_report *report)
{
    const struct lvp_world *world = report->world;
    if (world->n_stages < 2) return;
    (void)fprintf(
        stderr,
        "\n  cut after       vision rows  prefill bytes   without pruning   share   decode bytes   image bytes\n");
    for (int s = 0; s + 1 < world->n_stages; s++) {
        struct cut cut = sum_cut(report, s);
        char name[LVP_BLOCK_NAME];
        double share = cut.unpruned_bytes > 0 ? 100.0 * (double)cut.prefill_bytes / (double)cut.unpruned_bytes : 100.0;
        (void)fprintf(stderr, "  %-14s %12" PRId64 " %14" PRId64 " %17" PRId64 " %6.1f%% %14" PRId64 " %13" PRId64 "\n",
                      lvp_block_name(report->config, world->partition.first[s + 1] - 1, name), cut.prefill_vision_rows,
                      cut.prefill_bytes, cut.unpruned_bytes, share, cut.decode_bytes, cut.vision_bytes);
    }
}

// "3 file_missing, 1 not_an_image"
static void codes_text(const struct lvp_report *report, char *text, size_t size)
{
    json_t *codes = count_errors(report);
    const char *code;
    json_t *count;
    size_t n = 0;
    text[0] = '\0';
    json_object_foreach(codes, code, count)
    {
        int m = snprintf(text + n, size - n, "%s%" JSON_INTEGER_FORMAT " %s", n > 0 ? ", " : "",
                         json_integer_value(count), code);
        if (m < 0 || (size_t)m >= size - n) break;
        n += (size_t)m;
    }
    json_decref(codes);
}

static void print_json(const struct lvp_report *report, int64_t sent, int64_t saved)
{
    char members[400];
    const struct lvp_captions_counts *counts = &report->counts;
    (void)snprintf(members, sizeof members,
                   "\"captions\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"resumed\":%" PRIu64
                   ",\"seconds\":%.3f,\"images\":%" PRId64 ",\"generated_tokens\":%" PRId64
                   ",\"vision_tokens_kept\":%.2f,\"bytes_sent\":%" PRId64 ",\"bytes_saved\":%" PRId64,
                   counts->captions, counts->failed, counts->resumed, report->run_seconds, report->totals->images,
                   report->totals->generated_tokens, mean_kept(report), sent, saved);
    lvp_log_event(LVP_LOG_INFO, members, "summary");
}

void lvp_report_print(const struct lvp_report *report)
{
    const struct lvp_captions_counts *counts = &report->counts;
    char codes[400];
    int64_t sent = 0, saved = 0;
    sum_bytes(report, &sent, &saved);
    if (lvp_log_is_json()) {
        print_json(report, sent, saved);
        return;
    }
    if (counts->total > 0 && counts->resumed == counts->total) {
        (void)fprintf(stderr, "nothing was left to do: %" PRIu64 " captions, %" PRIu64 " failed\n", counts->captions,
                      counts->failed);
        return;
    }
    double per_second = report->run_seconds > 0 ? 1 / report->run_seconds : 0;
    (void)fprintf(stderr, "%" PRIu64 " captions", counts->captions);
    if (counts->resumed > 0) (void)fprintf(stderr, " (%" PRIu64 " requests were done before)", counts->resumed);
    (void)fprintf(stderr, ", %" PRIu64 " failed, %.1f s, %.2f images/s, %.1f tokens/s\n", counts->failed,
                  report->run_seconds, (double)report->totals->images * per_second,
                  (double)report->totals->generated_tokens * per_second);
    if (counts->captions > 0) (void)fprintf(stderr, "they are in %s/captions.jsonl\n", report->options->output);
    if (counts->failed > 0) {
        codes_text(report, codes, sizeof codes);
        (void)fprintf(stderr, "failed: %s; the samples are in %s/errors.jsonl\n", codes, report->options->output);
    }
    if (report->prune->n_points > 0)
        (void)fprintf(stderr, "vision tokens: a decoder layer saw %.1f of %d on the mean\n", mean_kept(report),
                      report->prune->rows[0]);
    if (report->world->n_stages > 1)
        (void)fprintf(stderr, "over the cuts: %.2f MB sent, %.2f MB saved by pruning\n", (double)sent * 1e-6,
                      (double)saved * 1e-6);
    print_cuts(report);
}
