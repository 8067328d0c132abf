// Which GPU each rank computes on.
#ifndef LVP_CLI_GPU_H
#define LVP_CLI_GPU_H

#include "cli/options.h"

#include <mpi.h>

// Called by every rank at once. Worker number i of a node takes the i-th GPU it sees, modulo their number: where the
// launcher shows each rank a GPU of its own (Slurm's --gpus-per-task, CUDA_VISIBLE_DEVICES) that is the one. *gpu is
// LVP_NO_GPU on rank 0, with --device cpu, and where `auto` finds none (rank 0 says why). LVP_ERR_USAGE, in every rank
// alike: no GPU for --device cuda, or two workers on one GPU without LVPIPE_SHARE_GPUS=1.
enum lvp_status lvp_choose_gpu(MPI_Comm world, int rank, enum lvp_device_choice choice, int *gpu) LVP_MUST_CHECK;

// Before ranks are started on this machine: LVP_ERR_USAGE where --device cuda cannot be.
enum lvp_status lvp_check_gpu(enum lvp_device_choice choice) LVP_MUST_CHECK;

#endif
