// Shapes of models that are not here: for planning and for benches with synthetic weights.
#ifndef LVP_COMMON_SHAPES_H
#define LVP_COMMON_SHAPES_H

#include "common/model_config.h"

// `name` is llava-1.5-7b, llava-1.5-13b, tiny-llava, or a path ending in .json: a file with the fields of a LLaVA
// config.json, transformers' defaults for those left out. LVP_ERR_USAGE for a name that is not known or a file that
// is not there; LVP_ERR_MODEL naming file and field for what is in it.
enum lvp_status lvp_shape_load(const char *name, struct lvp_model_config *config) LVP_MUST_CHECK;

// What stands for the model where rates are measured: one ViT layer and a few decoder layers, at most 2048 wide. Rates
// hardly depend on the width, and it takes seconds instead of minutes.
struct lvp_model_config lvp_shape_narrow(const struct lvp_model_config *config);

// Of its decoder layers, as many as so many threads read from memory, not from their caches; the more threads, the more
// caches, and the less time a layer takes.
int lvp_shape_layers_in_memory(const struct lvp_text_config *text, int threads);

#endif
