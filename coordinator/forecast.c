#include "coordinator/forecast.h"

#include <stdlib.h>

// What the poorest device of a stage may use; 0: no limit.
static int64_t smallest_memory(const struct lvp_cluster *cluster, int n_stages, int n_replicas, int stage)
{
    int64_t smallest = 0;
    for (int r = 0; r < n_replicas; r++) {
        const struct lvp_cluster_node *node = &cluster->nodes[lvp_cluster_node_of(cluster, r * n_stages + stage)];
        int64_t memory = lvp_usable_memory(node->memory, node->devices);
        if (memory > 0 && (smallest == 0 || memory < smallest)) smallest = memory;
    }
    return smallest;
}

// Rates and links of the first replica's devices; their memory is that of all replicas, which are cut alike.
static void describe_devices(const struct lvp_forecast_input *input, int n_stages, int n_replicas,
                             struct lvp_device_rates *rates, struct lvp_device *devices)
{
    const struct lvp_cluster *cluster = input->cluster;
    for (int s = 0; s < n_stages; s++) {
        const struct lvp_cluster_node *node = &cluster->nodes[lvp_cluster_node_of(cluster, s)];
        bool leaves = s + 1 < n_stages && lvp_cluster_node_of(cluster, s + 1) != lvp_cluster_node_of(cluster, s);
        rates[s] = lvp_profile_device(input->profile, node->threads);
        devices[s] = (struct lvp_device){.flops = rates[s].roof_flops,
                                         .memory_rate = rates[s].roof_read_bytes,
                                         .link_rate = leaves ? cluster->link.bytes : cluster->local.bytes,
                                         .memory = smallest_memory(cluster, n_stages, n_replicas, s),
                                         .rates = &rates[s]};
    }
}

// Plans and simulates one workload. *fits: false where no partition fits the memory.
static enum lvp_status forecast_run(const struct lvp_forecast_input *input, const struct lvp_workload *workload,
                                    int n_stages, int n_replicas, bool *fits, int *concurrency,
                                    struct lvp_partition *partition, struct lvp_simulation *simulation)
{
    struct lvp_device_rates rates[LVP_MAX_STAGES];
    struct lvp_device devices[LVP_MAX_STAGES];
    struct lvp_planner_input planner = {.workload = workload,
                                        .n_stages = n_stages,
                                        .devices = devices,
                                        .sequences = input->concurrency > 0 ? input->concurrency
                                                                            : lvp_usual_sequences(n_stages)};
    describe_devices(input, n_stages, n_replicas, rates, devices);
    enum lvp_status status = lvp_plan_choice(&planner, input->choice, input->concurrency == 0, partition);
    *fits = status == LVP_OK;
    *concurrency = planner.sequences;
    if (status == LVP_ERR_USAGE) lvp_error_clear();
    if (status != LVP_OK) return status == LVP_ERR_USAGE ? LVP_OK : status;
    struct lvp_deployment deployment = {.config = workload->config,
                                        .prune_plan = &workload->prune,
                                        .pruner_width = workload->pruner_width,
                                        .text_tokens = workload->text_tokens,
                                        .new_tokens = workload->new_tokens,
                                        .dtype = workload->dtype,
                                        .weights = workload->weights,
                                        .choice = input->choice,
                                        .n_stages = n_stages,
                                        .n_replicas = n_replicas,
                                        .concurrency = planner.sequences,
                                        .batch_tokens = input->batch_tokens,
                                        .kernel_set = input->profile->kernel_set,
                                        .partition = *partition};
    lvp_deployment_size(&deployment);
    struct lvp_simulation_input run = {.workload = workload,
                                       .deployment = &deployment,
                                       .profile = input->profile,
                                       .cluster = input->cluster,
                                       .images = input->images};
    return lvp_simulate(&run, simulation);
}

enum lvp_status lvp_forecast(const struct lvp_forecast_input *input, int n_stages, int n_replicas,
                             struct lvp_forecast *forecast)
{
    struct lvp_workload dense = lvp_dense_workload(input->workload);
    struct lvp_forecast_input unpruned = *input;
    const struct lvp_partition_choice automatic = {.mode = LVP_PARTITION_AUTO};
    struct lvp_partition other;
    int concurrency = 0;
    if (input->choice->mode == LVP_PARTITION_PRUNE) unpruned.choice = &automatic; // it has no prune points
    *forecast = (struct lvp_forecast){.n_stages = n_stages, .n_replicas = n_replicas};
    LVP_TRY(forecast_run(input, input->workload, n_stages, n_replicas, &forecast->fits, &forecast->concurrency,
                         &forecast->partition, &forecast->pruned));
    if (!forecast->fits) return LVP_OK;
    LVP_TRY(forecast_run(&unpruned, &dense, n_stages, n_replicas, &forecast->dense_fits, &concurrency, &other,
                         &forecast->dense));
    const struct lvp_planner_input planner = {
        .workload = input->workload, .n_stages = n_stages, .sequences = forecast->concurrency};
    for (int s = 0; s < n_stages; s++)
        forecast->memory[s] =
            lvp_stage_memory(&planner, forecast->partition.first[s], forecast->partition.first[s + 1]);
    return LVP_OK;
}

static int by_rate(const void *a, const void *b)
{
    const struct lvp_forecast *x = a, *y = b;
    return (x->pruned.images_per_second < y->pruned.images_per_second) -
           (x->pruned.images_per_second > y->pruned.images_per_second);
}

enum lvp_status lvp_forecast_all(const struct lvp_forecast_input *input, struct lvp_forecast *forecasts,
                                 int *n_forecasts)
{
    int devices = lvp_cluster_devices(input->cluster), blocks = lvp_block_count(input->workload->config);
    *n_forecasts = 0;
    for (int stages = 1; stages <= devices && stages <= LVP_MAX_STAGES && stages <= blocks; stages *= 2) {
        if (*n_forecasts == LVP_MAX_FORECASTS) break;
        LVP_TRY(lvp_forecast(input, stages, devices / stages, &forecasts[*n_forecasts]));
        ++*n_forecasts;
    }
    qsort(forecasts, (size_t)*n_forecasts, sizeof *forecasts, by_rate);
    return LVP_OK;
}
