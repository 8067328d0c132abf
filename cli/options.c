#include "cli/options.h"

#include "common/log.h"
#include "common/text.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char lvp_options_help[] =
    "  --model DIR            a Hugging Face LLaVA folder\n"
    "  --pruner NAME          lvpruning (default where the folder has its weights), last-attention, adaptprune, "
    "random\n"
    "                         or none (default elsewhere)\n"
    "  --pruner-weights FILE  decision modules (default: DIR/lvpruning.safetensors)\n"
    "  --prune-after A,B,C    decoder layers after which to prune (default: the pruner's, or as its weights say)\n"
    "  --keep R | R,R,R       share of the image's tokens kept at each point; one number is R, R-0.2, R-0.4\n"
    "                         (0.5; adaptprune 0.1; of pruners without modules the same at each point)\n"
    "  --stages N             pipeline stages\n"
    "  --replicas N           independent pipelines\n"
    "  --partition HOW        auto (by cost), prune (after each prune point) or A,B,C: first block after each cut\n"
    "  --device WHAT          auto, cpu or cuda\n"
    "  --dtype TYPE           bf16, f16 or f32 (bf16): what the model computes with and keeps its weights in\n"
    "  --weights int8         linear layers in 8 bits: half the memory and faster, not exact (default: as --dtype)\n"
    "  --threads N            compute threads of a worker\n"
    "  --batch-tokens N       rows of a step\n"
    "  --seed N               of sampling and the random pruner (0)\n"
    "  --json                 machine-readable result on stdout\n"
    "  -v, -q                 more, less on stderr\n";

void lvp_options_init(struct lvp_options *options)
{
    *options = (struct lvp_options){.partition = {.mode = LVP_PARTITION_AUTO}, .dtype = LVP_BF16};
}

enum lvp_status lvp_parse_int(const char *option, const char *text, int min, int max, int *value)
{
    char *end = NULL;
    errno = 0;
    long parsed = strtol(text, &end, 10);
    bool number = end != text && *end == '\0' && errno == 0 && !isspace((unsigned char)text[0]);
    if (!number || parsed < min || parsed > max) {
        if (max == INT_MAX)
            return lvp_fail(LVP_ERR_USAGE, "%s %s: give a whole number of at least %d", option, text, min);
        return lvp_fail(LVP_ERR_USAGE, "%s %s: give a whole number within %d..%d", option, text, min, max);
    }
    *value = (int)parsed;
    return LVP_OK;
}

enum lvp_status lvp_parse_uint64(const char *option, const char *text, uint64_t *value)
{
    char *end = NULL;
    errno = 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0)
        return lvp_fail(LVP_ERR_USAGE, "%s %s: give a whole number within 0..2^64-1", option, text);
    *value = parsed;
    return LVP_OK;
}

static enum lvp_status set_pruner(struct lvp_options *options, const char *value)
{
    enum lvp_pruner_kind kind;
    LVP_TRY(lvp_pruner_find(value, &kind));
    options->pruner = lvp_pruner_name(kind);
    return LVP_OK;
}

static enum lvp_status set_device(struct lvp_options *options, const char *value)
{
    static const char *const names[] = {"auto", "cpu", "cuda", NULL};
    int index = 0;
    LVP_TRY(lvp_choose_name("--device", value, names, &index));
    options->device = (enum lvp_device_choice)index;
    return LVP_OK;
}

static enum lvp_status set_dtype(struct lvp_options *options, const char *value)
{
    static const char *const names[] = {"bf16", "f16", "f32", NULL};
    static const enum lvp_dtype dtypes[] = {LVP_BF16, LVP_F16, LVP_F32};
    int index = 0;
    LVP_TRY(lvp_choose_name("--dtype", value, names, &index));
    options->dtype = dtypes[index];
    return LVP_OK;
}

static enum lvp_status set_weights(struct lvp_options *options, const char *value)
{
    static const char *const names[] = {"int8", NULL};
    int index = 0;
    LVP_TRY(lvp_choose_name("--weights", value, names, &index));
    options->int8_weights = true;
    return LVP_OK;
}

