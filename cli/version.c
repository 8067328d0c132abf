#include "cli/version.h"

#include "worker/device.h"

#include <jansson.h>
#include <mpi.h>
#include <protobuf-c/protobuf-c.h>
#include <stdio.h>
#include <string.h>

enum lvp_status lvp_print_version(void)
{
    static const char *const kernel_sets[] = {"portable", "avx2", "avx512", "avx512bf16"};
    struct lvp_backend_limits limits = {1, 1, 1, 1};
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
    int length = 0;
    const char *best = lvp_cpu_best_kernel_set();
    if (best == NULL) return LVP_ERR_USAGE;
    MPI_Get_library_version(mpi, &length); // allowed before MPI_Init
    mpi[strcspn(mpi, ",\n")] = '\0';
    (void)printf("lvpipe %s\nlibraries   %s, protobuf-c %s, jansson %s\nkernels    ", LVP_VERSION, mpi,
                 protobuf_c_version(), JANSSON_VERSION);
    for (size_t i = 0; i < sizeof kernel_sets / sizeof *kernel_sets; i++) {
        struct lvp_backend *backend = NULL;
        bool here = lvp_cpu_backend_open(kernel_sets[i], LVP_F32, 1, &limits, &backend) == LVP_OK;
        lvp_error_clear();
        if (here) backend->ops->close(backend);
        (void)printf(" %s%s", kernel_sets[i],
                     strcmp(kernel_sets[i], best) == 0 ? " (used)"
                     : here                            ? ""
                                                       : " (not on this CPU)");
    }
    const struct lvp_gpus *gpus = lvp_gpus_find();
    (void)printf("\nbackends    cpu%s\nGPU         %s\ntransports  mpi", gpus->module ? ", cuda" : "", gpus->text);
    if (gpus->nccl > 0)
        (void)printf(", nccl %d.%d.%d\n", gpus->nccl / 10000, gpus->nccl / 100 % 100, gpus->nccl % 100);
    else
        (void)printf(gpus->n > 0 ? " (no nccl: %s)\n" : "\n", gpus->no_nccl);
    return LVP_OK;
}
