// Row-wise operations of every kernel set: close to the reference, and a row's bits the same alone, in any batch, at
// any place and with any number of threads.
#include "tests/ops/fixture.h"

// Widths around the vector sizes (4, 8, 16 lanes, times four accumulators), odd ones, and a real one.
static const int widths[] = {1, 3, 7, 8, 9, 16, 17, 31, 33, 64, 67, 100, 129, 1024};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

// Every row-wise float operation, under one signature: x [n, width] (gate and up: [n, 2 width]) -> y [n, width].
enum row_op { LAYER_NORM, LAYER_NORM_ADD, RMS_NORM, GLU, N_ROW_OPS = GLU + 6 };

static void run_row_op(struct lvp_backend *backend, int op, const float *x, int n, int width, const float *weight,
                       const float *add, float *y)
{
    switch (op) {
    case LAYER_NORM:
        backend->ops->layer_norm(backend, x, n, width, weight, weight + 1, 1e-5f, NULL, false, y);
        break;
    case LAYER_NORM_ADD:
        backend->ops->layer_norm(backend, x, n, width, weight, weight + 1, 1e-5f, add, true, y);
        break;
    case RMS_NORM:
        backend->ops->rms_norm(backend, x, n, width, weight, 1e-5f, y);
        break;
    default:
        backend->ops->glu(backend, x, n, width, (enum lvp_activation)(op - GLU), y);
        break;
    }
}

static int input_width(int op, int width)
{
    return op >= GLU ? 2 * width : width;
}

static void rows_close(struct lvp_backend *fast, struct lvp_backend *ref)
{
    enum { ROWS = 5 };
    for (int w = 0; w < N_WIDTHS; w++) {
        size_t width = (size_t)widths[w];
        float *x = random_floats(ROWS * 2 * width), *weight = random_floats(width + 1),
              *add = random_floats(ROWS * width);
        float *got = make(ROWS * width, 4), *want = make(ROWS * width, 4);
        for (size_t i = 0; i < ROWS * 2 * width; i++) x[i] = 4 * x[i] + 1;
        for (int op = 0; op < N_ROW_OPS; op++) {
            run_row_op(fast, op, x, ROWS, widths[w], weight, add, got);
            run_row_op(ref, op, x, ROWS, widths[w], weight, add, want);
            // Sums in f32 lanes: some ulp of a sum of up to 1024 terms, magnified where a narrow row's variance is
            // small.
            check_close("row op", got, want, ROWS * width, 1e-5 + rounding_step(fast, op == LAYER_NORM_ADD));
            run_row_op(fast, op, x, 0, widths[w], weight, add, got); // no rows: nothing is written
            check_close("row op on 0 rows", got, want, ROWS * width, 1e-5 + rounding_step(fast, op == LAYER_NORM_ADD));
        }
        free(x), free(weight), free(add), free(got), free(want);
    }
}

// Large arguments of the activations: no overflow to NaN, and the same limits.
static void activation_tails(struct lvp_backend *fast, struct lvp_backend *ref)
{
    const float gate[] = {-1e30f, -200,  -100, -88, -30, -10, -5, -2,  -1e-3f, -1e-30f, 0,
                          1e-30f, 1e-3f, 2,    5,   10,  30,  88, 100, 200,    1e30f};
    enum { N = sizeof gate / sizeof *gate };
    float gate_up[2 * N], got[N], want[N];
    for (int i = 0; i < N; i++) gate_up[i] = gate[i], gate_up[N + i] = 1;
    for (int a = LVP_ACT_NONE; a <= LVP_ACT_RELU; a++) {
        fast->ops->glu(fast, gate_up, 1, N, (enum lvp_activation)a, got);
        ref->ops->glu(ref, gate_up, 1, N, (enum lvp_activation)a, want);
        check_close("activation", got, want, N, 1e-6);
    }
}

// Batch of n rows against each of them alone, n swept; and a row of NaN must not touch its neighbours.
static void rows_alone(struct lvp_backend *fast, struct lvp_backend *ref)
{
    (void)ref;
    enum { MAX_ROWS = 700, WIDTH = 67 };
    float *x = random_floats(MAX_ROWS * 2 * WIDTH), *weight = random_floats(WIDTH + 1),
          *add = random_floats(MAX_ROWS * WIDTH);
    float *alone = make(MAX_ROWS * WIDTH, 4), *batch = make(MAX_ROWS * WIDTH, 4);
    for (int op = 0; op < N_ROW_OPS; op++) {
        size_t in = (size_t)input_width(op, WIDTH);
        for (size_t i = 0; i < in; i++) x[3 * in + i] = NAN;
        for (size_t row = 0; row < MAX_ROWS; row++) {
            run_row_op(fast, op, x + row * in, 1, WIDTH, weight, add + row * WIDTH, alone + row * WIDTH);
        }
        for (int n = 1; n <= MAX_ROWS; n += n < 40 ? 1 : 33) {
            run_row_op(fast, op, x, n, WIDTH, weight, add, batch);
            check_bits("rows in a batch", batch, alone, (size_t)n * WIDTH);
        }
        for (size_t i = 0; i < in; i++) x[3 * in + i] = random_float();
    }
    free(x), free(weight), free(add), free(alone), free(batch);
}

