// The blocks of the model that one worker holds, and what it does with them: encode images (patch_embed..project), park
// projected rows at `merge`, and run steps (merge, decoder layers with their prune points, head). Pruning happens at
// the end of the layer the model names; when the stage ends there, only survivors leave it. Thread: the compute thread;
// creation may be on another before it starts.
#ifndef LVP_WORKER_STAGE_H
#define LVP_WORKER_STAGE_H

#include "common/checkpoint.h"
#include "common/plan.h"
#include "common/pruners.h"
#include "common/step.h"
#include "worker/backend.h"
#include "worker/pruner.h"

struct lvp_stage;

// Which blocks of the chain this stage holds. A stage may have only vision blocks, only decoder blocks, or both.
struct lvp_stage_range {
    bool patch_embed;
    int vit_first, vit_end; // ViT layers
    bool project;
    bool merge;             // token embedding and parking space
    int dec_first, dec_end; // decoder layers; for a stage without any, both are the layer the rows would meet next
    bool head;              // final norm, lm_head, sampling
};

// The range of blocks first..end of the chain (common/plan.h).
struct lvp_stage_range lvp_stage_range_of(const struct lvp_model_config *config, int first_block, int end_block);

struct lvp_stage_limits {
    int max_rows;                 // rows of a step at depth 0
    int max_seqs;                 // sequence slots
    int max_kv_len;               // prompt rows + generated tokens of one sequence
    int kv_pages[LVP_MAX_DEPTHS]; // pages of each layer group
    int max_images;               // images of one encode job
    int image_slots;              // places where an image's pixels wait before, and its rows after, encoding
};

struct lvp_stage_options {
    struct lvp_backend *backend;              // outlives the stage
    const struct lvp_checkpoint *checkpoint;  // only read while creating
    const struct lvp_pruner_weights *weights; // only read while creating; NULL where the pruner has none
    enum lvp_pruner_kind pruner;
    struct lvp_prune_counts prune;
    struct lvp_stage_range range;
    struct lvp_stage_limits limits;
};

// What lvp_cpu_backend_open needs to know before the stage exists.
void lvp_stage_backend_limits(const struct lvp_model_config *config, const struct lvp_prune_counts *prune,
                              int pruner_width, struct lvp_stage_range range, const struct lvp_stage_limits *limits,
                              struct lvp_backend_limits *result);

enum lvp_status lvp_stage_create(const struct lvp_stage_options *options, struct lvp_stage **stage) LVP_MUST_CHECK;
void lvp_stage_destroy(struct lvp_stage *stage); // NULL is allowed

bool lvp_stage_has_vision(const struct lvp_stage *stage);
bool lvp_stage_has_decoder(const struct lvp_stage *stage); // merge, decoder layers or head

// Bytes of one image where it enters (f32 pixels, or rows in the model's dtype) and leaves this stage's vision blocks.
size_t lvp_stage_image_in_bytes(const struct lvp_stage *stage);
size_t lvp_stage_image_out_bytes(const struct lvp_stage *stage);

// Runs the vision blocks on n images. `in` [n] pointers to each image's bytes. With `merge` in this stage the projected
// rows are parked in slots[i] and `out` is not touched; else `out` is the payload for the next stage, images one after
// the other.
enum lvp_status lvp_stage_encode(struct lvp_stage *stage, int n_images, const void *const *in, const int32_t *slots,
                                 void *out) LVP_MUST_CHECK;
// For a stage whose chain begins at `merge`: parks projected rows that came from the stage before. in: n images'
// payload.
enum lvp_status lvp_stage_park(struct lvp_stage *stage, int n_images, const void *in,
                               const int32_t *slots) LVP_MUST_CHECK;

// What a step leaves behind, host memory of the caller. Without `head`: x [n_rows, hidden] in the model's dtype and
// positions [n_rows], both with room for the most that may be. With `head`: tokens and logprobs [n_seqs].
struct lvp_step_output {
    int n_rows, n_vision_rows; // set by the stage
    void *x;
    int32_t *positions;
    int32_t *tokens;
    float *logprobs;
};

// x [n_rows, hidden] in the model's dtype and positions [n_rows] from the stage before; NULL and 0 at `merge`.
enum lvp_status lvp_stage_step(struct lvp_stage *stage, const struct lvp_step *step, const void *x,
                               const int32_t *positions, int n_rows, struct lvp_step_output *output) LVP_MUST_CHECK;

// What one prune point did to a step, for looking inside (lvpipe show). Host memory, valid during the call.
struct lvp_prune_event {
    int point;
    int n_scored;          // vision rows before the point
    const int32_t *scored; // [n_scored] their original positions
    const float *gate;     // [n_scored, 2] column 0 minus column 1 is the score; NULL: all stay, none was scored
    int n_rows;            // rows of the step behind the point, text among them
    const int32_t *rows;   // [n_rows] their original positions
};
typedef void lvp_prune_observer(void *context, const struct lvp_prune_event *event);

// Has every step with images tell `observer` about its prune points, in order. It costs copies of all of it.
enum lvp_status lvp_stage_observe(struct lvp_stage *stage, lvp_prune_observer *observer, void *context) LVP_MUST_CHECK;

// Seconds spent at prune points since the stage was created.
double lvp_stage_select_seconds(const struct lvp_stage *stage);

// Frees the KV of a finished sequence. An unknown slot is ignored.
void lvp_stage_release(struct lvp_stage *stage, int slot);

// For parity tests, after lvp_stage_step on a stage with `head`: logits [n_rows, vocab] of every row that the last
// decoder layer left (the rows of all depths' survivors), and those rows' original positions. Host memory, n_rows as
// returned.
enum lvp_status lvp_stage_all_logits(struct lvp_stage *stage, float *logits, int32_t *positions,
                                     int *n_rows) LVP_MUST_CHECK;

#endif
