// One rank of an MPI world, from MPI_Init to MPI_Finalize: rank 0 coordinates, the others work. Its guard and its
// record are set up here, and here it is decided how a world ends in which somebody does not listen any more.
#ifndef LVP_CLI_RANK_H
#define LVP_CLI_RANK_H

#include "cli/options.h"

#include <mpi.h>
#include <stdbool.h>

// What rank 0 does with one set of workers. *clean says whether every worker has ended in good order; the world is
// aborted if not.
typedef enum lvp_status lvp_coordinate(void *context, MPI_Comm control, int n_workers, bool *clean);

// `rounds` times: the workers start anew each time. Returns rank 0's status, LVP_OK in the others; *exit_status is set
// where the status alone does not say it. `device`: what the workers compute on (cli/gpu.h).
enum lvp_status lvp_rank_run(lvp_coordinate *coordinate, void *context, int rounds, enum lvp_device_choice device,
                             int *exit_status) LVP_MUST_CHECK;

#endif
