// The promise of the engine: on one numeric path a sequence's tokens and log-probabilities depend on its own prompt and
// image only. Here the model runs in one process; partitions, batches and threads change, and nothing else may.
#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define CASES "tests/golden/models/"

enum { N_SEQS = 5, NEW_TOKENS = 6, MAX_IDS = 40 };

struct result {
    int32_t tokens[N_SEQS][NEW_TOKENS];
    float logprobs[N_SEQS][NEW_TOKENS];
};

// Five prompts of different lengths, each with one or two images of its own.
struct prompts {
    int n_ids[N_SEQS], n_images[N_SEQS], n_rows[N_SEQS];
    int32_t ids[N_SEQS][MAX_IDS], slots[N_SEQS][2];
    float *pixels; // [16 slots][3 S S]
};

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525U + 1013904223U;
    return *state >> 8;
}

static void make_prompts(const struct lvp_model_config *config, struct prompts *p)
{
    uint32_t state = 7;
    size_t n = 3 * (size_t)config->vision.image_size * (size_t)config->vision.image_size;
    p->pixels = malloc(16 * n * sizeof(float));
    for (size_t i = 0; i < 16 * n; i++) p->pixels[i] = (float)next_random(&state) * 0x1p-23f - 1.0f;
    int slot = 0;
    for (int s = 0; s < N_SEQS; s++) {
        p->n_ids[s] = 5 + 6 * s;
        p->n_images[s] = s == 2 ? 2 : 1;
        for (int i = 0; i < p->n_ids[s]; i++) {
            do p->ids[s][i] = (int32_t)(next_random(&state) % (uint32_t)config->text.vocab);
            while (p->ids[s][i] == config->image_token_id);
        }
        p->ids[s][2] = config->image_token_id;
        if (s == 2) p->ids[s][9] = config->image_token_id;
        for (int i = 0; i < p->n_images[s]; i++) p->slots[s][i] = slot++;
        p->n_rows[s] = p->n_ids[s] + p->n_images[s] * (lvp_vision_tokens(config) - 1);
    }
}

static struct lvp_step_seq sequence(const struct prompts *p, struct result *r, int s, int token, float temperature)
{
    struct lvp_step_seq seq = {.slot = N_SEQS - s,
                               .prefill = token == 0,
                               .max_new = NEW_TOKENS,
                               .temperature = temperature,
                               .top_p = 0.9f,
                               .token_index = (uint32_t)token,
                               .sampling_key = 1000 + (uint64_t)s,
                               .random_key = (uint64_t)s};
    if (token == 0) {
        seq.n_ids = p->n_ids[s];
        seq.ids = p->ids[s];
        seq.n_images = p->n_images[s];
        seq.image_slots = p->slots[s];
    } else {
        seq.n_ids = 1;
        seq.ids = &r->tokens[s][token - 1];
        seq.position = p->n_rows[s] + token - 1;
    }
    return seq;
}

// `together` 0: each sequence alone from start to end. Else sequence s starts at step s * stagger and shares its steps
// with whatever else runs then.
static void generate(const struct chain_options *options, int stagger, bool together, float temperature,
                     struct result *r)
{
    struct lvp_chain chain;
    struct prompts prompts;
    chain_open(options, &chain);
    make_prompts(chain.config, &prompts);
    size_t pixels = 3 * (size_t)chain.config->vision.image_size * (size_t)chain.config->vision.image_size;
    for (int s = 0; s < N_SEQS; s++) // images of one job change with `together` as well
        for (int i = 0; i < prompts.n_images[s]; i += together ? prompts.n_images[s] : 1)
            chain_encode(&chain, together ? prompts.n_images[s] : 1,
                         prompts.pixels + (size_t)prompts.slots[s][i] * pixels, &prompts.slots[s][i]);
    memset(r, 0, sizeof *r);
    for (int step = 0, left = N_SEQS * NEW_TOKENS; left > 0; step++) {
        struct lvp_step_seq seqs[N_SEQS];
        int which[N_SEQS], at[N_SEQS], n = 0;
        int32_t tokens[N_SEQS];
        float logprobs[N_SEQS];
        for (int s = 0; s < N_SEQS; s++) {
            int token = together ? step - s * stagger : step - s * NEW_TOKENS;
            if (token < 0 || token >= NEW_TOKENS) continue;
            which[n] = s;
            at[n] = token;
            seqs[n++] = sequence(&prompts, r, s, token, temperature);
        }
        if (n == 0) continue;
        chain_step(&chain, seqs, n, tokens, logprobs);
        for (int i = 0; i < n; i++, left--) {
            r->tokens[which[i]][at[i]] = tokens[i];
            r->logprobs[which[i]][at[i]] = logprobs[i];
            if (at[i] == NEW_TOKENS - 1) lvp_chain_release(&chain, N_SEQS - which[i]);
        }
    }
    free(prompts.pixels);
    lvp_chain_close(&chain);
}

