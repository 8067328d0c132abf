#include "coordinator/caption_identity.h"

#include "coordinator/output/identity.h"

#include <stdio.h>

json_t *lvp_caption_identity(const struct lvp_caption_options *options, const struct lvp_run_hashes *hashes,
                             const char *numeric_path)
{
    char temperature[32], top_p[32], seed[32];
    (void)snprintf(temperature, sizeof temperature, "%.9g", (double)options->temperature);
    (void)snprintf(top_p, sizeof top_p, "%.9g", (double)options->top_p);
    (void)snprintf(seed, sizeof seed, "%llu", (unsigned long long)options->seed);
    json_t *keep = json_array(), *after = json_array();
    for (int s = 0; s < options->prune.n_points; s++) { // 1e-12 shares: exact
        json_array_append_new(keep, json_integer(options->prune.keep[s]));
        json_array_append_new(after, json_integer(options->prune.after[s]));
    }
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:s?, s:b, s:i, s:s, s:s, s:s, s:s, s:s, s:b, s:s*, s:[i,i], s:s}",
        LVP_CONFIG_HASH, hashes->config, "tokenizer", hashes->tokenizer, "model", hashes->model, "pruner",
        lvp_pruner_name(options->pruner), "pruner_weights", hashes->pruner_weights, "keep", keep, "prune_after", after,
        "system", options->system, "raw_prompt", options->raw_prompt, "max_new_tokens", options->max_new_tokens,
        "temperature", temperature, "top_p", top_p, "seed", seed, "dtype", lvp_dtype_name(options->dtype), "weights",
        lvp_dtype_name(options->weights), "logprobs", options->logprobs, "score", options->score, "shard",
        options->shard, options->n_shards, LVP_NUMERIC_PATH, numeric_path);
}
