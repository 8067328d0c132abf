// What a run of lvpipe caption is, for resuming: the options and files that decide the captions' bytes
// (coordinator/output/identity.h compares).
#ifndef LVP_COORDINATOR_CAPTION_IDENTITY_H
#define LVP_COORDINATOR_CAPTION_IDENTITY_H

#include "coordinator/caption.h"

#include <jansson.h>

// 32 hex digits each, "" for none. `model` is of everything in the folder that counts: where only that one differs, it
// is the weights or a tokenizer file that others overrule.
struct lvp_run_hashes {
    const char *config, *tokenizer, *pruner_weights, *model;
};

// A new object; NULL when out of memory. The first field that differs is the one that a user is told about.
json_t *lvp_caption_identity(const struct lvp_caption_options *options, const struct lvp_run_hashes *hashes,
                             const char *numeric_path);

#endif
