// Where the rows of a step are, at every depth: row ranges, KV slots, block tables and, for a prune point, which rows
// are text and which belong to which image. All of it follows from counts, so it is built on the host before a step
// computes and uploaded once. Only the original positions of survivors depend on data; they travel with the rows, and
// say how many rows of an image arrived: those that lie where the image was. Further on an image keeps its share, or
// all it has where that is less.
// Thread: the compute thread.
#ifndef LVP_WORKER_LAYOUT_H
#define LVP_WORKER_LAYOUT_H

#include "common/step.h"
#include "worker/backend.h"
#include "worker/kv_cache.h"

// One depth of one step. Arrays are backend memory, valid until the next build.
struct lvp_depth_layout {
    int n_rows;
    int max_kv_len, max_rows;   // of a sequence
    const int32_t *row_start;   // [n_seqs + 1]
    const int32_t *slots;       // [n_rows] KV slot of each row
    const int32_t *kv_len;      // [n_seqs]
    const int32_t *block_table; // [n_seqs, max_pages]
    // the sequences that are prefilled with images ("segments"), for the prune point that ends this depth
    int n_segments;
    int n_text, n_vision;                     // rows of those sequences
    const int32_t *text_row, *text_start;     // [n_text] row indices, [n_segments + 1]
    const int32_t *vision_row, *vision_start; // [n_vision] row indices, [n_segments + 1]
    int n_images;
    const int32_t *image_row, *image_len, *image_keep; // [n_images]
    const int32_t *host_image_len;                     // [n_images] image_len in host memory
    const int32_t *gate_start;                         // [n_images + 1] first of the image's rows among vision_row
    const int32_t *image_seq, *image_position;         // [n_images] its sequence, original position of its first token
};

// What `merge` needs to put the rows of depth 0 in place.
struct lvp_merge_layout {
    int n_text, n_vision;
    const int32_t *text_id, *text_to;       // [n_text]
    const int32_t *parked_from, *vision_to; // [n_vision] row of the parking space, row of the step
    const int32_t *positions;               // [n_rows] original positions
};

struct lvp_layout;

// `first_depth`..`last_depth`: depths of this stage's decoder layers; `merge`: the stage holds that block.
enum lvp_status lvp_layout_create(struct lvp_backend *backend, const struct lvp_prune_counts *prune, int first_depth,
                                  int last_depth, bool merge, int max_rows, int max_seqs, int max_pages,
                                  struct lvp_layout **layout) LVP_MUST_CHECK;
void lvp_layout_destroy(struct lvp_layout *layout); // NULL is allowed

// Reserves and appends in `cache` as it goes. `cache` may be NULL for a stage without decoder layers. positions
// [n_rows]: those that arrived with the rows; NULL at `merge`, where they are made. LVP_ERR_FORMAT for a step that does
// not fit the stage (too many rows, a slot or an id out of range) and for positions that cannot be.
enum lvp_status lvp_layout_build(struct lvp_layout *layout, const struct lvp_step *step,
                                 const struct lvp_model_config *config, int image_slots, const int32_t *positions,
                                 int n_rows, struct lvp_kv_cache *cache) LVP_MUST_CHECK;

const struct lvp_depth_layout *lvp_layout_depth(const struct lvp_layout *layout, int depth);
const struct lvp_merge_layout *lvp_layout_merge(const struct lvp_layout *layout);
// Not 0 for a step of decode rows only: steps with the same key do the same operations on the same memory.
uint64_t lvp_layout_key(const struct lvp_layout *layout);
// [n_seqs] last row of each sequence at the last depth of this stage.
const int32_t *lvp_layout_last_rows(const struct lvp_layout *layout);

#endif
