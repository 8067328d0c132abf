#include "cli/cmd_show.h"

#include "cli/machine.h"
#include "cli/options.h"
#include "cli/show_picture.h"
#include "common/prompt.h"
#include "common/text.h"
#include "coordinator/input/name_list.h"
#include "coordinator/input/request.h"
#include "worker/chain.h"
#include "worker/image/image.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum {
    MAX_PROMPTS = 16,
    OPTION_IMAGE = LVP_OPTION_COMMAND,
    OPTION_PROMPT,
    OPTION_OUTPUT,
    OPTION_MAX_NEW_TOKENS,
    OPTION_SCORES
};

static const char help_text[] =
    "usage: lvpipe show --model DIR --image FILE --output FILE.png [--prompt TEXT]... [options]\n"
    "\n"
    "Draws the image as the model sees it and, for every prune point, what is kept of it, with the prompt and the "
    "answer\n"
    "below; several prompts make several rows. Runs in this process, on the CPU, and gives the answers of lvpipe "
    "caption.\n"
    "\n"
    "  --image FILE           JPEG, PNG or WebP\n"
    "  --prompt TEXT          may be given several times (\"Describe the image.\")\n"
    "  --output FILE.png      the picture\n"
    "  --max-new-tokens N     of an answer (64)\n"
    "  --scores               a heat map instead of dimmed patches: blue for the lowest score of a point, red for the\n"
    "                         highest, a frame around what is kept\n"
    "  --json                 an object for each prompt on stdout: answer, tokens, kept patches and scores\n"
    "\n"
    "Of caption's options, those that tell ranks what to do have no place here: --stages, --replicas, --partition,\n"
    "--batch-tokens, --device cuda and --weights.\n"
    "\n";

static const char help_examples[] =
    "\nexamples:\n"
    "  lvpipe show --model models/demo --image examples/images/scene-0001.png --output kept.png\n"
    "  lvpipe show --model models/demo --image photo.jpg --keep 0.6 --output kept.png \\\n"
    "      --prompt 'What color is the dog?' --prompt 'Where is the cat?'\n";

struct command {
    struct lvp_options shared;
    const char *image, *output, *prompts[MAX_PROMPTS];
    int n_prompts, max_new_tokens;
    bool scores, help;
    struct lvp_pruner_choice pruner;
    char *id; // caption's of the image; owned
};

// A prompt on its way through the chain.
struct watched {
    const struct lvp_chain *chain;
    struct lvp_shown_prompt *shown;
    int first_position; // of the image's rows
};

// What would silently do nothing is refused.
static enum lvp_status check_shared(const struct lvp_options *shared)
{
    const char *name = shared->stages != 0                            ? "--stages"
                       : shared->replicas != 0                        ? "--replicas"
                       : shared->has_partition                        ? "--partition"
                       : shared->batch_tokens != 0                    ? "--batch-tokens"
                       : shared->device == LVP_DEVICE_CUDA            ? "--device cuda"
                       : lvp_options_weights(shared) != shared->dtype ? "--weights"
                                                                      : NULL;
    if (name == NULL) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "%s: lvpipe show runs in this process, on the CPU, with the weights as they are",
                    name);
}

static enum lvp_status check_prompt(const char *prompt)
{
    LVP_TRY(lvp_prompt_check(prompt));
    if (lvp_utf8_valid(prompt, strlen(prompt))) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--prompt '%s' is not valid UTF-8", prompt);
}

