#include "coordinator/layout.h"

#include "common/plan.h"

enum lvp_status lvp_layout_workers(const struct lvp_layout_request *asked, int *n_workers)
{
    int stages = asked->stages > 0 ? asked->stages : asked->by_partition;
    int replicas = asked->replicas > 0 ? asked->replicas : 1;
    if (stages == 0) stages = 1;
    *n_workers = stages * replicas;
    return lvp_layout(asked, *n_workers, &stages, &replicas);
}

enum lvp_status lvp_layout(const struct lvp_layout_request *asked, int n_workers, int *stages, int *replicas)
{
    *stages = asked->stages > 0 ? asked->stages : asked->by_partition;
    *replicas = asked->replicas;
    if (asked->by_partition > 0 && *stages != asked->by_partition)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d, but --partition makes %d%s", *stages, asked->by_partition,
                        asked->by_partition == 1 ? ": nothing is pruned, so there is no prune point to cut at" : "");
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
