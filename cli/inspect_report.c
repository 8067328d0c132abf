#include "cli/inspect_report.h"

#include "common/log.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void count_tensor(struct lvp_inspect_report *report, const struct lvp_tensor_view *view)
{
    int64_t n = 1;
    for (int i = 0; i < view->n_dims; i++) n *= view->shape[i]; // at most n_bytes: the file was checked
    report->n_parameters += n;
    report->parameters_of[view->dtype] += n;
    report->n_bytes += (int64_t)view->n_bytes;
}

static void count_weights(struct lvp_inspect_report *report)
{
    const struct lvp_checkpoint *checkpoint = report->checkpoint;
    for (int role = 0; role < LVP_W_COUNT; role++) {
        const struct lvp_tensor_view *first = lvp_checkpoint_weight(checkpoint, (enum lvp_weight)role, 0);
        bool tied = role == LVP_W_LM_HEAD && first == lvp_checkpoint_weight(checkpoint, LVP_W_EMBED, 0);
        if (first == NULL || tied) continue;
        count_tensor(report, first);
        for (int layer = 1; layer < LVP_MAX_LAYERS; layer++) {
            const struct lvp_tensor_view *view = lvp_checkpoint_weight(checkpoint, (enum lvp_weight)role, layer);
            if (view == NULL || view == first) break; // the last layer, or not per layer
            count_tensor(report, view);
        }
    }
}

static enum lvp_status collect_pruner(const char *dir, const struct lvp_model_config *config,
                                      struct lvp_pruner_weights *pruner)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/lvpruning.safetensors", dir);
    if (n < 0 || n >= (int)sizeof path || access(path, F_OK) != 0) return LVP_OK;
    return lvp_pruner_weights_open(path, config, pruner);
}

// A template that is not known leaves --raw-prompt to run with, so it is no fault of the folder.
static enum lvp_status collect_prompt(const char *dir, struct lvp_inspect_report *report)
{
    const struct lvp_model_config *config = lvp_checkpoint_config(report->checkpoint);
    struct lvp_chat_template *chat;
    enum lvp_status status = lvp_chat_template_load(dir, &chat);
    if (status == LVP_ERR_MODEL) lvp_error_clear();
    if (status != LVP_OK && status != LVP_ERR_MODEL) return status;
    status = lvp_prompt_check_model(report->tokenizer, chat, config->image_token_id, config->text.vocab);
    if (status == LVP_OK && chat != NULL) status = lvp_chat_template_apply(chat, NULL, "TEXT", 1, &report->prompt);
    lvp_chat_template_free(chat);
    return status;
}

enum lvp_status lvp_inspect_report_collect(const char *dir, struct lvp_inspect_report *report)
{
    *report = (struct lvp_inspect_report){.dir = dir};
    LVP_TRY(lvp_checkpoint_open(dir, &report->checkpoint));
    const struct lvp_model_config *config = lvp_checkpoint_config(report->checkpoint);
    count_weights(report);
    LVP_TRY(lvp_checkpoint_hash(report->checkpoint, report->hash));
    LVP_TRY(lvp_tokenizer_open(dir, &report->tokenizer));
    LVP_TRY(collect_pruner(dir, config, &report->pruner));
    return collect_prompt(dir, report);
}

void lvp_inspect_report_free(struct lvp_inspect_report *report)
{
    lvp_pruner_weights_close(&report->pruner);
    lvp_tokenizer_close(report->tokenizer);
    lvp_checkpoint_close(report->checkpoint);
    free(report->prompt);
}

// "bf16", or "f32+bf16" for a checkpoint that mixes them.
static void dtype_names(const struct lvp_inspect_report *report, char names[32])
{
    names[0] = '\0';
    for (int dtype = 0; dtype < LVP_DTYPE_OTHER; dtype++) {
        if (report->parameters_of[dtype] == 0) continue;
        size_t n = strlen(names);
        (void)snprintf(names + n, 32 - n, "%s%s", n > 0 ? "+" : "", lvp_dtype_name((enum lvp_dtype)dtype));
    }
}

