#include "coordinator/caption.h"

#include "common/checkpoint.h"
#include "common/job.h"
#include "common/log.h"
#include "common/record.h"
#include "common/text.h"
#include "coordinator/caption_identity.h"
#include "coordinator/output/captions.h"
#include "coordinator/output/crashes.h"
#include "coordinator/output/identity.h"
#include "coordinator/output/progress.h"
#include "coordinator/output/report.h"
#include "coordinator/output/timeline.h"
#include "coordinator/planner.h"
#include "coordinator/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FINISH_SECONDS = 10,
    SURVEY_THREADS = 8,
    TYPICAL_TEXT = 64 // rows of a prompt that are no image's, before any is known
};

// Whatever a step of it crashes over can be blamed.
_Static_assert((int)LVP_MOST_SEQUENCES <= (int)LVP_RECORD_WORK, "a record holds every sequence of a step");

// Opened from top to bottom, closed the other way.
struct job {
    const struct lvp_caption_options *options;
    struct lvp_checkpoint *checkpoint;
    const struct lvp_model_config *config;
    char model_hash[33], config_hash[33];
    struct lvp_tokenizer *tokenizer;
    struct lvp_chat_template *chat;
    struct lvp_pruner_weights weights;
    struct lvp_world world;
    struct lvp_manifest *manifest;
    struct lvp_requests requests;
    struct lvp_cursor cursor; // of the input
    struct lvp_lock *lock;    // of the output folder
    struct lvp_crashes crashes;
    char kernel_set[16];
    struct lvp_deployment deployment;
    struct lvp_captions *captions;
    struct lvp_progress progress;
    struct lvp_captions_counts final_counts;
    char last_error[600]; // a sample's
    int *vision_tokens;   // [max images of a prompt, 1 + n_points]
    double started;
};

static enum lvp_status open_model(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    LVP_TRY(lvp_checkpoint_open(options->model, &job->checkpoint));
    job->config = lvp_checkpoint_config(job->checkpoint);
    LVP_TRY(lvp_checkpoint_hash(job->checkpoint, job->model_hash));
    LVP_TRY(lvp_checkpoint_config_hash(job->checkpoint, job->config_hash));
    LVP_TRY(lvp_tokenizer_open(options->model, &job->tokenizer));
    if (!options->raw_prompt) LVP_TRY(lvp_chat_template_load(options->model, &job->chat));
    LVP_TRY(lvp_prompt_check_model(job->tokenizer, job->chat, job->config->image_token_id, job->config->text.vocab));
    if (options->pruner_weights != NULL)
        LVP_TRY(lvp_pruner_weights_open(options->pruner_weights, job->config, &job->weights));
    return LVP_OK;
}

// Keeps in touch with the workers while rank 0 reads the input.
static enum lvp_status idle(void *context)
{
    struct job *job = context;
    if (job->options->drain != NULL && atomic_load(job->options->drain) > 0)
        return lvp_fail(LVP_DRAINED, "ended by a signal before the work began");
    return lvp_world_idle(&job->world);
}

static enum lvp_status open_input(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    struct lvp_manifest_options manifest = {.limit = options->limit,
                                            .shard = options->shard,
                                            .n_shards = options->n_shards,
                                            .columns = lvp_columns_needed(options->prompts, options->n_prompts),
                                            .tick = {.call = idle, .context = job}};
    if (options->score != NULL && lvp_columns_needed(&options->score, 1).json) manifest.columns.json = true;
    LVP_TRY(lvp_manifest_open(options->input, &manifest, &job->manifest));
    job->requests = (struct lvp_requests){.manifest = job->manifest,
                                          .prompts = options->prompts,
                                          .n_prompts = options->n_prompts,
                                          .score = options->score};
    return LVP_OK;
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
    char stored_set[sizeof job->kernel_set] = "";
    if (name != NULL) (void)snprintf(stored_set, sizeof stored_set, "%.*s", (int)strcspn(name + 1, "+"), name + 1);
    if (lvp_world_can_run(&job->world, stored_set))
        (void)snprintf(job->kernel_set, sizeof job->kernel_set, "%s", stored_set);
    json_decref(stored);
    lvp_world_use_kernels(&job->world, job->kernel_set);
    return LVP_OK;
}

