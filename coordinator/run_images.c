#include "coordinator/run_state.h"

#include <stdlib.h>

static enum lvp_status queue_requests(struct run *run, struct group *group)
{
    for (struct ask *ask = group->asks; ask != NULL; ask = ask->next) {
        group->n_unstarted++;
        LVP_TRY(lvp_scheduler_add(run->replicas[group->replica].scheduler, ask,
                                  ask->prompt.n_ids - ask->prompt.n_images, ask->prompt.n_images, ask->max_new));
    }
    return LVP_OK;
}

static enum lvp_status send_prepare(struct run *run, struct group *group)
{
    enum lvp_status status = LVP_OK;
    size_t n = (size_t)group->n_images;
    Lvp__Prepare prepare = LVP__PREPARE__INIT;
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    Lvp__Prepare__Image *images = calloc(n, sizeof *images), **pointers = calloc(n, sizeof *pointers);
    if (images == NULL || pointers == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for a sample");
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        lvp__prepare__image__init(&images[i]);
        const struct lvp_image_place *place = &group->asks->request.sample.places[i];
        images[i].slot = group->slots[i];
        images[i].path = place->path;
        images[i].offset = place->offset;
        images[i].n_bytes = place->n_bytes;
        images[i].shard_bytes = place->shard_bytes;
        images[i].shard_time = place->shard_time;
        images[i].sample = group->sample;
        pointers[i] = &images[i];
    }
    prepare.n_images = n;
    prepare.images = pointers;
    message.body_case = LVP__TO_WORKER__BODY_PREPARE;
    message.prepare = &prepare;
    LVP_CHECK(lvp_world_send(run->options->world, lvp_world_rank(run->options->world, group->replica, 0), &message));
fail:
    free(images);
    free(pointers);
    return status;
}

// The replica with the fewest requests; -1 when none has the image slots, or all have enough to do.
static int choose_replica(const struct run *run, int n_images)
{
    const struct lvp_deployment *deployment = run->options->deployment;
    int best = -1, enough = deployment->image_slots + deployment->scheduler.max_seqs;
    for (int r = 0; r < run->options->world->n_replicas; r++) {
        const struct replica *replica = &run->replicas[r];
        if (replica->n_free_slots < n_images || replica->n_asks >= enough) continue;
        if (best < 0 || replica->n_asks < run->replicas[best].n_asks) best = r;
    }
    return best;
}

