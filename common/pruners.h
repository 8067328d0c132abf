// The pruners there are, by name: where each prunes and how much it keeps where the user does not say, and what it
// needs of a model. How each scores and chooses is the worker's part (worker/pruner.h). Every function is pure.
//
//   lvpruning       decision modules trained for the checkpoint (arXiv 2501.13652)
//   random          a baseline at the same points and counts
//   last-attention  what the prompt's last row attends to (FastV, arXiv 2403.06764)
//   adaptprune      the same, weighted by place and spread over the image (arXiv 2503.08019)
#ifndef LVP_COMMON_PRUNERS_H
#define LVP_COMMON_PRUNERS_H

#include "common/plan.h"

enum lvp_pruner_kind {
    LVP_PRUNER_NONE,
    LVP_PRUNER_LVPRUNING,
    LVP_PRUNER_RANDOM,
    LVP_PRUNER_LAST_ATTENTION,
    LVP_PRUNER_ADAPTPRUNE,
    LVP_PRUNER_COUNT
};

struct lvp_pruner_info {
    const char *name;
    const char *keep; // default of --keep; NULL: nothing is pruned
    int after;        // default prune point, in decoder layers that have run; 0: the three of lvp_prune_default_points
    bool needs_weights; // decision modules
    bool needs_grid;    // an image's tokens lie on a square grid
};

extern const struct lvp_pruner_info lvp_pruners[LVP_PRUNER_COUNT]; // by enum lvp_pruner_kind

const char *lvp_pruner_name(enum lvp_pruner_kind kind);

// LVP_ERR_USAGE listing the names.
enum lvp_status lvp_pruner_find(const char *name, enum lvp_pruner_kind *kind) LVP_MUST_CHECK;

// LVP_ERR_USAGE where the model lacks what the pruner needs.
enum lvp_status lvp_pruner_check(enum lvp_pruner_kind kind, const struct lvp_model_config *config) LVP_MUST_CHECK;

// Points of a pruner where neither the user nor a weights file names any. A single point is moved up where the model
// would have no layer left behind it.
void lvp_pruner_default_points(enum lvp_pruner_kind kind, int n_layers, struct lvp_prune_plan *plan);

// Tokens along a side of an image's square grid; 0 where the tokens do not form one.
int lvp_token_grid(int n_tokens);

#endif
