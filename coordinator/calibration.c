#include "coordinator/calibration.h"

#include "common/job.h"
#include "common/log.h"
#include "common/measure.h"
#include "common/shapes.h"
#include "coordinator/deployment.h"
#include "coordinator/link.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// PROMPT_ROWS: from here on a step's rows run at the rate of prompts.
enum { FINISH_SECONDS = 30, PROMPT_ROWS = 128 };

struct calibration {
    const struct lvp_calibration_options *options;
    struct lvp_workload workload; // of the narrow shape
    struct lvp_profile *profile;
};

static double seconds_of(const struct lvp_device_rates *rates, const struct lvp_text_config *text, int rows)
{
    int i = 0;
    while (i + 1 < rates->n_points && rates->rows[i] < rows) i++;
    return lvp_layer_linear_flops(text, rows) / rates->row_flops[i];
}

// A difference of large times: never taken for less than this share.
static double rest_of(double whole, double part)
{
    static const double least = 0.02;
    return whole - part > least * whole ? whole - part : least * whole;
}

// One device's experiments while they are read. Prompts are kept until all are there: their time is a x linear FLOPs +
// b x attention FLOPs, and two lengths tell a and b apart.
struct reading {
    struct lvp_device_rates *rates;
    int n_prompts, rows[2];
    double seconds[2];
};

static void take_experiment(const struct calibration *c, const Lvp__Roof__Experiment *e, struct reading *reading)
{
    struct lvp_device_rates *rates = reading->rates;
    const struct lvp_text_config *text = &c->workload.config->text;
    int vit = lvp_block_index(c->workload.config, LVP_BLOCK_VIT, 0);
    if (!(e->seconds > 0) || !isfinite(e->seconds) || e->n < 1) return;
    switch (e->kind) {
    case LVP_EXPERIMENT_ROWS:
        if (rates->n_points + 1 >= LVP_MAX_RATE_POINTS) return; // one is for prompts
        rates->rows[rates->n_points] = e->n;
        rates->row_flops[rates->n_points++] = lvp_layer_linear_flops(text, e->n) / e->seconds;
        return;
    case LVP_EXPERIMENT_PREFILL:
        if (reading->n_prompts == 2) return;
        reading->rows[reading->n_prompts] = e->n;
        reading->seconds[reading->n_prompts++] = e->seconds;
        return;
    case LVP_EXPERIMENT_DECODE:
        rates->decode_attention_bytes = e->n * e->kv_len * lvp_layer_kv_slot_bytes(text, c->workload.dtype) /
                                        rest_of(e->seconds, seconds_of(rates, text, e->n));
        return;
    case LVP_EXPERIMENT_ENCODE:
        rates->encode_flops = e->n * lvp_block_cost(&c->workload, vit).prefill_flops / e->seconds;
        return;
    default:
        return;
    }
}

// Rates of a prompt's linear layers and of its attention. Attention is never taken for faster than the device's limit.
static void take_prompts(const struct lvp_text_config *text, const struct reading *reading)
{
    struct lvp_device_rates *rates = reading->rates;
    if (reading->n_prompts < 2) return;
    double linear[2], attention[2];
    for (int i = 0; i < 2; i++) {
        linear[i] = lvp_layer_linear_flops(text, reading->rows[i]);
        attention[i] = lvp_layer_attention_flops(text, reading->rows[i]);
    }
    const double *seconds = reading->seconds;
    double determinant = linear[0] * attention[1] - linear[1] * attention[0];
    double of_attention = (linear[0] * seconds[1] - linear[1] * seconds[0]) / determinant; // seconds of a FLOP
    if (!(of_attention >= 1 / rates->roof_flops)) of_attention = 1 / rates->roof_flops;
    double of_linear = rest_of(seconds[1], of_attention * attention[1]) / linear[1];
    rates->prefill_attention_flops = 1 / of_attention;
    rates->rows[rates->n_points] = PROMPT_ROWS;
    rates->row_flops[rates->n_points++] = 1 / of_linear;
}

static void take_rates(void *context, int rank, const Lvp__FromWorker *answer)
{
    const struct calibration *c = context;
    struct reading reading = {.rates = &c->profile->devices[c->profile->n_devices]};
    if (rank != 1) return;
    for (size_t i = 0; i < answer->roof->n_experiments; i++) take_experiment(c, answer->roof->experiments[i], &reading);
    reading.rates->roof_flops = answer->roof->flops;
    reading.rates->roof_read_bytes = answer->roof->read_bytes;
    take_prompts(&c->workload.config->text, &reading);
}

