// Point-to-point transfers between the two ends of a cut, as a table so that MPI, NCCL and the in-process loop are used
// alike. Messages of one (peer, tag) pair arrive in the order they were sent. Buffers belong to the caller and must
// stay untouched until the request is done. Every wait has a deadline, kept by the caller: nothing here blocks. Thread:
// one thread at a time per transport (the rank's communication thread).
#ifndef LVP_COMMON_TRANSPORT_H
#define LVP_COMMON_TRANSPORT_H

#include "common/status.h"

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>

struct lvp_transport;

// A transfer under way. Plain data, in the caller's memory; `active` is false before a start and after the end.
struct lvp_transfer {
    bool active;
    bool receiving;
    int peer, tag;
    void *buffer;              // loop
    size_t n_bytes;            // capacity of a receive, size of a send
    size_t n_received;         // after test said done
    MPI_Request request;       // MPI
    struct lvp_transfer *next; // loop: queue of unmatched transfers
};

struct lvp_transport_ops {
    const char *name;
    enum lvp_status (*isend)(struct lvp_transport *transport, int peer, int tag, const void *data, size_t n_bytes,
                             struct lvp_transfer *transfer) LVP_MUST_CHECK;
    enum lvp_status (*irecv)(struct lvp_transport *transport, int peer, int tag, void *data, size_t capacity,
                             struct lvp_transfer *transfer) LVP_MUST_CHECK;
    // *done says whether the transfer has ended; LVP_ERR_FORMAT for a message larger than the receive's capacity. MPI
    // keeps that promise for small messages only (Open MPI 4.1 copies large ones whole): give a receive all the room
    // there is.
    enum lvp_status (*test)(struct lvp_transport *transport, struct lvp_transfer *transfer, bool *done) LVP_MUST_CHECK;
    // Gives a transfer up; its buffer is the caller's again.
    void (*cancel)(struct lvp_transport *transport, struct lvp_transfer *transfer);
    void (*close)(struct lvp_transport *transport);
};

struct lvp_transport {
    const struct lvp_transport_ops *ops;
};

// Peers are ranks of `communicator`, which stays the caller's.
enum lvp_status lvp_transport_mpi_open(MPI_Comm communicator, struct lvp_transport **transport) LVP_MUST_CHECK;

// n ends in one process: ends[i] talks to peer j as i. For tests, and the conformance suite's yardstick.
enum lvp_status lvp_transport_loop_open(int n, struct lvp_transport **ends) LVP_MUST_CHECK;

#endif
