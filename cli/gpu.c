#include "cli/gpu.h"

#include "common/job.h"
#include "common/log.h"
#include "worker/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// What a rank tells the others.
struct offer {
    char host[64];
    int32_t worker, module; // whether it is one, and whether the CUDA module is there
    int32_t n_gpus;
    char gpu[32];   // the one it would take, as the machine names it
    char text[160]; // what there is, or why there is none
};

// Workers of the same node with lower ranks.
static int place_on_node(const struct offer *offers, int rank)
{
    int place = 0;
    for (int r = 0; r < rank; r++)
        if (offers[r].worker && strcmp(offers[r].host, offers[rank].host) == 0) place++;
    return place;
}

static enum lvp_status check_shared(const struct offer *offers, int size, int rank)
{
    const char *allowed = getenv("LVPIPE_SHARE_GPUS");
    for (int a = 0; a < size; a++)
        for (int b = a + 1; b < size && offers[a].gpu[0] != '\0'; b++) {
            if (strcmp(offers[a].gpu, offers[b].gpu) != 0 || strcmp(offers[a].host, offers[b].host) != 0) continue;
            if (allowed != NULL && strcmp(allowed, "1") == 0) {
                if (rank == 0) lvp_warn("ranks %d and %d share GPU %s on %s", a, b, offers[a].gpu, offers[a].host);
                return LVP_OK;
            }
            return lvp_fail(LVP_ERR_USAGE,
                            "ranks %d and %d would share GPU %s on %s, which has %d for its workers: start one worker "
                            "per GPU (plus rank 0), or allow it with LVPIPE_SHARE_GPUS=1",
                            a, b, offers[a].gpu, offers[a].host, offers[a].n_gpus);
        }
    return LVP_OK;
}

// The same verdict in every rank.
static enum lvp_status judge(const struct offer *offers, int size, int rank, enum lvp_device_choice choice)
{
    for (int r = 1; r < size; r++) {
        if (offers[r].n_gpus > 0) continue;
        if (choice == LVP_DEVICE_CUDA)
            return lvp_fail(LVP_ERR_USAGE, "rank %d (%s): no usable GPU: %s", r, offers[r].host, offers[r].text);
        if (rank == 0 && offers[r].module) {
            lvp_info("rank %d (%s) computes on the CPU: no usable GPU: %s", r, offers[r].host, offers[r].text);
            break; // said once
        }
    }
    return check_shared(offers, size, rank);
}

enum lvp_status lvp_choose_gpu(MPI_Comm world, int rank, enum lvp_device_choice choice, int *gpu)
{
    int size = 1;
    *gpu = LVP_NO_GPU;
    if (choice == LVP_DEVICE_CPU) return LVP_OK;
    MPI_Comm_size(world, &size);
    struct offer *offers = calloc((size_t)size, sizeof *offers);
    if (offers == NULL) return lvp_fail(LVP_ERR_MEMORY, "out of memory");
    struct offer mine = {.worker = rank > 0};
    const struct lvp_gpus *gpus = NULL;
    lvp_host_name(mine.host, sizeof mine.host);
    if (rank > 0) {
        gpus = lvp_gpus_find();
        mine.module = gpus->module;
        mine.n_gpus = gpus->n;
        (void)snprintf(mine.text, sizeof mine.text, "%.150s", gpus->text);
    }
    MPI_Allgather(&mine, (int)sizeof mine, MPI_BYTE, offers, (int)sizeof mine, MPI_BYTE, world);
    if (mine.n_gpus > 0) {
        *gpu = place_on_node(offers, rank) % mine.n_gpus;
        (void)snprintf(mine.gpu, sizeof mine.gpu, "%.31s", gpus->names[*gpu]);
    }
    MPI_Allgather(&mine, (int)sizeof mine, MPI_BYTE, offers, (int)sizeof mine, MPI_BYTE, world);
    enum lvp_status status = judge(offers, size, rank, choice);
    free(offers);
    return status;
}

enum lvp_status lvp_check_gpu(enum lvp_device_choice choice)
{
    if (choice != LVP_DEVICE_CUDA || lvp_gpus_find()->n > 0) return LVP_OK;
    return lvp_fail(LVP_ERR_USAGE, "--device cuda: no usable GPU: %s", lvp_gpus_find()->text);
}
