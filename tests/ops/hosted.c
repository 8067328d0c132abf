#include "tests/ops/hosted.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

enum { HOSTED_BUFFERS = 16 };

struct hosted {
    struct lvp_backend base; // first
    struct lvp_backend *inner;
    void *device[HOSTED_BUFFERS]; // of the operation under way
    int n;
};

struct hosted_linear {
    struct lvp_linear *inner;
    size_t out, in;
};

static struct hosted *hosted_of(struct lvp_backend *backend)
{
    return (struct hosted *)backend;
}

// A copy of n bytes on the device, which ends with the operation; NULL of NULL.
static void *hosted_put(struct hosted *h, const void *host, size_t n)
{
    void *memory = NULL;
    if (host == NULL) return NULL;
    assert_true(h->n < HOSTED_BUFFERS);
    assert_int_equal(h->inner->ops->alloc(h->inner, n, &memory), LVP_OK);
    h->inner->ops->upload(h->inner, memory, host, n);
    h->device[h->n++] = memory;
    return memory;
}

static void hosted_get(struct hosted *h, void *host, const void *device, size_t n)
{
    h->inner->ops->download(h->inner, host, device, n);
}

static void hosted_end(struct hosted *h)
{
    assert_int_equal(h->inner->ops->sync(h->inner), LVP_OK);
    while (h->n > 0) h->inner->ops->free(h->inner, h->device[--h->n]);
}

static size_t hosted_count(const int32_t *index, int n) // rows that an index of n entries reaches
{
    int32_t most = n - 1;
    for (int i = 0; index != NULL && i < n; i++) most = i == 0 || index[i] > most ? index[i] : most;
    return (size_t)(most + 1);
}

static void hosted_close(struct lvp_backend *backend)
{
    hosted_of(backend)->inner->ops->close(hosted_of(backend)->inner);
    free(backend);
}

static enum lvp_status hosted_alloc(struct lvp_backend *backend, size_t n, void **memory)
{
    (void)backend;
    *memory = calloc(n + 1, 1);
    return *memory == NULL ? lvp_fail(LVP_ERR_MEMORY, "out of memory") : LVP_OK;
}
static void hosted_free(struct lvp_backend *backend, void *memory)
{
    (void)backend;
    free(memory);
}
static void hosted_move(struct lvp_backend *backend, void *to, const void *from, size_t n)
{
    (void)backend;
    if (n != 0) memcpy(to, from, n);
}
static enum lvp_status hosted_sync(struct lvp_backend *backend)
{
    return hosted_of(backend)->inner->ops->sync(hosted_of(backend)->inner);
}

static enum lvp_status hosted_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts,
                                            int n_parts, enum lvp_dtype weights, struct lvp_linear **linear)
{
    struct lvp_backend *inner = hosted_of(backend)->inner;
    struct hosted_linear *wrapper = calloc(1, sizeof *wrapper);
    enum lvp_status status = inner->ops->linear_create(inner, parts, n_parts, weights, &wrapper->inner);
    *linear = NULL;
    if (status != LVP_OK) {
        free(wrapper);
        return status;
    }
    wrapper->in = 1;
    for (int i = 1; i < parts[0].weight->n_dims; i++) wrapper->in *= (size_t)parts[0].weight->shape[i];
    for (int p = 0; p < n_parts; p++) wrapper->out += (size_t)parts[p].weight->shape[0];
    *linear = (struct lvp_linear *)wrapper;
    return LVP_OK;
}
static void hosted_linear_destroy(struct lvp_backend *backend, struct lvp_linear *linear)
{
    struct lvp_backend *inner = hosted_of(backend)->inner;
    if (linear != NULL) inner->ops->linear_destroy(inner, ((struct hosted_linear *)linear)->inner);
    free(linear);
}
static void hosted_linear_run(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                              struct lvp_epilogue epilogue, float *y)
{
    struct hosted *h = hosted_of(backend);
    const struct hosted_linear *wrapper = (const struct hosted_linear *)linear;
    size_t n_out = (size_t)n_rows * wrapper->out * sizeof *y;
    float *out = hosted_put(h, y, n_out);
    const float *in = hosted_put(h, x, (size_t)n_rows * wrapper->in * sizeof *x);
    epilogue.add = epilogue.add == y ? out : hosted_put(h, epilogue.add, n_out);
    h->inner->ops->linear(h->inner, wrapper->inner, in, n_rows, epilogue, out);
    hosted_get(h, y, out, n_out);
    hosted_end(h);
}

