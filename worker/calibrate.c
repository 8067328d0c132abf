#include "worker/calibrate.h"

#include "common/clock.h"
#include "common/guard.h"
#include "worker/stage.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 512, MAX_ROWS = 2048, PROMPT = 608, CACHED = 96, DECODES = 16, DECODE_STEPS = 16, IMAGES = 4 };

static const int row_counts[] = {1, 2, 4, 8, 16, 32, 64};
enum { N_ROW_COUNTS = sizeof row_counts / sizeof row_counts[0], MAX_TRIES = 200 };

struct calibration {
    struct lvp_model_config config;
    struct lvp_backend *backend;
    struct lvp_checkpoint *checkpoint;
    struct lvp_stage *layers, *vit;
    struct lvp_prune_counts prune;
    // one step's input and output
    struct lvp_step_seq seqs[MAX_SEQS];
    int32_t *ids, *positions, *positions_out; // [MAX_ROWS]
    void *x, *x_out;                          // [MAX_ROWS, hidden]
    void *images, *images_out;                // [IMAGES] in and out of a ViT layer
    uint64_t number;
    struct lvp_experiment_result *results;
    int n_results;
};

static enum lvp_status create(struct calibration *c, const char *kernel_set, enum lvp_dtype dtype,
                              enum lvp_dtype weights, int threads)
{
    struct lvp_stage_limits limits = {.max_rows = MAX_ROWS,
                                      .max_seqs = MAX_SEQS,
                                      .max_kv_len = PROMPT + 32,
                                      .max_images = IMAGES,
                                      .image_slots = IMAGES};
    c->config.text.max_positions = PROMPT + 32;
    c->prune.rows[0] = lvp_vision_tokens(&c->config);
    limits.kv_pages[0] = MAX_SEQS * (1 + (CACHED + DECODE_STEPS) / LVP_KV_PAGE) + (PROMPT + 32) / LVP_KV_PAGE + 2;
    struct lvp_stage_options layer = {.checkpoint = c->checkpoint,
                                      .prune = c->prune,
                                      .range = {.vit_first = 1, .vit_end = 1, .dec_end = c->config.text.layers},
                                      .limits = limits};
    struct lvp_stage_options vit = layer;
    vit.range = (struct lvp_stage_range){.vit_end = 1};
    struct lvp_backend_limits of_layer, of_vit;
    lvp_stage_backend_limits(&c->config, &c->prune, 0, layer.range, &limits, &of_layer);
    lvp_stage_backend_limits(&c->config, &c->prune, 0, vit.range, &limits, &of_vit);
    if (of_vit.max_rows > of_layer.max_rows) of_layer.max_rows = of_vit.max_rows;
    if (of_vit.max_width > of_layer.max_width) of_layer.max_width = of_vit.max_width;
    if (of_vit.max_kv_len > of_layer.max_kv_len) of_layer.max_kv_len = of_vit.max_kv_len;
    LVP_TRY(lvp_cpu_backend_open(kernel_set, dtype, threads, &of_layer, &c->backend));
    c->backend->weights = weights;
    layer.backend = vit.backend = c->backend;
    LVP_TRY(lvp_stage_create(&layer, &c->layers));
    LVP_TRY(lvp_stage_create(&vit, &c->vit));
    size_t row = (size_t)c->config.text.hidden * lvp_dtype_size(dtype);
    c->ids = calloc(MAX_ROWS, sizeof *c->ids);
    c->positions = calloc(MAX_ROWS, sizeof *c->positions);
    c->positions_out = calloc(MAX_ROWS, sizeof *c->positions_out);
    c->x = calloc(MAX_ROWS, row);
    c->x_out = calloc(MAX_ROWS, row);
    c->images = calloc(IMAGES, lvp_stage_image_in_bytes(c->vit));
    c->images_out = calloc(IMAGES, lvp_stage_image_out_bytes(c->vit));
    if (c->ids == NULL || c->positions == NULL || c->positions_out == NULL || c->x == NULL || c->x_out == NULL ||
        c->images == NULL || c->images_out == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for calibrating");
    return LVP_OK;
}

static void destroy(struct calibration *c)
{
    lvp_stage_destroy(c->layers);
    lvp_stage_destroy(c->vit);
    if (c->backend != NULL) c->backend->ops->close(c->backend);
    lvp_checkpoint_close(c->checkpoint);
    void *memory[] = {c->ids, c->positions, c->positions_out, c->x, c->x_out, c->images, c->images_out};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) free(memory[i]);
    free(c);
}

