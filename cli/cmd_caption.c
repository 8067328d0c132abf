#include "cli/cmd_caption.h"

#include "cli/gpu.h"
#include "cli/launch.h"
#include "cli/options.h"
#include "cli/rank.h"
#include "cli/signals.h"
#include "common/log.h"
#include "common/text.h"
#include "coordinator/caption.h"
#include "coordinator/input/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PROMPTS = 64 };

enum {
    OPTION_INPUT = LVP_OPTION_COMMAND,
    OPTION_OUTPUT,
    OPTION_PROMPT,
    OPTION_SYSTEM,
    OPTION_RAW_PROMPT,
    OPTION_MAX_NEW_TOKENS,
    OPTION_TEMPERATURE,
    OPTION_TOP_P,
    OPTION_LOGPROBS,
    OPTION_SCORE,
    OPTION_LIMIT,
    OPTION_SHARD,
    OPTION_RETRY_FAILED,
    OPTION_OVERWRITE,
    OPTION_MAX_ERRORS,
    OPTION_MAX_PIXELS,
    OPTION_ALLOW_MIXED_NUMERICS,
    OPTION_MAX_RESTARTS,
    OPTION_DRAIN_SECONDS,
    OPTION_METRICS,
    OPTION_LOG_FORMAT,
    OPTION_TRACE
};

