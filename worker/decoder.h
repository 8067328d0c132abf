// The decoder layers of a stage: LLaMA's (transformers LlamaDecoderLayer), on a ragged batch with paged KV.
//
//   h = x + Wo attention(rope(Wqkv rms(x)));  x = round(h + Wdown(act(Wgate rms(h)) * Wup rms(h)))
//
// Thread: the compute thread.
#ifndef LVP_WORKER_DECODER_H
#define LVP_WORKER_DECODER_H

#include "common/checkpoint.h"
#include "worker/layout.h"

struct lvp_decoder;

// Layers first..end of the checkpoint.
enum lvp_status lvp_decoder_create(struct lvp_backend *backend, const struct lvp_checkpoint *checkpoint, int first,
                                   int end, int max_rows, struct lvp_decoder **decoder) LVP_MUST_CHECK;
void lvp_decoder_destroy(struct lvp_decoder *decoder); // NULL is allowed

// One layer, in place: x [layout->n_rows, hidden] is the residual stream, positions [n_rows] the original positions.
void lvp_decoder_run_layer(struct lvp_decoder *decoder, int layer, int n_seqs, const struct lvp_depth_layout *layout,
                           const struct lvp_kv_cache *cache, const int32_t *positions, float *x);

// [n_rows, (heads + 2 kv_heads) * head_dim] of the last layer that ran: queries rotated, keys not, and values.
const float *lvp_decoder_qkv(const struct lvp_decoder *decoder);

#endif
