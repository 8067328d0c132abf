// What a stage consists of; shared by stage_create.c and stage.c. Not for others.
#ifndef LVP_WORKER_STAGE_STATE_H
#define LVP_WORKER_STAGE_STATE_H

#include "worker/decoder.h"
#include "worker/kv_cache.h"
#include "worker/stage.h"
#include "worker/vision.h"

struct lvp_head {
    float *norm;
    struct lvp_linear *lm_head;
    float *rows;                         // [max_seqs, C] last rows, then normed
    float *logits;                       // [max_seqs, vocab]
    int32_t *tokens;                     // [max_seqs]
    float *logprobs;                     // [max_seqs]
    struct lvp_draw *draws, *host_draws; // [max_seqs], the second one host memory
};

struct lvp_stage {
    struct lvp_backend *backend;
    struct lvp_model_config config;
    struct lvp_prune_counts prune;
    struct lvp_stage_range range;
    struct lvp_stage_limits limits;
    enum lvp_pruner_kind pruner_kind;
    int depth_in, depth_out; // prune points passed by the rows that enter and leave

    struct lvp_vision *vision;
    float *vision_in, *vision_out; // [max_images, elements of one image]
    float *parked;                 // [image_slots * tokens, C], with merge

    void *embedding; // [vocab, C] in the model's dtype, with merge
    struct lvp_decoder *decoder;
    struct lvp_kv_cache *cache;
    struct lvp_pruner *pruner;
    struct lvp_layout *layout;
    struct lvp_head head;
    float *x[2];           // [max_rows, C] residual stream; pruning copies from one to the other
    int32_t *positions[2]; // [max_rows]
    int32_t *survivors;    // [max_rows]
    int current;           // which of x and positions holds the rows
    int n_rows;
    double select_seconds; // so far

    lvp_prune_observer *observer; // or NULL
    void *observer_context;
    int32_t *seen_rows; // host: [3, max_rows] positions before, vision rows, positions behind a point
    float *seen_gate;   // host: [max_rows, 2]
};

static inline struct lvp_vision_range lvp_stage_vision_range(struct lvp_stage_range range)
{
    return (struct lvp_vision_range){range.patch_embed, range.vit_first, range.vit_end, range.project};
}

static inline bool lvp_range_has_vision(struct lvp_stage_range range)
{
    return range.patch_embed || range.vit_end > range.vit_first || range.project;
}

static inline bool lvp_range_has_decoder(struct lvp_stage_range range)
{
    return range.merge || range.dec_end > range.dec_first || range.head;
}

#endif
