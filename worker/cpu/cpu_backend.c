// The fast backend: gives each operation's rows, or its tiles of attention, to the threads of the pool and calls the
// kernels of the instruction set. Every output is computed by one thread from start to end, so threads never change
// bits.
#include "worker/cpu/choose.h"
#include "worker/cpu/kernels.h"
#include "worker/cpu/linear.h"
#include "worker/cpu/pool.h"
#include "worker/cpu/prune.h"
#include "worker/cpu/ref_ops.h"
#include "worker/cpu/roof.h"

#include <stdatomic.h>
#include <stdlib.h>

// Buffers of one thread, in one allocation; pages that no operation touches stay virtual.
struct thread_scratch {
    void *memory;
    struct lvp_attention_scratch attention;
    struct lvp_choose_scratch choose;
};

struct cpu_backend {
    struct lvp_backend base; // first: the table's pointer is this one
    const struct lvp_kernels *kernels;
    const struct lvp_matmul_kernels *matmul;
    struct lvp_pool *pool;
    struct lvp_backend_limits limits;
    void *linear_scratch;
    uint8_t *removed;               // [max_rows] of select_rows
    struct thread_scratch *scratch; // [threads]
};

static struct cpu_backend *self(struct lvp_backend *backend)
{
    return (struct cpu_backend *)backend;
}

// --- splitting over threads

struct row_job {
    lvp_row_kernel *kernel;
    const void *args;
    int n_rows;
};

static void run_row_share(void *arg, int thread, int threads)
{
    const struct row_job *job = arg;
    int begin = 0, end = 0;
    lvp_pool_share(job->n_rows, thread, threads, &begin, &end);
    if (begin < end) job->kernel(job->args, begin, end);
}

// `width`: values of a row. Below some thousands of values in all, waking threads costs more than it gains.
static void run_rows(struct lvp_backend *backend, lvp_row_kernel *kernel, const void *args, int n_rows, int width)
{
    enum { WORTH_WAKING = 8192 };
    if ((long long)n_rows * width < WORTH_WAKING) {
        if (n_rows > 0) kernel(args, 0, n_rows);
        return;
    }
    struct row_job job = {kernel, args, n_rows};
    lvp_pool_run(self(backend)->pool, run_row_share, &job);
}

// Attention's tiles differ in cost (causal rows, lengths), so threads take the next one when they are done.
struct attention_job {
    struct cpu_backend *backend;
    const struct lvp_paged_attention *paged; // or
    const struct lvp_dense_attention *dense;
    const int32_t *row_start;       // [n_sources + 1] query rows of each sequence or segment
    int n_sources, kv_heads, group; // group: queries of a row that share a key head
    int tiles;                      // per source and key head, of the largest source
    atomic_int next;
};

static void run_attention_tiles(void *arg, int thread, int threads)
{
    (void)threads;
    struct attention_job *job = arg;
    const struct lvp_kernels *kernels = job->backend->kernels;
    const struct lvp_attention_scratch *scratch = &job->backend->scratch[thread].attention;
    int n = job->n_sources * job->kv_heads * job->tiles;
    for (int i = atomic_fetch_add(&job->next, 1); i < n; i = atomic_fetch_add(&job->next, 1)) {
        int first_query = i % job->tiles * LVP_ATTENTION_TILE;
        int head = i / job->tiles % job->kv_heads, source = i / job->tiles / job->kv_heads;
        if (first_query >= (job->row_start[source + 1] - job->row_start[source]) * job->group) continue;
        if (job->paged != NULL) {
            kernels->paged_attention(job->paged, job->backend->base.dtype, source, head, first_query, scratch);
        } else {
            kernels->dense_attention(job->dense, source, head, first_query, scratch);
        }
    }
}

static void run_attention(struct attention_job *job)
{
    int largest = 0;
    for (int s = 0; s < job->n_sources; s++) {
        int n_rows = job->row_start[s + 1] - job->row_start[s];
        largest = n_rows > largest ? n_rows : largest;
    }
    job->tiles = (largest * job->group + LVP_ATTENTION_TILE - 1) / LVP_ATTENTION_TILE;
    if (job->tiles > 0) lvp_pool_run(job->backend->pool, run_attention_tiles, job);
}

// --- operations

static enum lvp_status cpu_linear_create(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts,
                                         enum lvp_dtype weights, struct lvp_linear **linear)
{
    return lvp_linear_pack(self(backend)->pool, self(backend)->matmul, parts, n_parts, backend->dtype, weights, linear);
}

