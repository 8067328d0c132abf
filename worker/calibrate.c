#include "worker/calibrate.h"

#include "common/clock.h"
#include "common/guard.h"
#include "common/shapes.h"
#include "worker/device.h"
#include "worker/stage.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SEQS = 512, MAX_ROWS = 2048, PROMPT = 608, CACHED = 96, DECODES = 16, DECODE_STEPS = 16, IMAGES = 4 };

static const int row_counts[] = {1, 2, 4, 8, 16, 32, 64};
enum { N_ROW_COUNTS = sizeof row_counts / sizeof row_counts[0], MAX_TRIES = 400 };

struct calibration {
    struct lvp_model_config config;
    struct lvp_backend *backend;
    struct lvp_checkpoint *checkpoint;
    struct lvp_stage *layers, *vit;
    struct lvp_prune_counts prune;
    // one step's input and output
    struct lvp_step_seq seqs[MAX_SEQS];
    int32_t *ids, *positions, *positions_out; // [MAX_ROWS]
    void *x, *x_out;                          // [MAX_ROWS, hidden] payloads of the backend
    void *images, *images_out;                // [IMAGES] in and out of a ViT layer, too
    uint64_t number;
    struct lvp_experiment_result *results;
    int n_results;
};

// A payload in memory that every device reads and writes, as a transport's is. Of values between -2 and 2, as of a
// benchmark's images: zeros may be cheaper to multiply.
static enum lvp_status create_noise(struct calibration *c, size_t n_bytes, void **payload)
{
    enum lvp_dtype dtype = c->backend->dtype;
    size_t size = lvp_dtype_size(dtype);
    uint32_t state = 1;
    LVP_TRY(c->backend->ops->payload_alloc(c->backend, n_bytes, false, payload));
    for (size_t i = 0; i < n_bytes / size; i++) {
        state = state * 1664525U + 1013904223U; // Numerical Recipes' generator
        float value = (float)(int32_t)state * 0x1p-30f;
        lvp_narrow(&value, 1, dtype, (char *)*payload + i * size);
    }
    return LVP_OK;
}

