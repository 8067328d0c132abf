// Starting our own ranks: lvpipe without a launcher supervises an mpirun of itself on this host. The supervisor stands
// outside MPI, so it lives when the ranks do not: it passes signals on, tells which rank was lost, and starts again.
#ifndef LVP_CLI_LAUNCH_H
#define LVP_CLI_LAUNCH_H

#include "common/status.h"

#include <stddef.h>

struct lvp_launch_options {
    int n_ranks;
    int argc;
    char *const *argv;    // of the ranks
    const char *output;   // folder whose .lvpipe holds the ranks' records; NULL: the job keeps none
    int max_restarts;     // of a world that lost a rank
    double drain_seconds; // after TERM, INT, USR1 or HUP
};

// Runs the world until it has ended for good; *exit_status is what the process should end with.
enum lvp_status lvp_launch(const struct lvp_launch_options *options, int *exit_status) LVP_MUST_CHECK;

// An id that stays the same when the launch is restarted or its batch job requeued, and else differs; "" where that
// cannot be known (the user's own mpirun).
void lvp_launch_id(int argc, char *const *argv, char *id, size_t size);

// This process ends when its parent does, which was `parent` when it was started.
void lvp_die_with_parent(int parent);

// Runs this program once more with other arguments (NULL behind the last), and passes the signals that end a run on to
// it until it is gone. *exit_status as a shell would give it. LVP_ERR_IO.
enum lvp_status lvp_launch_self(char *const *arguments, int *exit_status) LVP_MUST_CHECK;

#endif