static void start_progress(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    struct lvp_progress_options shown = {.quiet = options->quiet,
                                         .terminal = options->terminal,
                                         .output = options->output,
                                         .metrics = options->metrics,
                                         .n_ranks = job->world.n_workers + 1,
                                         .restarts = options->restarts};
    lvp_progress_start(&job->progress, &shown, lvp_captions_writer(job->captions));
    job->progress.last.counts = lvp_captions_counts(job->captions);
}

// Locks the folder, and takes what the ranks of the last life left there.
static enum lvp_status take_folder(struct job *job)
{
    const char *output = job->options->output;
    const struct lvp_tick tick = {.call = idle, .context = job};
    struct lvp_record_place place = {
        .n_ranks = job->world.n_workers + 1, .stage = -1, .n_stages = job->deployment.n_stages};
    LVP_TRY(lvp_lock_take(output, &tick, &job->lock));
    LVP_TRY(lvp_crashes_collect(output));
    lvp_record_phase(LVP_PHASE_LOADING);
    if (!lvp_record_open(output, place)) lvp_warn("%s/" LVP_STATE_FOLDER " cannot be written to", output);
    return LVP_OK;
}

// Of samples that a retry tries again, the last crash alone is forgiven: they run alone once more.
static enum lvp_status read_crashes(struct job *job)
{
    uint64_t n_prompts = (uint64_t)lvp_prompts_per_sample(&job->requests);
    LVP_TRY(lvp_crashes_read(job->options->output, &job->crashes));
    for (size_t i = 0; i < job->crashes.n && job->options->restarts == 0; i++) {
        struct lvp_crash_count *count = &job->crashes.counts[i];
        if (count->alone && lvp_captions_retries(job->captions, count->sample * n_prompts))
            LVP_TRY(lvp_crashes_forgive(job->options->output, count));
    }
    return LVP_OK;
}

