#include "cli/cmd_eval.h"

#include "cli/eval_report.h"
#include "cli/launch.h"
#include "cli/options.h"
#include "cli/signals.h"
#include "common/json.h"
#include "common/log.h"
#include "coordinator/cost.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MAX_SETTINGS = 64, MAX_PASSED = 64, MAX_LIST = 16 };

static const char help_text[] =
    "usage: lvpipe eval --model DIR --tasks DIR --output DIR [options]\n"
    "\n"
    "Asks the questions of DIR/questions.jsonl, unpruned and with every pruner at every share, scores the answers, "
    "and\n"
    "measures the log-probability of the right ones. Every run is an lvpipe caption into a folder of its own below\n"
    "--output: given again, the command goes on where it stopped. Writes eval.md and eval.json there.\n"
    "\n"
    "  --tasks DIR            questions.jsonl: a manifest (id, image, prompt) with the fields answers, metric (exact,\n"
    "                         soft, parts, facts), family, group and answer; see docs/eval.md\n"
    "  --output DIR           folder for the runs and the tables\n"
    "  --keep LIST            shares kept at the first prune point, or 0.5/0.3/0.1 for every point's (the pruner's "
    "own);\n"
    "                         the unpruned run comes first by itself\n"
    "  --pruner LIST          pruners (lvpruning where there are modules, else none); each with every share\n"
    "  --limit N              the first N questions\n"
    "  --no-nll               leave the log-probabilities out: half the time\n"
    "  --json                 eval.json on stdout instead of the table\n"
    "\n"
    "Options are written in full. All others are handed to lvpipe caption: --stages, --threads, --dtype, --device, "
    "...;\n"
    "not those that change what is asked (--input, --prompt, --score, --shard), nor --partition prune, which the\n"
    "unpruned run has no points for. Not under mpirun or srun: docs/eval.md says how to ask on several nodes.\n"
    "\n"
    "examples:\n"
    "  lvpipe eval --model models/demo --tasks tasks --output scores --keep 0.6,0.5 --pruner lvpruning,random\n"
    "  lvpipe eval --model llava-1.5-7b-hf --tasks gqa --output gqa-scores --pruner last-attention --keep 0.5 \\\n"
    "      --device cuda --stages 4\n";

struct command {
    const char *model, *tasks, *output, *limit_text, *pruner_weights, *prune_after; // NULL: not given
    char *keeps[MAX_LIST], *pruners[MAX_LIST];
    int n_keeps, n_pruners;
    bool no_nll, json, help;
    int limit; // negative: all
    char *passed[MAX_PASSED];
    int n_passed;
    struct lvp_task task;
    struct lvp_eval_setting settings[MAX_SETTINGS];
    int n_settings;
    int exit_status; // of the caption that did not end well
    struct lvp_model_config config;
};

// --- options

static enum lvp_status split(const char *option, char *list, char **items, int *n)
{
    *n = 0;
    for (char *rest = list, *item; (item = strsep(&rest, ",")) != NULL; items[(*n)++] = item)
        if (*n == MAX_LIST || item[0] == '\0')
            return lvp_fail(LVP_ERR_USAGE, "%s: give 1 to %d values with commas between them", option, MAX_LIST);
    return LVP_OK;
}

// Options that are not handed on as they come: those with a value, those without, and those that caption must not get.
enum own {
    OWN_MODEL,
    OWN_TASKS,
    OWN_OUTPUT,
    OWN_LIMIT,
    OWN_PRUNER_WEIGHTS,
    OWN_PRUNE_AFTER,
    OWN_KEEP,
    OWN_PRUNER,
    OWN_NO_NLL,
    OWN_JSON,
    OWN_HELP,
    OWN_REFUSED, // they change what is asked
    OWN_ONE_FILE = OWN_REFUSED + 4,
    OWN_COUNT = OWN_ONE_FILE + 2,
    OWN_NONE = OWN_COUNT
};

static const char *const own_names[OWN_COUNT] = {"model",  "tasks",  "output", "limit", "pruner-weights", "prune-after",
                                                 "keep",   "pruner", "no-nll", "json",  "help",           "input",
                                                 "prompt", "score",  "shard",  "trace", "metrics"};

