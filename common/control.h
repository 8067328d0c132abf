// The control channel: protobuf messages between rank 0 and the workers over one MPI communicator. Sends never block:
// they are packed, handed to MPI and kept until done. Thread: the rank's communication thread (MPI_THREAD_FUNNELED).
#ifndef LVP_COMMON_CONTROL_H
#define LVP_COMMON_CONTROL_H

#include "common/clock.h"
#include "common/status.h"
#include "lvpipe.pb-c.h"

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LVP_CONTROL_MAX_BYTES = 64 << 20 }; // a larger message is malformed

struct lvp_control;

enum lvp_status lvp_control_open(MPI_Comm communicator, struct lvp_control **control) LVP_MUST_CHECK;
void lvp_control_close(struct lvp_control *control); // NULL is allowed

// To ranks first..first + n - 1: packed once.
enum lvp_status lvp_control_send(struct lvp_control *control, int first, int n,
                                 const ProtobufCMessage *message) LVP_MUST_CHECK;

// The next message that has arrived, if any: *bytes is NULL when there is none, else it is valid until the next poll.
enum lvp_status lvp_control_poll(struct lvp_control *control, int *from, const uint8_t **bytes,
                                 size_t *n_bytes) LVP_MUST_CHECK;

// Whether a send has not been taken by MPI yet.
bool lvp_control_sending(struct lvp_control *control);

// Unpack with a bound; LVP_ERR_FORMAT for bytes that are no such message. Free with lvp__to_worker__free_unpacked.
enum lvp_status lvp_control_unpack_to_worker(const uint8_t *bytes, size_t n_bytes,
                                             Lvp__ToWorker **message) LVP_MUST_CHECK;
enum lvp_status lvp_control_unpack_from_worker(const uint8_t *bytes, size_t n_bytes,
                                               Lvp__FromWorker **message) LVP_MUST_CHECK;

// Rests before a communication thread polls again: not at all while a payload moves (up to 0.4 ms where it waits for
// its receiver), else from 50 us to 2 ms, the longer nothing has come. `idle_rounds` counts polls in a row that found
// nothing.
enum lvp_expectation { LVP_EXPECT_NOTHING, LVP_EXPECT_SOON, LVP_IN_TRANSFER };
void lvp_poll_rest(enum lvp_expectation expectation, int idle_rounds);

#endif