static void rows_threads(struct lvp_backend *one, struct lvp_backend *many)
{
    static const int n_rows[] = {1, 2, 3, 7, 64, 321};
    enum { WIDTH = 129 };
    for (size_t s = 0; s < sizeof n_rows / sizeof *n_rows; s++) {
        size_t n = (size_t)n_rows[s];
        float *x = random_floats(n * 2 * WIDTH), *weight = random_floats(WIDTH + 1), *add = random_floats(n * WIDTH);
        float *a = make(n * WIDTH, 4), *b = make(n * WIDTH, 4);
        for (int op = 0; op < N_ROW_OPS; op++) {
            run_row_op(one, op, x, n_rows[s], WIDTH, weight, add, a);
            run_row_op(many, op, x, n_rows[s], WIDTH, weight, add, b);
            check_bits("rows by threads", b, a, n * WIDTH);
        }
        free(x), free(weight), free(add), free(a), free(b);
    }
}

static void embedding(struct lvp_backend *fast, struct lvp_backend *ref)
{
    enum { VOCAB = 11, ROWS = 300 };
    int32_t ids[ROWS], to[ROWS];
    for (int i = 0; i < ROWS; i++) ids[i] = random_below(VOCAB), to[i] = ROWS - 1 - i;
    for (int w = 0; w < N_WIDTHS; w++) {
        size_t width = (size_t)widths[w];
        float *table = random_floats(VOCAB * width), *got = make(ROWS * width, 4), *want = make(ROWS * width, 4);
        for (size_t i = 0; i < VOCAB * width && ref->dtype != LVP_F32; i++) // numbers, not any bits
            ((uint16_t *)(void *)table)[i] = lvp_to_half(random_float(), ref->dtype);
        fast->ops->embed(fast, table, ids, ROWS, widths[w], w % 2 ? to : NULL, got);
        ref->ops->embed(ref, table, ids, ROWS, widths[w], w % 2 ? to : NULL, want);
        check_bits("embed", got, want, ROWS * width);
        free(table), free(got), free(want);
    }
}

// Rotation is rounded product by product in both, so q and the cache are equal, not close.
static void check_rope(struct lvp_backend *fast, struct lvp_backend *ref, struct lvp_qkv_shape shape, int n)
{
    enum { POSITIONS = 50, PAGES = 20 };
    size_t head_dim = (size_t)shape.head_dim, heads = (size_t)shape.heads, kv_heads = (size_t)shape.kv_heads;
    size_t width = (heads + 2 * kv_heads) * head_dim, cache = PAGES * kv_heads * head_dim * LVP_KV_PAGE;
    float *qkv[2] = {random_floats((size_t)n * width), make((size_t)n * width, 4)},
          *rope = random_floats(POSITIONS * head_dim);
    void *k[2] = {make(cache, 4), make(cache, 4)}, *v[2] = {make(cache, 4), make(cache, 4)};
    int32_t *positions = make((size_t)n, 4), *slots = make((size_t)n, 4);
    memcpy(qkv[1], qkv[0], (size_t)n * width * 4);
    for (int i = 0; i < n; i++) positions[i] = random_below(POSITIONS), slots[i] = (i * 7 + 3) % (PAGES * LVP_KV_PAGE);
    fast->ops->rope_kv_write(fast, qkv[0], n, shape, positions, rope, slots, (struct lvp_kv_layer){k[0], v[0]});
    ref->ops->rope_kv_write(ref, qkv[1], n, shape, positions, rope, slots, (struct lvp_kv_layer){k[1], v[1]});
    for (size_t row = 0; row < (size_t)n; row++)
        check_bits("rope", qkv[0] + row * width, qkv[1] + row * width, heads * head_dim);
    check_bits("cached k", k[0], k[1], cache);
    check_bits("cached v", v[0], v[1], cache);
    for (int i = 0; i < 2; i++) free(qkv[i]), free(k[i]), free(v[i]);
    free(rope), free(positions), free(slots);
}

static void rope(struct lvp_backend *fast, struct lvp_backend *ref)
{
    static const int head_dims[] = {1, 2, 6, 10, 16, 20, 34, 64, 66, 128};
    for (size_t i = 0; i < sizeof head_dims / sizeof *head_dims; i++) {
        check_rope(fast, ref, (struct lvp_qkv_shape){2, 2, head_dims[i]}, 1);
        check_rope(fast, ref, (struct lvp_qkv_shape){6, 2, head_dims[i]}, 37);
        check_rope(fast, ref, (struct lvp_qkv_shape){1, 1, head_dims[i]}, 320);
        check_rope(fast, ref, (struct lvp_qkv_shape){1, 1, head_dims[i]}, 0);
    }
}

static void rope_threads(struct lvp_backend *one, struct lvp_backend *many)
{
    check_rope(many, one, (struct lvp_qkv_shape){6, 2, 34}, 3);
    check_rope(many, one, (struct lvp_qkv_shape){6, 2, 34}, 200);
}

static void all_rows_close(void **state)
{
    (void)state, for_each_device(rows_close);
}
static void all_activation_tails(void **state)
{
    (void)state, for_each_device(activation_tails);
}
static void all_rows_alone(void **state)
{
    (void)state, for_each_backend(rows_alone);
}
static void all_rows_threads(void **state)
{
    (void)state, for_each_thread_count(rows_threads);
}
static void all_embedding(void **state)
{
    (void)state, for_each_device(embedding);
}
static void all_rope(void **state)
{
    (void)state, for_each_device(rope);
}
static void all_rope_threads(void **state)
{
    (void)state, for_each_thread_count(rope_threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_rows_close),   cmocka_unit_test(all_activation_tails), cmocka_unit_test(all_rows_alone),
        cmocka_unit_test(all_rows_threads), cmocka_unit_test(all_embedding),        cmocka_unit_test(all_rope),
        cmocka_unit_test(all_rope_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
