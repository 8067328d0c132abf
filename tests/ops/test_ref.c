// The reference against values worked out by hand or by another formula: everything else is held against the reference.
#include "tests/ops/fixture.h"

#include "worker/philox.h"

static struct lvp_backend *open_ref(enum lvp_dtype dtype)
{
    struct lvp_backend *backend = NULL;
    assert_int_equal(lvp_ref_backend_open(dtype, &backend), LVP_OK);
    return backend;
}

static void philox_known_answers(void **state)
{
    (void)state; // kat_vectors of Random123 1.14, philox4x32 10
    struct lvp_philox zeros = lvp_philox(0, (struct lvp_philox){{0, 0, 0, 0}});
    assert_memory_equal(zeros.word, ((uint32_t[]){0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}), 16);
    struct lvp_philox ones = lvp_philox(~0ULL, (struct lvp_philox){{~0U, ~0U, ~0U, ~0U}});
    assert_memory_equal(ones.word, ((uint32_t[]){0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}), 16);
    struct lvp_philox pi =
        lvp_philox(0x299f31d0a4093822U, (struct lvp_philox){{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}});
    assert_memory_equal(pi.word, ((uint32_t[]){0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}), 16);
}

static void norms(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_BF16);
    const float x[] = {1, 2, 3, 4, -2, 0, 0, 2}, weight[] = {1, 2, 1, 1}, bias[] = {0, 0, 0.5f, 0};
    const float add[] = {0, 0, 0, 1, 0, 0, 0, 0};
    float y[8];
    ref->ops->layer_norm(ref, x, 2, 4, weight, bias, 0.0f, add, false, y);
    // mean 2.5, variance 1.25; mean 0, variance 2
    const float layer[] = {-1.34164079f, -0.89442719f, 0.94721360f, 2.34164079f, -1.41421356f, 0, 0.5f, 1.41421356f};
    check_close("layer_norm", y, layer, 8, 1e-7);
    ref->ops->layer_norm(ref, x, 1, 4, weight, bias, 0.0f, NULL, true, y);
    assert_true(y[0] == -1.34375f); // the nearest of 8 significant bits
    ref->ops->rms_norm(ref, x, 2, 4, weight, 0.5f, y);
    // sqrt(30 / 4 + 0.5) = sqrt(8); sqrt(8 / 4 + 0.5) = sqrt(2.5)
    const float rms[] = {0.35355339f, 1.41421356f, 1.06066017f, 1.41421356f, -1.26491106f, 0, 0, 1.26491106f};
    check_close("rms_norm", y, rms, 8, 1e-7);
    ref->ops->close(ref);
}

static void activations(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_F32);
    const float gate_up[] = {1, -1, 2, 3};
    // By the formulas, x = 1 and -1: erf GELU, tanh GELU, x sigmoid(1.702 x), x sigmoid(x), max(x, 0)
    const float wanted[][2] = {{1, -1},
                               {0.84134475f, -0.15865525f},
                               {0.84119199f, -0.15880801f},
                               {0.84579577f, -0.15420423f},
                               {0.73105858f, -0.26894142f},
                               {1, 0}};
    for (int a = LVP_ACT_NONE; a <= LVP_ACT_RELU; a++) {
        float y[2];
        ref->ops->glu(ref, gate_up, 1, 2, (enum lvp_activation)a, y);
        check_close("glu", y, (float[]){wanted[a][0] * 2, wanted[a][1] * 3}, 2, 2e-7);
    }
    ref->ops->close(ref);
}

static void linear(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_BF16);
    float first[] = {1, 2, 3, 4, 5, 6}, second[] = {1.00390625f, 0, 0}, bias[] = {10, 20}; // 1 + 2^-8 rounds to 1
    struct lvp_tensor_view views[] = {
        {.name = "a", .dtype = LVP_F32, .n_dims = 2, .shape = {2, 3}, .data = first},
        {.name = "b", .dtype = LVP_F32, .n_dims = 4, .shape = {1, 3, 1, 1}, .data = second},
        {.name = "bias", .dtype = LVP_F32, .n_dims = 1, .shape = {2}, .data = bias},
    };
    struct lvp_linear_part parts[] = {{&views[0], &views[2]}, {&views[1], NULL}};
    struct lvp_linear *layer = NULL;
    assert_int_equal(ref->ops->linear_create(ref, parts, 2, ref->dtype, &layer), LVP_OK);
    const float x[] = {1, 0, -1, 3, 1, 1}, add[] = {1, 1, 1, 1, 1, 1};
    float y[6];
    ref->ops->linear(ref, layer, x, 2, (struct lvp_epilogue){LVP_ACT_NONE, NULL, false}, y);
    check_bits("linear", y, (float[]){8, 18, 1, 18, 43, 3}, 6);
    ref->ops->linear(ref, layer, x, 2, (struct lvp_epilogue){LVP_ACT_RELU, add, true}, y);
    check_bits("linear with add", y, (float[]){9, 19, 2, 19, 44, 4}, 6);
    ref->ops->linear_destroy(ref, layer);

    parts[1].weight = &views[2];
    assert_int_equal(ref->ops->linear_create(ref, parts, 2, ref->dtype, &layer), LVP_ERR_MODEL);
    lvp_error_clear();
    ref->ops->close(ref);
}