static enum lvp_status create(struct calibration *c, int gpu, const char *kernel_set, enum lvp_dtype dtype,
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
    LVP_TRY(lvp_backend_open(gpu, kernel_set, dtype, threads, &of_layer, &c->backend));
    c->backend->weights = weights;
    layer.backend = vit.backend = c->backend;
    LVP_TRY(lvp_stage_create(&layer, &c->layers));
    LVP_TRY(lvp_stage_create(&vit, &c->vit));
    size_t row = (size_t)c->config.text.hidden * lvp_dtype_size(dtype);
    LVP_TRY(create_noise(c, MAX_ROWS * row, &c->x));
    LVP_TRY(create_noise(c, MAX_ROWS * row, &c->x_out));
    LVP_TRY(create_noise(c, IMAGES * lvp_stage_image_in_bytes(c->vit), &c->images));
    LVP_TRY(create_noise(c, IMAGES * lvp_stage_image_out_bytes(c->vit), &c->images_out));
    c->ids = calloc(MAX_ROWS, sizeof *c->ids);
    c->positions = calloc(MAX_ROWS, sizeof *c->positions);
    c->positions_out = calloc(MAX_ROWS, sizeof *c->positions_out);
    if (c->ids == NULL || c->positions == NULL || c->positions_out == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for calibrating");
    return LVP_OK;
}

static void destroy(struct calibration *c)
{
    void *payloads[] = {c->x, c->x_out, c->images, c->images_out};
    lvp_stage_destroy(c->layers);
    lvp_stage_destroy(c->vit);
    for (size_t i = 0; i < sizeof payloads / sizeof *payloads && c->backend != NULL; i++)
        c->backend->ops->payload_free(c->backend, payloads[i]);
    if (c->backend != NULL) c->backend->ops->close(c->backend);
    lvp_checkpoint_close(c->checkpoint);
    void *memory[] = {c->ids, c->positions, c->positions_out};
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
    LVP_TRY(lvp_stage_step(c->layers, &what, c->x, c->positions, n * rows, &output));
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

// An experiment's tries. The median counts: a run meets the machine as it is, disturbances included.
struct tries {
    enum lvp_experiment kind;
    int n, kv_len;
    int n_tries;
    double seconds[MAX_TRIES];
};

static enum lvp_status try_for_a_while(struct calibration *c, struct tries *tries)
{
    static const double enough = 0.15;
    int before = tries->n_tries;
    double start = lvp_now();
    for (int i = 0; tries->n_tries < MAX_TRIES && (tries->n_tries == before || lvp_now() - start < enough); i++) {
        double seconds = 0;
        LVP_TRY(run_once(c, tries->kind, tries->n, &seconds));
        lvp_guard_tick();
        // The first one warms up, but for one so long that it is warm for nearly all of its time.
        bool warms_up = i == 0 && lvp_now() - start < enough;
        if (!warms_up) tries->seconds[tries->n_tries++] = seconds;
        if (warms_up) start = lvp_now();
    }
    return LVP_OK;
}

// In rounds, since a machine that is shared is fast in one second and slow in the next.
static enum lvp_status run_all(struct calibration *c)
{
    enum { ROUNDS = 4, OTHERS = 4 };
    struct tries *all = calloc(N_ROW_COUNTS + OTHERS, sizeof *all);
    if (all == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for calibrating");
    int n = 0;
    for (; n < N_ROW_COUNTS; n++) all[n] = (struct tries){.kind = LVP_EXPERIMENT_ROWS, .n = row_counts[n], .kv_len = 1};
    all[n++] = (struct tries){.kind = LVP_EXPERIMENT_PREFILL, .n = PROMPT / 4, .kv_len = PROMPT / 4};
    all[n++] = (struct tries){.kind = LVP_EXPERIMENT_PREFILL, .n = PROMPT, .kv_len = PROMPT};
    all[n++] = (struct tries){.kind = LVP_EXPERIMENT_DECODE, .n = DECODES, .kv_len = CACHED + DECODE_STEPS / 2};
    all[n++] = (struct tries){.kind = LVP_EXPERIMENT_ENCODE, .n = IMAGES};
    enum lvp_status status = LVP_OK;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < n && status == LVP_OK; i++) status = try_for_a_while(c, &all[i]);
    for (int i = 0; i < n && status == LVP_OK; i++) {
        struct tries *tries = &all[i];
        qsort(tries->seconds, (size_t)tries->n_tries, sizeof *tries->seconds, compare_seconds);
        c->results[c->n_results++] = (struct lvp_experiment_result){
            .kind = tries->kind, .n = tries->n, .kv_len = tries->kv_len, .seconds = tries->seconds[tries->n_tries / 2]};
    }
    free(all);
    return status;
}

enum lvp_status lvp_calibrate(const struct lvp_model_config *config, int gpu, const char *kernel_set,
                              enum lvp_dtype dtype, enum lvp_dtype weights, int threads,
                              struct lvp_experiment_result *results, int *n_results, struct lvp_roof *roof)
{
    enum lvp_status status = LVP_OK;
    struct calibration *c = calloc(1, sizeof *c);
    if (c == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for calibrating");
    c->config = *config;
    c->config.text.layers = lvp_shape_layers_in_memory(&config->text, threads);
    c->results = results;
    LVP_CHECK(lvp_checkpoint_synthetic(&c->config, &c->checkpoint));
    LVP_CHECK(create(c, gpu, kernel_set, dtype, weights, threads));
    LVP_CHECK(run_all(c));
    if (c->backend->ops->roof != NULL) LVP_CHECK(c->backend->ops->roof(c->backend, roof));
fail:
    *n_results = c->n_results;
    destroy(c);
    return status;
}
