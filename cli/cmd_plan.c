#include "cli/cmd_plan.h"

#include "cli/machine.h"
#include "cli/options.h"
#include "cli/plan_report.h"
#include "common/log.h"
#include "common/shapes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "lvpipe plan: how a model is cut into stages, and what each computes, holds and sends\n"
    "\n"
    "  lvpipe plan --model DIR | --shape NAME [options]\n"
    "\n"
    "  --shape NAME           llava-1.5-7b, llava-1.5-13b, tiny-llava, or FILE.json with the fields of a config.json\n"
    "  --text-tokens N        prompt rows that are not vision tokens (30)\n"
    "  --new-tokens N         tokens generated per image (64)\n"
    "  --pruner-width D       inner width of decision modules where no file says it (the model's, as the paper's)\n"
    "  --images N             figures for N images, each with a prompt of its own (1; simulated: 64 a device)\n"
    "  --concurrency N        simulated: requests in steps at once, of each replica (32 a stage, 256 at most)\n"
    "  --profile FILE         rates measured by lvpipe bench --calibrate: simulates the run too\n"
    "  --cluster FILE         on these nodes instead of this machine: {\"nodes\": [{\"count\": 2, \"devices\": 4,\n"
    "                         \"threads\": 8, \"cores\": 32, \"memory_bytes\": 0}], \"link\":\n"
    "                         {\"bytes_per_second\": 1.2e9, \"latency_seconds\": 5e-5}}\n";

static const char examples[] = "\nexamples\n"
                               "  lvpipe plan --shape llava-1.5-7b --stages 4\n"
                               "  lvpipe plan --shape llava-1.5-7b --partition prune --keep 0.45 --json\n"
                               "  lvpipe plan --shape llava-1.5-7b --profile profile.json --cluster nodes.json\n"
                               "  lvpipe plan --model models/demo --partition 5,8 --dtype f32\n";

enum plan_option {
    OPTION_SHAPE = LVP_OPTION_COMMAND,
    OPTION_TEXT_TOKENS,
    OPTION_NEW_TOKENS,
    OPTION_IMAGES,
    OPTION_PROFILE,
    OPTION_CLUSTER,
    OPTION_PRUNER_WIDTH,
    OPTION_CONCURRENCY
};

static const struct option long_options[] = {
    LVP_SHARED_LONG_OPTIONS,
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"text-tokens", required_argument, NULL, OPTION_TEXT_TOKENS},
    {"new-tokens", required_argument, NULL, OPTION_NEW_TOKENS},
    {"images", required_argument, NULL, OPTION_IMAGES},
    {"profile", required_argument, NULL, OPTION_PROFILE},
    {"cluster", required_argument, NULL, OPTION_CLUSTER},
    {"concurrency", required_argument, NULL, OPTION_CONCURRENCY},
    {"pruner-width", required_argument, NULL, OPTION_PRUNER_WIDTH},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

struct plan_arguments {
    struct lvp_options shared;
    const char *shape, *profile, *cluster;
    int text_tokens, new_tokens, images, concurrency, pruner_width;
    bool help;
};

static enum lvp_status parse(int argc, char **argv, struct plan_arguments *arguments)
{
    *arguments = (struct plan_arguments){.text_tokens = 30, .new_tokens = 64};
    lvp_options_init(&arguments->shared);
    optind = 0; // a fresh scan, whoever used getopt before
    for (int code; (code = getopt_long(argc, argv, LVP_SHARED_SHORT_OPTIONS, long_options, NULL)) != -1;) {
        switch (code) {
        case 'h':
            arguments->help = true;
            return LVP_OK;
        case OPTION_SHAPE:
            arguments->shape = optarg;
            break;
        case OPTION_TEXT_TOKENS:
            LVP_TRY(lvp_parse_int("--text-tokens", optarg, 1, 1 << 20, &arguments->text_tokens));
            break;
        case OPTION_NEW_TOKENS:
            LVP_TRY(lvp_parse_int("--new-tokens", optarg, 0, 1 << 20, &arguments->new_tokens));
            break;
        case OPTION_IMAGES:
            LVP_TRY(lvp_parse_int("--images", optarg, 1, 1000000000, &arguments->images));
            break;
        case OPTION_PRUNER_WIDTH:
            LVP_TRY(lvp_parse_int("--pruner-width", optarg, 1, 1 << 16, &arguments->pruner_width));
            break;
        case OPTION_CONCURRENCY:
            LVP_TRY(lvp_parse_int("--concurrency", optarg, 1, 1 << 16, &arguments->concurrency));
            break;
        case OPTION_PROFILE:
            arguments->profile = optarg;
            break;
        case OPTION_CLUSTER:
            arguments->cluster = optarg;
            break;
        default:
            LVP_TRY(lvp_options_set(&arguments->shared, code, optarg, argv));
            break;
        }
    }
    if (optind < argc)
        return lvp_fail(LVP_ERR_USAGE, "plan: unexpected argument %s; see lvpipe plan --help", argv[optind]);
    if ((arguments->shared.model == NULL) == (arguments->shape == NULL))
        return lvp_fail(LVP_ERR_USAGE, "plan: give either --model DIR or --shape NAME");
    return LVP_OK;
}

