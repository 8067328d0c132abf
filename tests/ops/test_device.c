// What every device does beside its kernels: linear layers against the reference (test_linear.c knows the CPU's
// better), and rows on their way to a transport's memory and back.
#include "tests/ops/fixture.h"

#include <pthread.h>

enum { MAX_PARTS = 3, IN = 84, MAX_ROWS = 130 };

static struct lvp_tensor_view view_of(const char *name, const float *data, int out, int in)
{
    return (struct lvp_tensor_view){.name = name,
                                    .dtype = LVP_F32,
                                    .n_dims = in == 0 ? 1 : 2,
                                    .shape = {out, in},
                                    .data = data,
                                    .n_bytes = sizeof *data * (size_t)out * (size_t)(in == 0 ? 1 : in)};
}

static void run_linear(struct lvp_backend *backend, const struct lvp_linear_part *parts, int n_parts, const float *x,
                       int n_rows, struct lvp_epilogue epilogue, float *y)
{
    struct lvp_linear *linear = NULL;
    assert_int_equal(backend->ops->linear_create(backend, parts, n_parts, backend->dtype, &linear), LVP_OK);
    backend->ops->linear(backend, linear, x, n_rows, epilogue, y);
    backend->ops->linear_destroy(backend, linear);
}

// Weights are exact in every dtype, and rows are rounded to it on both sides: what remains is the order of sums.
static void linear(struct lvp_backend *fast, struct lvp_backend *ref)
{
    static const int outs[][MAX_PARTS] = {{1}, {20}, {64, 16, 16}, {100, 100}}, counts[] = {1, 1, 3, 2};
    static const int rows[] = {0, 1, 2, 17, MAX_ROWS};
    for (int c = 0; c < 4; c++) {
        struct lvp_tensor_view weights[MAX_PARTS], biases[MAX_PARTS];
        struct lvp_linear_part parts[MAX_PARTS];
        float *values[MAX_PARTS];
        int out = 0;
        for (int p = 0; p < counts[c]; p++) {
            size_t n = (size_t)outs[c][p];
            values[p] = make(n * (IN + 1), sizeof(float));
            for (size_t i = 0; i < n * (IN + 1); i++) values[p][i] = (float)(random_below(17) - 8) / 16;
            weights[p] = view_of("weight", values[p], outs[c][p], IN);
            biases[p] = view_of("bias", values[p] + n * IN, outs[c][p], 0);
            parts[p] = (struct lvp_linear_part){&weights[p], c % 2 == 0 ? NULL : &biases[p]};
            out += outs[c][p];
        }
        for (int r = 0; r < 5; r++) {
            size_t n = (size_t)(rows[r] * out);
            float *x = make((size_t)(rows[r] * IN), sizeof *x), *add = random_floats(n);
            for (int i = 0; i < rows[r] * IN; i++) x[i] = (float)(random_below(65) - 32) / 32;
            for (int e = 0; e < 4; e++) {
                struct lvp_epilogue epilogue = {.activation = e == 1   ? LVP_ACT_QUICK_GELU
                                                              : e == 2 ? LVP_ACT_GELU
                                                                       : LVP_ACT_NONE,
                                                .add = e == 3 ? add : NULL,
                                                .round = e == 3};
                float *got = make(n, sizeof *got), *want = make(n, sizeof *want);
                run_linear(fast, parts, counts[c], x, rows[r], epilogue, got);
                run_linear(ref, parts, counts[c], x, rows[r], epilogue, want);
                check_close("linear", got, want, n, 1e-5 + rounding_step(fast, epilogue.round));
                free(got), free(want);
            }
            free(x), free(add);
        }
        for (int p = 0; p < counts[c]; p++) free(values[p]);
    }
}

// store rounds as the model's dtype does, load gives exactly that back, wherever the payload lies.
static void payload(struct lvp_backend *fast, struct lvp_backend *ref)
{
    enum { MOST = 5000 };
    static const size_t counts[] = {0, 1, 255, 257, MOST};
    for (int place = 0; place < (is_gpu(fast) ? 2 : 1); place++)
        for (int c = 0; c < 5; c++) {
            size_t n = counts[c];
            float *x = random_floats(n), *got = make(n, sizeof *got), *want = make(n, sizeof *want);
            void *there = NULL, *plain = NULL;
            assert_int_equal(fast->ops->payload_alloc(fast, n * sizeof *x, place == 1, &there), LVP_OK);
            assert_int_equal(ref->ops->payload_alloc(ref, n * sizeof *x, false, &plain), LVP_OK);
            fast->ops->store(fast, x, n, there);
            ref->ops->store(ref, x, n, plain);
            if (place == 0) assert_memory_equal(there, plain, n * lvp_dtype_size(fast->dtype));
            fast->ops->load(fast, there, n, got);
            ref->ops->load(ref, plain, n, want);
            check_bits("payload", got, want, n);
            fast->ops->payload_free(fast, there);
            ref->ops->payload_free(ref, plain);
            free(x), free(got), free(want);
        }
}

static void all_linear(void **state)
{
    (void)state, for_each_device(linear);
}
static void all_payload(void **state)
{
    (void)state, for_each_device(payload);
}

// What the thread that communicates does with the backend of the one that computes: it is not bound to the device.
static void *measure_and_close(void *argument)
{
    struct lvp_backend *backend = argument;
    struct lvp_roof roof = {0};
    void *memory = NULL, *payload = NULL;
    bool right = backend->ops->alloc(backend, 64, &memory) == LVP_OK &&
                 backend->ops->payload_alloc(backend, 64, true, &payload) == LVP_OK;
    if (right) backend->ops->load(backend, payload, 8, memory);
    right = right && backend->ops->roof(backend, &roof) == LVP_OK && roof.flops > 0 && roof.read_bytes > 0;
    backend->ops->payload_free(backend, payload);
    backend->ops->free(backend, memory);
    backend->ops->close(backend);
    return right ? argument : NULL;
}

static void test_unbound_thread(void **state)
{
    (void)state;
    static const struct lvp_backend_limits small = {.max_rows = 1, .max_width = 64, .max_kv_len = 16, .max_vocab = 16};
    struct lvp_backend *backend = NULL;
    pthread_t thread;
    void *right = NULL;
    if (lvp_gpus_find()->n < 2) skip();
    assert_int_equal(lvp_backend_open(1, NULL, LVP_F32, 1, &small, &backend), LVP_OK);
    assert_int_equal(pthread_create(&thread, NULL, measure_and_close, backend), 0);
    assert_int_equal(pthread_join(thread, &right), 0);
    assert_non_null(right);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_unbound_thread), cmocka_unit_test(all_linear),
                                       cmocka_unit_test(all_payload)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
