#include "worker/worker.h"

#include "common/guard.h"
#include "common/job.h"
#include "common/log.h"
#include "common/pulse.h"
#include "common/record.h"
#include "worker/device.h"
#include "worker/probe.h"

#include <stdio.h>
#include <stdlib.h>

struct worker {
    const struct lvp_worker_options *options;
    struct lvp_control *control;
    struct lvp_transports transports;
    struct lvp_compute compute;
    bool ready_sent, finished;
    struct lvp_patience coordinator; // since its last message
    double last_pulse;
};

static enum lvp_status send_to_coordinator(struct worker *worker, Lvp__FromWorker *message)
{
    return lvp_control_send(worker->control, 0, 1, &message->base);
}

static enum lvp_status send_hello(struct worker *worker)
{
    char host[128];
    Lvp__Hello hello = LVP__HELLO__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    const char *kernel_set = lvp_cpu_best_kernel_set();
    if (kernel_set == NULL) return LVP_ERR_USAGE;
    lvp_host_name(host, sizeof host);
    hello.host = host;
    hello.version = (char[]){LVP_VERSION};
    hello.kernel_set = (char *)(size_t)kernel_set;
    hello.threads = worker->options->threads;
    hello.memory_bytes = worker->options->memory_bytes;
    hello.gpu = worker->options->gpu + 1;
    if (hello.gpu > 0) {
        const struct lvp_gpus *gpus = lvp_gpus_find();
        hello.gpu_memory = (int64_t)gpus->memory_bytes[worker->options->gpu];
        hello.gpu_name = (char *)(size_t)gpus->names[worker->options->gpu];
        hello.nccl = gpus->nccl;
        hello.no_nccl = (char *)(size_t)gpus->no_nccl;
    }
    message.body_case = LVP__FROM_WORKER__BODY_HELLO;
    message.hello = &hello;
    return send_to_coordinator(worker, &message);
}

static enum lvp_status send_ready(struct worker *worker)
{
    Lvp__Ready ready = LVP__READY__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    ready.load_seconds = worker->compute.load_seconds;
    message.body_case = LVP__FROM_WORKER__BODY_READY;
    message.ready = &ready;
    worker->ready_sent = true;
    lvp_record_phase(LVP_PHASE_RUNNING);
    return send_to_coordinator(worker, &message);
}

static enum lvp_status submit_images(struct worker *worker, const Lvp__Prepare *prepare)
{
    if (worker->compute.prepare == NULL)
        return lvp_fail(LVP_ERR_FORMAT, "Prepare was sent to a stage without the image pool");
    for (size_t i = 0; i < prepare->n_images; i++) {
        const Lvp__Prepare__Image *image = prepare->images[i];
        const struct lvp_image_file file = {.path = image->path,
                                            .offset = image->offset,
                                            .n_bytes = image->n_bytes,
                                            .shard_bytes = image->shard_bytes,
                                            .shard_time = image->shard_time};
        if (image->shard_bytes > 0 &&
            (image->offset > image->shard_bytes || image->n_bytes > image->shard_bytes - image->offset))
            return lvp_fail(LVP_ERR_FORMAT, "Prepare names bytes past the end of %s", image->path);
        LVP_TRY(lvp_prepare_submit(worker->compute.prepare, image->slot, &file, image->sample));
    }
    return LVP_OK;
}

static enum lvp_status send_statistics(struct worker *worker)
{
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    Lvp__Statistics statistics = lvp_compute_measure(&worker->compute);
    message.body_case = LVP__FROM_WORKER__BODY_STATISTICS;
    message.statistics = &statistics;
    return send_to_coordinator(worker, &message);
}

static enum lvp_status send_roof(struct worker *worker, const Lvp__Probe *question)
{
    struct lvp_probe probe;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    LVP_TRY(lvp_probe_run(&worker->compute, worker->transports.messages, worker->options->rank,
                          worker->options->n_ranks, question, &probe));
    message.body_case = LVP__FROM_WORKER__BODY_ROOF;
    message.roof = &probe.answer;
    return send_to_coordinator(worker, &message);
}

