#include "coordinator/bench.h"

#include "common/job.h"
#include "common/log.h"
#include "coordinator/bench_result.h"
#include "coordinator/link.h"
#include "coordinator/output/timeline.h"
#include "coordinator/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FINISH_SECONDS = 30, WORD = 100 };

struct bench {
    const struct lvp_bench_options *options;
    struct lvp_world world;
    struct lvp_deployment deployment;
    struct lvp_bench_repeat *repeats;
    int n_repeats;
    struct lvp_roof_rates *roofs; // [n_workers]
};

// --- Requests that nobody asked ------------------------------------------------------------------------------------

static enum lvp_status load_request(void *context, uint64_t index, struct lvp_request *request)
{
    (void)context;
    *request = (struct lvp_request){0};
    LVP_TRY(lvp_sample_make_images(&request->sample, 1));
    request->sample.places[0].path = strdup("");
    request->sample.images[0] = strdup("");
    request->prompt = strdup("");
    if (asprintf(&request->sample.id, "image-%llu", (unsigned long long)index) < 0) request->sample.id = NULL;
    bool complete = request->sample.places[0].path != NULL && request->sample.images[0] != NULL &&
                    request->prompt != NULL && request->sample.id != NULL;
    if (complete) return LVP_OK;
    lvp_request_free(request);
    return lvp_fail(LVP_ERR_MEMORY, "out of memory for a request");
}

