// The run itself: takes requests in order, has their images prepared and encoded, schedules steps over the replicas,
// and hands finished rows to the output. Everything happens on one thread, driven by the workers' messages.
//
//   request -> group (one sample, all its prompts) -> image slots -> Prepare -> Prepared -> Encode -> EncodeDone
//           -> scheduler -> Step ... StepDone -> caption
//
// Nothing waits in a circle: a group takes all its image slots before its first Prepare, a sequence takes all its KV
// before its prefill, and each is given back by something that needs neither.
#ifndef LVP_COORDINATOR_RUN_H
#define LVP_COORDINATOR_RUN_H

#include "common/prompt.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"
#include "coordinator/world.h"

enum { LVP_ENCODE_IMAGES = 8 }; // images of one encode job at most

// Where rows go. `done` tells which requests an earlier run has finished.
struct lvp_run_sink {
    void *context;
    bool (*done)(void *context, uint64_t index); // asked in order
    enum lvp_status (*error)(void *context, uint64_t index, const struct lvp_request *request,
                             const struct lvp_sample_error *error);
    enum lvp_status (*caption)(void *context, uint64_t index, const struct lvp_request *request,
                               const struct lvp_prompt *prompt, const int32_t *tokens, const float *logprobs,
                               int n_tokens, bool stopped);
    enum lvp_status (*tick)(void *context); // often; writes, syncs and shows progress when it is time
    uint64_t window;                        // requests that may be under way past the oldest unfinished one
};

struct lvp_run_options {
    struct lvp_world *world; // set up
    const struct lvp_model_config *config;
    const struct lvp_tokenizer *tokenizer;
    const struct lvp_chat_template *chat; // NULL: raw prompts
    const struct lvp_requests *requests;
    const char *system; // NULL: none
    int max_new_tokens;
    float temperature, top_p;
    uint64_t seed;
    struct lvp_scheduler_config scheduler; // of each replica
    int image_slots;                       // of each replica
    struct lvp_run_sink sink;
};

struct lvp_run_totals {
    int64_t generated_tokens, prompt_rows, steps, images;
};

enum lvp_status lvp_run(const struct lvp_run_options *options, struct lvp_run_totals *totals) LVP_MUST_CHECK;

#endif
