#include "common/plan.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int lvp_block_count(const struct lvp_model_config *config)
{
    return lvp_vit_layers_used(config) + config->text.layers + 4;
}

struct lvp_block lvp_block_at(const struct lvp_model_config *config, int index)
{
    int n_vit = lvp_vit_layers_used(config);
    assert(index >= 0 && index < lvp_block_count(config));
    if (index == 0) return (struct lvp_block){LVP_BLOCK_PATCH_EMBED, 0};
    if (index <= n_vit) return (struct lvp_block){LVP_BLOCK_VIT, index - 1};
    if (index == n_vit + 1) return (struct lvp_block){LVP_BLOCK_PROJECT, 0};
    if (index == n_vit + 2) return (struct lvp_block){LVP_BLOCK_MERGE, 0};
    int layer = index - n_vit - 3;
    if (layer < config->text.layers) return (struct lvp_block){LVP_BLOCK_DEC, layer};
    return (struct lvp_block){LVP_BLOCK_HEAD, 0};
}

int lvp_block_index(const struct lvp_model_config *config, enum lvp_block_kind kind, int layer)
{
    int n_vit = lvp_vit_layers_used(config);
    switch (kind) {
    case LVP_BLOCK_PATCH_EMBED:
        return 0;
    case LVP_BLOCK_VIT:
        return 1 + layer;
    case LVP_BLOCK_PROJECT:
        return n_vit + 1;
    case LVP_BLOCK_MERGE:
        return n_vit + 2;
    case LVP_BLOCK_DEC:
        return n_vit + 3 + layer;
    case LVP_BLOCK_HEAD:
        return n_vit + 3 + config->text.layers;
    }
    assert(false);
    return -1;
}

const char *lvp_block_name(const struct lvp_model_config *config, int index, char name[LVP_BLOCK_NAME])
{
    static const char *const names[] = {"patch_embed", "vit", "project", "merge", "dec", "head"};
    struct lvp_block block = lvp_block_at(config, index);
    if (block.kind == LVP_BLOCK_VIT || block.kind == LVP_BLOCK_DEC)
        (void)snprintf(name, LVP_BLOCK_NAME, "%s[%d]", names[block.kind], block.layer);
    else
        (void)snprintf(name, LVP_BLOCK_NAME, "%s", names[block.kind]);
    return name;
}

bool lvp_cut_allowed(const struct lvp_model_config *config, int cut)
{
    if (cut < 1 || cut >= lvp_block_count(config)) return false;
    int first_tap = config->feature_layers[0], last_tap = first_tap;
    for (int i = 1; i < config->n_feature_layers; i++) {
        if (config->feature_layers[i] < first_tap) first_tap = config->feature_layers[i];
        if (config->feature_layers[i] > last_tap) last_tap = config->feature_layers[i];
    }
    // The tap of f layers is the output of block f, so a cut before block f + 1 already lies behind it.
    return first_tap == last_tap || cut <= first_tap || cut > lvp_block_index(config, LVP_BLOCK_PROJECT, 0);
}

enum lvp_status lvp_partition_parse(const char *text, struct lvp_partition_choice *choice)
{
    *choice = (struct lvp_partition_choice){.mode = LVP_PARTITION_AUTO};
    if (strcmp(text, "auto") == 0) return LVP_OK;
    if (strcmp(text, "prune") == 0) {
        choice->mode = LVP_PARTITION_PRUNE;
        return LVP_OK;
    }
    choice->mode = LVP_PARTITION_CUTS;
    for (const char *at = text;; at++) {
        char *end;
        long cut = isdigit((unsigned char)*at) ? strtol(at, &end, 10) : -1;
        if (cut < 0 || (*end != ',' && *end != '\0'))
            return lvp_fail(LVP_ERR_USAGE, "--partition %s: give auto, prune or the block after each cut, like 24,34",
                            text);
        if (choice->n_cuts == LVP_MAX_STAGES - 1)
            return lvp_fail(LVP_ERR_USAGE, "--partition: at most %d stages", LVP_MAX_STAGES);
        choice->cuts[choice->n_cuts++] = cut > LVP_MAX_BLOCKS ? LVP_MAX_BLOCKS : (int)cut;
        at = end;
        if (*at == '\0') return LVP_OK;
    }
}

int lvp_partition_choice_stages(const struct lvp_partition_choice *choice, const struct lvp_prune_plan *plan)
{
    switch (choice->mode) {
    case LVP_PARTITION_AUTO:
        return 0;
    case LVP_PARTITION_PRUNE:
        return plan->n_points + 1;
    case LVP_PARTITION_CUTS:
        return choice->n_cuts + 1;
    }
    return 0;
}

enum lvp_status lvp_partition_resolve(const struct lvp_partition_choice *choice, const struct lvp_model_config *config,
                                      const struct lvp_prune_plan *plan, struct lvp_partition *partition)
{
    if (choice->mode == LVP_PARTITION_AUTO) return lvp_fail(LVP_ERR_INTERNAL, "--partition auto is the planner's");
    *partition = (struct lvp_partition){.n_stages = lvp_partition_choice_stages(choice, plan)};
    for (int s = 1; s < partition->n_stages; s++)
        partition->first[s] = choice->mode == LVP_PARTITION_CUTS
                                  ? choice->cuts[s - 1]
                                  : lvp_block_index(config, LVP_BLOCK_DEC, plan->after[s - 1] - 1) + 1;
    partition->first[partition->n_stages] = lvp_block_count(config);
    return lvp_partition_check(config, partition);
}

enum lvp_status lvp_partition_check(const struct lvp_model_config *config, const struct lvp_partition *partition)
{
    int n_blocks = lvp_block_count(config), n = partition->n_stages;
    if (n < 1 || n > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d: at least 1, at most %d", n, LVP_MAX_STAGES);
    if (partition->first[0] != 0 || partition->first[n] != n_blocks)
        return lvp_fail(LVP_ERR_USAGE, "the partition does not cover the %d blocks of the model", n_blocks);
    for (int s = 1; s < n; s++) {
        int cut = partition->first[s];
        if (cut < 1 || cut >= n_blocks)
            return lvp_fail(LVP_ERR_USAGE, "--partition: cut %d is outside 1..%d; `lvpipe plan` lists the blocks", cut,
                            n_blocks - 1);
        if (cut <= partition->first[s - 1])
            return lvp_fail(LVP_ERR_USAGE, "--partition: cut %d does not follow %d; the cuts must increase", cut,
                            partition->first[s - 1]);
        if (!lvp_cut_allowed(config, cut))
            return lvp_fail(
                LVP_ERR_USAGE,
                "--partition: no cut at %d: the features of several ViT layers are used together up to block %d", cut,
                lvp_block_index(config, LVP_BLOCK_PROJECT, 0));
    }
    return LVP_OK;
}
