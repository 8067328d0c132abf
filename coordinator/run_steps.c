#include "common/record.h"
#include "coordinator/run_state.h"

#include <string.h>

static void fill_sequence(const struct run *run, const struct lvp_planned_seq *planned, Lvp__Sequence *to)
{
    const struct ask *ask = planned->request;
    const struct lvp_prompt *prompt = &ask->prompt;
    lvp__sequence__init(to);
    to->slot = planned->slot;
    to->prefill = planned->prefill;
    to->max_new = ask->max_new;
    to->random_key = ask->random_key;
    to->sampling_key = ask->sampling_key;
    to->temperature = run->options->temperature;
    to->top_p = run->options->top_p;
    to->token_index = (uint32_t)ask->n_tokens;
    to->sample = ask->sample;
    if (ask->wanted != NULL) to->scored = ask->wanted[ask->n_tokens] + 1;
    if (planned->prefill) {
        to->n_ids = (size_t)prompt->n_ids;
        to->ids = prompt->ids;
        to->n_image_slots = (size_t)prompt->n_images;
        to->image_slots = ask->group->slots;
    } else { // the row of the last token, at the position after everything before it
        to->position = prompt->n_rows + ask->n_tokens - 1;
        to->n_ids = 1;
        to->ids = &ask->tokens[ask->n_tokens - 1];
    }
}

static enum lvp_status send_step(struct run *run, int r, const struct lvp_planned_seq *planned, int n)
{
    const struct lvp_world *world = run->options->world;
    Lvp__Step step = LVP__STEP__INIT;
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    for (int s = 0; s < n; s++) {
        fill_sequence(run, &planned[s], &run->sequences[s]);
        run->sequence_pointers[s] = &run->sequences[s];
    }
    step.number = ++run->replicas[r].step_number;
    step.n_sequences = (size_t)n;
    step.sequences = run->sequence_pointers;
    message.body_case = LVP__TO_WORKER__BODY_STEP;
    message.step = &step;
    run->totals.steps++;
    lvp_record_step(step.number);
    return lvp_world_send_stages(run->options->world, r, world->merge_stage, world->n_stages, &message);
}

enum lvp_status lvp_run_send_steps(struct run *run, bool *moved)
{
    const struct lvp_scheduler_config *config = &run->options->deployment->scheduler;
    for (int r = 0; r < run->options->world->n_replicas; r++) {
        struct replica *replica = &run->replicas[r];
        while (replica->n_steps < config->max_steps) {
            int at = (replica->first_step + replica->n_steps) % config->max_steps;
            struct lvp_planned_seq *planned = replica->planned + (size_t)at * (size_t)config->max_seqs;
            int n = lvp_scheduler_next(replica->scheduler, replica->n_encodes > 0, planned);
            if (n == 0) break;
            replica->planned_sizes[at] = n;
            replica->n_steps++;
            *moved = true;
            LVP_TRY(send_step(run, r, planned, n));
        }
    }
    return LVP_OK;
}

static bool is_eos(const struct lvp_model_config *config, int32_t token)
{
    for (int i = 0; i < config->n_eos; i++)
        if (config->eos_ids[i] == token) return true;
    return false;
}

// Appends one token; *ended when the request is complete. The request may be gone afterwards.
static enum lvp_status take_token(struct run *run, const struct lvp_planned_seq *planned, int32_t token, float logprob,
                                  bool *ended)
{
    struct ask *ask = planned->request;
    struct group *group = ask->group;
    if (token < 0 || token >= run->options->deployment->config->text.vocab)
        return lvp_fail(LVP_ERR_FORMAT, "StepDone with token %d, outside the vocabulary", token);
    if (planned->prefill && --group->n_unstarted == 0) lvp_run_release_images(run, group);
    if (ask->wanted != NULL) {
        ask->n_greedy += token == ask->wanted[ask->n_tokens];
        token = ask->wanted[ask->n_tokens]; // whatever was chosen, the answer goes on as it is
    }
    ask->tokens[ask->n_tokens] = token;
    ask->logprobs[ask->n_tokens++] = logprob;
    if (ask->n_tokens == 1) ask->first_token = lvp_now();
    bool stopped = ask->wanted != NULL ? ask->n_tokens == ask->max_new
                                       : !run->options->ignore_eos && is_eos(run->options->deployment->config, token);
    *ended = stopped || ask->n_tokens == ask->max_new;
    return *ended ? lvp_run_finish_ask(run, ask, NULL, stopped) : LVP_OK;
}

static enum lvp_status send_release(struct run *run, int r, int n)
{
    if (n == 0) return LVP_OK;
    const struct lvp_world *world = run->options->world;
    Lvp__Release release = LVP__RELEASE__INIT;
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    release.n_slots = (size_t)n;
    release.slots = run->released;
    message.body_case = LVP__TO_WORKER__BODY_RELEASE;
    message.release = &release;
    return lvp_world_send_stages(run->options->world, r, world->merge_stage, world->n_stages, &message);
}

enum lvp_status lvp_run_step_done(struct run *run, int r, const Lvp__StepDone *message)
{
    const struct lvp_scheduler_config *config = &run->options->deployment->scheduler;
    struct replica *replica = &run->replicas[r];
    int n = replica->planned_sizes[replica->first_step], n_released = 0;
    if (replica->n_steps == 0 || message->number != replica->step_number - (uint64_t)replica->n_steps + 1 ||
        message->n_tokens != (size_t)n || message->n_logprobs != (size_t)n)
        return lvp_fail(LVP_ERR_FORMAT, "StepDone for step %llu, which is not next",
                        (unsigned long long)message->number);
    const struct lvp_planned_seq *planned = replica->planned + (size_t)replica->first_step * (size_t)config->max_seqs;
    for (int s = 0; s < n; s++) {
        LVP_TRY(take_token(run, &planned[s], message->tokens[s], message->logprobs[s], &run->ended[s]));
        if (run->ended[s]) run->released[n_released++] = planned[s].slot;
    }
    replica->first_step = (replica->first_step + 1) % config->max_steps;
    replica->n_steps--;
    LVP_TRY(lvp_scheduler_step_done(replica->scheduler, run->ended));
    return send_release(run, r, n_released);
}