static void hosted_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                              const float *bias, float eps, const float *add, bool round, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t n = (size_t)n_rows * (size_t)width * sizeof *x, row = (size_t)width * sizeof *x;
    float *out = hosted_put(h, y, n);
    const float *in = x == y ? out : hosted_put(h, x, n), *added = add == y ? out : hosted_put(h, add, n);
    h->inner->ops->layer_norm(h->inner, in, n_rows, width, hosted_put(h, weight, row), hosted_put(h, bias, row), eps,
                              added, round, out);
    hosted_get(h, y, out, n);
    hosted_end(h);
}
static void hosted_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                            float eps, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t n = (size_t)n_rows * (size_t)width * sizeof *x;
    float *out = hosted_put(h, y, n);
    const float *in = x == y ? out : hosted_put(h, x, n);
    h->inner->ops->rms_norm(h->inner, in, n_rows, width, hosted_put(h, weight, (size_t)width * sizeof *x), eps, out);
    hosted_get(h, y, out, n);
    hosted_end(h);
}
static void hosted_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                       enum lvp_activation activation, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t n = (size_t)n_rows * (size_t)width * sizeof *y;
    float *out = hosted_put(h, y, n);
    h->inner->ops->glu(h->inner, hosted_put(h, gate_up, 2 * n), n_rows, width, activation, out);
    hosted_get(h, y, out, n);
    hosted_end(h);
}

static void hosted_unfold(struct lvp_backend *backend, const float *pixels, int n_images, int size, int patch, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t in = (size_t)n_images * 3 * (size_t)size * (size_t)size * sizeof *y, side = (size_t)(size / patch);
    size_t n = (size_t)n_images * side * side * 3 * (size_t)patch * (size_t)patch * sizeof *y;
    float *out = hosted_put(h, y, n);
    h->inner->ops->unfold_patches(h->inner, hosted_put(h, pixels, in), n_images, size, patch, out);
    hosted_get(h, y, out, n);
    hosted_end(h);
}
static void hosted_vit_embed(struct lvp_backend *backend, const float *patches, const float *cls, const float *position,
                             int n_images, int n_patches, int width, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t row = (size_t)width * sizeof *y, rows = (size_t)n_images * (size_t)n_patches;
    size_t n = (rows + (size_t)n_images) * row;
    float *out = hosted_put(h, y, n);
    h->inner->ops->vit_embed(h->inner, hosted_put(h, patches, rows * row), hosted_put(h, cls, row),
                             hosted_put(h, position, ((size_t)n_patches + 1) * row), n_images, n_patches, width, out);
    hosted_get(h, y, out, n);
    hosted_end(h);
}
static void hosted_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                         const int32_t *to, float *y)
{
    struct hosted *h = hosted_of(backend);
    size_t indices = (size_t)n * sizeof *ids, out_bytes = hosted_count(to, n) * (size_t)width * sizeof *y;
    size_t table_bytes = hosted_count(ids, n) * (size_t)width * lvp_dtype_size(h->inner->dtype);
    float *out = hosted_put(h, y, out_bytes);
    h->inner->ops->embed(h->inner, hosted_put(h, table, table_bytes), hosted_put(h, ids, indices), n, width,
                         hosted_put(h, to, indices), out);
    hosted_get(h, y, out, out_bytes);
    hosted_end(h);
}
static void hosted_copy_rows(struct lvp_backend *backend, const void *x, const int32_t *from, int n, int width, void *y,
                             const int32_t *to)
{
    struct hosted *h = hosted_of(backend);
    size_t indices = (size_t)n * sizeof *from, row = (size_t)width * 4, out_bytes = hosted_count(to, n) * row;
    void *out = hosted_put(h, y, out_bytes);
    h->inner->ops->copy_rows(h->inner, hosted_put(h, x, hosted_count(from, n) * row), hosted_put(h, from, indices), n,
                             width, out, hosted_put(h, to, indices));
    hosted_get(h, y, out, out_bytes);
    hosted_end(h);
}

