// One walk over the whole input before work starts: that ids are unique, and what each request of this run is, for the
// output to compare with an earlier run. Samples are loaded by several threads, in blocks; what they say is handed over
// in request order. Millions of samples: 16 bytes each while it runs.
#ifndef LVP_COORDINATOR_SURVEY_H
#define LVP_COORDINATOR_SURVEY_H

#include "coordinator/input/request.h"

// What a request is.
struct lvp_request_mark {
    uint64_t identity; // hash of id and prompt: what must be the same for a run to be resumed
    uint64_t id_text;  // hash of the id as a JSON string, quotes included: how its row in the output begins
};

struct lvp_survey {
    const struct lvp_requests *requests;
    int threads;
    struct lvp_tick tick;
    // Called for each request of this run in order, on the caller's thread. NULL: only ids are checked.
    enum lvp_status (*request)(void *context, uint64_t index, const struct lvp_request_mark *mark);
    void *context;
};

// LVP_ERR_USAGE naming both places of an id that is there twice; LVP_ERR_IO when the input cannot be read any more; or
// what `request` returned.
enum lvp_status lvp_survey(const struct lvp_survey *survey) LVP_MUST_CHECK;

#endif
