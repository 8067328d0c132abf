#include "worker/compute.h"

#include "common/log.h"
#include "common/record.h"
#include "common/shapes.h"
#include "worker/device.h"
#include "worker/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STOP_SECONDS = 5 };

// Lanes between this stage and its neighbours. Encode jobs end where `merge` is, steps begin there.
static enum lvp_status create_lanes(struct lvp_compute *compute)
{
    const struct lvp_worker_setup *setup = &compute->setup;
    const struct lvp_model_config *config = &compute->config;
    int merge = lvp_block_index(config, LVP_BLOCK_MERGE, 0), stage = setup->stage;
    int first = setup->partition.first[stage], end = setup->partition.first[stage + 1];
    int before = stage > 0 ? setup->ranks[stage - 1] : -1;
    int after = stage + 1 < setup->partition.n_stages ? setup->ranks[stage + 1] : -1;
    size_t element = lvp_dtype_size(setup->dtype);
    size_t row = (size_t)config->text.hidden * element;
    size_t images = (size_t)setup->limits.max_images;
    size_t step_head = LVP_HOP_HEADER_BYTES + (size_t)setup->limits.max_rows * sizeof(int32_t);
    size_t step_body = (size_t)setup->limits.max_rows * row;
    bool encodes_in = first > 0 && first <= merge, encodes_out = end <= merge;
    size_t image_in = encodes_in ? lvp_stage_image_in_bytes(compute->stage) : 0;
    size_t image_out = encodes_out ? lvp_stage_image_out_bytes(compute->stage) : 0;
    LVP_TRY(lvp_lane_init(&compute->steps, compute->backend, LVP_HOP_STEP, step_head,
                          (struct lvp_lane_end){first > merge ? before : -1, setup->direct_from, step_body},
                          (struct lvp_lane_end){end > merge ? after : -1, setup->direct_to, step_body}));
    compute->steps.vision_rows_vary = setup->prune.vary;
    return lvp_lane_init(&compute->encodes, compute->backend, LVP_HOP_ENCODE, LVP_HOP_HEADER_BYTES,
                         (struct lvp_lane_end){encodes_in ? before : -1, setup->direct_from, images * image_in},
                         (struct lvp_lane_end){encodes_out ? after : -1, setup->direct_to, images * image_out});
}

static enum lvp_status open_pruner(const struct lvp_worker_setup *setup, const struct lvp_model_config *config,
                                   struct lvp_pruner_weights *weights)
{
    if (!lvp_pruners[setup->pruner].needs_weights) return LVP_OK;
    if (setup->pruner_width > 0) {
        LVP_TRY(lvp_pruner_weights_synthetic(config, setup->pruner_width, setup->prune.n_points, setup->prune.after,
                                             weights));
    } else {
        LVP_TRY(lvp_pruner_weights_open(setup->pruner_weights, config, weights));
        if (strcmp(weights->hash, setup->pruner_hash) != 0)
            return lvp_fail(LVP_ERR_MODEL, "%s: this rank sees other pruning modules than rank 0 (hash %s, not %s)",
                            setup->pruner_weights, weights->hash, setup->pruner_hash);
    }
    if (weights->n_points != setup->prune.n_points)
        return lvp_fail(LVP_ERR_MODEL, "%s has modules for %d prune points, %d are asked for", setup->pruner_weights,
                        weights->n_points, setup->prune.n_points);
    return LVP_OK;
}

// Counts that the model must agree with: every size of a step follows from them.
static enum lvp_status check_prune(const struct lvp_prune_counts *prune, const struct lvp_model_config *config)
{
    if (prune->rows[0] != lvp_vision_tokens(config))
        return lvp_fail(LVP_ERR_FORMAT, "Setup: %d rows of an image, the model has %d", prune->rows[0],
                        lvp_vision_tokens(config));
    if (prune->n_points > 0 && prune->after[prune->n_points - 1] > config->text.layers)
        return lvp_fail(LVP_ERR_FORMAT, "Setup: a prune point after layer %d, the model has %d",
                        prune->after[prune->n_points - 1], config->text.layers);
    return LVP_OK;
}

