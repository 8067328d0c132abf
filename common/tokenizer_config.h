// What tokenizer_config.json, special_tokens_map.json and added_tokens.json say about a tokenizer, with the defaults of
// transformers 4.57, and the set of files that were read, hashed.
#ifndef LVP_COMMON_TOKENIZER_CONFIG_H
#define LVP_COMMON_TOKENIZER_CONFIG_H

#include "common/added_tokens.h"
#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>

enum {
    LVP_MAX_TOKENIZER_JSON = 64 << 20,  // bytes
    LVP_MAX_TOKENIZER_MODEL = 64 << 20, // bytes
    LVP_MAX_CONFIG_JSON = 16 << 20,     // bytes
    LVP_MAX_TOKEN_ID = 1 << 22,
};

// Reads the tokenizer's files and hashes them (name, size, bytes) in the order in which they are read.
struct lvp_tokenizer_files;
enum lvp_status lvp_tokenizer_files_open(const char *dir, struct lvp_tokenizer_files **files) LVP_MUST_CHECK;
void lvp_tokenizer_files_close(struct lvp_tokenizer_files *files);
// As lvp_file_read.
enum lvp_status lvp_tokenizer_files_read(struct lvp_tokenizer_files *files, const char *name, size_t max_bytes,
                                         char **bytes, size_t *n_bytes) LVP_MUST_CHECK;
// `*json` is NULL, with LVP_OK, when there is no such file; else a JSON object, owned by the caller.
enum lvp_status lvp_tokenizer_files_read_json(struct lvp_tokenizer_files *files, const char *name, size_t max_bytes,
                                              json_t **json) LVP_MUST_CHECK;
// 32 hex digits and NUL of XXH3's 128 bits over what was read.
void lvp_tokenizer_files_hash(const struct lvp_tokenizer_files *files, char hash[33]);

enum lvp_flag { LVP_UNSET = -1, LVP_NO = 0, LVP_YES = 1 };

struct lvp_tokenizer_config {
    bool is_llama;                   // tokenizer_class is LLaMA's, or left out
    char tokenizer_class[64];        // as written, for messages; "" where it is left out
    bool legacy;                     // slow: the space mark goes before every segment
    bool add_bos, add_eos;           // LLaMA's class only; others: tokenizer.json's post_processor
    enum lvp_flag add_prefix_space;  // false: no space mark before the text; null is unset for the fast class
    bool prefix_space_null;          // and false for the slow one
    bool clean_up_spaces;            // decoding removes the space before punctuation
    char *bos, *eos, *unk;           // owned; NULL where there is none
    struct lvp_added_tokens added;   // with ids, by id: added_tokens_decoder, else added_tokens.json
    struct lvp_added_tokens special; // named special tokens (bos_token, ...) in transformers' order; id is -1
};

enum lvp_status lvp_tokenizer_config_load(struct lvp_tokenizer_files *files,
                                          struct lvp_tokenizer_config *config) LVP_MUST_CHECK;
void lvp_tokenizer_config_free(struct lvp_tokenizer_config *config);

// Reads an added token's object: {"content", "lstrip", "rstrip", "normalized", "special", "single_word"}. The text
// belongs to `json`. LVP_ERR_MODEL naming `where` when it is malformed or has single_word, which no LLaVA uses.
enum lvp_status lvp_added_token_parse(const json_t *json, const char *where,
                                      struct lvp_added_token *token) LVP_MUST_CHECK;

#endif
