// Continuous batching for one replica: which sequences run in the next step. A pure state machine: it counts KV pages
// and sequence slots exactly as the stages do (by keep ratios, even where an image keeps less), so admission here means
// room there. No MPI.
//
// - A request is prefilled whole, in one step, and decoded one row at a time in later ones; never in two steps at once.
// - Its KV for prompt and answer is reserved before the prefill, on every layer group; nothing is preempted.
// - Up to max_steps steps are in flight, so that every stage has work; decoding sequences are spread over the stages.
// - A prompt of more rows than the budget runs in a step of its own.
#ifndef LVP_COORDINATOR_SCHEDULER_H
#define LVP_COORDINATOR_SCHEDULER_H

#include "common/step.h"

struct lvp_scheduler;

struct lvp_scheduler_config {
    struct lvp_prune_counts prune;
    int n_stages;                 // stages that take part in steps
    int max_steps;                // steps in flight
    int max_seqs;                 // sequence slots
    int kv_pages[LVP_MAX_DEPTHS]; // pages of each layer group
    int page_slots;               // KV slots in a page
    int batch_tokens;             // rows of a step at depth 0
};

// One sequence of a planned step.
struct lvp_planned_seq {
    void *request; // as given to lvp_scheduler_add
    int slot;
    bool prefill;
};

enum lvp_status lvp_scheduler_create(const struct lvp_scheduler_config *config,
                                     struct lvp_scheduler **scheduler) LVP_MUST_CHECK;
void lvp_scheduler_destroy(struct lvp_scheduler *scheduler); // NULL is allowed

// Whether a request could ever run: its KV fits the pools when nothing else is there.
bool lvp_scheduler_fits(const struct lvp_scheduler *scheduler, int n_text, int n_images, int max_new);

// Queues a request whose image rows are parked. n_text: prompt rows that are no image's.
enum lvp_status lvp_scheduler_add(struct lvp_scheduler *scheduler, void *request, int n_text, int n_images,
                                  int max_new) LVP_MUST_CHECK;

// Plans the next step: seqs has room for max_seqs. Returns their number, 0 when nothing can run now. prompts_coming:
// images are being encoded, so lvp_scheduler_add will be called without any further step. Decode rows wait for such a
// prompt: alone they would read all weights for a few rows.
int lvp_scheduler_next(struct lvp_scheduler *scheduler, bool prompts_coming, struct lvp_planned_seq *seqs);

// The oldest step in flight is done; finished[i] says that its i-th sequence needs no further step: its slot and pages
// are free at once. LVP_ERR_INTERNAL when no step is in flight.
enum lvp_status lvp_scheduler_step_done(struct lvp_scheduler *scheduler, const bool *finished) LVP_MUST_CHECK;

int lvp_scheduler_in_flight(const struct lvp_scheduler *scheduler); // steps
int lvp_scheduler_load(const struct lvp_scheduler *scheduler);      // requests queued or running
int lvp_scheduler_running(const struct lvp_scheduler *scheduler);   // of them, those in slots

#endif
