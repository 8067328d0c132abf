#include "coordinator/simulate.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

// Jobs of a lane are numbered in order; a lane never holds more than RING of them.
// ENOUGH times the requests in flight are simulated; what more there is goes on as the middle of these did.
enum { RING = 128, BUFFERS = 2, STEPS = 0, ENCODES = 1, LANES = 2, ENOUGH = 12 };

struct request {
    int n_tokens; // generated
};

struct job {
    int n_images;                 // of an encode job
    struct lvp_planned_seq *seqs; // [max_seqs] of a step
    int n_seqs;
    struct lvp_step_load load;
};

// A stage's place in a lane: how many jobs have been announced, come in, and been computed.
struct station {
    long announced, arrived, computed;
    long sent;      // transfers to the next stage that have ended
    bool sending;   // number `sent` is under way
    double sent_at; // when it ends
};

struct worker {
    int node, threads;
    struct lvp_device_rates rates;
    struct station lanes[LANES];
    int running; // lane of the job that is computed; -1: none
    double left; // seconds of it, at full speed
    double busy; // seconds so far
    double sent_bytes, link_seconds;
};

struct replica {
    struct lvp_scheduler *scheduler;
    struct worker *stages; // [n_stages]
    struct job jobs[LANES][RING];
    long done[LANES];
    int free_slots, to_encode;
    struct request *encoding[RING * LVP_ENCODE_IMAGES]; // ring, in order of jobs
    int first_encoding, n_encoding;
};

struct simulation {
    const struct lvp_simulation_input *in;
    const struct lvp_deployment *deployment;
    int n_replicas; // that are simulated
    struct replica *replicas;
    int *node_threads;        // [n_nodes] threads that compute
    struct request *requests; // [images]
    int n_nodes;              // that hold them
    int images, next, finished;
    double quarter, three_quarters; // when so many were finished
    bool *ended;                    // [max_seqs]
    double now;
};

static bool takes_part(const struct simulation *s, int lane, int stage)
{
    return lane == STEPS ? stage >= s->deployment->merge_stage : stage <= s->deployment->merge_stage;
}

static int first_stage(const struct simulation *s, int lane)
{
    return lane == STEPS ? s->deployment->merge_stage : 0;
}

static int last_stage(const struct simulation *s, int lane)
{
    return lane == STEPS ? s->deployment->n_stages - 1 : s->deployment->merge_stage;
}

static double job_seconds(const struct simulation *s, const struct worker *worker, int stage, int lane,
                          const struct job *job)
{
    const struct lvp_partition *partition = &s->deployment->partition;
    double seconds = 0;
    for (int b = partition->first[stage]; b < partition->first[stage + 1]; b++)
        seconds += lane == STEPS ? lvp_block_step_seconds(s->in->workload, &worker->rates, b, &job->load)
                                 : lvp_block_encode_seconds(s->in->workload, &worker->rates, b, job->n_images);
    return seconds;
}

// Bytes that a job sends over the cut behind a stage.
static double job_bytes(const struct simulation *s, int stage, int lane, const struct job *job)
{
    int end = s->deployment->partition.first[stage + 1];
    struct lvp_block_cost cost = lvp_block_cost(s->in->workload, end - 1);
    double image = (double)(cost.prefill_out.payload + cost.prefill_out.framing);
    if (lane == ENCODES) return job->n_images * image;
    return job->load.n_prompts * image +
           job->load.n_decodes * (double)(cost.decode_out.payload + cost.decode_out.framing);
}

static struct lvp_link link_behind(const struct simulation *s, const struct replica *replica, int stage)
{
    bool local = replica->stages[stage].node == replica->stages[stage + 1].node;
    return local ? s->in->cluster->local : s->in->cluster->link;
}

// --- Rank 0 --------------------------------------------------------------------------------------------------------

static void announce(struct simulation *s, struct replica *replica, int lane)
{
    for (int stage = first_stage(s, lane); stage <= last_stage(s, lane); stage++)
        replica->stages[stage].lanes[lane].announced++;
    replica->stages[first_stage(s, lane)].lanes[lane].arrived++;
}

static void admit(struct simulation *s)
{
    while (s->next < s->images) {
        struct replica *best = &s->replicas[0];
        for (int r = 1; r < s->n_replicas; r++)
            if (s->replicas[r].free_slots > best->free_slots) best = &s->replicas[r];
        if (best->free_slots == 0) return;
        best->free_slots--;
        int at = (best->first_encoding + best->n_encoding + best->to_encode++) % (RING * LVP_ENCODE_IMAGES);
        best->encoding[at] = &s->requests[s->next++];
    }
}