// The decision modules' file that the options name or that the folder holds; *path is "" for none.
static enum lvp_status choose_pruner(const struct plan_arguments *arguments, struct lvp_plan_report *report)
{
    const struct lvp_options *options = &arguments->shared;
    struct lvp_workload *workload = &report->workload;
    struct lvp_pruner_weights weights = {0};
    enum lvp_pruner_kind kind;
    char path[4096];
    LVP_TRY(lvp_options_find_weights(options, path, sizeof path));
    // A folder without modules is planned as it would run, dense; who asks for pruning gets the paper's modules.
    bool wanted =
        options->model == NULL || options->pruner != NULL || options->keep != NULL || options->prune_after != NULL;
    report->pruner = options->pruner != NULL ? options->pruner : path[0] != '\0' || wanted ? "lvpruning" : "none";
    report->source = LVP_PRUNER_OFF;
    LVP_TRY(lvp_pruner_find(report->pruner, &kind));
    LVP_TRY(lvp_pruner_check(kind, workload->config));
    if (arguments->pruner_width > 0 && (path[0] != '\0' || !lvp_pruners[kind].needs_weights))
        return lvp_fail(LVP_ERR_USAGE, "--pruner-width: %s",
                        path[0] != '\0' ? "the modules' file says it" : "there are no modules");
    if (kind == LVP_PRUNER_NONE && options->pruner == NULL)
        lvp_info("%s has no lvpruning.safetensors: planned as it would run, unpruned", options->model);
    if (kind == LVP_PRUNER_NONE) return LVP_OK;
    if (path[0] != '\0') {
        LVP_TRY(lvp_pruner_weights_open(path, workload->config, &weights));
        report->source = LVP_PRUNER_FROM_FILE;
        workload->pruner_width = weights.inner_width;
    } else if (lvp_pruners[kind].needs_weights) {
        report->source = LVP_PRUNER_ASSUMED;
        workload->pruner_width = arguments->pruner_width > 0 ? arguments->pruner_width : workload->config->text.hidden;
        if (options->model != NULL)
            lvp_info("%s has no lvpruning.safetensors: planned with modules of width %d", options->model,
                     workload->pruner_width);
    } else {
        report->source = LVP_PRUNER_WEIGHTLESS;
    }
    enum lvp_status status = lvp_options_prune_plan(options, kind, path[0] != '\0' ? &weights : NULL,
                                                    workload->config->text.layers, &workload->prune);
    lvp_pruner_weights_close(&weights);
    return status;
}

static enum lvp_status choose_partition(const struct lvp_options *options, struct lvp_plan_report *report)
{
    const struct lvp_workload *workload = &report->workload;
    int asked = lvp_partition_choice_stages(&options->partition, &workload->prune);
    if (asked > 0 && options->stages > 0 && asked != options->stages)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d: the partition makes %d stages; leave one of the two out",
                        options->stages, asked);
    if (asked == 0 && options->stages == 0 && options->replicas > 0)
        return lvp_fail(LVP_ERR_USAGE, "--replicas %d: give --stages, or a partition, of each replica too",
                        options->replicas);
    report->planner.n_stages = asked > 0 ? asked : options->stages > 0 ? options->stages : 1;
    report->planner.sequences = lvp_usual_sequences(report->planner.n_stages);
    if (asked == 0) return lvp_plan_partition(&report->planner, &report->partition);
    return lvp_partition_resolve(&options->partition, workload->config, &workload->prune, &report->partition);
}

// Bytes of all images are counted in 64 bits; unpruned they are the most.
static enum lvp_status check_counts(const struct lvp_plan_report *report)
{
    static const double most = 9e18;
    struct lvp_workload dense = lvp_dense_workload(&report->workload);
    double image = 0;
    for (int b = 0; b < lvp_block_count(dense.config); b++) {
        struct lvp_block_cost cost = lvp_block_cost(&dense, b);
        image += (double)cost.kv_bytes + (double)cost.prefill_out.payload + (double)cost.prefill_out.framing +
                 lvp_decode_steps(&dense) * (double)(cost.decode_out.payload + cost.decode_out.framing);
    }
    if (report->images * image <= most) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--images %d: more bytes than can be counted", report->images);
}

static enum lvp_status print_json(const struct lvp_plan_report *report, json_t *forecasts)
{
    json_t *json = lvp_plan_report_json(report);
    if (json != NULL && forecasts != NULL) (void)json_object_set_new(json, "forecast", forecasts);
    if (json == NULL) return lvp_fail(LVP_ERR_MEMORY, "plan: out of memory");
    int failed = json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    json_decref(json);
    (void)putchar('\n');
    return failed != 0 ? lvp_fail(LVP_ERR_IO, "plan: writing to stdout failed") : LVP_OK;
}

