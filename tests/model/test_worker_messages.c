// What a worker is told may be malformed: every message is refused with a text before anything is computed from it, and
// never crashes the rank. No MPI: the messages are handed over as the communication thread would.
#include "tests/model/told_worker.h"
#include "worker/probe.h"

static void expect_setup(const Lvp__Setup *setup, const char *field)
{
    struct lvp_worker_setup read = {0};
    lvp_error_clear();
    enum lvp_status status = lvp_worker_setup_read(setup, &read);
    if (field == NULL) {
        assert_int_equal(status, LVP_OK);
        assert_string_equal(read.model, MODEL);
        assert_int_equal(read.partition.first[read.partition.n_stages], lvp_block_count(&config));
    } else {
        if (status != LVP_ERR_FORMAT) fail_msg("a Setup with a wrong %s was taken", field);
        if (strstr(lvp_error_text(), field) == NULL) fail_msg("'%s' does not name %s", lvp_error_text(), field);
    }
    lvp_worker_setup_free(&read);
}

#define EXPECT_REFUSED(field, change)                                                                                  \
    do {                                                                                                               \
        struct told told;                                                                                              \
        tell(&told, 2, (int[]){3}, 1);                                                                                 \
        Lvp__Setup *setup = &told.setup;                                                                               \
        change;                                                                                                        \
        expect_setup(setup, field);                                                                                    \
        forget(&told);                                                                                                 \
    } while (0)

static void test_setup(void **state)
{
    (void)state;
    EXPECT_REFUSED(NULL, (void)setup);
    EXPECT_REFUSED("dtype", setup->dtype = LVP_INT8);
    EXPECT_REFUSED("weights", setup->weights = LVP_BF16);
    EXPECT_REFUSED("dtype", setup->dtype = -1);
    EXPECT_REFUSED("pruner", setup->pruner = LVP_PRUNER_COUNT);
    EXPECT_REFUSED("pruner", setup->pruner = -1);
    EXPECT_REFUSED("threads", setup->threads = 0);
    EXPECT_REFUSED("threads", setup->threads = 4097);
    EXPECT_REFUSED("prune_after", setup->n_prune_after = LVP_MAX_PRUNE_POINTS + 1);
    EXPECT_REFUSED("prune_after", setup->n_prune_rows = 1);
    EXPECT_REFUSED("prune_after", told.after[0] = 0);
    EXPECT_REFUSED("prune_rows", told.rows[0] = 0);
    EXPECT_REFUSED("prune_rows", told.rows[0] = INT32_MAX);
    EXPECT_REFUSED("prune_rows", told.rows[1] = told.rows[0] + 1);
    EXPECT_REFUSED("prune_rows", told.rows[1] = -1);
    EXPECT_REFUSED("max_rows", setup->max_rows = 0);
    EXPECT_REFUSED("max_rows", setup->max_rows = INT32_MAX);
    EXPECT_REFUSED("max_seqs", setup->max_seqs = -5);
    EXPECT_REFUSED("max_kv_len", setup->max_kv_len = 0);
    EXPECT_REFUSED("max_images", setup->max_images = LVP_LANE_JOBS + 1);
    EXPECT_REFUSED("image_slots", setup->image_slots = 0);
    EXPECT_REFUSED("kv_pages", setup->n_kv_pages = 1);
    EXPECT_REFUSED("kv_pages", told.pages[1] = 0);
    EXPECT_REFUSED("partition", setup->n_partition = 1);
    EXPECT_REFUSED("partition", setup->n_partition = LVP_MAX_STAGES + 2);
    EXPECT_REFUSED("partition", setup->n_ranks = 1);
    EXPECT_REFUSED("ranks", told.ranks[0] = 0);
    EXPECT_REFUSED("ranks", told.ranks[1] = -7);
    EXPECT_REFUSED("stage", setup->stage = 2);
    EXPECT_REFUSED("stage", setup->stage = -1);
    EXPECT_REFUSED("max_pixels", setup->max_pixels = -1);
    EXPECT_REFUSED(NULL, setup->direct_from = true);
    EXPECT_REFUSED("direct_from", (setup->stage = 0, setup->direct_from = true));
    EXPECT_REFUSED("direct_to", setup->direct_to = true);
}