// bos, the image, words.
static enum lvp_status build_prompt(void *context, const struct lvp_request *request, struct lvp_prompt *prompt,
                                    struct lvp_sample_error *error)
{
    const struct bench *bench = context;
    const struct lvp_model_config *config = bench->options->config;
    int n_ids = bench->options->text_tokens + 1;
    (void)request;
    (void)error;
    *prompt = (struct lvp_prompt){.ids = calloc((size_t)n_ids, sizeof *prompt->ids), .n_ids = n_ids, .n_images = 1};
    if (prompt->ids == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a prompt");
    prompt->n_rows = bench->options->text_tokens + lvp_vision_tokens(config);
    for (int i = 0; i < n_ids; i++) prompt->ids[i] = (WORD + 7 * i) % config->text.vocab;
    prompt->ids[0] = config->bos_id;
    for (int i = 0; i < n_ids; i++)
        if (prompt->ids[i] == config->image_token_id) prompt->ids[i] = config->bos_id;
    prompt->ids[1] = config->image_token_id;
    return LVP_OK;
}

static bool none_done(void *context, uint64_t index)
{
    (void)context;
    (void)index;
    return false;
}

static enum lvp_status take_error(void *context, uint64_t index, const struct lvp_request *request,
                                  const struct lvp_sample_error *error)
{
    (void)context;
    (void)index;
    return lvp_fail(LVP_ERR_USAGE, "%s: %s", request->sample.id, error->message);
}

static enum lvp_status take_caption(void *context, uint64_t index, const struct lvp_request *request,
                                    const struct lvp_prompt *prompt, const struct lvp_answer *answer)
{
    (void)context;
    (void)index;
    (void)request;
    (void)prompt;
    (void)answer;
    return LVP_OK;
}

static bool never_full(void *context)
{
    (void)context;
    return false;
}

static int no_crashes(void *context, uint64_t sample, bool *alone)
{
    (void)context;
    (void)sample;
    *alone = false;
    return 0;
}

static enum lvp_status tick(void *context, const struct lvp_run_gauges *gauges)
{
    (void)context;
    (void)gauges;
    return LVP_OK;
}

// --- The world -----------------------------------------------------------------------------------------------------

static enum lvp_status set_up(struct bench *bench)
{
    const struct lvp_bench_options *options = bench->options;
    char host[128];
    Lvp__Setup setup = LVP__SETUP__INIT;
    const bool modules = lvp_pruners[options->pruner].needs_weights;
    bool from_file = modules && options->pruner_weights != NULL;
    char *model = realpath(options->model, NULL);                            // every rank may be in another folder
    if (model == NULL && options->synthetic) model = strdup(options->model); // the name of a shape
    char *weights = from_file ? realpath(options->pruner_weights, NULL) : strdup("");
    enum lvp_status status = LVP_OK;
    if (model == NULL || weights == NULL) {
        status = lvp_fail(LVP_ERR_MODEL, "%s cannot be found any more", model == NULL ? options->model : "the pruner");
        goto fail;
    }
    lvp_host_name(host, sizeof host);
    setup.coordinator = host;
    setup.model = model;
    setup.synthetic = options->synthetic;
    setup.trace = options->trace;
    setup.model_hash = (char *)(size_t)options->model_hash;
    setup.pruner = (int32_t)options->pruner;
    setup.pruner_weights = weights;
    setup.pruner_hash = (char *)(size_t)options->pruner_hash;
    setup.pruner_width = from_file || !modules ? 0 : options->pruner_width;
    LVP_CHECK(lvp_deployment_set_up(&bench->deployment, &bench->world, options->interrupt, &setup));
fail:
    free(model);
    free(weights);
    return status;
}

static enum lvp_status ask_all(struct bench *bench, Lvp__ToWorker *question, Lvp__FromWorker__BodyCase kind,
                               void (*take)(void *context, int rank, const Lvp__FromWorker *answer))
{
    for (int rank = 1; rank <= bench->world.n_workers; rank++) LVP_TRY(lvp_world_send(&bench->world, rank, question));
    return lvp_world_collect(&bench->world, bench->world.n_workers, kind, take, bench);
}

static void take_statistics(void *context, int rank, const Lvp__FromWorker *answer)
{
    const struct bench *bench = context;
    struct lvp_bench_repeat *repeat = &bench->repeats[bench->n_repeats];
    repeat->statistics[rank - 1] = lvp_plain_statistics(answer->statistics);
    if (repeat->trace != NULL) lvp_timeline_add(repeat->trace, rank, answer->statistics);
}

static void take_roof(void *context, int rank, const Lvp__FromWorker *answer)
{
    const struct bench *bench = context;
    bench->roofs[rank - 1] =
        (struct lvp_roof_rates){.flops = answer->roof->flops, .read_bytes = answer->roof->read_bytes};
}

static enum lvp_status probe(struct bench *bench)
{
    Lvp__ToWorker question = LVP__TO_WORKER__INIT;
    Lvp__Probe body = LVP__PROBE__INIT;
    question.body_case = LVP__TO_WORKER__BODY_PROBE;
    question.probe = &body;
    LVP_TRY(ask_all(bench, &question, LVP__FROM_WORKER__BODY_ROOF, take_roof));
    for (int r = 0; r < bench->world.n_replicas; r++) {
        for (int s = 0; s + 1 < bench->world.n_stages; s++) {
            int rank = lvp_world_rank(&bench->world, r, s);
            LVP_TRY(lvp_link_measure(&bench->world, rank, lvp_world_rank(&bench->world, r, s + 1),
                                     &bench->roofs[rank - 1].link));
        }
    }
    return LVP_OK;
}

// One repeat of `images` requests, into repeats[n_repeats].
static enum lvp_status measure(struct bench *bench, int images)
{
    const struct lvp_bench_options *options = bench->options;
    struct lvp_bench_repeat *repeat = &bench->repeats[bench->n_repeats];
    struct lvp_run_options run = {.world = &bench->world,
                                  .deployment = &bench->deployment,
                                  .max_new_tokens = options->new_tokens,
                                  .ignore_eos = true,
                                  .top_p = 1,
                                  .drain = options->interrupt,
                                  .source = {.context = bench,
                                             .n = (uint64_t)images,
                                             .n_prompts = 1,
                                             .load = load_request,
                                             .prompt = build_prompt},
                                  .sink = {.context = bench,
                                           .done = none_done,
                                           .error = take_error,
                                           .caption = take_caption,
                                           .full = never_full,
                                           .crashes = no_crashes,
                                           .tick = tick,
                                           .window = (uint64_t)images}};
    Lvp__ToWorker question = LVP__TO_WORKER__INIT;
    Lvp__Measure body = LVP__MEASURE__INIT;
    json_decref(repeat->trace); // of the warm-up, which used the first one's place
    repeat->trace = options->trace ? json_array() : NULL;
    double start = lvp_now();
    enum lvp_status status = lvp_run(&run, &repeat->totals);
    if (status == LVP_DRAINED || status == LVP_STOPPED)
        return lvp_fail(status, "ended by a signal: this repeat is lost");
    LVP_TRY(status);
    repeat->seconds = lvp_now() - start;
    question.body_case = LVP__TO_WORKER__BODY_MEASURE;
    question.measure = &body;
    return ask_all(bench, &question, LVP__FROM_WORKER__BODY_STATISTICS, take_statistics);
}

static enum lvp_status create(struct bench *bench, int n_workers)
{
    size_t n = (size_t)n_workers, repeats = (size_t)bench->options->repeats;
    bench->roofs = calloc(n, sizeof *bench->roofs);
    bench->repeats = calloc(repeats, sizeof *bench->repeats);
    if (bench->roofs == NULL || bench->repeats == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    for (size_t r = 0; r < repeats; r++) {
        bench->repeats[r].statistics = calloc(n, sizeof *bench->repeats[r].statistics);
        if (bench->repeats[r].statistics == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    }
    return LVP_OK;
}

static void destroy(struct bench *bench)
{
    for (int r = 0; bench->repeats != NULL && r < bench->options->repeats; r++) {
        free(bench->repeats[r].statistics);
        json_decref(bench->repeats[r].trace);
    }
    free(bench->repeats);
    free(bench->roofs);
    lvp_world_close(&bench->world);
}

static enum lvp_status run(struct bench *bench, MPI_Comm control, int n_workers)
{
    const struct lvp_bench_options *options = bench->options;
    // Enough for every stage to have computed once. Memory that only a full house of requests uses is paged in by the
    // first repeat: as many as that to warm up would double the time of a large model's bench.
    int warm_up = options->images < options->stages + 1 ? options->images : options->stages + 1;
    const struct lvp_workload workload = lvp_bench_workload(options);
    LVP_TRY(lvp_world_open(control, n_workers, &bench->world)); // first: the workers wait to be told to finish
    LVP_TRY(lvp_workload_check(&workload));
    LVP_TRY(create(bench, n_workers));
    bench->deployment = (struct lvp_deployment){.config = options->config,
                                                .prune_plan = &options->prune,
                                                .pruner_width = options->pruner_width,
                                                .text_tokens = options->text_tokens,
                                                .new_tokens = options->new_tokens,
                                                .dtype = options->dtype,
                                                .weights = options->weights,
                                                .choice = &options->partition,
                                                .n_stages = options->stages,
                                                .n_replicas = options->replicas,
                                                .concurrency = options->concurrency,
                                                .batch_tokens = options->batch_tokens,
                                                .threads = options->threads,
                                                .profile = options->profile,
                                                .kernel_set = bench->world.kernel_set};
    LVP_TRY(lvp_deployment_plan(&bench->deployment, &bench->world));
    const struct lvp_block_cost cost = lvp_range_cost(&workload, 0, lvp_block_count(options->config));
    lvp_info("keep %s, %d stages: loading %.2f GB of weights; %.3f TFLOPs an image", options->keep, options->stages,
             1e-9 * (double)cost.weight_bytes, 1e-12 * (cost.prefill_flops + cost.decode_flops));
    LVP_TRY(set_up(bench));
    LVP_TRY(probe(bench));
    LVP_TRY(measure(bench, warm_up));
    for (; bench->n_repeats < options->repeats; bench->n_repeats++) {
        LVP_TRY(measure(bench, options->images));
        lvp_info("keep %s, %d stages: %d of %d, %.3f images/s", options->keep, options->stages, bench->n_repeats + 1,
                 options->repeats, options->images / bench->repeats[bench->n_repeats].seconds);
    }
    return LVP_OK;
}

enum lvp_status lvp_bench(const struct lvp_bench_options *options, MPI_Comm control, int n_workers, bool *clean,
                          json_t **result)
{
    struct bench bench = {.options = options};
    *result = NULL;
    enum lvp_status status = run(&bench, control, n_workers);
    if (status == LVP_OK) {
        const struct lvp_bench_measurement measurement = {.options = options,
                                                          .deployment = &bench.deployment,
                                                          .world = &bench.world,
                                                          .roofs = bench.roofs,
                                                          .repeats = bench.repeats,
                                                          .n_repeats = bench.n_repeats};
        *result = lvp_bench_result(&measurement);
        if (*result == NULL) status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the result");
    }
    bool orderly = status != LVP_ERR_LOST && status != LVP_STOPPED;
    *clean = bench.world.control == NULL || (orderly && lvp_world_finish(&bench.world, FINISH_SECONDS));
    destroy(&bench);
    return status;
}
