// Linear layers of the CPU backend against a double reference, for every kernel set that this CPU runs, and the promise
// that a row's bits depend on nothing but the row.
#include "worker/cpu/kernels.h"
#include "worker/cpu/linear.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const char *const kernel_sets[] = {"portable", "avx2", "avx512", "avx512bf16"};
enum { N_SETS = 4, MAX_PARTS = 3 };

static bool can_run(const char *kernel_set)
{
    const struct lvp_kernels *kernels;
    bool runs = lvp_kernels_find(kernel_set, &kernels) == LVP_OK;
    lvp_error_clear();
    return runs;
}

// The same numbers on every machine. In [-1, 1).
static float random_value(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return (float)((double)(int32_t)(*state >> 32) / 2147483648.0);
}

static void *checked_malloc(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 64) / 64 * 64);
    if (!memory) abort();
    return memory;
}

// How a layer computes: the model's type and the weights'.
struct path {
    enum lvp_dtype dtype, weights;
};
static const struct path paths[] = {
    {LVP_F32, LVP_F32}, {LVP_BF16, LVP_BF16}, {LVP_F16, LVP_F16}, {LVP_BF16, LVP_INT8}, {LVP_F32, LVP_INT8}};
enum { N_PATHS = sizeof paths / sizeof *paths };

// A tensor of random values whose bytes start at an odd address, as in a mapped file.
struct tensor {
    struct lvp_tensor_view view;
    char *memory;
};

static struct tensor random_tensor(int n_dims, const int64_t *shape, enum lvp_dtype dtype, uint64_t *state)
{
    struct tensor tensor = {.view = {.name = "test.weight", .dtype = dtype, .n_dims = n_dims}};
    size_t n = 1;
    for (int i = 0; i < n_dims; i++) {
        tensor.view.shape[i] = shape[i];
        n *= (size_t)shape[i];
    }
    tensor.view.n_bytes = n * lvp_dtype_size(dtype);
    tensor.memory = checked_malloc(tensor.view.n_bytes + 1);
    for (size_t i = 0; i < n; i++) {
        float value = random_value(state);
        uint16_t half = lvp_to_half(value, dtype);
        memcpy(tensor.memory + 1 + i * lvp_dtype_size(dtype), dtype == LVP_F32 ? (void *)&value : (void *)&half,
               lvp_dtype_size(dtype));
    }
    tensor.view.data = tensor.memory + 1;
    return tensor;
}

// One layer, its sources and its packed form.
struct layer {
    int n_parts, in, out;
    struct tensor weights[MAX_PARTS], biases[MAX_PARTS];
    struct lvp_linear_part parts[MAX_PARTS];
    struct lvp_linear *linear;
};

static void create_layer(struct layer *layer, struct lvp_pool *pool, const struct lvp_matmul_kernels *kernels,
                         const int *outs, int n_parts, int in, struct path path)
{
    uint64_t state = (uint64_t)in;
    *layer = (struct layer){.n_parts = n_parts, .in = in};
    for (int p = 0; p < n_parts; p++) {
        layer->weights[p] = random_tensor(2, (int64_t[]){outs[p], in}, (enum lvp_dtype)(p % 3), &state);
        layer->biases[p] = random_tensor(1, (int64_t[]){outs[p]}, (enum lvp_dtype)((p + 1) % 3), &state);
        layer->parts[p] =
            (struct lvp_linear_part){.weight = &layer->weights[p].view, .bias = p == 1 ? NULL : &layer->biases[p].view};
        layer->out += outs[p];
    }
    assert_int_equal(lvp_linear_pack(pool, kernels, layer->parts, n_parts, path.dtype, path.weights, &layer->linear),
                     LVP_OK);
    assert_int_equal(layer->linear->out, layer->out);
    assert_int_equal(layer->linear->in, in);
}

static void free_layer(struct layer *layer)
{
    lvp_linear_free(layer->linear);
    for (int p = 0; p < layer->n_parts; p++) {
        free(layer->weights[p].memory);
        free(layer->biases[p].memory);
    }
}

static float *random_rows(int n_rows, int width, uint64_t seed)
{
    float *x = checked_malloc((size_t)n_rows * (size_t)width * sizeof *x);
    for (size_t i = 0; i < (size_t)n_rows * (size_t)width; i++) x[i] = random_value(&seed);
    return x;
}

static double activate(enum lvp_activation activation, double x)
{
    switch (activation) {
    case LVP_ACT_NONE:
        return x;
    case LVP_ACT_GELU:
        return 0.5 * x * (1.0 + erf(x / sqrt(2.0)));
    case LVP_ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case LVP_ACT_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case LVP_ACT_SILU:
        return x / (1.0 + exp(-x));
    case LVP_ACT_RELU:
        return x > 0.0 ? x : 0.0;
    }
    return x;
}