static void stop(struct lvp_compute *compute)
{
    lvp_compute_stop(compute, (struct lvp_transports){0});
    free(compute);
}

static void expect_load_failure(struct told *told, enum lvp_status status, const char *text)
{
    struct lvp_compute *compute = start(told);
    assert_false(compute->loaded);
    assert_int_equal(compute->status, status);
    if (strstr(compute->error, text) == NULL) fail_msg("'%s' does not say '%s'", compute->error, text);
    stop(compute);
}

// What can only be seen beside the model.
static void test_setup_against_the_model(void **state)
{
    (void)state;
    struct told told;
    tell(&told, 1, NULL, 0);
    told.rows[0]++;
    expect_load_failure(&told, LVP_ERR_FORMAT, "rows of an image");
    tell(&told, 1, NULL, 0);
    told.after[0] = config.text.layers + 1;
    expect_load_failure(&told, LVP_ERR_FORMAT, "prune point");
    tell(&told, 1, NULL, 0);
    told.setup.model_hash = (char[]){"0123"};
    expect_load_failure(&told, LVP_ERR_MODEL, "another model");
    tell(&told, 1, NULL, 0);
    told.partition[1]--;
    expect_load_failure(&told, LVP_ERR_USAGE, "does not cover");
    tell(&told, 2, (int[]){-4}, 1);
    expect_load_failure(&told, LVP_ERR_USAGE, "cut -4");
    tell(&told, 1, NULL, 0);
    told.setup.kernel_set = (char[]){"abacus"};
    expect_load_failure(&told, LVP_ERR_USAGE, "abacus");
    tell(&told, 1, NULL, 0);
    told.setup.pruner = LVP_PRUNER_LVPRUNING;
    told.setup.pruner_weights = (char[]){"/nowhere"};
    expect_load_failure(&told, LVP_ERR_MODEL, "/nowhere");
    tell(&told, 1, NULL, 0);
    told.setup.pruner = LVP_PRUNER_LVPRUNING;
    told.setup.pruner_weights = (char[]){MODEL "/lvpruning.safetensors"};
    told.setup.pruner_hash = (char[]){"0123"}; // this node's folder has another training's
    expect_load_failure(&told, LVP_ERR_MODEL, "other pruning modules");
}

static void start_whole(struct told *told, struct lvp_compute **compute)
{
    tell(told, 1, NULL, 0);
    *compute = start(told);
    assert_int_equal((*compute)->status, LVP_OK);
}

// Refused when it is announced, or by the compute thread when it builds the step: NULL text means the step must run.
static void expect_step(struct step *step, const char *text)
{
    struct told told;
    struct lvp_compute *compute = NULL;
    bool moved = false, computed = false;
    start_whole(&told, &compute);
    lvp_error_clear();
    pthread_mutex_lock(&compute->lock);
    enum lvp_status status = lvp_compute_step(compute, step_message(step));
    const char *said = lvp_error_text();
    if (status == LVP_OK) {
        assert_int_equal(lvp_lane_transfer(&compute->steps, (struct lvp_transports){0}, &compute->trace, &moved),
                         LVP_OK);
        pthread_cond_signal(&compute->wake);
    }
    pthread_mutex_unlock(&compute->lock);
    for (double deadline = lvp_now() + 30; status == LVP_OK && !computed; lvp_poll_rest(LVP_EXPECT_SOON, 0)) {
        pthread_mutex_lock(&compute->lock);
        status = compute->status;
        said = compute->error;
        computed = compute->steps.computed == 1;
        pthread_mutex_unlock(&compute->lock);
        if (lvp_now() > deadline) fail_msg("the step was neither run nor refused");
    }
    if (text == NULL) {
        assert_int_equal(status, LVP_OK);
    } else {
        if (status != LVP_ERR_FORMAT && status != LVP_ERR_INTERNAL)
            fail_msg("a step that should say '%s' was taken", text);
        if (strstr(said, text) == NULL) fail_msg("'%s' does not say '%s'", said, text);
    }
    stop(compute);
}