// Which option "--name" or "--name=value" is. A shortened name is refused: to caption it could be one of ours.
static enum lvp_status find_own(const char *argument, enum own *own)
{
    bool shortened = false;
    *own = strcmp(argument, "-h") == 0 ? OWN_HELP : OWN_NONE;
    if (strncmp(argument, "--", 2) != 0) return LVP_OK;
    size_t length = strcspn(argument + 2, "=");
    for (int i = 0; i < OWN_COUNT; i++) {
        if (strncmp(argument + 2, own_names[i], length) != 0) continue;
        if (own_names[i][length] == '\0') return *own = (enum own)i, LVP_OK;
        shortened = true;
    }
    return shortened ? lvp_fail(LVP_ERR_USAGE, "%s: write options in full; see lvpipe eval --help", argument) : LVP_OK;
}

static enum lvp_status take_own(struct command *command, enum own own, char *value)
{
    const char **texts[] = {&command->model,      &command->tasks,          &command->output,
                            &command->limit_text, &command->pruner_weights, &command->prune_after};
    if (own == OWN_KEEP) return split("--keep", value, command->keeps, &command->n_keeps);
    if (own == OWN_PRUNER) return split("--pruner", value, command->pruners, &command->n_pruners);
    if (own < OWN_KEEP) *texts[own] = value;
    command->no_nll = command->no_nll || own == OWN_NO_NLL;
    command->json = command->json || own == OWN_JSON;
    command->help = command->help || own == OWN_HELP;
    return LVP_OK;
}

static enum lvp_status check(struct command *command)
{
    if (command->model == NULL) return lvp_fail(LVP_ERR_USAGE, "--model is missing: the folder of a LLaVA checkpoint");
    if (command->tasks == NULL) return lvp_fail(LVP_ERR_USAGE, "--tasks is missing: a folder with questions.jsonl");
    if (command->output == NULL) return lvp_fail(LVP_ERR_USAGE, "--output is missing: the folder for runs and tables");
    command->limit = -1;
    return command->limit_text == NULL ? LVP_OK
                                       : lvp_parse_int("--limit", command->limit_text, 1, INT_MAX, &command->limit);
}

// Own options are taken out; the rest is for caption, which knows what is wrong with it.
static enum lvp_status parse(int argc, char **argv, struct command *command)
{
    for (int i = 1; i < argc; i++) {
        enum own own;
        LVP_TRY(find_own(argv[i], &own));
        if (own == OWN_NONE) {
            if (command->n_passed == MAX_PASSED) return lvp_fail(LVP_ERR_USAGE, "too many options");
            bool next = strcmp(argv[i], "--partition") == 0 && i + 1 < argc && strcmp(argv[i + 1], "prune") == 0;
            if (next || strcmp(argv[i], "--partition=prune") == 0)
                return lvp_fail(LVP_ERR_USAGE, "--partition prune: the unpruned run has no prune points to cut at; "
                                               "give --stages, or the blocks to cut at");
            if (strcmp(argv[i], "-q") == 0) lvp_log_init(LVP_LOG_WARNING, "");
            command->passed[command->n_passed++] = argv[i];
            continue;
        }
        if (own >= OWN_ONE_FILE)
            return lvp_fail(LVP_ERR_USAGE, "--%s: every run would overwrite the file; give it to lvpipe caption",
                            own_names[own]);
        if (own >= OWN_REFUSED)
            return lvp_fail(LVP_ERR_USAGE, "--%s: what is asked is in --tasks; see docs/eval.md", own_names[own]);
        char *value = strchr(argv[i], '=');
        bool wants = own < OWN_NO_NLL;
        if (!wants && value != NULL) return lvp_fail(LVP_ERR_USAGE, "--%s takes no value", own_names[own]);
        if (wants && value == NULL && i + 1 == argc)
            return lvp_fail(LVP_ERR_USAGE, "--%s needs a value; see lvpipe eval --help", own_names[own]);
        if (wants) value = value != NULL ? value + 1 : argv[++i];
        LVP_TRY(take_own(command, own, value));
        if (command->help) return LVP_OK;
    }
    return check(command);
}