static enum lvp_status open_checkpoint(const struct lvp_worker_setup *setup, struct lvp_checkpoint **checkpoint)
{
    char hash[33];
    if (setup->synthetic) {
        struct lvp_model_config config;
        LVP_TRY(lvp_shape_load(setup->model, &config));
        if (setup->narrow) config = lvp_shape_narrow(&config);
        return lvp_checkpoint_synthetic(&config, checkpoint);
    }
    LVP_TRY(lvp_checkpoint_open(setup->model, checkpoint));
    LVP_TRY(lvp_checkpoint_hash(*checkpoint, hash));
    if (strcmp(hash, setup->model_hash) == 0) return LVP_OK;
    return lvp_fail(LVP_ERR_MODEL, "%s: this rank sees another model than rank 0 (hash %s, not %s)", setup->model, hash,
                    setup->model_hash);
}

static enum lvp_status load(struct lvp_compute *compute)
{
    enum lvp_status status = LVP_OK;
    const struct lvp_worker_setup *setup = &compute->setup;
    struct lvp_checkpoint *checkpoint = NULL;
    struct lvp_pruner_weights weights = {0};
    LVP_CHECK(open_checkpoint(setup, &checkpoint));
    compute->config = *lvp_checkpoint_config(checkpoint);
    LVP_CHECK(lvp_partition_check(&compute->config, &setup->partition));
    LVP_CHECK(check_prune(&setup->prune, &compute->config));
    LVP_CHECK(open_pruner(setup, &compute->config, &weights));
    struct lvp_stage_options options = {
        .checkpoint = checkpoint,
        .weights = &weights,
        .pruner = setup->pruner,
        .prune = setup->prune,
        .range = lvp_stage_range_of(&compute->config, setup->partition.first[setup->stage],
                                    setup->partition.first[setup->stage + 1]),
        .limits = setup->limits,
    };
    struct lvp_backend_limits limits;
    lvp_stage_backend_limits(&compute->config, &setup->prune, weights.inner_width, options.range, &setup->limits,
                             &limits);
    LVP_CHECK(
        lvp_backend_open(setup->gpu, setup->kernel_set, setup->dtype, setup->threads, &limits, &compute->backend));
    compute->backend->weights = setup->weights;
    options.backend = compute->backend;
    LVP_CHECK(lvp_stage_create(&options, &compute->stage));
    if (options.range.patch_embed)
        LVP_CHECK(lvp_prepare_create(&compute->config.image, setup->max_pixels, setup->limits.image_slots,
                                     setup->threads, &compute->prepare));
    LVP_CHECK(create_lanes(compute));
    compute->releases = calloc((size_t)setup->limits.max_seqs, sizeof *compute->releases);
    if (compute->releases == NULL) status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the stage");
fail:
    lvp_pruner_weights_close(&weights);
    lvp_checkpoint_close(checkpoint);
    return status;
}

static enum lvp_status run_step(struct lvp_compute *compute, struct lvp_job *job, uint64_t index)
{
    struct lvp_lane *lane = &compute->steps;
    size_t i = index % LVP_LANE_BUFFERS;
    struct lvp_step_output output = {.tokens = job->tokens, .logprobs = job->logprobs};
    const void *x = lane->from.rank >= 0 ? lane->in[i].body : NULL;
    const int32_t *positions = lane->from.rank >= 0 ? lvp_lane_positions(lane->in[i].head) : NULL;
    if (lane->to.rank >= 0) {
        output.x = lane->out[i].body;
        output.positions = lvp_lane_positions(lane->out[i].head);
    }
    LVP_TRY(lvp_stage_step(compute->stage, &job->step, x, positions, (int)job->in.n_rows, &output));
    job->out = lvp_compute_step_header(compute, &job->step, output.n_rows, output.n_vision_rows);
    return LVP_OK;
}

static enum lvp_status run_encode(struct lvp_compute *compute, struct lvp_job *job, uint64_t index)
{
    struct lvp_lane *lane = &compute->encodes;
    const Lvp__Encode *encode = job->message->encode;
    size_t i = index % LVP_LANE_BUFFERS;
    int n = (int)encode->n_slots;
    if (!lvp_stage_has_vision(compute->stage))
        return lvp_stage_park(compute->stage, n, lane->in[i].body, encode->slots);
    const void *in[LVP_LANE_JOBS];
    for (int image = 0; image < n; image++)
        in[image] = lane->from.rank >= 0 ? (const void *)((const char *)lane->in[i].body +
                                                          (size_t)image * lvp_stage_image_in_bytes(compute->stage))
                                         : (const void *)lvp_prepare_pixels(compute->prepare, encode->slots[image]);
    return lvp_stage_encode(compute->stage, n, in, encode->slots, lane->to.rank >= 0 ? lane->out[i].body : NULL);
}

