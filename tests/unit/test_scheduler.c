// The scheduler alone. A model of what the stages hold is kept beside it, from the definitions in common/step.h, and
// every step it plans is checked against that: no slot twice, no page too many, nobody in two steps, everybody done at
// last.
#include "coordinator/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

enum { MAX_SEQS = 64, MAX_STEPS = 16 };

struct request {
    int n_text, n_images, max_new;
    int length; // tokens it will really generate, 1..max_new
    int generated;
    int slot; // -1: not admitted
    bool in_step, done;
};

struct flight {
    struct lvp_planned_seq seqs[MAX_SEQS];
    int n;
};

struct simulation {
    struct lvp_scheduler_config config;
    struct lvp_scheduler *scheduler;
    struct request *requests;
    int n_requests, n_added, n_done;
    struct request *holder[MAX_SEQS]; // of each slot
    int pages[LVP_MAX_DEPTHS];        // held
    struct flight flights[MAX_STEPS];
    int first, n_flights;
    int n_steps, n_alone; // alone: steps of one prompt over the budget
    int last_started;     // requests are prefilled in the order they were added
};

static uint32_t random_state = 1;

static int next_random(int n)
{
    random_state = random_state * 1664525U + 1013904223U;
    return (int)((random_state >> 8) % (uint32_t)n);
}

static struct lvp_scheduler_config config_of(int n_stages, int max_seqs, int batch_tokens, int pages)
{
    struct lvp_scheduler_config config = {.prune = {.n_points = 3, .after = {1, 2, 4}, .rows = {144, 72, 43, 14}},
                                          .n_stages = n_stages,
                                          .max_steps = n_stages + 1,
                                          .max_seqs = max_seqs,
                                          .page_slots = 16,
                                          .batch_tokens = batch_tokens};
    for (int d = 0; d <= 3; d++) config.kv_pages[d] = pages;
    return config;
}

static int pages_needed(const struct simulation *sim, const struct request *request, int depth)
{
    struct lvp_step_seq seq = {.prefill = true,
                               .n_ids = request->n_text + request->n_images,
                               .n_images = request->n_images,
                               .max_new = request->max_new};
    return (lvp_seq_kv_slots(&sim->config.prune, &seq, depth) + sim->config.page_slots - 1) / sim->config.page_slots;
}

static int rows_needed(const struct simulation *sim, const struct request *request)
{
    return request->n_text + request->n_images * sim->config.prune.rows[0];
}

static void take_slot(struct simulation *sim, const struct lvp_planned_seq *planned)
{
    struct request *request = planned->request;
    if (planned->prefill) {
        assert_null(sim->holder[planned->slot]);
        assert_int_equal(request->slot, -1);
        assert_int_equal(request->generated, 0);
        assert_int_equal(request - sim->requests, sim->last_started + 1);
        sim->last_started++;
        sim->holder[planned->slot] = request;
        request->slot = planned->slot;
        for (int d = 0; d <= sim->config.prune.n_points; d++) {
            sim->pages[d] += pages_needed(sim, request, d);
            assert_true(sim->pages[d] <= sim->config.kv_pages[d]);
        }
    } else {
        assert_ptr_equal(sim->holder[planned->slot], request);
        assert_int_equal(request->slot, planned->slot);
        assert_true(request->generated > 0);
    }
    assert_false(request->in_step);
    assert_false(request->done);
    request->in_step = true;
}