static enum lvp_status open_output(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    const struct lvp_run_hashes hashes = {.model = job->model_hash,
                                          .config = job->config_hash,
                                          .tokenizer = lvp_tokenizer_hash(job->tokenizer),
                                          .pruner_weights = job->weights.hash};
    json_t *identity = lvp_caption_identity(options, &hashes, job->world.numeric_path);
    if (identity == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the run's identity");
    struct lvp_captions_options captions = {.dir = options->output,
                                            .requests = &job->requests,
                                            .identity = identity,
                                            .overwrite = options->overwrite,
                                            .retry_failed = options->retry_failed,
                                            .launch_id = options->launch_id,
                                            .restarted = options->restarts > 0,
                                            .allow_mixed_numerics = options->allow_mixed_numerics,
                                            .threads = SURVEY_THREADS,
                                            .tick = {.call = idle, .context = job}};
    enum lvp_status status = lvp_captions_open(&captions, job->lock, &job->captions);
    json_decref(identity);
    LVP_TRY(status);
    LVP_TRY(read_crashes(job));
    start_progress(job);
    lvp_progress_tell(&job->progress, "loading", "");
    return LVP_OK;
}

static enum lvp_status plan(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    struct lvp_deployment *deployment = &job->deployment;
    deployment->config = job->config;
    deployment->prune_plan = &options->prune;
    deployment->pruner_width = job->weights.inner_width;
    deployment->text_tokens = TYPICAL_TEXT;
    deployment->new_tokens = options->max_new_tokens;
    deployment->dtype = options->dtype;
    deployment->weights = options->weights;
    deployment->choice = &options->partition;
    deployment->batch_tokens = options->batch_tokens;
    deployment->kernel_set = job->kernel_set;
    deployment->threads = options->threads;
    return lvp_deployment_plan(deployment, &job->world);
}

static enum lvp_status set_up_workers(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    enum lvp_status status = LVP_OK;
    Lvp__Setup setup = LVP__SETUP__INIT;
    char host[128];
    char *model = realpath(options->model, NULL), *output = realpath(options->output, NULL);
    char *weights = options->pruner_weights != NULL ? realpath(options->pruner_weights, NULL) : strdup("");
    if (model == NULL || weights == NULL || output == NULL) {
        const char *gone = model == NULL ? options->model : weights == NULL ? options->pruner_weights : options->output;
        status = lvp_fail(LVP_ERR_MODEL, "%s cannot be found any more", gone);
        goto fail;
    }
    lvp_host_name(host, sizeof host);
    setup.output = output;
    setup.coordinator = host;
    setup.model = model;
    setup.model_hash = job->model_hash;
    setup.pruner = (int32_t)options->pruner;
    setup.pruner_weights = weights;
    setup.pruner_hash = job->weights.hash;
    setup.max_pixels = options->max_pixels;
    setup.trace = options->trace != NULL;
    status = lvp_deployment_set_up(&job->deployment, &job->world, options->drain, &setup);
fail:
    free(model);
    free(weights);
    free(output);
    return status;
}

static enum lvp_status load_request(void *context, uint64_t index, struct lvp_request *request)
{
    struct job *job = context;
    return lvp_request_load(&job->requests, &job->cursor, index, request);
}

static enum lvp_status build_prompt(void *context, const struct lvp_request *request, struct lvp_prompt *prompt,
                                    struct lvp_sample_error *error)
{
    const struct job *job = context;
    return lvp_prompt_build(job->tokenizer, job->chat, job->options->system, request->prompt, request->sample.n_images,
                            job->config->image_token_id, lvp_vision_tokens(job->config),
                            job->config->text.max_positions, prompt, error);
}

static enum lvp_status build_answer(void *context, const struct lvp_request *request, const struct lvp_prompt *prompt,
                                    int32_t **ids, int *n_ids, struct lvp_sample_error *error)
{
    const struct job *job = context;
    return lvp_prompt_answer(job->tokenizer, job->chat, job->options->system, request->prompt, request->sample.n_images,
                             request->answer, job->config->eos_ids[0], prompt, ids, n_ids, error);
}

static bool sink_done(void *context, uint64_t index)
{
    const struct job *job = context;
    return lvp_captions_next(job->captions, index) != index;
}

static bool sink_full(void *context)
{
    const struct job *job = context;
    return lvp_captions_full(job->captions);
}

static int sink_crashes(void *context, uint64_t sample, bool *alone)
{
    const struct job *job = context;
    const struct lvp_crash_count count = lvp_crashes_of(&job->crashes, sample);
    *alone = count.alone;
    return count.n;
}

// Too much goes wrong: most likely the input's paths are wrong, or its storage is gone.
static enum lvp_status check_failures(const struct job *job)
{
    const struct lvp_captions_counts counts = lvp_captions_counts(job->captions);
    int64_t most = job->options->max_errors;
    if (most >= 0 && counts.failed_samples > (uint64_t)most)
        return lvp_fail(LVP_ERR_TOO_MANY, "failed samples: %llu, --max-errors allows %lld (one of them: %s)",
                        (unsigned long long)counts.failed_samples, (long long)most, job->last_error);
    if (most >= 0 || counts.failed_in_row < (counts.any_caption ? LVP_GUARD_LATER : LVP_GUARD_FIRST)) return LVP_OK;
    return lvp_fail(LVP_ERR_TOO_MANY,
                    "%s %llu samples have all failed (one of them: %s); see errors.jsonl, mend the input and use "
                    "--retry-failed, or set --max-errors to go on all the same",
                    counts.any_caption ? "the last" : "the first", (unsigned long long)counts.failed_in_row,
                    job->last_error);
}

static enum lvp_status sink_error(void *context, uint64_t index, const struct lvp_request *request,
                                  const struct lvp_sample_error *error)
{
    struct job *job = context;
    uint64_t sample = index / (uint64_t)lvp_prompts_per_sample(&job->requests);
    const struct lvp_crash_count crashes = lvp_crashes_of(&job->crashes, sample);
    int attempts = crashes.alone ? crashes.n : crashes.n + 1;
    (void)snprintf(job->last_error, sizeof job->last_error, "%.200s: %s: %s", request->id,
                   lvp_sample_error_name(error->code), error->message);
    LVP_TRY(lvp_captions_add_error(job->captions, index, request, error, attempts));
    return check_failures(job);
}

static enum lvp_status sink_caption(void *context, uint64_t index, const struct lvp_request *request,
                                    const struct lvp_prompt *prompt, const struct lvp_answer *answer)
{
    struct job *job = context;
    char *text = NULL;
    size_t n_bytes = 0;
    LVP_TRY(lvp_tokenizer_decode(job->tokenizer, answer->tokens, (size_t)answer->n_tokens, &text, &n_bytes));
    const char *trimmed = lvp_trim(text, &n_bytes);
    struct lvp_caption caption = {.caption = trimmed,
                                  .caption_bytes = n_bytes,
                                  .stopped = answer->stopped,
                                  .token_ids = answer->tokens,
                                  .logprobs = job->options->logprobs || answer->scored ? answer->logprobs : NULL,
                                  .n_tokens = answer->n_tokens,
                                  .scored = answer->scored,
                                  .n_greedy = answer->n_greedy,
                                  .prompt_tokens = prompt->n_rows,
                                  .vision_tokens = job->vision_tokens,
                                  .n_images = prompt->n_images,
                                  .n_counts = job->deployment.prune.n_points + 1};
    enum lvp_status status = lvp_captions_add(job->captions, index, request, &caption);
    free(text);
    return status == LVP_OK ? check_failures(job) : status;
}

static enum lvp_status sink_tick(void *context, const struct lvp_run_gauges *gauges)
{
    struct job *job = context;
    struct lvp_captions_counts counts = lvp_captions_counts(job->captions);
    bool draining = job->options->drain != NULL && atomic_load(job->options->drain) > 0;
    LVP_TRY(lvp_progress_update(&job->progress, &counts, gauges, draining));
    return lvp_captions_tick(job->captions);
}

// The survivors of every prune point, for each image of a prompt.
static enum lvp_status fill_vision_tokens(struct job *job)
{
    const struct lvp_prune_counts *prune = &job->deployment.prune;
    int counts = prune->n_points + 1, images = job->deployment.image_slots;
    job->vision_tokens = calloc((size_t)images * (size_t)counts, sizeof *job->vision_tokens);
    if (job->vision_tokens == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    for (int i = 0; i < images * counts; i++) job->vision_tokens[i] = prune->rows[i % counts];
    return LVP_OK;
}

static struct lvp_run_options run_options(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    return (struct lvp_run_options){
        .world = &job->world,
        .deployment = &job->deployment,
        .max_new_tokens = options->max_new_tokens,
        .temperature = options->temperature,
        .top_p = options->top_p,
        .seed = options->seed,
        .drain = options->drain,
        .drain_seconds = options->drain_seconds,
        .source = {.context = job,
                   .n = lvp_request_count(&job->requests),
                   .n_prompts = lvp_prompts_per_sample(&job->requests),
                   .load = load_request,
                   .prompt = build_prompt,
                   .answer = build_answer},
        .sink = {.context = job,
                 .done = sink_done,
                 .error = sink_error,
                 .caption = sink_caption,
                 .full = sink_full,
                 .crashes = sink_crashes,
                 .tick = sink_tick,
                 .window = LVP_CAPTIONS_WINDOW},
    };
}

static enum lvp_status report(struct job *job, const struct lvp_run_totals *totals, double run_seconds)
{
    const struct lvp_caption_options *options = job->options;
    struct lvp_captions_counts counts = lvp_captions_counts(job->captions);
    LVP_TRY(lvp_writer_flush(lvp_captions_writer(job->captions))); // errors.jsonl is read for the summary
    struct lvp_report report = {.options = options,
                                .config = job->config,
                                .world = &job->world,
                                .prune = &job->deployment.prune,
                                .totals = totals,
                                .counts = counts,
                                .model_hash = job->model_hash,
                                .kernel_set = job->kernel_set,
                                .run_seconds = run_seconds,
                                .wall_seconds = lvp_now() - job->started,
                                .mixed_numerics = lvp_captions_mixed_numerics(job->captions)};
    // A rerun of a finished job did nothing: what the run was is already there.
    if (totals->images > 0 || counts.resumed < counts.total || !lvp_report_exists(&report))
        LVP_TRY(lvp_report_write(&report));
    else if (options->json)
        LVP_TRY(lvp_report_repeat(&report));
    if (!options->quiet)
        lvp_report_print(&report);
    else if (counts.failed > 0)
        lvp_warn("%llu failed; see %s/errors.jsonl", (unsigned long long)counts.failed, options->output);
    return LVP_OK;
}

// Runs, and tells what the run was where it came to an end of its own or was asked to end.
static enum lvp_status run(struct job *job)
{
    struct lvp_run_totals totals;
    LVP_TRY(fill_vision_tokens(job));
    struct lvp_run_options run = run_options(job);
    lvp_record_phase(LVP_PHASE_RUNNING);
    start_progress(job);
    double start = lvp_now();
    enum lvp_status status = lvp_run(&run, &totals);
    if (status == LVP_OK) status = check_failures(job); // of earlier lives too
    double seconds = lvp_now() - start;
    lvp_record_phase(LVP_PHASE_FINISHING);
    lvp_progress_clear(&job->progress);
    bool too_many = status == LVP_ERR_TOO_MANY; // which stays the status, whatever else goes wrong
    if (status != LVP_OK && status != LVP_DRAINED && !too_many) return status;
    if (!lvp_world_finish(&job->world, FINISH_SECONDS))
        return too_many ? status : lvp_world_unfinished(&job->world, FINISH_SECONDS);
    enum lvp_status told = report(job, &totals, seconds);
    if (told == LVP_OK && job->options->trace != NULL)
        told = lvp_timeline_write_world(job->options->trace, &job->world);
    return told == LVP_OK || too_many ? status : told;
}

struct lvp_layout_request lvp_caption_layout(const struct lvp_caption_options *options)
{
    return (struct lvp_layout_request){.stages = options->stages,
                                       .replicas = options->replicas,
                                       .by_partition =
                                           lvp_partition_choice_stages(&options->partition, &options->prune)};
}

static enum lvp_status open_and_run(struct job *job, MPI_Comm control, int n_workers)
{
    LVP_TRY(lvp_world_open(control, n_workers, &job->world));
    const struct lvp_layout_request layout = lvp_caption_layout(job->options);
    LVP_TRY(lvp_layout(&layout, n_workers, &job->deployment.n_stages, &job->deployment.n_replicas));
    LVP_TRY(open_model(job));
    LVP_TRY(open_input(job));
    LVP_TRY(take_folder(job));
    LVP_TRY(choose_kernel_set(job));
    LVP_TRY(plan(job));
    if (job->options->trace != NULL) LVP_TRY(lvp_timeline_check(job->options->trace)); // before anything is removed
    LVP_TRY(open_output(job));
    LVP_TRY(set_up_workers(job));
    return run(job);
}

// The last word in status.json.
static void tell_end(struct job *job, enum lvp_status status)
{
    const char *state = status == LVP_OK        ? "done"
                        : status == LVP_DRAINED ? "drained"
                        : status == LVP_STOPPED ? "stopped"
                                                : "failed";
    if (job->progress.options.output == NULL) return; // there was no run
    job->progress.last.counts = job->final_counts;
    lvp_progress_tell(&job->progress, state, status == LVP_OK ? "" : lvp_error_text());
}

enum lvp_status lvp_caption(const struct lvp_caption_options *options, MPI_Comm control, int n_workers, bool *clean)
{
    struct job job = {.options = options, .last_error = "see errors.jsonl", .started = lvp_now()};
    enum lvp_status status = open_and_run(&job, control, n_workers);
    if (status == LVP_ERR_MEMORY) status = LVP_ERR_LOST; // rank 0 ran out: start again, as for any other rank
    // A world that has lost a rank cannot end in good order, and one that is to stop at once has no time to. The
    // workers go first: writing may take longer than they wait.
    bool orderly = status != LVP_ERR_LOST && status != LVP_STOPPED;
    *clean = job.world.control == NULL || (orderly && lvp_world_finish(&job.world, FINISH_SECONDS));
    if (job.captions != NULL) job.final_counts = lvp_captions_counts(job.captions);
    enum lvp_status closed = lvp_captions_close(job.captions);
    if (status == LVP_OK || status == LVP_DRAINED) status = closed != LVP_OK ? closed : status;
    if (closed == LVP_OK) { // else the folder may be somebody else's, or a thread may still hang in there
        tell_end(&job, status);
        lvp_lock_release(job.lock);
    }
    if (status != LVP_OK) lvp_record_error(lvp_error_text());
    lvp_world_close(&job.world);
    lvp_cursor_close(&job.cursor);
    lvp_manifest_close(job.manifest);
    lvp_crashes_free(&job.crashes);
    lvp_pruner_weights_close(&job.weights);
    lvp_chat_template_free(job.chat);
    lvp_tokenizer_close(job.tokenizer);
    lvp_checkpoint_close(job.checkpoint);
    free(job.vision_tokens);
    return status;
}