// The exact result, and a bound on what f32 in a fixed order may lose: a sum of n terms added one by one is off by at
// most n * eps times the sum of their magnitudes (Higham, Accuracy and Stability, section 4.2); products may round too,
// and so does the bias. No activation here has a slope above 1.13; its own error is below 2e-7 of 1 + |value|. Rounding
// to bf16 or f16 adds half a unit of 8 or 11 bits. Of int8 weights the integers must be the same ones: what f32 adds
// are a few roundings of the sum.
static double reference(const struct layer *layer, struct path path, bool rounds_x, const float *x, int column,
                        struct lvp_epilogue epilogue, size_t at, double *bound)
{
    enum lvp_dtype dtype = path.dtype;
    int part = 0, row = column;
    while (row >= layer->weights[part].view.shape[0]) row -= (int)layer->weights[part++].view.shape[0];
    const struct lvp_tensor_view *weight = &layer->weights[part].view, *bias = layer->parts[part].bias;
    double sum = bias ? (double)lvp_round_to(lvp_load_f32(bias->data, bias->dtype, (size_t)row), dtype) : 0.0;
    double magnitude = fabs(sum);
    float largest_w = 0, largest_x = 0;
    for (int k = 0; k < layer->in; k++) {
        largest_w = fmaxf(largest_w, fabsf(lvp_load_f32(weight->data, weight->dtype, (size_t)(row * layer->in + k))));
        largest_x = fmaxf(largest_x, fabsf(x[k]));
    }
    double limit = floor(2147483647.0 / 127 / layer->in);
    float to_w = 127 / largest_w, to_x = (float)fmin(limit, 32767) / largest_x,
          back_x = largest_x / (float)fmin(limit, 32767);
    double products = 0;
    for (int k = 0; k < layer->in; k++) {
        float w = lvp_load_f32(weight->data, weight->dtype, (size_t)(row * layer->in + k));
        double product = path.weights == LVP_INT8
                             ? (double)rintf(w * to_w) * (double)rintf(x[k] * to_x)
                             : (double)lvp_round_to(w, dtype) *
                                   (double)(rounds_x && dtype == LVP_BF16 ? lvp_round_to(x[k], LVP_BF16) : x[k]);
        products += product;
        magnitude += path.weights == LVP_INT8 ? 0 : fabs(product);
    }
    if (path.weights == LVP_INT8) products *= (double)(largest_w / 127) * (double)back_x;
    sum += products;
    if (path.weights == LVP_INT8) magnitude += fabs(products);
    int roundings = path.weights == LVP_INT8 ? 4 : layer->in + 2;
    double value = activate(epilogue.activation, sum);
    *bound = 1.13 * magnitude * roundings * (FLT_EPSILON / 2) + 2e-7 * (1.0 + fabs(value));
    if (epilogue.add) value += (double)epilogue.add[at];
    *bound += FLT_EPSILON * fabs(value);
    if (epilogue.round && dtype != LVP_F32)
        *bound += (fabs(value) + *bound) / (dtype == LVP_BF16 ? 256.0 : 2048.0) + 0x1p-25; // f16 has subnormals
    return value;
}

static void check_against_reference(const char *kernel_set, struct path path, const int *outs, int n_parts, int in,
                                    int n_rows, struct lvp_epilogue epilogue, bool add)
{
    const struct lvp_matmul_kernels *kernels = lvp_matmul_kernels_find(kernel_set);
    struct lvp_pool *pool;
    struct layer layer;
    assert_int_equal(lvp_pool_create(1, &pool), LVP_OK);
    create_layer(&layer, pool, kernels, outs, n_parts, in, path);
    float *x = random_rows(n_rows, in, 7), *sums = random_rows(n_rows, layer.out, 11);
    float *y = random_rows(n_rows, layer.out, 11); // holds what is added, as the residual stream does
    void *scratch = checked_malloc(lvp_linear_scratch_bytes(1, n_rows, in));
    struct lvp_epilogue in_place = epilogue;
    in_place.add = add ? y : NULL;
    epilogue.add = add ? sums : NULL;
    lvp_linear_run(pool, kernels, layer.linear, x, n_rows, in_place, y, scratch);
    for (int row = 0; row < n_rows; row++) {
        for (int column = 0; column < layer.out; column++) {
            size_t at = (size_t)row * (size_t)layer.out + (size_t)column;
            double bound;
            double expected =
                reference(&layer, path, kernels->rounds_x, x + (size_t)row * (size_t)in, column, epilogue, at, &bound);
            if (!(fabs((double)y[at] - expected) <= bound)) {
                fail_msg("%s %s, %s weights [%d, %d], %d rows, activation %d: y[%d, %d] = %.9g, not %.9g within %.2g",
                         kernel_set, lvp_dtype_name(path.dtype), lvp_dtype_name(path.weights), layer.out, in, n_rows,
                         (int)epilogue.activation, row, column, (double)y[at], expected, bound);
            }
            if (epilogue.round) assert_true(y[at] == lvp_round_to(y[at], path.dtype));
        }
    }
    free(scratch), free(y), free(sums), free(x);
    free_layer(&layer);
    lvp_pool_destroy(pool);
}

