#include "worker/cpu/kernels.h"

#include <stdlib.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

extern const struct lvp_kernels lvp_kernels_portable;
#if defined(__x86_64__)
extern const struct lvp_kernels lvp_kernels_avx2, lvp_kernels_avx512, lvp_kernels_avx512bf16;
#endif

// Best first; portable needs nothing. __builtin_cpu_supports also asks whether the operating system saves the
// registers.
static const struct lvp_kernels *const kernel_sets[] = {
#if defined(__x86_64__)
    &lvp_kernels_avx512bf16,
    &lvp_kernels_avx512,
    &lvp_kernels_avx2,
#endif
    &lvp_kernels_portable,
};
enum { N_KERNEL_SETS = sizeof kernel_sets / sizeof *kernel_sets };

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it.
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

static bool cpu_has(const struct lvp_kernels *kernels)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (kernels == &lvp_kernels_avx2) return avx2;
    if (kernels == &lvp_kernels_avx512) return avx512;
    if (kernels == &lvp_kernels_avx512bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return kernels == &lvp_kernels_portable;
}

enum lvp_status lvp_kernels_find(const char *kernel_set, const struct lvp_kernels **kernels)
{
    const char *origin = "";
    *kernels = NULL;
    if (kernel_set == NULL) {
        kernel_set = getenv("LVP_ISA");
        if (kernel_set != NULL && kernel_set[0] == '\0') kernel_set = NULL;
        if (kernel_set != NULL) origin = "LVP_ISA: ";
    }
    for (int i = 0; i < N_KERNEL_SETS; i++) {
        if (kernel_set != NULL && strcmp(kernel_set, kernel_sets[i]->name) != 0) continue;
        if (cpu_has(kernel_sets[i])) {
            *kernels = kernel_sets[i];
            return LVP_OK;
        }
        if (kernel_set != NULL) {
            return lvp_fail(LVP_ERR_USAGE, "%sthis CPU cannot run the kernel set %s", origin, kernel_set);
        }
    }
    return lvp_fail(LVP_ERR_USAGE, "%sunknown kernel set '%s'; there are portable, avx2, avx512 and avx512bf16", origin,
                    kernel_set);
}

const char *lvp_cpu_best_kernel_set(void)
{
    const struct lvp_kernels *kernels = NULL;
    return lvp_kernels_find(NULL, &kernels) == LVP_OK ? kernels->name : NULL;
}
