// A LLaVA folder ready to be loaded: its configuration and, for every weight of the model, the tensor in the mapped
// files, whatever key layout the folder uses. Each rank opens the folder and touches only the tensors of its own
// blocks.
#ifndef LVP_COMMON_CHECKPOINT_H
#define LVP_COMMON_CHECKPOINT_H

#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/weight_pool.h"

// Weights by role. The shapes are [out, in] as PyTorch stores them; C = text.hidden, V = vision.hidden.
enum lvp_weight {
    // embeddings of the ViT; not per layer
    LVP_W_VIT_CLASS,      // [V]
    LVP_W_VIT_PATCH,      // [V, 3, patch, patch], no bias
    LVP_W_VIT_POSITION,   // [patches + 1, V]
    LVP_W_VIT_PRE_NORM_W, // [V]
    LVP_W_VIT_PRE_NORM_B, // [V]
    // per ViT layer
    LVP_W_VIT_NORM1_W,
    LVP_W_VIT_NORM1_B, // [V]
    LVP_W_VIT_Q,
    LVP_W_VIT_Q_B,
    LVP_W_VIT_K,
    LVP_W_VIT_K_B,
    LVP_W_VIT_V,
    LVP_W_VIT_V_B, // [V, V], [V]
    LVP_W_VIT_O,
    LVP_W_VIT_O_B, // [V, V], [V]
    LVP_W_VIT_NORM2_W,
    LVP_W_VIT_NORM2_B, // [V]
    LVP_W_VIT_FC1,
    LVP_W_VIT_FC1_B,
    LVP_W_VIT_FC2,
    LVP_W_VIT_FC2_B, // [mlp, V], [mlp], [V, mlp], [V]
    // projector; biases absent without projector_bias
    LVP_W_PROJ1,
    LVP_W_PROJ1_B,
    LVP_W_PROJ2,
    LVP_W_PROJ2_B, // [C, feature width], [C], [C, C], [C]
    // token embedding, final norm, output head
    LVP_W_EMBED,      // [vocab, C]
    LVP_W_FINAL_NORM, // [C]
    LVP_W_LM_HEAD,    // [vocab, C]; the embedding where the file has none
    // per decoder layer; biases absent unless the config has them
    LVP_W_NORM1,
    LVP_W_NORM2, // [C]
    LVP_W_Q,
    LVP_W_Q_B,
    LVP_W_K,
    LVP_W_K_B,
    LVP_W_V,
    LVP_W_V_B, // [heads * head_dim, C], [kv_heads * head_dim, C] twice
    LVP_W_O,
    LVP_W_O_B, // [C, heads * head_dim]
    LVP_W_GATE,
    LVP_W_GATE_B,
    LVP_W_UP,
    LVP_W_UP_B, // [mlp, C]
    LVP_W_DOWN,
    LVP_W_DOWN_B, // [C, mlp]
    LVP_W_COUNT
};

struct lvp_checkpoint;

// Opens config, single or sharded safetensors; checks that every weight the model computes with is there with the right
// shape and a float dtype (LVP_ERR_MODEL names the tensor, what is wrong and the file). Tensors that need no loading
// are ignored; others that are not known are named in one warning.
enum lvp_status lvp_checkpoint_open(const char *dir, struct lvp_checkpoint **checkpoint) LVP_MUST_CHECK;

// A model of this configuration with random weights, in memory. Its tensors are bf16.
enum lvp_status lvp_checkpoint_synthetic(const struct lvp_model_config *config,
                                         struct lvp_checkpoint **checkpoint) LVP_MUST_CHECK;
void lvp_checkpoint_close(struct lvp_checkpoint *checkpoint); // NULL is allowed

const struct lvp_model_config *lvp_checkpoint_config(const struct lvp_checkpoint *checkpoint);

// The tensor of a role; `layer` counts from 0 for per-layer roles and is ignored for the others. NULL: the model has
// none (an absent bias).
const struct lvp_tensor_view *lvp_checkpoint_weight(const struct lvp_checkpoint *checkpoint, enum lvp_weight weight,
                                                    int layer);

// Hash that tells two checkpoints apart: file headers, sizes and evenly spaced samples of the bytes (not every byte, so
// that a 13 GB model starts at once), config and tokenizer files whole. 32 hex digits and NUL.
enum lvp_status lvp_checkpoint_hash(const struct lvp_checkpoint *checkpoint, char hash[33]) LVP_MUST_CHECK;
// Of the configuration and template files alone, to tell what differs where the other one does.
enum lvp_status lvp_checkpoint_config_hash(const struct lvp_checkpoint *checkpoint, char hash[33]) LVP_MUST_CHECK;

// Decision modules of LVPruning (safetensors; format in docs/formats.md). Views into the mapped file.
struct lvp_pruner_block {
    const struct lvp_tensor_view *q, *k, *v, *o;     // [d, C or d], [d, C], [d, C], [d, d]
    const struct lvp_tensor_view *norm1_w, *norm1_b; // [d]
    const struct lvp_tensor_view *fc1_w, *fc1_b;     // [2d, d], [2d]
    const struct lvp_tensor_view *fc2_w, *fc2_b;     // [d, 2d], [d]
    const struct lvp_tensor_view *norm2_w, *norm2_b; // [d]
};

struct lvp_pruner_weights {
    struct lvp_safetensors *file;           // owned; NULL for synthetic ones
    struct lvp_weight_pool *pool;           // owned; of synthetic ones,
    struct lvp_tensor_view *views;          // and their tensors
    int n_points;                           // S
    int after_layers[LVP_MAX_PRUNE_POINTS]; // strictly increasing, 1..text.layers
    int heads;                              // divides inner_width
    int inner_width;                        // d
    struct lvp_pruner_block blocks[LVP_MAX_PRUNE_POINTS][2];
    const struct lvp_tensor_view *gate[LVP_MAX_PRUNE_POINTS]; // [2, d]: row 0 keep, row 1 remove
    char hash[33];                                            // of the whole file
};

enum lvp_status lvp_pruner_weights_open(const char *path, const struct lvp_model_config *config,
                                        struct lvp_pruner_weights *weights) LVP_MUST_CHECK;
// Modules of inner width `width` with random weights for prune points after these layers.
enum lvp_status lvp_pruner_weights_synthetic(const struct lvp_model_config *config, int width, int n_points,
                                             const int *after, struct lvp_pruner_weights *weights) LVP_MUST_CHECK;
void lvp_pruner_weights_close(struct lvp_pruner_weights *weights); // safe on a zeroed struct

#endif
