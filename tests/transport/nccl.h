// NCCL's transport as the tests use it: buffers in host memory, which pass through the memory of a stand-in for a GPU.
#ifndef LVP_TESTS_TRANSPORT_NCCL_H
#define LVP_TESTS_TRANSPORT_NCCL_H

#include "common/transport.h"

// Seconds of its limit.
#define NCCL_LIMIT 1.0

// Whether this build has stand-ins for GPUs, at least two of them; or LVP_TESTS_NCCL says to take real ones.
bool nccl_stands_in(void);

// Rank `rank` of two, on the device of that number.
enum lvp_status open_nccl_end(struct lvp_transport *messages, int rank, struct lvp_transport **end) LVP_MUST_CHECK;

#endif
