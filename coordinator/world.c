#include "coordinator/world.h"

#include "common/guard.h"
#include "common/log.h"
#include "common/pulse.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELLO_SECONDS = 60, LOAD_SECONDS = 120, ASK_SECONDS = 300 }; // without any progress

static const char *const kernel_set_order[] = {"portable", "avx2", "avx512", "avx512bf16"};

static const char cuda[] = "cuda"; // the kernels of a worker with a GPU

static int kernel_set_rank(const char *name)
{
    for (int i = 0; i < (int)(sizeof kernel_set_order / sizeof *kernel_set_order); i++)
        if (strcmp(kernel_set_order[i], name) == 0) return i;
    return -1;
}

const char *lvp_world_name(const struct lvp_world *world, int rank, char *text, size_t size)
{
    const struct lvp_worker_info *worker = &world->workers[rank - 1];
    if (worker->host[0] == '\0')
        (void)snprintf(text, size, "rank %d", rank);
    else if (world->n_stages == 0)
        (void)snprintf(text, size, "rank %d (%s)", rank, worker->host);
    else if (world->n_replicas > 1)
        (void)snprintf(text, size, "rank %d (%s, stage %d of replica %d)", rank, worker->host, worker->stage,
                       worker->replica);
    else
        (void)snprintf(text, size, "rank %d (%s, stage %d of %d)", rank, worker->host, worker->stage, world->n_stages);
    return text;
}

// The worker's own text, with its name in front.
static enum lvp_status report_failure(struct lvp_world *world, int rank, const Lvp__Failure *failure)
{
    char name[200];
    enum lvp_status status = failure->status > LVP_OK && failure->status <= LVP_ERR_INTERNAL
                                 ? (enum lvp_status)failure->status
                                 : LVP_ERR_INTERNAL;
    world->workers[rank - 1].finished = true;
    return lvp_fail(status == LVP_ERR_MEMORY ? LVP_ERR_LOST : status, "%s: %.800s",
                    lvp_world_name(world, rank, name, sizeof name), failure->text);
}

static void note_pulse(struct lvp_worker_info *worker, const Lvp__Pulse *pulse)
{
    worker->ticks = pulse->ticks;
    worker->steps = pulse->steps;
    worker->encodes = pulse->encodes;
}

enum lvp_status lvp_world_poll(struct lvp_world *world, int *rank, Lvp__FromWorker **message)
{
    for (;;) {
        const uint8_t *bytes = NULL;
        size_t n_bytes = 0;
        *message = NULL;
        LVP_TRY(lvp_control_poll(world->control, rank, &bytes, &n_bytes));
        if (bytes == NULL) return LVP_OK;
        if (*rank < 1 || *rank > world->n_workers)
            return lvp_fail(LVP_ERR_FORMAT, "a message from rank %d, which is no worker", *rank);
        lvp_patience_reset(&world->workers[*rank - 1].silent);
        LVP_TRY(lvp_control_unpack_from_worker(bytes, n_bytes, message));
        enum lvp_status status = LVP_OK;
        if ((*message)->body_case == LVP__FROM_WORKER__BODY_PULSE)
            note_pulse(&world->workers[*rank - 1], (*message)->pulse);
        else if ((*message)->body_case == LVP__FROM_WORKER__BODY_FAILURE)
            status = report_failure(world, *rank, (*message)->failure);
        else
            return LVP_OK;
        lvp__from_worker__free_unpacked(*message, NULL);
        *message = NULL;
        LVP_TRY(status);
    }
}

static enum lvp_status send_pulses(struct lvp_world *world)
{
    Lvp__Pulse pulse = LVP__PULSE__INIT;
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    message.body_case = LVP__TO_WORKER__BODY_PULSE;
    message.pulse = &pulse;
    for (int w = 0; w < world->n_workers; w++)
        if (!world->workers[w].finished) LVP_TRY(lvp_world_send(world, w + 1, &message));
    return LVP_OK;
}

