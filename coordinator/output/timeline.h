// What every rank computed, sent and prepared when, as events in Chrome's trace format (a JSON array): for
// ui.perfetto.dev or chrome://tracing. One process a rank; times in microseconds since 1970.
#ifndef LVP_COORDINATOR_TIMELINE_H
#define LVP_COORDINATOR_TIMELINE_H

#include "common/status.h"
#include "coordinator/world.h"

#include <jansson.h>

// LVP_ERR_USAGE unless the file of --trace can be written, which may create it. Before hours of work, that is.
enum lvp_status lvp_timeline_check(const char *path) LVP_MUST_CHECK;

// Adds a rank's spans (worker/trace.h) to `timeline`, an array.
void lvp_timeline_add(json_t *timeline, int rank, const Lvp__Statistics *statistics);

enum lvp_status lvp_timeline_write(const char *path, const json_t *timeline) LVP_MUST_CHECK;
// Of all workers' last words, once they have finished; leaves the file as it is where they did nothing.
enum lvp_status lvp_timeline_write_world(const char *path, const struct lvp_world *world) LVP_MUST_CHECK;

#endif
