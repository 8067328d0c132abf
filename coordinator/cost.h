// What one request (one image, a prompt, its answer) costs in each block of the model, counted exactly from the shapes.
// FLOPs count 2 per multiply-add of matrix products; norms, activations and RoPE are left out (below 1 %). Bytes are
// decimal counts of what is stored or sent. Pure functions, no ownership.
#ifndef LVP_COORDINATOR_COST_H
#define LVP_COORDINATOR_COST_H

#include "common/plan.h"
#include "common/wire.h"

enum {
    LVP_HOP_ROW_BYTES = 4, // position of each row of a language-model hop; vision rows need none
    LVP_COST_KV_PAGE = 16  // KV slots in a page, as worker/backend.h
};

struct lvp_workload {
    const struct lvp_model_config *config; // borrowed
    struct lvp_prune_plan prune;           // n_points 0: dense
    int pruner_width;                      // inner width d of the decision modules; 0: the pruner has no weights
    int text_tokens;                       // prompt rows that are not vision rows, bos included
    int new_tokens;                        // generated per request; the first one comes out of the prefill
    enum lvp_dtype dtype;                  // of residual stream, KV and embedding
    enum lvp_dtype weights;                // of the linear layers: dtype or LVP_INT8
};

// The bytes of a `payload` are x; `framing` is header and row arrays.
struct lvp_hop_bytes {
    int64_t payload, framing;
};

struct lvp_block_cost {
    double prefill_flops;             // really executed: attention included, lm_head on one row
    double decode_flops;              // all decode steps of the request
    int64_t weight_bytes;             // held by the stage, decision modules included
    int64_t decode_weight_bytes;      // of them, read by every decode step
    int64_t kv_bytes;                 // reserved for prompt and answer, whole pages
    int64_t rows_out;                 // rows of the prefill that leave the block
    struct lvp_hop_bytes prefill_out; // over a cut right after the block
    struct lvp_hop_bytes decode_out;  // the same for one decode step; 0 before `merge`, which decode enters at
};

// LVP_ERR_USAGE where prompt and answer do not fit the model's context.
enum lvp_status lvp_workload_check(const struct lvp_workload *workload) LVP_MUST_CHECK;

// Costs of one block; index as in the chain.
struct lvp_block_cost lvp_block_cost(const struct lvp_workload *workload, int index);

// FLOPs of parts of a decoder layer, by what decides their rate.
double lvp_layer_linear_flops(const struct lvp_text_config *text, double rows);
double lvp_layer_attention_flops(const struct lvp_text_config *text, double rows); // one prompt, causal
double lvp_layer_kv_slot_bytes(const struct lvp_text_config *text, enum lvp_dtype dtype);
// Of the decision module on an image's rows and the prompt's.
double lvp_module_flops(const struct lvp_workload *workload, double n_vision, double n_text);
// The prune point that runs right after decoder layer `layer`; -1: none.
int lvp_point_after(const struct lvp_prune_plan *plan, int layer);

// Sum over blocks first..end-1; rows_out, prefill_out and decode_out are those of the last block (0 after the head:
// only tokens leave it).
struct lvp_block_cost lvp_range_cost(const struct lvp_workload *workload, int first, int end);

// Prefill FLOPs by the LVPruning paper's rule, recovered from its figures: linear layers only, every ViT layer of the
// checkpoint (computed or not), lm_head on every remaining row, decision modules on what the point before left.
double lvp_paper_flops(const struct lvp_workload *workload);

// The same workload without pruning.
struct lvp_workload lvp_dense_workload(const struct lvp_workload *workload);

// KV bytes that the rows of a prompt really fill in every decoder layer, without pages and answer: the paper's figure.
int64_t lvp_prompt_kv_bytes(const struct lvp_workload *workload);

// Decode steps of a request: the first token comes out of the prefill.
static inline int lvp_decode_steps(const struct lvp_workload *workload)
{
    return workload->new_tokens > 1 ? workload->new_tokens - 1 : 0;
}

#endif
