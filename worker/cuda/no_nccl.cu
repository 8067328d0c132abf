// In the place of transport_nccl.cu where the module is built without NCCL's header.
#include "worker/cuda/plugin.h"

int lvp_nccl_version(const char **why)
{
    *why = "lvpipe was built without NCCL";
    return 0;
}

enum lvp_status lvp_transport_nccl_open(struct lvp_transport *, int, double, struct lvp_transport **transport)
{
    *transport = nullptr;
    return lvp_fail(LVP_ERR_USAGE, "lvpipe was built without NCCL");
}
