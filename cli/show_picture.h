// The picture of lvpipe show: a row of panels for every prompt, the image as the model sees it and then once for every
// prune point with the removed patches dimmed, or with the scores as colours; prompt and answer below.
#ifndef LVP_CLI_SHOW_PICTURE_H
#define LVP_CLI_SHOW_PICTURE_H

#include "cli/canvas.h"
#include "common/checkpoint.h"
#include "common/plan.h"

struct lvp_shown_point {
    uint8_t *kept; // [patches] 1: the row is there behind the point; owned
    float *scores; // [patches] NaN where the point did not score it; owned
};

struct lvp_shown_prompt {
    char *text, *answer; // owned
    struct lvp_shown_point points[LVP_MAX_PRUNE_POINTS];
};

// `scores`: heat maps instead of dimmed patches. pixels [3, height, width] as the vision encoder gets them.
// LVP_ERR_MEMORY, LVP_ERR_IO.
enum lvp_status lvp_show_draw(const struct lvp_model_config *config, const struct lvp_prune_counts *prune,
                              const float *pixels, const struct lvp_shown_prompt *prompts, int n_prompts, bool scores,
                              const char *path) LVP_MUST_CHECK;

#endif
