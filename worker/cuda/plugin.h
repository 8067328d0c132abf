// The door between lvpipe and the module that holds its CUDA code (lvpipe_cuda.so): lvpipe itself needs no CUDA library
// and opens the module when there is one.
#ifndef LVP_WORKER_CUDA_PLUGIN_H
#define LVP_WORKER_CUDA_PLUGIN_H

#ifdef __cplusplus
#include "worker/cuda/cuda_backend.h"
extern "C" {
#else
#include "worker/backend.h"
#endif

enum { LVP_CUDA_MAX_DEVICES = 64 };

struct lvp_transport;

struct lvp_cuda_devices {
    int n;                             // that this process may use; 0: `text` says why
    int numbers[LVP_CUDA_MAX_DEVICES]; // CUDA's, which open and open_nccl take: some may have been left out
    uint64_t memory_bytes[LVP_CUDA_MAX_DEVICES];
    char names[LVP_CUDA_MAX_DEVICES][32]; // PCI addresses
    char text[256];                       // what they are, for people
};

// What both sides must have been compiled against alike; their versions of the program too.
#define LVP_CUDA_SIZES                                                                                                 \
    {                                                                                                                  \
        sizeof(struct lvp_cuda_plugin), sizeof(struct lvp_cuda_devices), sizeof(struct lvp_backend),                   \
            sizeof(struct lvp_backend_ops), sizeof(struct lvp_backend_limits), sizeof(struct lvp_linear_part),         \
            sizeof(struct lvp_epilogue), sizeof(struct lvp_dense_attention), sizeof(struct lvp_paged_attention),       \
            sizeof(struct lvp_row_selection), sizeof(struct lvp_last_attention), sizeof(struct lvp_soft_nms),          \
            sizeof(struct lvp_draw)                                                                                    \
    }
enum { LVP_CUDA_N_SIZES = 13 };

struct lvp_cuda_plugin {
    size_t sizes[LVP_CUDA_N_SIZES]; // LVP_CUDA_SIZES; compared in order, the plugin's own first
    const char *version;            // LVP_VERSION
    void (*probe)(struct lvp_cuda_devices *devices);
    // Binds the calling thread to the device; so do, later, the operations that allocate, free, measure and close. The
    // others are for a thread that is bound. LVP_ERR_USAGE: cannot be used; LVP_ERR_MEMORY.
    enum lvp_status (*open)(int device, enum lvp_dtype dtype, const struct lvp_backend_limits *limits,
                            struct lvp_backend **backend) LVP_MUST_CHECK;
    int (*nccl_version)(const char **why); // 22809 is 2.28.9; 0: it is not to be had, *why says why
    // lvp_gpu_transport_open of worker/device.h.
    enum lvp_status (*open_nccl)(struct lvp_transport *messages, int device, double limit_seconds,
                                 struct lvp_transport **transport) LVP_MUST_CHECK;
};

#ifdef __cplusplus
// transport_nccl.cu, or no_nccl.cu where the module is built without NCCL's header.
int lvp_nccl_version(const char **why);
enum lvp_status lvp_transport_nccl_open(struct lvp_transport *messages, int device, double limit_seconds,
                                        struct lvp_transport **transport);
#endif

// The symbol of that name in the module.
extern const struct lvp_cuda_plugin lvp_cuda_plugin;

#ifdef __cplusplus
}
#endif

#endif
