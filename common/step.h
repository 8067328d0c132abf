// What one step computes, as every stage is told: a ragged batch of sequences, each either prefilled whole or decoded
// by one row. Everything about shapes follows from it: keep ratios are fixed shares, so a stage knows each sequence's
// row count at every depth without asking, and a receiver knows the size of what will arrive. Where counts vary by
// image, the shares are the most that an image keeps: memory is reserved for that, and what is there follows from the
// positions that arrive with the rows (worker/layout.h).
//
// Depth d counts the prune points passed: depth 0 before the first, n_points after the last. A layer group is the
// decoder layers of one depth; a sequence's KV cache has its own length in each.
#ifndef LVP_COMMON_STEP_H
#define LVP_COMMON_STEP_H

#include "common/model_config.h"

#include <stdint.h>

enum { LVP_MAX_DEPTHS = LVP_MAX_PRUNE_POINTS + 1 };

// Prune points of a model and the rows one image keeps at each depth, or the most that it keeps.
struct lvp_prune_counts {
    int n_points;
    int after[LVP_MAX_PRUNE_POINTS]; // decoder layers that have run, strictly increasing
    int rows[LVP_MAX_DEPTHS];        // vision rows of one image at depth d; rows[0] = vision tokens
    bool vary;                       // an image may keep fewer than rows[d], d > 0
};

struct lvp_step_seq {
    int slot; // the sequence's place in the stages' tables, [0, max_seqs)
    bool prefill;
    int max_new;                // prefill: tokens that may be generated, for the KV reservation
    int position;               // decode: original position of the one row
    int n_ids;                  // prefill: ids of the prompt with one image token per image; decode: 1
    const int32_t *ids;         // [n_ids]
    int n_images;               // prefill: image tokens among ids
    const int32_t *image_slots; // [n_images] where the projected rows are parked at `merge`
    uint64_t random_key;        // of the `random` pruner: from seed and sample id
    // sampling at `head`
    float temperature, top_p;
    uint64_t sampling_key;
    uint32_t token_index; // 0 for the first generated token
    int32_t scored;       // token whose log-probability is wanted, plus 1; 0: the chosen one's
};

struct lvp_step {
    uint64_t number; // counts from 1 in one replica, in issue order
    int n_seqs;
    const struct lvp_step_seq *seqs; // [n_seqs]
};

// Depth of decoder layer `layer` (from 0): prune points that have been passed when it runs.
int lvp_depth_of_layer(const struct lvp_prune_counts *prune, int layer);

// Rows of a sequence in this step at a depth; where counts vary, the most.
int lvp_seq_rows(const struct lvp_prune_counts *prune, const struct lvp_step_seq *seq, int depth);

// Rows of the whole step at a depth, likewise.
int lvp_step_rows(const struct lvp_prune_counts *prune, const struct lvp_step *step, int depth);

// KV slots a sequence reserves at a depth when it is prefilled: its rows there and every token that may follow.
int lvp_seq_kv_slots(const struct lvp_prune_counts *prune, const struct lvp_step_seq *seq, int depth);

#endif
