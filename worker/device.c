#include "worker/device.h"

#include "worker/cuda/plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

_Static_assert((int)LVP_MAX_GPUS == (int)LVP_CUDA_MAX_DEVICES, "one of them grew");

static const char module_name[] = "lvpipe_cuda.so";

// The folder of the running program, with a trailing slash; "" where it cannot be told.
static void program_folder(char *folder, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", folder, size - 1);
    folder[n < 0 ? 0 : n] = '\0';
    char *slash = strrchr(folder, '/');
    folder[slash == NULL ? 0 : slash + 1 - folder] = '\0';
}

// Whether the module was compiled against the same structures. An older one's plugin may be smaller: its size is first.
static bool fits(const struct lvp_cuda_plugin *plugin)
{
    static const size_t sizes[LVP_CUDA_N_SIZES] = LVP_CUDA_SIZES;
    for (int i = 0; i < LVP_CUDA_N_SIZES; i++)
        if (plugin->sizes[i] != sizes[i]) return false;
    return strcmp(plugin->version, LVP_VERSION) == 0;
}

static const struct lvp_cuda_plugin *open_module(char *why, size_t size)
{
    char folder[PATH_MAX], paths[2][PATH_MAX + 64];
    const char *asked = getenv("LVP_CUDA_MODULE");
    program_folder(folder, sizeof folder);
    (void)snprintf(paths[0], sizeof paths[0], "%s%s", folder, module_name);
    (void)snprintf(paths[1], sizeof paths[1], "%s../lib/lvpipe/%s", folder, module_name);
    const char *path = asked;
    for (int i = 0; i < 2 && path == NULL; i++)
        if (access(paths[i], R_OK) == 0) path = paths[i];
    if (path == NULL) {
        (void)snprintf(why, size, "this program was built without the CUDA backend (%s)", module_name);
        return NULL;
    }
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL); // stays open: backends come from it
    if (module == NULL) {
        (void)snprintf(why, size, "%s", dlerror());
        return NULL;
    }
    const struct lvp_cuda_plugin *plugin = dlsym(module, "lvp_cuda_plugin");
    if (plugin != NULL && fits(plugin)) return plugin;
    (void)snprintf(why, size, "%.200s belongs to another version of lvpipe", path);
    return NULL;
}

static struct {
    bool looked;
    const struct lvp_cuda_plugin *plugin;
    int numbers[LVP_MAX_GPUS]; // the plugin's, of the GPUs that count here
    struct lvp_gpus gpus;
} found;

static void find_nccl(struct lvp_gpus *gpus)
{
    const char *wanted = getenv("LVPIPE_NCCL"), *why = "LVPIPE_NCCL=0 turns NCCL off";
    if (gpus->n == 0) return;
    if (wanted == NULL || strcmp(wanted, "0") != 0) gpus->nccl = found.plugin->nccl_version(&why);
    if (gpus->nccl == 0) (void)snprintf(gpus->no_nccl, sizeof gpus->no_nccl, "%s", why);
}

const struct lvp_gpus *lvp_gpus_find(void)
{
    if (found.looked) return &found.gpus;
    found.looked = true;
    found.plugin = open_module(found.gpus.text, sizeof found.gpus.text);
    if (found.plugin == NULL) return &found.gpus;
    struct lvp_cuda_devices devices;
    found.plugin->probe(&devices);
    found.gpus.module = true;
    found.gpus.n = devices.n;
    memcpy(found.numbers, devices.numbers, sizeof found.numbers);
    memcpy(found.gpus.memory_bytes, devices.memory_bytes, sizeof found.gpus.memory_bytes);
    memcpy(found.gpus.names, devices.names, sizeof found.gpus.names);
    find_nccl(&found.gpus);
    (void)snprintf(found.gpus.text, sizeof found.gpus.text, "%s", devices.text);
    return &found.gpus;
}

enum lvp_status lvp_backend_open(int gpu, const char *kernel_set, enum lvp_dtype dtype, int threads,
                                 const struct lvp_backend_limits *limits, struct lvp_backend **backend)
{
    if (gpu == LVP_NO_GPU) return lvp_cpu_backend_open(kernel_set, dtype, threads, limits, backend);
    const struct lvp_gpus *gpus = lvp_gpus_find();
    *backend = NULL;
    if (gpus->n == 0) return lvp_fail(LVP_ERR_USAGE, "no usable GPU: %s", gpus->text);
    if (gpu < 0 || gpu >= gpus->n)
        return lvp_fail(LVP_ERR_USAGE, "GPU %d was asked for, this process sees %d: %s", gpu, gpus->n, gpus->text);
    return found.plugin->open(found.numbers[gpu], dtype, limits, backend);
}

enum lvp_status lvp_gpu_transport_open(struct lvp_transport *messages, int gpu, double limit_seconds,
                                       struct lvp_transport **transport)
{
    const struct lvp_gpus *gpus = lvp_gpus_find();
    *transport = NULL;
    if (gpus->nccl == 0 || gpu < 0 || gpu >= gpus->n) return lvp_fail(LVP_ERR_USAGE, "no GPU with NCCL is here");
    return found.plugin->open_nccl(messages, found.numbers[gpu], limit_seconds, transport);
}
