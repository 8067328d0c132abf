// LVPruning's decision modules (arXiv 2501.13652, section 3.2), one per prune point: two cross-attention blocks in
// which the surviving vision rows of a sequence attend to its prompt's text rows, then a gate. Per block, x = the
// vision rows at first:
//     Q = x Wq;  K = H_text Wk;  V = H_text Wv
//     O = softmax(Q K^T / sqrt(d / heads)) V Wo + Q
//     x = O + LN2(fc2(silu(fc1(LN1(O)))))
// Thread: the compute thread.
#ifndef LVP_WORKER_DECISION_H
#define LVP_WORKER_DECISION_H

#include "common/checkpoint.h"
#include "worker/layout.h"

struct lvp_decision;

// Loads the modules of points first_point..end_point - 1. `weights` are only read while creating.
enum lvp_status lvp_decision_create(struct lvp_backend *backend, const struct lvp_pruner_weights *weights, int hidden,
                                    int first_point, int end_point, int max_rows,
                                    struct lvp_decision **decision) LVP_MUST_CHECK;
void lvp_decision_destroy(struct lvp_decision *decision); // NULL is allowed

// h [n_rows, hidden]: the residual stream. gate [n_vision, 2]: column 0 keep, column 1 remove.
void lvp_decision_score(struct lvp_decision *decision, int point, const struct lvp_depth_layout *layout, const float *h,
                        float *gate);

#endif
