#include "cli/cmd_bench.h"

#include "cli/bench_report.h"
#include "cli/gpu.h"
#include "cli/launch.h"
#include "cli/machine.h"
#include "cli/options.h"
#include "cli/rank.h"
#include "cli/signals.h"
#include "common/checkpoint.h"
#include "common/log.h"
#include "common/shapes.h"
#include "coordinator/bench.h"
#include "coordinator/calibration.h"
#include "coordinator/layout.h"
#include "coordinator/output/timeline.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help_text[] =
    "usage: lvpipe bench --model DIR | --shape NAME [options]\n"
    "\n"
    "Throughput on synthetic images and prompts, with the machine's own limits measured in the same run. Bare, it\n"
    "starts its own ranks; under mpirun or srun it takes the ranks it is given. Where several values are given, every\n"
    "combination is measured.\n"
    "\n"
    "  --shape NAME           llava-1.5-7b, llava-1.5-13b, tiny-llava, or FILE.json with the fields of a config.json;\n"
    "                         each rank makes random weights for its own layers\n"
    "  --keep R,R,..          none (unpruned), or a share as for caption; 0.5/0.3/0.1 names every point's (none,0.5)\n"
    "  --pruner-width D       inner width of made-up decision modules (an eighth of the model's)\n"
    "  --stages N,N,..        pipeline stages; several values only where it starts its own ranks (1, or "
    "--partition's)\n"
    "  --concurrency N,N,..   requests in steps at once, of each replica (32 a stage, 256 at most)\n"
    "  --images N             of a repeat, each with a prompt of its own (16)\n"
    "  --text-tokens N        prompt rows that are not vision tokens (30)\n"
    "  --new-tokens N         tokens generated per image (64); 1 measures the prefill alone\n"
    "  --repeats N            the median counts (3)\n"
    "  --json                 an object a line instead of the table\n"
    "  --trace FILE           a timeline of the last combination's median repeat, for ui.perfetto.dev\n"
    "  --profile FILE         rates by which the stages are balanced, from --calibrate\n"
    "  --calibrate FILE       write a profile of this machine for lvpipe plan --profile instead (minutes)\n"
    "\n";

static const char help_examples[] =
    "\nexamples:\n"
    "  lvpipe bench --model models/demo --stages 1,2,4 --images 64 --threads 1\n"
    "  lvpipe bench --shape tiny-llava                    # 1.1B: a minute an image on two cores\n"
    "  lvpipe bench --shape llava-1.5-7b --images 2 --new-tokens 1 --repeats 1 --keep none,0.6,0.5\n"
    "  lvpipe bench --shape llava-1.5-7b --calibrate profile.json\n"
    "  srun --mpi=pmix -n 9 lvpipe bench --shape llava-1.5-7b --stages 4 --json > bench.jsonl\n";

enum { MAX_VALUES = 16 };

enum bench_option {
    OPTION_SHAPE = LVP_OPTION_COMMAND,
    OPTION_STAGES,
    OPTION_PRUNER_WIDTH,
    OPTION_CONCURRENCY,
    OPTION_IMAGES,
    OPTION_TEXT_TOKENS,
    OPTION_NEW_TOKENS,
    OPTION_REPEATS,
    OPTION_CALIBRATE,
    OPTION_PROFILE,
    OPTION_TRACE
};

