// From requests to groups, and back to rows.
#include "common/record.h"
#include "coordinator/run_state.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

// A group with as many takes no further sample: all are on one replica, and a drain waits for them.
enum { GROUP_REQUESTS = 32 };

static void free_ask(struct ask *ask)
{
    lvp_request_free(&ask->request);
    lvp_prompt_free(&ask->prompt);
    free(ask->tokens);
    free(ask->logprobs);
    free(ask->wanted);
    free(ask);
}

void lvp_run_free_group(struct group *group)
{
    if (group == NULL) return;
    while (group->asks != NULL) {
        struct ask *ask = group->asks;
        group->asks = ask->next;
        free_ask(ask);
    }
    *group->link = group->next;
    if (group->next != NULL) group->next->link = group->link;
    free(group->slots);
    free(group);
}

static void mark_finished(struct run *run, uint64_t index)
{
    uint64_t window = run->options->sink.window;
    run->finished[index % window] = true;
    while (run->oldest < run->next && run->finished[run->oldest % window])
        run->finished[run->oldest++ % window] = false;
}

// The ids of the answer to score, for which the context has `room`. A fault of the request goes to *error.
static enum lvp_status build_answer(struct run *run, struct ask *ask, int room, struct lvp_sample_error *error)
{
    const struct lvp_run_options *options = run->options;
    int vocab = options->deployment->config->text.vocab;
    LVP_TRY(options->source.answer(options->source.context, &ask->request, &ask->prompt, &ask->wanted, &ask->max_new,
                                   error));
    if (error->code != LVP_SAMPLE_OK) return LVP_OK;
    for (int i = 0; i < ask->max_new; i++)
        if (ask->wanted[i] >= vocab) { // one added to the tokenizer alone: no prompt has to hold it
            lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING,
                                 "the answer to score has token %d, the model's vocabulary ends at %d", ask->wanted[i],
                                 vocab - 1);
            return LVP_OK;
        }
    if (ask->max_new > room)
        lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_TOO_LONG,
                             "the answer to score has %d tokens, the model's context has room for %d", ask->max_new,
                             room);
    return LVP_OK;
}

