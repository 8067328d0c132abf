#include "coordinator/caption.h"

#include "common/checkpoint.h"
#include "common/log.h"
#include "coordinator/captions.h"
#include "coordinator/identity.h"
#include "coordinator/manifest.h"
#include "coordinator/planner.h"
#include "coordinator/progress.h"
#include "coordinator/report.h"
#include "coordinator/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FINISH_SECONDS = 10,
    TYPICAL_TEXT = 64,
    IMAGE_SLOTS = 4 * LVP_ENCODE_IMAGES,
    MAX_IMAGE_SLOTS = 256,
    MAX_SEQS = 64
};

// Everything a caption job holds; opened from top to bottom, closed the other way.
struct job {
    const struct lvp_caption_options *options;
    struct lvp_checkpoint *checkpoint;
    const struct lvp_model_config *config;
    char model_hash[33];
    struct lvp_tokenizer *tokenizer;
    struct lvp_chat_template *chat;
    struct lvp_pruner_weights weights;
    struct lvp_manifest *manifest;
    struct lvp_requests requests;
    struct lvp_world world;
    struct lvp_prune_counts prune;
    struct lvp_partition partition;
    int n_stages, n_replicas, merge_stage;
    char kernel_set[16];
    struct lvp_scheduler_config scheduler;
    int image_slots, max_rows;
    struct lvp_captions *captions;
    struct lvp_progress progress;
    int *vision_tokens; // [max images of a prompt, 1 + n_points]
    double started;
};

static int asked_stages(const struct lvp_caption_options *options)
{
    int by_partition = lvp_partition_choice_stages(&options->partition, &options->prune);
    return options->stages > 0 ? options->stages : by_partition;
}

enum lvp_status lvp_caption_workers(const struct lvp_caption_options *options, int *n_workers)
{
    int stages = asked_stages(options), replicas = options->replicas > 0 ? options->replicas : 1;
    if (stages == 0) stages = 1;
    *n_workers = stages * replicas;
    return lvp_caption_layout(options, *n_workers, &stages, &replicas);
}

enum lvp_status lvp_caption_layout(const struct lvp_caption_options *options, int n_workers, int *stages, int *replicas)
{
    int by_partition = lvp_partition_choice_stages(&options->partition, &options->prune);
    *stages = asked_stages(options);
    *replicas = options->replicas;
    if (by_partition > 0 && *stages != by_partition)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d, but the partition has %d stages: leave --stages out", *stages,
                        by_partition);
    if (*stages == 0 && *replicas == 0) *replicas = 1;
    if (*stages == 0 && n_workers % *replicas == 0) *stages = n_workers / *replicas;
    if (*stages > 0 && *replicas == 0 && n_workers % *stages == 0) *replicas = n_workers / *stages;
    if (*stages > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "%d stages are more than the %d supported", *stages, LVP_MAX_STAGES);
    if (*stages > 0 && *replicas > 0 && *stages * *replicas == n_workers) return LVP_OK;
    int unit = *stages > 0 ? *stages : *replicas, rest = *stages > 0 && *replicas > 0 ? *replicas : 0;
    if (rest > 0)
        return lvp_fail(LVP_ERR_USAGE, "%d stages x %d replicas need %d ranks (rank 0 coordinates), %d were started",
                        *stages, rest, *stages * rest + 1, n_workers + 1);
    int fewer = n_workers / unit * unit;
    const char *what = *stages > 0 ? "pipelines" : "replicas";
    if (fewer == 0)
        return lvp_fail(LVP_ERR_USAGE, "%d ranks are too few for %s of %d: start %d ranks (rank 0 coordinates)",
                        n_workers + 1, what, unit, unit + 1);
    return lvp_fail(LVP_ERR_USAGE, "%d ranks do not divide into %s of %d: start %d or %d ranks (rank 0 coordinates)",
                    n_workers + 1, what, unit, fewer + 1, fewer + unit + 1);
}

