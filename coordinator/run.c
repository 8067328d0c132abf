#include "coordinator/run_state.h"

#include <stdlib.h>

static enum lvp_status create_replica(struct run *run, struct replica *replica)
{
    const struct lvp_run_options *options = run->options;
    const struct lvp_deployment *deployment = options->deployment;
    size_t slots = (size_t)deployment->image_slots, steps = (size_t)deployment->scheduler.max_steps;
    LVP_TRY(lvp_scheduler_create(&deployment->scheduler, &replica->scheduler));
    replica->slot_group = calloc(slots, sizeof(struct group *));
    replica->to_encode = calloc(slots, sizeof *replica->to_encode);
    replica->encoding = calloc(slots, sizeof *replica->encoding);
    replica->encode_sizes = calloc((size_t)run->max_encodes, sizeof *replica->encode_sizes);
    replica->planned = calloc(steps * (size_t)deployment->scheduler.max_seqs, sizeof *replica->planned);
    replica->planned_sizes = calloc(steps, sizeof *replica->planned_sizes);
    replica->n_free_slots = deployment->image_slots;
    if (replica->slot_group == NULL || replica->to_encode == NULL || replica->encoding == NULL ||
        replica->encode_sizes == NULL || replica->planned == NULL || replica->planned_sizes == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the run");
    return LVP_OK;
}

static enum lvp_status create(struct run *run)
{
    const struct lvp_run_options *options = run->options;
    size_t seqs = (size_t)options->deployment->scheduler.max_seqs;
    run->n_requests = options->source.n;
    run->max_encodes = options->world->merge_stage + 2;
    run->finished = calloc((size_t)options->sink.window, sizeof *run->finished);
    run->replicas = calloc((size_t)options->world->n_replicas, sizeof *run->replicas);
    run->sequences = calloc(seqs, sizeof *run->sequences);
    run->sequence_pointers = calloc(seqs, sizeof(Lvp__Sequence *));
    run->ended = calloc(seqs, sizeof *run->ended);
    run->released = calloc(seqs, sizeof *run->released);
    if (run->finished == NULL || run->replicas == NULL || run->sequences == NULL || run->sequence_pointers == NULL ||
        run->ended == NULL || run->released == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the run");
    for (int r = 0; r < options->world->n_replicas; r++) LVP_TRY(create_replica(run, &run->replicas[r]));
    return LVP_OK;
}

static void destroy(struct run *run)
{
    while (run->groups != NULL) lvp_run_free_group(run->groups);
    lvp_request_free(&run->ahead);
    for (int r = 0; run->replicas != NULL && r < run->options->world->n_replicas; r++) {
        struct replica *replica = &run->replicas[r];
        lvp_scheduler_destroy(replica->scheduler);
        free(replica->slot_group);
        free(replica->to_encode);
        free(replica->encoding);
        free(replica->encode_sizes);
        free(replica->planned);
        free(replica->planned_sizes);
    }
    free(run->finished);
    free(run->replicas);
    free(run->sequences);
    free(run->sequence_pointers);
    free(run->ended);
    free(run->released);
}

static enum lvp_status handle(struct run *run, int rank, const Lvp__FromWorker *message)
{
    int replica = run->options->world->workers[rank - 1].replica;
    switch (message->body_case) {
    case LVP__FROM_WORKER__BODY_PREPARED:
        return lvp_run_prepared(run, replica, message->prepared);
    case LVP__FROM_WORKER__BODY_ENCODE_DONE:
        return lvp_run_encoded(run, replica, message->encode_done);
    case LVP__FROM_WORKER__BODY_STEP_DONE:
        return lvp_run_step_done(run, replica, message->step_done);
    default:
        return lvp_fail(LVP_ERR_FORMAT, "rank %d sent a message that does not belong to a run", rank);
    }
}

static enum lvp_status take_messages(struct run *run, bool *moved)
{
    for (;;) {
        int rank = 0;
        Lvp__FromWorker *message = NULL;
        LVP_TRY(lvp_world_poll(run->options->world, &rank, &message));
        if (message == NULL) return LVP_OK;
        *moved = true;
        enum lvp_status status = handle(run, rank, message);
        lvp__from_worker__free_unpacked(message, NULL);
        LVP_TRY(status);
    }
}

// What a signal asks for. *ended: the run is to end now.
static enum lvp_status heed_signals(struct run *run, bool *ended)
{
    const struct lvp_run_options *options = run->options;
    int asked = options->drain != NULL ? atomic_load(options->drain) : 0;
    *ended = false;
    if (asked > 1) return lvp_fail(LVP_STOPPED, "stopped by a signal; give the same command again to resume");
    if (asked == 1 && !run->draining) {
        run->draining = true;
        run->drain_deadline = lvp_now() + options->drain_seconds;
    }
    *ended = run->draining && (run->n_placed == 0 || lvp_now() > run->drain_deadline);
    return LVP_OK;
}

static struct lvp_run_gauges gauges_of(const struct run *run)
{
    struct lvp_run_gauges gauges = {.generated_tokens = run->totals.generated_tokens, .images = run->totals.images};
    int running = 0;
    for (int r = 0; r < run->options->world->n_replicas; r++) {
        gauges.preparing += run->replicas[r].n_preparing;
        running += lvp_scheduler_running(run->replicas[r].scheduler);
    }
    gauges.running = running;
    gauges.waiting = (int)run->n_active - running;
    return gauges;
}

static enum lvp_status loop(struct run *run)
{
    const struct lvp_run_sink *sink = &run->options->sink;
    int idle_rounds = 0;
    while (run->next < run->n_requests || run->n_active > 0) {
        bool moved = false, ended = false;
        LVP_TRY(take_messages(run, &moved));
        LVP_TRY(heed_signals(run, &ended));
        if (ended) return lvp_fail(LVP_DRAINED, "drained after a signal; give the same command again to resume");
        LVP_TRY(lvp_run_admit(run, &moved));
        LVP_TRY(lvp_run_send_encodes(run, &moved));
        LVP_TRY(lvp_run_send_steps(run, &moved));
        LVP_TRY(lvp_run_watch(run));
        const struct lvp_run_gauges gauges = gauges_of(run);
        LVP_TRY(sink->tick(sink->context, &gauges));
        if (moved) {
            idle_rounds = 0;
            continue;
        }
        lvp_poll_rest(LVP_EXPECT_SOON, idle_rounds++);
    }
    return LVP_OK;
}

enum lvp_status lvp_run(const struct lvp_run_options *options, struct lvp_run_totals *totals)
{
    struct run run = {.options = options};
    enum lvp_status status = create(&run);
    if (status == LVP_OK) status = loop(&run);
    *totals = run.totals;
    destroy(&run);
    return status;
}
