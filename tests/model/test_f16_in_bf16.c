// An f16 checkpoint run in bf16 against the same in f32: how much the logits move and how many kept tokens stay the
// same. Prints the figures docs/design.md reports; fails when they leave the range that rounding to 8 bits of mantissa
// explains.
#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define MODEL "tests/golden/models/sparse-config-f16"

enum { MAX_ROWS = 512, MAX_VOCAB = 2048, IDS = 24, TRIALS = 20 };

struct outcome {
    int n_rows;
    int32_t positions[MAX_ROWS];
    float logits[MAX_ROWS * MAX_VOCAB];
};

// Returns the vocabulary's size.
static size_t prefill(enum lvp_dtype dtype, const char *kernel_set, bool pruned, unsigned seed, struct outcome *out)
{
    struct lvp_chain chain;
    struct chain_options options = {.model = MODEL,
                                    .kernel_set = kernel_set,
                                    .dtype = dtype,
                                    .keep = pruned ? "0.5" : NULL,
                                    .pruner = pruned ? LVP_PRUNER_LVPRUNING : LVP_PRUNER_NONE,
                                    .threads = 1,
                                    .max_rows = MAX_ROWS,
                                    .max_seqs = 1};
    chain_open(&options, &chain);
    const struct lvp_model_config *config = chain.config;
    size_t n = 3 * (size_t)config->vision.image_size * (size_t)config->vision.image_size;
    float *pixels = malloc(n * sizeof *pixels), logprob;
    int32_t ids[IDS], slot = 0, token;
    srandom(seed);
    for (size_t i = 0; i < n; i++) pixels[i] = (float)random() / 1e9f - 1.0f;
    for (int i = 0; i < IDS; i++) ids[i] = 3 + (int32_t)(random() % (config->text.vocab - 4));
    for (int i = 0; i < IDS; i++)
        if (ids[i] == config->image_token_id) ids[i]--;
    ids[4] = config->image_token_id;
    chain_encode(&chain, 1, pixels, &slot);
    struct lvp_step_seq seq = {
        .prefill = true, .max_new = 1, .n_ids = IDS, .ids = ids, .n_images = 1, .image_slots = &slot, .top_p = 1};
    chain_step(&chain, &seq, 1, &token, &logprob);
    assert_int_equal(lvp_stage_all_logits(chain_last(&chain), out->logits, out->positions, &out->n_rows), LVP_OK);
    size_t vocab = (size_t)config->text.vocab;
    assert_true(vocab <= MAX_VOCAB);
    free(pixels);
    lvp_chain_close(&chain);
    return vocab;
}

static void report(void **state)
{
    (void)state;
    const char *kernel_set = lvp_cpu_best_kernel_set();
    struct outcome *exact = malloc(sizeof *exact), *rounded = malloc(sizeof *rounded);
    double error = 0, power = 0;
    int kept = 0, same = 0;
    size_t vocab = 0;
    for (unsigned trial = 0; trial < TRIALS; trial++) {
        vocab = prefill(LVP_F32, kernel_set, false, trial, exact);
        (void)prefill(LVP_BF16, kernel_set, false, trial, rounded);
        assert_int_equal(exact->n_rows, rounded->n_rows);
        for (size_t i = 0; i < (size_t)exact->n_rows * vocab; i++) {
            error += ((double)rounded->logits[i] - exact->logits[i]) * ((double)rounded->logits[i] - exact->logits[i]);
            power += (double)exact->logits[i] * exact->logits[i];
        }
        (void)prefill(LVP_F32, kernel_set, true, trial, exact);
        (void)prefill(LVP_BF16, kernel_set, true, trial, rounded);
        for (int i = 0; i < exact->n_rows; i++, kept++)
            for (int j = 0; j < rounded->n_rows; j++) same += exact->positions[i] == rounded->positions[j];
    }
    double nmse = error / power, overlap = (double)same / kept;
    print_message("f16 checkpoint in bf16 on %s: logits NMSE %.2g, %.1f %% of the surviving rows are the same\n",
                  kernel_set, nmse, 100 * overlap);
    assert_true(nmse < 1e-3);
    assert_true(overlap > 0.9);
    free(exact);
    free(rounded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(report)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