static void send_encodes(struct simulation *s, struct replica *replica)
{
    struct station *first = &replica->stages[0].lanes[ENCODES];
    int most = s->deployment->encode_images;
    while (replica->to_encode > 0 && first->announced - replica->done[ENCODES] < s->deployment->merge_stage + 2) {
        struct job *job = &replica->jobs[ENCODES][first->announced % RING];
        job->n_images = replica->to_encode < most ? replica->to_encode : most;
        replica->to_encode -= job->n_images;
        replica->n_encoding += job->n_images;
        announce(s, replica, ENCODES);
    }
}

static void send_steps(struct simulation *s, struct replica *replica)
{
    struct station *first = &replica->stages[first_stage(s, STEPS)].lanes[STEPS];
    for (;;) {
        struct job *job = &replica->jobs[STEPS][first->announced % RING];
        job->n_seqs = lvp_scheduler_next(replica->scheduler, replica->n_encoding > 0, job->seqs);
        if (job->n_seqs == 0) return;
        job->load = (struct lvp_step_load){0};
        for (int i = 0; i < job->n_seqs; i++) {
            const struct request *request = job->seqs[i].request;
            if (job->seqs[i].prefill) {
                job->load.n_prompts++;
                continue;
            }
            job->load.n_decodes++;
            job->load.n_images++;
            job->load.decode_text += s->in->workload->text_tokens + request->n_tokens;
        }
        announce(s, replica, STEPS);
    }
}

static enum lvp_status take_encoded(struct simulation *s, struct replica *replica, const struct job *job)
{
    for (int i = 0; i < job->n_images; i++) {
        struct request *request = replica->encoding[replica->first_encoding];
        replica->first_encoding = (replica->first_encoding + 1) % (RING * LVP_ENCODE_IMAGES);
        replica->n_encoding--;
        LVP_TRY(lvp_scheduler_add(replica->scheduler, request, s->in->workload->text_tokens, 1,
                                  s->in->workload->new_tokens));
    }
    return LVP_OK;
}

static enum lvp_status take_step(struct simulation *s, struct replica *replica, const struct job *job)
{
    for (int i = 0; i < job->n_seqs; i++) {
        struct request *request = job->seqs[i].request;
        if (job->seqs[i].prefill) replica->free_slots++;
        s->ended[i] = ++request->n_tokens >= s->in->workload->new_tokens;
        s->finished += s->ended[i];
    }
    return lvp_scheduler_step_done(replica->scheduler, s->ended);
}

// --- Stages --------------------------------------------------------------------------------------------------------

// Starts what can start. The buffers of a hop hold BUFFERS jobs at either end.
static void start(const struct simulation *s, struct replica *replica, int stage)
{
    struct worker *worker = &replica->stages[stage];
    for (int lane = 0; lane < LANES && worker->running < 0; lane++) {
        struct station *here = &worker->lanes[lane];
        bool sends = takes_part(s, lane, stage) && stage < last_stage(s, lane);
        if (!takes_part(s, lane, stage) || here->arrived <= here->computed) continue;
        if (sends && here->computed - here->sent >= BUFFERS) continue;
        worker->running = lane;
        worker->left = job_seconds(s, worker, stage, lane, &replica->jobs[lane][here->computed % RING]);
    }
}

static void start_transfers(const struct simulation *s, struct replica *replica, int stage)
{
    struct worker *worker = &replica->stages[stage];
    for (int lane = 0; lane < LANES; lane++) {
        struct station *here = &worker->lanes[lane];
        if (!takes_part(s, lane, stage) || stage >= last_stage(s, lane)) continue;
        const struct station *there = &worker[1].lanes[lane];
        if (here->sending || here->computed <= here->sent || here->sent - there->computed >= BUFFERS) continue;
        struct lvp_link link = link_behind(s, replica, stage);
        double bytes = job_bytes(s, stage, lane, &replica->jobs[lane][here->sent % RING]);
        double seconds = link.seconds + bytes / link.bytes;
        here->sending = true;
        here->sent_at = s->now + seconds;
        worker->sent_bytes += bytes;
        worker->link_seconds += seconds;
    }
}