static enum lvp_status place_group(struct run *run, struct group *group, int r)
{
    struct replica *replica = &run->replicas[r];
    group->replica = r;
    group->slots = calloc((size_t)group->n_images, sizeof *group->slots);
    if (group->slots == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a sample");
    for (int slot = 0, n = 0; n < group->n_images; slot++) {
        if (replica->slot_group[slot] != NULL) continue;
        replica->slot_group[slot] = group;
        group->slots[n++] = slot;
    }
    replica->n_free_slots -= group->n_images;
    replica->n_preparing += group->n_images;
    group->n_unprepared = group->n_unencoded = group->n_images;
    for (struct ask *ask = group->asks; ask != NULL; ask = ask->next) {
        ask->placed = lvp_now();
        replica->n_asks++;
    }
    run->n_placed++;
    lvp_run_set_alone(run, group, group->alone);
    return send_prepare(run, group);
}

// Whether the group at hand must wait for others to end, or others for it.
static bool must_wait(const struct run *run)
{
    return run->alone || (run->held->alone && run->n_placed > 0);
}

enum lvp_status lvp_run_admit(struct run *run, bool *moved)
{
    if (run->draining || run->options->sink.full(run->options->sink.context)) return LVP_OK;
    for (;;) {
        if (run->held == NULL && run->again != NULL) {
            run->held = run->again;
            run->again = run->again->next_again;
        }
        if (run->held == NULL) {
            if (!lvp_run_may_take(run)) return LVP_OK;
            LVP_TRY(lvp_run_build_group(run));
            *moved = true;
            continue;
        }
        int r = must_wait(run) ? -1 : choose_replica(run, run->held->n_images);
        if (r < 0) return LVP_OK;
        struct group *group = run->held;
        run->held = NULL;
        *moved = true;
        enum lvp_status status = place_group(run, group, r);
        if (status != LVP_OK) return status;
    }
}

// Memory ran out over an image of the group, beside others or not.
static bool is_out_of_memory(const struct group *group)
{
    return group->error.code == LVP_SAMPLE_CRASHED;
}

// Takes the group back, to be tried when nothing else is under way.
static void try_again_alone(struct run *run, struct group *group)
{
    lvp_run_release_images(run, group);
    run->n_placed--;
    for (const struct ask *ask = group->asks; ask != NULL; ask = ask->next) run->replicas[group->replica].n_asks--;
    group->error = (struct lvp_sample_error){.code = LVP_SAMPLE_OK};
    group->alone = true;
    group->next_again = run->again;
    run->again = group;
}

// Ends every request of a group whose images cannot be used.
static enum lvp_status fail_group(struct run *run, struct group *group)
{
    struct lvp_sample_error error = group->error;
    bool last = false;
    while (!last) {
        last = group->asks->next == NULL; // the group goes with its last request
        LVP_TRY(lvp_run_finish_ask(run, group->asks, &error, false));
    }
    return LVP_OK;
}

enum lvp_status lvp_run_prepared(struct run *run, int r, const Lvp__Prepared *message)
{
    struct replica *replica = &run->replicas[r];
    if (message->slot < 0 || message->slot >= run->options->deployment->image_slots ||
        replica->slot_group[message->slot] == NULL || replica->slot_group[message->slot]->n_unprepared == 0)
        return lvp_fail(LVP_ERR_FORMAT, "Prepared for image slot %d, which is not being prepared", message->slot);
    struct group *group = replica->slot_group[message->slot];
    if (message->error != LVP_SAMPLE_OK && group->error.code == LVP_SAMPLE_OK) {
        if (message->error < 0 || message->error >= LVP_SAMPLE_ERROR_COUNT)
            return lvp_fail(LVP_ERR_FORMAT, "Prepared with unknown error %d", message->error);
        lvp_sample_error_set(&group->error, (enum lvp_sample_error_code)message->error, "%.200s", message->message);
    }
    replica->n_preparing--;
    if (--group->n_unprepared > 0) return LVP_OK;
    if (is_out_of_memory(group) && !group->alone) {
        try_again_alone(run, group);
        return LVP_OK;
    }
    if (group->error.code != LVP_SAMPLE_OK) return fail_group(run, group);
    for (int i = 0; i < group->n_images; i++)
        replica
            ->to_encode[(replica->first_to_encode + replica->n_to_encode++) % run->options->deployment->image_slots] =
            group->slots[i];
    return LVP_OK;
}

static enum lvp_status send_encode(struct run *run, int r)
{
    struct replica *replica = &run->replicas[r];
    int n_slots = run->options->deployment->image_slots, most = run->options->deployment->encode_images;
    int n = replica->n_to_encode < most ? replica->n_to_encode : most;
    int first = (replica->first_encoding + replica->n_encoding) % n_slots;
    int32_t slots[LVP_ENCODE_IMAGES];
    uint64_t samples[LVP_ENCODE_IMAGES];
    for (int i = 0; i < n; i++) {
        slots[i] = replica->to_encode[(replica->first_to_encode + i) % n_slots];
        samples[i] = replica->slot_group[slots[i]]->sample;
        replica->encoding[(first + i) % n_slots] = slots[i];
    }
    replica->first_to_encode = (replica->first_to_encode + n) % n_slots;
    replica->n_to_encode -= n;
    replica->n_encoding += n;
    replica->encode_sizes[(replica->first_encode + replica->n_encodes++) % run->max_encodes] = n;
    Lvp__Encode encode = LVP__ENCODE__INIT;
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    encode.number = ++replica->encode_number;
    encode.n_slots = (size_t)n;
    encode.slots = slots;
    encode.n_samples = (size_t)n;
    encode.samples = samples;
    message.body_case = LVP__TO_WORKER__BODY_ENCODE;
    message.encode = &encode;
    return lvp_world_send_stages(run->options->world, r, 0, run->options->world->merge_stage + 1, &message);
}

enum lvp_status lvp_run_send_encodes(struct run *run, bool *moved)
{
    for (int r = 0; r < run->options->world->n_replicas; r++) {
        struct replica *replica = &run->replicas[r];
        while (replica->n_to_encode > 0 && replica->n_encodes < run->max_encodes) {
            LVP_TRY(send_encode(run, r));
            *moved = true;
        }
    }
    return LVP_OK;
}

enum lvp_status lvp_run_encoded(struct run *run, int r, const Lvp__EncodeDone *message)
{
    struct replica *replica = &run->replicas[r];
    if (replica->n_encodes == 0 || message->number != replica->encode_number - (uint64_t)replica->n_encodes + 1)
        return lvp_fail(LVP_ERR_FORMAT, "EncodeDone for job %llu, which is not next",
                        (unsigned long long)message->number);
    int n = replica->encode_sizes[replica->first_encode];
    replica->first_encode = (replica->first_encode + 1) % run->max_encodes;
    replica->n_encodes--;
    for (int i = 0; i < n; i++) {
        struct group *group = replica->slot_group[replica->encoding[replica->first_encoding]];
        replica->first_encoding = (replica->first_encoding + 1) % run->options->deployment->image_slots;
        replica->n_encoding--;
        run->totals.images++;
        if (--group->n_unencoded == 0) LVP_TRY(queue_requests(run, group));
    }
    return LVP_OK;
}
