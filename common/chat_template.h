// Telling chat templates apart, private to common/prompt.h's implementation.
#ifndef LVP_COMMON_CHAT_TEMPLATE_H
#define LVP_COMMON_CHAT_TEMPLATE_H

#include "common/status.h"
#include "common/text.h"

// Rewrites a Jinja template so that two that differ only in how they are written down become the same text: white space
// control as transformers sets it (trim_blocks, lstrip_blocks), spaces and quotes in tags, comments, `x.role` for
// `x['role']`, constant output ({{ 'USER: ' }}) for plain text, and {% generation %} marks, which print nothing.
// LVP_ERR_MODEL for a tag that does not end.
enum lvp_status lvp_chat_template_canonical(const char *source, size_t n_bytes,
                                            struct lvp_text *canonical) LVP_MUST_CHECK;

#endif
