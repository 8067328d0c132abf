// Control messages from another rank: any bytes, and Steps that are nearly right. What the worker accepts is run on a
// small model with the plain kernels, so that a wrong index shows in the sanitizers. Run from the source root.
#include "common/checkpoint.h"
#include "worker/compute.h"

#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/models/plain-f32"

enum { MAX_ROWS = 64, MAX_SEQS = 4, MAX_KV = 64, IMAGE_SLOTS = 3, MAX_IMAGES = 2 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct lvp_compute compute;
static float *x;
static int32_t *positions;

static void must(enum lvp_status status)
{
    if (status != LVP_OK) abort();
}

static void open_lanes(void)
{
    const struct lvp_lane_end nowhere = {.rank = -1};
    must(lvp_lane_init(&compute.steps, NULL, LVP_HOP_STEP, 0, nowhere, nowhere));
    must(lvp_lane_init(&compute.encodes, NULL, LVP_HOP_ENCODE, 0, nowhere, nowhere));
}

// A worker that holds the whole model, without its threads.
static void open_worker(void)
{
    struct lvp_checkpoint *checkpoint = NULL;
    must(lvp_checkpoint_open(MODEL, &checkpoint));
    compute.config = *lvp_checkpoint_config(checkpoint);
    const struct lvp_model_config *config = &compute.config;
    compute.setup =
        (struct lvp_worker_setup){.dtype = LVP_F32,
                                  .weights = LVP_F32,
                                  .pruner = LVP_PRUNER_RANDOM,
                                  .prune = {.n_points = 1, .after = {1}, .rows = {lvp_vision_tokens(config), 2}},
                                  .partition = {.n_stages = 1, .first = {0, lvp_block_count(config)}},
                                  .limits = {.max_rows = MAX_ROWS,
                                             .max_seqs = MAX_SEQS,
                                             .max_kv_len = MAX_KV,
                                             .kv_pages = {10, 8},
                                             .max_images = MAX_IMAGES,
                                             .image_slots = IMAGE_SLOTS}};
    must(lvp_ref_backend_open(LVP_F32, &compute.backend));
    struct lvp_stage_options options = {.backend = compute.backend,
                                        .checkpoint = checkpoint,
                                        .pruner = LVP_PRUNER_RANDOM,
                                        .prune = compute.setup.prune,
                                        .limits = compute.setup.limits,
                                        .range = lvp_stage_range_of(config, 0, lvp_block_count(config))};
    must(lvp_stage_create(&options, &compute.stage));
    lvp_checkpoint_close(checkpoint);
    pthread_mutex_init(&compute.lock, NULL);
    pthread_cond_init(&compute.wake, NULL);
    compute.releases = calloc(MAX_SEQS, sizeof *compute.releases);
    x = calloc((size_t)MAX_ROWS * (size_t)config->text.hidden, sizeof *x);
    positions = calloc(MAX_ROWS, sizeof *positions);
    if (compute.releases == NULL || x == NULL || positions == NULL) abort();
    open_lanes();
}

// A failed announcement ends a worker; here the lanes begin anew.
static void start_anew(void)
{
    if (lvp_error_text()[0] == '\0') abort();
    lvp_lane_destroy(&compute.steps, (struct lvp_transports){0});
    lvp_lane_destroy(&compute.encodes, (struct lvp_transports){0});
    open_lanes();
}

static void run_step(Lvp__ToWorker *message)
{
    if (lvp_compute_step(&compute, message) != LVP_OK) {
        start_anew();
        return;
    }
    struct lvp_job *job = lvp_lane_job(&compute.steps, compute.steps.computed);
    struct lvp_step_output output = {.x = x, .positions = positions, .tokens = job->tokens, .logprobs = job->logprobs};
    if (lvp_stage_step(compute.stage, &job->step, NULL, NULL, 0, &output) != LVP_OK) {
        if (lvp_error_text()[0] == '\0') abort();
        for (int slot = 0; slot < MAX_SEQS; slot++) lvp_stage_release(compute.stage, slot);
    }
    compute.steps.computed++;
    lvp_lane_retire(&compute.steps);
}

static void run_message(Lvp__ToWorker *message)
{
    struct lvp_worker_setup setup = {0};
    switch (message->body_case) {
    case LVP__TO_WORKER__BODY_STEP:
        run_step(message);
        return;
    case LVP__TO_WORKER__BODY_ENCODE:
        if (lvp_compute_encode(&compute, message) != LVP_OK) {
            start_anew();
            return;
        }
        compute.encodes.computed++;
        lvp_lane_retire(&compute.encodes);
        return;
    case LVP__TO_WORKER__BODY_SETUP:
        if (lvp_worker_setup_read(message->setup, &setup) == LVP_OK &&
            lvp_partition_check(&compute.config, &setup.partition) == LVP_OK) {
            struct lvp_stage_range range = lvp_stage_range_of(&compute.config, setup.partition.first[setup.stage],
                                                              setup.partition.first[setup.stage + 1]);
            if (range.vit_end < range.vit_first || range.dec_end < range.dec_first) abort();
        }
        lvp_worker_setup_free(&setup);
        break;
    case LVP__TO_WORKER__BODY_RELEASE:
        if (lvp_compute_release(&compute, message->release) == LVP_OK)
            for (int i = 0; i < compute.n_releases; i++) lvp_stage_release(compute.stage, compute.releases[i]);
        compute.n_releases = 0;
        break;
    default:
        break;
    }
    lvp__to_worker__free_unpacked(message, NULL);
}

static int take(const uint8_t **data, size_t *size)
{
    if (*size == 0) return 0;
    (*size)--;
    return *(*data)++;
}

// A Step whose fields are small numbers around the limits, as protobuf would hand it over.
static Lvp__ToWorker *near_step(const uint8_t *data, size_t size)
{
    Lvp__ToWorker *message = malloc(sizeof *message);
    Lvp__Step *step = malloc(sizeof *step);
    if (message == NULL || step == NULL) abort();
    lvp__to_worker__init(message);
    lvp__step__init(step);
    message->body_case = LVP__TO_WORKER__BODY_STEP;
    message->step = step;
    step->n_sequences = (size_t)(take(&data, &size) % (MAX_SEQS + 2));
    step->sequences = calloc(step->n_sequences + 1, sizeof *step->sequences);
    for (size_t s = 0; s < step->n_sequences; s++) {
        Lvp__Sequence *seq = step->sequences[s] = malloc(sizeof *seq);
        lvp__sequence__init(seq);
        int flags = take(&data, &size);
        seq->slot = take(&data, &size) % (MAX_SEQS + 2) - 1;
        seq->prefill = (flags & 1) != 0;
        seq->max_new = take(&data, &size) % (MAX_KV + 3) - 1;
        seq->position = take(&data, &size) - 1;
        seq->temperature = (float)(flags >> 4) / 8.0f;
        seq->top_p = (float)(flags & 15) / 15.0f;
        seq->n_ids = (flags & 2) != 0 ? 1 : (size_t)(take(&data, &size) % 20);
        seq->ids = calloc(seq->n_ids + 1, sizeof *seq->ids);
        int n_images = 0;
        for (size_t i = 0; i < seq->n_ids; i++) {
            int id = take(&data, &size);
            seq->ids[i] = id < 16   ? compute.config.image_token_id
                          : id < 18 ? compute.config.text.vocab - 17 + id
                                    : id - 19;
            n_images += id < 16;
        }
        seq->n_image_slots = (flags & 4) != 0 ? (size_t)(take(&data, &size) % 4) : (size_t)n_images;
        seq->image_slots = calloc(seq->n_image_slots + 1, sizeof *seq->image_slots);
        for (size_t i = 0; i < seq->n_image_slots; i++)
            seq->image_slots[i] = take(&data, &size) % (IMAGE_SLOTS + 2) - (flags & 8 ? 1 : 0);
    }
    return message;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (compute.stage == NULL) open_worker();
    lvp_error_clear();
    if (size > 0 && data[0] % 4 != 0) {
        Lvp__ToWorker *message = NULL;
        if (lvp_control_unpack_to_worker(data + 1, size - 1, &message) == LVP_OK) run_message(message);
    } else if (size > 0) {
        for (int i = 0; i < 2; i++) { // the second time the slots are taken
            lvp_error_clear();
            run_step(near_step(data + 1, size - 1));
        }
    }
    for (int slot = 0; slot < MAX_SEQS; slot++) lvp_stage_release(compute.stage, slot);
    return 0;
}