static void cpu_linear_destroy(struct lvp_backend *backend, struct lvp_linear *linear)
{
    (void)backend;
    lvp_linear_free(linear);
}

static void cpu_linear(struct lvp_backend *backend, const struct lvp_linear *linear, const float *x, int n_rows,
                       struct lvp_epilogue epilogue, float *y)
{
    struct cpu_backend *cpu = self(backend);
    lvp_linear_run(cpu->pool, cpu->matmul, linear, x, n_rows, epilogue, y, cpu->linear_scratch);
}

static void cpu_layer_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                           const float *bias, float eps, const float *add, bool round, float *y)
{
    struct lvp_norm_args args = {x, width, weight, bias, eps, add, round ? backend->dtype : LVP_F32, y};
    run_rows(backend, self(backend)->kernels->layer_norm, &args, n_rows, width);
}

static void cpu_rms_norm(struct lvp_backend *backend, const float *x, int n_rows, int width, const float *weight,
                         float eps, float *y)
{
    struct lvp_norm_args args = {.x = x, .width = width, .weight = weight, .eps = eps, .y = y};
    run_rows(backend, self(backend)->kernels->rms_norm, &args, n_rows, width);
}

static void cpu_glu(struct lvp_backend *backend, const float *gate_up, int n_rows, int width,
                    enum lvp_activation activation, float *y)
{
    struct lvp_glu_args args = {gate_up, width, activation, y};
    run_rows(backend, self(backend)->kernels->glu, &args, n_rows, width);
}

static void cpu_embed(struct lvp_backend *backend, const void *table, const int32_t *ids, int n, int width,
                      const int32_t *to, float *y)
{
    struct lvp_embed_args args = {table, backend->dtype, ids, to, width, y};
    run_rows(backend, self(backend)->kernels->embed, &args, n, width);
}

static void cpu_rope_kv_write(struct lvp_backend *backend, float *qkv, int n_rows, struct lvp_qkv_shape shape,
                              const int32_t *positions, const float *rope, const int32_t *slots,
                              struct lvp_kv_layer cache)
{
    struct lvp_rope_args args = {qkv, shape, positions, slots, rope, cache, backend->dtype};
    run_rows(backend, self(backend)->kernels->rope_kv_write, &args, n_rows,
             (shape.heads + 2 * shape.kv_heads) * shape.head_dim);
}

static void cpu_paged_attention(struct lvp_backend *backend, const struct lvp_paged_attention *attention)
{
    struct attention_job job = {.backend = self(backend),
                                .paged = attention,
                                .row_start = attention->row_start,
                                .n_sources = attention->n_seqs,
                                .kv_heads = attention->shape.kv_heads,
                                .group = attention->shape.heads / attention->shape.kv_heads};
    run_attention(&job);
}

static void cpu_dense_attention(struct lvp_backend *backend, const struct lvp_dense_attention *attention)
{
    struct attention_job job = {.backend = self(backend),
                                .dense = attention,
                                .row_start = attention->q_start,
                                .n_sources = attention->n_segments,
                                .kv_heads = attention->heads,
                                .group = 1};
    run_attention(&job);
}

// Images are few: a thread takes whole ones.
struct image_job {
    struct cpu_backend *backend;
    const struct lvp_last_attention *attention; // or
    const struct lvp_soft_nms *nms;
    int n_images;
};

static void run_image_share(void *arg, int thread, int threads)
{
    const struct image_job *job = arg;
    struct cpu_backend *cpu = job->backend;
    int begin = 0, end = 0;
    lvp_pool_share(job->n_images, thread, threads, &begin, &end);
    for (int image = begin; image < end; image++) {
        if (job->attention != NULL)
            lvp_cpu_last_attention(cpu->kernels, cpu->base.dtype, job->attention, image,
                                   &cpu->scratch[thread].attention);
        else
            lvp_cpu_soft_nms(cpu->kernels, job->nms, image);
    }
}

static void cpu_last_attention(struct lvp_backend *backend, const struct lvp_last_attention *attention)
{
    struct image_job job = {.backend = self(backend), .attention = attention, .n_images = attention->n_images};
    if (job.n_images > 0) lvp_pool_run(self(backend)->pool, run_image_share, &job);
}