enum lvp_status lvp_options_set(struct lvp_options *options, int code, const char *value, char *const *argv)
{
    switch (code) {
    case 'v':
        options->verbosity++;
        return LVP_OK;
    case 'q':
        options->verbosity--;
        return LVP_OK;
    case LVP_OPTION_MODEL:
        options->model = value;
        return LVP_OK;
    case LVP_OPTION_PRUNER:
        return set_pruner(options, value);
    case LVP_OPTION_PRUNER_WEIGHTS:
        options->pruner_weights = value;
        return LVP_OK;
    case LVP_OPTION_PRUNE_AFTER:
        options->prune_after = value;
        return LVP_OK;
    case LVP_OPTION_KEEP:
        options->keep = value;
        return LVP_OK;
    case LVP_OPTION_STAGES:
        return lvp_parse_int("--stages", value, 1, LVP_MAX_STAGES, &options->stages);
    case LVP_OPTION_REPLICAS:
        return lvp_parse_int("--replicas", value, 1, 65536, &options->replicas);
    case LVP_OPTION_PARTITION:
        options->has_partition = true;
        return lvp_partition_parse(value, &options->partition);
    case LVP_OPTION_DEVICE:
        return set_device(options, value);
    case LVP_OPTION_DTYPE:
        return set_dtype(options, value);
    case LVP_OPTION_WEIGHTS:
        return set_weights(options, value);
    case LVP_OPTION_THREADS:
        return lvp_parse_int("--threads", value, 1, 4096, &options->threads);
    case LVP_OPTION_BATCH_TOKENS:
        return lvp_parse_int("--batch-tokens", value, 1, 1 << 24, &options->batch_tokens);
    case LVP_OPTION_SEED:
        return lvp_parse_uint64("--seed", value, &options->seed);
    case LVP_OPTION_JSON:
        options->json = true;
        return LVP_OK;
    case ':':
        return lvp_fail(LVP_ERR_USAGE, "%s needs a value; see --help", argv[optind - 1]);
    default:
        break;
    }
    if (optopt != 0 && optopt < LVP_OPTION_MODEL)
        return lvp_fail(LVP_ERR_USAGE, "unknown option -%c; see --help", optopt);
    if (optopt != 0) return lvp_fail(LVP_ERR_USAGE, "%s takes no value; see --help", argv[optind - 1]);
    return lvp_fail(LVP_ERR_USAGE, "unknown option %s; see --help", argv[optind - 1]);
}

enum lvp_status lvp_options_find_weights(const struct lvp_options *options, char *path, size_t size)
{
    path[0] = '\0';
    if (options->pruner != NULL && strcmp(options->pruner, "lvpruning") != 0) return LVP_OK;
    if (options->pruner_weights == NULL && options->model == NULL) return LVP_OK;
    int n = options->pruner_weights != NULL ? snprintf(path, size, "%s", options->pruner_weights)
                                            : snprintf(path, size, "%s/lvpruning.safetensors", options->model);
    if (n < 0 || (size_t)n >= size) return lvp_fail(LVP_ERR_USAGE, "the path of the pruner's weights is too long");
    if (options->pruner_weights == NULL && access(path, F_OK) != 0) path[0] = '\0';
    return LVP_OK;
}

enum lvp_status lvp_options_prune_plan(const struct lvp_options *options, enum lvp_pruner_kind kind,
                                       const struct lvp_pruner_weights *weights, int n_layers,
                                       struct lvp_prune_plan *plan)
{
    *plan = (struct lvp_prune_plan){0};
    if (options->prune_after != NULL) {
        LVP_TRY(lvp_prune_parse_points(options->prune_after, n_layers, plan));
        if (weights != NULL && plan->n_points != weights->n_points)
            return lvp_fail(LVP_ERR_USAGE, "--prune-after %s: %d points, but the pruner's weights have %d modules",
                            options->prune_after, plan->n_points, weights->n_points);
    } else if (weights != NULL) {
        plan->n_points = weights->n_points;
        memcpy(plan->after, weights->after_layers, sizeof plan->after);
    } else {
        lvp_pruner_default_points(kind, n_layers, plan);
    }
    if (options->keep != NULL || lvp_pruners[kind].after == 0)
        return lvp_prune_parse_keep(options->keep != NULL ? options->keep : lvp_pruners[kind].keep, plan);
    char shares[LVP_MAX_PRUNE_POINTS * 8] =
        ""; // a pruner of one point: its share of the image at each that is asked for
    for (int s = 0; s < plan->n_points; s++) {
        size_t length = strlen(shares);
        (void)snprintf(shares + length, sizeof shares - length, "%s%s", s > 0 ? "," : "", lvp_pruners[kind].keep);
    }
    return lvp_prune_parse_keep(shares, plan);
}

enum lvp_status lvp_options_choose_pruner(const struct lvp_options *options, const struct lvp_model_config *config,
                                          struct lvp_pruner_choice *choice)
{
    struct lvp_pruner_weights weights = {0};
    *choice = (struct lvp_pruner_choice){.kind = LVP_PRUNER_NONE};
    LVP_TRY(lvp_options_find_weights(options, choice->weights, sizeof choice->weights));
    bool has_weights = choice->weights[0] != '\0';
    LVP_TRY(lvp_pruner_find(options->pruner != NULL ? options->pruner
                            : has_weights           ? "lvpruning"
                                                    : "none",
                            &choice->kind));
    LVP_TRY(lvp_pruner_check(choice->kind, config));
    if (choice->kind == LVP_PRUNER_NONE) return LVP_OK;
    if (lvp_pruners[choice->kind].needs_weights) {
        if (!has_weights)
            return lvp_fail(LVP_ERR_MODEL,
                            "%s has no lvpruning.safetensors: name the modules with --pruner-weights, or take a "
                            "--pruner that needs none, like last-attention",
                            options->model);
        LVP_TRY(lvp_pruner_weights_open(choice->weights, config, &weights));
        choice->inner_width = weights.inner_width;
    }
    enum lvp_status status = lvp_options_prune_plan(options, choice->kind, has_weights ? &weights : NULL,
                                                    config->text.layers, &choice->plan);
    lvp_pruner_weights_close(&weights);
    return status;
}

void lvp_options_start_log(const struct lvp_options *options)
{
    int verbosity = options->verbosity;
    lvp_log_init(verbosity < 0 ? LVP_LOG_WARNING : verbosity > 0 ? LVP_LOG_DEBUG : LVP_LOG_INFO, "");
}
