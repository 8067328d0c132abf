// Which devices there are, for runtime.cpp.
//
// LVP_CUDAHOST_DEVICES: devices that exist (0, so that nobody computes here by chance). LVP_CUDAHOST_CAPABILITY: their
// compute capabilities, separated by commas (9.0), of which the last goes for all further devices. From 13.0 on there
// is no code for them.
#include "tests/cudahost/fibers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

using lvp_host::result;
using lvp_host::setting;

namespace
{

enum { NO_CODE = 13 };

thread_local int current;

void capability(int device, int *major, int *minor)
{
    const char *all = setting("LVP_CUDAHOST_CAPABILITY");
    *major = 9;
    *minor = 0;
    for (int d = 0; all != nullptr; d++) {
        const char *next = strchr(all, ',');
        if (d == device || next == nullptr) {
            (void)sscanf(all, "%d.%d", major, minor);
            return;
        }
        all = next + 1;
    }
}

} // namespace

const char *lvp_host::setting(const char *name)
{
    const char *value = getenv(name);
    return value != nullptr && *value != '\0' ? value : nullptr;
}

int lvp_host::current_device()
{
    return current;
}

extern "C" {

cudaError_t cudaGetDeviceCount(int *n)
{
    const char *devices = setting("LVP_CUDAHOST_DEVICES");
    int count = devices != nullptr ? atoi(devices) : 0;
    if (count == 0) return result(cudaErrorInsufficientDriver); // as with no driver: *n stays as it is
    *n = count;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || device < 0 || device >= n) return result(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    *properties = {};
    (void)snprintf(properties->name, sizeof properties->name, "host emulation");
    capability(device, &properties->major, &properties->minor);
    properties->totalGlobalMem = 4ULL << 30;
    properties->multiProcessorCount = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device)
{
    (void)snprintf(id, static_cast<size_t>(size), "0000:%02x:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    int n = 0;
    *version = cudaGetDeviceCount(&n) == cudaSuccess ? CUDART_VERSION : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *of, const void *)
{
    int major, minor;
    *of = {};
    capability(current, &major, &minor);
    return major >= NO_CODE ? result(cudaErrorNoKernelImageForDevice) : cudaSuccess;
}

} // extern "C"
