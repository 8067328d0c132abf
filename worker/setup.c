#include "worker/compute.h"

#include <stdlib.h>

static enum lvp_status bad(const char *field)
{
    return lvp_fail(LVP_ERR_FORMAT, "Setup: %s is out of range", field);
}

static bool in_range(int64_t value, int64_t low, int64_t high)
{
    return value >= low && value <= high;
}

static enum lvp_status read_prune(const Lvp__Setup *message, struct lvp_prune_counts *prune)
{
    if (message->n_prune_after > LVP_MAX_PRUNE_POINTS || message->n_prune_rows != message->n_prune_after + 1)
        return bad("prune_after");
    prune->n_points = (int)message->n_prune_after;
    for (int s = 0; s < prune->n_points; s++) {
        if (!in_range(message->prune_after[s], s == 0 ? 1 : message->prune_after[s - 1] + 1, LVP_MAX_LAYERS))
            return bad("prune_after");
        prune->after[s] = message->prune_after[s];
    }
    prune->vary = message->prune_rows_vary;
    for (int d = 0; d <= prune->n_points; d++) {
        int64_t low = d == 0 ? 1 : 0, high = d == 0 ? LVP_MAX_IMAGE_TOKENS : message->prune_rows[d - 1];
        if (!in_range(message->prune_rows[d], low, high)) return bad("prune_rows");
        prune->rows[d] = message->prune_rows[d];
    }
    return LVP_OK;
}

static enum lvp_status read_limits(const Lvp__Setup *message, int n_points, struct lvp_stage_limits *limits)
{
    enum { MAX_COUNT = 1 << 24 };
    if (!in_range(message->max_rows, 1, MAX_COUNT)) return bad("max_rows");
    if (!in_range(message->max_seqs, 1, 1 << 16)) return bad("max_seqs");
    if (!in_range(message->max_kv_len, 1, MAX_COUNT)) return bad("max_kv_len");
    if (!in_range(message->max_images, 1, LVP_LANE_JOBS)) return bad("max_images");
    if (!in_range(message->image_slots, 1, 1 << 16)) return bad("image_slots");
    if (message->n_kv_pages != (size_t)n_points + 1) return bad("kv_pages");
    *limits = (struct lvp_stage_limits){.max_rows = message->max_rows,
                                        .max_seqs = message->max_seqs,
                                        .max_kv_len = message->max_kv_len,
                                        .max_images = message->max_images,
                                        .image_slots = message->image_slots};
    for (int d = 0; d <= n_points; d++) {
        if (!in_range(message->kv_pages[d], 1, MAX_COUNT)) return bad("kv_pages");
        limits->kv_pages[d] = message->kv_pages[d];
    }
    return LVP_OK;
}

enum lvp_status lvp_worker_setup_read(const Lvp__Setup *message, struct lvp_worker_setup *setup)
{
    if (!lvp_dtype_computes(message->dtype)) return bad("dtype");
    if (message->weights != message->dtype && message->weights != LVP_INT8) return bad("weights");
    if (!in_range(message->pruner, LVP_PRUNER_NONE, LVP_PRUNER_COUNT - 1)) return bad("pruner");
    if (!in_range(message->threads, 1, 4096)) return bad("threads");
    LVP_TRY(read_prune(message, &setup->prune));
    LVP_TRY(read_limits(message, setup->prune.n_points, &setup->limits));
    if (!in_range((int64_t)message->n_partition, 2, LVP_MAX_STAGES + 1) || message->n_ranks + 1 != message->n_partition)
        return bad("partition");
    setup->partition.n_stages = (int)message->n_ranks;
    for (size_t s = 0; s < message->n_partition; s++) setup->partition.first[s] = message->partition[s];
    for (size_t s = 0; s < message->n_ranks; s++) {
        if (!in_range(message->ranks[s], 1, 1 << 20)) return bad("ranks"); // rank 0 holds no stage
        setup->ranks[s] = message->ranks[s];
    }
    if (!in_range(message->stage, 0, setup->partition.n_stages - 1)) return bad("stage");
    if (!in_range(message->replica, 0, 1 << 20)) return bad("replica");
    setup->stage = message->stage;
    setup->replica = message->replica;
    setup->dtype = (enum lvp_dtype)message->dtype;
    setup->weights = (enum lvp_dtype)message->weights;
    setup->pruner = (enum lvp_pruner_kind)message->pruner;
    setup->threads = message->threads;
    if (!in_range(message->pruner_width, 0, 1 << 16)) return bad("pruner_width");
    setup->synthetic = message->synthetic;
    setup->trace = message->trace;
    setup->narrow = message->narrow;
    if (message->direct_from && setup->stage == 0) return bad("direct_from");
    if (message->direct_to && setup->stage + 1 == setup->partition.n_stages) return bad("direct_to");
    setup->direct_from = message->direct_from;
    setup->direct_to = message->direct_to;
    setup->pruner_width = message->pruner_width;
    if (message->max_pixels < 0) return bad("max_pixels");
    setup->max_pixels = message->max_pixels;
    setup->model = strdup(message->model);
    setup->pruner_weights = strdup(message->pruner_weights);
    setup->kernel_set = strdup(message->kernel_set);
    setup->model_hash = strdup(message->model_hash);
    setup->pruner_hash = strdup(message->pruner_hash);
    setup->output = strdup(message->output);
    setup->coordinator = strdup(message->coordinator);
    if (setup->output == NULL || setup->coordinator == NULL || setup->model == NULL || setup->pruner_weights == NULL ||
        setup->kernel_set == NULL || setup->model_hash == NULL || setup->pruner_hash == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the setup");
    return LVP_OK;
}

void lvp_worker_setup_free(struct lvp_worker_setup *setup)
{
    free(setup->model);
    free(setup->pruner_weights);
    free(setup->kernel_set);
    free(setup->model_hash);
    free(setup->pruner_hash);
    free(setup->output);
    free(setup->coordinator);
    *setup = (struct lvp_worker_setup){0};
}
