// What a signal means to a rank depends on who started it:
//
//                          rank 0                                        the others
//   bare lvpipe            USR1 drains, USR2 stops (from the supervisor)   USR1, USR2 ignored
//   the user's mpirun      USR1 drains, again stops                        USR1, USR2 ignored
//   srun                   TERM, INT, USR1 drain, again stop               all ignored: they end when rank 0 says so
//
// Where TERM and INT do not drain they end the rank at once, with a note in its record that it did not die by itself.
#ifndef LVP_CLI_SIGNALS_H
#define LVP_CLI_SIGNALS_H

#include <stdatomic.h>

enum lvp_launcher { LVP_LAUNCHER_NONE, LVP_LAUNCHER_OWN, LVP_LAUNCHER_MPIRUN, LVP_LAUNCHER_SRUN };

// Who started this process as a rank of an MPI world; NONE: nobody.
enum lvp_launcher lvp_launcher(void);
int lvp_launched_rank(void); // by the launcher's variables; -1: unknown

void lvp_signals_install(void); // first thing in a rank

// 0: none; 1: drain; 2: stop now. And the signal that asked last.
const atomic_int *lvp_drain_requests(void);
int lvp_last_signal(void);

#endif
