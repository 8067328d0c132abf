// Scores of the vision rows at a prune point: gate [n_vision, 2], column 0 minus column 1, higher stays. By kind:
//   lvpruning       decision modules (worker/decision.h)
//   random          numbers from a counter-based generator keyed by the sequence
//   last-attention  what the prompt's last row attended to in the layer just computed
//   adaptprune      the same times a Gaussian around the image's centre, then a greedy choice of rows that lie apart:
//                   keep + 1 for the first that is chosen, 2 for the last
// Thread: the compute thread.
#ifndef LVP_WORKER_PRUNER_H
#define LVP_WORKER_PRUNER_H

#include "common/checkpoint.h"
#include "common/pruners.h"
#include "worker/layout.h"

// What is at hand at a prune point: the rows of a step behind the last layer of the depth that `layout` describes.
struct lvp_prune_view {
    const struct lvp_step *step;
    const struct lvp_depth_layout *layout;
    const float *x;            // [n_rows, hidden] residual stream
    const int32_t *positions;  // [n_rows] original ones
    const float *qkv;          // [n_rows, (heads + 2 kv_heads) * head_dim] of the layer: queries rotated, keys not
    struct lvp_kv_layer cache; // of the layer
    int max_pages;             // of its block tables
};

struct lvp_pruner;

// For points first_point..end_point - 1. `weights` may be NULL for a pruner without any, and are only read while
// creating. LVP_ERR_USAGE where the model lacks what the pruner needs.
enum lvp_status lvp_pruner_create(struct lvp_backend *backend, enum lvp_pruner_kind kind,
                                  const struct lvp_pruner_weights *weights, const struct lvp_model_config *config,
                                  int first_point, int end_point, int max_rows,
                                  struct lvp_pruner **pruner) LVP_MUST_CHECK;
void lvp_pruner_destroy(struct lvp_pruner *pruner); // NULL is allowed

// The result is valid until the next call.
const float *lvp_pruner_score(struct lvp_pruner *pruner, int point, const struct lvp_prune_view *view);

#endif
