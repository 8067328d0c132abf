#include "coordinator/scheduler.h"

#include <stdlib.h>

struct waiting {
    void *request;
    int n_text, n_images, max_new;
};

struct sequence {
    void *request;
    int pages[LVP_MAX_DEPTHS]; // reserved
};

struct flight {
    int n;
    int *slots; // [max_seqs]
};

// A ring of ints with a fixed capacity.
struct ring {
    int *items;
    int first, n, capacity;
};

struct lvp_scheduler {
    struct lvp_scheduler_config config;
    struct waiting *queue; // ring, grows
    size_t queue_first, n_queued, queue_capacity;
    struct sequence *seqs; // [max_seqs]
    int free_pages[LVP_MAX_DEPTHS];
    struct ring free_slots;
    struct ring idle; // slots of sequences that wait for their next decode step, oldest first
    int n_running;
    struct flight *flights; // [max_steps] ring
    int first_flight, n_flights;
};

static void push(struct ring *ring, int item)
{
    ring->items[(ring->first + ring->n++) % ring->capacity] = item;
}

static int pop(struct ring *ring)
{
    int item = ring->items[ring->first];
    ring->first = (ring->first + 1) % ring->capacity;
    ring->n--;
    return item;
}

enum lvp_status lvp_scheduler_create(const struct lvp_scheduler_config *config, struct lvp_scheduler **result)
{
    struct lvp_scheduler *s = calloc(1, sizeof *s);
    if (s == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the scheduler");
    size_t n = (size_t)config->max_seqs, steps = (size_t)config->max_steps;
    s->config = *config;
    s->seqs = calloc(n, sizeof *s->seqs);
    s->flights = calloc(steps, sizeof *s->flights);
    s->free_slots = (struct ring){.items = calloc(n, sizeof(int)), .capacity = config->max_seqs};
    s->idle = (struct ring){.items = calloc(n, sizeof(int)), .capacity = config->max_seqs};
    bool complete = s->seqs != NULL && s->flights != NULL && s->free_slots.items != NULL && s->idle.items != NULL;
    for (size_t i = 0; complete && i < steps; i++) {
        s->flights[i].slots = calloc(n, sizeof(int));
        complete = s->flights[i].slots != NULL;
    }
    if (!complete) {
        lvp_scheduler_destroy(s);
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the scheduler");
    }
    for (int slot = 0; slot < config->max_seqs; slot++) push(&s->free_slots, slot);
    for (int d = 0; d <= config->prune.n_points; d++) s->free_pages[d] = config->kv_pages[d];
    *result = s;
    return LVP_OK;
}

void lvp_scheduler_destroy(struct lvp_scheduler *s)
{
    if (s == NULL) return;
    for (int i = 0; s->flights != NULL && i < s->config.max_steps; i++) free(s->flights[i].slots);
    free(s->flights);
    free(s->queue);
    free(s->seqs);
    free(s->free_slots.items);
    free(s->idle.items);
    free(s);
}

static int rows_at(const struct lvp_scheduler *s, int n_text, int n_images, int depth)
{
    return n_text + n_images * s->config.prune.rows[depth];
}

static int pages_at(const struct lvp_scheduler *s, int n_text, int n_images, int max_new, int depth)
{
    return (rows_at(s, n_text, n_images, depth) + max_new + s->config.page_slots - 1) / s->config.page_slots;
}

bool lvp_scheduler_fits(const struct lvp_scheduler *s, int n_text, int n_images, int max_new)
{
    for (int d = 0; d <= s->config.prune.n_points; d++)
        if (pages_at(s, n_text, n_images, max_new, d) > s->config.kv_pages[d]) return false;
    return true;
}

static enum lvp_status grow_queue(struct lvp_scheduler *s)
{
    size_t capacity = s->queue_capacity == 0 ? 64 : 2 * s->queue_capacity;
    struct waiting *queue = calloc(capacity, sizeof *queue);
    if (queue == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the queue of requests");
    for (size_t i = 0; i < s->n_queued; i++) queue[i] = s->queue[(s->queue_first + i) % s->queue_capacity];
    free(s->queue);
    s->queue = queue;
    s->queue_first = 0;
    s->queue_capacity = capacity;
    return LVP_OK;
}

enum lvp_status lvp_scheduler_add(struct lvp_scheduler *s, void *request, int n_text, int n_images, int max_new)
{
    if (!lvp_scheduler_fits(s, n_text, n_images, max_new))
        return lvp_fail(LVP_ERR_INTERNAL, "a request that can never run was queued");
    if (s->n_queued == s->queue_capacity) LVP_TRY(grow_queue(s));
    s->queue[(s->queue_first + s->n_queued++) % s->queue_capacity] =
        (struct waiting){.request = request, .n_text = n_text, .n_images = n_images, .max_new = max_new};
    return LVP_OK;
}

static bool has_room(const struct lvp_scheduler *s, const struct waiting *next)
{
    if (s->free_slots.n == 0) return false;
    for (int d = 0; d <= s->config.prune.n_points; d++)
        if (pages_at(s, next->n_text, next->n_images, next->max_new, d) > s->free_pages[d]) return false;
    return true;
}

// Takes a slot and pages for the request at the head of the queue if there is room; -1 if not.
static int admit(struct lvp_scheduler *s, const struct waiting *next)
{
    if (!has_room(s, next)) return -1;
    int slot = pop(&s->free_slots);
    s->seqs[slot].request = next->request;
    for (int d = 0; d <= s->config.prune.n_points; d++) {
        s->seqs[slot].pages[d] = pages_at(s, next->n_text, next->n_images, next->max_new, d);
        s->free_pages[d] -= s->seqs[slot].pages[d];
    }
    s->queue_first = (s->queue_first + 1) % s->queue_capacity;
    s->n_queued--;
    s->n_running++;
    return slot;
}

int lvp_scheduler_next(struct lvp_scheduler *s, bool prompts_coming, struct lvp_planned_seq *seqs)
{
    if (s->n_flights == s->config.max_steps) return 0;
    // An equal share of the running sequences for each stage: one group computes in every stage at any time.
    int share = (s->n_running + s->config.n_stages - 1) / s->config.n_stages;
    if (s->n_queued == 0 || !has_room(s, &s->queue[s->queue_first])) { // no prompt: decode rows wait for company
        bool all_busy = s->n_flights >= s->config.n_stages;
        if (prompts_coming && s->n_queued == 0 && s->free_slots.n > 0) return 0;
        if (all_busy && s->idle.n < share) return 0;
    }
    struct flight *flight = &s->flights[(s->first_flight + s->n_flights) % s->config.max_steps];
    int n = 0, n_rows = 0;
    while (s->idle.n > 0 && n < share && n_rows < s->config.batch_tokens) {
        int slot = pop(&s->idle);
        flight->slots[n] = slot;
        seqs[n++] = (struct lvp_planned_seq){.request = s->seqs[slot].request, .slot = slot};
        n_rows++;
    }
    while (s->n_queued > 0 && n < s->config.max_seqs) {
        const struct waiting next = s->queue[s->queue_first];
        int rows = rows_at(s, next.n_text, next.n_images, 0);
        if (n > 0 && n_rows + rows > s->config.batch_tokens) break;
        int slot = admit(s, &next);
        if (slot < 0) break;
        flight->slots[n] = slot;
        seqs[n++] = (struct lvp_planned_seq){.request = next.request, .slot = slot, .prefill = true};
        n_rows += rows;
    }
    if (n == 0) return 0;
    flight->n = n;
    s->n_flights++;
    return n;
}

enum lvp_status lvp_scheduler_step_done(struct lvp_scheduler *s, const bool *finished)
{
    if (s->n_flights == 0) return lvp_fail(LVP_ERR_INTERNAL, "a step ended that was not in flight");
    const struct flight *flight = &s->flights[s->first_flight];
    for (int i = 0; i < flight->n; i++) {
        int slot = flight->slots[i];
        if (!finished[i]) {
            push(&s->idle, slot);
            continue;
        }
        for (int d = 0; d <= s->config.prune.n_points; d++) s->free_pages[d] += s->seqs[slot].pages[d];
        push(&s->free_slots, slot);
        s->n_running--;
    }
    s->first_flight = (s->first_flight + 1) % s->config.max_steps;
    s->n_flights--;
    return LVP_OK;
}

int lvp_scheduler_in_flight(const struct lvp_scheduler *s)
{
    return s->n_flights;
}

int lvp_scheduler_load(const struct lvp_scheduler *s)
{
    return (int)s->n_queued + s->n_running;
}

int lvp_scheduler_running(const struct lvp_scheduler *s)
{
    return s->n_running;
}
