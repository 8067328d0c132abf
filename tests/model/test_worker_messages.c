// What a worker is told may be malformed: every message is refused with a text before anything is computed from it, and
// never crashes the rank. No MPI: the messages are handed over as the communication thread would.
#include "common/checkpoint.h"
#include "common/tags.h"
#include "worker/compute.h"
#include "worker/device.h"
#include "worker/probe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
// cmocka.h needs those above.
#include <cmocka.h>

#define MODEL "tests/golden/models/plain-f32"

enum { MAX_ROWS = 256, MAX_SEQS = 4, MAX_KV = 128, IMAGE_SLOTS = 3, MAX_IMAGES = 2 };

static struct lvp_model_config config;
static char hash[33];

static int set_up(void **state)
{
    (void)state;
    struct lvp_checkpoint *checkpoint = NULL;
    if (lvp_checkpoint_open(MODEL, &checkpoint) != LVP_OK) return -1;
    config = *lvp_checkpoint_config(checkpoint);
    enum lvp_status status = lvp_checkpoint_hash(checkpoint, hash);
    lvp_checkpoint_close(checkpoint);
    return status == LVP_OK ? 0 : -1;
}

// A Setup that is right, and the arrays it points to.
struct told {
    Lvp__Setup setup;
    int32_t after[LVP_MAX_PRUNE_POINTS + 1], rows[LVP_MAX_DEPTHS + 1], pages[LVP_MAX_DEPTHS + 1];
    int32_t partition[LVP_MAX_STAGES + 2], ranks[LVP_MAX_STAGES + 1];
};

static void tell(struct told *told, int n_stages, const int *cuts, int stage)
{
    *told = (struct told){.after = {1}, .rows = {lvp_vision_tokens(&config), 2}, .pages = {32, 32}};
    lvp__setup__init(&told->setup);
    for (int s = 0; s < n_stages; s++) {
        told->partition[s] = s == 0 ? 0 : cuts[s - 1];
        told->ranks[s] = s + 1;
    }
    told->partition[n_stages] = lvp_block_count(&config);
    Lvp__Setup *setup = &told->setup;
    setup->model = strdup(MODEL);
    setup->model_hash = hash;
    setup->kernel_set = (char *)(size_t)lvp_cpu_best_kernel_set();
    setup->dtype = setup->weights = LVP_F32;
    setup->pruner = LVP_PRUNER_RANDOM;
    setup->threads = 1;
    setup->n_prune_after = 1;
    setup->prune_after = told->after;
    setup->n_prune_rows = setup->n_kv_pages = 2;
    setup->prune_rows = told->rows;
    setup->kv_pages = told->pages;
    setup->n_partition = (size_t)n_stages + 1;
    setup->partition = told->partition;
    setup->n_ranks = (size_t)n_stages;
    setup->ranks = told->ranks;
    setup->stage = stage;
    setup->max_rows = MAX_ROWS;
    setup->max_seqs = MAX_SEQS;
    setup->max_kv_len = MAX_KV;
    setup->max_images = MAX_IMAGES;
    setup->image_slots = IMAGE_SLOTS;
    setup->max_pixels = 1000000;
}

static void forget(struct told *told)
{
    free(told->setup.model);
}

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

static void wait_until_over(struct lvp_compute *compute, const bool *over)
{
    double deadline = lvp_now() + 30;
    for (bool done = false; !done; lvp_poll_rest(LVP_EXPECT_SOON, 0)) {
        pthread_mutex_lock(&compute->lock);
        done = *over || compute->status != LVP_OK;
        pthread_mutex_unlock(&compute->lock);
        if (lvp_now() > deadline) fail_msg("the compute thread did not answer");
    }
}

static struct lvp_compute *start(struct told *told)
{
    struct lvp_compute *compute = calloc(1, sizeof *compute);
    lvp_compute_init(compute);
    assert_int_equal(lvp_compute_start(compute, &told->setup, LVP_NO_GPU), LVP_OK);
    wait_until_over(compute, &compute->loaded);
    forget(told);
    return compute;
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
}

// A Step as it comes out of protobuf: packed and unpacked, since the worker frees it as such.
static Lvp__ToWorker *through_the_wire(Lvp__ToWorker *message)
{
    size_t n = lvp__to_worker__get_packed_size(message);
    uint8_t *bytes = malloc(n + 1);
    Lvp__ToWorker *back = NULL;
    lvp__to_worker__pack(message, bytes);
    assert_int_equal(lvp_control_unpack_to_worker(bytes, n, &back), LVP_OK);
    free(bytes);
    return back;
}

struct step {
    Lvp__Step step;
    Lvp__Sequence sequences[MAX_SEQS + 1], *pointers[MAX_SEQS + 1];
    int32_t ids[MAX_SEQS + 1][8], images[MAX_SEQS + 1][8];
};