static enum lvp_status measure(struct calibration *c, struct lvp_world *world)
{
    Lvp__ToWorker question = LVP__TO_WORKER__INIT;
    Lvp__Probe probe = LVP__PROBE__INIT;
    question.body_case = LVP__TO_WORKER__BODY_PROBE;
    question.probe = &probe;
    for (int threads = 1; c->profile->n_devices < LVP_MAX_PROFILED_DEVICES; threads *= 2) {
        if (threads > c->options->threads) threads = c->options->threads;
        lvp_info("calibrating with %d thread%s", threads, threads == 1 ? "" : "s");
        probe.calibrate = threads;
        c->profile->devices[c->profile->n_devices].threads = threads;
        // Two devices at once where there are threads for both, since cores share clocks, caches and memory. A node of
        // many small devices is busier than that: what its last cores lose of clocks and memory is not seen here.
        int together = 2 * threads <= c->options->threads ? 2 : 1;
        for (int rank = 1; rank <= together; rank++) LVP_TRY(lvp_world_send(world, rank, &question));
        LVP_TRY(lvp_world_collect(world, together, LVP__FROM_WORKER__BODY_ROOF, take_rates, c));
        c->profile->n_devices++;
        if (threads == c->options->threads) break;
    }
    lvp_info("measuring the link between two ranks");
    return lvp_link_measure(world, 1, 2, &c->profile->link);
}

static enum lvp_status run(struct calibration *c, MPI_Comm control, int n_workers, struct lvp_world *world)
{
    const struct lvp_model_config *narrow = c->workload.config;
    const struct lvp_prune_plan dense = {0};
    const struct lvp_partition_choice choice = {.mode = LVP_PARTITION_AUTO};
    struct lvp_deployment deployment = {.config = narrow,
                                        .prune_plan = &dense,
                                        .text_tokens = 30,
                                        .new_tokens = 1,
                                        .dtype = c->options->dtype,
                                        .weights = c->options->weights,
                                        .choice = &choice,
                                        .n_stages = 2,
                                        .n_replicas = 1,
                                        .threads = c->options->threads};
    char host[128];
    Lvp__Setup setup = LVP__SETUP__INIT;
    if (n_workers != 2)
        return lvp_fail(LVP_ERR_USAGE, "calibrating needs 3 ranks (two workers), %d were started", n_workers + 1);
    LVP_TRY(lvp_world_open(control, n_workers, world));
    deployment.kernel_set = world->kernel_set;
    (void)snprintf(c->profile->kernel_set, sizeof c->profile->kernel_set, "%s", world->kernel_set);
    LVP_TRY(lvp_deployment_plan(&deployment, world));
    char *model = realpath(c->options->model, NULL); // a file, or the name of a shape
    if (model == NULL) model = strdup(c->options->model);
    if (model == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    lvp_host_name(host, sizeof host);
    setup.coordinator = host;
    setup.model = model;
    setup.synthetic = setup.narrow = true;
    enum lvp_status status = lvp_deployment_set_up(&deployment, world, NULL, &setup);
    free(model);
    LVP_TRY(status);
    return measure(c, world);
}

enum lvp_status lvp_calibrate_profile(const struct lvp_calibration_options *options, MPI_Comm control, int n_workers,
                                      bool *clean, struct lvp_profile *profile)
{
    struct lvp_model_config narrow = lvp_shape_narrow(options->config);
    struct lvp_world world = {0};
    struct calibration c = {.options = options,
                            .workload = {.config = &narrow,
                                         .text_tokens = 30,
                                         .new_tokens = 1,
                                         .dtype = options->dtype,
                                         .weights = options->weights},
                            .profile = profile};
    *profile = (struct lvp_profile){.dtype = options->dtype, .weights = options->weights};
    enum lvp_status status = run(&c, control, n_workers, &world);
    bool orderly = status != LVP_ERR_LOST && status != LVP_STOPPED;
    *clean = world.control == NULL || (orderly && lvp_world_finish(&world, FINISH_SECONDS));
    lvp_world_close(&world);
    return status;
}
