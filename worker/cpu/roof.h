// The machine's limits as a benchmark measures them, on the threads and with the instruction set of a CPU backend.
#ifndef LVP_WORKER_CPU_ROOF_H
#define LVP_WORKER_CPU_ROOF_H

#include "worker/backend.h"
#include "worker/cpu/kernels.h"
#include "worker/cpu/pool.h"

// As struct lvp_backend_ops.roof; memory is read as weights lie in it. Takes two seconds and half a gigabyte.
enum lvp_status lvp_cpu_roof(struct lvp_pool *pool, const struct lvp_kernels *kernels, enum lvp_dtype dtype,
                             struct lvp_roof *roof) LVP_MUST_CHECK;

#endif
