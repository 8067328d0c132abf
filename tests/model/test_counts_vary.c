// Images that kept different numbers of rows: the stages behind a cut learn the numbers from the positions that arrive,
// and what a sequence's rows become does not depend on how many its neighbours kept.
#include "tests/model/chain.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
// cmocka.h needs those above.
#include <cmocka.h>

#define MODEL "tests/golden/models/plain-f32"

enum { N_SEQS = 2, MAX_ROWS = 64, TOKENS = 16, WIDTH = 32, MIDDLE = 1, LAST = 2 };

static struct lvp_chain chain;
static const int image = 299; // the model's image token
static int32_t short_ids[] = {1, 5, 299, 6, 7, 8}, long_ids[] = {1, 299, 9, 299, 7}, slots[2];

// Rows that each image kept at the point before the middle stage: at most 8 (keep 0.5), 5 and 2 behind the next points.
static const int kept[N_SEQS][2] = {{1}, {8, 0}};

static int open_chain(void **state)
{
    (void)state;
    struct lvp_model_config config;
    if (lvp_model_config_load(MODEL, &config) != LVP_OK) return -1;
    const struct lvp_partition thirds = {.n_stages = 3,
                                         .first = {0, lvp_block_index(&config, LVP_BLOCK_DEC, 1),
                                                   lvp_block_index(&config, LVP_BLOCK_DEC, 3),
                                                   lvp_block_count(&config)}};
    struct chain_options options = {.model = MODEL,
                                    .kernel_set = lvp_cpu_best_kernel_set(),
                                    .dtype = LVP_F32,
                                    .keep = "0.5",
                                    .pruner = LVP_PRUNER_LVPRUNING, // after layers 1, 2 and 3
                                    .counts_vary = true,
                                    .partition = &thirds,
                                    .threads = 1,
                                    .max_rows = MAX_ROWS,
                                    .max_seqs = N_SEQS};
    chain_open(&options, &chain);
    return 0;
}

static int close_chain(void **state)
{
    (void)state;
    lvp_chain_close(&chain);
    return 0;
}

static struct lvp_step_seq prompt(int which)
{
    bool first = which == 0;
    return (struct lvp_step_seq){.slot = which,
                                 .prefill = true,
                                 .max_new = 2,
                                 .n_ids = first ? 6 : 5,
                                 .ids = first ? short_ids : long_ids,
                                 .n_images = first ? 1 : 2,
                                 .image_slots = slots,
                                 .top_p = 1};
}

// What arrives of sequence `which` behind `n_rows` others: every other row of an image as far as it kept them.
static int arrive(int which, int n_rows, float *x, int32_t *positions)
{
    struct lvp_step_seq seq = prompt(which);
    int position = 0, n_images = 0, from = n_rows;
    for (int i = 0; i < seq.n_ids; i++) {
        if (seq.ids[i] != image) {
            positions[n_rows++] = position++;
            continue;
        }
        for (int v = 0; v < kept[which][n_images]; v++) positions[n_rows++] = position + 2 * v;
        n_images++;
        position += TOKENS;
    }
    for (int row = from; row < n_rows; row++)
        for (int c = 0; c < WIDTH; c++)
            x[row * WIDTH + c] = (float)((positions[row] * 31 + c * 17 + which * 7) % 41 - 20) / 20;
    return n_rows;
}

// What the last two stages make of a step: the rows between them, a token and its log-probability for each sequence.
struct result {
    int n_rows, n_vision_rows;
    int32_t positions[MAX_ROWS], tokens[N_SEQS];
    float x[MAX_ROWS * WIDTH], logprobs[N_SEQS];
};

static void run(const struct lvp_step *step, const float *x, const int32_t *positions, int n_rows,
                struct result *result)
{
    *result = (struct result){0};
    struct lvp_step_output rows = {.x = result->x, .positions = result->positions};
    struct lvp_step_output end = {.tokens = result->tokens, .logprobs = result->logprobs};
    lvp_error_clear();
    if (lvp_stage_step(chain.stages[MIDDLE], step, x, positions, n_rows, &rows) != LVP_OK ||
        lvp_stage_step(chain.stages[LAST], step, rows.x, rows.positions, rows.n_rows, &end) != LVP_OK)
        fail_msg("%s", lvp_error_text());
    result->n_rows = rows.n_rows;
    result->n_vision_rows = rows.n_vision_rows;
}

