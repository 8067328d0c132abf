// What the parts of a run share; see run.h. Not for others.
#ifndef LVP_COORDINATOR_RUN_STATE_H
#define LVP_COORDINATOR_RUN_STATE_H

#include "coordinator/run.h"

struct group;

// One request under way.
struct ask {
    uint64_t index;  // of the run
    uint64_t sample; // likewise
    struct lvp_request request;
    struct lvp_prompt prompt;
    struct group *group;
    uint64_t sampling_key, random_key;
    int max_new; // --max-new-tokens, clipped at the context
    int n_tokens;
    int32_t *wanted;            // [max_new] the answer to score; NULL: it is generated
    int n_greedy;               // of its tokens so far, those that would have been chosen
    double placed, first_token; // lvp_now()
    int32_t *tokens;            // [max_new]
    float *logprobs;            // [max_new]
    struct ask *next;           // in the group
};

// One sample with its prompts, and those that follow it with the same images: these are prepared and encoded once for
// all of them.
struct group {
    int replica;
    int n_images;
    int32_t *slots; // [n_images]
    int n_unprepared, n_unencoded;
    int n_unstarted; // requests whose prefill has not come back: the parked rows stay until then
    struct lvp_sample_error error;
    bool alone;      // nothing else may be under way
    uint64_t sample; // the first one
    int n_samples;
    struct ask *asks;           // requests that are not finished
    struct group *next, **link; // of run->groups; link points to what points here
    struct group *next_again;   // of run->again
};

struct replica {
    struct lvp_scheduler *scheduler;
    struct group **slot_group; // [image_slots] NULL: free
    int n_free_slots;
    int n_asks;         // placed and not finished
    int32_t *to_encode; // ring [image_slots]: prepared slots, in order
    int first_to_encode, n_to_encode;
    int32_t *encoding; // ring [image_slots]: slots of the encode jobs in flight, in order
    int first_encoding, n_encoding;
    int *encode_sizes; // ring [max_encodes]: images of each encode job in flight
    int first_encode, n_encodes;
    uint64_t encode_number, step_number;
    struct lvp_planned_seq *planned; // ring [max_steps][max_seqs]
    int *planned_sizes;              // ring [max_steps]
    int first_step, n_steps;
    int n_preparing;           // images
    struct lvp_patience stuck; // since something last moved
    uint64_t moves;            // ticks of its workers, when it last moved
};

struct run {
    const struct lvp_run_options *options;
    struct lvp_run_totals totals;
    uint64_t n_requests, next, n_active; // next request to look at; requests taken and not finished
    uint64_t oldest;                     // all requests before it are finished
    struct lvp_request ahead;            // request `next`; its prompt is NULL until it has been read
    bool *finished;                      // ring [window]: request i at i % window
    struct group *groups;                // all that are alive
    struct group *held;                  // of them, the one that waits for image slots
    struct group *again;                 // of them, those to be tried alone because memory ran out
    int n_placed;                        // of them, those that have image slots or run
    bool alone;                          // the one that is placed must stay alone
    bool draining;
    double drain_deadline, watched; // lvp_now()
    int max_encodes;
    struct replica *replicas; // [n_replicas]
    // building one Step message
    Lvp__Sequence *sequences;          // [max_seqs]
    Lvp__Sequence **sequence_pointers; // [max_seqs]
    bool *ended;                       // [max_seqs]
    int32_t *released;                 // [max_seqs]
};

// run_groups.c: from requests to groups, and back to rows
bool lvp_run_may_take(const struct run *run); // whether another sample may be begun
enum lvp_status lvp_run_build_group(struct run *run) LVP_MUST_CHECK;
enum lvp_status lvp_run_finish_ask(struct run *run, struct ask *ask, const struct lvp_sample_error *error,
                                   bool stopped) LVP_MUST_CHECK;
void lvp_run_set_alone(struct run *run, const struct group *group, bool alone);
void lvp_run_release_images(struct run *run, struct group *group); // gives its slots back
void lvp_run_free_group(struct group *group);

// run_images.c: from groups to rows parked at `merge`
enum lvp_status lvp_run_admit(struct run *run, bool *moved) LVP_MUST_CHECK;
enum lvp_status lvp_run_send_encodes(struct run *run, bool *moved) LVP_MUST_CHECK;
enum lvp_status lvp_run_prepared(struct run *run, int replica, const Lvp__Prepared *message) LVP_MUST_CHECK;
enum lvp_status lvp_run_encoded(struct run *run, int replica, const Lvp__EncodeDone *message) LVP_MUST_CHECK;

// run_watch.c: whether the workers move on
enum lvp_status lvp_run_watch(struct run *run) LVP_MUST_CHECK;

// run_steps.c: from parked rows to captions
enum lvp_status lvp_run_send_steps(struct run *run, bool *moved) LVP_MUST_CHECK;
enum lvp_status lvp_run_step_done(struct run *run, int replica, const Lvp__StepDone *message) LVP_MUST_CHECK;

#endif
