#include "coordinator/input/survey.h"

#include "common/json_text.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { BLOCK_REQUESTS = 1 << 16, MAX_THREADS = 16 };

struct id_hash {
    uint64_t hash, index; // of the sample in the whole input
};

// Samples first..end of the whole input, for one thread.
struct part {
    const struct lvp_survey *survey;
    struct id_hash *ids;            // of the whole input
    struct lvp_request_mark *marks; // of the block
    uint64_t block, first, end;     // `block`: first sample of the block
    struct lvp_cursor cursor;       // kept from block to block
    struct lvp_json_text text;      // scratch
    enum lvp_status status;
    char error[1024];
};

static struct lvp_request_mark mark_of(const struct lvp_request *request, struct lvp_json_text *text)
{
    text->length = 0;
    lvp_json_text_string(text, request->id);
    return (struct lvp_request_mark){.identity = lvp_request_hash(request),
                                     .id_text = XXH3_64bits(text->data, text->length)};
}

// Loads sample i and notes what it says.
static enum lvp_status look_at(struct part *part, uint64_t i)
{
    const struct lvp_requests *requests = part->survey->requests;
    const struct lvp_source *source = lvp_manifest_source(requests->manifest);
    struct lvp_sample sample = {0};
    bool only_id = part->survey->request == NULL || lvp_manifest_index(requests->manifest, i) == UINT64_MAX;
    enum lvp_status status = source->ops->load(source, &part->cursor, i, only_id, &sample);
    if (status != LVP_OK) goto fail;
    part->ids[i] = (struct id_hash){XXH3_64bits(sample.id, strlen(sample.id)), i};
    if (only_id) goto fail;
    int n_prompts = lvp_prompts_per_sample(requests);
    for (int k = 0; k < n_prompts && status == LVP_OK; k++) {
        struct lvp_request request;
        status = lvp_request_make(requests, sample, k, &request);
        if (status == LVP_OK)
            part->marks[(i - part->block) * (uint64_t)n_prompts + (uint64_t)k] = mark_of(&request, &part->text);
        sample = request.sample; // the next prompt asks the same one; zeroed by a failure
        request.sample = (struct lvp_sample){0};
        lvp_request_free(&request);
    }
    if (part->text.failed) status = lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory");
fail:
    lvp_sample_free(&sample);
    return status;
}

static void *look(void *argument)
{
    struct part *part = argument;
    for (uint64_t i = part->first; i < part->end && part->status == LVP_OK; i++) part->status = look_at(part, i);
    if (part->status != LVP_OK) {
        (void)snprintf(part->error, sizeof part->error, "%s", lvp_error_text());
        lvp_error_clear();
    }
    return NULL;
}

// All threads over one block; the caller's is one of them.
static enum lvp_status look_at_block(struct part *parts, int n_parts, uint64_t block, uint64_t end)
{
    pthread_t threads[MAX_THREADS];
    bool started[MAX_THREADS] = {false};
    for (int t = n_parts - 1; t >= 0; t--) {
        uint64_t n = end - block, count = (uint64_t)n_parts, at = (uint64_t)t;
        parts[t].block = block;
        parts[t].first = block + n * at / count;
        parts[t].end = block + n * (at + 1) / count;
        started[t] = t > 0 && pthread_create(&threads[t], NULL, look, &parts[t]) == 0;
        if (!started[t]) look(&parts[t]);
    }
    for (int t = 0; t < n_parts; t++)
        if (started[t]) pthread_join(threads[t], NULL);
    for (int t = 0; t < n_parts; t++)
        if (parts[t].status != LVP_OK) return lvp_fail(parts[t].status, "%s", parts[t].error);
    return LVP_OK;
}

// Hands over what the block said, in order.
static enum lvp_status hand_over(const struct lvp_survey *survey, const struct lvp_request_mark *marks, uint64_t block,
                                 uint64_t end)
{
    uint64_t n_prompts = (uint64_t)lvp_prompts_per_sample(survey->requests);
    for (uint64_t i = block; i < end && survey->request != NULL; i++) {
        uint64_t index = lvp_manifest_index(survey->requests->manifest, i);
        for (uint64_t k = 0; index != UINT64_MAX && k < n_prompts; k++)
            LVP_TRY(survey->request(survey->context, index * n_prompts + k, &marks[(i - block) * n_prompts + k]));
    }
    return LVP_OK;
}

static int compare_hashes(const void *a, const void *b)
{
    const struct id_hash *x = a, *y = b;
    if (x->hash != y->hash) return x->hash < y->hash ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

// Of two samples whose ids have one hash: are the ids one too?
static enum lvp_status compare_ids(const struct lvp_source *source, uint64_t a, uint64_t b)
{
    struct lvp_sample first = {0}, second = {0};
    struct lvp_cursor cursor = {0};
    char here[600], there[600];
    enum lvp_status status = source->ops->load(source, &cursor, a, true, &first);
    if (status == LVP_OK) status = source->ops->load(source, &cursor, b, true, &second);
    if (status == LVP_OK && strcmp(first.id, second.id) == 0) {
        source->ops->place(source, a, here, sizeof here);
        source->ops->place(source, b, there, sizeof there);
        status = lvp_fail(LVP_ERR_USAGE, "--input %s: the id \"%s\" is there twice (%s and %s); ids must be unique",
                          source->label, first.id, here, there);
    }
    lvp_cursor_close(&cursor);
    lvp_sample_free(&first);
    lvp_sample_free(&second);
    return status;
}

static enum lvp_status check_unique(const struct lvp_source *source, struct id_hash *ids)
{
    qsort(ids, source->n, sizeof *ids, compare_hashes);
    for (uint64_t i = 1; i < source->n; i++)
        if (ids[i].hash == ids[i - 1].hash) LVP_TRY(compare_ids(source, ids[i - 1].index, ids[i].index));
    return LVP_OK;
}

enum lvp_status lvp_survey(const struct lvp_survey *survey)
{
    const struct lvp_source *source = lvp_manifest_source(survey->requests->manifest);
    uint64_t n_prompts = (uint64_t)lvp_prompts_per_sample(survey->requests);
    uint64_t block_samples = BLOCK_REQUESTS / n_prompts + 1;
    int n_parts = survey->threads < 1 ? 1 : survey->threads < MAX_THREADS ? survey->threads : MAX_THREADS;
    struct part *parts = calloc(MAX_THREADS, sizeof *parts);
    struct id_hash *ids = malloc((source->n + 1) * sizeof *ids);
    struct lvp_request_mark *marks = malloc(block_samples * n_prompts * sizeof *marks);
    enum lvp_status status = LVP_OK;
    if (parts == NULL || ids == NULL || marks == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "reading the input: out of memory for %llu samples",
                          (unsigned long long)source->n);
        goto fail;
    }
    for (int t = 0; t < n_parts; t++) parts[t] = (struct part){.survey = survey, .ids = ids, .marks = marks};
    for (uint64_t block = 0; block < source->n; block += block_samples) {
        uint64_t end = block + block_samples < source->n ? block + block_samples : source->n;
        LVP_CHECK(look_at_block(parts, n_parts, block, end));
        LVP_CHECK(hand_over(survey, marks, block, end));
        LVP_CHECK(lvp_tick_call(&survey->tick));
    }
    status = check_unique(source, ids);
fail:
    for (int t = 0; parts != NULL && t < n_parts; t++) {
        lvp_cursor_close(&parts[t].cursor);
        lvp_json_text_free(&parts[t].text);
    }
    free(parts);
    free(ids);
    free(marks);
    return status;
}
