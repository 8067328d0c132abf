// The flight recorder of a rank: who and where it is, its last step, its last sign of life, and which samples each of
// its threads has in hand. Kept in memory, where a note costs a store and can never block; brought to a file in the
// output folder every second, and once more when a fault kills the process, so that it can be read when the rank cannot
// speak.
//
// One process has one record; before it is opened, and where the folder is not to be had, it stays in memory and nobody
// reads it. Thread: notes from any thread; lvp_record_write from one at a time.
#ifndef LVP_COMMON_RECORD_H
#define LVP_COMMON_RECORD_H

#include "common/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum lvp_phase { LVP_PHASE_STARTING, LVP_PHASE_LOADING, LVP_PHASE_RUNNING, LVP_PHASE_FINISHING, LVP_PHASE_ENDED };

enum { LVP_RECORD_WORK = 256, LVP_RECORD_IMAGES = 256 };

struct lvp_record_place {
    int rank, n_ranks;
    int replica, stage, n_stages; // stage -1: the coordinator
};

// In memory; catches faults from now on. The calling thread is one whose faults are no sample's. Again after something
// else may have taken the signals.
void lvp_record_start(void);

// The record's file is DIR/.lvpipe/rank-N from now on. False where it cannot be written; may block.
bool lvp_record_open(const char *dir, struct lvp_record_place place);

void lvp_record_phase(enum lvp_phase phase);
void lvp_record_step(uint64_t number); // the last step that was begun
void lvp_record_tick(void);            // computing or loading has moved on
uint64_t lvp_record_ticks(void);
void lvp_record_alone(bool alone, uint64_t sample); // rank 0: nothing but this sample is under way

// What the calling thread does from now on: a thread that has not said so works on no sample. `number` below
// LVP_RECORD_IMAGES. Threads that compute share what one of them has in hand.
void lvp_record_compute_thread(void);
void lvp_record_image_thread(int number);

// What the calling thread has in hand: samples of the run; an image thread has one. `what` is a word for people. n = 0
// puts everything down.
void lvp_record_work(const char *what, const uint64_t *samples, int n);

// The rank's last words: it ends on purpose. In memory only.
void lvp_record_end(int exit_status, int signal);
void lvp_record_error(const char *text); // why, before the end

void lvp_record_beat(void);  // a sign of life
void lvp_record_write(void); // to the file; may block. Safe in a signal handler

// --- Reading, of a rank that is gone or lives ---------------------------------------------------------------------

struct lvp_record_view {
    struct lvp_record_place place;
    long long pid;
    char host[128];
    enum lvp_phase phase;
    int64_t started_ms, heartbeat_ms; // since 1970
    uint64_t step;
    int fault, end_signal, exit_status; // 0: none; exit_status counts only with phase ENDED
    char error[512];
    char work[32];                     // what the blamed thread did, "" for none
    uint64_t samples[LVP_RECORD_WORK]; // that the fault is to be blamed on, each once
    int n_samples;
    bool has_alone; // rank 0's: the sample that was under way alone
    uint64_t alone;
};

// Reads DIR/.lvpipe/rank-N; false when there is none or it is not one.
bool lvp_record_read(const char *dir, int rank, struct lvp_record_view *view);
// Every record in DIR/.lvpipe, in no order.
void lvp_record_each(const char *dir, void (*visit)(void *context, const struct lvp_record_view *view), void *context);
void lvp_record_remove_all(const char *dir);

// The rank that brought the others down, when the world ended: the first with a fault, else one without last words that
// had been silent longest. -1: all have ended on purpose. Records opened before `since_ms` are an earlier world's.
int lvp_record_find_lost(const char *dir, int64_t since_ms, struct lvp_record_view *view);

// "rank 2 (n1, stage 1 of 4): crashed (Segmentation fault) while decoding an image; its last step was 57".
void lvp_record_describe(const struct lvp_record_view *view, char *text, size_t size);

#endif