static void cpu_soft_nms(struct lvp_backend *backend, const struct lvp_soft_nms *nms)
{
    struct image_job job = {.backend = self(backend), .nms = nms, .n_images = nms->n_images};
    if (job.n_images > 0) lvp_pool_run(self(backend)->pool, run_image_share, &job);
}

static void cpu_select_rows(struct lvp_backend *backend, const struct lvp_row_selection *selection)
{
    lvp_cpu_select_rows(selection, &self(backend)->scratch[0].choose, self(backend)->removed);
}

struct sample_job {
    struct cpu_backend *backend;
    const float *logits; // [n, vocab]
    int n, vocab;
    const struct lvp_draw *draws;
    int32_t *tokens;
    float *logprobs;
};

static void run_sample_share(void *arg, int thread, int threads)
{
    const struct sample_job *job = arg;
    int begin = 0, end = 0;
    lvp_pool_share(job->n, thread, threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        lvp_cpu_sample_row(job->backend->kernels, job->logits + (size_t)i * (size_t)job->vocab, job->vocab,
                           &job->draws[i], &job->backend->scratch[thread].choose, &job->tokens[i], &job->logprobs[i]);
    }
}

static void cpu_sample(struct lvp_backend *backend, const float *logits, int n, int vocab, const struct lvp_draw *draws,
                       int32_t *tokens, float *logprobs)
{
    struct sample_job job = {self(backend), logits, n, vocab, draws, tokens, logprobs};
    if (n > 1) {
        lvp_pool_run(self(backend)->pool, run_sample_share, &job);
    } else {
        run_sample_share(&job, 0, 1);
    }
}

// --- opening and closing

static void cpu_close(struct lvp_backend *backend)
{
    struct cpu_backend *cpu = self(backend);
    lvp_pool_destroy(cpu->pool);
    for (int i = 0; cpu->scratch != NULL && i < backend->threads; i++) free(cpu->scratch[i].memory);
    free(cpu->scratch);
    free(cpu->removed);
    free(cpu->linear_scratch);
    free(cpu);
}

static enum lvp_status cpu_roof(struct lvp_backend *backend, struct lvp_roof *roof)
{
    return lvp_cpu_roof(self(backend)->pool, self(backend)->kernels, backend->dtype, roof);
}

static const struct lvp_backend_ops cpu_ops = {
    .close = cpu_close,
    .alloc = lvp_ref_alloc,
    .free = lvp_ref_free,
    .upload = lvp_ref_upload,
    .download = lvp_ref_download,
    .sync = lvp_ref_sync,
    .linear_create = cpu_linear_create,
    .linear_destroy = cpu_linear_destroy,
    .linear = cpu_linear,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .glu = cpu_glu,
    .unfold_patches = lvp_ref_unfold_patches,
    .vit_embed = lvp_ref_vit_embed,
    .embed = cpu_embed,
    .copy_rows = lvp_ref_copy_rows,
    .rope_kv_write = cpu_rope_kv_write,
    .paged_attention = cpu_paged_attention,
    .dense_attention = cpu_dense_attention,
    .last_attention = cpu_last_attention,
    .soft_nms = cpu_soft_nms,
    .select_rows = cpu_select_rows,
    .sample = cpu_sample,
    .payload_alloc = lvp_ref_payload_alloc,
    .payload_free = lvp_ref_free,
    .load = lvp_ref_load,
    .store = lvp_ref_store,
    .begin = lvp_ref_begin,
    .end = lvp_ref_end,
    .roof = cpu_roof,
};

// The next n elements of `size` bytes of an allocation that is being laid out, 64-byte aligned. First pass: base NULL,
// only *used grows.
static void *take(char *base, size_t *used, size_t n, size_t size)
{
    void *at = base == NULL ? NULL : base + *used;
    *used += (n * size + 63) / 64 * 64;
    return at;
}

