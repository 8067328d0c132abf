// How many stages and replicas a number of ranks makes.
#include "coordinator/caption.h"

static int asked_stages(const struct lvp_caption_options *options)
{
    int by_partition = lvp_partition_choice_stages(&options->partition, &options->prune);
    return options->stages > 0 ? options->stages : by_partition;
}

enum lvp_status lvp_caption_workers(const struct lvp_caption_options *options, int *n_workers)
{
    int stages = asked_stages(options), replicas = options->replicas > 0 ? options->replicas : 1;
    if (stages == 0) stages = 1;
    *n_workers = stages * replicas;
    return lvp_caption_layout(options, *n_workers, &stages, &replicas);
}

enum lvp_status lvp_caption_layout(const struct lvp_caption_options *options, int n_workers, int *stages, int *replicas)
{
    int by_partition = lvp_partition_choice_stages(&options->partition, &options->prune);
    *stages = asked_stages(options);
    *replicas = options->replicas;
    if (by_partition > 0 && *stages != by_partition)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d, but the partition has %d stages: leave --stages out", *stages,
                        by_partition);
    if (*stages == 0 && *replicas == 0) *replicas = 1;
    if (*stages == 0 && n_workers % *replicas == 0) *stages = n_workers / *replicas;
    if (*stages > 0 && *replicas == 0 && n_workers % *stages == 0) *replicas = n_workers / *stages;
    if (*stages > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "%d stages are more than the %d supported", *stages, LVP_MAX_STAGES);
    if (*stages > 0 && *replicas > 0 && *stages * *replicas == n_workers) return LVP_OK;
    int unit = *stages > 0 ? *stages : *replicas, rest = *stages > 0 && *replicas > 0 ? *replicas : 0;
    if (rest > 0)
        return lvp_fail(LVP_ERR_USAGE, "%d stages x %d replicas need %d ranks (rank 0 coordinates), %d were started",
                        *stages, rest, *stages * rest + 1, n_workers + 1);
    int fewer = n_workers / unit * unit;
    const char *what = *stages > 0 ? "pipelines" : "replicas";
    if (fewer == 0)
        return lvp_fail(LVP_ERR_USAGE, "%d ranks are too few for %s of %d: start %d ranks (rank 0 coordinates)",
                        n_workers + 1, what, unit, unit + 1);
    return lvp_fail(LVP_ERR_USAGE, "%d ranks do not divide into %s of %d: start %d or %d ranks (rank 0 coordinates)",
                    n_workers + 1, what, unit, fewer + 1, fewer + unit + 1);
}
