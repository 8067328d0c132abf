// How far a run is, for people and programs: a bar that redraws itself on a terminal, else a line every 30 s on stderr
// (never stdout), status.json in the output folder every 2 s, and a file of metrics for Prometheus' node exporter.
// Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_PROGRESS_H
#define LVP_COORDINATOR_PROGRESS_H

#include "coordinator/output/snapshot.h"

#define LVP_STATUS_FILE "status.json"

struct lvp_progress_options {
    bool quiet;          // -q: no bar, no lines
    bool terminal;       // a person is watching stderr (under mpirun it is a pipe, so isatty cannot tell)
    const char *output;  // folder of status.json
    const char *metrics; // file of metrics; NULL: none
    int n_ranks, restarts;
};

struct lvp_progress {
    struct lvp_progress_options options;
    struct lvp_writer *writer;      // NULL: nothing is posted
    double started;                 // lvp_now()
    double drawn, posted, measured; // when; negative: never
    int drawn_lines;                // of the bar on the terminal now
    struct lvp_snapshot last;
};

// Options' texts are borrowed until the end.
void lvp_progress_start(struct lvp_progress *progress, const struct lvp_progress_options *options,
                        struct lvp_writer *writer);

// To be called often.
enum lvp_status lvp_progress_update(struct lvp_progress *progress, const struct lvp_captions_counts *counts,
                                    const struct lvp_run_gauges *gauges, bool draining) LVP_MUST_CHECK;

// Takes the bar away so that another message can be printed; the next update draws it again.
void lvp_progress_clear(struct lvp_progress *progress);

// Writes status and metrics at once and itself, without the writer: before the work ("loading") and after it ("done",
// "drained", "failed", ...). `error` "" for none.
void lvp_progress_tell(struct lvp_progress *progress, const char *state, const char *error);

// "120/5000 (2 %), 3 failed, 1.52 images/s, 80 tokens/s, 53 min left". Failures and rates that are not known are left
// out. Returns `text`.
const char *lvp_progress_text(const struct lvp_snapshot *snapshot, char *text, size_t size);

// The three lines of the bar, without their ends, for a terminal of `width` columns.
enum { LVP_BAR_LINES = 3, LVP_BAR_WIDTH = 200 };
void lvp_progress_bar(const struct lvp_snapshot *snapshot, int width, char lines[LVP_BAR_LINES][LVP_BAR_WIDTH]);

#endif
