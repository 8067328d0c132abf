#include "worker/cpu/linear.h"

#include "common/checked.h"

#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    ALIGNMENT = 64,
    HUGE_PAGE = 2 << 20,
    PACK_CHUNK = 128,     // values along K that are converted and transposed at a time
    TASKS_PER_THREAD = 4, // so that a thread that is late costs at most a quarter of its share
    SMALL_X = 16384,      // words of x that are packed faster than other threads wake up
};

const struct lvp_matmul_kernels *lvp_matmul_kernels_find(const char *kernel_set)
{
    static const struct lvp_matmul_kernels *const sets[] = {
        &lvp_matmul_portable,
#if defined(__x86_64__)
        &lvp_matmul_avx2,
        &lvp_matmul_avx512,
        &lvp_matmul_avx512bf16,
#endif
    };
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        if (strcmp(sets[i]->kernel_set, kernel_set) == 0) return sets[i];
    }
    return NULL;
}

// Shapes

// Elements behind the first dimension; false where the tensor has no rows of features or is too large.
static bool row_width(const struct lvp_tensor_view *weight, int64_t *width)
{
    *width = 1;
    if (weight->n_dims < 2) return false;
    for (int i = 1; i < weight->n_dims; i++) {
        if (__builtin_mul_overflow(*width, weight->shape[i], width)) return false;
    }
    return *width > 0 && *width < INT_MAX && weight->shape[0] > 0 && weight->shape[0] < INT_MAX;
}

// The tensor holds as many bytes as its shape says.
static bool is_whole(const struct lvp_tensor_view *tensor, size_t rows, size_t columns)
{
    size_t bytes;
    return lvp_checked_mul(rows, columns, &bytes) && lvp_checked_mul(bytes, lvp_dtype_size(tensor->dtype), &bytes) &&
           bytes == tensor->n_bytes;
}

static enum lvp_status check_part(const struct lvp_linear_part *part, int64_t *out, int64_t *in)
{
    const struct lvp_tensor_view *weight = part->weight, *bias = part->bias;
    if (!row_width(weight, in)) return lvp_fail(LVP_ERR_MODEL, "%s is not a matrix", weight->name);
    *out = weight->shape[0];
    if (!is_whole(weight, (size_t)*out, (size_t)*in)) {
        return lvp_fail(LVP_ERR_MODEL, "%s has %zu bytes, not what its shape takes", weight->name, weight->n_bytes);
    }
    if (bias && (bias->n_dims != 1 || bias->shape[0] != *out || !is_whole(bias, (size_t)*out, 1))) {
        return lvp_fail(LVP_ERR_MODEL, "%s does not fit %s", bias->name, weight->name);
    }
    return LVP_OK;
}

static enum lvp_status check_parts(const struct lvp_linear_part *parts, int n_parts, int *out, int *in)
{
    int64_t total = 0, first_in = 0;
    if (n_parts < 1) return lvp_fail(LVP_ERR_INTERNAL, "a linear layer without weights");
    for (int p = 0; p < n_parts; p++) {
        int64_t part_out = 0, part_in = 0;
        LVP_TRY(check_part(&parts[p], &part_out, &part_in));
        if (p == 0) first_in = part_in;
        if (part_in != first_in) {
            return lvp_fail(LVP_ERR_MODEL, "%s reads %lld features, %s reads %lld", parts[p].weight->name,
                            (long long)part_in, parts[0].weight->name, (long long)first_in);
        }
        total += part_out; // n_parts ints at most
    }
    if (total > INT_MAX - LVP_MATMUL_MAX_PANEL) {
        return lvp_fail(LVP_ERR_MODEL, "%s and its companions are too large", parts[0].weight->name);
    }
    *out = (int)total;
    *in = (int)first_in;
    return LVP_OK;
}

// Packing

// k as packed: bf16 weights come in pairs.
static int packed_k(enum lvp_dtype dtype, int in)
{
    return dtype == LVP_BF16 ? in + in % 2 : in;
}

static int count_panels(int out, int panel)
{
    return (out + panel - 1) / panel;
}

// Large ones on huge pages: one row of activations reads all weights, and would miss the TLB at every 4 KiB.
static void *alloc_weights(size_t bytes)
{
    size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : ALIGNMENT, rounded;
    if (!lvp_checked_add(bytes, alignment - 1, &rounded)) return NULL;
    rounded -= rounded % alignment;
    void *memory = aligned_alloc(alignment, rounded);
    if (!memory) return NULL;
    if (alignment == HUGE_PAGE) (void)madvise(memory, rounded, MADV_HUGEPAGE);
    return memory;
}

struct packing {
    const struct lvp_linear_part *parts;
    int n_parts;
    int panel;
    struct lvp_linear *linear;
    _Atomic int next_panel;
};

// Row `row` of the fused matrix: its part's weight and the row in it.
static const struct lvp_linear_part *find_row(const struct packing *packing, int row, size_t *row_in_part)
{
    const struct lvp_linear_part *part = packing->parts;
    size_t left = (size_t)row;
    while (left >= (size_t)part->weight->shape[0]) {
        left -= (size_t)part->weight->shape[0];
        part++;
    }
    *row_in_part = left;
    return part;
}