#define EXPECT_STEP(text, n, change)                                                                                   \
    do {                                                                                                               \
        struct step step;                                                                                              \
        make_step(&step, n);                                                                                           \
        change;                                                                                                        \
        expect_step(&step, text);                                                                                      \
    } while (0)

static void test_step(void **state)
{
    (void)state;
    EXPECT_STEP(NULL, 2, (void)step);
    EXPECT_STEP("0 sequences", 0, (void)step);
    EXPECT_STEP("5 sequences", MAX_SEQS + 1, (void)step);
    EXPECT_STEP("out of range", 1, step.sequences[0].max_new = -1);
    EXPECT_STEP("out of range", 1, step.sequences[0].max_new = MAX_KV + 1);
    EXPECT_STEP("out of range", 1, (step.sequences[0].n_ids = 1, step.sequences[0].n_image_slots = 8));
    EXPECT_STEP("has 0 ids", 1, (step.sequences[0].n_ids = 0, step.sequences[0].n_image_slots = 0));
    EXPECT_STEP("slot -1", 1, step.sequences[0].slot = -1);
    EXPECT_STEP("slot 4", 1, step.sequences[0].slot = MAX_SEQS);
    EXPECT_STEP("in use", 2, step.sequences[1].slot = 0);
    EXPECT_STEP("image slot 3", 1, step.images[0][0] = IMAGE_SLOTS);
    EXPECT_STEP("image slot -1", 1, step.images[0][0] = -1);
    EXPECT_STEP("0 image tokens, 1", 1, step.ids[0][3] = 1);
    EXPECT_STEP("1 image tokens, 2", 1, step.sequences[0].n_image_slots = 2);
    EXPECT_STEP("token id -9", 1, step.ids[0][1] = -9);
    EXPECT_STEP("outside the model's vocabulary", 1, step.ids[0][1] = INT32_MAX);
    EXPECT_STEP("holds no sequence", 1, // a decode of nobody
                (step.sequences[0].prefill = false, step.sequences[0].n_ids = 1, step.sequences[0].n_image_slots = 0));
    EXPECT_STEP("has 8 ids", 1, step.sequences[0].prefill = false);
    EXPECT_STEP("position -1", 1,
                (step.sequences[0].prefill = false, step.sequences[0].n_ids = 1, step.sequences[0].n_image_slots = 0,
                 step.sequences[0].position = -1));
    EXPECT_STEP("KV pages", 1, step.sequences[0].max_new = MAX_KV);
    EXPECT_STEP(
        "no text", 1,
        (step.ids[0][0] = config.image_token_id, step.sequences[0].n_ids = step.sequences[0].n_image_slots = 1));
}

static void expect_probe(struct lvp_compute *compute, int calibrate, int peer, const char *text)
{
    enum { RANK = 1, RANKS = 3 };
    Lvp__Probe question = LVP__PROBE__INIT;
    static struct lvp_probe probe;
    question.calibrate = calibrate;
    question.peer = peer;
    question.bytes = -1;
    lvp_error_clear();
    assert_int_equal(lvp_probe_run(compute, NULL, RANK, RANKS, &question, &probe), LVP_ERR_FORMAT);
    if (strstr(lvp_error_text(), text) == NULL) fail_msg("'%s' does not say '%s'", lvp_error_text(), text);
}

static void test_probe(void **state)
{
    (void)state;
    struct told told;
    struct lvp_compute *compute = NULL;
    start_whole(&told, &compute);
    expect_probe(compute, compute->setup.threads + 1, 0, "threads");
    expect_probe(compute, INT32_MAX, 0, "threads");
    expect_probe(compute, 0, 1, "link to rank 1"); // itself
    expect_probe(compute, 0, 3, "link to rank 3");
    expect_probe(compute, 0, INT32_MAX, "link to rank");
    expect_probe(compute, 0, 2, "-1 bytes");
    compute->steps.announced++;
    expect_probe(compute, 0, 0, "work is under way");
    compute->steps.announced--;
    stop(compute);
}

