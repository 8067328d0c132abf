// Measures the link between two workers, with nothing else on it. Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_LINK_H
#define LVP_COORDINATOR_LINK_H

#include "coordinator/profile.h"
#include "coordinator/world.h"

// From rank `from` to rank `to` and back, by messages as large as about a second allows. LVP_ERR_FORMAT for an answer
// that cannot be, else as lvp_world_collect.
enum lvp_status lvp_link_measure(struct lvp_world *world, int from, int to, struct lvp_link *link) LVP_MUST_CHECK;

#endif
