// Scores of the vision rows at a prune point: gate [n_vision, 2], column 0 keep, column 1 remove.
//
// lvpruning (arXiv 2501.13652, section 3.2): two cross-attention blocks in which the surviving vision rows of a
// sequence attend to its prompt's text rows, then a gate. Per block, x = the vision rows at first:
//     Q = x Wq;  K = H_text Wk;  V = H_text Wv
//     O = softmax(Q K^T / sqrt(d / heads)) V Wo + Q
//     x = O + LN2(fc2(silu(fc1(LN1(O)))))
// random: a baseline, scores from a counter-based generator keyed by the sequence.
//
// Thread: the compute thread.
#ifndef LVP_WORKER_PRUNER_H
#define LVP_WORKER_PRUNER_H

#include "common/checkpoint.h"
#include "worker/layout.h"

struct lvp_pruner;

// Loads the modules of points first_point..end_point. `weights` may be NULL for a pruner without any.
enum lvp_status lvp_pruner_create(struct lvp_backend *backend, enum lvp_pruner_kind kind,
                                  const struct lvp_pruner_weights *weights, int hidden, int first_point, int end_point,
                                  int max_rows, struct lvp_pruner **pruner) LVP_MUST_CHECK;
void lvp_pruner_destroy(struct lvp_pruner *pruner); // NULL is allowed

// x [n_rows, hidden] is the residual stream at the end of the depth that `layout` describes; result valid until the
// next call.
const float *lvp_pruner_score(struct lvp_pruner *pruner, int point, const struct lvp_step *step,
                              const struct lvp_depth_layout *layout, const float *x);

#endif