// Ends a stretch in which an announced job waited for its rows, or for room to put its result.
static void account_wait(struct lvp_compute *compute, const struct lvp_lane *lane, double since, double now)
{
    if (lane->computed >= lane->announced) return;
    if (lane->computed >= lane->arrived)
        compute->statistics.input_wait_seconds += now - since;
    else
        compute->statistics.send_wait_seconds += now - since;
}

static bool has_prefill(const struct lvp_step *step)
{
    for (int s = 0; s < step->n_seqs; s++)
        if (step->seqs[s].prefill) return true;
    return false;
}

static void count_step(struct lvp_compute *compute, const struct lvp_job *job, double seconds)
{
    Lvp__Statistics *stats = &compute->statistics;
    stats->steps++;
    double select = lvp_stage_select_seconds(compute->stage); // this thread's own
    stats->select_seconds += select - compute->select_seconds;
    compute->select_seconds = select;
    if (has_prefill(&job->step)) {
        stats->prefill_seconds += seconds;
    } else {
        stats->decode_seconds += seconds;
        stats->decode_steps++;
    }
    if (compute->steps.to.rank < 0) return;
    int64_t row_bytes = (int64_t)compute->config.text.hidden * (int64_t)lvp_dtype_size(compute->setup.dtype);
    int64_t n_rows = job->out.n_rows, decoded = 0;
    for (int s = 0; s < job->step.n_seqs; s++) {
        const struct lvp_step_seq *seq = &job->step.seqs[s];
        if (seq->prefill)
            stats->unpruned_prefill_rows += lvp_seq_rows(&compute->setup.prune, seq, 0);
        else
            decoded++;
    }
    stats->prefill_rows += n_rows - decoded;
    stats->prefill_vision_rows += (int64_t)job->out.vision_rows;
    stats->prefill_bytes += (n_rows - decoded) * row_bytes;
    stats->decode_rows += decoded;
    stats->decode_bytes += decoded * row_bytes;
    stats->framing_bytes += LVP_HOP_HEADER_BYTES + n_rows * (int64_t)sizeof(int32_t);
}

static void count_encode(struct lvp_compute *compute, const struct lvp_job *job, double seconds)
{
    compute->statistics.encodes++;
    compute->statistics.encode_seconds += seconds;
    if (compute->encodes.to.rank < 0) return;
    compute->statistics.vision_bytes += (int64_t)job->out.payload_bytes;
    compute->statistics.framing_bytes += LVP_HOP_HEADER_BYTES;
}

// Says in the rank's record which samples the job is about.
static void note_work(const struct lvp_job *job, bool is_step)
{
    if (!is_step) {
        const Lvp__Encode *encode = job->message->encode;
        lvp_record_work("encoding images", encode->samples, (int)encode->n_samples);
        return;
    }
    const Lvp__Step *step = job->message->step;
    uint64_t samples[LVP_RECORD_WORK];
    int n = 0;
    for (size_t s = 0; s < step->n_sequences && n < LVP_RECORD_WORK; s++) samples[n++] = step->sequences[s]->sample;
    lvp_record_step(step->number);
    lvp_record_work("computing a step", samples, n);
}

// Runs one job with the lock released. The lane's counters say that nobody else touches the job meanwhile.
static enum lvp_status run_job(struct lvp_compute *compute, struct lvp_lane *lane)
{
    uint64_t index = lane->computed;
    struct lvp_job *job = lvp_lane_job(lane, index);
    bool is_step = lane == &compute->steps;
    for (int i = 0; is_step && i < compute->n_releases; i++) lvp_stage_release(compute->stage, compute->releases[i]);
    if (is_step) compute->n_releases = 0;
    pthread_mutex_unlock(&compute->lock);
    double start = lvp_now(), began = lvp_wall_seconds();
    note_work(job, is_step);
    enum lvp_status status = is_step ? run_step(compute, job, index) : run_encode(compute, job, index);
    lvp_record_work(NULL, NULL, 0);
    lvp_record_tick();
    double seconds = lvp_now() - start;
    pthread_mutex_lock(&compute->lock);
    compute->statistics.compute_seconds += seconds;
    if (status != LVP_OK) return status;
    if (is_step) {
        compute->last_step = job->step.number;
        lvp_trace_add(&compute->trace, has_prefill(&job->step) ? LVP_TRACE_PREFILL : LVP_TRACE_DECODE, job->step.number,
                      began);
        count_step(compute, job, seconds);
    } else {
        compute->last_encode = job->message->encode->number;
        lvp_trace_add(&compute->trace, LVP_TRACE_ENCODE, compute->last_encode, began);
        count_encode(compute, job, seconds);
    }
    lane->computed++;
    return LVP_OK;
}