static const struct option long_options[] = {
    LVP_SHARED_LONG_OPTIONS,
    {"input", required_argument, NULL, OPTION_INPUT},
    {"output", required_argument, NULL, OPTION_OUTPUT},
    {"prompt", required_argument, NULL, OPTION_PROMPT},
    {"system", required_argument, NULL, OPTION_SYSTEM},
    {"raw-prompt", no_argument, NULL, OPTION_RAW_PROMPT},
    {"max-new-tokens", required_argument, NULL, OPTION_MAX_NEW_TOKENS},
    {"temperature", required_argument, NULL, OPTION_TEMPERATURE},
    {"top-p", required_argument, NULL, OPTION_TOP_P},
    {"logprobs", no_argument, NULL, OPTION_LOGPROBS},
    {"score", required_argument, NULL, OPTION_SCORE},
    {"limit", required_argument, NULL, OPTION_LIMIT},
    {"shard", required_argument, NULL, OPTION_SHARD},
    {"retry-failed", no_argument, NULL, OPTION_RETRY_FAILED},
    {"overwrite", no_argument, NULL, OPTION_OVERWRITE},
    {"max-errors", required_argument, NULL, OPTION_MAX_ERRORS},
    {"max-pixels", required_argument, NULL, OPTION_MAX_PIXELS},
    {"allow-mixed-numerics", no_argument, NULL, OPTION_ALLOW_MIXED_NUMERICS},
    {"max-restarts", required_argument, NULL, OPTION_MAX_RESTARTS},
    {"drain-seconds", required_argument, NULL, OPTION_DRAIN_SECONDS},
    {"metrics", required_argument, NULL, OPTION_METRICS},
    {"log-format", required_argument, NULL, OPTION_LOG_FORMAT},
    {"trace", required_argument, NULL, OPTION_TRACE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static const char help_text[] =
    "usage: lvpipe caption --model DIR --input PATH --output DIR [options]\n"
    "\n"
    "Captions every image of a folder, a .jsonl manifest, tar shards or one image. An existing output folder is\n"
    "resumed, and a run that was killed anywhere ends with the same bytes.\n"
    "Bare, it starts its own ranks with mpirun; under mpirun or srun, rank 0 coordinates and the others work.\n"
    "\n"
    "  --input PATH           folder (jpg, jpeg, png, webp; recursive), .jsonl manifest, WebDataset shards\n"
    "                         (x.tar, or a pattern like 'shard-{0000..0099}.tar'), or one image\n"
    "  --output DIR           captions.jsonl, errors.jsonl and run.json go here\n"
    "  --prompt TEXT          {name} is filled from the row's columns; may be given several times: one row each\n"
    "                         (default: the manifest's prompt, else \"Describe the image.\")\n"
    "  --system TEXT          system text before the first role\n"
    "  --raw-prompt           no chat template: the prompt marks its images with <image>\n"
    "  --max-new-tokens N     tokens generated at most (64)\n"
    "  --temperature T        0 is greedy (0)\n"
    "  --top-p P              smallest set of tokens with this probability (1)\n"
    "  --logprobs             natural log-probability of every token\n"
    "  --score COLUMN         generate nothing: score the text in that column of the manifest as the answer; rows\n"
    "                         hold the log-probability of its tokens, and how many greedy decoding would choose\n"
    "  --limit N              only the first N samples\n"
    "  --shard I/N            only samples I, I + N, ...\n"
    "  --retry-failed         try the samples of errors.jsonl again\n"
    "  --overwrite            start anew instead of resuming\n"
    "  --max-errors N         stop after more than N failed samples (default: stop when nothing goes right)\n"
    "  --max-restarts N       of a bare run that lost a rank (2)\n"
    "  --drain-seconds S      after TERM, INT or USR1: time to finish what is under way (20)\n"
    "  --metrics FILE         numbers for Prometheus' node exporter, written every 15 s\n"
    "  --trace FILE           a timeline of each rank's first 20000 spans, for ui.perfetto.dev\n"
    "  --log-format FORMAT    text, or json: one object a line on stderr\n"
    "  --max-pixels N         larger images are errors (178956970)\n"
    "  --allow-mixed-numerics resume on another kernel set; the run is marked\n"
    "\n";

static const char help_examples[] =
    "\nexamples:\n"
    "  lvpipe caption --model models/demo --input examples/images --output captions\n"
    "  lvpipe caption --model llava-1.5-7b-hf --input photos --output out --stages 4 --partition prune \\\n"
    "      --pruner-weights lvpruning.safetensors\n"
    "  lvpipe caption --model llava-1.5-7b-hf --input 'cc3m/shard-{0000..0331}.tar' --output out \\\n"
    "      --prompt 'Describe the image. Its caption was: {txt}'\n"
    "  mpirun -n 9 lvpipe caption --model llava-1.5-7b-hf --input rows.jsonl --output out --replicas 2\n"
    "      # mpirun wants --allow-run-as-root as root, and --oversubscribe for more ranks than cores\n"
    "  lvpipe caption --model llava-1.5-7b-hf --input rows.jsonl --output scores --score answer\n";

struct command {
    struct lvp_options shared;
    struct lvp_caption_options caption;
    const char *prompts[MAX_PROMPTS];
    char launch_id[128], score[64];
    struct lvp_pruner_choice pruner;
    int max_restarts;
    bool help;
};

static enum lvp_status parse_float(const char *option, const char *text, double min, double max, float *value)
{
    char *end = NULL;
    double number = strtod(text, &end);
    if (end == text || *end != '\0' || !(number >= min && number <= max))
        return lvp_fail(LVP_ERR_USAGE, "%s takes a number from %g to %g, not '%s'", option, min, max, text);
    *value = (float)number;
    return LVP_OK;
}

static enum lvp_status parse_count(const char *option, const char *text, int64_t *value)
{
    uint64_t number = 0;
    LVP_TRY(lvp_parse_uint64(option, text, &number));
    if (number > INT64_MAX) return lvp_fail(LVP_ERR_USAGE, "%s %s is too large", option, text);
    *value = (int64_t)number;
    return LVP_OK;
}

static enum lvp_status set_option(struct command *command, int code, const char *value, char *const *argv)
{
    struct lvp_caption_options *caption = &command->caption;
    switch (code) {
    case OPTION_INPUT:
        caption->input = value;
        return LVP_OK;
    case OPTION_OUTPUT:
        caption->output = value;
        return LVP_OK;
    case OPTION_SYSTEM:
        caption->system = value;
        return LVP_OK;
    case OPTION_RAW_PROMPT:
        caption->raw_prompt = true;
        return LVP_OK;
    case OPTION_LOGPROBS:
        caption->logprobs = true;
        return LVP_OK;
    case OPTION_SCORE:
        if (strpbrk(value, "{}") != NULL || value[0] == '\0')
            return lvp_fail(LVP_ERR_USAGE, "--score %s: give the name of a column, without braces", value);
        if (strlen(value) > sizeof command->score - 3)
            return lvp_fail(LVP_ERR_USAGE, "--score %s: a column's name of at most %zu bytes", value,
                            sizeof command->score - 3);
        (void)snprintf(command->score, sizeof command->score, "{%s}", value);
        caption->score = command->score;
        return LVP_OK;
    case OPTION_RETRY_FAILED:
        caption->retry_failed = true;
        return LVP_OK;
    case OPTION_OVERWRITE:
        caption->overwrite = true;
        return LVP_OK;
    case OPTION_ALLOW_MIXED_NUMERICS:
        caption->allow_mixed_numerics = true;
        return LVP_OK;
    case OPTION_MAX_NEW_TOKENS:
        return lvp_parse_int("--max-new-tokens", value, 1, 1 << 20, &caption->max_new_tokens);
    case OPTION_TEMPERATURE:
        return parse_float("--temperature", value, 0, 100, &caption->temperature);
    case OPTION_TOP_P:
        return parse_float("--top-p", value, 0, 1, &caption->top_p);
    case OPTION_LIMIT:
        return parse_count("--limit", value, &caption->limit);
    case OPTION_MAX_ERRORS:
        return parse_count("--max-errors", value, &caption->max_errors);
    case OPTION_MAX_PIXELS:
        return parse_count("--max-pixels", value, &caption->max_pixels);
    case OPTION_SHARD:
        return lvp_shard_parse(value, &caption->shard, &caption->n_shards);
    case OPTION_MAX_RESTARTS:
        return lvp_parse_int("--max-restarts", value, 0, 1 << 20, &command->max_restarts);
    case OPTION_DRAIN_SECONDS: {
        float seconds = 0;
        LVP_TRY(parse_float("--drain-seconds", value, 0, 86400, &seconds));
        caption->drain_seconds = (double)seconds;
        return LVP_OK;
    }
    case OPTION_METRICS:
        caption->metrics = value;
        return LVP_OK;
    case OPTION_LOG_FORMAT:
        if (strcmp(value, "json") == 0) lvp_log_use_json();
        if (strcmp(value, "json") == 0 || strcmp(value, "text") == 0) return LVP_OK;
        return lvp_fail(LVP_ERR_USAGE, "--log-format takes text or json, not '%s'", value);
    case OPTION_TRACE:
        caption->trace = value;
        return LVP_OK;
    case OPTION_PROMPT:
        if (caption->n_prompts == MAX_PROMPTS)
            return lvp_fail(LVP_ERR_USAGE, "--prompt may be given %d times", MAX_PROMPTS);
        command->prompts[caption->n_prompts++] = value;
        return LVP_OK;
    default:
        return lvp_options_set(&command->shared, code, value, argv);
    }
}

static enum lvp_status parse(int argc, char **argv, struct command *command)
{
    *command = (struct command){.caption = {.max_new_tokens = 64,
                                            .top_p = 1,
                                            .limit = -1,
                                            .n_shards = 1,
                                            .max_errors = -1,
                                            .max_pixels = 178956970,
                                            .drain_seconds = 20},
                                .max_restarts = 2};
    lvp_options_init(&command->shared);
    command->caption.prompts = command->prompts;
    optind = 0; // glibc: a fresh start
    for (int code; (code = getopt_long(argc, argv, LVP_SHARED_SHORT_OPTIONS, long_options, NULL)) != -1;) {
        if (code == 'h') {
            command->help = true;
            return LVP_OK;
        }
        LVP_TRY(set_option(command, code, optarg, argv));
    }
    struct lvp_caption_options *caption = &command->caption;
    if (optind < argc)
        return lvp_fail(LVP_ERR_USAGE,
                        "'%s' is no option; lvpipe help caption lists them. --input takes one folder, manifest, image "
                        "or pattern of shards: a pattern in quotes",
                        argv[optind]);
    if (command->shared.model == NULL)
        return lvp_fail(LVP_ERR_USAGE, "--model is missing: the folder of a LLaVA checkpoint");
    if (caption->input == NULL)
        return lvp_fail(LVP_ERR_USAGE,
                        "--input is missing: a folder of images, a .jsonl manifest, tar shards or an image");
    if (caption->output == NULL) return lvp_fail(LVP_ERR_USAGE, "--output is missing: the folder for captions.jsonl");
    for (int p = 0; p < caption->n_prompts; p++) {
        LVP_TRY(lvp_prompt_check(command->prompts[p]));
        if (!lvp_utf8_valid(command->prompts[p], strlen(command->prompts[p])))
            return lvp_fail(LVP_ERR_USAGE, "--prompt '%s' is not valid UTF-8", command->prompts[p]);
        if (!caption->raw_prompt && strstr(command->prompts[p], "<image>") != NULL)
            return lvp_fail(LVP_ERR_USAGE,
                            "--prompt '%s' holds <image>: images are placed by the template (or use --raw-prompt)",
                            command->prompts[p]);
    }
    if (caption->system != NULL && strstr(caption->system, "<image>") != NULL)
        return lvp_fail(LVP_ERR_USAGE, "--system holds <image>: images are placed by the template");
    if (caption->system != NULL && !lvp_utf8_valid(caption->system, strlen(caption->system)))
        return lvp_fail(LVP_ERR_USAGE, "--system is not valid UTF-8");
    return LVP_OK;
}

// A partition that cannot be is refused before ranks are started for it.
static enum lvp_status check_partition(const struct lvp_caption_options *caption, const struct lvp_model_config *config)
{
    struct lvp_partition partition;
    int n_blocks = lvp_block_count(config);
    if (caption->stages > n_blocks || caption->stages > LVP_MAX_STAGES)
        return lvp_fail(LVP_ERR_USAGE, "--stages %d: the model has %d blocks, and %d stages are the most",
                        caption->stages, n_blocks, LVP_MAX_STAGES);
    if (caption->partition.mode == LVP_PARTITION_AUTO) return LVP_OK;
    return lvp_partition_resolve(&caption->partition, config, &caption->prune, &partition);
}

// What a user may not expect: once, before ranks are started where that is ours to do.
static void warn_about_options(const struct command *command)
{
    const struct lvp_options *shared = &command->shared;
    if (command->caption.raw_prompt && command->caption.system != NULL)
        lvp_warn("--system has no meaning with --raw-prompt: write it into the prompt");
    const struct lvp_prune_plan *plan = &command->pruner.plan;
    bool none = command->pruner.kind == LVP_PRUNER_NONE;
    if (none && shared->pruner == NULL)
        lvp_info("%s has no lvpruning.safetensors: nothing is pruned; name modules with --pruner-weights, or take "
                 "--pruner last-attention, which needs none",
                 shared->model);
    if (none && shared->keep != NULL) lvp_warn("--keep has no meaning with --pruner none");
    int n_whole = 0;
    for (int s = 0; s < plan->n_points; s++) n_whole += plan->keep[s] == LVP_KEEP_ONE;
    if (!none && n_whole == plan->n_points)
        lvp_warn("no vision token is removed; --keep says which share of them stays, 0 to 1");
    for (int s = 0; s < plan->n_points; s++)
        if (plan->keep[s] == 0)
            lvp_warn("no vision token is left after decoder layer %d; --keep says how many stay", plan->after[s]);
}

// Which pruner, with which weights, points and shares: what depends on the model's folder.
static enum lvp_status resolve(struct command *command)
{
    const struct lvp_options *shared = &command->shared;
    struct lvp_caption_options *caption = &command->caption;
    struct lvp_model_config config;
    caption->model = shared->model;
    caption->stages = shared->stages;
    caption->replicas = shared->replicas;
    caption->partition = shared->partition;
    caption->dtype = shared->dtype;
    caption->weights = lvp_options_weights(shared);
    caption->threads = shared->threads;
    caption->batch_tokens = shared->batch_tokens;
    caption->seed = shared->seed;
    caption->json = shared->json;
    caption->quiet = shared->verbosity < 0;
    caption->terminal = isatty(STDERR_FILENO) || getenv("LVPIPE_TERMINAL") != NULL;
    LVP_TRY(lvp_model_config_load(shared->model, &config));
    LVP_TRY(lvp_options_choose_pruner(shared, &config, &command->pruner));
    caption->pruner = command->pruner.kind;
    caption->prune = command->pruner.plan;
    if (lvp_pruners[caption->pruner].needs_weights) caption->pruner_weights = command->pruner.weights;
    return check_partition(caption, &config);
}

// What rank 0 does in the MPI world.
static enum lvp_status coordinate(void *context, MPI_Comm control, int n_workers, bool *clean)
{
    struct command *command = context;
    LVP_TRY(resolve(command));
    if (lvp_launcher() != LVP_LAUNCHER_OWN) warn_about_options(command); // else the supervisor did
    return lvp_caption(&command->caption, control, n_workers, clean);
}

// As a rank, under whoever started it.
static enum lvp_status run_rank(struct command *command, int argc, char **argv, int *exit_status)
{
    const char *restarts = getenv("LVPIPE_RESTARTS"); // from the supervisor
    if (restarts == NULL) restarts = getenv("SLURM_RESTART_COUNT");
    command->caption.drain = lvp_drain_requests();
    command->caption.restarts = restarts != NULL ? atoi(restarts) : 0;
    lvp_launch_id(argc, argv, command->launch_id, sizeof command->launch_id);
    if (command->launch_id[0] != '\0') command->caption.launch_id = command->launch_id;
    return lvp_rank_run(coordinate, command, 1, command->shared.device, exit_status);
}

// By itself: as the supervisor of its own ranks.
static enum lvp_status run_bare(struct command *command, int argc, char **argv, int *exit_status)
{
    struct lvp_launch_options launch = {.argc = argc,
                                        .argv = argv,
                                        .output = command->caption.output,
                                        .max_restarts = command->max_restarts,
                                        .drain_seconds = command->caption.drain_seconds};
    int n_workers = 0;
    LVP_TRY(lvp_check_gpu(command->shared.device));
    LVP_TRY(lvp_manifest_check(command->caption.input));
    LVP_TRY(resolve(command));
    warn_about_options(command);
    const struct lvp_layout_request layout = lvp_caption_layout(&command->caption);
    LVP_TRY(lvp_layout_workers(&layout, &n_workers));
    launch.n_ranks = n_workers + 1;
    return lvp_launch(&launch, exit_status);
}

enum lvp_status lvp_cmd_caption(int argc, char **argv, int *exit_status)
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
        status = bare ? run_bare(command, argc, argv, exit_status) : run_rank(command, argc, argv, exit_status);
    }
    free(command);
    return status;
}