static enum lvp_status finish_job(struct simulation *s, struct replica *replica, int stage)
{
    struct worker *worker = &replica->stages[stage];
    int lane = worker->running;
    struct station *here = &worker->lanes[lane];
    const struct job *job = &replica->jobs[lane][here->computed % RING];
    here->computed++;
    worker->running = -1;
    if (stage < last_stage(s, lane)) return LVP_OK;
    replica->done[lane]++;
    return lane == STEPS ? take_step(s, replica, job) : take_encoded(s, replica, job);
}

// Share of its full speed that a thread of the node gets.
static double speed(const struct simulation *s, int node)
{
    int threads = s->node_threads[node], cores = s->in->cluster->nodes[node].cores;
    return threads > cores ? (double)cores / threads : 1;
}

// Time of the next event; infinity where nothing is under way.
static double next_event(struct simulation *s)
{
    double next = INFINITY;
    for (int i = 0; i < s->n_nodes; i++) s->node_threads[i] = 0;
    for (int r = 0; r < s->n_replicas; r++)
        for (int stage = 0; stage < s->deployment->n_stages; stage++) {
            const struct worker *worker = &s->replicas[r].stages[stage];
            if (worker->running >= 0) s->node_threads[worker->node] += worker->threads;
        }
    for (int r = 0; r < s->n_replicas; r++)
        for (int stage = 0; stage < s->deployment->n_stages; stage++) {
            const struct worker *worker = &s->replicas[r].stages[stage];
            if (worker->running >= 0) next = fmin(next, s->now + worker->left / speed(s, worker->node));
            for (int lane = 0; lane < LANES; lane++)
                if (worker->lanes[lane].sending) next = fmin(next, worker->lanes[lane].sent_at);
        }
    return next;
}

static enum lvp_status advance(struct simulation *s, double to)
{
    // Of a second; such events coincide. Never less than what rounding leaves of a job at that time: no later event
    // would take it away.
    double hair = fmax(1e-9, 4 * DBL_EPSILON * to), passed = to - s->now;
    s->now = to;
    for (int r = 0; r < s->n_replicas; r++)
        for (int stage = 0; stage < s->deployment->n_stages; stage++) {
            struct replica *replica = &s->replicas[r];
            struct worker *worker = &replica->stages[stage];
            for (int lane = 0; lane < LANES; lane++) {
                struct station *here = &worker->lanes[lane];
                if (!here->sending || here->sent_at > to + hair) continue;
                here->sending = false;
                here->sent++;
                worker[1].lanes[lane].arrived++;
            }
            if (worker->running < 0) continue;
            worker->left -= passed * speed(s, worker->node);
            worker->busy += passed;
            if (worker->left <= hair) LVP_TRY(finish_job(s, replica, stage));
        }
    return LVP_OK;
}

static enum lvp_status run(struct simulation *s)
{
    while (s->finished < s->images) {
        admit(s);
        for (int r = 0; r < s->n_replicas; r++) {
            send_encodes(s, &s->replicas[r]);
            send_steps(s, &s->replicas[r]);
            for (int stage = 0; stage < s->deployment->n_stages; stage++) {
                start(s, &s->replicas[r], stage);
                start_transfers(s, &s->replicas[r], stage);
            }
        }
        if (s->quarter <= 0 && s->finished >= s->images / 4) s->quarter = s->now;
        if (s->three_quarters <= 0 && s->finished >= s->images / 4 * 3) s->three_quarters = s->now;
        double next = next_event(s);
        if (!isfinite(next)) return lvp_fail(LVP_ERR_INTERNAL, "the simulated run stands still");
        LVP_TRY(advance(s, next));
    }
    return LVP_OK;
}

// --- Before and after ----------------------------------------------------------------------------------------------

// Replicas that share a node with the first one, directly or by others between; the rest do the same elsewhere.
static int count_together(const struct lvp_simulation_input *in)
{
    int stages = in->deployment->n_stages, n = 1;
    while (n < in->deployment->n_replicas &&
           lvp_cluster_node_of(in->cluster, n * stages - 1) == lvp_cluster_node_of(in->cluster, n * stages))
        n++;
    return n;
}