static float round_to(enum lvp_dtype dtype, float value)
{
    return dtype == LVP_BF16 ? lvp_round_bf16(value) : value;
}

// Values [first, first + n) of a tensor as 32-bit words of the packed dtype; bf16 in pairs, the last padded with 0.
// Returns the number of words.
static size_t to_words(const struct lvp_tensor_view *tensor, size_t first, size_t n, enum lvp_dtype dtype,
                       uint32_t *words)
{
    if (n < 1) return 0; // never; without it GCC 12 with sanitizers warns of a negative size
    const char *from = (const char *)tensor->data + first * lvp_dtype_size(tensor->dtype);
    if (dtype == LVP_F32) {
        float values[PACK_CHUNK];
        for (size_t i = 0; i < n; i++) values[i] = lvp_load_f32(from, tensor->dtype, i);
        memcpy(words, values, n * sizeof *values);
        return n;
    }
    uint16_t halves[PACK_CHUNK];
    if (tensor->dtype == LVP_BF16) {
        memcpy(halves, from, n * sizeof *halves);
    } else {
        for (size_t i = 0; i < n; i++) halves[i] = lvp_f32_to_bf16(lvp_load_f32(from, tensor->dtype, i));
    }
    if (n % 2 != 0) halves[n] = 0;
    memcpy(words, halves, (n + n % 2) * sizeof *halves);
    return (n + 1) / 2;
}

static void pack_panel(const struct packing *packing, int index)
{
    const struct lvp_linear *linear = packing->linear;
    int first = index * packing->panel;
    int columns = linear->out - first < packing->panel ? linear->out - first : packing->panel;
    size_t panel = (size_t)packing->panel, in = (size_t)linear->in;
    size_t k_words = linear->dtype == LVP_BF16 ? (in + 1) / 2 : in;
    uint32_t *to = (uint32_t *)linear->weights + (size_t)index * k_words * panel;
    for (size_t k = 0; k < in; k += PACK_CHUNK) {
        size_t n = in - k < PACK_CHUNK ? in - k : PACK_CHUNK, n_words = 0;
        for (int column = 0; column < packing->panel; column++) {
            uint32_t words[PACK_CHUNK] = {0}; // what columns behind the last one hold
            if (column < columns) {
                size_t row;
                const struct lvp_linear_part *part = find_row(packing, first + column, &row);
                n_words = to_words(part->weight, row * in + k, n, linear->dtype, words);
            }
            for (size_t i = 0; i < n_words; i++) to[i * panel + (size_t)column] = words[i];
        }
        to += n_words * panel;
    }
    for (int column = 0; column < columns; column++) {
        size_t row;
        const struct lvp_tensor_view *bias = find_row(packing, first + column, &row)->bias;
        if (bias) linear->bias[first + column] = round_to(linear->dtype, lvp_load_f32(bias->data, bias->dtype, row));
    }
}

static void pack_some(void *arg, int thread, int threads)
{
    struct packing *packing = arg;
    int n_panels = count_panels(packing->linear->out, packing->panel);
    (void)thread, (void)threads;
    for (;;) {
        int panel = atomic_fetch_add_explicit(&packing->next_panel, 1, memory_order_relaxed);
        if (panel >= n_panels) return;
        pack_panel(packing, panel);
    }
}

enum lvp_status lvp_linear_pack(struct lvp_pool *pool, const struct lvp_matmul_kernels *kernels,
                                const struct lvp_linear_part *parts, int n_parts, enum lvp_dtype dtype,
                                struct lvp_linear **linear)
{
    int out = 0, in = 0;
    *linear = NULL;
    if (dtype != LVP_F32 && dtype != LVP_BF16) {
        return lvp_fail(LVP_ERR_INTERNAL, "linear layers are packed as f32 or bf16, not %s", lvp_dtype_name(dtype));
    }
    LVP_TRY(check_parts(parts, n_parts, &out, &in));
    struct lvp_linear *packed = calloc(1, sizeof *packed);
    if (packed) {
        size_t columns = (size_t)count_panels(out, kernels->panel) * (size_t)kernels->panel, bytes;
        *packed = (struct lvp_linear){.out = out, .in = in, .dtype = dtype};
        if (lvp_checked_mul(columns, (size_t)packed_k(dtype, in) * lvp_dtype_size(dtype), &bytes)) {
            packed->weights = alloc_weights(bytes);
            packed->weights_bytes = bytes;
            packed->bias = calloc(columns, sizeof *packed->bias);
        }
    }
    if (!packed || !packed->weights || !packed->bias) {
        lvp_linear_free(packed);
        return lvp_fail(LVP_ERR_MEMORY, "no memory for the weights of %s [%d, %d]", parts[0].weight->name, out, in);
    }
    struct packing packing = {.parts = parts, .n_parts = n_parts, .panel = kernels->panel, .linear = packed};
    lvp_pool_run(pool, pack_some, &packing);
    for (int i = 0; i < n_parts; i++) lvp_safetensors_drop_pages(parts[i].weight);
    *linear = packed;
    return LVP_OK;
}

