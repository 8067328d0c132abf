#include "worker/cpu/linear.h"

#include "common/checked.h"

#include <limits.h>
#include <math.h>
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

// k as packed: all but f32 weights come in pairs.
static int packed_k(enum lvp_dtype weights_dtype, int in)
{
    return weights_dtype == LVP_F32 ? in : in + in % 2;
}

static int count_panels(int out, int panel)
{
    return (out + panel - 1) / panel;
}

// Large ones on huge pages: one row of activations reads all weights, and would miss the TLB at every 4 KiB.
void *lvp_weights_alloc(size_t bytes)
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

// Values [first, first + n) of a tensor.
static void read_values(const struct lvp_tensor_view *tensor, size_t first, size_t n, float *values)
{
    for (size_t i = 0; i < n; i++) values[i] = lvp_load_f32(tensor->data, tensor->dtype, first + i);
}

static void read_halves(const struct lvp_tensor_view *tensor, size_t first, size_t n, enum lvp_dtype dtype,
                        uint16_t *halves)
{
    if (tensor->dtype == dtype) {
        memcpy(halves, (const char *)tensor->data + first * sizeof *halves, n * sizeof *halves);
        return;
    }
    for (size_t i = 0; i < n; i++) halves[i] = lvp_to_half(lvp_load_f32(tensor->data, tensor->dtype, first + i), dtype);
}

// Where value k of a column lies in a panel.
static size_t place(enum lvp_dtype weights_dtype, size_t panel, size_t k, size_t column)
{
    bool in_rows = weights_dtype == LVP_F32 || weights_dtype == LVP_F16;
    return in_rows ? k * panel + column : (k / 2 * panel + column) * 2 + k % 2;
}

// Rows [first, first + n) of `weight` along K into their column of a panel. `scale` is of int8 weights.
static void pack_chunk(const struct lvp_linear *linear, const struct lvp_tensor_view *weight, size_t row, size_t k,
                       size_t n, float scale, size_t panel, size_t column, void *to)
{
    enum lvp_dtype dtype = linear->weights_dtype;
    size_t first = row * (size_t)linear->in + k;
    if (dtype == LVP_BF16 || dtype == LVP_F16) {
        uint16_t halves[PACK_CHUNK];
        read_halves(weight, first, n, dtype, halves);
        for (size_t i = 0; i < n; i++) ((uint16_t *)to)[place(dtype, panel, k + i, column)] = halves[i];
        return;
    }
    float values[PACK_CHUNK];
    read_values(weight, first, n, values);
    if (dtype == LVP_F32) {
        for (size_t i = 0; i < n; i++) ((float *)to)[place(dtype, panel, k + i, column)] = values[i];
    } else {
        for (size_t i = 0; i < n; i++)
            ((int8_t *)to)[place(dtype, panel, k + i, column)] = (int8_t)lrintf(values[i] * scale);
    }
}

static float largest_magnitude(const struct lvp_tensor_view *weight, size_t row, size_t in)
{
    float largest = 0;
    for (size_t i = row * in; i < (row + 1) * in; i++)
        largest = lvp_int8_larger(largest, lvp_load_f32(weight->data, weight->dtype, i));
    return largest;
}

static void pack_panel(const struct packing *packing, int index)
{
    struct lvp_linear *linear = packing->linear;
    int first = index * packing->panel;
    int columns = linear->out - first < packing->panel ? linear->out - first : packing->panel;
    size_t panel = (size_t)packing->panel, in = (size_t)linear->in;
    size_t bytes = panel * (size_t)packed_k(linear->weights_dtype, linear->in) * lvp_dtype_size(linear->weights_dtype);
    char *to = (char *)linear->weights + (size_t)index * bytes;
    if (columns < packing->panel || in % 2 != 0) memset(to, 0, bytes);
    struct lvp_int8_scale scales[LVP_MATMUL_MAX_PANEL] = {0};
    for (int column = 0; column < columns; column++) {
        size_t row;
        const struct lvp_linear_part *part = find_row(packing, first + column, &row);
        if (part->bias)
            linear->bias[first + column] =
                lvp_round_to(lvp_load_f32(part->bias->data, part->bias->dtype, row), linear->dtype);
        if (linear->weights_dtype != LVP_INT8) continue;
        scales[column] = lvp_int8_scale(largest_magnitude(part->weight, row, in), LVP_INT8_LARGEST);
        linear->weight_scale[first + column] = scales[column].back;
    }
    for (size_t k = 0; k < in; k += PACK_CHUNK) { // all columns of a chunk: their words share cache lines
        size_t n = in - k < PACK_CHUNK ? in - k : PACK_CHUNK;
        for (int column = 0; column < columns; column++) {
            size_t row;
            const struct lvp_linear_part *part = find_row(packing, first + column, &row);
            pack_chunk(linear, part->weight, row, k, n, scales[column].to, panel, (size_t)column, to);
        }
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
                                enum lvp_dtype weights_dtype, struct lvp_linear **linear)
{
    int out = 0, in = 0;
    *linear = NULL;
    if (!lvp_dtype_computes((int)dtype) || (weights_dtype != dtype && weights_dtype != LVP_INT8))
        return lvp_fail(LVP_ERR_INTERNAL, "%s weights in a model of %s", lvp_dtype_name(weights_dtype),
                        lvp_dtype_name(dtype));
    LVP_TRY(check_parts(parts, n_parts, &out, &in));
    if (weights_dtype == LVP_INT8 && in > LVP_INT8_MOST_FEATURES)
        return lvp_fail(LVP_ERR_MODEL, "%s reads %d features; int8 weights take up to %d", parts[0].weight->name, in,
                        (int)LVP_INT8_MOST_FEATURES);
    struct lvp_linear *packed = calloc(1, sizeof *packed);
    if (packed) {
        size_t columns = (size_t)count_panels(out, kernels->panel) * (size_t)kernels->panel, bytes;
        *packed = (struct lvp_linear){.out = out, .in = in, .dtype = dtype, .weights_dtype = weights_dtype};
        if (lvp_checked_mul(columns, (size_t)packed_k(weights_dtype, in) * lvp_dtype_size(weights_dtype), &bytes)) {
            packed->weights = lvp_weights_alloc(bytes);
            packed->bias = calloc(columns, sizeof *packed->bias);
            packed->weight_scale = calloc(columns, sizeof *packed->weight_scale);
        }
    }
    if (!packed || !packed->weights || !packed->bias || !packed->weight_scale) {
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
    free(linear->weight_scale);
    free(linear);
}

// Running

static size_t packed_x_bytes(int max_rows, int max_in)
{
    size_t bytes;
    size_t row_bytes = ((size_t)max_in + 1) * sizeof(uint32_t) + sizeof(struct lvp_int8_scale);
    if (!lvp_checked_mul((size_t)max_rows, row_bytes, &bytes)) return 0;
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
    struct lvp_int8_scale *x_scale = (struct lvp_int8_scale *)(void *)(thread_scratch + threads);
    struct product product = {
        .m = {.n_rows = n_rows,
              .out = linear->out,
              .in = linear->in,
              .k = packed_k(linear->weights_dtype, linear->in),
              .dtype = linear->dtype,
              .weights_dtype = linear->weights_dtype,
              .weights = linear->weights,
              .weight_scale = linear->weight_scale,
              .bias = linear->bias,
              .x = x,
              .x_scale = x_scale,
              .packed_x = (uint32_t *)(void *)(x_scale + n_rows),
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
