// From the coordinator's messages to jobs of the lanes: everything is checked before it is computed with.
#include "worker/compute.h"

#include <stdlib.h>

// Sizes are checked here, before anything is computed from them; what the ids say is checked when the step's layout is
// built.
static enum lvp_status read_sequences(const struct lvp_worker_setup *setup, int vocab, const Lvp__Step *message,
                                      struct lvp_job *job)
{
    size_t n = message->n_sequences;
    int64_t n_rows = 0, max_rows = setup->limits.max_rows;
    if (n < 1 || n > (size_t)setup->limits.max_seqs)
        return lvp_fail(LVP_ERR_FORMAT, "step %llu has %zu sequences", (unsigned long long)message->number, n);
    job->seqs = calloc(n, sizeof *job->seqs);
    job->tokens = calloc(n, sizeof *job->tokens);
    job->logprobs = calloc(n, sizeof *job->logprobs);
    if (job->seqs == NULL || job->tokens == NULL || job->logprobs == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for a step");
    for (size_t s = 0; s < n; s++) {
        const Lvp__Sequence *from = message->sequences[s];
        n_rows += (int64_t)from->n_ids + (int64_t)from->n_image_slots * setup->prune.rows[0];
        if (from->n_ids > (size_t)max_rows || from->n_image_slots > from->n_ids || from->max_new < 0 ||
            from->max_new > setup->limits.max_kv_len || from->scored < 0 || from->scored > vocab ||
            n_rows - (int64_t)from->n_image_slots > max_rows)
            return lvp_fail(LVP_ERR_FORMAT, "step %llu: sequence %zu is out of range",
                            (unsigned long long)message->number, s);
        n_rows -= (int64_t)from->n_image_slots; // an image's token id stands for its rows
        job->seqs[s] = (struct lvp_step_seq){.slot = from->slot,
                                             .prefill = from->prefill,
                                             .max_new = from->max_new,
                                             .position = from->position,
                                             .n_ids = (int)from->n_ids,
                                             .ids = from->ids,
                                             .n_images = (int)from->n_image_slots,
                                             .image_slots = from->image_slots,
                                             .random_key = from->random_key,
                                             .temperature = from->temperature,
                                             .top_p = from->top_p,
                                             .sampling_key = from->sampling_key,
                                             .token_index = from->token_index,
                                             .scored = from->scored};
    }
    job->step = (struct lvp_step){.number = message->number, .n_seqs = (int)n, .seqs = job->seqs};
    return LVP_OK;
}

struct lvp_hop_header lvp_compute_step_header(const struct lvp_compute *compute, const struct lvp_step *step,
                                              int n_rows, int n_vision_rows)
{
    uint64_t width = (uint64_t)compute->config.text.hidden;
    return (struct lvp_hop_header){.kind = LVP_HOP_STEP,
                                   .number = step->number,
                                   .n_rows = (uint32_t)n_rows,
                                   .width = (uint32_t)width,
                                   .n_parts = (uint32_t)step->n_seqs,
                                   .dtype = compute->setup.dtype,
                                   .payload_bytes = (uint64_t)n_rows * width * lvp_dtype_size(compute->setup.dtype),
                                   .vision_rows = (uint64_t)n_vision_rows};
}

// What the stage before will send, or the most that it may.
static struct lvp_hop_header announced_rows(const struct lvp_compute *compute, const struct lvp_step *step)
{
    const struct lvp_worker_setup *setup = &compute->setup;
    struct lvp_stage_range range = lvp_stage_range_of(&compute->config, setup->partition.first[setup->stage],
                                                      setup->partition.first[setup->stage + 1]);
    int depth = lvp_depth_of_layer(&setup->prune, range.dec_first), n_vision_rows = 0;
    for (int s = 0; s < step->n_seqs; s++) n_vision_rows += step->seqs[s].n_images * setup->prune.rows[depth];
    return lvp_compute_step_header(compute, step, lvp_step_rows(&setup->prune, step, depth), n_vision_rows);
}

enum lvp_status lvp_compute_step(struct lvp_compute *compute, Lvp__ToWorker *message)
{
    struct lvp_job *job = NULL;
    enum lvp_status status = lvp_lane_announce(&compute->steps, &job);
    if (status == LVP_OK && !lvp_stage_has_decoder(compute->stage))
        status = lvp_fail(LVP_ERR_FORMAT, "a step was sent to a stage of vision blocks only");
    if (status != LVP_OK) {
        lvp__to_worker__free_unpacked(message, NULL);
        return status;
    }
    job->message = message;
    LVP_TRY(read_sequences(&compute->setup, compute->config.text.vocab, message->step, job));
    if (compute->steps.from.rank >= 0) job->in = announced_rows(compute, &job->step);
    compute->last_announced = job->step.number;
    compute->steps.announced++;
    pthread_cond_signal(&compute->wake); // from now on the compute thread's waiting counts as waiting for this job
    return LVP_OK;
}

static struct lvp_hop_header encode_header(const struct lvp_compute *compute, const Lvp__Encode *encode,
                                           size_t image_bytes)
{
    size_t element = lvp_dtype_size(compute->setup.dtype);
    return (struct lvp_hop_header){.kind = LVP_HOP_ENCODE,
                                   .number = encode->number,
                                   .n_rows = (uint32_t)encode->n_slots,
                                   .width = (uint32_t)(image_bytes / element),
                                   .n_parts = (uint32_t)encode->n_slots,
                                   .dtype = compute->setup.dtype,
                                   .payload_bytes = encode->n_slots * image_bytes};
}

static enum lvp_status check_encode(const struct lvp_compute *compute, const Lvp__Encode *encode)
{
    const struct lvp_stage_limits *limits = &compute->setup.limits;
    int first = compute->setup.partition.first[compute->setup.stage];
    if (first > lvp_block_index(&compute->config, LVP_BLOCK_MERGE, 0))
        return lvp_fail(LVP_ERR_FORMAT, "an encode job was sent to a stage past the merge");
    if (encode->n_samples != encode->n_slots)
        return lvp_fail(LVP_ERR_FORMAT, "an encode job of %zu samples for %zu slots", encode->n_samples,
                        encode->n_slots);
    if (encode->n_slots < 1 || encode->n_slots > (size_t)limits->max_images)
        return lvp_fail(LVP_ERR_FORMAT, "an encode job of %zu images", encode->n_slots);
    for (size_t i = 0; i < encode->n_slots; i++)
        if (encode->slots[i] < 0 || encode->slots[i] >= limits->image_slots)
            return lvp_fail(LVP_ERR_FORMAT, "an encode job with image slot %d", encode->slots[i]);
    return LVP_OK;
}

enum lvp_status lvp_compute_encode(struct lvp_compute *compute, Lvp__ToWorker *message)
{
    struct lvp_job *job = NULL;
    enum lvp_status status = lvp_lane_announce(&compute->encodes, &job);
    if (status == LVP_OK) status = check_encode(compute, message->encode);
    if (status != LVP_OK) {
        lvp__to_worker__free_unpacked(message, NULL);
        return status;
    }
    job->message = message;
    if (compute->encodes.from.rank >= 0)
        job->in = encode_header(compute, message->encode, lvp_stage_image_in_bytes(compute->stage));
    if (compute->encodes.to.rank >= 0)
        job->out = encode_header(compute, message->encode, lvp_stage_image_out_bytes(compute->stage));
    compute->encodes.announced++;
    pthread_cond_signal(&compute->wake);
    return LVP_OK;
}

enum lvp_status lvp_compute_release(struct lvp_compute *compute, const Lvp__Release *message)
{
    for (size_t i = 0; i < message->n_slots; i++) {
        if (compute->n_releases >= compute->setup.limits.max_seqs)
            return lvp_fail(LVP_ERR_FORMAT, "more slots released than exist");
        compute->releases[compute->n_releases++] = message->slots[i];
    }
    return LVP_OK;
}