static bool plan(struct simulation *sim)
{
    if (sim->n_flights == sim->config.max_steps) {
        struct lvp_planned_seq none[MAX_SEQS];
        assert_int_equal(lvp_scheduler_next(sim->scheduler, false, none), 0);
        return false;
    }
    struct flight *flight = &sim->flights[(sim->first + sim->n_flights) % MAX_STEPS];
    flight->n = lvp_scheduler_next(sim->scheduler, false, flight->seqs);
    if (flight->n == 0) return false;
    assert_in_range(flight->n, 1, sim->config.max_seqs);
    int n_rows = 0;
    for (int i = 0; i < flight->n; i++) {
        assert_in_range(flight->seqs[i].slot, 0, sim->config.max_seqs - 1);
        take_slot(sim, &flight->seqs[i]);
        n_rows += flight->seqs[i].prefill ? rows_needed(sim, flight->seqs[i].request) : 1;
    }
    if (n_rows > sim->config.batch_tokens) { // only ever a prompt that could not be in any step otherwise
        assert_int_equal(flight->n, 1);
        assert_true(flight->seqs[0].prefill);
        sim->n_alone++;
    }
    sim->n_flights++;
    sim->n_steps++;
    assert_int_equal(lvp_scheduler_in_flight(sim->scheduler), sim->n_flights);
    return true;
}

static void finish_oldest(struct simulation *sim)
{
    struct flight *flight = &sim->flights[sim->first];
    bool finished[MAX_SEQS];
    for (int i = 0; i < flight->n; i++) {
        struct request *request = flight->seqs[i].request;
        request->in_step = false;
        request->generated++;
        finished[i] = request->generated == request->length;
        if (!finished[i]) continue;
        request->done = true;
        sim->n_done++;
        sim->holder[request->slot] = NULL;
        for (int d = 0; d <= sim->config.prune.n_points; d++) sim->pages[d] -= pages_needed(sim, request, d);
    }
    assert_int_equal(lvp_scheduler_step_done(sim->scheduler, finished), LVP_OK);
    sim->first = (sim->first + 1) % MAX_STEPS;
    sim->n_flights--;
}

static void add(struct simulation *sim)
{
    struct request *request = &sim->requests[sim->n_added++];
    request->slot = -1;
    assert_true(lvp_scheduler_fits(sim->scheduler, request->n_text, request->n_images, request->max_new));
    assert_int_equal(lvp_scheduler_add(sim->scheduler, request, request->n_text, request->n_images, request->max_new),
                     LVP_OK);
    assert_int_equal(lvp_scheduler_load(sim->scheduler), sim->n_added - sim->n_done);
}

// Requests arrive and steps end in a random order; in the end everything is done and given back.
static void simulate(struct simulation *sim)
{
    sim->last_started = -1;
    assert_int_equal(lvp_scheduler_create(&sim->config, &sim->scheduler), LVP_OK);
    while (sim->n_done < sim->n_requests) {
        int choice = next_random(4);
        bool moved = false;
        if (choice == 0 && sim->n_added < sim->n_requests) {
            for (int n = 1 + next_random(20); n > 0 && sim->n_added < sim->n_requests; n--) add(sim);
            moved = true;
        }
        if (choice <= 2)
            while (plan(sim)) moved = true;
        if (choice == 3 && sim->n_flights > 0) {
            finish_oldest(sim);
            moved = true;
        }
        // With nothing in flight and something queued, a step must be possible: else the run would wait for ever.
        if (!moved && sim->n_flights == 0 && sim->n_added > sim->n_done) assert_true(plan(sim));
    }
    assert_int_equal(lvp_scheduler_load(sim->scheduler), 0);
    assert_int_equal(lvp_scheduler_in_flight(sim->scheduler), 0);
    for (int d = 0; d <= sim->config.prune.n_points; d++) assert_int_equal(sim->pages[d], 0);
    lvp_scheduler_destroy(sim->scheduler);
}