static void rows(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_F32);
    float pixels[3 * 4 * 4], y[48];
    for (int i = 0; i < 48; i++) pixels[i] = (float)i;
    ref->ops->unfold_patches(ref, pixels, 1, 4, 2, y);
    check_bits("patch 0", y, (float[]){0, 1, 4, 5, 16, 17, 20, 21, 32, 33, 36, 37}, 12);
    check_bits("patch 3", y + 36, (float[]){10, 11, 14, 15, 26, 27, 30, 31, 42, 43, 46, 47}, 12);

    ref->ops->vit_embed(ref, (float[]){1, 2, 3, 4}, (float[]){5}, (float[]){10, 20, 30}, 2, 2, 1, y);
    check_bits("vit_embed", y, (float[]){15, 21, 32, 15, 23, 34}, 6);

    const float table[] = {1, 2, 3, 4, 5, 6};
    ref->ops->embed(ref, table, (int32_t[]){2, 0}, 2, 2, (int32_t[]){1, 0}, y);
    check_bits("embed", y, (float[]){1, 2, 5, 6}, 4);
    ref->ops->copy_rows(ref, table, (int32_t[]){2, 1}, 2, 2, y, (int32_t[]){1, 2});
    check_bits("copy_rows", y, (float[]){1, 2, 5, 6, 3, 4}, 6);
    ref->ops->close(ref);
}

// A quarter turn in the only pair: (x, y) -> (-y, x).
static void rope_and_cache(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_BF16);
    float qkv[] = {1, 2, 3, 4, 5, 6.01f};
    const float rope[] = {1, 0, 0, 1}; // position 0: no turn; position 1: cos 0, sin 1
    uint16_t k[2 * 2 * LVP_KV_PAGE] = {0}, v[2 * 2 * LVP_KV_PAGE] = {0};
    struct lvp_qkv_shape shape = {1, 1, 2};
    ref->ops->rope_kv_write(ref, qkv, 1, shape, (int32_t[]){1}, rope, (int32_t[]){LVP_KV_PAGE + 3},
                            (struct lvp_kv_layer){k, v});
    check_bits("q", qkv, (float[]){-2, 1}, 2);
    assert_int_equal(k[2 * LVP_KV_PAGE + 3], lvp_f32_to_bf16(-4));
    assert_int_equal(k[2 * LVP_KV_PAGE + LVP_KV_PAGE + 3], lvp_f32_to_bf16(3));
    assert_int_equal(v[2 * LVP_KV_PAGE + 3 * 2], lvp_f32_to_bf16(5));
    assert_int_equal(v[2 * LVP_KV_PAGE + 3 * 2 + 1], lvp_f32_to_bf16(6)); // a step is 2^-5 there

    // One slot: attention gives its value back. The page is the block table's.
    float out[2];
    struct lvp_paged_attention attention = {
        1, 1, (int32_t[]){0, 1}, (int32_t[]){1}, (int32_t[]){1}, 1, 1, 1, shape, {k, v}, qkv, out};
    for (int i = 0; i < 2; i++) k[2 * LVP_KV_PAGE + i * LVP_KV_PAGE] = k[2 * LVP_KV_PAGE + i * LVP_KV_PAGE + 3];
    v[2 * LVP_KV_PAGE] = lvp_f32_to_bf16(7);
    v[2 * LVP_KV_PAGE + 1] = lvp_f32_to_bf16(8);
    ref->ops->paged_attention(ref, &attention);
    check_bits("one slot", out, (float[]){7, 8}, 2);
    ref->ops->close(ref);
}