static void test_values(void **state)
{
    (void)state;
    static const int shapes[][2] = {{1, 1}, {5, 3}, {16, 16}, {33, 31}, {100, 257}, {131, 1029}};
    static const int rows[] = {1, 2, 3, 5, 6, 7, 13, 40, 130};
    for (int set = 0; set < N_SETS; set++) {
        if (!can_run(kernel_sets[set])) continue;
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                struct lvp_epilogue epilogue = {.activation = LVP_ACT_NONE, .round = r % 2 == 0};
                for (size_t p = 0; p < N_PATHS; p++)
                    check_against_reference(kernel_sets[set], paths[p], &shapes[i][0], 1, shapes[i][1], rows[r],
                                            epilogue, (r + p) % 3 == 0);
            }
        }
    }
}

static void test_epilogues(void **state)
{
    (void)state;
    static const int outs[] = {37, 5, 70};
    for (int set = 0; set < N_SETS; set++) {
        if (!can_run(kernel_sets[set])) continue;
        for (int activation = LVP_ACT_NONE; activation <= LVP_ACT_RELU; activation++) {
            for (int variant = 0; variant < 4 * N_PATHS; variant++) {
                struct lvp_epilogue epilogue = {.activation = (enum lvp_activation)activation, .round = variant & 1};
                check_against_reference(kernel_sets[set], paths[variant / 4], outs, 3, 45, 9, epilogue,
                                        (variant & 2) != 0);
            }
        }
    }
}

// A batch of every size, at 1 to 4 threads, gives each row the bits that it has alone.
static void sweep(const char *kernel_set, struct path path, int out, int in, int max_rows, int every)
{
    const struct lvp_matmul_kernels *kernels = lvp_matmul_kernels_find(kernel_set);
    struct lvp_pool *pools[4];
    struct layer layer;
    for (int t = 0; t < 4; t++) assert_int_equal(lvp_pool_create(t + 1, &pools[t]), LVP_OK);
    create_layer(&layer, pools[0], kernels, &out, 1, in, path);
    float *x = random_rows(max_rows, in, 3), *add = random_rows(max_rows, out, 5);
    float *alone = random_rows(max_rows, out, 0), *y = random_rows(max_rows, out, 1);
    void *scratch = checked_malloc(lvp_linear_scratch_bytes(4, max_rows, in));
    struct lvp_epilogue epilogue = {.activation = LVP_ACT_SILU};
    for (int row = 0; row < max_rows; row++) {
        epilogue.add = add + (size_t)row * (size_t)out;
        lvp_linear_run(pools[0], kernels, layer.linear, x + (size_t)row * (size_t)in, 1, epilogue,
                       alone + (size_t)row * (size_t)out, scratch);
    }
    for (int n = 1; n <= max_rows; n += every) {
        // Ending at the last row, so that a row meets every place in a tile.
        size_t first = (size_t)(max_rows - n);
        size_t bytes = (size_t)n * (size_t)out * sizeof *y;
        epilogue.add = add + first * (size_t)out;
        memset(y, 0, bytes);
        lvp_linear_run(pools[n % 4], kernels, layer.linear, x + first * (size_t)in, n, epilogue, y, scratch);
        if (memcmp(y, alone + first * (size_t)out, bytes) != 0) {
            fail_msg("%s %s, %s weights [%d, %d]: %d rows on %d threads give other bits than one by one", kernel_set,
                     lvp_dtype_name(path.dtype), lvp_dtype_name(path.weights), out, in, n, n % 4 + 1);
        }
    }
    free(scratch), free(y), free(alone), free(add), free(x);
    free_layer(&layer);
    for (int t = 0; t < 4; t++) lvp_pool_destroy(pools[t]);
}

static void test_bits(void **state)
{
    (void)state;
    for (int set = 0; set < N_SETS; set++) {
        if (!can_run(kernel_sets[set])) continue;
        for (size_t p = 0; p < N_PATHS; p++) {
            sweep(kernel_sets[set], paths[p], 70, 67, 700, 1);
            sweep(kernel_sets[set], paths[p], 600, 1101, 130, 13); // several K blocks and column blocks
        }
    }
}

