// A backend whose memory is the host's, around one whose memory is its own: every operation takes its operands there,
// computes, and brings the result back. So one suite, written with plain arrays, tests every device.
#ifndef LVP_TESTS_OPS_HOSTED_H
#define LVP_TESTS_OPS_HOSTED_H

#include "worker/backend.h"

// Owns `inner` from now on. Fails the test where there is no memory.
struct lvp_backend *hosted_open(struct lvp_backend *inner);

#endif