static void test_thousands_of_requests(void **state)
{
    (void)state;
    enum { N = 3000 };
    struct request *requests = malloc(N * sizeof *requests);
    static const struct {
        int n_stages, max_seqs, batch_tokens, pages;
    } cases[] = {
        {1, 8, 1024, 80}, {4, 32, 512, 200}, {4, 32, 200, 60}, {3, 64, 4096, 1000}, {8, 5, 64, 40},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct simulation sim = {
            .config = config_of(cases[c].n_stages, cases[c].max_seqs, cases[c].batch_tokens, cases[c].pages),
            .requests = requests,
            .n_requests = N};
        for (int i = 0; i < N; i++) {
            int max_new = 1 + next_random(64);
            requests[i] = (struct request){.n_text = 1 + next_random(100),
                                           .n_images = next_random(3),
                                           .max_new = max_new,
                                           .length = 1 + next_random(max_new)};
        }
        simulate(&sim);
    }
    free(requests);
}

// One slot, one step in flight, a budget of one row, room for exactly one request.
static void test_progress_with_minimal_budgets(void **state)
{
    (void)state;
    struct request requests[50];
    struct simulation sim = {.config = config_of(1, 1, 1, 0), .requests = requests, .n_requests = 50};
    sim.config.max_steps = 1;
    for (int i = 0; i < 50; i++)
        requests[i] = (struct request){.n_text = 30, .n_images = i % 2, .max_new = 20, .length = 1 + i % 20};
    requests[1].n_images = 1;
    for (int d = 0; d <= 3; d++) sim.config.kv_pages[d] = pages_needed(&sim, &requests[1], d);
    simulate(&sim);
}

// A prompt over the budget runs, in a step of its own, and does not starve behind others that decode.
static void test_oversize_prompt_runs_alone(void **state)
{
    (void)state;
    struct request requests[40];
    struct simulation sim = {.config = config_of(2, 16, 100, 400), .requests = requests, .n_requests = 40};
    for (int i = 0; i < 40; i++)
        requests[i] = (struct request){.n_text = 10, .n_images = i % 5 == 2, .max_new = 30, .length = 30};
    simulate(&sim);
    assert_int_equal(sim.n_alone, 8);
}

// Admission takes a request when exactly its pages are free, and not when one is missing at any depth.
static void test_admission_is_exact(void **state)
{
    (void)state;
    for (int depth = 0; depth <= 3; depth++) {
        struct request requests[2] = {{.n_text = 20, .n_images = 1, .max_new = 12, .slot = -1},
                                      {.n_text = 33, .n_images = 1, .max_new = 5, .slot = -1}};
        struct simulation sim = {.config = config_of(2, 4, 1024, 0), .requests = requests};
        struct lvp_planned_seq seqs[MAX_SEQS];
        for (int d = 0; d <= 3; d++)
            sim.config.kv_pages[d] = pages_needed(&sim, &requests[0], d) + pages_needed(&sim, &requests[1], d);
        for (int missing = 0; missing < 2; missing++) {
            sim.config.kv_pages[depth] -= missing;
            assert_int_equal(lvp_scheduler_create(&sim.config, &sim.scheduler), LVP_OK);
            for (int i = 0; i < 2; i++)
                assert_int_equal(
                    lvp_scheduler_add(sim.scheduler, &requests[i], requests[i].n_text, 1, requests[i].max_new), LVP_OK);
            assert_int_equal(lvp_scheduler_next(sim.scheduler, false, seqs), missing == 0 ? 2 : 1);
            assert_int_equal(lvp_scheduler_next(sim.scheduler, false, seqs), 0);
            lvp_scheduler_destroy(sim.scheduler);
        }
    }
}

// With four stages a quarter of the running sequences decodes in each step, so that every stage has some.
static void test_decodes_are_spread_over_the_stages(void **state)
{
    (void)state;
    struct lvp_scheduler_config config = config_of(4, 16, 4096, 1000);
    struct lvp_scheduler *scheduler = NULL;
    struct lvp_planned_seq seqs[MAX_SEQS];
    bool finished[MAX_SEQS] = {false};
    assert_int_equal(lvp_scheduler_create(&config, &scheduler), LVP_OK);
    for (int i = 0; i < 8; i++) assert_int_equal(lvp_scheduler_add(scheduler, &seqs[i], 10, 1, 20), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 8);
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    for (int s = 0; s < 4; s++) assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 2);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 0);
    lvp_scheduler_destroy(scheduler);
}

