// The flight recorder of a rank: a page of a file in the output folder that the rank keeps mapped and writes to as it
// works, so that it can be read when the rank cannot speak any more. It says who and where the rank is, its last step,
// its last sign of life, and which samples each of its threads has in hand; a fault's signal is noted as the last act.
// The kernel brings the page to the file even when the process is killed; other hosts see it after a sync, every
// second.
//
// One process has one record; before it is opened, and where the folder is not to be had, everything is kept in memory
// and nobody reads it. Thread: notes from any thread; open and close from the main one.
#ifndef LVP_COMMON_RECORD_H
#define LVP_COMMON_RECORD_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum lvp_phase { LVP_PHASE_STARTING, LVP_PHASE_LOADING, LVP_PHASE_RUNNING, LVP_PHASE_FINISHING, LVP_PHASE_ENDED };

enum { LVP_RECORD_WORK = 128, LVP_RECORD_IMAGES = 256 };

struct lvp_record_place {
    int rank, n_ranks;
    int replica, stage, n_stages; // stage -1: the coordinator
};

void lvp_record_start(void); // in memory; catches faults from now on

// Moves the record into DIR/.lvpipe/rank-N. A folder that cannot be written to is no failure: false.
bool lvp_record_open(const char *dir, struct lvp_record_place place);

void lvp_record_phase(enum lvp_phase phase);
void lvp_record_step(uint64_t number); // the last step that was begun
void lvp_record_tick(void);            // computing or loading has moved on
uint64_t lvp_record_ticks(void);

// What the calling thread has in hand: samples of the run. `what` is a word for people with static storage.
// image_thread -1: the compute thread. n = 0 puts everything down.
void lvp_record_work(int image_thread, const char *what, const uint64_t *samples, int n);

// A fault in a thread that has said so is nobody's fault.
void lvp_record_blameless_thread(void);

// The rank's last words: it ends on purpose. Safe in a signal handler.
void lvp_record_end(int exit_status, int signal);
void lvp_record_error(const char *text); // why, before the end

void lvp_record_beat(void); // a sign of life
void lvp_record_sync(void); // to where other hosts can see it; may block

// --- Reading, of a rank that is gone or lives ---------------------------------------------------------------------

struct lvp_record_view {
    struct lvp_record_place place;
    long long pid;
    char host[128];
    enum lvp_phase phase;
    double started, heartbeat; // seconds since 1970
    uint64_t step;
    int fault, end_signal, exit_status; // 0: none; exit_status counts only with phase ENDED
    char error[512];
    char work[32];                     // what the blamed thread did, "" for none
    uint64_t samples[LVP_RECORD_WORK]; // that the fault is to be blamed on
    int n_samples;
};

// Reads DIR/.lvpipe/rank-N; false when there is none or it is not one.
bool lvp_record_read(const char *dir, int rank, struct lvp_record_view *view);
// Every record in DIR/.lvpipe, in no order.
void lvp_record_each(const char *dir, void (*visit)(void *context, const struct lvp_record_view *view), void *context);
void lvp_record_remove_all(const char *dir);

// The rank that brought the others down, when the world ended: the first with a fault, else one without last words that
// had been silent longest. -1: all have ended on purpose. Records opened before `since` are an earlier world's.
int lvp_record_find_lost(const char *dir, double since, struct lvp_record_view *view);

// "rank 2 (n1, stage 1 of 4): killed by SIGSEGV while decoding; its last step was 57": one line for people.
void lvp_record_describe(const struct lvp_record_view *view, char *text, size_t size);

#endif