static enum lvp_status open_model(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    LVP_TRY(lvp_checkpoint_open(options->model, &job->checkpoint));
    job->config = lvp_checkpoint_config(job->checkpoint);
    LVP_TRY(lvp_checkpoint_hash(job->checkpoint, job->model_hash));
    LVP_TRY(lvp_tokenizer_open(options->model, &job->tokenizer));
    if (!options->raw_prompt) LVP_TRY(lvp_chat_template_load(options->model, &job->chat));
    if (options->pruner_weights != NULL)
        LVP_TRY(lvp_pruner_weights_open(options->pruner_weights, job->config, &job->weights));
    lvp_prune_counts(&options->prune, lvp_vision_tokens(job->config), &job->prune);
    struct lvp_manifest_options manifest = {
        .limit = options->limit, .shard = options->shard, .n_shards = options->n_shards};
    LVP_TRY(lvp_manifest_open(options->input, &manifest, &job->manifest));
    job->requests =
        (struct lvp_requests){.manifest = job->manifest, .prompts = options->prompts, .n_prompts = options->n_prompts};
    return LVP_OK;
}

// What the poorest worker of a stage may use: its host's memory shared with the workers there, a tenth left for
// buffers.
static int64_t smallest_memory(const struct job *job, int stage)
{
    const struct lvp_world *world = &job->world;
    int64_t smallest = 0;
    for (int w = stage; w < world->n_workers; w += job->n_stages) {
        int sharing = 0;
        for (int other = 0; other < world->n_workers; other++)
            if (strcmp(world->workers[other].host, world->workers[w].host) == 0) sharing++;
        int64_t memory = world->workers[w].memory_bytes / 10 * 9 / sharing;
        if (memory > 0 && (smallest == 0 || memory < smallest)) smallest = memory;
    }
    return smallest;
}

// The partition: as asked, or the planner's for the workers that are there.
static enum lvp_status choose_partition(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    if (options->partition.mode != LVP_PARTITION_AUTO)
        return lvp_partition_resolve(&options->partition, job->config, &options->prune, &job->partition);
    int context = job->config->text.max_positions;
    int new_tokens = options->max_new_tokens < context ? options->max_new_tokens : context;
    struct lvp_workload workload = {.config = job->config,
                                    .prune = options->prune,
                                    .pruner_width = job->weights.inner_width,
                                    .text_tokens = TYPICAL_TEXT,
                                    .new_tokens = new_tokens,
                                    .dtype = options->dtype};
    struct lvp_device devices[LVP_MAX_STAGES];
    for (int s = 0; s < job->n_stages; s++) {
        devices[s] = LVP_TYPICAL_CPU;
        devices[s].memory = smallest_memory(job, s);
    }
    struct lvp_planner_input input = {
        .workload = &workload, .n_stages = job->n_stages, .devices = devices, .sequences = LVP_PLANNED_SEQUENCES};
    return lvp_plan_partition(&input, &job->partition);
}

// How much the stages hold at once. KV: typical requests for every sequence slot, and the longest prompt alone.
static void size_run(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    const struct lvp_text_config *text = &job->config->text;
    int tokens = job->prune.rows[0], page = LVP_COST_KV_PAGE;
    int max_seqs = LVP_PLANNED_SEQUENCES * job->n_stages;
    if (max_seqs > MAX_SEQS) max_seqs = MAX_SEQS;
    int longest = text->max_positions / tokens + 1; // images of one prompt at most
    job->image_slots = longest < IMAGE_SLOTS ? IMAGE_SLOTS : longest < MAX_IMAGE_SLOTS ? longest : MAX_IMAGE_SLOTS;
    int batch = options->batch_tokens > 0 ? options->batch_tokens : 1024;
    if (options->batch_tokens == 0 && batch < tokens + 2 * TYPICAL_TEXT) batch = tokens + 2 * TYPICAL_TEXT;
    job->max_rows = batch > text->max_positions ? batch : text->max_positions;
    job->scheduler = (struct lvp_scheduler_config){.prune = job->prune,
                                                   .n_stages = job->n_stages - job->merge_stage,
                                                   .max_steps = job->n_stages - job->merge_stage + 1,
                                                   .max_seqs = max_seqs,
                                                   .page_slots = page,
                                                   .batch_tokens = batch};
    for (int d = 0; d <= job->prune.n_points; d++) {
        int rows = job->prune.rows[d] + TYPICAL_TEXT + options->max_new_tokens;
        if (rows > text->max_positions) rows = text->max_positions;
        int typical = (rows + page - 1) / page;
        int largest = (text->max_positions + page - 1) / page;
        job->scheduler.kv_pages[d] = typical * max_seqs > largest ? typical * max_seqs : largest;
    }
}