static const struct option long_options[] = {
    {"stages", required_argument, NULL, OPTION_STAGES}, // before the shared one: takes several values
    LVP_SHARED_LONG_OPTIONS,
    {"shape", required_argument, NULL, OPTION_SHAPE},
    {"pruner-width", required_argument, NULL, OPTION_PRUNER_WIDTH},
    {"concurrency", required_argument, NULL, OPTION_CONCURRENCY},
    {"images", required_argument, NULL, OPTION_IMAGES},
    {"text-tokens", required_argument, NULL, OPTION_TEXT_TOKENS},
    {"new-tokens", required_argument, NULL, OPTION_NEW_TOKENS},
    {"repeats", required_argument, NULL, OPTION_REPEATS},
    {"trace", required_argument, NULL, OPTION_TRACE},
    {"profile", required_argument, NULL, OPTION_PROFILE},
    {"calibrate", required_argument, NULL, OPTION_CALIBRATE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

// Values separated by commas; texts owned by the command.
struct values {
    char *text;
    const char *items[MAX_VALUES];
    int n;
};

struct command {
    struct lvp_options shared;
    const char *shape, *calibrate, *profile, *trace;
    struct values keeps, stages, concurrencies;
    int pruner_width, images, text_tokens, new_tokens, repeats;
    bool help;
    // as a rank
    int next_point; // of keeps x concurrencies
    bool made_up;   // it was said that modules are
    double base;    // images/s of the first
};

static enum lvp_status split(const char *option, const char *text, struct values *values)
{
    free(values->text);
    *values = (struct values){.text = strdup(text)};
    if (values->text == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    char *rest = values->text;
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        if (values->n == MAX_VALUES || *item == '\0')
            return lvp_fail(LVP_ERR_USAGE, "%s %s: give up to %d values, separated by commas", option, text,
                            MAX_VALUES);
        values->items[values->n++] = item;
    }
    return LVP_OK;
}

static enum lvp_status set_option(struct command *command, int code, const char *value, char *const *argv)
{
    switch (code) {
    case OPTION_SHAPE:
        command->shape = value;
        return LVP_OK;
    case OPTION_TRACE:
        command->trace = value;
        return LVP_OK;
    case OPTION_PROFILE:
        command->profile = value;
        return LVP_OK;
    case OPTION_CALIBRATE:
        command->calibrate = value;
        return LVP_OK;
    case LVP_OPTION_KEEP:
        return split("--keep", value, &command->keeps);
    case OPTION_STAGES:
        return split("--stages", value, &command->stages);
    case OPTION_CONCURRENCY:
        return split("--concurrency", value, &command->concurrencies);
    case OPTION_PRUNER_WIDTH:
        return lvp_parse_int("--pruner-width", value, 1, 1 << 16, &command->pruner_width);
    case OPTION_IMAGES:
        return lvp_parse_int("--images", value, 1, 1 << 20, &command->images);
    case OPTION_TEXT_TOKENS:
        return lvp_parse_int("--text-tokens", value, 2, 1 << 20, &command->text_tokens);
    case OPTION_NEW_TOKENS:
        return lvp_parse_int("--new-tokens", value, 1, 1 << 20, &command->new_tokens);
    case OPTION_REPEATS:
        return lvp_parse_int("--repeats", value, 1, 1000, &command->repeats);
    default:
        return lvp_options_set(&command->shared, code, value, argv);
    }
}

static enum lvp_status parse(int argc, char **argv, struct command *command)
{
    *command = (struct command){.images = 16, .text_tokens = 30, .new_tokens = 64, .repeats = 3};
    lvp_options_init(&command->shared);
    LVP_TRY(split("--keep", "none,0.5", &command->keeps));
    LVP_TRY(split("--concurrency", "0", &command->concurrencies)); // as the plan has it
    optind = 0;                                                    // glibc: a fresh start
    for (int code; (code = getopt_long(argc, argv, LVP_SHARED_SHORT_OPTIONS, long_options, NULL)) != -1;) {
        if (code == 'h') {
            command->help = true;
            return LVP_OK;
        }
        LVP_TRY(set_option(command, code, optarg, argv));
    }
    if (optind < argc) return lvp_fail(LVP_ERR_USAGE, "'%s' is no option; lvpipe help bench lists them", argv[optind]);
    if ((command->shared.model == NULL) == (command->shape == NULL))
        return lvp_fail(LVP_ERR_USAGE, "bench: give either --model DIR or --shape NAME");
    if (command->trace != NULL && command->stages.n > 1)
        return lvp_fail(LVP_ERR_USAGE, "--trace takes one value of --stages: each would overwrite the file");
    if (command->calibrate != NULL && command->shape == NULL)
        return lvp_fail(LVP_ERR_USAGE, "--calibrate needs a --shape: of the models that will be planned");
    if (command->calibrate != NULL && command->shared.device == LVP_DEVICE_CUDA)
        return lvp_fail(LVP_ERR_USAGE, "--calibrate: profiles are of CPUs; leave --device cuda out");
    if (command->calibrate != NULL) command->shared.device = LVP_DEVICE_CPU; // whatever else is there
    return LVP_OK;
}

// The pruner of one value of --keep.
static enum lvp_status choose_pruner(const struct command *command, const char *keep, const char *weights_path,
                                     struct lvp_bench_options *bench)
{
    struct lvp_options shared = command->shared;
    struct lvp_pruner_weights weights = {0};
    char shares[128];
    enum lvp_pruner_kind kind;
    LVP_TRY(lvp_pruner_find(shared.pruner != NULL ? shared.pruner : "lvpruning", &kind));
    if (command->pruner_width > 0 && !lvp_pruners[kind].needs_weights)
        return lvp_fail(LVP_ERR_USAGE, "--pruner-width: %s has no modules", lvp_pruner_name(kind));
    if (strcmp(keep, "none") == 0 || kind == LVP_PRUNER_NONE) return LVP_OK;
    LVP_TRY(lvp_pruner_check(kind, bench->config));
    (void)snprintf(shares, sizeof shares, "%s", keep);
    for (char *slash = shares; (slash = strchr(slash, '/')) != NULL;) *slash = ',';
    shared.keep = shares;
    bench->pruner = kind;
    if (weights_path[0] != '\0') {
        if (command->pruner_width > 0)
            return lvp_fail(LVP_ERR_USAGE, "--pruner-width: %s has modules of its own", weights_path);
        bench->pruner_weights = weights_path;
        LVP_TRY(lvp_pruner_weights_open(weights_path, bench->config, &weights));
        memcpy(bench->pruner_hash, weights.hash, sizeof bench->pruner_hash);
        bench->pruner_width = weights.inner_width;
    } else if (lvp_pruners[kind].needs_weights) {
        int eighth = bench->config->text.hidden / 8;
        bench->pruner_width = command->pruner_width > 0 ? command->pruner_width : eighth > 0 ? eighth : 1;
    }
    enum lvp_status status = lvp_options_prune_plan(&shared, kind, bench->pruner_weights != NULL ? &weights : NULL,
                                                    bench->config->text.layers, &bench->prune);
    lvp_pruner_weights_close(&weights);
    return status;
}

static enum lvp_status lay_out(const struct command *command, int n_workers, struct lvp_bench_options *bench)
{
    struct lvp_layout_request layout = {.replicas = command->shared.replicas,
                                        .by_partition = lvp_partition_choice_stages(&bench->partition, &bench->prune)};
    if (command->stages.n > 0)
        LVP_TRY(lvp_parse_int("--stages", command->stages.items[0], 1, LVP_MAX_STAGES, &layout.stages));
    return lvp_layout(&layout, n_workers, &bench->stages, &bench->replicas);
}

static void describe_machine(json_t *result)
{
    char cpu[128], mpi[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    lvp_cpu_name(cpu, sizeof cpu);
    MPI_Get_library_version(mpi, &length);
    mpi[strcspn(mpi, ",\n")] = '\0';
    json_object_set_new(result, "version", json_string(LVP_VERSION));
    json_object_set_new(result, "cpu", json_string(cpu));
    json_object_set_new(result, "cores", json_integer(lvp_available_cores()));
    json_object_set_new(result, "mpi", json_string(mpi));
}

static enum lvp_status bench_point(struct command *command, MPI_Comm control, int n_workers, bool *clean)
{
    int point = command->next_point++;
    const char *keep = command->keeps.items[point / command->concurrencies.n];
    const char *concurrency = command->concurrencies.items[point % command->concurrencies.n];
    const struct lvp_options *shared = &command->shared;
    struct lvp_model_config config;
    struct lvp_checkpoint *checkpoint = NULL;
    char hash[33] = "", weights_path[4096];
    json_t *result = NULL;
    struct lvp_profile profile;
    struct lvp_bench_options bench = {.model = command->shape != NULL ? command->shape : shared->model,
                                      .synthetic = command->shape != NULL,
                                      .config = &config,
                                      .model_hash = hash,
                                      .keep = keep,
                                      .partition = shared->partition,
                                      .dtype = shared->dtype,
                                      .weights = lvp_options_weights(shared),
                                      .threads = shared->threads,
                                      .batch_tokens = shared->batch_tokens,
                                      .images = command->images,
                                      .text_tokens = command->text_tokens,
                                      .new_tokens = command->new_tokens,
                                      .repeats = command->repeats,
                                      .trace = command->trace != NULL,
                                      .interrupt = lvp_drain_requests()};
    *clean = false; // until the workers have been told to finish
    LVP_TRY(lvp_parse_int("--concurrency", concurrency, 0, 1 << 16, &bench.concurrency));
    if (command->profile != NULL) LVP_TRY(lvp_profile_read(command->profile, &profile));
    bench.profile = command->profile != NULL ? &profile : NULL;
    if (bench.profile != NULL) LVP_TRY(lvp_profile_check(&profile, command->profile, bench.dtype, bench.weights));
    LVP_TRY(lvp_options_find_weights(shared, weights_path, sizeof weights_path));
    if (command->shape != NULL) {
        LVP_TRY(lvp_shape_load(command->shape, &config));
    } else {
        LVP_TRY(lvp_checkpoint_open(shared->model, &checkpoint));
        config = *lvp_checkpoint_config(checkpoint);
        enum lvp_status status = lvp_checkpoint_hash(checkpoint, hash);
        lvp_checkpoint_close(checkpoint);
        LVP_TRY(status);
    }
    LVP_TRY(choose_pruner(command, keep, weights_path, &bench));
    if (lvp_pruners[bench.pruner].needs_weights && bench.pruner_weights == NULL && shared->model != NULL &&
        !command->made_up) {
        lvp_info("%s has no lvpruning.safetensors: measured with made-up modules of width %d", shared->model,
                 bench.pruner_width);
        command->made_up = true;
    }
    if (bench.pruner == LVP_PRUNER_NONE) bench.keep = "none"; // whatever --keep says, nothing is pruned
    if (bench.pruner == LVP_PRUNER_NONE && bench.partition.mode == LVP_PARTITION_PRUNE)
        bench.partition.mode = LVP_PARTITION_AUTO; // there are no prune points to cut at
    LVP_TRY(lay_out(command, n_workers, &bench));
    if (command->trace != NULL) LVP_TRY(lvp_timeline_check(command->trace));
    LVP_TRY(lvp_bench(&bench, control, n_workers, clean, &result));
    describe_machine(result);
    json_t *trace = json_incref(json_object_get(result, "trace"));
    (void)json_object_del(result, "trace");
    if (shared->json) {
        (void)json_dumpf(result, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        (void)putchar('\n');
        (void)fflush(stdout);
    } else {
        lvp_bench_report_row(result, point == 0, &command->base);
        if (shared->verbosity >= 0) lvp_bench_report_workers(result);
    }
    json_decref(result);
    enum lvp_status status = command->trace != NULL ? lvp_timeline_write(command->trace, trace) : LVP_OK;
    json_decref(trace);
    return status;
}

static enum lvp_status calibrate(const struct command *command, MPI_Comm control, int n_workers, bool *clean)
{
    struct lvp_model_config config;
    struct lvp_profile profile;
    int threads = command->shared.threads > 0 ? command->shared.threads : lvp_available_cores();
    struct lvp_calibration_options options = {.model = command->shape,
                                              .config = &config,
                                              .dtype = command->shared.dtype,
                                              .weights = lvp_options_weights(&command->shared),
                                              .threads = threads};
    LVP_TRY(lvp_shape_load(command->shape, &config));
    LVP_TRY(lvp_calibrate_profile(&options, control, n_workers, clean, &profile));
    lvp_cpu_name(profile.cpu, sizeof profile.cpu);
    return lvp_profile_write(command->calibrate, &profile);
}

static enum lvp_status coordinate(void *context, MPI_Comm control, int n_workers, bool *clean)
{
    struct command *command = context;
    if (command->calibrate != NULL) return calibrate(command, control, n_workers, clean);
    return bench_point(command, control, n_workers, clean);
}

static enum lvp_status run_rank(struct command *command, int *exit_status)
{
    if (command->stages.n > 1)
        return lvp_fail(LVP_ERR_USAGE,
                        "several values of --stages need worlds of several sizes: start lvpipe by itself");
    int rounds = command->calibrate != NULL ? 1 : command->keeps.n * command->concurrencies.n;
    return lvp_rank_run(coordinate, command, rounds, command->shared.device, exit_status);
}

// Stages that --partition asks for; 1 where it leaves that open. Prune points are those of the first --keep that has
// any.
static enum lvp_status stages_of_partition(const struct command *command, int *stages)
{
    const struct lvp_options *shared = &command->shared;
    struct lvp_model_config config;
    struct lvp_bench_options bench = {.config = &config};
    char weights_path[4096];
    if (shared->partition.mode == LVP_PARTITION_AUTO) return LVP_OK;
    LVP_TRY(command->shape != NULL ? lvp_shape_load(command->shape, &config)
                                   : lvp_model_config_load(shared->model, &config));
    LVP_TRY(lvp_options_find_weights(shared, weights_path, sizeof weights_path));
    for (int k = 0; k < command->keeps.n && bench.prune.n_points == 0; k++)
        LVP_TRY(choose_pruner(command, command->keeps.items[k], weights_path, &bench));
    int asked = lvp_partition_choice_stages(&shared->partition, &bench.prune);
    if (asked > 0) *stages = asked;
    return LVP_OK;
}

// A world for each number of stages, one after the other.
static enum lvp_status run_bare(const struct command *command, int argc, char **argv, int *exit_status)
{
    LVP_TRY(lvp_check_gpu(command->shared.device));
    if (command->calibrate != NULL) {
        struct lvp_launch_options launch = {.n_ranks = 3, .argc = argc, .argv = argv};
        return lvp_launch(&launch, exit_status);
    }
    int of_partition = 1;
    if (command->stages.n == 0) LVP_TRY(stages_of_partition(command, &of_partition));
    char cut[16];
    (void)snprintf(cut, sizeof cut, "%d", of_partition);
    const char *const one[] = {cut};
    const char *const *items = command->stages.n > 0 ? command->stages.items : one;
    int n = command->stages.n > 0 ? command->stages.n : 1, replicas = command->shared.replicas;
    char **arguments = calloc((size_t)argc + 3, sizeof *arguments);
    if (arguments == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    enum lvp_status status = LVP_OK;
    memcpy(arguments, argv, (size_t)argc * sizeof *argv);
    arguments[argc] = (char[]){"--stages"};
    for (int i = 0; i < n && status == LVP_OK && *exit_status == 0; i++) {
        int stages = 0;
        status = lvp_parse_int("--stages", items[i], 1, LVP_MAX_STAGES, &stages);
        arguments[argc + 1] = (char *)(size_t)items[i]; // the last one counts
        struct lvp_launch_options launch = {
            .n_ranks = stages * (replicas > 0 ? replicas : 1) + 1, .argc = argc + 2, .argv = arguments};
        if (i > 0 && !command->shared.json) (void)putchar('\n');
        (void)fflush(stdout);
        if (status == LVP_OK) status = lvp_launch(&launch, exit_status);
    }
    free(arguments);
    return status;
}

enum lvp_status lvp_cmd_bench(int argc, char **argv, int *exit_status)
{
    struct command *command = malloc(sizeof *command);
    if (command == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    enum lvp_status status = parse(argc, argv, command);
    if (status == LVP_OK && command->help) {
        (void)fputs(help_text, stdout);
        (void)fputs(lvp_options_help, stdout);
        (void)fputs(help_examples, stdout);
    } else if (status == LVP_OK) {
        lvp_options_start_log(&command->shared);
        bool bare = lvp_launcher() == LVP_LAUNCHER_NONE;
        status = bare ? run_bare(command, argc, argv, exit_status) : run_rank(command, exit_status);
    }
    free(command->keeps.text);
    free(command->stages.text);
    free(command->concurrencies.text);
    free(command);
    return status;
}
