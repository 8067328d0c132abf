// One line of captions.jsonl or errors.jsonl. The bytes depend on the values only.
#ifndef LVP_COORDINATOR_ROWS_H
#define LVP_COORDINATOR_ROWS_H

#include "common/json_text.h"
#include "coordinator/input/request.h"

// What a request's answer is. All borrowed.
struct lvp_caption {
    const char *caption; // [caption_bytes] decoded without special tokens, trimmed
    size_t caption_bytes;
    bool stopped;             // finish_reason "stop": the last token id is an eos; else "length"
    const int32_t *token_ids; // [n_tokens]
    const float *logprobs;    // [n_tokens] natural log; NULL without --logprobs
    int n_tokens;
    bool scored;       // the answer was given, and its tokens scored
    int n_greedy;      // of those, tokens that greedy decoding would have chosen
    int prompt_tokens; // rows after image expansion, before pruning, bos included
    const int
        *vision_tokens; // [n_images, n_counts] of each image: original count, then the count after each prune point
    int n_images, n_counts;
};

// Both end with a newline.
void lvp_caption_row(const struct lvp_request *request, const struct lvp_caption *caption, struct lvp_json_text *row);
void lvp_error_row(const struct lvp_request *request, const struct lvp_sample_error *error, int attempts,
                   struct lvp_json_text *row);

#endif
