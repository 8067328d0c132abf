// Positions that arrive with the rows of another rank: places on an image's grid follow from them, so all that cannot
// be are refused before anything is computed.
#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
// cmocka.h needs those above.
#include <cmocka.h>

#define MODEL "tests/golden/models/plain-f32"

enum { MAX_ROWS = 64, SECOND = 1 };

static struct lvp_chain chain;
static int32_t ids[6] = {1, 5, 0, 6, 7, 8}, slot;
static struct lvp_step_seq seqs[2];
static int n_rows, first; // rows of the step, and the image's first

static int open_chain(void **state)
{
    (void)state;
    struct lvp_model_config config;
    if (lvp_model_config_load(MODEL, &config) != LVP_OK) return -1;
    const struct lvp_partition halves = {
        .n_stages = 2,
        .first = {0, lvp_block_index(&config, LVP_BLOCK_DEC, 1), lvp_block_count(&config)}}; // before the first point
    struct chain_options options = {.model = MODEL,
                                    .kernel_set = lvp_cpu_best_kernel_set(),
                                    .dtype = LVP_F32,
                                    .keep = "0.5",
                                    .pruner = LVP_PRUNER_ADAPTPRUNE,
                                    .partition = &halves,
                                    .threads = 1,
                                    .max_rows = MAX_ROWS,
                                    .max_seqs = 2};
    chain_open(&options, &chain);
    ids[2] = config.image_token_id;
    seqs[0] = (struct lvp_step_seq){.slot = 0,
                                    .prefill = true,
                                    .max_new = 4,
                                    .n_ids = 6,
                                    .ids = ids,
                                    .n_images = 1,
                                    .image_slots = &slot,
                                    .top_p = 1};
    n_rows = 5 + lvp_vision_tokens(&config);
    first = 2;
    return 0;
}

static int close_chain(void **state)
{
    (void)state;
    lvp_chain_close(&chain);
    return 0;
}

// One prefill arrives at the second stage with positions that `change` has been at.
static enum lvp_status arrive(void (*change)(int32_t *positions), int more_rows)
{
    int32_t positions[MAX_ROWS], token = 0;
    float logprob = 0, *x = calloc((size_t)MAX_ROWS * (size_t)chain.config->text.hidden, sizeof *x);
    struct lvp_step step = {.number = ++chain.number, .n_seqs = 1, .seqs = seqs};
    struct lvp_step_output output = {.tokens = &token, .logprobs = &logprob};
    assert_non_null(x);
    for (int i = 0; i < MAX_ROWS; i++) positions[i] = i;
    change(positions);
    lvp_error_clear();
    enum lvp_status status = lvp_stage_step(chain.stages[SECOND], &step, x, positions, n_rows + more_rows, &output);
    lvp_stage_release(chain.stages[SECOND], 0);
    free(x);
    return status;
}

static void nothing(int32_t *positions)
{
    (void)positions;
}
static void twice(int32_t *positions)
{
    for (int i = 0; i < 16; i++) positions[first + i] = first + 3;
}
static void swapped(int32_t *positions)
{
    positions[first] = first + 1;
    positions[first + 1] = first;
}
static void before_the_image(int32_t *positions)
{
    positions[first] = 0;
}
static void behind_the_image(int32_t *positions)
{
    positions[first + 15] = first + 16;
}
static void negative(int32_t *positions)
{
    positions[first] = -7;
}
static void moved_text(int32_t *positions)
{
    positions[n_rows - 1]++;
}

static void refused(void **state)
{
    (void)state;
    void (*const changes[])(int32_t *) = {twice, swapped, before_the_image, behind_the_image, negative, moved_text};
    assert_int_equal(arrive(nothing, 0), LVP_OK);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        assert_int_equal(arrive(changes[i], 0), LVP_ERR_FORMAT);
        assert_non_null(strstr(lvp_error_text(), "arrived with position"));
    }
    assert_int_equal(arrive(nothing, -1), LVP_ERR_FORMAT);
    assert_int_equal(arrive(nothing, 1), LVP_ERR_FORMAT);
    assert_int_equal(arrive(nothing, 0), LVP_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused)};
    return cmocka_run_group_tests(tests, open_chain, close_chain);
}