// Without --cluster: this machine, one device per stage asked for, which share its cores.
static void describe_this_machine(const struct plan_arguments *arguments, int stages, const struct lvp_profile *profile,
                                  struct lvp_cluster *cluster)
{
    const struct lvp_options *shared = &arguments->shared;
    int replicas = shared->replicas > 0 ? shared->replicas : 1;
    int cores = lvp_available_cores(), devices = stages * replicas;
    int threads = shared->threads > 0 ? shared->threads : cores / devices > 0 ? cores / devices : 1;
    *cluster = (struct lvp_cluster){.n_nodes = 1, .local = profile->link};
    cluster->nodes[0] = (struct lvp_cluster_node){
        .devices = devices, .threads = threads, .cores = cores, .memory = lvp_available_memory()};
}

static enum lvp_status forecast(const struct plan_arguments *arguments, const struct lvp_plan_report *report)
{
    const struct lvp_options *shared = &arguments->shared;
    static struct lvp_cluster cluster; // large
    struct lvp_profile profile;
    struct lvp_forecast forecasts[LVP_MAX_FORECASTS];
    int n = 1, stages = shared->stages;
    int by_partition = lvp_partition_choice_stages(&shared->partition, &report->workload.prune);
    if (by_partition > 0) stages = by_partition;
    LVP_TRY(lvp_profile_read(arguments->profile, &profile));
    if (arguments->cluster != NULL)
        LVP_TRY(lvp_cluster_read(arguments->cluster, &cluster));
    else
        describe_this_machine(arguments, stages > 0 ? stages : 1, &profile, &cluster);
    if (cluster.local.bytes <= 0) cluster.local = profile.link.bytes > 0 ? profile.link : cluster.link;
    LVP_TRY(lvp_profile_check(&profile, arguments->profile, shared->dtype, lvp_options_weights(shared)));
    if (cluster.local.bytes <= 0)
        return lvp_fail(LVP_ERR_USAGE, "neither profile nor cluster says how fast the link between two ranks is");
    int devices = lvp_cluster_devices(&cluster);
    const struct lvp_forecast_input input = {.workload = &report->workload,
                                             .profile = &profile,
                                             .cluster = &cluster,
                                             .choice = &shared->partition,
                                             .images = arguments->images > 0 ? arguments->images : 64 * devices,
                                             .concurrency = arguments->concurrency,
                                             .batch_tokens = shared->batch_tokens};
    if (stages > devices) return lvp_fail(LVP_ERR_USAGE, "%d stages, but the cluster has %d devices", stages, devices);
    if (stages > 0)
        LVP_TRY(lvp_forecast(&input, stages, shared->replicas > 0 ? shared->replicas : devices / stages, forecasts));
    else
        LVP_TRY(lvp_forecast_all(&input, forecasts, &n));
    if (shared->json) return print_json(report, lvp_forecasts_json(forecasts, n));
    if (by_partition == 0)
        (void)printf("Cut by typical rates, as without a profile; the simulated cuts follow below.\n\n");
    lvp_plan_report_print(report);
    lvp_forecasts_print(&input, forecasts, n);
    return LVP_OK;
}

enum lvp_status lvp_cmd_plan(int argc, char **argv)
{
    struct plan_arguments arguments;
    LVP_TRY(parse(argc, argv, &arguments));
    if (arguments.help) {
        (void)printf("%s%s%s", help, lvp_options_help, examples);
        return LVP_OK;
    }
    lvp_options_start_log(&arguments.shared);
    if (arguments.cluster != NULL && arguments.profile == NULL)
        return lvp_fail(LVP_ERR_USAGE,
                        "--cluster needs the rates of its devices: --profile FILE (lvpipe bench --calibrate "
                        "measures one)");
    struct lvp_model_config config;
    if (arguments.shape != NULL)
        LVP_TRY(lvp_shape_load(arguments.shape, &config));
    else
        LVP_TRY(lvp_model_config_load(arguments.shared.model, &config));

    struct lvp_device devices[LVP_MAX_STAGES];
    for (int s = 0; s < LVP_MAX_STAGES; s++) devices[s] = LVP_TYPICAL_CPU;
    struct lvp_plan_report report = {.model = arguments.shape != NULL ? arguments.shape : arguments.shared.model,
                                     .images = arguments.images > 0 ? arguments.images : 1};
    report.workload = (struct lvp_workload){.config = &config,
                                            .text_tokens = arguments.text_tokens,
                                            .new_tokens = arguments.new_tokens,
                                            .dtype = arguments.shared.dtype,
                                            .weights = lvp_options_weights(&arguments.shared)};
    report.planner = (struct lvp_planner_input){.workload = &report.workload, .devices = devices};
    LVP_TRY(lvp_workload_check(&report.workload));
    LVP_TRY(choose_pruner(&arguments, &report));
    LVP_TRY(choose_partition(&arguments.shared, &report));
    LVP_TRY(check_counts(&report));
    if (arguments.profile != NULL) return forecast(&arguments, &report);
    if (arguments.shared.json) return print_json(&report, NULL);
    lvp_plan_report_print(&report);
    return LVP_OK;
}
