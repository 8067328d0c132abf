// Where a model is cut and where it is pruned, as plain data: the same on the coordinator and on every worker.
// Every function is pure. Counts are rows (one token of one sequence), layers count from 0, prune points from 0.
#ifndef LVP_COMMON_PLAN_H
#define LVP_COMMON_PLAN_H

#include "common/step.h"

#include <stdint.h>

enum { LVP_MAX_STAGES = 64 };

// --- Pruning -------------------------------------------------------------------------------------------------------

// A share of an image's original tokens in units of 1e-12, in [0, LVP_KEEP_ONE]: decimal, so that 0.5 - 0.2 is 0.3.
typedef int64_t lvp_keep_share;
#define LVP_KEEP_ONE INT64_C(1000000000000)

enum { LVP_MAX_IMAGE_TOKENS = 1000000 }; // bound for keep counts: keeps share x tokens inside 64 bits

struct lvp_prune_plan {
    int n_points;                              // 0: nothing is pruned
    int after[LVP_MAX_PRUNE_POINTS];           // decoder layers that have run; strictly increasing, 1..text.layers
    lvp_keep_share keep[LVP_MAX_PRUNE_POINTS]; // share of the ORIGINAL count kept at the point
    bool counts_vary;                          // an image may keep less: the pruner decides; no pruner does yet
};

// The points where neither the user nor a weights file names any: L/32, L/4, L/2 rounded half up, at least 1, strictly
// increasing; a point past the last layer is left out (models of fewer than 3 layers).
void lvp_prune_default_points(int n_layers, struct lvp_prune_plan *plan);

// `--prune-after A,B,C`. LVP_ERR_USAGE unless strictly increasing within 1..n_layers. Leaves keep alone.
enum lvp_status lvp_prune_parse_points(const char *text, int n_layers, struct lvp_prune_plan *plan) LVP_MUST_CHECK;

// `--keep R` (R - 0.2 s at point s) or `--keep R,R,R` (one per point, as many as the plan has), clamped to [0, 1].
// plan->n_points must be set. LVP_ERR_USAGE for anything that is not a decimal number, or another number of them.
enum lvp_status lvp_prune_parse_keep(const char *text, struct lvp_prune_plan *plan) LVP_MUST_CHECK;

// Tokens of an image of `n_tokens` that survive point `point`: floor(share x n + 0.5), never more than the point before
// left. n_tokens: 0..LVP_MAX_IMAGE_TOKENS.
int lvp_keep_count(const struct lvp_prune_plan *plan, int point, int n_tokens);

// Layer group of a decoder layer: prune points passed before it runs, 0..n_points. Layer text.layers is the head.
// Sequences keep one block table per group, because KV lengths differ between groups.
int lvp_layer_group(const struct lvp_prune_plan *plan, int layer);

// Tokens of an image of `n_tokens` that decoder layer `layer` reads.
int lvp_vision_rows_at(const struct lvp_prune_plan *plan, int layer, int n_tokens);

// The plan as the stages use it, for images of `n_tokens`. A layer group here is a depth there.
void lvp_prune_counts(const struct lvp_prune_plan *plan, int n_tokens, struct lvp_prune_counts *counts);

// --- Chain of blocks -----------------------------------------------------------------------------------------------

// patch_embed, vit[0..Lv), project, merge, dec[0..L), head. Lv: the ViT layers that have to run. A prune point after
// layer a belongs to block dec[a - 1], so the stage that computed the layer prunes before it sends.
enum lvp_block_kind {
    LVP_BLOCK_PATCH_EMBED,
    LVP_BLOCK_VIT,
    LVP_BLOCK_PROJECT,
    LVP_BLOCK_MERGE,
    LVP_BLOCK_DEC,
    LVP_BLOCK_HEAD
};

enum { LVP_MAX_BLOCKS = 2 * LVP_MAX_LAYERS + 4, LVP_BLOCK_NAME = 24 };

struct lvp_block {
    enum lvp_block_kind kind;
    int layer; // of vit and dec, else 0
};

int lvp_block_count(const struct lvp_model_config *config);
struct lvp_block lvp_block_at(const struct lvp_model_config *config, int index); // index: 0..count-1
int lvp_block_index(const struct lvp_model_config *config, enum lvp_block_kind kind, int layer);
// "vit[3]", "project". Returns `name`.
const char *lvp_block_name(const struct lvp_model_config *config, int index, char name[LVP_BLOCK_NAME]);

// A cut before block `cut`: 1..count-1. Not allowed between the first feature-layer tap and `project` where the
// features of several layers are used, because only the residual stream crosses a cut.
bool lvp_cut_allowed(const struct lvp_model_config *config, int cut);

// --- Partition -----------------------------------------------------------------------------------------------------

// Stage s runs blocks first[s] .. first[s + 1] - 1; first[0] = 0, first[n_stages] = block count; no stage is empty.
struct lvp_partition {
    int n_stages;
    int first[LVP_MAX_STAGES + 1];
};

enum lvp_partition_mode { LVP_PARTITION_AUTO, LVP_PARTITION_PRUNE, LVP_PARTITION_CUTS };

// `--partition`, before the model is known.
struct lvp_partition_choice {
    enum lvp_partition_mode mode;
    int n_cuts;                   // of LVP_PARTITION_CUTS
    int cuts[LVP_MAX_STAGES - 1]; // first block after each cut
};

// auto, prune or A,B,C. LVP_ERR_USAGE for anything else.
enum lvp_status lvp_partition_parse(const char *text, struct lvp_partition_choice *choice) LVP_MUST_CHECK;

// Stages that the choice asks for by itself; 0 for auto.
int lvp_partition_choice_stages(const struct lvp_partition_choice *choice, const struct lvp_prune_plan *plan);

// The partition of a choice other than auto (which is the planner's). LVP_ERR_USAGE naming the cut that is out of
// order, outside the chain or not allowed.
enum lvp_status lvp_partition_resolve(const struct lvp_partition_choice *choice, const struct lvp_model_config *config,
                                      const struct lvp_prune_plan *plan,
                                      struct lvp_partition *partition) LVP_MUST_CHECK;

// LVP_ERR_USAGE unless the partition is whole, in order and cut where it is allowed. For partitions from another rank
// too.
enum lvp_status lvp_partition_check(const struct lvp_model_config *config,
                                    const struct lvp_partition *partition) LVP_MUST_CHECK;

#endif
