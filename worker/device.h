// What a worker computes on: the CPU, or a GPU through the module that holds the CUDA code (worker/cuda/plugin.h),
// which is opened here when it lies beside the program, in ../lib/lvpipe, or where LVP_CUDA_MODULE says. Thread: any,
// one at a time.
#ifndef LVP_WORKER_DEVICE_H
#define LVP_WORKER_DEVICE_H

#include "common/transport.h"
#include "worker/backend.h"

enum { LVP_NO_GPU = -1, LVP_MAX_GPUS = 64 };

struct lvp_gpus {
    bool module;                  // it was found and opened
    int n;                        // GPUs that this process may use
    uint64_t memory_bytes;        // of the first one
    char names[LVP_MAX_GPUS][32]; // as the machine names them: PCI addresses
    int nccl;                     // version of NCCL, as it counts; 0: not to be had
    char text[256];               // what they are, or why there is none
};

// Looks once; later calls give the same answer.
const struct lvp_gpus *lvp_gpus_find(void);

// `gpu` LVP_NO_GPU: lvp_cpu_backend_open. LVP_ERR_USAGE "no usable GPU: ..." where there is no such GPU.
enum lvp_status lvp_backend_open(int gpu, const char *kernel_set, enum lvp_dtype dtype, int threads,
                                 const struct lvp_backend_limits *limits, struct lvp_backend **backend) LVP_MUST_CHECK;

// Transfers by NCCL between this worker's GPU and its neighbours' (worker/cuda/plugin.h). LVP_ERR_USAGE: not to be had.
enum lvp_status lvp_gpu_transport_open(struct lvp_transport *messages, int gpu,
                                       struct lvp_transport **transport) LVP_MUST_CHECK;

#endif
