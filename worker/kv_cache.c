#include "worker/kv_cache.h"

#include "common/checked.h"

#include <stdlib.h>

struct group {
    bool present; // this stage has layers of it
    int n_pages;
    int32_t *free_pages; // [n_pages] stack
    int n_free;
    int32_t *tables; // [max_seqs, max_pages]
    int *lengths;    // [max_seqs] slots filled
    int *reserved;   // [max_seqs] pages held
};

struct lvp_kv_cache {
    struct lvp_backend *backend;
    struct lvp_prune_counts prune;
    struct lvp_kv_cache_config config;
    int max_pages;
    struct group groups[LVP_MAX_DEPTHS];
    struct lvp_kv_layer *layers; // [end_layer - first_layer]
    bool *in_use;                // [max_seqs]
};

static enum lvp_status create_group(struct lvp_kv_cache *cache, struct group *group, int n_pages)
{
    size_t max_seqs = (size_t)cache->config.max_seqs;
    group->present = true;
    group->n_pages = n_pages;
    group->free_pages = calloc((size_t)n_pages + 1, sizeof *group->free_pages);
    group->tables = calloc(max_seqs * (size_t)cache->max_pages, sizeof *group->tables);
    group->lengths = calloc(max_seqs, sizeof *group->lengths);
    group->reserved = calloc(max_seqs, sizeof *group->reserved);
    if (group->free_pages == NULL || group->tables == NULL || group->lengths == NULL || group->reserved == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the KV block tables");
    group->n_free = n_pages;
    for (int p = 0; p < n_pages; p++) group->free_pages[p] = n_pages - 1 - p;
    return LVP_OK;
}

static enum lvp_status create_layer(struct lvp_kv_cache *cache, int n_pages, struct lvp_kv_layer *layer)
{
    struct lvp_backend *backend = cache->backend;
    size_t n_bytes = lvp_dtype_size(backend->dtype) * LVP_KV_PAGE;
    if (!lvp_checked_mul(n_bytes, (size_t)cache->config.kv_heads * (size_t)cache->config.head_dim, &n_bytes) ||
        !lvp_checked_mul(n_bytes, (size_t)n_pages, &n_bytes))
        return lvp_fail(LVP_ERR_MEMORY, "the KV cache of one layer does not fit the address space");
    LVP_TRY(backend->ops->alloc(backend, n_bytes, &layer->k));
    return backend->ops->alloc(backend, n_bytes, &layer->v);
}

enum lvp_status lvp_kv_cache_create(struct lvp_backend *backend, const struct lvp_prune_counts *prune,
                                    const struct lvp_kv_cache_config *config, struct lvp_kv_cache **result)
{
    enum lvp_status status = LVP_OK;
    struct lvp_kv_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the KV cache");
    cache->backend = backend;
    cache->prune = *prune;
    cache->config = *config;
    cache->max_pages = lvp_kv_pages(config->max_kv_len);
    int n_layers = config->end_layer - config->first_layer;
    cache->layers = calloc((size_t)n_layers + 1, sizeof *cache->layers);
    cache->in_use = calloc((size_t)config->max_seqs, sizeof *cache->in_use);
    if (cache->layers == NULL || cache->in_use == NULL) {
        status = lvp_fail(LVP_ERR_MEMORY, "out of memory for the KV cache");
        goto fail;
    }
    for (int i = 0; i < n_layers; i++) {
        int depth = lvp_depth_of_layer(prune, config->first_layer + i);
        struct group *group = &cache->groups[depth];
        if (!group->present) LVP_CHECK(create_group(cache, group, config->n_pages[depth]));
        LVP_CHECK(create_layer(cache, group->n_pages, &cache->layers[i]));
    }
    *result = cache;
    return LVP_OK;
fail:
    lvp_kv_cache_destroy(cache);
    return status;
}

void lvp_kv_cache_destroy(struct lvp_kv_cache *cache)
{
    if (cache == NULL) return;
    for (int i = 0; cache->layers != NULL && i < cache->config.end_layer - cache->config.first_layer; i++) {
        cache->backend->ops->free(cache->backend, cache->layers[i].k);
        cache->backend->ops->free(cache->backend, cache->layers[i].v);
    }
    for (int d = 0; d < LVP_MAX_DEPTHS; d++) {
        free(cache->groups[d].free_pages);
        free(cache->groups[d].tables);
        free(cache->groups[d].lengths);
        free(cache->groups[d].reserved);
    }
    free(cache->layers);
    free(cache->in_use);
    free(cache);
}

static int32_t *table_of(const struct lvp_kv_cache *cache, int slot, int depth)
{
    return cache->groups[depth].tables + (size_t)slot * (size_t)cache->max_pages;
}

enum lvp_status lvp_kv_cache_reserve(struct lvp_kv_cache *cache, const struct lvp_step_seq *seq)
{
    int slot = seq->slot;
    if (slot < 0 || slot >= cache->config.max_seqs)
        return lvp_fail(LVP_ERR_FORMAT, "sequence slot %d is out of range", slot);
    if (cache->in_use[slot]) return lvp_fail(LVP_ERR_INTERNAL, "sequence slot %d is in use", slot);
    for (int d = 0; d <= cache->prune.n_points; d++) {
        struct group *group = &cache->groups[d];
        if (!group->present) continue;
        int n = lvp_kv_pages(lvp_seq_kv_slots(&cache->prune, seq, d));
        if (n > group->n_free || n > cache->max_pages)
            return lvp_fail(LVP_ERR_INTERNAL, "layer group %d has %d free KV pages, a sequence needs %d", d,
                            group->n_free, n);
    }
    for (int d = 0; d <= cache->prune.n_points; d++) {
        struct group *group = &cache->groups[d];
        if (!group->present) continue;
        int n = lvp_kv_pages(lvp_seq_kv_slots(&cache->prune, seq, d));
        int32_t *table = table_of(cache, slot, d);
        for (int p = 0; p < n; p++) table[p] = group->free_pages[--group->n_free];
        group->reserved[slot] = n;
        group->lengths[slot] = 0;
    }
    cache->in_use[slot] = true;
    return LVP_OK;
}

void lvp_kv_cache_release(struct lvp_kv_cache *cache, int slot)
{
    if (slot < 0 || slot >= cache->config.max_seqs || !cache->in_use[slot]) return;
    for (int d = 0; d <= cache->prune.n_points; d++) {
        struct group *group = &cache->groups[d];
        if (!group->present) continue;
        const int32_t *table = table_of(cache, slot, d);
        for (int p = group->reserved[slot] - 1; p >= 0; p--) group->free_pages[group->n_free++] = table[p];
        group->reserved[slot] = 0;
        group->lengths[slot] = 0;
    }
    cache->in_use[slot] = false;
}

enum lvp_status lvp_kv_cache_append(struct lvp_kv_cache *cache, int slot, int depth, int n, int32_t *slots)
{
    struct group *group = &cache->groups[depth];
    if (slot < 0 || slot >= cache->config.max_seqs || !cache->in_use[slot])
        return lvp_fail(LVP_ERR_FORMAT, "sequence slot %d holds no sequence", slot);
    int length = group->lengths[slot];
    if (n > group->reserved[slot] * LVP_KV_PAGE - length || n > cache->config.max_kv_len - length)
        return lvp_fail(LVP_ERR_INTERNAL, "sequence slot %d grows past its KV reservation", slot);
    const int32_t *table = table_of(cache, slot, depth);
    for (int i = 0; i < n; i++) {
        int at = length + i;
        slots[i] = table[at / LVP_KV_PAGE] * LVP_KV_PAGE + at % LVP_KV_PAGE;
    }
    group->lengths[slot] = length + n;
    return LVP_OK;
}

bool lvp_kv_cache_has(const struct lvp_kv_cache *cache, int depth)
{
    return cache->groups[depth].present;
}

int lvp_kv_cache_length(const struct lvp_kv_cache *cache, int slot, int depth)
{
    return cache->groups[depth].lengths[slot];
}

const int32_t *lvp_kv_cache_pages(const struct lvp_kv_cache *cache, int slot, int depth)
{
    return table_of(cache, slot, depth);
}

int lvp_kv_cache_max_pages(const struct lvp_kv_cache *cache)
{
    return cache->max_pages;
}

struct lvp_kv_layer lvp_kv_cache_layer(const struct lvp_kv_cache *cache, int layer)
{
    return cache->layers[layer - cache->config.first_layer];
}
