// Parity with transformers: every golden case and scenario, in f32, on every kernel set of this CPU and on the
// reference. Protects: loading of every layout, the model's arithmetic, pruning decisions, positions, KV by layer
// group, decoding.
#include "tests/model/chain.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define CASES "tests/golden/models"

enum { NEW_TOKENS = 8 };
static const double max_nmse = 1e-9;
static const char *const kernel_sets[] = {"ref", "portable", "avx2", "avx512", "avx512bf16"};
static double worst_nmse;

static const struct lvp_tensor_view *find(const struct lvp_safetensors *golden, const char *scenario, const char *name)
{
    char key[128];
    (void)snprintf(key, sizeof key, "%s.%s", scenario, name);
    return lvp_safetensors_find(golden, key);
}

static float *values(const struct lvp_tensor_view *tensor, size_t *n)
{
    *n = tensor->n_bytes / sizeof(float);
    float *copy = malloc(tensor->n_bytes + 1);
    memcpy(copy, tensor->data, tensor->n_bytes);
    return copy;
}

static double nmse(const float *x, const float *truth, size_t n)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)x[i] - truth[i]) * ((double)x[i] - truth[i]);
        power += (double)truth[i] * truth[i];
    }
    return error / power;
}

// Rows that are left after the last layer, and the logits of the text rows among them.
static void compare_prefill(struct lvp_chain *chain, const struct lvp_safetensors *golden, const char *scenario,
                            const char *what)
{
    size_t n_rows, n_text, n_logits, vocab = (size_t)chain->config->text.vocab;
    float *rows = values(find(golden, scenario, "rows"), &n_rows),
          *text = values(find(golden, scenario, "text_rows"), &n_text);
    float *truth = values(find(golden, scenario, "logits"), &n_logits);
    float *logits = malloc(n_rows * vocab * sizeof *logits);
    int32_t *positions = malloc(n_rows * sizeof *positions);
    int n = 0;
    assert_int_equal(lvp_stage_all_logits(chain_last(chain), logits, positions, &n), LVP_OK);
    if ((size_t)n != n_rows) fail_msg("%s: %d rows are left, %zu in the golden", what, n, n_rows);
    for (size_t i = 0; i < n_rows; i++)
        if (positions[i] != (int)rows[i])
            fail_msg("%s: row %zu has position %d, not %d", what, i, positions[i], (int)rows[i]);
    size_t t = 0;
    for (size_t i = 0; i < n_rows && t < n_text; i++)
        if ((int)rows[i] == (int)text[t]) memmove(logits + t++ * vocab, logits + i * vocab, vocab * sizeof *logits);
    double error = nmse(logits, truth, n_logits);
    if (error > worst_nmse) worst_nmse = error;
    if (!(error <= max_nmse)) fail_msg("%s: logits differ, NMSE %.3g", what, error);
    free(rows);
    free(text);
    free(truth);
    free(logits);
    free(positions);
}