static void hosted_rope(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                        const int32_t *positions, const float *rope, const int32_t *slots, struct lvp_kv_layer cache)
{
    struct hosted *h = hosted_of(backend);
    size_t head_dim = (size_t)shape.head_dim, kv_heads = (size_t)shape.kv_heads, indices = (size_t)n_rows * 4;
    size_t n = (size_t)n_rows * ((size_t)shape.heads + 2 * kv_heads) * head_dim * sizeof *qkv;
    size_t pages = hosted_count(slots, n_rows) / LVP_KV_PAGE + 1; // every page has a whole number of slots
    size_t bytes = (hosted_count(slots, n_rows) % LVP_KV_PAGE == 0 ? pages - 1 : pages) * kv_heads * head_dim *
                   LVP_KV_PAGE * lvp_dtype_size(h->inner->dtype);
    struct lvp_kv_layer there = {hosted_put(h, cache.k, bytes), hosted_put(h, cache.v, bytes)};
    float *out = hosted_put(h, qkv, n);
    size_t angles = hosted_count(positions, n_rows) * head_dim * sizeof *rope;
    h->inner->ops->rope_kv_write(h->inner, out, n_rows, shape, hosted_put(h, positions, indices),
                                 hosted_put(h, rope, angles), hosted_put(h, slots, indices), there);
    hosted_get(h, qkv, out, n);
    hosted_get(h, cache.k, there.k, bytes);
    hosted_get(h, cache.v, there.v, bytes);
    hosted_end(h);
}

static void hosted_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *a)
{
    struct hosted *h = hosted_of(backend);
    struct lvp_paged_attention there = *a;
    size_t head_dim = (size_t)a->shape.head_dim, seqs = (size_t)a->n_seqs, rows = (size_t)a->n_rows, pages = 0;
    for (int s = 0; s < a->n_seqs; s++)
        for (int p = 0; p < (a->kv_len[s] + LVP_KV_PAGE - 1) / LVP_KV_PAGE; p++) {
            size_t page = (size_t)a->block_table[s * a->max_pages + p] + 1;
            pages = page > pages ? page : pages;
        }
    size_t cache = pages * (size_t)a->shape.kv_heads * head_dim * LVP_KV_PAGE * lvp_dtype_size(h->inner->dtype);
    size_t out_bytes = rows * (size_t)a->shape.heads * head_dim * sizeof *a->out;
    there.row_start = hosted_put(h, a->row_start, (seqs + 1) * 4);
    there.kv_len = hosted_put(h, a->kv_len, seqs * 4);
    there.block_table = hosted_put(h, a->block_table, seqs * (size_t)a->max_pages * 4);
    there.cache = (struct lvp_kv_layer){hosted_put(h, a->cache.k, cache), hosted_put(h, a->cache.v, cache)};
    there.qkv = hosted_put(h, a->qkv, rows * (size_t)(a->shape.heads + 2 * a->shape.kv_heads) * head_dim * 4);
    there.out = hosted_put(h, a->out, out_bytes);
    h->inner->ops->paged_attention(h->inner, &there);
    hosted_get(h, a->out, there.out, out_bytes);
    hosted_end(h);
}

static void hosted_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *a)
{
    struct hosted *h = hosted_of(backend);
    struct lvp_dense_attention there = *a;
    size_t segments = (size_t)a->n_segments, width = (size_t)(a->heads * a->head_dim), queries = (size_t)a->n_queries;
    size_t keys = (size_t)a->kv_start[a->n_segments], out_bytes = queries * width * sizeof *a->out;
    size_t q_bytes = queries == 0 ? 0 : ((queries - 1) * (size_t)a->q_stride + width) * sizeof *a->q;
    size_t kv_bytes = keys == 0 ? 0 : ((keys - 1) * (size_t)a->kv_stride + width) * sizeof *a->k;
    there.q_start = hosted_put(h, a->q_start, (segments + 1) * 4);
    there.kv_start = hosted_put(h, a->kv_start, (segments + 1) * 4);
    there.q = hosted_put(h, a->q, q_bytes);
    there.k = hosted_put(h, a->k, kv_bytes);
    there.v = hosted_put(h, a->v, kv_bytes);
    there.out = hosted_put(h, a->out, out_bytes);
    h->inner->ops->dense_attention(h->inner, &there);
    hosted_get(h, a->out, there.out, out_bytes);
    hosted_end(h);
}