static void assert_same(const struct result *a, const struct result *b, const char *what)
{
    if (memcmp(a, b, sizeof *a) != 0) fail_msg("tokens or log-probabilities depend on %s", what);
}

static void random_partition(const struct lvp_model_config *config, uint32_t *state, struct lvp_partition *partition)
{
    int n_blocks = lvp_block_count(config);
    for (;;) {
        int want = 2 + (int)(next_random(state) % 4), n = 1;
        partition->first[0] = 0;
        for (int b = 1; b < n_blocks; b++)
            if (n < want && lvp_cut_allowed(config, b) && next_random(state) % (uint32_t)n_blocks < (uint32_t)want)
                partition->first[n++] = b;
        partition->first[n] = n_blocks;
        partition->n_stages = n;
        if (n > 1) return;
    }
}

static const struct {
    const char *model;
    enum lvp_pruner_kind pruner;
    const char *keep;
    float temperature;
} settings[] = {
    {CASES "plain-f32", LVP_PRUNER_LVPRUNING, "0.5", 0.0f},
    {CASES "gqa-sharded-bf16", LVP_PRUNER_LVPRUNING, "0.6", 0.8f},
    {CASES "deep-narrow", LVP_PRUNER_RANDOM, "0.5", 0.7f},
    {CASES "mqa-wide-heads", LVP_PRUNER_NONE, NULL, 0.0f},
    {CASES "feature-list", LVP_PRUNER_LVPRUNING, "0.5", 1.1f},
    {CASES "gqa-sharded-bf16", LVP_PRUNER_LAST_ATTENTION, "0.4", 0.5f},
    {CASES "larger-image", LVP_PRUNER_ADAPTPRUNE, "0.3", 0.8f},
};

static void check(void **state, enum lvp_dtype dtype)
{
    (void)state;
    const char *best = lvp_cpu_best_kernel_set();
    uint32_t random = 42;
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        struct chain_options options = {.model = settings[i].model,
                                        .kernel_set = best,
                                        .dtype = dtype,
                                        .keep = settings[i].keep,
                                        .pruner = settings[i].pruner,
                                        .threads = 1,
                                        .max_rows = 2000,
                                        .max_seqs = N_SEQS + 1};
        struct result alone, other;
        float temperature = settings[i].temperature;
        generate(&options, 0, false, temperature, &alone);
        generate(&options, 0, true, temperature, &other);
        assert_same(&alone, &other, "the batch of the prefill");
        generate(&options, 2, true, temperature, &other);
        assert_same(&alone, &other, "mixing prefill and decode rows");
        options.threads = 3;
        generate(&options, 1, true, temperature, &other);
        assert_same(&alone, &other, "the number of threads");
        options.threads = 1;
        for (int p = 0; p < 20; p++) {
            struct lvp_checkpoint *checkpoint = NULL;
            struct lvp_partition partition;
            assert_int_equal(lvp_checkpoint_open(settings[i].model, &checkpoint), LVP_OK);
            random_partition(lvp_checkpoint_config(checkpoint), &random, &partition);
            lvp_checkpoint_close(checkpoint);
            options.partition = &partition;
            generate(&options, p % 3, true, temperature, &other);
            assert_same(&alone, &other, "the partition");
        }
    }
}

static void invariance_bf16(void **state)
{
    check(state, LVP_BF16);
}
static void invariance_f32(void **state)
{
    check(state, LVP_F32);
}
static void invariance_f16(void **state)
{
    check(state, LVP_F16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(invariance_bf16), cmocka_unit_test(invariance_f32),
                                       cmocka_unit_test(invariance_f16)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
