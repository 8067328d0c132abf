#include "coordinator/link.h"

#include <math.h>

struct answer {
    int rank; // whose answer counts
    double small, large;
};

static void take(void *context, int rank, const Lvp__FromWorker *message)
{
    struct answer *answer = context;
    if (rank != answer->rank) return;
    answer->small = message->roof->link_small_seconds;
    answer->large = message->roof->link_seconds;
}

static enum lvp_status ask(struct lvp_world *world, int from, int to, int n_bytes, struct answer *answer)
{
    Lvp__ToWorker question = LVP__TO_WORKER__INIT;
    Lvp__Probe probe = LVP__PROBE__INIT;
    question.body_case = LVP__TO_WORKER__BODY_PROBE;
    question.probe = &probe;
    probe.bytes = n_bytes;
    probe.peer = to;
    LVP_TRY(lvp_world_send(world, from, &question));
    probe.peer = from;
    LVP_TRY(lvp_world_send(world, to, &question));
    *answer = (struct answer){.rank = from};
    LVP_TRY(lvp_world_collect(world, 2, LVP__FROM_WORKER__BODY_ROOF, take, answer));
    if (!(answer->small > 0 && answer->large > 0 && isfinite(answer->small) && isfinite(answer->large)))
        return lvp_fail(LVP_ERR_FORMAT, "rank %d says that a message takes %g s and one byte %g s", from, answer->large,
                        answer->small);
    return LVP_OK;
}

enum lvp_status lvp_link_measure(struct lvp_world *world, int from, int to, struct lvp_link *link)
{
    enum { FIRST = 64 << 10, GROWTH = 16, LARGEST = 8 << 20 };
    static const double long_enough = 0.1; // seconds of a message; a few go each way
    struct answer answer;
    int n_bytes = FIRST;
    LVP_TRY(ask(world, from, to, n_bytes, &answer));
    while (n_bytes < LARGEST && answer.large < long_enough / GROWTH) {
        n_bytes = n_bytes < LARGEST / GROWTH ? n_bytes * GROWTH : LARGEST;
        LVP_TRY(ask(world, from, to, n_bytes, &answer));
    }
    double moving = answer.large > answer.small ? answer.large - answer.small : answer.large;
    *link = (struct lvp_link){.bytes = n_bytes / moving, .seconds = answer.small};
    return LVP_OK;
}