Lvp__Statistics lvp_compute_measure(struct lvp_compute *compute)
{
    Lvp__Statistics since = compute->statistics;
    since.spans = compute->trace.pointers;
    since.n_spans = compute->trace.n;
    if (compute->trace.cut)
        lvp_warn("the timeline ends after this rank's first %d spans: take fewer images", LVP_MAX_TRACE);
    compute->trace.n = 0;
    compute->trace.cut = false;
    lvp__statistics__init(&compute->statistics);
    return since;
}

static enum lvp_status run_jobs(struct lvp_compute *compute)
{
    while (!compute->stop) {
        struct lvp_lane *lane = lvp_lane_computable(&compute->steps)     ? &compute->steps
                                : lvp_lane_computable(&compute->encodes) ? &compute->encodes
                                                                         : NULL;
        if (lane != NULL) {
            LVP_TRY(run_job(compute, lane));
            continue;
        }
        double since = lvp_now();
        const struct lvp_lane *waiting =
            compute->steps.computed < compute->steps.announced ? &compute->steps : &compute->encodes;
        struct lvp_lane before = {
            .announced = waiting->announced, .arrived = waiting->arrived, .computed = waiting->computed};
        pthread_cond_wait(&compute->wake, &compute->lock);
        account_wait(compute, &before, since, lvp_now());
    }
    return LVP_OK;
}

static void *compute_main(void *argument)
{
    struct lvp_compute *compute = argument;
    lvp_record_compute_thread();
    // Computing yields to communication where both want the same core: payloads move only while the communication
    // thread polls.
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), getpriority(PRIO_PROCESS, 0) + 1);
    double start = lvp_now();
    enum lvp_status status = load(compute);
    pthread_mutex_lock(&compute->lock);
    compute->load_seconds = lvp_now() - start;
    if (status == LVP_OK) {
        compute->loaded = true;
        status = run_jobs(compute);
    }
    if (status != LVP_OK) {
        compute->status = status;
        (void)snprintf(compute->error, sizeof compute->error, "%s", lvp_error_text());
    }
    pthread_mutex_unlock(&compute->lock);
    return NULL;
}

void lvp_compute_init(struct lvp_compute *compute)
{
    *compute = (struct lvp_compute){0};
    lvp__statistics__init(&compute->statistics);
    pthread_mutex_init(&compute->lock, NULL);
    pthread_cond_init(&compute->wake, NULL);
}

enum lvp_status lvp_compute_start(struct lvp_compute *compute, const Lvp__Setup *setup, int gpu)
{
    LVP_TRY(lvp_worker_setup_read(setup, &compute->setup));
    compute->setup.gpu = gpu;
    if (compute->setup.trace) lvp_trace_start(&compute->trace);
    if (pthread_create(&compute->thread, NULL, compute_main, compute) != 0)
        return lvp_fail(LVP_ERR_MEMORY, "the compute thread could not be started");
    compute->running = true;
    return LVP_OK;
}

bool lvp_compute_stop(struct lvp_compute *compute, struct lvp_transports transports)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += STOP_SECONDS;
    if (compute->running) {
        pthread_mutex_lock(&compute->lock);
        compute->stop = true;
        pthread_cond_signal(&compute->wake);
        pthread_mutex_unlock(&compute->lock);
        if (pthread_timedjoin_np(compute->thread, NULL, &until) != 0) return false; // in a long step, or loading
    }
    if (!lvp_prepare_destroy(compute->prepare, &until)) return false;
    lvp_lane_destroy(&compute->steps, transports);
    lvp_lane_destroy(&compute->encodes, transports);
    lvp_stage_destroy(compute->stage);
    if (compute->backend != NULL) compute->backend->ops->close(compute->backend);
    free(compute->releases);
    lvp_trace_free(&compute->trace);
    lvp_worker_setup_free(&compute->setup);
    pthread_mutex_destroy(&compute->lock);
    pthread_cond_destroy(&compute->wake);
    *compute = (struct lvp_compute){0};
    return true;
}