static const char *resample_name(enum lvp_resample resample)
{
    return resample == LVP_RESAMPLE_NEAREST ? "nearest" : resample == LVP_RESAMPLE_BILINEAR ? "bilinear" : "bicubic";
}

// The text in quotes, line feeds and quotes escaped.
static void print_quoted(const char *text)
{
    (void)putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '\n')
            (void)printf("\\n");
        else if (*text == '"' || *text == '\\')
            (void)printf("\\%c", *text);
        else
            (void)putchar(*text);
    }
    (void)putchar('"');
}

static void print_numbers(const int *numbers, int n)
{
    for (int i = 0; i < n; i++) (void)printf("%s%d", i > 0 ? ", " : "", numbers[i]);
}

static void print_image_steps(const struct lvp_image_config *image)
{
    if (image->do_pad) (void)printf(", pad to a square");
    if (image->do_resize && image->shortest_edge > 0)
        (void)printf(", shortest edge to %d (%s)", image->shortest_edge, resample_name(image->resample));
    else if (image->do_resize)
        (void)printf(", resize to %d x %d (%s)", image->resize_width, image->resize_height,
                     resample_name(image->resample));
    if (image->do_center_crop) (void)printf(", crop to %d x %d", image->crop_width, image->crop_height);
}

void lvp_inspect_report_print(const struct lvp_inspect_report *report)
{
    const struct lvp_model_config *config = lvp_checkpoint_config(report->checkpoint);
    const struct lvp_vision_config *vision = &config->vision;
    const struct lvp_text_config *text = &config->text;
    char dtypes[32];
    dtype_names(report, dtypes);
    (void)printf("%s: LLaVA\n", report->dir);
    (void)printf("weights    %lld parameters, %s, %.1f MiB, hash %s\n", (long long)report->n_parameters, dtypes,
                 (double)report->n_bytes / 1048576.0, report->hash);
    (void)printf("vision     %d x %d pixels, patch %d, %d layers (%d computed), width %d, %d heads, mlp %d, %s\n",
                 vision->image_size, vision->image_size, vision->patch_size, vision->layers,
                 lvp_vit_layers_used(config), vision->hidden, vision->heads, vision->mlp,
                 lvp_activation_name(vision->activation));
    (void)printf("image      %d tokens", lvp_vision_tokens(config));
    print_image_steps(&config->image);
    (void)printf("\nprojector  %d -> %d, %s\n", lvp_feature_width(config), text->hidden,
                 lvp_activation_name(config->projector_activation));
    (void)printf("decoder    %d layers, width %d, %d heads of %d, %d KV heads, mlp %d, %s, context %d\n", text->layers,
                 text->hidden, text->heads, text->head_dim, text->kv_heads, text->mlp,
                 lvp_activation_name(text->activation), text->max_positions);
    (void)printf("tokens     vocabulary %d, tokenizer %zu, image %d, bos %d, eos ", text->vocab,
                 lvp_tokenizer_size(report->tokenizer), config->image_token_id, config->bos_id);
    print_numbers(config->eos_ids, config->n_eos);
    (void)printf("\nprompt     ");
    if (report->prompt != NULL)
        print_quoted(report->prompt);
    else
        (void)printf("the chat template is not recognised: use --raw-prompt");
    (void)printf("\npruner     ");
    if (report->pruner.n_points > 0) {
        (void)printf("lvpruning.safetensors, after layers ");
        print_numbers(report->pruner.after_layers, report->pruner.n_points);
        (void)printf(", %d head%s, inner width %d\n", report->pruner.heads, report->pruner.heads == 1 ? "" : "s",
                     report->pruner.inner_width);
    } else {
        (void)printf("no weights in the folder\n");
    }
    (void)printf("can run    yes\n");
}

