// Paged KV of one stage. Pages of LVP_KV_PAGE slots belong to a layer group (the layers between two prune points): a
// page index stands for the same page in every layer of its group, since a sequence has one length there. A sequence
// reserves at prefill all it can ever need, so decoding never waits for memory and nothing is preempted. Thread: the
// compute thread.
#ifndef LVP_WORKER_KV_CACHE_H
#define LVP_WORKER_KV_CACHE_H

#include "common/step.h"
#include "worker/backend.h"

struct lvp_kv_cache;

struct lvp_kv_cache_config {
    int first_layer, end_layer;  // decoder layers of this stage
    int max_seqs;                // sequence slots
    int max_kv_len;              // slots of the longest sequence
    int n_pages[LVP_MAX_DEPTHS]; // pages in each group's pool
    int kv_heads, head_dim;
};

enum lvp_status lvp_kv_cache_create(struct lvp_backend *backend, const struct lvp_prune_counts *prune,
                                    const struct lvp_kv_cache_config *config,
                                    struct lvp_kv_cache **cache) LVP_MUST_CHECK;
void lvp_kv_cache_destroy(struct lvp_kv_cache *cache); // NULL is allowed

// Takes pages for a sequence's whole life. LVP_ERR_INTERNAL when the slot is in use or a pool is short: admission on
// the coordinator counts the same pages, so neither can happen to a correct run.
enum lvp_status lvp_kv_cache_reserve(struct lvp_kv_cache *cache, const struct lvp_step_seq *seq) LVP_MUST_CHECK;
void lvp_kv_cache_release(struct lvp_kv_cache *cache, int slot); // a free slot is allowed

// Appends n rows to a sequence at a depth; their cache slots go to slots[0..n). LVP_ERR_INTERNAL beyond the
// reservation.
enum lvp_status lvp_kv_cache_append(struct lvp_kv_cache *cache, int slot, int depth, int n,
                                    int32_t *slots) LVP_MUST_CHECK;

// Whether this stage has decoder layers of that depth.
bool lvp_kv_cache_has(const struct lvp_kv_cache *cache, int depth);
int lvp_kv_cache_length(const struct lvp_kv_cache *cache, int slot, int depth);
// Block table of a sequence at a depth: [lvp_kv_cache_max_pages] page indices, host memory.
const int32_t *lvp_kv_cache_pages(const struct lvp_kv_cache *cache, int slot, int depth);
int lvp_kv_cache_max_pages(const struct lvp_kv_cache *cache);
struct lvp_kv_layer lvp_kv_cache_layer(const struct lvp_kv_cache *cache, int layer);

static inline int lvp_kv_pages(int slots)
{
    return (slots + LVP_KV_PAGE - 1) / LVP_KV_PAGE;
}

#endif
