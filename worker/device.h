// What a worker computes on: the CPU, or a GPU through the module that holds the CUDA code (worker/cuda/plugin.h),
// which is opened here when it lies beside the program, in ../lib/lvpipe, or where LVP_CUDA_MODULE says. Thread: any,
// one at a time.
#ifndef LVP_WORKER_DEVICE_H
#define LVP_WORKER_DEVICE_H

#include "common/transport.h"
#include "worker/backend.h"

enum { LVP_NO_GPU = -1, LVP_MAX_GPUS = 64 };

struct lvp_gpus {
    bool module; // it was found and opened
    int n;       // GPUs that this process may use
    uint64_t memory_bytes[LVP_MAX_GPUS];
    char names[LVP_MAX_GPUS][32]; // as the machine names them: PCI addresses
    int nccl;                     // version of NCCL: 22809 is 2.28.9; 0: not to be had,
    char no_nccl[160];            // and why; LVPIPE_NCCL=0 turns it off
    char text[256];               // what they are, or why there is none
};

// Looks once; later calls give the same answer.
const struct lvp_gpus *lvp_gpus_find(void);

// `gpu` LVP_NO_GPU: lvp_cpu_backend_open. LVP_ERR_USAGE "no usable GPU: ..." where there is no such GPU.
enum lvp_status lvp_backend_open(int gpu, const char *kernel_set, enum lvp_dtype dtype, int threads,
                                 const struct lvp_backend_limits *limits, struct lvp_backend **backend) LVP_MUST_CHECK;

// Transfers by NCCL between this worker's GPU and its neighbours', from and to the GPUs' memory; both ends name the
// same size. `messages` carries what the ends must tell each other, stays the caller's and must outlive the transport.
// Used by the calling thread alone, which is bound to the GPU. LVP_ERR_USAGE: not to be had; LVP_ERR_MEMORY.
//
// A receive is posted when its message is due: where nothing moves for limit_seconds it is LVP_ERR_LOST, naming the
// peer. A send waits for its receive without a limit, since a peer may be busy, and from then on has a limit a quarter
// larger. LVP_ERR_FORMAT at the sender where the sizes differ. After an error, or a cancel, the (peer, tag) pair is of
// no more use, and the GPU may still work with its buffers until the transport is closed: nothing that waits for the
// GPU, as freeing memory does, may be called before that. Closing waits for peers no longer than a second.
enum lvp_status lvp_gpu_transport_open(struct lvp_transport *messages, int gpu, double limit_seconds,
                                       struct lvp_transport **transport) LVP_MUST_CHECK;

#endif