void lvp_linear_free(struct lvp_linear *linear)
{
    if (!linear) return;
    free(linear->weights);
    free(linear->bias);
    free(linear);
}

// Running

static size_t packed_x_bytes(int max_rows, int max_in)
{
    size_t bytes;
    if (!lvp_checked_mul((size_t)max_rows, ((size_t)max_in + 1) * sizeof(uint32_t), &bytes)) return 0;
    if (!lvp_checked_add(bytes, ALIGNMENT - 1, &bytes)) return 0;
    return bytes - bytes % ALIGNMENT;
}

size_t lvp_linear_scratch_bytes(int threads, int max_rows, int max_in)
{
    size_t x_bytes = packed_x_bytes(max_rows, max_in), thread_bytes, bytes;
    if (!lvp_checked_mul((size_t)threads, sizeof(struct lvp_matmul_scratch), &thread_bytes)) return 0;
    if (x_bytes == 0 && max_rows > 0) return 0;
    return lvp_checked_add(thread_bytes, x_bytes, &bytes) ? bytes : 0;
}

static int divide_up(int a, int b)
{
    return (a + b - 1) / b;
}

static int at_least(int a, int b)
{
    return a > b ? a : b;
}

static int at_most(int a, int b)
{
    return a < b ? a : b;
}

// How the product is cut. Nothing here may change bits; the reasons are speed and even work.
static void plan(const struct lvp_matmul_kernels *kernels, int threads, struct lvp_matmul *m)
{
    m->row_panels = divide_up(m->n_rows, kernels->row_tile);
    m->row_blocks = divide_up(m->row_panels, LVP_MATMUL_BLOCK_ROWS / kernels->row_tile);
    m->group = kernels->group_for(divide_up(m->n_rows, m->row_panels));
    // One row panel reads each weight once: a straight walk over K is the best stream from memory. Several share a K
    // block of weights and of x while they are in the caches.
    m->k_block = m->row_panels == 1 ? at_least(m->k, 2) : LVP_MATMUL_K_BLOCK;

    m->column_panels = divide_up(m->out, kernels->panel);
    int groups = divide_up(m->column_panels, m->group);
    int block_groups = LVP_MATMUL_BLOCK_COLUMNS / (kernels->panel * m->group);
    int wanted = divide_up(threads * TASKS_PER_THREAD, m->row_blocks);
    if (threads > 1)
        m->column_blocks = at_most(groups, at_least(divide_up(groups, block_groups), wanted));
    else
        m->column_blocks = divide_up(groups, block_groups);
}

struct product {
    struct lvp_matmul m;
    const struct lvp_matmul_kernels *kernels;
    struct lvp_matmul_scratch *scratch; // [threads]
    _Atomic int next_task;
};

static void pack_x(void *arg, int thread, int threads)
{
    const struct product *product = arg;
    int first, last;
    lvp_pool_share(product->m.row_panels, thread, threads, &first, &last);
    product->kernels->pack_rows(&product->m, first, last);
}

// Row blocks of one column block follow each other, so that its weights are read from memory once.
static void run_tasks(void *arg, int thread, int threads)
{
    struct product *product = arg;
    const struct lvp_matmul *m = &product->m;
    long long n_tasks = (long long)m->row_blocks * m->column_blocks;
    (void)threads;
    for (;;) {
        int task = atomic_fetch_add_explicit(&product->next_task, 1, memory_order_relaxed);
        if (task >= n_tasks) return;
        product->kernels->run_block(m, task % m->row_blocks, task / m->row_blocks, &product->scratch[thread]);
    }
}

void lvp_linear_run(struct lvp_pool *pool, const struct lvp_matmul_kernels *kernels, const struct lvp_linear *linear,
                    const float *x, int n_rows, struct lvp_epilogue epilogue, float *y, void *scratch)
{
    if (n_rows <= 0) return;
    int threads = lvp_pool_threads(pool);
    struct lvp_matmul_scratch *thread_scratch = scratch;
    struct product product = {
        .m = {.n_rows = n_rows,
              .out = linear->out,
              .in = linear->in,
              .k = packed_k(linear->dtype, linear->in),
              .dtype = linear->dtype,
              .weights = linear->weights,
              .bias = linear->bias,
              .x = x,
              .packed_x = (uint32_t *)(void *)(thread_scratch + threads),
              .epilogue = epilogue,
              .y = y},
        .kernels = kernels,
        .scratch = thread_scratch,
    };
    plan(kernels, threads, &product.m);
    if ((long long)n_rows * linear->in <= SMALL_X)
        kernels->pack_rows(&product.m, 0, product.m.row_panels);
    else
        lvp_pool_run(pool, pack_x, &product);
    lvp_pool_run(pool, run_tasks, &product);
}