static void hosted_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *a)
{
    struct hosted *h = hosted_of(backend);
    struct lvp_last_attention there = *a;
    size_t images = (size_t)a->n_images, head_dim = (size_t)a->shape.head_dim, pages = 0, seqs = 0;
    for (size_t i = 0; i < images; i++) seqs = (size_t)a->image_seq[i] + 1 > seqs ? (size_t)a->image_seq[i] + 1 : seqs;
    for (size_t i = 0; i < seqs * (size_t)a->max_pages; i++)
        pages = (size_t)a->block_table[i] + 1 > pages ? (size_t)a->block_table[i] + 1 : pages;
    size_t cache = pages * (size_t)a->shape.kv_heads * head_dim * LVP_KV_PAGE * lvp_dtype_size(h->inner->dtype);
    size_t gates = (size_t)a->gate_start[images] * 2 * sizeof *a->gate, rows = (size_t)a->row_start[seqs];
    there.image_row = hosted_put(h, a->image_row, images * 4);
    there.image_len = hosted_put(h, a->image_len, images * 4);
    there.gate_start = hosted_put(h, a->gate_start, (images + 1) * 4);
    there.image_seq = hosted_put(h, a->image_seq, images * 4);
    there.row_start = hosted_put(h, a->row_start, (seqs + 1) * 4);
    there.block_table = hosted_put(h, a->block_table, seqs * (size_t)a->max_pages * 4);
    there.cache.k = hosted_put(h, a->cache.k, cache);
    there.qkv = hosted_put(h, a->qkv, rows * (size_t)(a->shape.heads + 2 * a->shape.kv_heads) * head_dim * 4);
    there.gate = hosted_put(h, a->gate, gates);
    h->inner->ops->last_attention(h->inner, &there);
    hosted_get(h, a->gate, there.gate, gates);
    hosted_end(h);
}

static void hosted_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *s)
{
    struct hosted *h = hosted_of(backend);
    struct lvp_soft_nms there = *s;
    size_t images = (size_t)s->n_images, rows = 0, gates = (size_t)s->gate_start[images] * 2 * sizeof *s->gate;
    for (size_t i = 0; i < images; i++) rows = (size_t)(s->image_row[i] + s->image_len[i]);
    size_t keys = rows == 0 ? 0 : (rows - 1) * (size_t)s->key_stride + (size_t)s->key_width;
    there.image_row = hosted_put(h, s->image_row, images * 4);
    there.image_len = hosted_put(h, s->image_len, images * 4);
    there.gate_start = hosted_put(h, s->gate_start, (images + 1) * 4);
    there.keep = hosted_put(h, s->keep, images * 4);
    there.positions = hosted_put(h, s->positions, rows * 4);
    there.image_position = hosted_put(h, s->image_position, images * 4);
    there.prior = hosted_put(h, s->prior, (size_t)(s->grid * s->grid) * sizeof *s->prior);
    there.keys = hosted_put(h, s->keys, keys * sizeof *s->keys);
    there.gate = hosted_put(h, s->gate, gates);
    h->inner->ops->soft_nms(h->inner, &there);
    hosted_get(h, s->gate, there.gate, gates);
    hosted_end(h);
}

