// Preloaded by test_faults.sh and test_hang.sh. A JPEG of 20000 columns brings the process down while it is decoded, as
// a bug in a decoder would. The rank that POISON_ENDING names stops for ever when it exits.
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// jpeglib.h needs those above.
#include <jpeglib.h>

int jpeg_read_header(j_decompress_ptr info, boolean require_image)
{
    int (*original)(j_decompress_ptr, boolean);
    *(void **)&original = dlsym(RTLD_NEXT, "jpeg_read_header");
    int result = original(info, require_image);
    if (info->image_width == 20000) (void)raise(SIGSEGV);
    return result;
}

__attribute__((destructor)) static void stop_at_exit(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *victim = getenv("POISON_ENDING");
    if (rank != NULL && victim != NULL && strcmp(rank, victim) == 0) (void)raise(SIGSTOP);
}
