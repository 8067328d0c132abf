// What a caption job holds; shared by caption.c and caption_setup.c. Not for others.
#ifndef LVP_COORDINATOR_CAPTION_JOB_H
#define LVP_COORDINATOR_CAPTION_JOB_H

#include "common/checkpoint.h"
#include "coordinator/caption.h"
#include "coordinator/output/captions.h"
#include "coordinator/output/crashes.h"
#include "coordinator/output/progress.h"
#include "coordinator/run.h"

enum {
    LVP_TYPICAL_TEXT = 64, // rows of a prompt that are no image's, where nothing else is known
    LVP_MAX_IMAGE_SLOTS = 256,
    LVP_MAX_SEQS = 64
};

// Opened from top to bottom, closed the other way.
struct job {
    const struct lvp_caption_options *options;
    struct lvp_checkpoint *checkpoint;
    const struct lvp_model_config *config;
    char model_hash[33];
    struct lvp_tokenizer *tokenizer;
    struct lvp_chat_template *chat;
    struct lvp_pruner_weights weights;
    struct lvp_world world;
    struct lvp_manifest *manifest;
    struct lvp_requests requests;
    struct lvp_lock *lock; // of the output folder
    struct lvp_crashes crashes;
    struct lvp_prune_counts prune;
    struct lvp_partition partition;
    int n_stages, n_replicas, merge_stage;
    char kernel_set[16];
    struct lvp_scheduler_config scheduler;
    int image_slots, max_rows;
    double block_seconds; // see struct lvp_run_options
    struct lvp_captions *captions;
    struct lvp_progress progress;
    struct lvp_captions_counts final_counts;
    char last_error[600]; // a sample's
    int *vision_tokens;   // [max images of a prompt, 1 + n_points]
    double started;
};

// caption_setup.c: how the workers share the model, and how much they hold at once
enum lvp_status lvp_job_plan(struct job *job) LVP_MUST_CHECK;
enum lvp_status lvp_job_set_up_workers(struct job *job) LVP_MUST_CHECK; // waits until they are ready

#endif