static void attention(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_F32);
    // Logits ln 3 and 0 after the scale: weights 3/4 and 1/4. Segment 1 has no keys.
    const float q[] = {1, 1}, k[] = {2.19722458f, 0}, v[] = {4, 8};
    float out[2] = {9, 9};
    struct lvp_dense_attention dense = {2, 2, 1,    1,  (int32_t[]){0, 1, 2}, (int32_t[]){0, 2, 2}, q, k, v,
                                        1, 1, 0.5f, out};
    ref->ops->dense_attention(ref, &dense);
    check_close("dense", out, (float[]){5, 0}, 2, 1e-6);

    // Two rows of one sequence, head_dim 1: the first sees one slot, the second both (weights 3/4 for k = ln 3).
    float pages_k[LVP_KV_PAGE] = {1.09861229f, 0, NAN}, pages_v[LVP_KV_PAGE] = {4, 8, NAN};
    const float qkv[] = {1, 0, 0, 1, 0, 0};
    struct lvp_paged_attention paged = {
        1, 2, (int32_t[]){0, 2}, (int32_t[]){2}, (int32_t[]){0}, 1, 2, 2, {1, 1, 1}, {pages_k, pages_v}, qkv, out};
    ref->ops->paged_attention(ref, &paged);
    check_close("paged", out, (float[]){4, 5}, 2, 1e-6);
    ref->ops->close(ref);
}

static void selection(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_F32);
    // Rows: text, image 0 (4 rows), text, image 1 (2 rows). Scores: 1, NaN, 2, 1 and 0, 0.
    const float gate[] = {2, 1, NAN, 0, 2, 0, 0, -1, 5, 5, 0, 0};
    int32_t survivors[8] = {0};
    struct lvp_row_selection rows_left = {
        8, 2, (int32_t[]){1, 6}, (int32_t[]){4, 2}, (int32_t[]){0, 4, 6}, (int32_t[]){2, 1}, gate, survivors};
    ref->ops->select_rows(ref, &rows_left);
    assert_memory_equal(survivors, ((int32_t[]){0, 1, 3, 5, 6}), 5 * sizeof(int32_t)); // of equal scores the lower row
    rows_left.keep = (int32_t[]){0, 0};
    ref->ops->select_rows(ref, &rows_left);
    assert_memory_equal(survivors, ((int32_t[]){0, 5}), 2 * sizeof(int32_t));
    ref->ops->close(ref);
}

static void sampling(void **state)
{
    (void)state;
    struct lvp_backend *ref = open_ref(LVP_F32);
    const float logits[] = {0, 1.09861229f, NAN, 1.09861229f}; // weights 1, 3, 0, 3
    enum { DRAWS = 20000 };
    int32_t token = -1;
    float logprob = 0;
    struct lvp_draw params = {.temperature = 0.0f, .top_p = 1.0f, .scored = -1};
    ref->ops->sample(ref, logits, 1, 4, &params, &token, &logprob);
    assert_int_equal(token, 1);
    assert_true(fabs((double)logprob - log(3.0 / 7.0)) < 1e-6);

    // Temperature 1/2 squares the weights: 1, 9, 9. 3 sigma of a share of 9/19 in 20000 draws is 1.06 %.
    int count[4] = {0};
    for (uint32_t i = 0; i < DRAWS; i++) {
        params = (struct lvp_draw){lvp_token_uniform(7, i), 0.5f, 1.0f, -1};
        ref->ops->sample(ref, logits, 1, 4, &params, &token, &logprob);
        count[token]++;
        assert_true(fabs((double)logprob - log(token == 0 ? 1.0 / 7.0 : 3.0 / 7.0)) <
                    1e-6); // of the unscaled distribution
    }
    assert_int_equal(count[2], 0);
    assert_true(fabs(count[1] / (double)DRAWS - 9.0 / 19.0) < 0.0106);
    assert_true(fabs(count[3] / (double)DRAWS - 9.0 / 19.0) < 0.0106);

    // 18/19 of the weight are reached by two tokens: the third never comes, and 9/19 keep the first only.
    for (uint32_t i = 0; i < 200; i++) {
        params = (struct lvp_draw){lvp_token_uniform(7, i), 0.5f, 0.9f, -1};
        ref->ops->sample(ref, logits, 1, 4, &params, &token, &logprob);
        assert_true(token == 1 || token == 3);
        params.top_p = 0.4f;
        ref->ops->sample(ref, logits, 1, 4, &params, &token, &logprob);
        assert_int_equal(token, 1);
    }
    ref->ops->close(ref);
}

