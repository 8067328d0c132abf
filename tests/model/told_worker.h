// A worker without MPI for tests: a Setup that is right, a compute thread that was told it, and messages as they come
// out of protobuf.
#ifndef LVP_TESTS_MODEL_TOLD_WORKER_H
#define LVP_TESTS_MODEL_TOLD_WORKER_H

#include "common/checkpoint.h"
#include "common/clock.h"
#include "worker/compute.h"
#include "worker/device.h"

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

static inline int set_up(void **state)
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

static inline void tell(struct told *told, int n_stages, const int *cuts, int stage)
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

static inline void forget(struct told *told)
{
    free(told->setup.model);
}

static inline void wait_until_over(struct lvp_compute *compute, const bool *over)
{
    double deadline = lvp_now() + 30;
    for (bool done = false; !done; lvp_poll_rest(LVP_EXPECT_SOON, 0)) {
        pthread_mutex_lock(&compute->lock);
        done = *over || compute->status != LVP_OK;
        pthread_mutex_unlock(&compute->lock);
        if (lvp_now() > deadline) fail_msg("the compute thread did not answer");
    }
}

static inline struct lvp_compute *start(struct told *told)
{
    struct lvp_compute *compute = calloc(1, sizeof *compute);
    lvp_compute_init(compute);
    assert_int_equal(lvp_compute_start(compute, &told->setup, LVP_NO_GPU), LVP_OK);
    wait_until_over(compute, &compute->loaded);
    forget(told);
    return compute;
}

// A Step as it comes out of protobuf: packed and unpacked, since the worker frees it as such.
static inline Lvp__ToWorker *through_the_wire(Lvp__ToWorker *message)
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
static inline void make_step(struct step *step, int n)
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

static inline Lvp__ToWorker *step_message(struct step *step)
{
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    message.body_case = LVP__TO_WORKER__BODY_STEP;
    message.step = &step->step;
    return through_the_wire(&message);
}

#endif
