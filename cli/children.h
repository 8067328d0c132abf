// The children of a process, as the kernel lists them.
#ifndef LVP_CLI_CHILDREN_H
#define LVP_CLI_CHILDREN_H

#include <sys/types.h>

// How many children of this process have not ended; *one is one of them, 0 where there is none. 0 too where the kernel
// does not tell (/proc/PID/task/TID/children). Touches nothing for which a child's own memory would have to answer: it
// may hang in a driver.
int lvp_living_children(pid_t parent, pid_t *one);

#endif