enum lvp_status lvp_world_keep_up(struct lvp_world *world)
{
    double now = lvp_now();
    lvp_guard_tick();
    for (int w = 0; w < world->n_workers; w++) {
        struct lvp_worker_info *worker = &world->workers[w];
        char name[200];
        if (worker->finished || lvp_patience_ask(&worker->silent) <= lvp_silence_seconds()) continue;
        return lvp_fail(LVP_ERR_LOST, "%s: lost, no word for %.0f s; its last step was %llu",
                        lvp_world_name(world, w + 1, name, sizeof name), lvp_silence_seconds(),
                        (unsigned long long)worker->steps);
    }
    if (now - world->last_pulse < LVP_PULSE_SECONDS) return LVP_OK;
    world->last_pulse = now;
    return send_pulses(world);
}

enum lvp_status lvp_world_idle(struct lvp_world *world)
{
    int rank = 0;
    Lvp__FromWorker *message = NULL;
    LVP_TRY(lvp_world_poll(world, &rank, &message));
    if (message == NULL) return lvp_world_keep_up(world);
    lvp__from_worker__free_unpacked(message, NULL);
    return lvp_fail(LVP_ERR_FORMAT, "rank %d spoke out of turn", rank);
}

// A worker that is not done must show progress every now and then.
static enum lvp_status check_progress(struct lvp_world *world, const bool *done, const char *what, int seconds)
{
    for (int w = 0; w < world->n_workers; w++) {
        struct lvp_worker_info *worker = &world->workers[w];
        char name[200];
        if (done[w] || worker->ticks != worker->seen_ticks) lvp_patience_reset(&worker->stuck);
        worker->seen_ticks = worker->ticks;
        if (lvp_patience_ask(&worker->stuck) > seconds)
            return lvp_fail(LVP_ERR_LOST, "%s: did not %s; nothing has moved for %d s",
                            lvp_world_name(world, w + 1, name, sizeof name), what, seconds);
    }
    return LVP_OK;
}

