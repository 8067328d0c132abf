// A request is what becomes one row of captions.jsonl or errors.jsonl: one sample asked with one prompt.
#ifndef LVP_COORDINATOR_REQUEST_H
#define LVP_COORDINATOR_REQUEST_H

#include "coordinator/input/manifest.h"

// All requests of a run: every sample with every prompt, sample by sample. Borrows both.
struct lvp_requests {
    const struct lvp_manifest *manifest;
    const char *const *prompts; // [n_prompts] templates of --prompt
    int n_prompts;              // 0: the manifest's column, or the default prompt
    const char *score;          // template of the answer that is scored, "{COLUMN}"; NULL: answers are generated
};

#define LVP_DEFAULT_PROMPT "Describe the image."

struct lvp_request {
    struct lvp_sample sample;
    char *id;                      // the sample's, with #k for prompt k where there are several
    char *prompt;                  // TEXT with its placeholders filled; "" for a request that has an error
    char *answer;                  // the one to score; NULL: none
    struct lvp_sample_error error; // bad line, prompt_field_missing: reported instead of run
};

uint64_t lvp_request_count(const struct lvp_requests *requests);

// LVP_ERR_IO when the manifest cannot be read any more. `request` is to be freed after LVP_OK.
enum lvp_status lvp_request_load(const struct lvp_requests *requests, struct lvp_cursor *cursor, uint64_t index,
                                 struct lvp_request *request) LVP_MUST_CHECK;
void lvp_request_free(struct lvp_request *request); // safe on a zeroed one

static inline int lvp_prompts_per_sample(const struct lvp_requests *requests)
{
    return requests->n_prompts > 1 ? requests->n_prompts : 1;
}

// A request of a sample that is at hand: prompt `k` of it. Takes the sample, also when it fails.
enum lvp_status lvp_request_make(const struct lvp_requests *requests, struct lvp_sample sample, int k,
                                 struct lvp_request *request) LVP_MUST_CHECK;

// Hash of id, prompt and, where there is one, the answer to score: what must be the same for a run to be resumed.
uint64_t lvp_request_hash(const struct lvp_request *request);

// Fills `{name}` from the sample's columns (id and image always exist); `{{` and `}}` are braces. Strings go in as they
// are, other values as JSON. A field that is absent or null: prompt_field_missing in *error with LVP_OK, *text NULL.
// *text is malloc'ed.
enum lvp_status lvp_prompt_fill(const char *template_text, const struct lvp_sample *sample, char **text,
                                struct lvp_sample_error *error) LVP_MUST_CHECK;

// LVP_ERR_USAGE for a --prompt whose braces do not match, whatever the sample.
enum lvp_status lvp_prompt_check(const char *template_text) LVP_MUST_CHECK;

// Which members of tar samples prompts need: without --prompt json, for the sample's own, else by their placeholders.
struct lvp_columns lvp_columns_needed(const char *const *prompts, int n_prompts);

#endif
