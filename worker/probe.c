#include "worker/probe.h"

#include "common/guard.h"
#include "common/tags.h"

#include <stdlib.h>

static enum lvp_status run_experiments(const struct lvp_compute *compute, int threads, struct lvp_probe *probe,
                                       struct lvp_roof *roof)
{
    struct lvp_experiment_result results[LVP_MAX_EXPERIMENTS];
    int n = 0;
    if (threads > compute->setup.threads) return lvp_fail(LVP_ERR_FORMAT, "asked to calibrate %d threads", threads);
    LVP_TRY(lvp_calibrate(&compute->config, compute->setup.gpu, compute->setup.kernel_set, compute->setup.dtype,
                          compute->setup.weights, threads, results, &n, roof));
    for (int i = 0; i < n; i++) {
        Lvp__Roof__Experiment *experiment = &probe->experiments[i];
        lvp__roof__experiment__init(experiment);
        experiment->kind = (int32_t)results[i].kind;
        experiment->n = results[i].n;
        experiment->kv_len = results[i].kv_len;
        experiment->seconds = results[i].seconds;
        probe->pointers[i] = experiment;
    }
    probe->answer.n_experiments = (size_t)n;
    probe->answer.experiments = probe->pointers;
    return LVP_OK;
}

// One transfer, in either direction, polled to its end.
static enum lvp_status transfer(struct lvp_transport *transport, bool sends, int peer, void *buffer, size_t n_bytes)
{
    struct lvp_transfer moving = {0};
    bool done = false;
    LVP_TRY(sends ? transport->ops->isend(transport, peer, LVP_TAG_PROBE, buffer, n_bytes, &moving)
                  : transport->ops->irecv(transport, peer, LVP_TAG_PROBE, buffer, n_bytes, &moving));
    for (double deadline = lvp_now() + 30; !done;) {
        LVP_TRY(transport->ops->test(transport, &moving, &done));
        if (!done && lvp_now() > deadline) {
            transport->ops->cancel(transport, &moving);
            return lvp_fail(LVP_ERR_LOST, "rank %d does not answer while the link to it is measured", peer);
        }
    }
    return LVP_OK;
}

// Seconds that n_bytes take to the peer and back, the best of some.
static enum lvp_status ping(struct lvp_transport *transport, bool begins, int peer, void *buffer, size_t n_bytes,
                            int times, double *best)
{
    for (int i = 0; i < times; i++) {
        double start = lvp_now();
        LVP_TRY(transfer(transport, begins, peer, buffer, n_bytes));
        LVP_TRY(transfer(transport, !begins, peer, buffer, n_bytes));
        double seconds = lvp_now() - start;
        if (i == 0 || seconds < *best) *best = seconds;
        lvp_guard_tick();
    }
    return LVP_OK;
}

// Both ranks get the question; the lower one begins.
static enum lvp_status measure_link(struct lvp_transport *transport, int rank, int n_ranks, const Lvp__Probe *question,
                                    Lvp__Roof *answer)
{
    enum { MOST = 64 << 20 };
    int peer = question->peer;
    double small = 0, large = 0;
    if (peer == rank || peer < 1 || peer >= n_ranks)
        return lvp_fail(LVP_ERR_FORMAT, "asked to measure the link to rank %d", peer);
    if (question->bytes < 1 || question->bytes > MOST)
        return lvp_fail(LVP_ERR_FORMAT, "asked to measure a link with %d bytes", question->bytes);
    size_t n_bytes = (size_t)question->bytes;
    void *buffer = calloc(1, n_bytes);
    if (buffer == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for measuring a link");
    enum lvp_status status = ping(transport, rank < peer, peer, buffer, 1, 200, &small);
    if (status == LVP_OK) status = ping(transport, rank < peer, peer, buffer, n_bytes, 4, &large);
    free(buffer);
    answer->link_small_seconds = small / 2;
    answer->link_seconds = large / 2;
    return status;
}

enum lvp_status lvp_probe_run(struct lvp_compute *compute, struct lvp_transport *transport, int rank, int n_ranks,
                              const Lvp__Probe *question, struct lvp_probe *probe)
{
    struct lvp_roof roof = {0};
    lvp__roof__init(&probe->answer);
    if (compute->steps.computed < compute->steps.announced || compute->encodes.computed < compute->encodes.announced)
        return lvp_fail(LVP_ERR_FORMAT, "the coordinator asks for the device's limits while work is under way");
    if (question->peer > 0) LVP_TRY(measure_link(transport, rank, n_ranks, question, &probe->answer));
    if (question->calibrate > 0)
        LVP_TRY(run_experiments(compute, question->calibrate, probe, &roof));
    else if (question->peer == 0 && compute->backend->ops->roof != NULL)
        LVP_TRY(compute->backend->ops->roof(compute->backend, &roof));
    probe->answer.flops = roof.flops;
    probe->answer.read_bytes = roof.read_bytes;
    return LVP_OK;
}