// The prompt's ids, and everything that depends on them. A fault of the request goes to *error.
static enum lvp_status build_prompt(struct run *run, struct ask *ask, struct lvp_sample_error *error)
{
    const struct lvp_run_options *options = run->options;
    const struct lvp_request *request = &ask->request;
    *error = request->error;
    if (error->code == LVP_SAMPLE_OK)
        LVP_TRY(options->source.prompt(options->source.context, request, &ask->prompt, error));
    if (error->code != LVP_SAMPLE_OK) return LVP_OK;
    const struct lvp_prompt *prompt = &ask->prompt;
    const struct lvp_model_config *config = options->deployment->config;
    for (int i = 0; i < prompt->n_ids; i++)
        if (prompt->ids[i] >= config->text.vocab && prompt->ids[i] != config->image_token_id) {
            lvp_sample_error_set(error, LVP_SAMPLE_PROMPT_FIELD_MISSING,
                                 "the prompt has token %d, the model's vocabulary ends at %d", prompt->ids[i],
                                 config->text.vocab - 1);
            return LVP_OK;
        }
    int room = config->text.max_positions - prompt->n_rows;
    ask->max_new = options->max_new_tokens < room ? options->max_new_tokens : room;
    if (request->answer != NULL) {
        LVP_TRY(build_answer(run, ask, room, error));
        if (error->code != LVP_SAMPLE_OK) return LVP_OK;
    }
    if (prompt->n_images > options->deployment->image_slots) {
        lvp_sample_error_set(error, LVP_SAMPLE_KV_TOO_SMALL, "the prompt has %d images, a run holds %d at once",
                             prompt->n_images, options->deployment->image_slots);
        return LVP_OK;
    }
    if (!lvp_scheduler_fits(run->replicas[0].scheduler, prompt->n_ids - prompt->n_images, prompt->n_images,
                            ask->max_new)) {
        lvp_sample_error_set(error, LVP_SAMPLE_KV_TOO_SMALL,
                             "the prompt has %d rows: its KV does not fit; use more stages or a smaller --keep",
                             prompt->n_rows);
        return LVP_OK;
    }
    ask->tokens = calloc((size_t)ask->max_new + 1, sizeof *ask->tokens);
    ask->logprobs = calloc((size_t)ask->max_new + 1, sizeof *ask->logprobs);
    if (ask->tokens == NULL || ask->logprobs == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a caption");
    const char *id = request->sample.id;
    ask->random_key = XXH3_64bits_withSeed(id, strlen(id), options->seed);
    ask->sampling_key = XXH3_64bits_withSeed(request->prompt, strlen(request->prompt), ask->random_key);
    return LVP_OK;
}

static enum lvp_status read_ahead(struct run *run)
{
    if (run->ahead.prompt != NULL) return LVP_OK;
    return run->options->source.load(run->options->source.context, run->next, &run->ahead);
}

// Takes request `next`.
static enum lvp_status add_ask(struct run *run, struct group *group)
{
    struct lvp_sample_error error = {.code = LVP_SAMPLE_OK};
    LVP_TRY(read_ahead(run));
    struct ask *ask = calloc(1, sizeof *ask);
    if (ask == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a request");
    ask->request = run->ahead;
    run->ahead = (struct lvp_request){0};
    uint64_t index = ask->index = run->next++;
    ask->sample = index / (uint64_t)run->options->source.n_prompts;
    ask->group = group;
    ask->next = NULL;
    struct ask **link = &group->asks;
    while (*link != NULL) link = &(*link)->next;
    *link = ask;
    run->n_active++;
    bool crashed_alone = false;
    int crashes = run->options->sink.crashes(run->options->sink.context, ask->sample, &crashed_alone);
    if (crashed_alone)
        lvp_sample_error_set(&error, LVP_SAMPLE_CRASHED,
                             "it brought a rank down %d times, the last time while nothing else was under way",
                             crashes);
    else
        LVP_TRY(build_prompt(run, ask, &error));
    group->alone = crashes >= LVP_ALONE_AFTER; // it is the only sample then
    if (error.code == LVP_SAMPLE_OK) {
        group->n_images = ask->prompt.n_images;
        return LVP_OK;
    }
    // The group is still being built: it must not go with this request.
    const struct lvp_run_sink *sink = &run->options->sink;
    LVP_TRY(sink->error(sink->context, index, &ask->request, &error));
    *link = NULL;
    free_ask(ask);
    run->n_active--;
    mark_finished(run, index);
    return LVP_OK;
}

// Takes the unfinished requests of the next sample.
static enum lvp_status add_sample(struct run *run, struct group *group)
{
    const struct lvp_run_options *options = run->options;
    uint64_t n_prompts = (uint64_t)options->source.n_prompts, end = (run->next / n_prompts + 1) * n_prompts;
    group->n_samples++;
    while (run->next < end) {
        if (!options->sink.done(options->sink.context, run->next)) {
            LVP_TRY(add_ask(run, group));
            continue;
        }
        lvp_request_free(&run->ahead);
        mark_finished(run, run->next++);
    }
    return LVP_OK;
}

bool lvp_run_may_take(const struct run *run)
{
    uint64_t n_prompts = (uint64_t)run->options->source.n_prompts;
    return run->next < run->n_requests && run->next + n_prompts <= run->oldest + run->options->sink.window;
}

// Made-up images have no path, and each is another.
static bool same_images(const struct lvp_sample *a, const struct lvp_sample *b)
{
    if (a->n_images == 0 || a->n_images != b->n_images) return false;
    for (int i = 0; i < a->n_images; i++) {
        const struct lvp_image_place *x = &a->places[i], *y = &b->places[i];
        if (x->path[0] == '\0' || strcmp(x->path, y->path) != 0 || x->offset != y->offset || x->n_bytes != y->n_bytes ||
            x->shard_bytes != y->shard_bytes || x->shard_time != y->shard_time)
            return false;
    }
    return true;
}

// Whether the next sample asks about the group's images. One that has brought a rank down is a group of its own, so
// that what is blamed is one sample.
static enum lvp_status may_join(struct run *run, const struct group *group, bool *joins)
{
    const struct lvp_run_sink *sink = &run->options->sink;
    uint64_t n_prompts = (uint64_t)run->options->source.n_prompts, next = run->next / n_prompts;
    bool alone;
    *joins = false;
    if (group->asks == NULL || (uint64_t)group->n_samples * n_prompts >= GROUP_REQUESTS || !lvp_run_may_take(run))
        return LVP_OK;
    if (sink->crashes(sink->context, group->sample, &alone) > 0 || sink->crashes(sink->context, next, &alone) > 0)
        return LVP_OK;
    LVP_TRY(read_ahead(run));
    *joins = same_images(&group->asks->request.sample, &run->ahead.sample);
    return LVP_OK;
}

// Takes the next samples' unfinished requests into a group; run->held stays NULL when none of them needs a worker.
enum lvp_status lvp_run_build_group(struct run *run)
{
    struct group *group = calloc(1, sizeof *group);
    if (group == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for a sample");
    group->next = run->groups;
    group->link = &run->groups;
    if (group->next != NULL) group->next->link = &group->next;
    run->groups = group;
    run->held = group;
    group->sample = run->next / (uint64_t)run->options->source.n_prompts;
    for (bool joins = true; joins;) {
        LVP_TRY(add_sample(run, group));
        LVP_TRY(may_join(run, group, &joins));
    }
    if (group->asks == NULL) {
        lvp_run_free_group(group);
        run->held = NULL;
    }
    return LVP_OK;
}

// Whether the group is alone. Where it is one sample, that is noted in rank 0's record too: its crash is then surely
// its own.
void lvp_run_set_alone(struct run *run, const struct group *group, bool alone)
{
    if (run->alone == alone) return;
    run->alone = alone;
    lvp_record_alone(alone && group->n_samples == 1, group->sample);
    if (alone) lvp_record_write(); // before it can crash
}

void lvp_run_release_images(struct run *run, struct group *group)
{
    if (group->slots == NULL) return;
    struct replica *replica = &run->replicas[group->replica];
    for (int i = 0; i < group->n_images; i++) replica->slot_group[group->slots[i]] = NULL;
    replica->n_free_slots += group->n_images;
    free(group->slots);
    group->slots = NULL;
}

static void end_group(struct run *run, struct group *group)
{
    lvp_run_release_images(run, group);
    lvp_run_set_alone(run, group, false);
    run->n_placed--;
    lvp_run_free_group(group);
}

// Hands the request's row to the output and forgets it; the group goes with its last request.
enum lvp_status lvp_run_finish_ask(struct run *run, struct ask *ask, const struct lvp_sample_error *error, bool stopped)
{
    const struct lvp_run_sink *sink = &run->options->sink;
    struct group *group = ask->group;
    if (error != NULL) {
        LVP_TRY(sink->error(sink->context, ask->index, &ask->request, error));
    } else {
        const struct lvp_answer answer = {.tokens = ask->tokens,
                                          .logprobs = ask->logprobs,
                                          .n_tokens = ask->n_tokens,
                                          .stopped = stopped,
                                          .scored = ask->wanted != NULL,
                                          .n_greedy = ask->n_greedy};
        LVP_TRY(sink->caption(sink->context, ask->index, &ask->request, &ask->prompt, &answer));
        run->totals.generated_tokens += ask->n_tokens;
        run->totals.prompt_rows += ask->prompt.n_rows;
        run->totals.answers++;
        run->totals.later_tokens += ask->n_tokens - 1;
        run->totals.first_token_seconds += ask->first_token - ask->placed;
        run->totals.later_seconds += lvp_now() - ask->first_token;
    }
    mark_finished(run, ask->index);
    run->n_active--;
    run->replicas[group->replica].n_asks--;
    struct ask **link = &group->asks;
    while (*link != ask) link = &(*link)->next;
    *link = ask->next;
    free_ask(ask);
    if (group->asks == NULL) end_group(run, group);
    return LVP_OK;
}