// One step over n sequences of `rows` rows each, new ones or decoding. Seconds are added to *seconds.
static enum lvp_status step(struct calibration *c, int n, int rows, bool prefill, int position, double *seconds)
{
    for (int s = 0; s < n; s++) {
        c->seqs[s] = (struct lvp_step_seq){.slot = s,
                                           .prefill = prefill,
                                           .max_new = DECODE_STEPS,
                                           .position = position,
                                           .n_ids = rows,
                                           .ids = c->ids,
                                           .top_p = 1};
        for (int r = 0; r < rows; r++) c->positions[s * rows + r] = position + r;
    }
    struct lvp_step what = {.number = ++c->number, .n_seqs = n, .seqs = c->seqs};
    struct lvp_step_output output = {.x = c->x_out, .positions = c->positions_out};
    double start = lvp_now();
    LVP_TRY(lvp_stage_step(c->layers, &what, c->x, c->positions, &output));
    *seconds += (lvp_now() - start) / c->config.text.layers;
    return LVP_OK;
}

static void release(struct calibration *c, int n)
{
    for (int s = 0; s < n; s++) lvp_stage_release(c->layers, s);
}

static enum lvp_status run_once(struct calibration *c, enum lvp_experiment kind, int n, double *seconds)
{
    const void *in[IMAGES];
    int32_t slots[IMAGES];
    double ignored = 0;
    switch (kind) {
    case LVP_EXPERIMENT_ROWS:
        LVP_TRY(step(c, n, 1, true, 0, seconds));
        release(c, n);
        return LVP_OK;
    case LVP_EXPERIMENT_PREFILL:
        LVP_TRY(step(c, 1, n, true, 0, seconds));
        release(c, 1);
        return LVP_OK;
    case LVP_EXPERIMENT_DECODE:
        LVP_TRY(step(c, n, CACHED, true, 0, &ignored));
        for (int i = 0; i < DECODE_STEPS; i++) LVP_TRY(step(c, n, 1, false, CACHED + i, seconds));
        *seconds /= DECODE_STEPS;
        release(c, n);
        return LVP_OK;
    case LVP_EXPERIMENT_ENCODE: {
        for (int i = 0; i < n; i++) {
            in[i] = (const char *)c->images + (size_t)i * lvp_stage_image_in_bytes(c->vit);
            slots[i] = i;
        }
        double start = lvp_now();
        LVP_TRY(lvp_stage_encode(c->vit, n, in, slots, c->images_out));
        *seconds += lvp_now() - start;
        return LVP_OK;
    }
    case LVP_EXPERIMENT_COUNT:
        break;
    }
    return LVP_OK;
}

static int compare_seconds(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The median of some tries after a first one that warms up: a run meets the machine as it is, disturbances included.
static enum lvp_status experiment(struct calibration *c, enum lvp_experiment kind, int n, int kv_len)
{
    static const double enough = 0.5;
    double tries[MAX_TRIES], start = 0;
    int n_tries = 0;
    for (int i = 0; n_tries < MAX_TRIES && (n_tries < 3 || lvp_now() - start < enough); i++) {
        double seconds = 0;
        LVP_TRY(run_once(c, kind, n, &seconds));
        lvp_guard_tick();
        if (i > 0) tries[n_tries++] = seconds;
        if (i == 0) start = lvp_now();
    }
    qsort(tries, (size_t)n_tries, sizeof *tries, compare_seconds);
    c->results[c->n_results++] = (struct lvp_experiment_result){
        .kind = kind, .n = n, .kv_len = kv_len, .seconds = tries[n_tries / 2]};
    return LVP_OK;
}

static enum lvp_status run_all(struct calibration *c)
{
    for (int i = 0; i < N_ROW_COUNTS; i++) LVP_TRY(experiment(c, LVP_EXPERIMENT_ROWS, row_counts[i], 1));
    LVP_TRY(experiment(c, LVP_EXPERIMENT_PREFILL, PROMPT / 4, PROMPT / 4));
    LVP_TRY(experiment(c, LVP_EXPERIMENT_PREFILL, PROMPT, PROMPT));
    LVP_TRY(experiment(c, LVP_EXPERIMENT_DECODE, DECODES, CACHED + DECODE_STEPS / 2));
    LVP_TRY(experiment(c, LVP_EXPERIMENT_ENCODE, 1, 0));
    return experiment(c, LVP_EXPERIMENT_ENCODE, IMAGES, 0);
}

enum lvp_status lvp_calibrate(const struct lvp_model_config *config, const char *kernel_set, enum lvp_dtype dtype,
                              enum lvp_dtype weights, int threads, struct lvp_experiment_result *results,
                              int *n_results, struct lvp_roof *roof)
{
    enum lvp_status status = LVP_OK;
    struct calibration *c = calloc(1, sizeof *c);
    if (c == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for calibrating");
    c->config = *config;
    c->results = results;
    LVP_CHECK(lvp_checkpoint_synthetic(&c->config, &c->checkpoint));
    LVP_CHECK(create(c, kernel_set, dtype, weights, threads));
    LVP_CHECK(run_all(c));
    if (c->backend->ops->roof != NULL) LVP_CHECK(c->backend->ops->roof(c->backend, roof));
fail:
    *n_results = c->n_results;
    destroy(c);
    return status;
}