static enum lvp_status set_up_workers(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    int32_t after[LVP_MAX_PRUNE_POINTS], rows[LVP_MAX_DEPTHS], pages[LVP_MAX_DEPTHS];
    Lvp__Setup setup = LVP__SETUP__INIT;
    for (int s = 0; s < job->prune.n_points; s++) after[s] = job->prune.after[s];
    for (int d = 0; d <= job->prune.n_points; d++) {
        rows[d] = job->prune.rows[d];
        pages[d] = job->scheduler.kv_pages[d];
    }
    char *model = realpath(options->model, NULL);
    char *weights = options->pruner_weights != NULL ? realpath(options->pruner_weights, NULL) : strdup("");
    if (model == NULL || weights == NULL) {
        free(model);
        free(weights);
        return lvp_fail(LVP_ERR_MODEL, "%s cannot be found any more", options->model);
    }
    setup.model = model;
    setup.model_hash = job->model_hash;
    setup.dtype = (int32_t)options->dtype;
    setup.pruner = (int32_t)options->pruner;
    setup.pruner_weights = weights;
    setup.n_prune_after = (size_t)job->prune.n_points;
    setup.prune_after = after;
    setup.n_prune_rows = setup.n_kv_pages = (size_t)job->prune.n_points + 1;
    setup.prune_rows = rows;
    setup.kv_pages = pages;
    setup.max_rows = job->max_rows;
    setup.max_seqs = job->scheduler.max_seqs;
    setup.max_kv_len = job->config->text.max_positions;
    setup.max_images = LVP_ENCODE_IMAGES;
    setup.image_slots = job->image_slots;
    setup.max_pixels = options->max_pixels;
    enum lvp_status status = lvp_world_setup(&job->world, &job->partition, job->n_replicas, job->merge_stage,
                                             job->kernel_set, options->threads, &setup);
    free(model);
    free(weights);
    return status;
}

// A resumed run goes on with the kernels it began with, where this world has them.
static enum lvp_status choose_kernel_set(struct job *job)
{
    json_t *stored = NULL;
    (void)snprintf(job->kernel_set, sizeof job->kernel_set, "%s", job->world.kernel_set);
    if (job->options->overwrite) return LVP_OK;
    LVP_TRY(lvp_identity_read(job->options->output, &stored));
    const char *path = json_string_value(json_object_get(stored, LVP_NUMERIC_PATH)); // "cpu/avx2"
    const char *name = path != NULL ? strchr(path, '/') : NULL;
    if (name != NULL && lvp_world_can_run(&job->world, name + 1))
        (void)snprintf(job->kernel_set, sizeof job->kernel_set, "%s", name + 1);
    json_decref(stored);
    return LVP_OK;
}