static void hosted_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *s)
{
    struct hosted *h = hosted_of(backend);
    struct lvp_row_selection there = *s;
    size_t images = (size_t)s->n_images, survivors = (size_t)s->n_rows;
    for (int i = 0; i < s->n_images; i++)
        survivors -= (size_t)(s->keep[i] < s->image_len[i] ? s->image_len[i] - s->keep[i] : 0);
    there.image_row = hosted_put(h, s->image_row, images * 4);
    there.image_len = hosted_put(h, s->image_len, images * 4);
    there.gate_start = hosted_put(h, s->gate_start, (images + 1) * 4);
    there.keep = hosted_put(h, s->keep, images * 4);
    there.gate = hosted_put(h, s->gate, (size_t)s->gate_start[s->n_images] * 2 * sizeof *s->gate);
    there.survivors = hosted_put(h, s->survivors, survivors * 4);
    h->inner->ops->select_rows(h->inner, &there);
    hosted_get(h, s->survivors, there.survivors, survivors * 4);
    hosted_end(h);
}

static void hosted_sample(struct lvp_backend *backend, const float *logits, int n, int vocab,
                          const struct lvp_draw *draws, int32_t *tokens, float *logprobs)
{
    struct hosted *h = hosted_of(backend);
    size_t rows = (size_t)n;
    int32_t *ids = hosted_put(h, tokens, rows * sizeof *tokens);
    float *logs = hosted_put(h, logprobs, rows * sizeof *logprobs);
    const float *there = hosted_put(h, logits, rows * (size_t)vocab * sizeof *logits);
    h->inner->ops->sample(h->inner, there, n, vocab, hosted_put(h, draws, rows * sizeof *draws), ids, logs);
    hosted_get(h, tokens, ids, rows * sizeof *tokens);
    hosted_get(h, logprobs, logs, rows * sizeof *logprobs);
    hosted_end(h);
}

// Payloads are what they are for a transport: the device's, or the host's.
static enum lvp_status hosted_payload_alloc(struct lvp_backend *backend, size_t n, bool on_device, void **payload)
{
    struct lvp_backend *inner = hosted_of(backend)->inner;
    return inner->ops->payload_alloc(inner, n, on_device, payload);
}
static void hosted_payload_free(struct lvp_backend *backend, void *payload)
{
    struct lvp_backend *inner = hosted_of(backend)->inner;
    inner->ops->payload_free(inner, payload);
}
static void hosted_load(struct lvp_backend *backend, const void *payload, size_t n, float *to)
{
    struct hosted *h = hosted_of(backend);
    float *there = hosted_put(h, to, n * sizeof *to);
    h->inner->ops->load(h->inner, payload, n, there);
    hosted_get(h, to, there, n * sizeof *to);
    hosted_end(h);
}
static void hosted_store(struct lvp_backend *backend, const float *from, size_t n, void *payload)
{
    struct hosted *h = hosted_of(backend);
    h->inner->ops->store(h->inner, hosted_put(h, from, n * sizeof *from), n, payload);
    hosted_end(h);
}

static const struct lvp_backend_ops hosted_ops = {
    .close = hosted_close,
    .alloc = hosted_alloc,
    .free = hosted_free,
    .upload = hosted_move,
    .download = hosted_move,
    .sync = hosted_sync,
    .linear_create = hosted_linear_create,
    .linear_destroy = hosted_linear_destroy,
    .linear = hosted_linear_run,
    .layer_norm = hosted_layer_norm,
    .rms_norm = hosted_rms_norm,
    .glu = hosted_glu,
    .unfold_patches = hosted_unfold,
    .vit_embed = hosted_vit_embed,
    .embed = hosted_embed,
    .copy_rows = hosted_copy_rows,
    .rope_kv_write = hosted_rope,
    .paged_attention = hosted_paged_attention,
    .dense_attention = hosted_dense_attention,
    .last_attention = hosted_last_attention,
    .soft_nms = hosted_soft_nms,
    .select_rows = hosted_select_rows,
    .sample = hosted_sample,
    .payload_alloc = hosted_payload_alloc,
    .payload_free = hosted_payload_free,
    .load = hosted_load,
    .store = hosted_store,
};

struct lvp_backend *hosted_open(struct lvp_backend *inner)
{
    struct hosted *h = calloc(1, sizeof *h);
    assert_non_null(h);
    h->base = *inner;
    h->base.ops = &hosted_ops;
    h->inner = inner;
    return &h->base;
}
