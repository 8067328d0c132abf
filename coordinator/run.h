// The run itself: takes requests in order, has their images prepared and encoded, schedules steps over the replicas,
// and hands finished rows to the output. Everything happens on one thread, driven by the workers' messages.
//
//   request -> group (all prompts of a sample, and of those that follow it with the same images) -> image slots
//           -> Prepare -> Prepared -> Encode -> EncodeDone -> scheduler -> Step ... StepDone -> caption
//
// Nothing waits in a circle: a group takes all its image slots before its first Prepare, a sequence takes all its KV
// before its prefill, and each is given back by something that needs neither.
//
// A sample that has brought ranks down runs alone: nothing else is under way meanwhile, so that its next crash is
// surely its own. So does one whose image did not fit the memory beside others.
#ifndef LVP_COORDINATOR_RUN_H
#define LVP_COORDINATOR_RUN_H

#include "common/prompt.h"
#include "coordinator/deployment.h"
#include "coordinator/input/request.h"

enum { LVP_ALONE_AFTER = 2 }; // crashes after which a sample is tried alone

// What is under way, for people.
struct lvp_run_gauges {
    int preparing;                    // images that are read and decoded
    int waiting;                      // requests whose images are ready or being encoded
    int running;                      // requests in steps
    int64_t generated_tokens, images; // so far
};

// Where requests come from: sample by sample, every prompt of each.
struct lvp_run_source {
    void *context;
    uint64_t n;    // requests
    int n_prompts; // of a sample
    enum lvp_status (*load)(void *context, uint64_t index, struct lvp_request *request);
    // Its token ids; a fault of the request goes to *error with LVP_OK. `prompt` comes zeroed.
    enum lvp_status (*prompt)(void *context, const struct lvp_request *request, struct lvp_prompt *prompt,
                              struct lvp_sample_error *error);
    // The ids of the answer to score, its end included; called where the request has one. *ids is malloc'ed.
    enum lvp_status (*answer)(void *context, const struct lvp_request *request, const struct lvp_prompt *prompt,
                              int32_t **ids, int *n_ids, struct lvp_sample_error *error);
};

// What came of a request. Borrowed.
struct lvp_answer {
    const int32_t *tokens; // [n_tokens] generated, or those that were scored
    const float *logprobs; // [n_tokens]
    int n_tokens;
    bool stopped; // it ended by itself
    bool scored;  // it was given
    int n_greedy; // scored: tokens that greedy decoding would have chosen in their places
};

// Where rows go. `done` tells which requests an earlier run has finished.
struct lvp_run_sink {
    void *context;
    bool (*done)(void *context, uint64_t index); // asked in order
    enum lvp_status (*error)(void *context, uint64_t index, const struct lvp_request *request,
                             const struct lvp_sample_error *error);
    enum lvp_status (*caption)(void *context, uint64_t index, const struct lvp_request *request,
                               const struct lvp_prompt *prompt, const struct lvp_answer *answer);
    bool (*full)(void *context); // no request may be started for now
    // Ranks that this sample has brought down in earlier lives of the run; *alone: the last one while it was alone.
    int (*crashes)(void *context, uint64_t sample, bool *alone);
    enum lvp_status (*tick)(void *context,
                            const struct lvp_run_gauges *gauges); // often; shows progress when it is time
    uint64_t window; // requests that may be under way past the oldest unfinished one
};

struct lvp_run_options {
    struct lvp_world *world; // set up
    const struct lvp_deployment *deployment;
    int max_new_tokens;
    bool ignore_eos; // answers do not end before max_new_tokens
    float temperature, top_p;
    uint64_t seed;
    const atomic_int *drain; // 1: finish what is under way, 2: stop; NULL: never
    double drain_seconds;
    struct lvp_run_source source;
    struct lvp_run_sink sink;
};

struct lvp_run_totals {
    int64_t generated_tokens, prompt_rows, steps, images;
    int64_t answers, later_tokens; // finished requests; their tokens but the first
    double first_token_seconds;    // summed over answers: from the image's Prepare to the first token
    double later_seconds;          // from there to the last token
};

// LVP_OK when every request is finished; LVP_DRAINED, LVP_STOPPED when a signal ended it before; LVP_ERR_LOST naming a
// rank that is silent or stuck.
enum lvp_status lvp_run(const struct lvp_run_options *options, struct lvp_run_totals *totals) LVP_MUST_CHECK;

#endif
