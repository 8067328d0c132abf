// Preloaded by test_faults.sh: a JPEG of 20000 columns brings the process down while it is decoded, as a bug in a
// decoder would.
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
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