static enum lvp_status parse(int argc, char **argv, struct command *command)
{
    static const struct option known[] = {LVP_SHARED_LONG_OPTIONS,
                                          {"image", required_argument, NULL, OPTION_IMAGE},
                                          {"prompt", required_argument, NULL, OPTION_PROMPT},
                                          {"output", required_argument, NULL, OPTION_OUTPUT},
                                          {"max-new-tokens", required_argument, NULL, OPTION_MAX_NEW_TOKENS},
                                          {"scores", no_argument, NULL, OPTION_SCORES},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    *command = (struct command){.max_new_tokens = 64};
    lvp_options_init(&command->shared);
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, LVP_SHARED_SHORT_OPTIONS, known, NULL)) >= 0;) {
        switch (code) {
        case OPTION_IMAGE:
            command->image = optarg;
            break;
        case OPTION_OUTPUT:
            command->output = optarg;
            break;
        case OPTION_PROMPT:
            if (command->n_prompts == MAX_PROMPTS)
                return lvp_fail(LVP_ERR_USAGE, "--prompt may be given %d times", MAX_PROMPTS);
            LVP_TRY(check_prompt(optarg));
            command->prompts[command->n_prompts++] = optarg;
            break;
        case OPTION_MAX_NEW_TOKENS:
            LVP_TRY(lvp_parse_int("--max-new-tokens", optarg, 1, 1 << 20, &command->max_new_tokens));
            break;
        case OPTION_SCORES:
            command->scores = true;
            break;
        case 'h':
            command->help = true;
            return LVP_OK;
        default:
            LVP_TRY(lvp_options_set(&command->shared, code, optarg, argv));
        }
    }
    if (optind < argc) return lvp_fail(LVP_ERR_USAGE, "'%s' is no option; lvpipe help show lists them", argv[optind]);
    if (command->shared.model == NULL)
        return lvp_fail(LVP_ERR_USAGE, "--model is missing: the folder of a LLaVA checkpoint");
    if (command->image == NULL) return lvp_fail(LVP_ERR_USAGE, "--image is missing: the picture to ask about");
    if (command->output == NULL) return lvp_fail(LVP_ERR_USAGE, "--output is missing: the PNG to write");
    size_t length = strlen(command->output);
    bool png = length > 4 && strcasecmp(command->output + length - 4, ".png") == 0;
    if (lvp_is_image_name(command->output) && !png)
        return lvp_fail(LVP_ERR_USAGE, "--output %s: what is drawn is a PNG, call it .png", command->output);
    if (command->n_prompts == 0) command->prompts[command->n_prompts++] = LVP_DEFAULT_PROMPT;
    return check_shared(&command->shared);
}

// Patch of the image that an original position is; -1 for text and for the class token.
static int patch_at(const struct watched *watched, int32_t position)
{
    const struct lvp_model_config *config = watched->chain->config;
    int patch = position - watched->first_position - (config->select_full ? 1 : 0);
    return patch >= 0 && patch < lvp_patch_count(config) ? patch : -1;
}

static void see(void *context, const struct lvp_prune_event *event)
{
    struct watched *watched = context;
    struct lvp_shown_point *point = &watched->shown->points[event->point];
    for (int i = 0; i < event->n_scored && event->gate != NULL; i++) {
        int patch = patch_at(watched, event->scored[i]);
        if (patch >= 0) point->scores[patch] = event->gate[2 * i] - event->gate[2 * i + 1];
    }
    for (int i = 0; i < event->n_rows; i++) {
        int patch = patch_at(watched, event->rows[i]);
        if (patch >= 0) point->kept[patch] = 1;
    }
}

static enum lvp_status decode(const struct command *command, struct lvp_chain *chain, const struct lvp_prompt *prompt,
                              int32_t *tokens, int *n_tokens)
{
    const struct lvp_model_config *config = chain->config;
    int32_t slot = 0;
    float logprob = 0;
    int room = config->text.max_positions - prompt->n_rows;
    int most = command->max_new_tokens < room ? command->max_new_tokens : room;
    struct lvp_step_seq seq = {.prefill = true,
                               .max_new = most,
                               .n_ids = prompt->n_ids,
                               .ids = prompt->ids,
                               .n_images = 1,
                               .image_slots = &slot,
                               .top_p = 1,
                               .random_key = XXH3_64bits_withSeed(command->id, strlen(command->id),
                                                                  command->shared.seed)}; // as caption keys it
    LVP_TRY(lvp_chain_step(chain, &seq, 1, &tokens[0], &logprob));
    for (*n_tokens = 1; *n_tokens < most; (*n_tokens)++) {
        for (int e = 0; e < config->n_eos; e++)
            if (tokens[*n_tokens - 1] == config->eos_ids[e]) return LVP_OK;
        seq = (struct lvp_step_seq){.n_ids = 1,
                                    .ids = &tokens[*n_tokens - 1],
                                    .position = prompt->n_rows + *n_tokens - 1,
                                    .token_index = (uint32_t)*n_tokens,
                                    .top_p = 1};
        LVP_TRY(lvp_chain_step(chain, &seq, 1, &tokens[*n_tokens], &logprob));
    }
    return LVP_OK;
}

