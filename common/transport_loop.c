#include "common/transport.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// The ends share one hub with a lock, so that ends may be used from different threads. A transfer waits in the
// receiver's queue of sends, or of receives, until its partner comes; like a rendezvous, a send ends when it has been
// received.
struct hub {
    pthread_mutex_t lock;
    int n_ends, n_open;
    struct loop_transport *ends; // [n_ends]
};

struct loop_transport {
    struct lvp_transport base;
    struct hub *hub;
    int rank;
    struct lvp_transfer *sends;    // to this end, unmatched, in order; `peer` is the sender
    struct lvp_transfer *receives; // of this end, unmatched, in order; `peer` is the sender
};

static void append(struct lvp_transfer **list, struct lvp_transfer *transfer)
{
    while (*list != NULL) list = &(*list)->next;
    transfer->next = NULL;
    *list = transfer;
}

static bool unlink_transfer(struct lvp_transfer **list, struct lvp_transfer *transfer)
{
    for (; *list != NULL; list = &(*list)->next) {
        if (*list != transfer) continue;
        *list = transfer->next;
        return true;
    }
    return false;
}

static struct lvp_transfer *take(struct lvp_transfer **list, int peer, int tag)
{
    for (; *list != NULL; list = &(*list)->next) {
        if ((*list)->peer != peer || (*list)->tag != tag) continue;
        struct lvp_transfer *found = *list;
        *list = found->next;
        return found;
    }
    return NULL;
}

static void complete(struct lvp_transfer *send, struct lvp_transfer *receive)
{
    receive->n_received = send->n_bytes;
    if (send->n_bytes <= receive->n_bytes && send->n_bytes > 0) memcpy(receive->buffer, send->buffer, send->n_bytes);
    send->active = receive->active = false;
}

static enum lvp_status loop_isend(struct lvp_transport *transport, int peer, int tag, const void *data, size_t n_bytes,
                                  struct lvp_transfer *transfer)
{
    struct loop_transport *end = (struct loop_transport *)transport;
    if (peer < 0 || peer >= end->hub->n_ends) return lvp_fail(LVP_ERR_INTERNAL, "no peer %d", peer);
    struct loop_transport *to = &end->hub->ends[peer];
    *transfer = (struct lvp_transfer){
        .active = true, .peer = end->rank, .tag = tag, .buffer = (void *)(size_t)data, .n_bytes = n_bytes};
    pthread_mutex_lock(&end->hub->lock);
    struct lvp_transfer *receive = take(&to->receives, end->rank, tag);
    if (receive != NULL)
        complete(transfer, receive);
    else
        append(&to->sends, transfer);
    pthread_mutex_unlock(&end->hub->lock);
    return LVP_OK;
}

static enum lvp_status loop_irecv(struct lvp_transport *transport, int peer, int tag, void *data, size_t capacity,
                                  struct lvp_transfer *transfer)
{
    struct loop_transport *end = (struct loop_transport *)transport;
    if (peer < 0 || peer >= end->hub->n_ends) return lvp_fail(LVP_ERR_INTERNAL, "no peer %d", peer);
    *transfer = (struct lvp_transfer){
        .active = true, .receiving = true, .peer = peer, .tag = tag, .buffer = data, .n_bytes = capacity};
    pthread_mutex_lock(&end->hub->lock);
    struct lvp_transfer *send = take(&end->sends, peer, tag);
    if (send != NULL)
        complete(send, transfer);
    else
        append(&end->receives, transfer);
    pthread_mutex_unlock(&end->hub->lock);
    return LVP_OK;
}

static enum lvp_status loop_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    struct loop_transport *end = (struct loop_transport *)transport;
    pthread_mutex_lock(&end->hub->lock);
    *done = !transfer->active;
    pthread_mutex_unlock(&end->hub->lock);
    if (*done && transfer->receiving && transfer->n_received > transfer->n_bytes)
        return lvp_fail(LVP_ERR_FORMAT, "rank %d sent more than the %zu bytes expected", transfer->peer,
                        transfer->n_bytes);
    return LVP_OK;
}

static void loop_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    struct loop_transport *end = (struct loop_transport *)transport;
    pthread_mutex_lock(&end->hub->lock);
    if (transfer->active && !unlink_transfer(&end->receives, transfer))
        for (int i = 0; i < end->hub->n_ends; i++)
            if (unlink_transfer(&end->hub->ends[i].sends, transfer)) break;
    transfer->active = false;
    pthread_mutex_unlock(&end->hub->lock);
}

static void loop_close(struct lvp_transport *transport)
{
    struct hub *hub = ((struct loop_transport *)transport)->hub;
    pthread_mutex_lock(&hub->lock);
    bool last = --hub->n_open == 0;
    pthread_mutex_unlock(&hub->lock);
    if (!last) return;
    pthread_mutex_destroy(&hub->lock);
    free(hub->ends);
    free(hub);
}

static const struct lvp_transport_ops loop_ops = {"loop", loop_isend, loop_irecv, loop_test, loop_cancel, loop_close};

enum lvp_status lvp_transport_loop_open(int n, struct lvp_transport **ends)
{
    struct hub *hub = calloc(1, sizeof *hub);
    struct loop_transport *all = calloc((size_t)n, sizeof *all);
    if (hub == NULL || all == NULL) {
        free(hub);
        free(all);
        return lvp_fail(LVP_ERR_MEMORY, "out of memory for the loop transport");
    }
    *hub = (struct hub){.n_ends = n, .n_open = n, .ends = all};
    pthread_mutex_init(&hub->lock, NULL);
    for (int i = 0; i < n; i++) {
        all[i] = (struct loop_transport){.base.ops = &loop_ops, .hub = hub, .rank = i};
        ends[i] = &all[i].base;
    }
    return LVP_OK;
}