static void run_scenario(const char *model, const struct lvp_safetensors *golden, const char *scenario,
                         const char *kernel_set)
{
    char what[512], key[128];
    (void)snprintf(what, sizeof what, "%s %s on %s", model, scenario, kernel_set);
    (void)snprintf(key, sizeof key, "%s.keep", scenario);
    const char *keep = lvp_safetensors_metadata(golden, key);
    enum lvp_pruner_kind pruner = LVP_PRUNER_NONE;
    (void)snprintf(key, sizeof key, "%s.pruner", scenario);
    if (keep != NULL) assert_int_equal(lvp_pruner_find(lvp_safetensors_metadata(golden, key), &pruner), LVP_OK);
    struct lvp_chain chain;
    struct chain_options options = {.model = model,
                                    .kernel_set = kernel_set,
                                    .dtype = LVP_F32,
                                    .keep = keep,
                                    .pruner = pruner,
                                    .threads = 1,
                                    .max_rows = 1024,
                                    .max_seqs = 2};
    chain_open(&options, &chain);
    size_t n_ids, n_pixels, n_tokens;
    float *ids = values(find(golden, scenario, "prompt_ids"), &n_ids);
    float *pixels = values(find(golden, scenario, "pixel_values"), &n_pixels);
    float *tokens = values(find(golden, scenario, "tokens"), &n_tokens);
    float *logprobs = values(find(golden, scenario, "logprobs"), &n_tokens);
    int n_images = (int)find(golden, scenario, "pixel_values")->shape[0];
    int n_rows = (int)find(golden, scenario, "input_ids")->shape[0];
    int32_t slots[8] = {3, 1, 4, 0, 5, 9, 2, 6}, prompt[256], token = 0;
    float logprob = 0;
    for (size_t i = 0; i < n_ids; i++) prompt[i] = (int32_t)ids[i];
    chain_encode(&chain, n_images, pixels, slots);
    struct lvp_step_seq seq = {.slot = 1,
                               .prefill = true,
                               .max_new = NEW_TOKENS,
                               .n_ids = (int)n_ids,
                               .ids = prompt,
                               .n_images = n_images,
                               .image_slots = slots,
                               .random_key = 0x123456789abcdef,
                               .top_p = 1};
    chain_step(&chain, &seq, 1, &token, &logprob);
    compare_prefill(&chain, golden, scenario, what);
    for (int t = 0; t < NEW_TOKENS; t++) {
        if (token != (int32_t)tokens[t]) fail_msg("%s: token %d is %d, not %d", what, t, token, (int32_t)tokens[t]);
        if (fabsf(logprob - logprobs[t]) > 1e-4f)
            fail_msg("%s: logprob %d is %g, not %g", what, t, (double)logprob, (double)logprobs[t]);
        int32_t previous = token;
        struct lvp_step_seq decode = {.slot = 1, .position = n_rows + t, .n_ids = 1, .ids = &previous, .top_p = 1};
        if (t + 1 < NEW_TOKENS) chain_step(&chain, &decode, 1, &token, &logprob);
    }
    free(ids);
    free(pixels);
    free(tokens);
    free(logprobs);
    lvp_chain_close(&chain);
}

static void run_case(const char *name, const char *kernel_set)
{
    char model[300], path[400], scenarios[200];
    (void)snprintf(model, sizeof model, CASES "/%s", name);
    (void)snprintf(path, sizeof path, "%s/golden.safetensors", model);
    struct lvp_safetensors *golden = NULL;
    if (lvp_safetensors_open(path, &golden) != LVP_OK) fail_msg("%s", lvp_error_text());
    (void)snprintf(scenarios, sizeof scenarios, "%s", lvp_safetensors_metadata(golden, "scenarios"));
    char *rest = NULL;
    for (char *scenario = strtok_r(scenarios, ",", &rest); scenario != NULL; scenario = strtok_r(NULL, ",", &rest))
        run_scenario(model, golden, scenario, kernel_set);
    lvp_safetensors_close(golden);
}

static void check_kernel_set(void **state)
{
    const char *kernel_set = *state;
    struct lvp_backend_limits limits = {1, 1, 1, 1};
    struct lvp_backend *probe = NULL;
    if (strcmp(kernel_set, "ref") != 0 && lvp_cpu_backend_open(kernel_set, LVP_F32, 1, &limits, &probe) != LVP_OK) {
        print_message("%s: skipped, this CPU does not have it\n", kernel_set);
        lvp_error_clear();
        skip();
    }
    if (probe != NULL) probe->ops->close(probe);
    DIR *folder = opendir(CASES);
    assert_non_null(folder);
    int n = 0;
    worst_nmse = 0;
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] == '.') continue;
        run_case(entry->d_name, kernel_set);
        n++;
    }
    closedir(folder);
    assert_true(n >= 12);
    print_message("%s: %d checkpoints, worst NMSE of logits %.2g\n", kernel_set, n, worst_nmse);
}

int main(void)
{
    struct CMUnitTest tests[sizeof kernel_sets / sizeof *kernel_sets];
    for (size_t i = 0; i < sizeof kernel_sets / sizeof *kernel_sets; i++)
        tests[i] = (struct CMUnitTest){
            .name = kernel_sets[i], .test_func = check_kernel_set, .initial_state = (void *)(size_t)kernel_sets[i]};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