// Takes one message. The lock is held: what is announced becomes visible to the compute thread at once.
static enum lvp_status handle_message(struct worker *worker, Lvp__ToWorker *message)
{
    enum lvp_status status = LVP_OK;
    bool work = message->body_case != LVP__TO_WORKER__BODY_FINISH && message->body_case != LVP__TO_WORKER__BODY_PULSE;
    if (work && !worker->compute.loaded) {
        lvp__to_worker__free_unpacked(message, NULL);
        return lvp_fail(LVP_ERR_FORMAT, "a command came before this stage was ready");
    }
    switch (message->body_case) {
    case LVP__TO_WORKER__BODY_STEP:
        return lvp_compute_step(&worker->compute, message);
    case LVP__TO_WORKER__BODY_ENCODE:
        return lvp_compute_encode(&worker->compute, message);
    case LVP__TO_WORKER__BODY_PREPARE:
        status = submit_images(worker, message->prepare);
        break;
    case LVP__TO_WORKER__BODY_RELEASE:
        status = lvp_compute_release(&worker->compute, message->release);
        break;
    case LVP__TO_WORKER__BODY_FINISH:
        worker->finished = true;
        break;
    case LVP__TO_WORKER__BODY_PULSE:
        break;
    case LVP__TO_WORKER__BODY_MEASURE:
        status = send_statistics(worker);
        break;
    case LVP__TO_WORKER__BODY_PROBE:
        status = send_roof(worker, message->probe);
        break;
    default:
        status = lvp_fail(LVP_ERR_FORMAT, "the coordinator sent a message of an unknown kind");
        break;
    }
    lvp__to_worker__free_unpacked(message, NULL);
    return status;
}

static void open_record(const struct worker *worker)
{
    const struct lvp_worker_setup *setup = &worker->compute.setup;
    struct lvp_record_place place = {.rank = worker->options->rank,
                                     .n_ranks = worker->options->n_ranks,
                                     .replica = setup->replica,
                                     .stage = setup->stage,
                                     .n_stages = setup->partition.n_stages};
    lvp_record_phase(LVP_PHASE_LOADING);
    if (!lvp_record_open(setup->output, place))
        lvp_debug("%s/.lvpipe cannot be written to: this rank leaves no record", setup->output);
}

// Tells rank 0 that this rank lives and how far it is, and watches whether rank 0 does.
static enum lvp_status pulse(struct worker *worker)
{
    struct lvp_compute *compute = &worker->compute;
    double now = lvp_now();
    lvp_guard_tick();
    // One after the other, so that it is said once: the first one to speak ends the world.
    enum { APART_SECONDS = 2, LATEST_RANK = 10 };
    int after = worker->options->rank - 1 < LATEST_RANK ? worker->options->rank - 1 : LATEST_RANK;
    double limit = lvp_silence_seconds() + APART_SECONDS * after;
    if (lvp_patience_ask(&worker->coordinator) > limit) {
        const char *host = compute->setup.coordinator != NULL ? compute->setup.coordinator : "its host is not known";
        return lvp_fail(LVP_ERR_LOST,
                        "rank 0 (%s, coordinator): lost, no word for %.0f s; the last step that came from it was %llu",
                        host, limit, (unsigned long long)compute->last_announced);
    }
    if (now - worker->last_pulse < LVP_PULSE_SECONDS) return LVP_OK;
    worker->last_pulse = now;
    Lvp__Pulse pulse = LVP__PULSE__INIT;
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    pthread_mutex_lock(&compute->lock);
    pulse.steps = compute->last_step;
    pulse.encodes = compute->last_encode;
    pthread_mutex_unlock(&compute->lock);
    pulse.ticks = lvp_record_ticks();
    message.body_case = LVP__FROM_WORKER__BODY_PULSE;
    message.pulse = &pulse;
    return send_to_coordinator(worker, &message);
}