// Decode rows alone wait while images are being encoded, but not for a prompt that would find no room; and they wait
// for a group in flight that they can join, so that one stage does not decode two halves in turns.
static void test_decodes_wait_for_company(void **state)
{
    (void)state;
    struct lvp_scheduler_config config = config_of(1, 3, 4096, 1000);
    struct lvp_scheduler *scheduler = NULL;
    struct lvp_planned_seq seqs[MAX_SEQS];
    bool finished[MAX_SEQS] = {false};
    assert_int_equal(lvp_scheduler_create(&config, &scheduler), LVP_OK);
    assert_int_equal(lvp_scheduler_add(scheduler, &seqs[0], 10, 1, 20), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 1);
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 0); // until the image is there
    assert_int_equal(lvp_scheduler_add(scheduler, &seqs[1], 10, 1, 20), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 2); // and then they go together
    assert_false(seqs[0].prefill);
    assert_true(seqs[1].prefill);
    assert_int_equal(lvp_scheduler_add(scheduler, &seqs[2], 10, 1, 20), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 1); // a prompt does not wait for a step in flight
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 0); // two of three are back
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, true, seqs), 3); // no slot is free for what is encoded
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 3);
    lvp_scheduler_destroy(scheduler);
}

// A prompt that finds no room does not let decode rows go in pieces.
static void test_groups_stay_together_before_a_full_house(void **state)
{
    (void)state;
    struct lvp_scheduler_config config = config_of(1, 3, 200, 1000); // one prompt of 154 rows in a step
    struct lvp_scheduler *scheduler = NULL;
    struct lvp_planned_seq seqs[MAX_SEQS];
    bool finished[MAX_SEQS] = {false};
    assert_int_equal(lvp_scheduler_create(&config, &scheduler), LVP_OK);
    for (int i = 0; i < 5; i++) assert_int_equal(lvp_scheduler_add(scheduler, &seqs[i], 10, 1, 20), LVP_OK);
    for (int i = 0; i < 2; i++) assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 1);
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 2); // with the third prompt: the house is full
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 0); // one is back, two are in flight
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_OK);
    assert_int_equal(lvp_scheduler_next(scheduler, false, seqs), 3);
    lvp_scheduler_destroy(scheduler);
}

static void test_what_never_fits_is_said(void **state)
{
    (void)state;
    struct lvp_scheduler_config config = config_of(1, 4, 1024, 12); // 192 slots at each depth
    struct lvp_scheduler *scheduler = NULL;
    bool finished[1] = {true};
    assert_int_equal(lvp_scheduler_create(&config, &scheduler), LVP_OK);
    assert_true(lvp_scheduler_fits(scheduler, 40, 1, 8));  // 192
    assert_false(lvp_scheduler_fits(scheduler, 40, 1, 9)); // 193
    assert_int_equal(lvp_scheduler_add(scheduler, &config, 40, 1, 9), LVP_ERR_INTERNAL);
    assert_int_equal(lvp_scheduler_load(scheduler), 0);
    lvp_error_clear();
    assert_int_equal(lvp_scheduler_step_done(scheduler, finished), LVP_ERR_INTERNAL);
    lvp_scheduler_destroy(scheduler);
    lvp_scheduler_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_thousands_of_requests),
        cmocka_unit_test(test_progress_with_minimal_budgets),
        cmocka_unit_test(test_oversize_prompt_runs_alone),
        cmocka_unit_test(test_admission_is_exact),
        cmocka_unit_test(test_decodes_are_spread_over_the_stages),
        cmocka_unit_test(test_decodes_wait_for_company),
        cmocka_unit_test(test_groups_stay_together_before_a_full_house),
        cmocka_unit_test(test_what_never_fits_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