// Places one thread's buffers in `base`, or only counts their bytes where it is NULL.
static size_t lay_out(struct thread_scratch *scratch, const struct lvp_backend_limits *limits, char *base)
{
    size_t used = 64;                                             // never an empty allocation
    size_t head_dim = (size_t)(limits->max_width + 15) / 16 * 16; // no head is wider than a row
    int slots = limits->max_kv_len > limits->max_rows ? limits->max_kv_len : limits->max_rows; // dense keys are rows
    slots = (slots + LVP_ATTENTION_CHUNK - 1) / LVP_ATTENTION_CHUNK * LVP_ATTENTION_CHUNK;
    size_t choices = (size_t)(limits->max_vocab > limits->max_rows ? limits->max_vocab : limits->max_rows);
    scratch->attention = (struct lvp_attention_scratch){
        .q = take(base, &used, LVP_ATTENTION_TILE * head_dim, sizeof(float)),
        .k = take(base, &used, LVP_ATTENTION_CHUNK * head_dim, sizeof(float)),
        .v = take(base, &used, LVP_ATTENTION_CHUNK * head_dim, sizeof(float)),
        .scores = take(base, &used, LVP_ATTENTION_TILE * (size_t)slots, sizeof(float)),
        .out = take(base, &used, LVP_ATTENTION_TILE * head_dim, sizeof(float)),
        .max_slots = slots,
    };
    scratch->choose = (struct lvp_choose_scratch){
        .items = take(base, &used, choices, sizeof(struct lvp_sort_item)),
        .spare = take(base, &used, choices, sizeof(struct lvp_sort_item)),
        .weights = take(base, &used, choices, sizeof(float)),
    };
    return used;
}

static enum lvp_status create_scratch(struct cpu_backend *cpu)
{
    size_t linear_bytes = lvp_linear_scratch_bytes(cpu->base.threads, cpu->limits.max_rows, cpu->limits.max_width);
    cpu->linear_scratch = linear_bytes == 0 ? NULL : aligned_alloc(64, (linear_bytes + 63) / 64 * 64);
    if (cpu->linear_scratch == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for %zu bytes of work space", linear_bytes);
    cpu->removed = malloc((size_t)cpu->limits.max_rows + 1);
    cpu->scratch = calloc((size_t)cpu->base.threads, sizeof *cpu->scratch);
    if (cpu->removed == NULL || cpu->scratch == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for work space");
    for (int i = 0; i < cpu->base.threads; i++) {
        size_t n_bytes = lay_out(&cpu->scratch[i], &cpu->limits, NULL);
        cpu->scratch[i].memory = aligned_alloc(64, n_bytes);
        if (cpu->scratch[i].memory == NULL) {
            return lvp_fail(LVP_ERR_MEMORY, "out of memory for %zu bytes of work space", n_bytes);
        }
        (void)lay_out(&cpu->scratch[i], &cpu->limits, cpu->scratch[i].memory);
    }
    return LVP_OK;
}

// Bounds that keep lay_out's products far from overflow; real models stay three orders below.
static enum lvp_status check_limits(const struct lvp_backend_limits *limits)
{
    const int values[] = {limits->max_rows, limits->max_width, limits->max_kv_len, limits->max_vocab};
    enum { LARGEST = 1 << 26 };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        if (values[i] < 0 || values[i] > LARGEST) {
            return lvp_fail(LVP_ERR_USAGE, "a backend for %d rows of %d, %d slots and %d tokens is out of bounds",
                            limits->max_rows, limits->max_width, limits->max_kv_len, limits->max_vocab);
        }
    }
    return LVP_OK;
}

enum lvp_status lvp_cpu_backend_open(const char *kernel_set, enum lvp_dtype dtype, int threads,
                                     const struct lvp_backend_limits *limits, struct lvp_backend **backend)
{
    enum lvp_status status = LVP_OK;
    const struct lvp_kernels *kernels = NULL;
    *backend = NULL;
    if (!lvp_dtype_computes((int)dtype)) {
        return lvp_fail(LVP_ERR_USAGE, "the CPU computes in bf16, f16 or f32, not in %s", lvp_dtype_name(dtype));
    }
    if (threads < 1) return lvp_fail(LVP_ERR_USAGE, "a CPU backend with %d threads", threads);
    LVP_TRY(check_limits(limits));
    LVP_TRY(lvp_kernels_find(kernel_set, &kernels));
    struct cpu_backend *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the CPU backend");
    cpu->base = (struct lvp_backend){&cpu_ops, dtype, dtype, kernels->name, threads};
    cpu->kernels = kernels;
    cpu->matmul = lvp_matmul_kernels_find(kernels->name); // both are built for the same instruction sets
    cpu->limits = *limits;
    LVP_CHECK(lvp_pool_create(threads, &cpu->pool));
    LVP_CHECK(create_scratch(cpu));
    *backend = &cpu->base;
    return LVP_OK;
fail:
    cpu_close(&cpu->base);
    return status;
}