static enum lvp_status start(struct worker *worker, const Lvp__Setup *setup)
{
    enum { AFTER_OTHERS_SECONDS = 3 }; // a rank that is silent altogether is rank 0's to name
    if (setup->direct_from || setup->direct_to)
        LVP_TRY(lvp_gpu_transport_open(worker->transports.messages, worker->options->gpu,
                                       lvp_silence_seconds() + AFTER_OTHERS_SECONDS, &worker->transports.direct));
    return lvp_compute_start(&worker->compute, setup, worker->options->gpu);
}

static enum lvp_status poll_commands(struct worker *worker, bool *moved)
{
    for (;;) {
        int from = 0;
        const uint8_t *bytes = NULL;
        size_t n_bytes = 0;
        Lvp__ToWorker *message = NULL;
        LVP_TRY(lvp_control_poll(worker->control, &from, &bytes, &n_bytes));
        if (bytes == NULL) return LVP_OK;
        *moved = true;
        lvp_patience_reset(&worker->coordinator);
        LVP_TRY(lvp_control_unpack_to_worker(bytes, n_bytes, &message));
        if (message->body_case == LVP__TO_WORKER__BODY_SETUP && !worker->compute.running) {
            enum lvp_status status = start(worker, message->setup);
            lvp__to_worker__free_unpacked(message, NULL);
            LVP_TRY(status);
            open_record(worker);
            continue;
        }
        pthread_mutex_lock(&worker->compute.lock);
        enum lvp_status status = handle_message(worker, message);
        pthread_mutex_unlock(&worker->compute.lock);
        LVP_TRY(status);
    }
}

static enum lvp_status report_images(struct worker *worker, bool *moved)
{
    bool taken = worker->compute.prepare != NULL;
    while (taken) {
        struct lvp_prepared result;
        LVP_TRY(lvp_prepare_take(worker->compute.prepare, &result, &taken));
        if (!taken) break;
        lvp_trace_add(&worker->compute.trace, LVP_TRACE_IMAGE, (uint64_t)result.slot, result.start);
        Lvp__Prepared prepared = LVP__PREPARED__INIT;
        Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
        prepared.slot = result.slot;
        prepared.error = (int32_t)result.error.code;
        prepared.message = result.error.code == LVP_SAMPLE_OK ? prepared.message : result.error.message;
        message.body_case = LVP__FROM_WORKER__BODY_PREPARED;
        message.prepared = &prepared;
        LVP_TRY(send_to_coordinator(worker, &message));
        *moved = true;
    }
    return LVP_OK;
}

static enum lvp_status report_results(struct worker *worker, bool *moved)
{
    struct lvp_job *job;
    while (worker->compute.steps.to.rank < 0 && (job = lvp_lane_result(&worker->compute.steps)) != NULL) {
        Lvp__StepDone done = LVP__STEP_DONE__INIT;
        Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
        done.number = job->step.number;
        done.n_tokens = done.n_logprobs = (size_t)job->step.n_seqs;
        done.tokens = job->tokens;
        done.logprobs = job->logprobs;
        message.body_case = LVP__FROM_WORKER__BODY_STEP_DONE;
        message.step_done = &done;
        LVP_TRY(send_to_coordinator(worker, &message));
        lvp_lane_retire(&worker->compute.steps);
        *moved = true;
    }
    while (worker->compute.encodes.to.rank < 0 && (job = lvp_lane_result(&worker->compute.encodes)) != NULL) {
        Lvp__EncodeDone done = LVP__ENCODE_DONE__INIT;
        Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
        done.number = job->message->encode->number;
        message.body_case = LVP__FROM_WORKER__BODY_ENCODE_DONE;
        message.encode_done = &done;
        LVP_TRY(send_to_coordinator(worker, &message));
        lvp_lane_retire(&worker->compute.encodes);
        *moved = true;
    }
    return LVP_OK;
}