static enum lvp_status encode(struct lvp_compute *compute, size_t n, int32_t *slots)
{
    static uint64_t samples[8];
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    Lvp__Encode body = LVP__ENCODE__INIT;
    message.body_case = LVP__TO_WORKER__BODY_ENCODE;
    message.encode = &body;
    body.number = 1;
    body.n_slots = n;
    body.slots = slots;
    body.n_samples = n;
    body.samples = samples;
    lvp_error_clear();
    pthread_mutex_lock(&compute->lock);
    enum lvp_status status = lvp_compute_encode(compute, through_the_wire(&message));
    pthread_mutex_unlock(&compute->lock);
    return status;
}

static void test_encode(void **state)
{
    (void)state;
    struct told told;
    struct lvp_compute *compute = NULL;
    start_whole(&told, &compute);
    assert_int_equal(encode(compute, 0, NULL), LVP_ERR_FORMAT);
    assert_int_equal(encode(compute, 3, (int32_t[]){0, 1, 2}), LVP_ERR_FORMAT); // more than an encode job holds
    assert_int_equal(encode(compute, 1, (int32_t[]){-1}), LVP_ERR_FORMAT);
    assert_int_equal(encode(compute, 2, (int32_t[]){0, IMAGE_SLOTS}), LVP_ERR_FORMAT);
    assert_int_equal(encode(compute, 2, (int32_t[]){0, IMAGE_SLOTS - 1}), LVP_OK);
    for (int i = 1; i < LVP_LANE_JOBS; i++) assert_int_equal(encode(compute, 1, (int32_t[]){0}), LVP_OK);
    assert_int_equal(encode(compute, 1, (int32_t[]){0}), LVP_ERR_FORMAT); // nothing was retired: the lane is full
    stop(compute);
}

static void test_release(void **state)
{
    (void)state;
    struct told told;
    struct lvp_compute *compute = NULL;
    Lvp__Release release = LVP__RELEASE__INIT;
    int32_t slots[MAX_SEQS + 1] = {0, -3, 99, INT32_MIN, 1}; // unknown slots are ignored, too many are refused
    start_whole(&told, &compute);
    release.slots = slots;
    release.n_slots = MAX_SEQS;
    assert_int_equal(lvp_compute_release(compute, &release), LVP_OK);
    release.n_slots = 1;
    lvp_error_clear();
    assert_int_equal(lvp_compute_release(compute, &release), LVP_ERR_FORMAT);
    stop(compute);
}

// Work for blocks that a stage does not hold.
static void test_work_for_another_stage(void **state)
{
    (void)state;
    struct told told;
    struct step step;
    int merge = lvp_block_index(&config, LVP_BLOCK_MERGE, 0);
    int cuts[] = {merge - 1, merge + 2};
    tell(&told, 3, cuts, 0);
    struct lvp_compute *compute = start(&told);
    make_step(&step, 1);
    lvp_error_clear();
    pthread_mutex_lock(&compute->lock);
    assert_int_equal(lvp_compute_step(compute, step_message(&step)), LVP_ERR_FORMAT);
    pthread_mutex_unlock(&compute->lock);
    stop(compute);
    tell(&told, 3, cuts, 2);
    compute = start(&told);
    assert_int_equal(encode(compute, 1, (int32_t[]){0}), LVP_ERR_FORMAT);
    stop(compute);
}

static void test_bytes_that_are_no_message(void **state)
{
    (void)state;
    Lvp__ToWorker *to = NULL;
    Lvp__FromWorker *from = NULL;
    static const uint8_t bytes[] = {0x0a, 0x7f, 1, 2, 3};
    lvp_error_clear();
    assert_int_equal(lvp_control_unpack_to_worker(bytes, sizeof bytes, &to), LVP_ERR_FORMAT);
    assert_int_equal(lvp_control_unpack_from_worker(bytes, sizeof bytes, &from), LVP_ERR_FORMAT);
    assert_int_equal(lvp_control_unpack_to_worker(bytes, LVP_CONTROL_MAX_BYTES + 1, &to), LVP_ERR_FORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_setup),
        cmocka_unit_test(test_setup_against_the_model),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_release),
        cmocka_unit_test(test_work_for_another_stage),
        cmocka_unit_test(test_bytes_that_are_no_message),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
