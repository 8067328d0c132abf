#include "coordinator/deployment.h"

#include "coordinator/planner.h"

#include <limits.h>
#include <string.h>

enum { IMAGE_SLOTS = 4 * LVP_ENCODE_IMAGES, MAX_IMAGE_SLOTS = 256 };

// What the poorest worker of a stage may use: its host's memory shared with the workers there.
static int64_t smallest_memory(const struct lvp_world *world, int n_stages, int stage)
{
    int64_t smallest = 0;
    for (int w = stage; w < world->n_workers; w += n_stages) {
        int sharing = 0;
        for (int other = 0; other < world->n_workers; other++)
            if (strcmp(world->workers[other].host, world->workers[w].host) == 0) sharing++;
        int64_t memory = lvp_usable_memory(world->workers[w].memory_bytes, sharing);
        if (memory > 0 && (smallest == 0 || memory < smallest)) smallest = memory;
    }
    return smallest;
}

static struct lvp_workload typical_workload(const struct lvp_deployment *deployment)
{
    int context = deployment->config->text.max_positions;
    return (struct lvp_workload){.config = deployment->config,
                                 .prune = *deployment->prune_plan,
                                 .pruner_width = deployment->pruner_width,
                                 .text_tokens = deployment->text_tokens,
                                 .new_tokens = deployment->new_tokens < context ? deployment->new_tokens : context,
                                 .dtype = deployment->dtype,
                                 .weights = deployment->weights};
}

static int concurrency(const struct lvp_deployment *deployment)
{
    return deployment->concurrency > 0 ? deployment->concurrency : lvp_usual_sequences(deployment->n_stages);
}

// What each stage's device can do and hold.
static void describe_devices(const struct lvp_deployment *deployment, const struct lvp_world *world,
                             struct lvp_device_rates *rates, struct lvp_device *devices)
{
    for (int s = 0; s < deployment->n_stages; s++) {
        int threads = deployment->threads > 0 ? deployment->threads : world->workers[s].threads;
        devices[s] = LVP_TYPICAL_CPU;
        devices[s].memory = smallest_memory(world, deployment->n_stages, s);
        if (world->workers[s].gpu) {
            devices[s] = LVP_TYPICAL_GPU;
            devices[s].memory = lvp_usable_memory(lvp_world_gpu_memory(world, deployment->n_stages, s), 1);
            continue; // profiles are of CPUs
        }
        if (deployment->profile == NULL) continue;
        rates[s] = lvp_profile_device(deployment->profile, threads);
        devices[s].rates = &rates[s];
        if (deployment->profile->link.bytes > 0) devices[s].link_rate = deployment->profile->link.bytes;
    }
}

// The partition: as asked, or the planner's for the workers that are there; and how many requests have room.
static enum lvp_status choose_partition(struct lvp_deployment *deployment, const struct lvp_world *world)
{
    struct lvp_workload workload = typical_workload(deployment);
    struct lvp_device devices[LVP_MAX_STAGES];
    struct lvp_device_rates rates[LVP_MAX_STAGES];
    if (deployment->n_stages > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "%d stages are more than the %d supported", deployment->n_stages,
                        LVP_MAX_STAGES);
    describe_devices(deployment, world, rates, devices);
    struct lvp_planner_input input = {.workload = &workload,
                                      .n_stages = deployment->n_stages,
                                      .devices = devices,
                                      .sequences = concurrency(deployment)};
    LVP_TRY(lvp_plan_choice(&input, deployment->choice, deployment->concurrency == 0, &deployment->partition));
    deployment->concurrency = input.sequences;
    return LVP_OK;
}