static enum lvp_status add_setting(struct command *command, const char *pruner, const char *keep)
{
    if (command->n_settings == MAX_SETTINGS) return lvp_fail(LVP_ERR_USAGE, "more than %d settings", MAX_SETTINGS);
    struct lvp_eval_setting *setting = &command->settings[command->n_settings];
    if (strlen(pruner) >= sizeof setting->pruner || strlen(keep) >= sizeof setting->keep) // it names a folder
        return lvp_fail(LVP_ERR_USAGE, "--pruner %s --keep %s: too long", pruner, keep);
    command->n_settings++;
    (void)snprintf(setting->pruner, sizeof setting->pruner, "%s", pruner);
    (void)snprintf(setting->keep, sizeof setting->keep, "%s", keep);
    (void)snprintf(setting->name, sizeof setting->name, "%.31s%s%.23s", pruner, keep[0] == '\0' ? "" : "-", keep);
    for (char *c = setting->name; (c = strchr(c, '/')) != NULL; c++) *c = '_';
    for (char *c = setting->keep; (c = strchr(c, '/')) != NULL; c++) *c = ','; // as caption has it
    return LVP_OK;
}

static enum lvp_status make_settings(struct command *command)
{
    static char lvpruning[] = "lvpruning", own[] = "";
    struct lvp_options options = {.model = command->model, .pruner_weights = command->pruner_weights};
    char path[4096];
    LVP_TRY(lvp_options_find_weights(&options, path, sizeof path));
    if (command->n_pruners == 0 && path[0] != '\0') command->pruners[command->n_pruners++] = lvpruning;
    if (command->n_pruners == 0)
        lvp_warn("%s has no lvpruning.safetensors: it is asked unpruned alone; --pruner names others", command->model);
    if (command->n_keeps == 0) command->keeps[command->n_keeps++] = own;
    LVP_TRY(add_setting(command, "none", ""));
    for (int p = 0; p < command->n_pruners; p++)
        for (int k = 0; k < command->n_keeps; k++) {
            if (strcmp(command->pruners[p], "none") == 0) continue; // there already
            LVP_TRY(add_setting(command, command->pruners[p], command->keeps[k]));
        }
    return LVP_OK;
}

// What caption would say of the last setting is said before hours of the first.
static enum lvp_status check_settings(struct command *command)
{
    LVP_TRY(lvp_model_config_load(command->model, &command->config));
    for (int s = 0; s < command->n_settings; s++) {
        struct lvp_eval_setting *setting = &command->settings[s];
        const struct {
            int code;
            const char *value;
        } given[] = {{LVP_OPTION_MODEL, command->model},
                     {LVP_OPTION_PRUNER, setting->pruner},
                     {LVP_OPTION_PRUNER_WEIGHTS, command->pruner_weights},
                     {LVP_OPTION_PRUNE_AFTER, command->prune_after},
                     {LVP_OPTION_KEEP, setting->keep[0] != '\0' ? setting->keep : NULL}};
        struct lvp_options options;
        struct lvp_pruner_choice choice;
        lvp_options_init(&options);
        for (size_t i = 0; i < sizeof given / sizeof *given; i++)
            if (given[i].value != NULL) LVP_TRY(lvp_options_set(&options, given[i].code, given[i].value, NULL));
        LVP_TRY(lvp_options_choose_pruner(&options, &command->config, &choice));
        // The mean lengths of a question follow once they are known.
        setting->workload =
            (struct lvp_workload){.config = &command->config, .prune = choice.plan, .pruner_width = choice.inner_width};
    }
    return LVP_OK;
}

// --- runs

static enum lvp_status run_caption(struct command *command, const struct lvp_eval_setting *setting, const char *folder,
                                   bool score)
{
    const char *const given[][2] = {
        {"--model", command->model},
        {"--input", command->task.path},
        {"--output", folder},
        {"--pruner", setting->pruner},
        {"--keep", setting->keep[0] != '\0' ? setting->keep : NULL},
        {"--pruner-weights", command->pruner_weights},
        {"--prune-after", command->prune_after},
        {"--limit", command->limit_text},
        {"--score", score ? "answer" : NULL},
    };
    char *arguments[MAX_PASSED + 2 + 2 * sizeof given / sizeof *given + 1] = {(char[]){"lvpipe"}, (char[]){"caption"}};
    int n = 2, ended = 0;
    // The user's first: of an option that is given twice the last one counts.
    for (int i = 0; i < command->n_passed; i++) arguments[n++] = command->passed[i];
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        for (int part = 0; part < 2 && given[i][1] != NULL; part++) arguments[n++] = (char *)(size_t)given[i][part];
    lvp_info("%s: %s", setting->name, score ? "scoring the right answers" : "asking");
    LVP_TRY(lvp_launch_self(arguments, &ended));
    command->exit_status = ended;
    if (ended == 0) return LVP_OK;
    if (ended == lvp_exit_status(LVP_DRAINED))
        return lvp_fail(LVP_DRAINED, "ended by a signal; give the same command again to go on");
    return lvp_fail(LVP_ERR_LOST,
                    "lvpipe caption into %s ended with status %d; mend that and give the same command again", folder,
                    ended);
}

