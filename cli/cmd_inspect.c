// `lvpipe inspect`: what a checkpoint is, and whether it can run; or what its tokenizer makes of a text. Needs no MPI.
#include "cli/cmd_inspect.h"
#include "cli/inspect_report.h"
#include "common/json.h"
#include "common/tokenizer.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] = "lvpipe inspect: what a checkpoint is, and whether it can run\n"
                           "\n"
                           "  lvpipe inspect DIR [--json]\n"
                           "  lvpipe inspect DIR --tokenize TEXT|-\n"
                           "\n"
                           "  --tokenize TEXT        input ids of TEXT, bos included, as a JSON list\n"
                           "  --tokenize -           each line of stdin is a JSON string; one list per line\n"
                           "  --json                 machine-readable result on stdout\n"
                           "\n"
                           "Exit status 3: the folder cannot run, and why is said on stderr.\n"
                           "\nexamples\n"
                           "  lvpipe inspect models/demo\n"
                           "  lvpipe inspect models/demo --tokenize $'USER: <image>\\nWhat is this? ASSISTANT:'\n";

struct options {
    const char *dir;
    const char *text; // of --tokenize; NULL: report
    bool json, help;
};

static enum lvp_status read_options(int argc, char **argv, struct options *options)
{
    enum { TOKENIZE = 256, JSON }; // beyond what a character can be
    static const struct option known[] = {
        {"tokenize", required_argument, NULL, TOKENIZE},
        {"json", no_argument, NULL, JSON},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    *options = (struct options){0};
    opterr = 0;
    optind = 0; // glibc: start over, another command line may have been parsed before
    for (;;) {
        int option = getopt_long(argc, argv, ":vqh", known, NULL);
        if (option < 0) break;
        switch (option) {
        case TOKENIZE:
            options->text = optarg;
            break;
        case JSON:
            options->json = true;
            break;
        case 'h':
            options->help = true;
            return LVP_OK;
        case 'v':
        case 'q':
            break; // accepted everywhere; there is nothing here to say more or less of
        case ':':
            return lvp_fail(LVP_ERR_USAGE, "inspect: %s needs a value", argv[optind - 1]);
        default:
            return lvp_fail(LVP_ERR_USAGE, "inspect: unknown option %s", argv[optind - 1]);
        }
    }
    if (optind + 1 != argc) return lvp_fail(LVP_ERR_USAGE, "inspect: give one model folder; see lvpipe inspect --help");
    options->dir = argv[optind];
    return LVP_OK;
}

static enum lvp_status print_ids(const struct lvp_tokenizer *tokenizer, const char *text, size_t n_bytes)
{
    int32_t *ids;
    size_t n_ids;
    LVP_TRY(lvp_tokenizer_encode(tokenizer, text, n_bytes, true, &ids, &n_ids));
    (void)putchar('[');
    for (size_t i = 0; i < n_ids; i++) (void)printf("%s%d", i > 0 ? ", " : "", (int)ids[i]);
    (void)printf("]\n");
    free(ids);
    return LVP_OK;
}

// Each line of stdin is a JSON string, so that a text can hold line feeds.
static enum lvp_status tokenize_lines(const struct lvp_tokenizer *tokenizer)
{
    enum lvp_status status = LVP_OK;
    char *line = NULL;
    size_t capacity = 0;
    json_t *text = NULL;
    for (long number = 1;; number++) {
        errno = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0 && (ferror(stdin) || errno == ENOMEM)) {
            status = lvp_fail(LVP_ERR_IO, "stdin: line %ld cannot be read: %s", number, strerror(errno));
            goto fail;
        }
        if (n < 0) break;
        json_error_t error;
        text = json_loadb(line, (size_t)n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
        if (!json_is_string(text)) {
            status = lvp_fail(LVP_ERR_USAGE, "stdin: line %ld is not a JSON string", number);
            goto fail;
        }
        LVP_CHECK(print_ids(tokenizer, json_string_value(text), json_string_length(text)));
        json_decref(text);
        text = NULL;
    }
fail:
    json_decref(text);
    free(line);
    return status;
}

static enum lvp_status tokenize(const struct options *options)
{
    enum lvp_status status = LVP_OK;
    struct lvp_tokenizer *tokenizer;
    LVP_TRY(lvp_tokenizer_open(options->dir, &tokenizer));
    if (strcmp(options->text, "-") == 0)
        LVP_CHECK(tokenize_lines(tokenizer));
    else
        LVP_CHECK(print_ids(tokenizer, options->text, strlen(options->text)));
fail:
    lvp_tokenizer_close(tokenizer);
    return status;
}

static enum lvp_status report(const struct options *options)
{
    struct lvp_inspect_report facts;
    enum lvp_status status = lvp_inspect_report_collect(options->dir, &facts);
    if (status == LVP_OK && options->json)
        status = lvp_inspect_report_print_json(&facts);
    else if (status == LVP_OK)
        lvp_inspect_report_print(&facts);
    else if (options->json) // a program that asked gets its answer on stdout; the exit status says so too
        lvp_inspect_print_failure(options->dir);
    lvp_inspect_report_free(&facts);
    return status;
}

enum lvp_status lvp_cmd_inspect(int argc, char **argv)
{
    struct options options;
    LVP_TRY(read_options(argc, argv, &options));
    if (options.help) {
        (void)fputs(help, stdout);
        return LVP_OK;
    }
    return options.text != NULL ? tokenize(&options) : report(&options);
}
