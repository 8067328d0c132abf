#include "coordinator/sample.h"

#include <stdlib.h>

void lvp_sample_free(struct lvp_sample *sample)
{
    for (int i = 0; i < sample->n_images; i++) {
        if (sample->images != NULL) free(sample->images[i]);
        if (sample->paths != NULL) free(sample->paths[i]);
    }
    free(sample->images);
    free(sample->paths);
    free(sample->id);
    free(sample->prompt);
    json_decref(sample->columns);
    *sample = (struct lvp_sample){0};
}