// How much the stages hold at once. KV: typical requests for every sequence slot, and the longest prompt alone.
static void size_run(struct lvp_deployment *deployment)
{
    const struct lvp_text_config *text = &deployment->config->text;
    int tokens = deployment->prune.rows[0], page = LVP_COST_KV_PAGE, typical_text = deployment->text_tokens;
    int stages = deployment->n_stages - deployment->merge_stage;
    int max_seqs = concurrency(deployment);
    int longest = text->max_positions / tokens + 1; // images of one prompt at most
    deployment->image_slots = longest < IMAGE_SLOTS       ? IMAGE_SLOTS
                              : longest < MAX_IMAGE_SLOTS ? longest
                                                          : MAX_IMAGE_SLOTS;
    int batch = deployment->batch_tokens > 0 ? deployment->batch_tokens : 1024;
    if (deployment->batch_tokens == 0 && batch < tokens + 2 * typical_text) batch = tokens + 2 * typical_text;
    deployment->max_rows = batch > text->max_positions ? batch : text->max_positions;
    deployment->scheduler = (struct lvp_scheduler_config){.prune = deployment->prune,
                                                          .n_stages = stages,
                                                          .max_steps = stages + 1,
                                                          .max_seqs = max_seqs,
                                                          .page_slots = page,
                                                          .batch_tokens = batch};
    // An encode job holds up the steps behind it, so it is about as long as one of them; a device is busy with it
    // anyway.
    deployment->encode_images = batch / (lvp_patch_count(deployment->config) + 1);
    if (deployment->encode_images < 1) deployment->encode_images = 1;
    if (deployment->encode_images > LVP_ENCODE_IMAGES) deployment->encode_images = LVP_ENCODE_IMAGES;
    for (int d = 0; d <= deployment->prune.n_points; d++) {
        int rows = deployment->prune.rows[d] + typical_text + deployment->new_tokens;
        if (rows > text->max_positions) rows = text->max_positions;
        int64_t typical = (int64_t)((rows + page - 1) / page) * max_seqs;
        int64_t largest = (text->max_positions + page - 1) / page, pages = typical > largest ? typical : largest;
        deployment->scheduler.kv_pages[d] = pages < INT_MAX ? (int)pages : INT_MAX; // which no memory has room for
    }
}

// Workers report progress block by block. The longest that a block may take for a full step, on one slow core: with
// vector instructions, and without.
static double block_seconds(const struct lvp_deployment *deployment)
{
    static const double slow = 10e9, portable = 0.5e9; // FLOP/s
    struct lvp_workload workload = typical_workload(deployment);
    int rows = deployment->prune.rows[0] + deployment->text_tokens;
    double most = 0;
    for (int b = 0; b < lvp_block_count(deployment->config); b++) {
        double flops = lvp_block_cost(&workload, b).prefill_flops;
        if (flops > most) most = flops;
    }
    double rate = strcmp(deployment->kernel_set, "portable") == 0 ? portable : slow;
    return most * deployment->max_rows / rows / rate;
}

void lvp_deployment_size(struct lvp_deployment *deployment)
{
    int merge = lvp_block_index(deployment->config, LVP_BLOCK_MERGE, 0);
    lvp_prune_counts(deployment->prune_plan, lvp_vision_tokens(deployment->config), &deployment->prune);
    deployment->merge_stage = 0;
    while (deployment->partition.first[deployment->merge_stage + 1] <= merge) deployment->merge_stage++;
    size_run(deployment);
    deployment->block_seconds = block_seconds(deployment);
}

enum lvp_status lvp_deployment_plan(struct lvp_deployment *deployment, const struct lvp_world *world)
{
    LVP_TRY(choose_partition(deployment, world));
    lvp_deployment_size(deployment);
    return LVP_OK;
}

enum lvp_status lvp_deployment_set_up(const struct lvp_deployment *deployment, struct lvp_world *world,
                                      const atomic_int *interrupt, Lvp__Setup *setup)
{
    int32_t after[LVP_MAX_PRUNE_POINTS], rows[LVP_MAX_DEPTHS], pages[LVP_MAX_DEPTHS];
    const struct lvp_prune_counts *prune = &deployment->prune;
    for (int s = 0; s < prune->n_points; s++) after[s] = prune->after[s];
    for (int d = 0; d <= prune->n_points; d++) {
        rows[d] = prune->rows[d];
        pages[d] = deployment->scheduler.kv_pages[d];
    }
    setup->dtype = (int32_t)deployment->dtype;
    setup->weights = (int32_t)deployment->weights;
    setup->n_prune_after = (size_t)prune->n_points;
    setup->prune_after = after;
    setup->n_prune_rows = setup->n_kv_pages = (size_t)prune->n_points + 1;
    setup->prune_rows = rows;
    setup->prune_rows_vary = prune->vary;
    setup->kv_pages = pages;
    setup->max_rows = deployment->max_rows;
    setup->max_seqs = deployment->scheduler.max_seqs;
    setup->max_kv_len = deployment->config->text.max_positions;
    setup->max_images = LVP_ENCODE_IMAGES;
    setup->image_slots = deployment->image_slots;
    return lvp_world_setup(world, &deployment->partition, deployment->n_replicas, deployment->merge_stage,
                           deployment->kernel_set, deployment->threads, interrupt, setup);
}
