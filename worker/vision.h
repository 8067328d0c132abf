// The vision side of the chain: patch_embed, vit[first..end), project. CLIP's pre-norm transformer
// (transformers CLIPVisionModel), the chosen layers' patch rows, and LLaVA's two-layer projector.
//
//   patch_embed  pixels [3, S, S] -> unfold -> linear -> class row, positions -> LayerNorm      -> [P + 1, V]
//   vit[i]       h = x + O(attention(LN1 x));  x = round(h + fc2(act(fc1(LN2 h))))              -> [P + 1, V]
//   project      rows of the feature layers, side by side -> linear -> act -> linear            -> [tokens, C]
//
// Thread: the compute thread.
#ifndef LVP_WORKER_VISION_H
#define LVP_WORKER_VISION_H

#include "common/checkpoint.h"
#include "worker/backend.h"

struct lvp_vision;

// Blocks of this stage. A feature layer that is tapped must lie in the range of the stage that projects.
struct lvp_vision_range {
    bool patch_embed;
    int vit_first, vit_end;
    bool project;
};

enum lvp_status lvp_vision_create(struct lvp_backend *backend, const struct lvp_checkpoint *checkpoint,
                                  struct lvp_vision_range range, int max_images,
                                  struct lvp_vision **vision) LVP_MUST_CHECK;
void lvp_vision_destroy(struct lvp_vision *vision); // NULL is allowed

// f32 elements of one image where it enters and leaves this stage.
size_t lvp_vision_in_elements(const struct lvp_model_config *config, struct lvp_vision_range range);
size_t lvp_vision_out_elements(const struct lvp_model_config *config, struct lvp_vision_range range);

// in: pixels or [n_images * (P + 1), V]; out: [n_images * (P + 1), V] or [n_images * tokens, C]. Backend memory; in and
// out do not overlap; in is overwritten.
void lvp_vision_run(struct lvp_vision *vision, int n_images, float *in, float *out);

#endif