// One round over everything that can move. The lock is held.
static enum lvp_status move_work(struct worker *worker, bool *moved, enum lvp_expectation *expectation)
{
    struct lvp_compute *compute = &worker->compute;
    if (compute->status != LVP_OK) return lvp_fail(compute->status, "%s", compute->error);
    if (!compute->loaded) {
        *expectation = LVP_EXPECT_NOTHING;
        return LVP_OK;
    }
    if (!worker->ready_sent) LVP_TRY(send_ready(worker));
    LVP_TRY(lvp_lane_transfer(&compute->steps, worker->transports, &compute->trace, moved));
    LVP_TRY(lvp_lane_transfer(&compute->encodes, worker->transports, &compute->trace, moved));
    if (lvp_lane_computable(&compute->steps) || lvp_lane_computable(&compute->encodes))
        pthread_cond_signal(&compute->wake);
    LVP_TRY(report_results(worker, moved));
    LVP_TRY(report_images(worker, moved));
    enum lvp_expectation steps = lvp_lane_expects(&compute->steps), encodes = lvp_lane_expects(&compute->encodes);
    *expectation = steps > encodes ? steps : encodes;
    if (*expectation == LVP_EXPECT_NOTHING && compute->prepare != NULL && lvp_prepare_busy(compute->prepare))
        *expectation = LVP_EXPECT_SOON;
    return LVP_OK;
}

static enum lvp_status serve(struct worker *worker)
{
    int idle_rounds = 0;
    while (!worker->finished) {
        bool moved = false;
        enum lvp_expectation expectation = LVP_EXPECT_NOTHING;
        LVP_TRY(poll_commands(worker, &moved));
        LVP_TRY(pulse(worker));
        if (worker->compute.running) {
            pthread_mutex_lock(&worker->compute.lock);
            enum lvp_status status = move_work(worker, &moved, &expectation);
            pthread_mutex_unlock(&worker->compute.lock);
            LVP_TRY(status);
        }
        idle_rounds = moved ? 0 : idle_rounds + 1;
        if (!moved) lvp_poll_rest(expectation, idle_rounds);
    }
    return LVP_OK;
}

static void flush(struct worker *worker)
{
    lvp_record_phase(LVP_PHASE_FINISHING);
    double deadline = lvp_now() + 5.0;
    while (lvp_control_sending(worker->control) && lvp_now() < deadline) lvp_poll_rest(LVP_EXPECT_SOON, 0);
}

static enum lvp_status send_last_words(struct worker *worker, enum lvp_status status)
{
    Lvp__FromWorker message = LVP__FROM_WORKER__INIT;
    Lvp__Failure failure = LVP__FAILURE__INIT;
    if (status == LVP_OK) return send_statistics(worker);
    failure.status = (int32_t)status;
    failure.text = (char *)(size_t)lvp_error_text();
    message.body_case = LVP__FROM_WORKER__BODY_FAILURE;
    message.failure = &failure;
    return send_to_coordinator(worker, &message);
}

enum lvp_status lvp_worker_run(const struct lvp_worker_options *options, bool *left_behind)
{
    *left_behind = false;
    enum lvp_status status = LVP_OK;
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the worker");
    worker->options = options;
    lvp_compute_init(&worker->compute);
    LVP_CHECK(lvp_control_open(options->control, &worker->control));
    LVP_CHECK(lvp_transport_mpi_open(options->hops, &worker->transports.messages));
    status = send_hello(worker);
    if (status == LVP_OK) status = serve(worker);
    // Rank 0, a neighbour or the own GPU was lost: the caller says so and aborts, before another rank would, and
    // nothing is taken down that could wait for them.
    if (status == LVP_ERR_LOST) {
        *left_behind = true;
        return status;
    }
    pthread_mutex_lock(&worker->compute.lock);
    enum lvp_status told = send_last_words(worker, status);
    pthread_mutex_unlock(&worker->compute.lock);
    if (told == LVP_OK) flush(worker); // else nobody can be told
    if (status == LVP_OK) status = told;
    if (status != LVP_OK && worker->transports.direct != NULL) { // NCCL may be under way, and freeing waits for it
        *left_behind = true;
        return status;
    }
fail:
    *left_behind = !lvp_compute_stop(&worker->compute, worker->transports);
    if (*left_behind) return status;
    struct lvp_transport *transports[] = {worker->transports.direct, worker->transports.messages}; // one uses the other
    for (int i = 0; i < 2; i++)
        if (transports[i] != NULL) transports[i]->ops->close(transports[i]);
    lvp_control_close(worker->control);
    free(worker);
    return status;
}