static enum lvp_status open_output(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    char numeric_path[32];
    (void)snprintf(numeric_path, sizeof numeric_path, "cpu/%s", job->kernel_set);
    char temperature[32], top_p[32], seed[32];
    (void)snprintf(temperature, sizeof temperature, "%.9g", (double)options->temperature);
    (void)snprintf(top_p, sizeof top_p, "%.9g", (double)options->top_p);
    (void)snprintf(seed, sizeof seed, "%llu", (unsigned long long)options->seed);
    json_t *keep = json_array(), *after = json_array();
    for (int s = 0; s < options->prune.n_points; s++) { // 1e-12 shares: exact
        json_array_append_new(keep, json_integer(options->prune.keep[s]));
        json_array_append_new(after, json_integer(options->prune.after[s]));
    }
    json_t *identity = json_pack(
        "{s:s, s:s, s:s, s:s, s:o, s:o, s:s?, s:b, s:i, s:s, s:s, s:s, s:s, s:b, s:[i,i], s:s}", "model",
        job->model_hash, "tokenizer", lvp_tokenizer_hash(job->tokenizer), "pruner", lvp_pruner_name(options->pruner),
        "pruner_weights", job->weights.hash, "keep", keep, "prune_after", after, "system", options->system,
        "raw_prompt", options->raw_prompt, "max_new_tokens", options->max_new_tokens, "temperature", temperature,
        "top_p", top_p, "seed", seed, "dtype", lvp_dtype_name(options->dtype), "logprobs", options->logprobs, "shard",
        options->shard, options->n_shards, LVP_NUMERIC_PATH, numeric_path);
    if (identity == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the run's identity");
    struct lvp_captions_options captions = {.dir = options->output,
                                            .requests = &job->requests,
                                            .identity = identity,
                                            .overwrite = options->overwrite,
                                            .retry_failed = options->retry_failed,
                                            .allow_mixed_numerics = options->allow_mixed_numerics};
    enum lvp_status status = lvp_captions_open(&captions, &job->captions);
    json_decref(identity);
    return status;
}

static bool sink_done(void *context, uint64_t index)
{
    const struct job *job = context;
    return lvp_captions_next(job->captions, index) != index;
}

static enum lvp_status sink_error(void *context, uint64_t index, const struct lvp_request *request,
                                  const struct lvp_sample_error *error)
{
    struct job *job = context;
    LVP_TRY(lvp_captions_add_error(job->captions, index, request, error, 1));
    int64_t failed = (int64_t)lvp_captions_counts(job->captions).failed;
    if (job->options->max_errors >= 0 && failed > job->options->max_errors)
        return lvp_fail(LVP_ERR_TOO_MANY, "%lld samples have failed, --max-errors allows %lld (the last: %s: %s)",
                        (long long)failed, (long long)job->options->max_errors, request->id, error->message);
    return LVP_OK;
}

static char *trim(char *text)
{
    while (strchr(" \t\r\n", *text) != NULL && *text != '\0') text++;
    size_t n = strlen(text);
    while (n > 0 && strchr(" \t\r\n", text[n - 1]) != NULL) text[--n] = '\0';
    return text;
}

static enum lvp_status sink_caption(void *context, uint64_t index, const struct lvp_request *request,
                                    const struct lvp_prompt *prompt, const int32_t *tokens, const float *logprobs,
                                    int n_tokens, bool stopped)
{
    struct job *job = context;
    char *text = NULL;
    LVP_TRY(lvp_tokenizer_decode(job->tokenizer, tokens, (size_t)n_tokens, &text));
    struct lvp_caption caption = {.caption = trim(text),
                                  .stopped = stopped,
                                  .token_ids = tokens,
                                  .logprobs = job->options->logprobs ? logprobs : NULL,
                                  .n_tokens = n_tokens,
                                  .prompt_tokens = prompt->n_rows,
                                  .vision_tokens = job->vision_tokens,
                                  .n_images = prompt->n_images,
                                  .n_counts = job->prune.n_points + 1};
    enum lvp_status status = lvp_captions_add(job->captions, index, request, &caption);
    free(text);
    return status;
}

static enum lvp_status sink_tick(void *context)
{
    struct job *job = context;
    struct lvp_captions_counts counts = lvp_captions_counts(job->captions);
    lvp_progress_update(&job->progress, counts.captions + counts.failed, counts.failed);
    return lvp_captions_tick(job->captions);
}

static enum lvp_status run(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    int counts = job->prune.n_points + 1;
    job->vision_tokens = calloc((size_t)job->image_slots * (size_t)counts, sizeof *job->vision_tokens);
    if (job->vision_tokens == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    for (int i = 0; i < job->image_slots * counts; i++) job->vision_tokens[i] = job->prune.rows[i % counts];
    struct lvp_run_options run = {
        .world = &job->world,
        .config = job->config,
        .tokenizer = job->tokenizer,
        .chat = job->chat,
        .requests = &job->requests,
        .system = options->system,
        .max_new_tokens = options->max_new_tokens,
        .temperature = options->temperature,
        .top_p = options->top_p,
        .seed = options->seed,
        .scheduler = job->scheduler,
        .image_slots = job->image_slots,
        .sink = {.context = job,
                 .done = sink_done,
                 .error = sink_error,
                 .caption = sink_caption,
                 .tick = sink_tick,
                 .window = LVP_CAPTIONS_WINDOW},
    };
    struct lvp_run_totals totals;
    struct lvp_captions_counts before = lvp_captions_counts(job->captions);
    lvp_progress_start(&job->progress, before.total, before.resumed, options->quiet, options->terminal);
    double start = lvp_now();
    enum lvp_status status = lvp_run(&run, &totals);
    double seconds = lvp_now() - start;
    lvp_progress_clear(&job->progress);
    if (status != LVP_OK) return status;
    struct lvp_captions_counts done = lvp_captions_counts(job->captions);
    if (!lvp_world_finish(&job->world, FINISH_SECONDS)) return lvp_fail(LVP_ERR_LOST, "a worker did not finish");
    struct lvp_report report = {.options = options,
                                .config = job->config,
                                .world = &job->world,
                                .prune = &job->prune,
                                .totals = &totals,
                                .counts = done,
                                .model_hash = job->model_hash,
                                .kernel_set = job->kernel_set,
                                .run_seconds = seconds,
                                .wall_seconds = lvp_now() - job->started,
                                .mixed_numerics = lvp_captions_mixed_numerics(job->captions)};
    // A rerun of a finished job did nothing: what the run was is already there.
    if (totals.images > 0 || done.resumed < done.total || !lvp_report_exists(&report))
        LVP_TRY(lvp_report_write(&report));
    if (!options->quiet) lvp_report_print(&report);
    return LVP_OK;
}

static enum lvp_status open_and_run(struct job *job, MPI_Comm control, int n_workers)
{
    LVP_TRY(lvp_world_open(control, n_workers, &job->world));
    LVP_TRY(lvp_caption_layout(job->options, n_workers, &job->n_stages, &job->n_replicas));
    LVP_TRY(open_model(job));
    LVP_TRY(choose_partition(job));
    int merge = lvp_block_index(job->config, LVP_BLOCK_MERGE, 0);
    while (job->partition.first[job->merge_stage + 1] <= merge) job->merge_stage++;
    size_run(job);
    LVP_TRY(choose_kernel_set(job));
    LVP_TRY(open_output(job));
    LVP_TRY(set_up_workers(job));
    return run(job);
}

enum lvp_status lvp_caption(const struct lvp_caption_options *options, MPI_Comm control, int n_workers, bool *clean)
{
    struct job job = {.options = options, .started = lvp_now()};
    enum lvp_status status = open_and_run(&job, control, n_workers);
    enum lvp_status closed = lvp_captions_close(job.captions);
    if (status == LVP_OK) status = closed;
    *clean = job.world.control == NULL || lvp_world_finish(&job.world, FINISH_SECONDS);
    lvp_world_close(&job.world);
    lvp_manifest_close(job.manifest);
    lvp_pruner_weights_close(&job.weights);
    lvp_chat_template_free(job.chat);
    lvp_tokenizer_close(job.tokenizer);
    lvp_checkpoint_close(job.checkpoint);
    free(job.vision_tokens);
    return status;
}
