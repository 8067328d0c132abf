#include "coordinator/world.h"

#include "common/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELLO_SECONDS = 60, LOAD_SECONDS = 1800 };

static const char *const kernel_set_order[] = {"portable", "avx2", "avx512", "avx512bf16"};

static int kernel_set_rank(const char *name)
{
    for (int i = 0; i < (int)(sizeof kernel_set_order / sizeof *kernel_set_order); i++)
        if (strcmp(kernel_set_order[i], name) == 0) return i;
    return -1;
}

enum lvp_status lvp_world_poll(struct lvp_world *world, int *rank, Lvp__FromWorker **message)
{
    const uint8_t *bytes = NULL;
    size_t n_bytes = 0;
    *message = NULL;
    LVP_TRY(lvp_control_poll(world->control, rank, &bytes, &n_bytes));
    if (bytes == NULL) return LVP_OK;
    if (*rank < 1 || *rank > world->n_workers)
        return lvp_fail(LVP_ERR_FORMAT, "a message from rank %d, which is no worker", *rank);
    LVP_TRY(lvp_control_unpack_from_worker(bytes, n_bytes, message));
    if ((*message)->body_case != LVP__FROM_WORKER__BODY_FAILURE) return LVP_OK;
    const Lvp__Failure *failure = (*message)->failure;
    const struct lvp_worker_info *worker = &world->workers[*rank - 1];
    enum lvp_status status = failure->status > LVP_OK && failure->status <= LVP_ERR_INTERNAL
                                 ? (enum lvp_status)failure->status
                                 : LVP_ERR_INTERNAL;
    world->workers[*rank - 1].finished = true;
    if (worker->host[0] == '\0')
        status = lvp_fail(status, "rank %d: %.800s", *rank, failure->text);
    else
        status = lvp_fail(status, "rank %d (%s, stage %d): %.800s", *rank, worker->host, worker->stage, failure->text);
    lvp__from_worker__free_unpacked(*message, NULL);
    *message = NULL;
    return status;
}

// Polls until `take` has been content with a message of every worker.
static enum lvp_status collect(struct lvp_world *world, int seconds, const char *what,
                               enum lvp_status (*take)(struct lvp_worker_info *worker, int rank,
                                                       const Lvp__FromWorker *message))
{
    enum lvp_status status = LVP_OK;
    bool *done = calloc((size_t)world->n_workers, sizeof *done);
    if (done == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    double deadline = lvp_now() + seconds;
    for (int n_done = 0; n_done < world->n_workers;) {
        int rank = 0;
        Lvp__FromWorker *message = NULL;
        LVP_CHECK(lvp_world_poll(world, &rank, &message));
        if (message == NULL) {
            if (lvp_now() > deadline) {
                for (rank = 1; done[rank - 1]; rank++) {
                }
                status = lvp_fail(LVP_ERR_LOST, "rank %d did not %s within %d s", rank, what, seconds);
                goto fail;
            }
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
    return LVP_OK;
}

enum lvp_status lvp_world_open(MPI_Comm control, int n_workers, struct lvp_world *world)
{
    *world = (struct lvp_world){.n_workers = n_workers};
    world->workers = calloc((size_t)n_workers, sizeof *world->workers);
    if (world->workers == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    LVP_TRY(lvp_control_open(control, &world->control));
    LVP_TRY(collect(world, HELLO_SECONDS, "say hello", take_hello));
    int lowest = kernel_set_rank(world->workers[0].kernel_set);
    for (int w = 1; w < n_workers; w++) {
        int order = kernel_set_rank(world->workers[w].kernel_set);
        if (order < lowest) lowest = order;
    }
    world->kernel_set = kernel_set_order[lowest];
    return LVP_OK;
}

bool lvp_world_can_run(const struct lvp_world *world, const char *kernel_set)
{
    int order = kernel_set_rank(kernel_set);
    return order >= 0 && order <= kernel_set_rank(world->kernel_set);
}

void lvp_world_close(struct lvp_world *world)
{
    lvp_control_close(world->control);
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

enum lvp_status lvp_world_setup(struct lvp_world *world, const struct lvp_partition *partition, int n_replicas,
                                int merge_stage, const char *kernel_set, int threads, Lvp__Setup *template)
{
    int32_t ranks[LVP_MAX_STAGES], first[LVP_MAX_STAGES + 1];
    world->n_stages = partition->n_stages;
    world->n_replicas = n_replicas;
    world->merge_stage = merge_stage;
    world->partition = *partition;
    for (int s = 0; s <= partition->n_stages; s++) first[s] = partition->first[s];
    template->n_partition = (size_t)partition->n_stages + 1;
    template->partition = first;
    template->n_ranks = (size_t)partition->n_stages;
    template->ranks = ranks;
    template->kernel_set = (char *)(size_t)kernel_set;
    for (int w = 0; w < world->n_workers; w++) {
        struct lvp_worker_info *worker = &world->workers[w];
        worker->replica = w / world->n_stages;
        worker->stage = w % world->n_stages;
        if (threads > 0) worker->threads = threads;
        for (int s = 0; s < world->n_stages; s++) ranks[s] = lvp_world_rank(world, worker->replica, s);
        template->stage = worker->stage;
        template->threads = worker->threads;
        Lvp__ToWorker message = LVP__TO_WORKER__INIT;
        message.body_case = LVP__TO_WORKER__BODY_SETUP;
        message.setup = template;
        LVP_TRY(lvp_world_send(world, w + 1, &message));
    }
    return collect(world, LOAD_SECONDS, "load its stage", take_ready);
}

enum lvp_status lvp_world_send(struct lvp_world *world, int rank, Lvp__ToWorker *message)
{
    return lvp_control_send(world->control, rank, &message->base);
}

enum lvp_status lvp_world_send_stages(struct lvp_world *world, int replica, int first, int end, Lvp__ToWorker *message)
{
    for (int s = first; s < end; s++) LVP_TRY(lvp_world_send(world, lvp_world_rank(world, replica, s), message));
    return LVP_OK;
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
            worker->statistics = *answer->statistics;
            worker->finished = true;
            left--;
        }
        lvp__from_worker__free_unpacked(answer, NULL);
    }
    while (lvp_control_sending(world->control) && lvp_now() < deadline) lvp_poll_rest(LVP_EXPECT_SOON, 0);
    return left == 0;
}