// Prefills the sequences first..end - 1 in one step and decodes a row of each in the next.
static void prefill_and_decode(int first, int end, struct result results[2])
{
    float x[MAX_ROWS * WIDTH] = {0};
    int32_t positions[MAX_ROWS] = {0}, id = 5;
    struct lvp_step_seq seqs[N_SEQS];
    struct lvp_step step = {.number = ++chain.number, .n_seqs = end - first, .seqs = seqs};
    int n_rows = 0;
    for (int which = first; which < end; which++) {
        seqs[which - first] = prompt(which);
        n_rows = arrive(which, n_rows, x, positions);
    }
    run(&step, x, positions, n_rows, &results[0]);
    for (int which = first; which < end; which++) {
        struct lvp_step_seq seq = prompt(which);
        int i = which - first, position = seq.n_ids + seq.n_images * (TOKENS - 1);
        seqs[i] = (struct lvp_step_seq){.slot = which, .position = position, .n_ids = 1, .ids = &id, .top_p = 1};
        positions[i] = position;
        for (int c = 0; c < WIDTH; c++) x[i * WIDTH + c] = (float)(c % 5 - 2 + which) / 3;
    }
    step.number = ++chain.number;
    run(&step, x, positions, step.n_seqs, &results[1]);
    for (int which = first; which < end; which++)
        for (int s = MIDDLE; s <= LAST; s++) lvp_stage_release(chain.stages[s], which);
}

static void neighbours_do_not_matter(void **state)
{
    (void)state;
    static struct result together[2], alone[N_SEQS][2];
    prefill_and_decode(0, 2, together);
    for (int which = 0; which < N_SEQS; which++) prefill_and_decode(which, which + 1, alone[which]);
    for (int step = 0; step < 2; step++) {
        const struct result *all = &together[step], *a = &alone[0][step], *b = &alone[1][step];
        size_t n_a = (size_t)a->n_rows, n_b = (size_t)b->n_rows;
        assert_int_equal(all->n_rows, a->n_rows + b->n_rows);
        assert_memory_equal(all->positions, a->positions, n_a * sizeof *a->positions);
        assert_memory_equal(all->positions + n_a, b->positions, n_b * sizeof *b->positions);
        assert_memory_equal(all->x, a->x, n_a * WIDTH * sizeof *a->x);
        assert_memory_equal(all->x + n_a * WIDTH, b->x, n_b * WIDTH * sizeof *b->x);
        assert_int_equal(all->tokens[0], a->tokens[0]);
        assert_int_equal(all->tokens[1], b->tokens[0]);
        assert_memory_equal(&all->logprobs[0], &a->logprobs[0], sizeof(float));
        assert_memory_equal(&all->logprobs[1], &b->logprobs[0], sizeof(float));
    }
}

// A share is the most that stays: an image with fewer rows than that keeps them all.
static void a_share_is_the_most_that_stays(void **state)
{
    (void)state;
    static struct result results[2];
    prefill_and_decode(0, 2, results);
    assert_int_equal(results[0].n_vision_rows, 1 + 2 + 0);
    assert_int_equal(results[0].n_rows, 5 + 1 + 3 + 2);
    assert_int_equal(results[0].positions[2], 2); // the only row of the first image
    assert_int_equal(results[1].n_vision_rows, 0);
    assert_int_equal(results[1].n_rows, 2);
}

// The numbers may vary; rows of text may not be missing, and an image may not have more than its share.
static void refused(void **state)
{
    (void)state;
    float x[MAX_ROWS * WIDTH] = {0};
    int32_t positions[MAX_ROWS] = {0};
    struct lvp_step_seq seq = prompt(0);
    struct lvp_step step = {.number = ++chain.number, .n_seqs = 1, .seqs = &seq};
    struct lvp_step_output output = {0};
    int n_rows = arrive(0, 0, x, positions);
    lvp_error_clear();
    assert_int_equal(lvp_stage_step(chain.stages[MIDDLE], &step, x, positions, n_rows - 1, &output), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), "arrived with 5 rows, more belong to it"));
    positions[n_rows] = positions[n_rows - 1] + 1;
    lvp_error_clear();
    assert_int_equal(lvp_stage_step(chain.stages[MIDDLE], &step, x, positions, n_rows + 1, &output), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), "where the step ends"));
    int32_t nine[15] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 19, 20}; // 2..10 are the image's
    lvp_error_clear();
    assert_int_equal(lvp_stage_step(chain.stages[MIDDLE], &step, x, nine, 14, &output), LVP_ERR_FORMAT);
    assert_non_null(strstr(lvp_error_text(), "row 10 of step"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(a_share_is_the_most_that_stays),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, open_chain, close_chain);
}
