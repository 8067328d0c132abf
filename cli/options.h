// Options shared by the commands that run a model: one name, one meaning, one parser. A command puts
// LVP_SHARED_LONG_OPTIONS into its getopt_long table and hands every code it does not know to lvp_options_set.
#ifndef LVP_CLI_OPTIONS_H
#define LVP_CLI_OPTIONS_H

#include "common/checkpoint.h"
#include "common/plan.h"
#include "common/pruners.h"

#include <getopt.h>
#include <stdint.h>

enum lvp_option_code {
    LVP_OPTION_MODEL = 1000,
    LVP_OPTION_PRUNER,
    LVP_OPTION_PRUNER_WEIGHTS,
    LVP_OPTION_PRUNE_AFTER,
    LVP_OPTION_KEEP,
    LVP_OPTION_STAGES,
    LVP_OPTION_REPLICAS,
    LVP_OPTION_PARTITION,
    LVP_OPTION_DEVICE,
    LVP_OPTION_DTYPE,
    LVP_OPTION_WEIGHTS,
    LVP_OPTION_THREADS,
    LVP_OPTION_BATCH_TOKENS,
    LVP_OPTION_SEED,
    LVP_OPTION_JSON,
    LVP_OPTION_COMMAND // first code that a command may use for its own options
};

// clang-format off
#define LVP_SHARED_LONG_OPTIONS                                        \
    {"model", required_argument, NULL, LVP_OPTION_MODEL},              \
    {"pruner", required_argument, NULL, LVP_OPTION_PRUNER},            \
    {"pruner-weights", required_argument, NULL, LVP_OPTION_PRUNER_WEIGHTS}, \
    {"prune-after", required_argument, NULL, LVP_OPTION_PRUNE_AFTER},  \
    {"keep", required_argument, NULL, LVP_OPTION_KEEP},                \
    {"stages", required_argument, NULL, LVP_OPTION_STAGES},            \
    {"replicas", required_argument, NULL, LVP_OPTION_REPLICAS},        \
    {"partition", required_argument, NULL, LVP_OPTION_PARTITION},      \
    {"device", required_argument, NULL, LVP_OPTION_DEVICE},            \
    {"dtype", required_argument, NULL, LVP_OPTION_DTYPE},              \
    {"weights", required_argument, NULL, LVP_OPTION_WEIGHTS},          \
    {"threads", required_argument, NULL, LVP_OPTION_THREADS},          \
    {"batch-tokens", required_argument, NULL, LVP_OPTION_BATCH_TOKENS}, \
    {"seed", required_argument, NULL, LVP_OPTION_SEED},                \
    {"json", no_argument, NULL, LVP_OPTION_JSON}
// clang-format on

// Short options of every command, for getopt_long: errors are reported by us, -v, -q and -h are known.
#define LVP_SHARED_SHORT_OPTIONS ":vqh"

enum lvp_device_choice { LVP_DEVICE_AUTO, LVP_DEVICE_CPU, LVP_DEVICE_CUDA };

// Texts are borrowed from argv; NULL or 0: not given.
struct lvp_options {
    const char *model, *pruner, *pruner_weights, *prune_after, *keep;
    int stages, replicas;
    bool has_partition;
    struct lvp_partition_choice partition; // auto where not given
    enum lvp_device_choice device;
    enum lvp_dtype dtype;
    bool int8_weights;
    int threads, batch_tokens;
    uint64_t seed;
    bool json;
    int verbosity; // -v counts up, -q down
};

// The type of the linear layers' weights.
static inline enum lvp_dtype lvp_options_weights(const struct lvp_options *options)
{
    return options->int8_weights ? LVP_INT8 : options->dtype;
}

void lvp_options_init(struct lvp_options *options);

// Takes one result of getopt_long. ':' and '?' (a missing argument, an unknown option) become LVP_ERR_USAGE; `argv` is
// for their text. LVP_ERR_USAGE says which option and what it accepts.
enum lvp_status lvp_options_set(struct lvp_options *options, int code, const char *value,
                                char *const *argv) LVP_MUST_CHECK;

// Whole numbers within min..max for options of a command's own; `option` with its dashes, for the text.
enum lvp_status lvp_parse_int(const char *option, const char *text, int min, int max, int *value) LVP_MUST_CHECK;
enum lvp_status lvp_parse_uint64(const char *option, const char *text, uint64_t *value) LVP_MUST_CHECK;

// File of the decision modules: --pruner-weights, which must then be there when it is opened, or the model folder's. ""
// for another pruner, or a folder without.
enum lvp_status lvp_options_find_weights(const struct lvp_options *options, char *path, size_t size) LVP_MUST_CHECK;

// The pruner that a run uses, from the options and the model's folder.
struct lvp_pruner_choice {
    enum lvp_pruner_kind kind;
    char weights[4096];         // file of the modules; "" where the pruner has none
    int inner_width;            // of the modules; 0 where the pruner has none
    struct lvp_prune_plan plan; // n_points 0 for none
};

// --pruner, else lvpruning where there are weights, else none. LVP_ERR_MODEL for lvpruning without any, LVP_ERR_USAGE
// where the model lacks what the pruner needs.
enum lvp_status lvp_options_choose_pruner(const struct lvp_options *options, const struct lvp_model_config *config,
                                          struct lvp_pruner_choice *choice) LVP_MUST_CHECK;

// The prune points and shares the options ask for. Points: --prune-after, else those of `weights` (NULL: none), else
// the pruner's for n_layers. Shares: --keep, else the pruner's. LVP_ERR_USAGE as the parsers of common/plan.h, and
// where
// --prune-after names another number of points than the weights have modules.
enum lvp_status lvp_options_prune_plan(const struct lvp_options *options, enum lvp_pruner_kind kind,
                                       const struct lvp_pruner_weights *weights, int n_layers,
                                       struct lvp_prune_plan *plan) LVP_MUST_CHECK;

// Starts rank 0's or the command's log as loud as -v and -q ask.
void lvp_options_start_log(const struct lvp_options *options);

// Lines about the shared options for a command's --help.
extern const char lvp_options_help[];

#endif
