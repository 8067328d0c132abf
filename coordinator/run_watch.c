#include "coordinator/run_state.h"

#include <stdio.h>

// Reading images may hang with a network file system for minutes, and come back.
enum { IMAGE_SECONDS = 600, LEAST_SECONDS = 60, BLOCK_FACTOR = 4 };

// The stages report the number of the last job they have computed. The first stage behind the oldest job in flight is
// the one that does not move: it computes and does not end, or its rows do not arrive.
static int find_stuck(const struct run *run, int r, char *what, size_t size)
{
    const struct lvp_world *world = run->options->world;
    const struct replica *replica = &run->replicas[r];
    uint64_t step = replica->step_number - (uint64_t)replica->n_steps + 1;
    uint64_t encode = replica->encode_number - (uint64_t)replica->n_encodes + 1;
    for (int s = world->merge_stage; replica->n_steps > 0 && s < world->n_stages; s++) {
        int rank = lvp_world_rank(world, r, s);
        if (world->workers[rank - 1].steps >= step) continue;
        (void)snprintf(what, size, "step %llu does not come out of it%s", (unsigned long long)step,
                       s > world->merge_stage ? ", or its rows do not reach it" : "");
        return rank;
    }
    for (int s = 0; replica->n_encodes > 0 && s <= world->merge_stage; s++) {
        int rank = lvp_world_rank(world, r, s);
        if (world->workers[rank - 1].encodes >= encode) continue;
        (void)snprintf(what, size, "images of job %llu do not come out of it%s", (unsigned long long)encode,
                       s > 0 ? ", or their rows do not reach it" : "");
        return rank;
    }
    bool preparing = replica->n_preparing > 0;
    (void)snprintf(what, size, "%s", preparing ? "its images cannot be read" : "it does not answer");
    return lvp_world_rank(world, r, preparing ? 0 : world->n_stages - 1);
}

// Sign of life of a whole replica: the progress its workers report.
static uint64_t moves_of(const struct run *run, int r)
{
    const struct lvp_world *world = run->options->world;
    uint64_t moves = 0;
    for (int s = 0; s < world->n_stages; s++) moves += world->workers[lvp_world_rank(world, r, s) - 1].ticks;
    return moves;
}

static enum lvp_status watch_replica(struct run *run, int r)
{
    struct replica *replica = &run->replicas[r];
    bool computing = replica->n_steps > 0 || replica->n_encodes > 0;
    uint64_t moves = moves_of(run, r);
    if (moves != replica->moves || (!computing && replica->n_preparing == 0)) lvp_patience_reset(&replica->stuck);
    replica->moves = moves;
    double waited = lvp_patience_ask(&replica->stuck), limit = BLOCK_FACTOR * run->options->deployment->block_seconds;
    if (limit < LEAST_SECONDS) limit = LEAST_SECONDS;
    if (!computing && limit < IMAGE_SECONDS) limit = IMAGE_SECONDS;
    if (waited <= limit) return LVP_OK;
    char what[120], name[200];
    int rank = find_stuck(run, r, what, sizeof what);
    return lvp_fail(LVP_ERR_LOST, "%s: %s: nothing has moved for %.0f s; its last step was %llu",
                    lvp_world_name(run->options->world, rank, name, sizeof name), what, limit,
                    (unsigned long long)run->options->world->workers[rank - 1].steps);
}

enum lvp_status lvp_run_watch(struct run *run)
{
    static const double interval = 0.1;
    double now = lvp_now();
    if (now - run->watched < interval) return LVP_OK;
    run->watched = now;
    LVP_TRY(lvp_world_keep_up(run->options->world));
    for (int r = 0; r < run->options->world->n_replicas; r++) LVP_TRY(watch_replica(run, r));
    return LVP_OK;
}
