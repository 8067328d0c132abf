// Choosing rows at a prune point and tokens: every kernel set against the reference, alone and in a batch.
#include "tests/ops/fixture.h"
#include "worker/philox.h"

// Random images between random stretches of text; scores of few distinct values, so that ties are common.
static void check_selection(struct lvp_backend *fast, struct lvp_backend *ref, int n_images)
{
    enum { MAX_IMAGES = 4, MAX_ROWS = 3072 };
    int32_t image_row[MAX_IMAGES], image_len[MAX_IMAGES], gate_start[MAX_IMAGES + 1] = {0}, keep[MAX_IMAGES];
    int32_t got[MAX_ROWS], want[MAX_ROWS];
    int n_rows = random_below(20), survivors = 0;
    for (int i = 0; i < n_images; i++) {
        image_row[i] = n_rows;
        image_len[i] = n_images == 1 ? 2880 : random_below(230); // five crops of an image, or few rows
        keep[i] = random_below(image_len[i] + 1);
        gate_start[i + 1] = gate_start[i] + image_len[i];
        survivors -= image_len[i] - keep[i];
        n_rows += image_len[i] + random_below(20);
    }
    survivors += n_rows;
    float *gate = make(2 * (size_t)gate_start[n_images], sizeof *gate);
    for (int i = 0; i < 2 * gate_start[n_images]; i++) {
        const float special[] = {NAN, INFINITY, -INFINITY, -0.0f};
        gate[i] = random_below(40) == 0 ? special[random_below(4)] : (float)random_below(5) - 2;
    }
    struct lvp_row_selection selection = {n_rows, n_images, image_row, image_len, gate_start, keep, gate, got};
    fast->ops->select_rows(fast, &selection);
    selection.survivors = want;
    ref->ops->select_rows(ref, &selection);
    for (int i = 0; i < survivors; i++) assert_int_equal(got[i], want[i]);
    free(gate);
}

// Emulated blocks are slow: in each of their orders of threads fewer cases must do.
static int cases(int number)
{
    return getenv("LVP_TESTS_GPU_ONLY") == NULL ? number : number / 4;
}

static void selection(struct lvp_backend *fast, struct lvp_backend *ref)
{
    for (int i = 0; i < cases(200); i++) check_selection(fast, ref, i % 5);
}

static struct lvp_draw random_draw(void)
{
    static const float temperatures[] = {0, 1e-6f, 0.2f, 0.7f, 1, 3}, top_ps[] = {1e-6f, 0.1f, 0.5f, 0.9f, 0.999f, 1};
    uint64_t key = (uint64_t)random_bits() << 32 | random_bits();
    float temperature = temperatures[random_below(6)], top_p = top_ps[random_below(6)];
    return (struct lvp_draw){lvp_token_uniform(key, (uint32_t)random_below(500)), temperature, top_p, -1};
}

// Distinct and equal logits, NaN and -infinity among them. The draw could only differ from the reference's where the
// uniform number lies within 1e-6 of a token's edge; the seed is fixed and none does.
static void sampling(struct lvp_backend *fast, struct lvp_backend *ref)
{
    static const int vocabs[] = {1, 2, 5, 17, 100, 513, 1999};
    enum { ROWS = 40 };
    int n = cases(ROWS);
    random_state = 12345;
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++) {
        int vocab = vocabs[v];
        float *logits = random_floats(ROWS * (size_t)vocab), logprobs[ROWS], wanted_logprobs[ROWS];
        int32_t tokens[ROWS], wanted[ROWS];
        struct lvp_draw draws[ROWS];
        for (int i = 0; i < ROWS * vocab; i++) {
            logits[i] *= 8;
            if (random_below(4) == 0) logits[i] = (float)random_below(7);
            if (random_below(50) == 0) logits[i] = random_below(2) ? NAN : -INFINITY;
        }
        for (int i = 0; i < vocab; i++) logits[i] = i % 2 ? NAN : -INFINITY; // row 0: nothing to choose from
        for (int i = 0; i < ROWS; i++) draws[i] = random_draw();
        for (int i = 0; i < ROWS; i += 3) draws[i].scored = random_below(vocab);
        fast->ops->sample(fast, logits, n, vocab, draws, tokens, logprobs);
        ref->ops->sample(ref, logits, n, vocab, draws, wanted, wanted_logprobs);
        for (int i = 0; i < n; i++) assert_int_equal(tokens[i], wanted[i]);
        check_close("logprob", logprobs, wanted_logprobs, (size_t)n, 1e-6);
        assert_int_equal(tokens[0], 0);
        for (int i = 0; i < n; i++) {
            int32_t token = -1;
            float logprob = 0;
            fast->ops->sample(fast, logits + (size_t)i * (size_t)vocab, 1, vocab, &draws[i], &token, &logprob);
            assert_int_equal(token, tokens[i]);
            check_bits("logprob alone", &logprob, &logprobs[i], 1);
        }
        fast->ops->sample(fast, logits, 0, vocab, draws, tokens, logprobs);
        free(logits);
    }
}

static void sampling_threads(struct lvp_backend *one, struct lvp_backend *many)
{
    enum { ROWS = 7, VOCAB = 1500 };
    float *logits = random_floats(ROWS * VOCAB), logprobs[2][ROWS];
    int32_t tokens[2][ROWS];
    struct lvp_draw draws[ROWS];
    for (int i = 0; i < ROWS; i++) draws[i] = random_draw();
    one->ops->sample(one, logits, ROWS, VOCAB, draws, tokens[0], logprobs[0]);
    many->ops->sample(many, logits, ROWS, VOCAB, draws, tokens[1], logprobs[1]);
    check_bits("tokens by threads", tokens[1], tokens[0], ROWS);
    check_bits("logprobs by threads", logprobs[1], logprobs[0], ROWS);
    free(logits);
}

static void all_selection(void **state)
{
    (void)state, for_each_device(selection);
}
static void all_sampling(void **state)
{
    (void)state, for_each_device(sampling);
}
static void all_sampling_threads(void **state)
{
    (void)state, for_each_thread_count(sampling_threads);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_selection),
        cmocka_unit_test(all_sampling),
        cmocka_unit_test(all_sampling_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
