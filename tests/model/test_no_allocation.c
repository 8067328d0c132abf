// Nothing is allocated inside a step or an encode job: every buffer is sized by the plan and made before. The
// allocator's entry points are replaced here and count, in every thread and in the C library too, while a step runs.
#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
// cmocka.h needs those above.
#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define CAN_COUNT 0 // the sanitizers bring an allocator of their own
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CAN_COUNT 0
#endif
#endif
#ifndef CAN_COUNT
#define CAN_COUNT 1
#endif

static atomic_bool counting;
static atomic_int n_allocations;

#if CAN_COUNT
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static void count(void)
{
    if (atomic_load(&counting)) atomic_fetch_add(&n_allocations, 1);
}

void *malloc(size_t size)
{
    count();
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    count();
    return __libc_calloc(n, size);
}

void *realloc(void *memory, size_t size)
{
    count();
    return __libc_realloc(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    count();
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    count();
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL ? 12 : 0; // ENOMEM
}
#endif

enum { N_SEQS = 4, MAX_IDS = 40, NEW_TOKENS = 4 };

struct prompts {
    int32_t ids[N_SEQS][MAX_IDS], slots[N_SEQS];
    int n_ids[N_SEQS];
    float *pixels; // one image, for everybody
};

static void make_prompts(const struct lvp_model_config *config, struct prompts *p)
{
    size_t n = 3 * (size_t)config->vision.image_size * (size_t)config->vision.image_size;
    p->pixels = malloc(N_SEQS * n * sizeof *p->pixels);
    for (size_t i = 0; i < N_SEQS * n; i++) p->pixels[i] = (float)(i * 37 % 200) / 100.0f - 1.0f;
    for (int s = 0; s < N_SEQS; s++) {
        p->n_ids[s] = 6 + 9 * s;
        p->slots[s] = s;
        for (int i = 0; i < p->n_ids[s]; i++) {
            p->ids[s][i] = (i * 7 + s) % config->text.vocab;
            if (p->ids[s][i] == config->image_token_id) p->ids[s][i] = 0;
        }
        p->ids[s][2] = config->image_token_id;
    }
}

static void count_from_here(void)
{
    atomic_store(&n_allocations, 0);
    atomic_store(&counting, true);
}

static int counted(void)
{
    atomic_store(&counting, false);
    return atomic_load(&n_allocations);
}

// Encodes, prefills and decodes the first n_seqs prompts; returns the allocations of every step together.
static int generate(struct lvp_chain *chain, const struct prompts *p, int n_seqs, float temperature)
{
    int32_t tokens[N_SEQS];
    float logprobs[N_SEQS];
    struct lvp_step_seq seqs[N_SEQS];
    int n = 0;
    count_from_here();
    chain_encode(chain, n_seqs, p->pixels, p->slots);
    n += counted();
    for (int token = 0; token < NEW_TOKENS; token++) {
        for (int s = 0; s < n_seqs; s++) {
            seqs[s] = (struct lvp_step_seq){.slot = s,
                                            .prefill = token == 0,
                                            .max_new = NEW_TOKENS,
                                            .temperature = temperature,
                                            .top_p = 0.9f,
                                            .n_ids = 1,
                                            .ids = &tokens[s],
                                            .token_index = (uint32_t)token,
                                            .position = p->n_ids[s] - 1 + lvp_vision_tokens(chain->config) + token - 1};
            if (token > 0) continue;
            seqs[s].n_ids = p->n_ids[s];
            seqs[s].ids = p->ids[s];
            seqs[s].n_images = 1;
            seqs[s].image_slots = &p->slots[s];
        }
        count_from_here();
        chain_step(chain, seqs, n_seqs, tokens, logprobs);
        n += counted();
    }
    for (int s = 0; s < n_seqs; s++) lvp_chain_release(chain, s);
    return n;
}

static void check(const char *model, const char *kernel_set, enum lvp_dtype dtype, int threads, float temperature)
{
    struct lvp_partition partition = {.n_stages = 2};
    struct chain_options options = {.model = model,
                                    .kernel_set = kernel_set,
                                    .dtype = dtype,
                                    .keep = "0.5",
                                    .pruner = LVP_PRUNER_LVPRUNING,
                                    .threads = threads,
                                    .max_rows = 1200,
                                    .max_seqs = N_SEQS};
    struct lvp_chain chain;
    struct prompts prompts;
    for (int n_stages = 1; n_stages <= 2; n_stages++) { // whole, and cut behind the first decoder layer
        options.partition = n_stages == 1 ? NULL : &partition;
        chain_open(&options, &chain);
        make_prompts(chain.config, &prompts);
        partition.first[1] = lvp_block_index(chain.config, LVP_BLOCK_DEC, 1);
        partition.first[2] = lvp_block_count(chain.config);
        (void)generate(&chain, &prompts, 2, temperature); // a first step may wake threads and fault pages in
        int n = generate(&chain, &prompts, N_SEQS, temperature);
        if (n > 0)
            fail_msg("%d allocations inside steps (%s, %d threads, %d stages)", n, kernel_set, threads, n_stages);
        free(prompts.pixels);
        lvp_chain_close(&chain);
    }
}

static void test_counting(void **state)
{
    (void)state;
    if (!CAN_COUNT) skip();
    count_from_here();
    void *volatile memory = malloc(10);
    free(memory);
    assert_int_equal(counted(), 1);
}

static void test_steps(void **state)
{
    (void)state;
    if (!CAN_COUNT) skip();
    const char *best = lvp_cpu_best_kernel_set();
    for (int threads = 1; threads <= 2; threads++) {
        check("tests/golden/models/plain-f32", best, LVP_F32, threads, 0.0f);
        check("tests/golden/models/gqa-sharded-bf16", best, LVP_BF16, threads, 0.8f);
        check("tests/golden/models/plain-f32", "portable", LVP_BF16, threads, 0.8f);
        check("tests/golden/models/plain-f32", best, LVP_F16, threads, 0.8f);
        check("tests/golden/models/feature-list", best, LVP_BF16, threads, 0.8f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counting), cmocka_unit_test(test_steps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
