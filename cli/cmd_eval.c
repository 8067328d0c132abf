#include "cli/cmd_eval.h"

#include "cli/eval_report.h"
#include "cli/options.h"
#include "common/json.h"
#include "common/log.h"
#include "coordinator/output/output_folder.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

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
    "  --keep LIST            shares kept at the first prune point (0.5); the unpruned run comes first by itself\n"
    "  --pruner LIST          pruners (lvpruning); each with every share\n"
    "  --limit N              the first N questions\n"
    "  --no-nll               leave the log-probabilities out: half the time\n"
    "  --json                 eval.json on stdout instead of the table\n"
    "\n"
    "Every other option is handed to lvpipe caption: --stages, --threads, --dtype, --device, ...\n"
    "\n"
    "examples:\n"
    "  lvpipe eval --model models/demo --tasks tasks --output scores --keep 0.6,0.5 --pruner lvpruning,random\n"
    "  lvpipe eval --model llava-1.5-7b-hf --tasks gqa --output gqa-scores --keep 0.5 --device cuda --stages 4\n";

struct command {
    const char *model, *tasks, *output, *limit_text;
    char *keeps[MAX_LIST], *pruners[MAX_LIST];
    int n_keeps, n_pruners;
    bool no_nll, json, help;
    int limit; // negative: all
    char *passed[MAX_PASSED];
    int n_passed;
    struct lvp_task task;
    struct lvp_eval_setting settings[MAX_SETTINGS];
    int n_settings;
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

// Own options are taken out; the rest is for caption, which knows what is wrong with it.
static enum lvp_status parse(int argc, char **argv, struct command *command)
{
    for (int i = 1; i < argc; i++) {
        char *value = i + 1 < argc ? argv[i + 1] : NULL;
        const char **texts[] = {&command->model, &command->tasks, &command->output, &command->limit_text};
        static const char *const names[] = {"--model", "--tasks", "--output", "--limit"};
        bool taken = false;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return command->help = true, LVP_OK;
        if (strcmp(argv[i], "--no-nll") == 0) taken = command->no_nll = true;
        if (strcmp(argv[i], "--json") == 0) taken = command->json = true;
        if (taken) continue;
        for (int t = 0; t < 4; t++)
            if (strcmp(argv[i], names[t]) == 0) *texts[t] = value, taken = true;
        bool keep = strcmp(argv[i], "--keep") == 0, pruner = strcmp(argv[i], "--pruner") == 0;
        if ((taken || keep || pruner) && value == NULL)
            return lvp_fail(LVP_ERR_USAGE, "%s needs a value; see lvpipe eval --help", argv[i]);
        if (keep) LVP_TRY(split("--keep", value, command->keeps, &command->n_keeps));
        if (pruner) LVP_TRY(split("--pruner", value, command->pruners, &command->n_pruners));
        if (taken || keep || pruner) {
            i++;
            continue;
        }
        if (command->n_passed == MAX_PASSED) return lvp_fail(LVP_ERR_USAGE, "too many options");
        command->passed[command->n_passed++] = argv[i];
    }
    if (command->model == NULL) return lvp_fail(LVP_ERR_USAGE, "--model is missing: the folder of a LLaVA checkpoint");
    if (command->tasks == NULL) return lvp_fail(LVP_ERR_USAGE, "--tasks is missing: a folder with questions.jsonl");
    if (command->output == NULL) return lvp_fail(LVP_ERR_USAGE, "--output is missing: the folder for runs and tables");
    command->limit = -1;
    return command->limit_text == NULL ? LVP_OK
                                       : lvp_parse_int("--limit", command->limit_text, 1, INT_MAX, &command->limit);
}

static enum lvp_status add_setting(struct command *command, const char *pruner, const char *keep)
{
    if (command->n_settings == MAX_SETTINGS) return lvp_fail(LVP_ERR_USAGE, "more than %d settings", MAX_SETTINGS);
    struct lvp_eval_setting *setting = &command->settings[command->n_settings++];
    (void)snprintf(setting->pruner, sizeof setting->pruner, "%s", pruner);
    (void)snprintf(setting->keep, sizeof setting->keep, "%s", keep);
    (void)snprintf(setting->name, sizeof setting->name, "%.31s%s%.23s", pruner, keep[0] == '\0' ? "" : "-", keep);
    return LVP_OK;
}

static enum lvp_status make_settings(struct command *command)
{
    static char lvpruning[] = "lvpruning", half[] = "0.5";
    if (command->n_pruners == 0) command->pruners[command->n_pruners++] = lvpruning;
    if (command->n_keeps == 0) command->keeps[command->n_keeps++] = half;
    LVP_TRY(add_setting(command, "none", ""));
    for (int p = 0; p < command->n_pruners; p++)
        for (int k = 0; k < command->n_keeps; k++) {
            if (strcmp(command->pruners[p], "none") == 0 || strcmp(command->keeps[k], "none") == 0) continue;
            LVP_TRY(add_setting(command, command->pruners[p], command->keeps[k]));
        }
    return LVP_OK;
}

// --- runs

static enum lvp_status start(char *const *arguments, int *ended)
{
    pid_t child = fork();
    if (child < 0) return lvp_fail(LVP_ERR_IO, "lvpipe caption could not be started: %s", strerror(errno));
    if (child == 0) {
        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    while (waitpid(child, ended, 0) < 0)
        if (errno != EINTR) return lvp_fail(LVP_ERR_IO, "waiting for lvpipe caption: %s", strerror(errno));
    return LVP_OK;
}

static enum lvp_status run_caption(const struct command *command, const struct lvp_eval_setting *setting,
                                   const char *folder, bool score)
{
    char *arguments[MAX_PASSED + 20];
    int n = 0, ended = 0;
    const char *fixed[] = {"lvpipe",           "caption",  "--model", command->model, "--input",
                           command->task.path, "--output", folder,    "--pruner",     setting->pruner};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) arguments[n++] = (char *)(size_t)fixed[i];
    const char *optional[][2] = {{"--keep", setting->keep}, {"--limit", command->limit_text}, {"--score", "answer"}};
    const bool given[] = {setting->keep[0] != '\0', command->limit_text != NULL, score};
    for (int i = 0; i < 3; i++) {
        if (!given[i]) continue;
        arguments[n++] = (char *)(size_t)optional[i][0];
        arguments[n++] = (char *)(size_t)optional[i][1];
    }
    for (int i = 0; i < command->n_passed; i++) arguments[n++] = command->passed[i];
    arguments[n] = NULL;
    lvp_info("%s: %s", setting->name, score ? "scoring the right answers" : "asking");
    LVP_TRY(start(arguments, &ended));
    if (WIFEXITED(ended) && WEXITSTATUS(ended) == 0) return LVP_OK;
    if (WIFSIGNALED(ended)) return lvp_fail(LVP_ERR_LOST, "lvpipe caption into %s was killed", folder);
    enum lvp_status status = WEXITSTATUS(ended) == lvp_exit_status(LVP_ERR_USAGE) ? LVP_ERR_USAGE : LVP_ERR_LOST;
    return lvp_fail(status, "lvpipe caption into %s ended with status %d; mend that and give the same command again",
                    folder, WEXITSTATUS(ended));
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
    return lvp_compare(&command->task, &command->settings[0].outcome, &setting->outcome, &setting->comparison);
}

static enum lvp_status write_json(const struct command *command)
{
    json_t *json = lvp_eval_json(&command->task, command->settings, command->n_settings);
    char *text = json != NULL ? json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    enum lvp_status status = text != NULL ? lvp_output_write_text(command->output, "eval.json", text)
                                          : lvp_fail(LVP_ERR_MEMORY, "out of memory for the report");
    if (text != NULL && command->json) {
        (void)json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        (void)putchar('\n');
    }
    free(text);
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
    LVP_TRY(make_settings(command));
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
    (void)exit_status;
    if (command == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    enum lvp_status status = parse(argc, argv, command);
    if (status == LVP_OK && command->help)
        (void)fputs(help_text, stdout);
    else if (status == LVP_OK)
        status = run(command);
    for (int s = 0; s < command->n_settings; s++) {
        json_decref(command->settings[s].run);
        lvp_outcome_free(&command->settings[s].outcome);
    }
    lvp_task_free(&command->task);
    free(command);
    return status;
}