// Weights and rows of 127 and of the largest magnitude reach the edges of 32 bits and no further; rows that are not
// finite give NaN, and rows of zeros the bias.
static void test_int8_extremes(void **state)
{
    (void)state;
    enum { IN = 4097, OUT = 17, ROWS = 8 };
    float *weights = checked_malloc(sizeof(float[OUT * IN])), *x = checked_malloc(sizeof(float[ROWS * IN]));
    float y[ROWS * OUT];
    for (int i = 0; i < OUT * IN; i++) weights[i] = i / IN % 2 == 0 ? 2.0f : -2.0f;
    weights[16 * IN] = NAN; // the first of the last output's
    for (int i = 0; i < ROWS * IN; i++) x[i] = i / IN == 7 ? 0.0f : 3.0f;
    x[5 * IN + 4096] = NAN, x[6 * IN] = -INFINITY;
    struct lvp_tensor_view view = {.name = "w",
                                   .dtype = LVP_F32,
                                   .n_dims = 2,
                                   .shape = {OUT, IN},
                                   .data = weights,
                                   .n_bytes = sizeof(float[OUT * IN])};
    struct lvp_linear_part part = {.weight = &view};
    struct lvp_pool *pool;
    assert_int_equal(lvp_pool_create(1, &pool), LVP_OK);
    for (int set = 0; set < N_SETS; set++) {
        if (!can_run(kernel_sets[set])) continue;
        const struct lvp_matmul_kernels *kernels = lvp_matmul_kernels_find(kernel_sets[set]);
        struct lvp_linear *linear;
        void *scratch = checked_malloc(lvp_linear_scratch_bytes(1, ROWS, IN));
        assert_int_equal(lvp_linear_pack(pool, kernels, &part, 1, LVP_F32, LVP_INT8, &linear), LVP_OK);
        lvp_linear_run(pool, kernels, linear, x, ROWS, (struct lvp_epilogue){.activation = LVP_ACT_NONE}, y, scratch);
        for (int i = 0; i < ROWS * OUT; i++) {
            int row = i / OUT;
            double expected = row == 7 ? 0 : (i % OUT % 2 == 0 ? 6.0 : -6.0) * IN;
            if (row == 5 || row == 6 || i % OUT == 16)
                assert_true(isnan(y[i]));
            else
                assert_true(fabs((double)y[i] - expected) <= 1e-6 * fabs(expected));
        }
        lvp_linear_free(linear);
        free(scratch);
    }
    lvp_pool_destroy(pool);
    free(weights), free(x);
}

static void test_rejects(void **state)
{
    (void)state;
    uint64_t seed = 1;
    struct lvp_pool *pool;
    struct lvp_linear *linear;
    const struct lvp_matmul_kernels *kernels = lvp_matmul_kernels_find("portable");
    struct tensor a = random_tensor(2, (int64_t[]){4, 6}, LVP_F32, &seed);
    struct tensor b = random_tensor(4, (int64_t[]){4, 3, 2, 2}, LVP_F32, &seed);
    assert_int_equal(lvp_pool_create(1, &pool), LVP_OK);
    struct lvp_linear_part parts[2] = {{.weight = &a.view}, {.weight = &b.view}};
    assert_int_equal(lvp_linear_pack(pool, kernels, parts, 2, LVP_BF16, LVP_BF16, &linear),
                     LVP_ERR_MODEL); // 6 and 12 features
    assert_null(linear);
    lvp_error_clear();
    parts[0].bias = &b.view;
    assert_int_equal(lvp_linear_pack(pool, kernels, parts, 1, LVP_BF16, LVP_BF16, &linear), LVP_ERR_MODEL);
    lvp_error_clear();
    a.view.n_bytes--;
    parts[0].bias = NULL;
    assert_int_equal(lvp_linear_pack(pool, kernels, parts, 1, LVP_BF16, LVP_BF16, &linear), LVP_ERR_MODEL);
    lvp_error_clear();
    assert_int_equal(lvp_linear_pack(pool, kernels, parts + 1, 1, LVP_BF16, LVP_BF16, &linear),
                     LVP_OK); // a convolution
    assert_int_equal(linear->in, 12);
    lvp_linear_free(linear);
    assert_null(lvp_matmul_kernels_find("sse9"));
    lvp_pool_destroy(pool);
    free(a.memory), free(b.memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),        cmocka_unit_test(test_epilogues), cmocka_unit_test(test_bits),
        cmocka_unit_test(test_int8_extremes), cmocka_unit_test(test_rejects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
