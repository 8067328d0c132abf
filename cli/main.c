// lvpipe: parses the command, runs it and turns its result into an exit status. Only here does the process end.
#include "cli/cmd_bench.h"
#include "cli/cmd_caption.h"
#include "cli/cmd_eval.h"
#include "cli/cmd_inspect.h"
#include "cli/cmd_plan.h"
#include "cli/cmd_show.h"
#include "cli/cmd_status.h"
#include "cli/signals.h"
#include "cli/version.h"
#include "common/log.h"
#include "common/record.h"
#include "common/status.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

// argv[0] is the command's name. A command that ended on purpose with another status than 0 says so in *exit_status.
struct command {
    const char *name, *summary;
    enum lvp_status (*run)(int argc, char **argv, int *exit_status);
};

static enum lvp_status run_plan(int argc, char **argv, int *exit_status)
{
    (void)exit_status;
    return lvp_cmd_plan(argc, argv);
}

static enum lvp_status run_inspect(int argc, char **argv, int *exit_status)
{
    (void)exit_status;
    return lvp_cmd_inspect(argc, argv);
}

static enum lvp_status run_status(int argc, char **argv, int *exit_status)
{
    (void)exit_status;
    return lvp_cmd_status(argc, argv);
}

static enum lvp_status run_show(int argc, char **argv, int *exit_status)
{
    (void)exit_status;
    return lvp_cmd_show(argc, argv);
}

static const struct command commands[] = {
    {"caption", "caption images", lvp_cmd_caption},
    {"eval", "score answers to a set of questions, pruned and unpruned", lvp_cmd_eval},
    {"bench", "measure throughput, pruned and unpruned", lvp_cmd_bench},
    {"plan", "show a partition, its FLOPs, bytes and memory", run_plan},
    {"status", "show how far a run, or an array of runs, is", run_status},
    {"show", "draw which patches of an image are kept", run_show},
    {"inspect", "say what a checkpoint is, and whether it can run", run_inspect},
};

static void print_usage(FILE *out)
{
    (void)fprintf(out, "lvpipe: captions images with LLaVA models, pruning vision tokens inside the model,\n"
                       "as a pipeline over MPI ranks.\n\nusage: lvpipe COMMAND [options]\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        (void)fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
    (void)fprintf(out,
                  "\nlvpipe help COMMAND, or lvpipe COMMAND --help, shows a command's options and examples.\n"
                  "lvpipe --version lists libraries, instruction sets and backends.\n\n"
                  "example: lvpipe caption --model models/demo --input examples/images --output captions --stages 4\n");
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

static int finish(enum lvp_status status, int exit_status)
{
    if (status == LVP_OK && (fflush(stdout) != 0 || ferror(stdout) != 0))
        status = lvp_fail(LVP_ERR_IO, "stdout: %s", strerror(errno));
    bool asked_for = status == LVP_DRAINED || status == LVP_STOPPED; // by a signal: no error
    if (status == LVP_OK) return exit_status;
    if (lvp_error_text()[0] != '\0') lvp_log(asked_for ? LVP_LOG_INFO : LVP_LOG_ERROR, "%s", lvp_error_text());
    return exit_status != 0 ? exit_status : lvp_exit_status(status);
}

int main(int argc, char **argv)
{
    lvp_log_init(LVP_LOG_INFO, "");
    if (lvp_launcher() != LVP_LAUNCHER_NONE) { // before anything else: a signal may come at any time
        lvp_record_start();
        lvp_signals_install();
    }
    const char *name = argc > 1 ? argv[1] : "--help";
    if (strcmp(name, "--version") == 0) return finish(lvp_print_version(), 0);
    bool help = argc == 3 && strcmp(name, "help") == 0;
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || (argc == 2 && strcmp(name, "help") == 0)) {
        print_usage(argc > 1 ? stdout : stderr);
        return argc > 1 ? 0 : lvp_exit_status(LVP_ERR_USAGE);
    }
    const struct command *command = find_command(help ? argv[2] : name);
    if (command == NULL)
        return finish(
            lvp_fail(LVP_ERR_USAGE, "there is no command '%s'; lvpipe --help lists them", help ? argv[2] : name), 0);
    int exit_status = 0;
    char *help_argv[] = {argv[argc - 1], (char[]){"--help"}, NULL};
    enum lvp_status status =
        help ? command->run(2, help_argv, &exit_status) : command->run(argc - 1, argv + 1, &exit_status);
    return finish(status, exit_status);
}