// The reference and the fast kernels, each with its own packing: int8 weights must become the same integers in both.
static void linear_agrees(struct lvp_backend *fast, struct lvp_backend *ref)
{
    enum { OUT = 37, IN = 301, ROWS = 9 };
    float *weight = random_floats((size_t)OUT * IN), *bias = random_floats(OUT), *x = random_floats((size_t)ROWS * IN);
    float *got = make((size_t)ROWS * OUT, 4), *want = make((size_t)ROWS * OUT, 4);
    for (int i = 0; i < IN; i++) x[i] *= i == 7 ? 1000.0f : 1.0f; // a row with one large feature
    const struct lvp_tensor_view weights = {.name = "w",
                                            .dtype = LVP_F32,
                                            .n_dims = 2,
                                            .shape = {OUT, IN},
                                            .data = weight,
                                            .n_bytes = sizeof(float[OUT * IN])};
    const struct lvp_tensor_view biases = {
        .name = "b", .dtype = LVP_F32, .n_dims = 1, .shape = {OUT}, .data = bias, .n_bytes = sizeof(float[OUT])};
    const struct lvp_linear_part part = {&weights, &biases};
    for (int int8 = 0; int8 < 2; int8++) {
        enum lvp_dtype type = int8 ? LVP_INT8 : fast->dtype;
        struct lvp_linear *layers[2] = {NULL};
        const struct lvp_epilogue plain = {.activation = LVP_ACT_NONE};
        assert_int_equal(fast->ops->linear_create(fast, &part, 1, type, &layers[0]), LVP_OK);
        assert_int_equal(ref->ops->linear_create(ref, &part, 1, type, &layers[1]), LVP_OK);
        fast->ops->linear(fast, layers[0], x, ROWS, plain, got);
        ref->ops->linear(ref, layers[1], x, ROWS, plain, want);
        // Of exact integers only the scales are rounded; else 301 products of up to 1000, on avx512bf16 of bf16 rows.
        bool rounds_x = strcmp(fast->kernel_set, "avx512bf16") == 0 && type == LVP_BF16;
        for (int i = 0; i < ROWS * OUT; i++) {
            double largest = i / OUT == 0 ? 1000 : 1;
            double bound = int8       ? 1e-6 * (fabs((double)want[i]) + 1)
                           : rounds_x ? 0x1p-8 * IN * largest
                                      : 1e-5 * IN * largest;
            if (!(fabs((double)got[i] - (double)want[i]) <= bound))
                fail_msg("%s %s: output %d is %g, not %g", fast->kernel_set, lvp_dtype_name(type), i, (double)got[i],
                         (double)want[i]);
        }
        fast->ops->linear_destroy(fast, layers[0]);
        ref->ops->linear_destroy(ref, layers[1]);
    }
    free(weight), free(bias), free(x), free(got), free(want);
}

static void linear_like_the_fast_ones(void **state)
{
    (void)state;
    for_each_backend(linear_agrees);
}

static void refused(void **state)
{
    (void)state;
    struct lvp_backend *backend = NULL;
    assert_int_equal(lvp_ref_backend_open(LVP_INT8, &backend), LVP_ERR_USAGE);
    lvp_error_clear();
    assert_int_equal(lvp_cpu_backend_open("sse9", LVP_F32, 1, &test_limits, &backend), LVP_ERR_USAGE);
    assert_non_null(strstr(lvp_error_text(), "sse9"));
    lvp_error_clear();
    assert_int_equal(setenv("LVP_ISA", "sse8", 1), 0);
    assert_null(lvp_cpu_best_kernel_set());
    assert_non_null(strstr(lvp_error_text(), "LVP_ISA"));
    lvp_error_clear();
    assert_int_equal(setenv("LVP_ISA", "portable", 1), 0);
    assert_string_equal(lvp_cpu_best_kernel_set(), "portable");
    assert_int_equal(unsetenv("LVP_ISA"), 0);
    assert_non_null(lvp_cpu_best_kernel_set());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(norms),
        cmocka_unit_test(activations),
        cmocka_unit_test(linear),
        cmocka_unit_test(linear_like_the_fast_ones),
        cmocka_unit_test(rows),
        cmocka_unit_test(rope_and_cache),
        cmocka_unit_test(attention),
        cmocka_unit_test(selection),
        cmocka_unit_test(sampling),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
