#include "common/transport.h"

#include <limits.h>
#include <stdlib.h>

struct mpi_transport {
    struct lvp_transport base;
    MPI_Comm communicator;
};

static enum lvp_status mpi_failure(const char *what, int peer, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(code, text, &length);
    return lvp_fail(LVP_ERR_LOST, "%s rank %d: %s", what, peer, text);
}

static enum lvp_status check_size(size_t n_bytes)
{
    if (n_bytes > INT_MAX)
        return lvp_fail(LVP_ERR_INTERNAL, "a message of %zu bytes is over what MPI takes at once", n_bytes);
    return LVP_OK;
}

static enum lvp_status mpi_isend(struct lvp_transport *transport, int peer, int tag, const void *data, size_t n_bytes,
                                 struct lvp_transfer *transfer)
{
    struct mpi_transport *mpi = (struct mpi_transport *)transport;
    LVP_TRY(check_size(n_bytes));
    *transfer = (struct lvp_transfer){.active = true, .peer = peer, .tag = tag, .n_bytes = n_bytes};
    int code = MPI_Isend(data, (int)n_bytes, MPI_BYTE, peer, tag, mpi->communicator, &transfer->request);
    return code == MPI_SUCCESS ? LVP_OK : mpi_failure("sending to", peer, code);
}

static enum lvp_status mpi_irecv(struct lvp_transport *transport, int peer, int tag, void *data, size_t capacity,
                                 struct lvp_transfer *transfer)
{
    struct mpi_transport *mpi = (struct mpi_transport *)transport;
    LVP_TRY(check_size(capacity));
    *transfer = (struct lvp_transfer){.active = true, .receiving = true, .peer = peer, .tag = tag, .n_bytes = capacity};
    int code = MPI_Irecv(data, (int)capacity, MPI_BYTE, peer, tag, mpi->communicator, &transfer->request);
    return code == MPI_SUCCESS ? LVP_OK : mpi_failure("receiving from", peer, code);
}

static enum lvp_status mpi_test(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done)
{
    (void)transport;
    int flag = 0, code_class = 0;
    MPI_Status status;
    *done = !transfer->active;
    if (*done) return LVP_OK;
    int code = MPI_Test(&transfer->request, &flag, &status);
    if (code != MPI_SUCCESS) {
        transfer->active = false;
        MPI_Error_class(code, &code_class);
        if (code_class == MPI_ERR_TRUNCATE)
            return lvp_fail(LVP_ERR_FORMAT, "rank %d sent more than the %zu bytes expected", transfer->peer,
                            transfer->n_bytes);
        return mpi_failure("transfer with", transfer->peer, code);
    }
    if (!flag) return LVP_OK;
    if (transfer->receiving) {
        int count = 0;
        MPI_Get_count(&status, MPI_BYTE, &count);
        transfer->n_received = (size_t)count;
    }
    transfer->active = false;
    *done = true;
    return LVP_OK;
}

static void mpi_cancel(struct lvp_transport *transport, struct lvp_transfer *transfer)
{
    (void)transport;
    if (!transfer->active) return;
    MPI_Cancel(&transfer->request);
    MPI_Request_free(&transfer->request);
    transfer->active = false;
}

static void mpi_close(struct lvp_transport *transport)
{
    free(transport);
}

static const struct lvp_transport_ops mpi_ops = {"mpi", mpi_isend, mpi_irecv, mpi_test, mpi_cancel, mpi_close};

enum lvp_status lvp_transport_mpi_open(MPI_Comm communicator, struct lvp_transport **transport)
{
    struct mpi_transport *mpi = calloc(1, sizeof *mpi);
    if (mpi == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory for the MPI transport");
    mpi->base.ops = &mpi_ops;
    mpi->communicator = communicator;
    *transport = &mpi->base;
    return LVP_OK;
}