// Paths and what files say need not be UTF-8, JSON must be.
static json_t *text_json_string(const char *text)
{
    json_t *string = json_string(text);
    if (string != NULL) return string;
    char *ascii = strdup(text);
    if (ascii == NULL) return NULL;
    for (char *at = ascii; *at != '\0'; at++)
        if ((unsigned char)*at >= 0x80) *at = '?';
    string = json_string(ascii);
    free(ascii);
    return string;
}

static json_t *numbers_json(const int *numbers, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++) (void)json_array_append_new(list, json_integer(numbers[i]));
    return list;
}

static json_t *vision_json(const struct lvp_model_config *config)
{
    const struct lvp_vision_config *vision = &config->vision;
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:o, s:b}", "image_size", vision->image_size,
                     "patch_size", vision->patch_size, "layers", vision->layers, "layers_computed",
                     lvp_vit_layers_used(config), "hidden", vision->hidden, "heads", vision->heads, "mlp", vision->mlp,
                     "activation", lvp_activation_name(vision->activation), "feature_layers",
                     numbers_json(config->feature_layers, config->n_feature_layers), "class_token",
                     config->select_full);
}

static json_t *text_json(const struct lvp_text_config *text)
{
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:s}", "vocab", text->vocab, "layers",
                     text->layers, "hidden", text->hidden, "heads", text->heads, "kv_heads", text->kv_heads, "head_dim",
                     text->head_dim, "mlp", text->mlp, "max_positions", text->max_positions, "rope_theta",
                     (double)text->rope_theta, "rope_factor", (double)text->rope_factor, "activation",
                     lvp_activation_name(text->activation));
}

static json_t *pruner_json(const struct lvp_pruner_weights *pruner)
{
    if (pruner->n_points == 0) return json_null();
    return json_pack("{s:o, s:i, s:i, s:s}", "after_layers", numbers_json(pruner->after_layers, pruner->n_points),
                     "heads", pruner->heads, "inner_width", pruner->inner_width, "hash", pruner->hash);
}

// Takes over `object`.
static enum lvp_status print_object(json_t *object)
{
    char *line = object == NULL ? NULL : json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (line == NULL) return lvp_fail(LVP_ERR_INTERNAL, "inspect: the report is not valid JSON");
    (void)printf("%s\n", line);
    free(line);
    return LVP_OK;
}

enum lvp_status lvp_inspect_report_print_json(const struct lvp_inspect_report *report)
{
    const struct lvp_model_config *config = lvp_checkpoint_config(report->checkpoint);
    char dtypes[32];
    dtype_names(report, dtypes);
    return print_object(json_pack(
        "{s:o, s:b, s:s, s:s, s:s, s:I, s:I, s:i, s:o, s:o, s:i, s:i, s:o, s:I, s:s?, s:o}", "path",
        text_json_string(report->dir), "can_run", 1, "model_type", "llava", "hash", report->hash, "dtype", dtypes,
        "parameters", (json_int_t)report->n_parameters, "bytes", (json_int_t)report->n_bytes, "tokens_per_image",
        lvp_vision_tokens(config), "vision", vision_json(config), "text", text_json(&config->text), "image_token_id",
        config->image_token_id, "bos_id", config->bos_id, "eos_ids", numbers_json(config->eos_ids, config->n_eos),
        "tokenizer_size", (json_int_t)lvp_tokenizer_size(report->tokenizer), "prompt_template", report->prompt,
        "pruner_weights", pruner_json(&report->pruner)));
}

void lvp_inspect_print_failure(const char *dir)
{
    json_t *answer = json_pack("{s:o, s:b, s:o}", "path", text_json_string(dir), "can_run", 0, "error",
                               text_json_string(lvp_error_text()));
    // The caller reports the failure itself in any case.
    if (print_object(answer) != LVP_OK) return;
}