static enum lvp_status create_replica(struct simulation *s, int r)
{
    struct replica *replica = &s->replicas[r];
    const struct lvp_scheduler_config *config = &s->deployment->scheduler;
    if (config->max_steps > RING) return lvp_fail(LVP_ERR_INTERNAL, "more steps in flight than can be simulated");
    LVP_TRY(lvp_scheduler_create(config, &replica->scheduler));
    replica->free_slots = s->deployment->image_slots;
    replica->stages = calloc((size_t)s->deployment->n_stages, sizeof *replica->stages);
    for (int j = 0; j < RING; j++) {
        replica->jobs[STEPS][j].seqs = calloc((size_t)config->max_seqs, sizeof(struct lvp_planned_seq));
        if (replica->jobs[STEPS][j].seqs == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for simulating");
    }
    if (replica->stages == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for simulating");
    for (int stage = 0; stage < s->deployment->n_stages; stage++) {
        struct worker *worker = &replica->stages[stage];
        worker->node = lvp_cluster_node_of(s->in->cluster, r * s->deployment->n_stages + stage);
        worker->threads = s->in->cluster->nodes[worker->node].threads;
        worker->rates = lvp_profile_device(s->in->profile, worker->threads);
        worker->running = -1;
    }
    return LVP_OK;
}

// Images of the replicas that are simulated.
static int all_images(const struct simulation *s)
{
    int64_t images = (int64_t)s->in->images * s->n_replicas, all = s->deployment->n_replicas;
    return (int)((images + all - 1) / all);
}

static enum lvp_status create(struct simulation *s)
{
    s->n_replicas = count_together(s->in);
    int wanted = all_images(s), most = ENOUGH * s->deployment->scheduler.max_seqs * s->n_replicas;
    s->images = wanted < most ? wanted : most;
    s->n_nodes = lvp_cluster_node_of(s->in->cluster, s->n_replicas * s->deployment->n_stages - 1) + 1;
    s->replicas = calloc((size_t)s->n_replicas, sizeof *s->replicas);
    s->requests = calloc((size_t)s->images, sizeof *s->requests);
    s->ended = calloc((size_t)s->deployment->scheduler.max_seqs, sizeof *s->ended);
    s->node_threads = calloc((size_t)s->n_nodes, sizeof *s->node_threads);
    if (s->replicas == NULL || s->requests == NULL || s->ended == NULL || s->node_threads == NULL)
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for simulating");
    for (int r = 0; r < s->n_replicas; r++) LVP_TRY(create_replica(s, r));
    return LVP_OK;
}

static void destroy(struct simulation *s)
{
    for (int r = 0; s->replicas != NULL && r < s->n_replicas; r++) {
        lvp_scheduler_destroy(s->replicas[r].scheduler);
        for (int j = 0; j < RING; j++) free(s->replicas[r].jobs[STEPS][j].seqs);
        free(s->replicas[r].stages);
    }
    free(s->replicas);
    free(s->requests);
    free(s->ended);
    free(s->node_threads);
}

static void report(const struct simulation *s, struct lvp_simulation *result)
{
    int stages = s->deployment->n_stages;
    double busy = 0;
    double seconds = s->now;
    if (all_images(s) > s->images) // the rest as the middle half went
        seconds += (all_images(s) - s->images) * (s->three_quarters - s->quarter) / (s->images / 2.0);
    double factor = seconds / s->now; // of everything that adds up
    *result = (struct lvp_simulation){.seconds = seconds, .images_per_second = s->in->images / seconds};
    for (int r = 0; r < s->n_replicas; r++)
        for (int stage = 0; stage < stages; stage++) busy += s->replicas[r].stages[stage].busy;
    result->bubble_share = 1 - busy / (s->now * stages * s->n_replicas);
    for (int stage = 0; stage < stages; stage++) {
        result->busy[stage] = factor * s->replicas[0].stages[stage].busy;
        result->cut_bytes[stage] = factor * s->replicas[0].stages[stage].sent_bytes;
        result->link_seconds[stage] = factor * s->replicas[0].stages[stage].link_seconds;
    }
}

enum lvp_status lvp_simulate(const struct lvp_simulation_input *input, struct lvp_simulation *result)
{
    struct simulation s = {.in = input, .deployment = input->deployment};
    int devices = lvp_cluster_devices(input->cluster);
    int needed = input->deployment->n_stages * input->deployment->n_replicas;
    if (input->deployment->n_replicas < 1 || needed > devices)
        return lvp_fail(LVP_ERR_USAGE, "%d stages x %d replicas need %d devices, the cluster has %d",
                        input->deployment->n_stages, input->deployment->n_replicas, needed, devices);
    enum lvp_status status = create(&s);
    if (status == LVP_OK) status = run(&s);
    if (status == LVP_OK) report(&s, result);
    destroy(&s);
    return status;
}
