// Reading JSON files that nobody vouches for: size-bounded loading, and fields checked for type and range with messages
// that name the file and the field ("DIR/config.json: text_config.hidden_size is ..."). Every fault is LVP_ERR_MODEL.
#ifndef LVP_COMMON_JSON_H
#define LVP_COMMON_JSON_H

#include "common/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { LVP_JSON_MAX_BYTES = 64 << 20, LVP_JSON_MAX_PATH = 128 };

// A JSON object and where it stands, for messages. `value` and `file` are borrowed.
struct lvp_json {
    const json_t *value;
    const char *file;
    char path[LVP_JSON_MAX_PATH]; // "" for the root, else "text_config." with the dot
};

// Parses one document. `name` is for messages. The caller owns *root (json_decref).
enum lvp_status lvp_json_parse(const char *name, const char *bytes, size_t n_bytes, json_t **root) LVP_MUST_CHECK;

// Loads a regular file of at most LVP_JSON_MAX_BYTES. With `optional`, a file that does not exist gives *root NULL.
enum lvp_status lvp_json_load(const char *path, bool optional, json_t **root) LVP_MUST_CHECK;

// The same for a file that an option of the command line names, without duplicate keys. LVP_ERR_USAGE naming both.
enum lvp_status lvp_json_load_option(const char *option, const char *path, json_t **root) LVP_MUST_CHECK;

// LVP_ERR_USAGE naming a key of the object that is not `known` (ends with NULL). Another kind of value is left to the
// caller.
enum lvp_status lvp_json_only(const char *option, const char *path, const json_t *object,
                              const char *const *known) LVP_MUST_CHECK;

// The root as an object; LVP_ERR_MODEL when it is another kind of value.
enum lvp_status lvp_json_root(const json_t *root, const char *file, struct lvp_json *object) LVP_MUST_CHECK;

bool lvp_json_has(const struct lvp_json *object, const char *key); // there, and not null

// A member that must be an object.
enum lvp_status lvp_json_child(const struct lvp_json *object, const char *key, struct lvp_json *child) LVP_MUST_CHECK;

// Members by type. An absent key leaves *value, the default, as it is; null is a fault (ask lvp_json_has first where
// null is a legal way to say nothing). Ranges include both ends. Strings live as long as the document.
enum lvp_status lvp_json_int(const struct lvp_json *object, const char *key, int min, int max,
                             int *value) LVP_MUST_CHECK;
enum lvp_status lvp_json_float(const struct lvp_json *object, const char *key, double min, double max,
                               float *value) LVP_MUST_CHECK;
enum lvp_status lvp_json_double(const struct lvp_json *object, const char *key, double min, double max,
                                double *value) LVP_MUST_CHECK;
enum lvp_status lvp_json_bool(const struct lvp_json *object, const char *key, bool *value) LVP_MUST_CHECK;
enum lvp_status lvp_json_string(const struct lvp_json *object, const char *key, const char **value) LVP_MUST_CHECK;

// The same for an integer, or a list of 1..max_values of them.
enum lvp_status lvp_json_ints(const struct lvp_json *object, const char *key, int min, int max, int max_values,
                              int *values, int *n_values) LVP_MUST_CHECK;

#endif