static enum lvp_status evaluate(struct command *command, struct lvp_eval_setting *setting)
{
    char answers[4096], scores[4200], report[4200];
    bool nll = command->task.has_answer && !command->no_nll;
    int n = snprintf(answers, sizeof answers, "%s/%s", command->output, setting->name);
    if (n < 0 || (size_t)n + 16 > sizeof answers) return lvp_fail(LVP_ERR_USAGE, "--output: the path is too long");
    (void)snprintf(scores, sizeof scores, "%s.nll", answers);
    (void)snprintf(report, sizeof report, "%s/run.json", answers);
    LVP_TRY(run_caption(command, setting, answers, false));
    if (nll) LVP_TRY(run_caption(command, setting, scores, true));
    LVP_TRY(lvp_json_load(report, false, &setting->run));
    LVP_TRY(lvp_outcome_read(&command->task, answers, nll ? scores : NULL, &setting->outcome));
    if (setting->outcome.unanswered == command->task.n)
        return lvp_fail(LVP_ERR_USAGE, "%s: no question got an answer; %s/errors.jsonl says why", command->task.path,
                        answers);
    int text_tokens = (int)lround(setting->outcome.prompt_rows) - lvp_vision_tokens(&command->config);
    setting->workload.text_tokens = text_tokens > 0 ? text_tokens : 0;
    setting->workload.new_tokens = (int)lround(setting->outcome.new_tokens);
    return lvp_compare(&command->task, &command->settings[0].outcome, &setting->outcome, &setting->comparison);
}

static enum lvp_status write_json(const struct command *command)
{
    json_t *json = lvp_eval_json(&command->task, command->settings, command->n_settings);
    enum lvp_status status = json != NULL ? lvp_output_write_json(command->output, "eval.json", json)
                                          : lvp_fail(LVP_ERR_MEMORY, "out of memory for the report");
    if (status == LVP_OK && command->json) {
        (void)json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
        (void)putchar('\n');
    }
    json_decref(json);
    return status;
}

static enum lvp_status write_table(const struct command *command)
{
    char *text = NULL;
    size_t n = 0;
    FILE *memory = open_memstream(&text, &n);
    if (memory != NULL) lvp_eval_print(memory, &command->task, command->settings, command->n_settings);
    bool whole = memory != NULL && fclose(memory) == 0;
    enum lvp_status status = whole ? lvp_output_write_text(command->output, "eval.md", text)
                                   : lvp_fail(LVP_ERR_MEMORY, "out of memory for the report");
    if (whole && !command->json) (void)fputs(text, stdout);
    free(text);
    return status;
}

static enum lvp_status run(struct command *command)
{
    if (lvp_launcher() != LVP_LAUNCHER_NONE)
        return lvp_fail(LVP_ERR_USAGE, "lvpipe eval starts its own ranks, one run after the other: start it without "
                                       "mpirun or srun; docs/eval.md says how to ask on several nodes");
    LVP_TRY(make_settings(command));
    LVP_TRY(check_settings(command));
    LVP_TRY(lvp_task_load(command->tasks, command->limit, &command->task));
    if (mkdir(command->output, 0777) != 0 && errno != EEXIST)
        return lvp_fail(LVP_ERR_USAGE, "--output %s: %s", command->output, strerror(errno));
    for (int s = 0; s < command->n_settings; s++) LVP_TRY(evaluate(command, &command->settings[s]));
    LVP_TRY(write_json(command));
    return write_table(command);
}

enum lvp_status lvp_cmd_eval(int argc, char **argv, int *exit_status)
{
    struct command *command = calloc(1, sizeof *command);
    if (command == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    enum lvp_status status = parse(argc, argv, command);
    if (status == LVP_OK && command->help)
        (void)fputs(help_text, stdout);
    else if (status == LVP_OK)
        status = run(command);
    *exit_status = command->exit_status;
    for (int s = 0; s < command->n_settings; s++) {
        json_decref(command->settings[s].run);
        lvp_outcome_free(&command->settings[s].outcome);
    }
    lvp_task_free(&command->task);
    free(command);
    return status;
}