// Polls until `take` has been content with a message of every worker.
static enum lvp_status collect(struct lvp_world *world, int seconds, const char *what, const atomic_int *interrupt,
                               enum lvp_status (*take)(struct lvp_worker_info *worker, int rank,
                                                       const Lvp__FromWorker *message))
{
    enum lvp_status status = LVP_OK;
    bool *done = calloc((size_t)(unsigned)world->n_workers, sizeof *done);
    if (done == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    for (int w = 0; w < world->n_workers; w++) world->workers[w].stuck = (struct lvp_patience){0};
    for (int n_done = 0; n_done < world->n_workers;) {
        int rank = 0;
        Lvp__FromWorker *message = NULL;
        LVP_CHECK(lvp_world_poll(world, &rank, &message));
        LVP_CHECK(lvp_world_keep_up(world));
        if (interrupt != NULL && atomic_load(interrupt) > 0) {
            if (message != NULL) lvp__from_worker__free_unpacked(message, NULL);
            status = lvp_fail(LVP_DRAINED, "ended by a signal before the work began");
            goto fail;
        }
        if (message == NULL) {
            LVP_CHECK(check_progress(world, done, what, seconds));
            lvp_poll_rest(LVP_EXPECT_SOON, 0);
            continue;
        }
        status = take(&world->workers[rank - 1], rank, message);
        lvp__from_worker__free_unpacked(message, NULL);
        if (status != LVP_OK) goto fail;
        n_done += done[rank - 1] ? 0 : 1;
        done[rank - 1] = true;
    }
fail:
    free(done);
    return status;
}

static enum lvp_status take_hello(struct lvp_worker_info *worker, int rank, const Lvp__FromWorker *message)
{
    if (message->body_case != LVP__FROM_WORKER__BODY_HELLO)
        return lvp_fail(LVP_ERR_FORMAT, "rank %d did not say hello first", rank);
    const Lvp__Hello *hello = message->hello;
    if (strcmp(hello->version, LVP_VERSION) != 0)
        return lvp_fail(LVP_ERR_USAGE, "rank %d (%s) runs lvpipe %s, rank 0 runs %s", rank, hello->host, hello->version,
                        LVP_VERSION);
    if (kernel_set_rank(hello->kernel_set) < 0)
        return lvp_fail(LVP_ERR_FORMAT, "rank %d has unknown kernels '%s'", rank, hello->kernel_set);
    (void)snprintf(worker->host, sizeof worker->host, "%s", hello->host);
    (void)snprintf(worker->kernel_set, sizeof worker->kernel_set, "%s", hello->kernel_set);
    worker->threads = hello->threads < 1 ? 1 : hello->threads;
    worker->memory_bytes = hello->memory_bytes;
    worker->gpu = hello->gpu > 0;
    worker->gpu_memory = hello->gpu_memory;
    worker->nccl = hello->nccl;
    (void)snprintf(worker->no_nccl, sizeof worker->no_nccl, "%s", hello->no_nccl);
    (void)snprintf(worker->gpu_name, sizeof worker->gpu_name, "%s", hello->gpu_name);
    return LVP_OK;
}

enum lvp_status lvp_world_open(MPI_Comm control, int n_workers, struct lvp_world *world)
{
    *world = (struct lvp_world){.n_workers = n_workers};
    world->workers = calloc((size_t)n_workers, sizeof *world->workers);
    if (world->workers == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    LVP_TRY(lvp_control_open(control, &world->control));
    LVP_TRY(collect(world, HELLO_SECONDS, "say hello", NULL, take_hello));
    int lowest = -1;
    for (int w = 0; w < n_workers; w++) {
        int order = kernel_set_rank(world->workers[w].kernel_set);
        if (!world->workers[w].gpu && (lowest < 0 || order < lowest)) lowest = order;
    }
    world->kernel_set = lowest < 0 ? cuda : kernel_set_order[lowest];
    lvp_world_use_kernels(world, world->kernel_set);
    return LVP_OK;
}

void lvp_world_use_kernels(struct lvp_world *world, const char *kernel_set)
{
    int gpus = 0;
    for (int w = 0; w < world->n_workers; w++) gpus += world->workers[w].gpu;
    (void)snprintf(world->numeric_path, sizeof world->numeric_path, "%s%s%s%s", gpus < world->n_workers ? "cpu/" : "",
                   kernel_set, gpus > 0 && gpus < world->n_workers ? "+" : "",
                   gpus > 0 && gpus < world->n_workers ? cuda : "");
}

bool lvp_world_can_run(const struct lvp_world *world, const char *kernel_set)
{
    int order = kernel_set_rank(kernel_set);
    return order >= 0 && order <= kernel_set_rank(world->kernel_set);
}

void lvp_world_close(struct lvp_world *world)
{
    lvp_control_close(world->control);
    for (int w = 0; world->workers != NULL && w < world->n_workers; w++)
        if (world->workers[w].farewell != NULL) lvp__from_worker__free_unpacked(world->workers[w].farewell, NULL);
    free(world->workers);
    *world = (struct lvp_world){0};
}

static enum lvp_status take_ready(struct lvp_worker_info *worker, int rank, const Lvp__FromWorker *message)
{
    if (message->body_case != LVP__FROM_WORKER__BODY_READY)
        return lvp_fail(LVP_ERR_FORMAT, "rank %d answered Setup with another message", rank);
    worker->load_seconds = message->ready->load_seconds;
    return LVP_OK;
}

static bool on_one_gpu(const struct lvp_worker_info *a, const struct lvp_worker_info *b)
{
    return a->gpu && b->gpu && strcmp(a->host, b->host) == 0 && strcmp(a->gpu_name, b->gpu_name) == 0;
}

// NULL, or the rank that computes on the same GPU.
static const struct lvp_worker_info *sharer(const struct lvp_world *world, const struct lvp_worker_info *worker)
{
    for (const struct lvp_worker_info *w = world->workers; w < world->workers + world->n_workers; w++)
        if (w != worker && on_one_gpu(w, worker)) return w;
    return NULL;
}

int64_t lvp_world_gpu_memory(const struct lvp_world *world, int n_stages, int stage)
{
    int64_t least = 0;
    for (int w = stage; w < world->n_workers; w += n_stages) {
        int sharing = 0;
        for (int other = 0; other < world->n_workers; other++)
            if (on_one_gpu(&world->workers[other], &world->workers[w])) sharing++; // itself too
        int64_t memory = sharing > 0 ? world->workers[w].gpu_memory / sharing : 0;
        if (memory > 0 && (least == 0 || memory < least)) least = memory;
    }
    return least;
}

// Why rows of one of two neighbours with GPUs cannot take part in NCCL; "": they can.
static void why_not(const struct lvp_world *world, const struct lvp_worker_info *worker, char *why, size_t size)
{
    const struct lvp_worker_info *other = sharer(world, worker);
    int rank = (int)(worker - world->workers) + 1;
    why[0] = '\0';
    if (other != NULL)
        (void)snprintf(why, size, "rank %d shares its GPU with rank %d", rank, (int)(other - world->workers) + 1);
    else if (worker->nccl <= 0)
        (void)snprintf(why, size, "rank %d: %s", rank, worker->no_nccl);
}

// Whether rows go from GPU to GPU where `from` sends to the next rank. Where both have one and cannot, that is said
// once in the life of this process.
static bool direct(const struct lvp_world *world, int from)
{
    static bool told;
    const struct lvp_worker_info *a = &world->workers[from - 1], *b = a + 1;
    char why[256];
    if (!a->gpu || !b->gpu) return false;
    why_not(world, a, why, sizeof why);
    if (why[0] == '\0') why_not(world, b, why, sizeof why);
    if (why[0] == '\0' && a->nccl != b->nccl)
        (void)snprintf(why, sizeof why, "their versions of NCCL differ, %d and %d", a->nccl, b->nccl);
    if (why[0] == '\0') return true;
    if (!told) lvp_info("rows between ranks %d and %d go through the hosts' memory: %s", from, from + 1, why);
    told = true;
    return false;
}

const char *lvp_world_transport(const struct lvp_world *world)
{
    int n_cuts = (world->n_stages - 1) * world->n_replicas;
    return world->n_direct == 0 ? "mpi" : world->n_direct == n_cuts ? "nccl" : "mpi+nccl";
}

enum lvp_status lvp_world_setup(struct lvp_world *world, const struct lvp_partition *partition, int n_replicas,
                                int merge_stage, const char *kernel_set, int threads, const atomic_int *interrupt,
                                Lvp__Setup *template)
{
    int32_t ranks[LVP_MAX_STAGES], first[LVP_MAX_STAGES + 1];
    world->n_direct = 0;
    world->n_stages = partition->n_stages;
    world->n_replicas = n_replicas;
    world->merge_stage = merge_stage;
    world->partition = *partition;
    for (int s = 0; s <= partition->n_stages; s++) first[s] = partition->first[s];
    template->n_partition = (size_t)partition->n_stages + 1;
    template->partition = first;
    template->n_ranks = (size_t)partition->n_stages;
    template->ranks = ranks;
    for (int w = 0; w < world->n_workers; w++) {
        struct lvp_worker_info *worker = &world->workers[w];
        worker->replica = w / world->n_stages;
        worker->stage = w % world->n_stages;
        if (threads > 0) worker->threads = threads;
        for (int s = 0; s < world->n_stages; s++) ranks[s] = lvp_world_rank(world, worker->replica, s);
        template->replica = worker->replica;
        template->stage = worker->stage;
        template->threads = worker->threads;
        template->kernel_set = (char *)(size_t)(worker->gpu ? cuda : kernel_set);
        template->direct_from = worker->stage > 0 && template->direct_to; // as the worker before was told
        bool last = worker->stage + 1 == world->n_stages;
        template->direct_to = !last && direct(world, w + 1);
        world->n_direct += template->direct_to;
        Lvp__ToWorker message = LVP__TO_WORKER__INIT;
        message.body_case = LVP__TO_WORKER__BODY_SETUP;
        message.setup = template;
        LVP_TRY(lvp_world_send(world, w + 1, &message));
    }
    return collect(world, LOAD_SECONDS, "load its stage", interrupt, take_ready);
}

enum lvp_status lvp_world_send(struct lvp_world *world, int rank, Lvp__ToWorker *message)
{
    return lvp_control_send(world->control, rank, 1, &message->base);
}

enum lvp_status lvp_world_send_stages(struct lvp_world *world, int replica, int first, int end, Lvp__ToWorker *message)
{
    return lvp_control_send(world->control, lvp_world_rank(world, replica, first), end - first, &message->base);
}

enum lvp_status lvp_world_collect(struct lvp_world *world, int n, Lvp__FromWorker__BodyCase kind,
                                  void (*take)(void *context, int rank, const Lvp__FromWorker *answer), void *context)
{
    bool patient = kind == LVP__FROM_WORKER__BODY_ROOF; // they measure, and do not speak meanwhile
    double deadline = lvp_now() + (patient ? ASK_SECONDS : HELLO_SECONDS);
    for (int w = 0; w < world->n_workers; w++) world->workers[w].answered = false;
    while (n > 0) {
        int rank = 0;
        Lvp__FromWorker *answer = NULL;
        LVP_TRY(lvp_world_poll(world, &rank, &answer));
        for (int w = 0; patient && w < world->n_workers; w++) lvp_patience_reset(&world->workers[w].silent);
        LVP_TRY(lvp_world_keep_up(world));
        if (lvp_now() > deadline) {
            if (answer != NULL) lvp__from_worker__free_unpacked(answer, NULL);
            return lvp_fail(LVP_ERR_LOST, "%d ranks did not answer in time", n);
        }
        if (answer == NULL) {
            lvp_poll_rest(LVP_EXPECT_SOON, 0);
            continue;
        }
        bool right = answer->body_case == kind && !world->workers[rank - 1].answered;
        world->workers[rank - 1].answered = true;
        if (right) take(context, rank, answer);
        lvp__from_worker__free_unpacked(answer, NULL);
        if (!right) return lvp_fail(LVP_ERR_FORMAT, "rank %d gave another answer than it was asked for", rank);
        n--;
    }
    return LVP_OK;
}

Lvp__Statistics lvp_plain_statistics(const Lvp__Statistics *statistics)
{
    Lvp__Statistics plain = *statistics;
    plain.n_spans = 0;
    plain.spans = NULL;
    plain.base.n_unknown_fields = 0;
    plain.base.unknown_fields = NULL;
    return plain;
}

bool lvp_world_finish(struct lvp_world *world, double deadline_seconds)
{
    Lvp__ToWorker message = LVP__TO_WORKER__INIT;
    Lvp__Finish finish = LVP__FINISH__INIT;
    message.body_case = LVP__TO_WORKER__BODY_FINISH;
    message.finish = &finish;
    int left = 0;
    for (int w = 0; w < world->n_workers; w++) {
        if (world->workers[w].finished) continue;
        if (lvp_world_send(world, w + 1, &message) != LVP_OK) return false;
        left++;
    }
    double deadline = lvp_now() + deadline_seconds;
    while (left > 0 && lvp_now() < deadline) {
        int rank = 0;
        Lvp__FromWorker *answer = NULL;
        lvp_guard_tick();
        if (lvp_world_poll(world, &rank, &answer) != LVP_OK) { // a failure, said already or too late to matter
            left--;
            continue;
        }
        if (answer == NULL) {
            lvp_poll_rest(LVP_EXPECT_SOON, 0);
            continue;
        }
        if (answer->body_case == LVP__FROM_WORKER__BODY_STATISTICS) {
            struct lvp_worker_info *worker = &world->workers[rank - 1];
            worker->statistics = lvp_plain_statistics(answer->statistics);
            worker->finished = true;
            left--;
            if (answer->statistics->n_spans > 0) { // kept, and worked on once nobody waits
                worker->farewell = answer;
                continue;
            }
        }
        lvp__from_worker__free_unpacked(answer, NULL);
    }
    while (lvp_control_sending(world->control) && lvp_now() < deadline) lvp_poll_rest(LVP_EXPECT_SOON, 0);
    return left == 0;
}

enum lvp_status lvp_world_unfinished(const struct lvp_world *world, double seconds)
{
    char name[200];
    int w = 0;
    while (w + 1 < world->n_workers && world->workers[w].finished) w++;
    return lvp_fail(LVP_ERR_LOST, "%s: did not finish within %.0f s", lvp_world_name(world, w + 1, name, sizeof name),
                    seconds);
}
