#include "common/job.h"
#include "coordinator/caption_job.h"
#include "coordinator/planner.h"

#include <stdlib.h>
#include <string.h>

enum { IMAGE_SLOTS = 4 * LVP_ENCODE_IMAGES };

// What the poorest worker of a stage may use: its host's memory shared with the workers there, a tenth left for
// buffers.
static int64_t smallest_memory(const struct job *job, int stage)
{
    const struct lvp_world *world = &job->world;
    int64_t smallest = 0;
    for (int w = stage; w < world->n_workers; w += job->n_stages) {
        int sharing = 0;
        for (int other = 0; other < world->n_workers; other++)
            if (strcmp(world->workers[other].host, world->workers[w].host) == 0) sharing++;
        int64_t memory = world->workers[w].memory_bytes / 10 * 9 / sharing;
        if (memory > 0 && (smallest == 0 || memory < smallest)) smallest = memory;
    }
    return smallest;
}

static struct lvp_workload typical_workload(const struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    int context = job->config->text.max_positions;
    return (struct lvp_workload){.config = job->config,
                                 .prune = options->prune,
                                 .pruner_width = job->weights.inner_width,
                                 .text_tokens = LVP_TYPICAL_TEXT,
                                 .new_tokens = options->max_new_tokens < context ? options->max_new_tokens : context,
                                 .dtype = options->dtype};
}

// The partition: as asked, or the planner's for the workers that are there.
static enum lvp_status choose_partition(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    if (options->partition.mode != LVP_PARTITION_AUTO)
        return lvp_partition_resolve(&options->partition, job->config, &options->prune, &job->partition);
    struct lvp_workload workload = typical_workload(job);
    struct lvp_device devices[LVP_MAX_STAGES];
    for (int s = 0; s < job->n_stages; s++) {
        devices[s] = LVP_TYPICAL_CPU;
        devices[s].memory = smallest_memory(job, s);
    }
    struct lvp_planner_input input = {
        .workload = &workload, .n_stages = job->n_stages, .devices = devices, .sequences = LVP_PLANNED_SEQUENCES};
    return lvp_plan_partition(&input, &job->partition);
}

// How much the stages hold at once. KV: typical requests for every sequence slot, and the longest prompt alone.
static void size_run(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    const struct lvp_text_config *text = &job->config->text;
    int tokens = job->prune.rows[0], page = LVP_COST_KV_PAGE;
    int max_seqs = LVP_PLANNED_SEQUENCES * job->n_stages;
    if (max_seqs > LVP_MAX_SEQS) max_seqs = LVP_MAX_SEQS;
    int longest = text->max_positions / tokens + 1; // images of one prompt at most
    job->image_slots = longest < IMAGE_SLOTS           ? IMAGE_SLOTS
                       : longest < LVP_MAX_IMAGE_SLOTS ? longest
                                                       : LVP_MAX_IMAGE_SLOTS;
    int batch = options->batch_tokens > 0 ? options->batch_tokens : 1024;
    if (options->batch_tokens == 0 && batch < tokens + 2 * LVP_TYPICAL_TEXT) batch = tokens + 2 * LVP_TYPICAL_TEXT;
    job->max_rows = batch > text->max_positions ? batch : text->max_positions;
    job->scheduler = (struct lvp_scheduler_config){.prune = job->prune,
                                                   .n_stages = job->n_stages - job->merge_stage,
                                                   .max_steps = job->n_stages - job->merge_stage + 1,
                                                   .max_seqs = max_seqs,
                                                   .page_slots = page,
                                                   .batch_tokens = batch};
    for (int d = 0; d <= job->prune.n_points; d++) {
        int rows = job->prune.rows[d] + LVP_TYPICAL_TEXT + options->max_new_tokens;
        if (rows > text->max_positions) rows = text->max_positions;
        int typical = (rows + page - 1) / page;
        int largest = (text->max_positions + page - 1) / page;
        job->scheduler.kv_pages[d] = typical * max_seqs > largest ? typical * max_seqs : largest;
    }
}

// Workers report progress block by block. The longest that a block may take for a full step, on one slow core: with
// vector instructions, and without.
static double block_seconds(const struct job *job)
{
    static const double slow = 10e9, portable = 0.5e9; // FLOP/s
    struct lvp_workload workload = typical_workload(job);
    int rows = job->prune.rows[0] + LVP_TYPICAL_TEXT;
    double most = 0;
    for (int b = 0; b < lvp_block_count(job->config); b++) {
        double flops = lvp_block_cost(&workload, b).prefill_flops;
        if (flops > most) most = flops;
    }
    return most * job->max_rows / rows / (strcmp(job->kernel_set, "portable") == 0 ? portable : slow);
}

enum lvp_status lvp_job_plan(struct job *job)
{
    LVP_TRY(choose_partition(job));
    int merge = lvp_block_index(job->config, LVP_BLOCK_MERGE, 0);
    while (job->partition.first[job->merge_stage + 1] <= merge) job->merge_stage++;
    size_run(job);
    job->block_seconds = block_seconds(job);
    return LVP_OK;
}

enum lvp_status lvp_job_set_up_workers(struct job *job)
{
    const struct lvp_caption_options *options = job->options;
    int32_t after[LVP_MAX_PRUNE_POINTS], rows[LVP_MAX_DEPTHS], pages[LVP_MAX_DEPTHS];
    Lvp__Setup setup = LVP__SETUP__INIT;
    for (int s = 0; s < job->prune.n_points; s++) after[s] = job->prune.after[s];
    for (int d = 0; d <= job->prune.n_points; d++) {
        rows[d] = job->prune.rows[d];
        pages[d] = job->scheduler.kv_pages[d];
    }
    char host[128];
    char *model = realpath(options->model, NULL), *output = realpath(options->output, NULL);
    char *weights = options->pruner_weights != NULL ? realpath(options->pruner_weights, NULL) : strdup("");
    if (model == NULL || weights == NULL || output == NULL) {
        enum lvp_status status =
            lvp_fail(LVP_ERR_MODEL, "%s cannot be found any more", output == NULL ? options->output : options->model);
        free(model);
        free(weights);
        free(output);
        return status;
    }
    lvp_host_name(host, sizeof host);
    setup.output = output;
    setup.coordinator = host;
    setup.model = model;
    setup.model_hash = job->model_hash;
    setup.dtype = (int32_t)options->dtype;
    setup.pruner = (int32_t)options->pruner;
    setup.pruner_weights = weights;
    setup.n_prune_after = (size_t)job->prune.n_points;
    setup.prune_after = after;
    setup.n_prune_rows = setup.n_kv_pages = (size_t)job->prune.n_points + 1;
    setup.prune_rows = rows;
    setup.kv_pages = pages;
    setup.max_rows = job->max_rows;
    setup.max_seqs = job->scheduler.max_seqs;
    setup.max_kv_len = job->config->text.max_positions;
    setup.max_images = LVP_ENCODE_IMAGES;
    setup.image_slots = job->image_slots;
    setup.max_pixels = options->max_pixels;
    enum lvp_status status = lvp_world_setup(&job->world, &job->partition, job->n_replicas, job->merge_stage,
                                             job->kernel_set, options->threads, options->drain, &setup);
    free(model);
    free(weights);
    free(output);
    return status;
}
