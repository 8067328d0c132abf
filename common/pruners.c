#include "common/pruners.h"

#include "common/text.h"

const struct lvp_pruner_info lvp_pruners[LVP_PRUNER_COUNT] = {
    [LVP_PRUNER_NONE] = {.name = "none"},
    [LVP_PRUNER_LVPRUNING] = {.name = "lvpruning", .keep = "0.5", .needs_weights = true},
    [LVP_PRUNER_RANDOM] = {.name = "random", .keep = "0.5"},
    [LVP_PRUNER_LAST_ATTENTION] = {.name = "last-attention", .keep = "0.5", .after = 2},
    [LVP_PRUNER_ADAPTPRUNE] = {.name = "adaptprune", .keep = "0.1", .after = 2, .needs_grid = true},
};

const char *lvp_pruner_name(enum lvp_pruner_kind kind)
{
    return kind >= 0 && kind < LVP_PRUNER_COUNT ? lvp_pruners[kind].name : "unknown";
}

enum lvp_status lvp_pruner_find(const char *name, enum lvp_pruner_kind *kind)
{
    const char *names[LVP_PRUNER_COUNT + 1] = {NULL};
    int index = 0;
    for (int i = 0; i < LVP_PRUNER_COUNT; i++) names[i] = lvp_pruners[i].name;
    LVP_TRY(lvp_choose_name("--pruner", name, names, &index));
    *kind = (enum lvp_pruner_kind)index;
    return LVP_OK;
}

int lvp_token_grid(int n_tokens)
{
    int side = 0;
    while ((int64_t)side * side < n_tokens) side++;
    return side * side == n_tokens ? side : 0;
}

enum lvp_status lvp_pruner_check(enum lvp_pruner_kind kind, const struct lvp_model_config *config)
{
    int n_tokens = lvp_vision_tokens(config);
    if (!lvp_pruners[kind].needs_grid || lvp_token_grid(n_tokens) > 0) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--pruner %s needs an image's tokens on a square grid; this model has %d of them%s",
                    lvp_pruners[kind].name, n_tokens,
                    n_tokens == lvp_patch_count(config) + 1 ? ", patches and the class token" : "");
}

void lvp_pruner_default_points(enum lvp_pruner_kind kind, int n_layers, struct lvp_prune_plan *plan)
{
    int after = lvp_pruners[kind].after;
    if (after == 0) {
        lvp_prune_default_points(n_layers, plan);
        return;
    }
    if (after >= n_layers) after = n_layers > 1 ? n_layers - 1 : 1;
    plan->n_points = 1;
    plan->after[0] = after;
}
