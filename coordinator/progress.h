// How far a run is, on stderr: a bar that redraws itself on a terminal, else a line every 30 s. Never on stdout.
// Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_PROGRESS_H
#define LVP_COORDINATOR_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lvp_progress {
    uint64_t total;   // requests of the run
    uint64_t resumed; // finished before this run began: they count as done, not as speed
    bool quiet, terminal;
    double started;    // monotonic seconds
    double last_drawn; // negative: never
    int drawn_width;   // columns of the bar on the terminal now
};

// `quiet` (-q): nothing is ever printed. `terminal`: a person is watching stderr (under mpirun it is a pipe, so isatty
// cannot tell).
void lvp_progress_start(struct lvp_progress *progress, uint64_t total, uint64_t resumed, bool quiet, bool terminal);

// To be called often; draws at most ten times a second, or one line in 30 s. `done` counts the failed ones too.
void lvp_progress_update(struct lvp_progress *progress, uint64_t done, uint64_t failed);

// Takes the bar away so that another message can be printed; the next update draws it again.
void lvp_progress_clear(struct lvp_progress *progress);

// The last state, as a line that stays.
void lvp_progress_finish(struct lvp_progress *progress, uint64_t done, uint64_t failed);

// "120/5000 (2 %), 3 failed, 1.52 images/s, 53 min left": the text behind both, `seconds` after the start. Failures and
// times that are not known are left out. Returns `text`.
const char *lvp_progress_text(const struct lvp_progress *progress, uint64_t done, uint64_t failed, double seconds,
                              char *text, size_t size);

#endif