// n right prefills of 8 ids with one image each.
static void make_step(struct step *step, int n)
{
    memset(step, 0, sizeof *step);
    lvp__step__init(&step->step);
    for (int s = 0; s < n; s++) {
        Lvp__Sequence *seq = &step->sequences[s];
        lvp__sequence__init(seq);
        for (int i = 0; i < 8; i++) step->ids[s][i] = i == 3 ? config.image_token_id : i;
        step->pointers[s] = seq;
        seq->slot = s;
        seq->prefill = true;
        seq->max_new = 4;
        seq->n_ids = 8;
        seq->ids = step->ids[s];
        seq->n_image_slots = 1;
        seq->image_slots = step->images[s];
        seq->top_p = 1;
    }
    step->step.number = 1;
    step->step.n_sequences = (size_t)n;
    step->step.sequences = step->pointers;
}

static Lvp__ToWorker *step_message(struct step *step)
{
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    message.body_case = LVP__TO_WORKER__BODY_STEP;
    message.step = &step->step;
    return through_the_wire(&message);
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

// The rank before sends one prompt with 7 rows of text, of whose image 2 rows stay at most. `kept` of them come; NULL
// text means that the step must run.
static void expect_hop(bool vary, int kept, const char *text)
{
    enum { BEFORE = 1, RANK = 2, RANKS = 3, MOST = 16 };
    struct told told;
    struct step step;
    struct lvp_transport *ends[RANKS];
    struct lvp_transfer head_transfer = {0}, body_transfer = {0};
    unsigned char head[LVP_HOP_HEADER_BYTES + MOST * sizeof(int32_t)];
    int32_t positions[MOST], n_rows = 0;
    uint64_t row_bytes = (uint64_t)config.text.hidden * sizeof(float);
    float *body = calloc(MOST, row_bytes);
    for (int i = 0; i < 8; i++) {
        if (i == 3) // the image's token
            for (int v = 0; v < kept; v++) positions[n_rows++] = 3 + 2 * v;
        else
            positions[n_rows++] = i < 3 ? i : i + lvp_vision_tokens(&config) - 1;
    }
    const struct lvp_hop_header header = {.kind = LVP_HOP_STEP,
                                          .number = 1,
                                          .n_rows = (uint32_t)n_rows,
                                          .width = (uint32_t)config.text.hidden,
                                          .n_parts = 1,
                                          .dtype = LVP_F32,
                                          .payload_bytes = (uint64_t)n_rows * row_bytes,
                                          .vision_rows = (uint64_t)kept};
    lvp_hop_header_pack(&header, head);
    memcpy(head + LVP_HOP_HEADER_BYTES, positions, (size_t)n_rows * sizeof *positions);

    make_step(&step, 1);
    tell(&told, 2, (int[]){lvp_block_index(&config, LVP_BLOCK_DEC, 1)}, 1); // behind the prune point
    told.setup.prune_rows_vary = vary;
    struct lvp_compute *compute = start(&told);
    assert_int_equal(compute->status, LVP_OK);
    assert_int_equal(lvp_transport_loop_open(RANKS, ends), LVP_OK);
    struct lvp_transports transports = {.messages = ends[RANK]};
    assert_int_equal(ends[BEFORE]->ops->isend(ends[BEFORE], RANK, LVP_TAG_STEP_HEAD, head,
                                              LVP_HOP_HEADER_BYTES + (size_t)n_rows * sizeof *positions,
                                              &head_transfer),
                     LVP_OK);
    assert_int_equal(
        ends[BEFORE]->ops->isend(ends[BEFORE], RANK, LVP_TAG_STEP_BODY, body, header.payload_bytes, &body_transfer),
        LVP_OK);
    lvp_error_clear();
    pthread_mutex_lock(&compute->lock);
    enum lvp_status status = lvp_compute_step(compute, step_message(&step));
    pthread_mutex_unlock(&compute->lock);
    bool computed = false;
    for (double deadline = lvp_now() + 30; status == LVP_OK && !computed; lvp_poll_rest(LVP_EXPECT_SOON, 0)) {
        bool moved = false;
        pthread_mutex_lock(&compute->lock);
        status = lvp_lane_transfer(&compute->steps, transports, &compute->trace, &moved);
        if (status == LVP_OK) status = compute->status;
        computed = compute->steps.computed == 1;
        pthread_cond_signal(&compute->wake);
        pthread_mutex_unlock(&compute->lock);
        if (lvp_now() > deadline) fail_msg("the hop was neither taken nor refused");
    }
    assert_int_equal(status, text == NULL ? LVP_OK : LVP_ERR_FORMAT);
    if (text != NULL && strstr(lvp_error_text(), text) == NULL)
        fail_msg("'%s' does not say '%s'", lvp_error_text(), text);
    lvp_compute_stop(compute, transports);
    for (int i = 0; i < RANKS; i++) ends[i]->ops->close(ends[i]);
    free(compute);
    free(body);
}

static void test_hop(void **state)
{
    (void)state;
    expect_hop(false, 2, NULL);
    expect_hop(false, 1, "rows is 8, 9 was announced");
    expect_hop(false, 3, "rows is 10, 9 was announced");
    expect_hop(true, 2, NULL);
    expect_hop(true, 1, NULL);
    expect_hop(true, 0, NULL);
    expect_hop(true, 3, "rows is 10, 9 was announced");
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
        cmocka_unit_test(test_hop),
        cmocka_unit_test(test_probe),
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_release),
        cmocka_unit_test(test_work_for_another_stage),
        cmocka_unit_test(test_bytes_that_are_no_message),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
