// How a world of workers runs a model: where it is cut, and how much each stage holds at once. Shared by the caption
// job and the benchmark. Pure but for lvp_deployment_set_up. Thread: rank 0's main thread.
#ifndef LVP_COORDINATOR_DEPLOYMENT_H
#define LVP_COORDINATOR_DEPLOYMENT_H

#include "coordinator/profile.h"
#include "coordinator/scheduler.h"
#include "coordinator/world.h"

enum { LVP_ENCODE_IMAGES = 8 }; // images of one encode job at most

struct lvp_deployment {
    // what is asked for; pointers are borrowed
    const struct lvp_model_config *config;
    const struct lvp_prune_plan *prune_plan; // n_points 0: nothing is pruned
    int pruner_width;                        // of the decision modules; 0: none
    int text_tokens;                         // rows of a typical prompt that are no image's
    int new_tokens;                          // generated per request at most
    enum lvp_dtype dtype, weights;
    const struct lvp_partition_choice *choice;
    int n_stages, n_replicas;
    int concurrency;                   // requests in steps at once, of each replica; 0: from the number of stages
    int batch_tokens;                  // rows of a step; 0: from the model
    int threads;                       // of each worker; 0: its own
    const char *kernel_set;            // of every worker
    const struct lvp_profile *profile; // measured rates for the planner; NULL: typical ones

    // what lvp_deployment_plan makes of it
    struct lvp_prune_counts prune;
    struct lvp_partition partition;
    int merge_stage; // the stage that holds `merge`
    struct lvp_scheduler_config scheduler;
    int image_slots, max_rows;
    int encode_images;    // of one encode job at most
    double block_seconds; // that one block may take for a full step, on a slow machine
};

// LVP_ERR_USAGE where the model cannot be cut so, or does not fit the workers' memory.
enum lvp_status lvp_deployment_plan(struct lvp_deployment *deployment, const struct lvp_world *world) LVP_MUST_CHECK;

// The same for a partition that is already set: all that needs no workers.
void lvp_deployment_size(struct lvp_deployment *deployment);

// Sends the plan to the workers and waits until they are ready, or *interrupt is no longer 0 (LVP_DRAINED). `setup`
// comes with what the plan does not know: the model's place, the pruner, limits of images.
enum lvp_status lvp_deployment_set_up(const struct lvp_deployment *deployment, struct lvp_world *world,
                                      const atomic_int *interrupt, Lvp__Setup *setup) LVP_MUST_CHECK;

#endif