// With --json the tokens, and of every point the kept patches and the scored ones' scores, in row-major order.
static enum lvp_status print(const struct command *command, const struct lvp_chain *chain,
                             const struct lvp_shown_prompt *shown, size_t answer_bytes, const int32_t *tokens,
                             int n_tokens)
{
    if (!command->shared.json) {
        (void)printf("%s\n  ", shown->text);
        (void)fwrite(shown->answer, 1, answer_bytes, stdout);
        (void)putchar('\n');
        return LVP_OK;
    }
    json_t *points = json_array(), *ids = json_array();
    bool whole = true;
    for (int t = 0; t < n_tokens; t++) whole = json_array_append_new(ids, json_integer(tokens[t])) == 0 && whole;
    for (int p = 0; p < chain->prune.n_points; p++) {
        const struct lvp_shown_point *point = &shown->points[p];
        json_t *kept = json_array(), *scores = json_array();
        for (int i = 0; i < lvp_patch_count(chain->config); i++) {
            if (point->kept[i]) whole = json_array_append_new(kept, json_integer(i)) == 0 && whole;
            if (isnan(point->scores[i])) continue;
            json_t *score = json_pack("[i, f]", i, (double)point->scores[i]);
            whole = json_array_append_new(scores, score) == 0 && whole;
        }
        json_t *row =
            json_pack("{s:i, s:o, s:o}", "after_layer", chain->prune.after[p], "kept", kept, "scores", scores);
        whole = json_array_append_new(points, row) == 0 && whole;
    }
    json_t *row = json_pack("{s:s, s:s%, s:o, s:o}", "prompt", shown->text, "answer", shown->answer, answer_bytes,
                            "token_ids", ids, "points", points);
    if (row == NULL || !whole) return json_decref(row), lvp_fail(LVP_ERR_MEMORY, "out of memory for an answer");
    (void)json_dumpf(row, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    (void)putchar('\n');
    json_decref(row);
    return LVP_OK;
}

static enum lvp_status ask(const struct command *command, struct lvp_chain *chain,
                           const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                           struct lvp_shown_prompt *shown)
{
    const struct lvp_model_config *config = chain->config;
    struct watched watched = {.chain = chain, .shown = shown};
    struct lvp_sample_error error;
    struct lvp_prompt prompt = {0};
    int n_tokens = 0;
    size_t n_bytes = 0;
    int32_t *tokens = calloc((size_t)command->max_new_tokens + 1, sizeof *tokens);
    enum lvp_status status = tokens == NULL ? lvp_fail(LVP_ERR_MEMORY, "out of memory for an answer") : LVP_OK;
    for (int p = 0; p < chain->prune.n_points && status == LVP_OK; p++) {
        size_t n = (size_t)lvp_patch_count(config);
        shown->points[p] = (struct lvp_shown_point){calloc(n, 1), malloc(n * sizeof(float))};
        if (shown->points[p].kept == NULL || shown->points[p].scores == NULL)
            status = lvp_fail(LVP_ERR_MEMORY, "out of memory for an answer");
        else
            for (size_t i = 0; i < n; i++) shown->points[p].scores[i] = NAN;
    }
    if (status == LVP_OK)
        status = lvp_prompt_build(tokenizer, chat, NULL, shown->text, 1, config->image_token_id,
                                  lvp_vision_tokens(config), config->text.max_positions, &prompt, &error);
    if (status == LVP_OK && error.code != LVP_SAMPLE_OK)
        status = lvp_fail(LVP_ERR_USAGE, "--prompt '%.200s': %s", shown->text, error.message);
    while (status == LVP_OK && prompt.ids[watched.first_position] != config->image_token_id) watched.first_position++;
    if (status == LVP_OK) status = lvp_chain_observe(chain, see, &watched);
    if (status == LVP_OK) status = decode(command, chain, &prompt, tokens, &n_tokens);
    if (status == LVP_OK) status = lvp_tokenizer_decode(tokenizer, tokens, (size_t)n_tokens, &shown->answer, &n_bytes);
    if (status == LVP_OK) {
        const char *trimmed = lvp_trim(shown->answer, &n_bytes);
        memmove(shown->answer, trimmed, n_bytes + 1);
        status = print(command, chain, shown, n_bytes, tokens, n_tokens);
    }
    lvp_chain_release(chain, 0);
    lvp_prompt_free(&prompt);
    free(tokens);
    return status;
}

static enum lvp_status load_pixels(const struct command *command, const struct lvp_model_config *config, float **pixels)
{
    enum { MAX_PIXELS = 178956970 }; // as caption's default
    const struct lvp_image_file file = {.path = command->image};
    struct lvp_sample_error error = {0};
    *pixels = malloc(3 * (size_t)config->image.crop_height * (size_t)config->image.crop_width * sizeof **pixels);
    if (*pixels == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the image");
    LVP_TRY(lvp_image_load(&file, &config->image, MAX_PIXELS, *pixels, &error));
    if (error.code != LVP_SAMPLE_OK) return lvp_fail(LVP_ERR_USAGE, "--image %s: %s", command->image, error.message);
    return LVP_OK;
}

// The image as caption's sample, and the prompts with its columns filled in.
static enum lvp_status fill_prompts(struct command *command, struct lvp_shown_prompt *shown)
{
    const char *slash = strrchr(command->image, '/');
    command->id = lvp_utf8_name(slash != NULL ? slash + 1 : command->image);
    if (command->id == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the prompts");
    const struct lvp_sample sample = {.id = command->id, .images = &command->id, .n_images = 1};
    for (int i = 0; i < command->n_prompts; i++) {
        struct lvp_sample_error error = {0};
        LVP_TRY(lvp_prompt_fill(command->prompts[i], &sample, &shown[i].text, &error));
        if (shown[i].text == NULL)
            return lvp_fail(LVP_ERR_USAGE, "--prompt '%s': %s", command->prompts[i], error.message);
    }
    return LVP_OK;
}

// A picture that cannot be written is refused before the model runs for it.
static enum lvp_status check_output(const struct command *command)
{
    const char *path = command->output;
    struct stat image, output;
    char folder[4096];
    const char *slash = strrchr(path, '/');
    int length = slash == NULL ? 1 : (int)(slash - path) + 1;
    (void)snprintf(folder, sizeof folder, "%.*s", length, slash == NULL ? "." : path);
    if (access(folder, W_OK | X_OK) != 0) return lvp_fail(LVP_ERR_USAGE, "--output %s: %s", path, strerror(errno));
    if (stat(path, &output) != 0) return LVP_OK;
    if (!S_ISREG(output.st_mode)) return lvp_fail(LVP_ERR_USAGE, "--output %s: not a regular file", path);
    if (stat(command->image, &image) == 0 && image.st_dev == output.st_dev && image.st_ino == output.st_ino)
        return lvp_fail(LVP_ERR_USAGE, "--output %s: it is the --image", path);
    return LVP_OK;
}

static enum lvp_status show(struct command *command)
{
    struct lvp_shown_prompt shown[MAX_PROMPTS] = {{0}};
    struct lvp_model_config config;
    struct lvp_chain chain = {0};
    struct lvp_tokenizer *tokenizer = NULL;
    struct lvp_chat_template *chat = NULL;
    const int32_t slot = 0;
    float *pixels = NULL;
    enum lvp_status status = LVP_OK;
    struct lvp_chain_options options = {.model = command->shared.model,
                                        .kernel_set = lvp_cpu_best_kernel_set(),
                                        .dtype = command->shared.dtype,
                                        .threads = command->shared.threads,
                                        .max_seqs = 1};
    if (options.kernel_set == NULL) return LVP_ERR_USAGE;
    if (options.threads == 0) options.threads = lvp_available_cores();
    LVP_CHECK(lvp_model_config_load(options.model, &config));
    LVP_CHECK(lvp_options_choose_pruner(&command->shared, &config, &command->pruner));
    if (command->pruner.kind == LVP_PRUNER_NONE) {
        status = lvp_fail(LVP_ERR_USAGE, "nothing is pruned, so there is nothing to show: name modules with "
                                         "--pruner-weights, or use --pruner last-attention");
        goto fail;
    }
    options.pruner = command->pruner.kind;
    options.plan = command->pruner.plan;
    if (lvp_pruners[options.pruner].needs_weights) options.weights = command->pruner.weights;
    options.max_rows = config.text.max_positions;
    LVP_CHECK(fill_prompts(command, shown));
    LVP_CHECK(check_output(command));
    LVP_CHECK(lvp_tokenizer_open(options.model, &tokenizer));
    LVP_CHECK(lvp_chat_template_load(options.model, &chat));
    LVP_CHECK(lvp_prompt_check_model(tokenizer, chat, config.image_token_id, config.text.vocab));
    LVP_CHECK(load_pixels(command, &config, &pixels));
    LVP_CHECK(lvp_chain_open(&options, &chain));
    LVP_CHECK(lvp_chain_encode(&chain, 1, pixels, &slot));
    for (int i = 0; i < command->n_prompts; i++) LVP_CHECK(ask(command, &chain, tokenizer, chat, &shown[i]));
    status = lvp_show_draw(&config, &chain.prune, pixels, shown, command->n_prompts, command->scores, command->output);
fail:
    for (int i = 0; i < command->n_prompts; i++) {
        free(shown[i].text);
        free(shown[i].answer);
        for (int p = 0; p < LVP_MAX_PRUNE_POINTS; p++) {
            free(shown[i].points[p].kept);
            free(shown[i].points[p].scores);
        }
    }
    lvp_chain_close(&chain);
    lvp_tokenizer_close(tokenizer);
    lvp_chat_template_free(chat);
    free(pixels);
    free(command->id);
    return status;
}

enum lvp_status lvp_cmd_show(int argc, char **argv)
{
    struct command command;
    LVP_TRY(parse(argc, argv, &command));
    if (!command.help) {
        lvp_options_start_log(&command.shared);
        return show(&command);
    }
    (void)printf("%s%s%s", help_text, lvp_options_help, help_examples);
    return LVP_OK;
}
