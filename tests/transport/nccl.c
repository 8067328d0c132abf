#include "tests/transport/nccl.h"

#include "worker/device.h"

#include <stdlib.h>
#include <string.h>

enum { MOST = 1024 };

// A transfer of the caller's and the one that is made of it. Its memory is freed when the transport is closed: freeing
// waits for the device, and one thread plays both ends, so that nobody would do the other's part.
struct staged {
    struct lvp_transfer *outer; // NULL: has ended
    struct lvp_transfer inner;
    void *memory; // of the device
};

struct staged_transport {
    struct lvp_transport base;
    struct lvp_transport *nccl;
    struct lvp_backend *backend;
    int n;
    struct staged all[MOST];
};

bool nccl_stands_in(void)
{
    return (getenv("LVP_CUDA_HOST") != NULL || getenv("LVP_TESTS_NCCL") != NULL) && lvp_gpus_find()->n > 1 &&
           lvp_gpus_find()->nccl > 0;
}

static void end_staged(struct staged *staged)
{
    staged->outer->active = false;
    staged->outer = NULL;
}

static enum lvp_status start(struct staged_transport *self, bool sends, int peer, int tag, void *host, size_t n_bytes,
                             struct lvp_transfer *transfer)
{
    struct lvp_backend *backend = self->backend;
    if (self->n == MOST) return lvp_fail(LVP_ERR_INTERNAL, "too many transfers for this test");
    struct staged *staged = &self->all[self->n++];
    LVP_TRY(backend->ops->alloc(backend, n_bytes, &staged->memory));
    if (sends) backend->ops->upload(backend, staged->memory, host, n_bytes);
    LVP_TRY(backend->ops->sync(backend));
    *transfer = (struct lvp_transfer){
        .active = true, .receiving = !sends, .peer = peer, .tag = tag, .buffer = host, .n_bytes = n_bytes};
    staged->outer = transfer;
    enum lvp_status status =
        sends ? self->nccl->ops->isend(self->nccl, peer, tag, staged->memory, n_bytes, &staged->inner)
              : self->nccl->ops->irecv(self->nccl, peer, tag, staged->memory, n_bytes, &staged->inner);
    if (status != LVP_OK) end_staged(staged);
    return status;
}

static enum lvp_status staged_isend(struct lvp_transport *transport, int peer, int tag, const void *data,
                                    size_t n_bytes, struct lvp_transfer *transfer)
{
    return start((struct staged_transport *)transport, true, peer, tag, (void *)(size_t)data, n_bytes, transfer);
}

static enum lvp_status staged_irecv(struct lvp_transport *transport, int peer, int tag, void *data, size_t n_bytes,
                                    struct lvp_transfer *transfer)
{
    return start((struct staged_transport *)transport, false, peer, tag, data, n_bytes, transfer);
}

static struct staged *find(struct staged_transport *self, const struct lvp_transfer *transfer)
{
    for (int i = 0; i < self->n; i++)
        if (self->all[i].outer == transfer) return &self->all[i];
    return NULL;
}

static enum lvp_status staged_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    struct staged_transport *self = (struct staged_transport *)transport;
    struct staged *staged = transfer->active ? find(self, transfer) : NULL;
    *done = !transfer->active;
    if (staged == NULL) return LVP_OK;
    enum lvp_status status = self->nccl->ops->test(self->nccl, &staged->inner, done);
    if (status == LVP_OK && !*done) return LVP_OK;
    if (status == LVP_OK && transfer->receiving)
        self->backend->ops->download(self->backend, transfer->buffer, staged->memory, staged->inner.n_received);
    transfer->n_received = staged->inner.n_received;
    end_staged(staged);
    return status;
}

static void staged_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    struct staged_transport *self = (struct staged_transport *)transport;
    struct staged *staged = transfer->active ? find(self, transfer) : NULL;
    if (staged == NULL) return;
    self->nccl->ops->cancel(self->nccl, &staged->inner);
    end_staged(staged);
}

static void staged_close(struct lvp_transport *transport)
{
    struct staged_transport *self = (struct staged_transport *)transport;
    if (self->nccl != NULL) self->nccl->ops->close(self->nccl);
    for (int i = 0; i < self->n; i++) {
        if (self->all[i].outer != NULL) end_staged(&self->all[i]);
        self->backend->ops->free(self->backend, self->all[i].memory);
    }
    if (self->backend != NULL) self->backend->ops->close(self->backend);
    free(self);
}

static const struct lvp_transport_ops staged_ops = {"staged nccl", staged_isend,  staged_irecv,
                                                    staged_test,   staged_cancel, staged_close};

enum lvp_status open_nccl_end(struct lvp_transport *messages, int rank, struct lvp_transport **end)
{
    struct staged_transport *self = calloc(1, sizeof *self);
    struct lvp_backend_limits limits = {1, 1, 1, 1};
    *end = NULL;
    if (self == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    self->base.ops = &staged_ops;
    enum lvp_status status = lvp_backend_open(rank, NULL, LVP_F32, 1, &limits, &self->backend);
    if (status == LVP_OK) status = lvp_gpu_transport_open(messages, rank, NCCL_LIMIT, &self->nccl);
    if (status == LVP_OK)
        *end = &self->base;
    else
        staged_close(&self->base);
    return status;
}
