// From a user's TEXT to the prompt's token ids: the chat template around it, image placeholders, bos.
#ifndef LVP_COMMON_PROMPT_H
#define LVP_COMMON_PROMPT_H

#include "common/sample_error.h"
#include "common/status.h"
#include "common/tokenizer.h"

#include <stdint.h>

// A chat template recognised by its text (llava-1.5's, the published llava variants', plain ones). Opaque, owned by
// caller.
struct lvp_chat_template;

// Finds the template in chat_template.jinja, chat_template.json or tokenizer_config.json. A folder without one gets
// llava-1.5's. LVP_ERR_MODEL naming --raw-prompt for a template that is not recognised.
enum lvp_status lvp_chat_template_load(const char *dir, struct lvp_chat_template **chat) LVP_MUST_CHECK;
void lvp_chat_template_free(struct lvp_chat_template *chat);

// The whole prompt as text: n_images times "<image>\n", system text before the first role, TEXT. `system` may be NULL.
// Malloc'ed. The caller has checked that TEXT holds no "<image>".
enum lvp_status lvp_chat_template_apply(const struct lvp_chat_template *chat, const char *system, const char *text,
                                        int n_images, char **prompt) LVP_MUST_CHECK;

struct lvp_prompt {
    int32_t *ids; // [n_ids], one image token id per image (not expanded); owned
    int n_ids;
    int n_images; // image tokens among them
    int n_rows;   // rows after expansion: n_ids - n_images + n_images * vision_tokens
};

// LVP_ERR_MODEL where tokenizer and model do not belong together: <image> is not config.json's image token, or what the
// template (NULL: --raw-prompt) puts around a text has no row in the embedding.
enum lvp_status lvp_prompt_check_model(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                       int image_token_id, int vocab) LVP_MUST_CHECK;

// Builds the prompt of one sample. `chat` NULL means --raw-prompt: TEXT is used as it is and must hold n_images
// "<image>". A fault of this sample is reported in *error (image_token_in_prompt, image_count_mismatch, prompt_too_long
// where n_rows >= max_positions) with LVP_OK; the prompt is then empty.
enum lvp_status lvp_prompt_build(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                 const char *system, const char *text, int n_images, int image_token_id,
                                 int vision_tokens, int max_positions, struct lvp_prompt *prompt,
                                 struct lvp_sample_error *error) LVP_MUST_CHECK;
void lvp_prompt_free(struct lvp_prompt *prompt);

// Ids of an answer that follows the prompt, after one space, and `eos`: what the model would have had to generate.
// `text`, `chat`, `system` and `n_images` as the prompt was built from them. *ids is malloc'ed. An answer that
// is empty, or whose first piece would melt into the prompt's last one: LVP_OK with *error prompt_field_missing; one
// with
// "<image>": image_token_in_prompt.
enum lvp_status lvp_prompt_answer(const struct lvp_tokenizer *tokenizer, const struct lvp_chat_template *chat,
                                  const char *system, const char *text, int n_images, const char *answer, int32_t eos,
                                  const struct lvp_prompt *prompt, int32_t **ids, int *n_ids,
                                  struct lvp_sample_error *error) LVP_MUST_CHECK;

#endif
