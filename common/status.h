// Results of fallible calls. Every such call returns an lvp_status; the first failure of a thread also leaves a text
// that says what was wrong and where, in a per-thread slot, until lvp_error_clear.
#ifndef LVP_COMMON_STATUS_H
#define LVP_COMMON_STATUS_H

enum lvp_status {
    LVP_OK = 0,
    LVP_ERR_USAGE,    // command line or configuration: exit status 2
    LVP_ERR_MODEL,    // checkpoint, tokenizer or pruner weights unusable: exit status 3
    LVP_ERR_LOST,     // a rank was lost or missed a deadline: exit status 4
    LVP_ERR_TOO_MANY, // more failed samples than --max-errors: exit status 5
    LVP_ERR_IO,       // reading or writing failed while running: exit status 6
    LVP_ERR_MEMORY,   // an allocation failed
    LVP_ERR_FORMAT,   // malformed bytes from a file or another rank
    LVP_ERR_INTERNAL, // our own bug, reported instead of crashing
    LVP_DRAINED,      // ended early because a signal asked for it, and can be resumed: exit status 75
    LVP_STOPPED,      // the same, at once: exit status 128 + the signal, which the command knows
};

#define LVP_MUST_CHECK                  __attribute__((warn_unused_result))
#define LVP_PRINTF(format_at, first_at) __attribute__((format(printf, format_at, first_at)))

// Records the text (unless an earlier one is still unread in this thread) and returns `status`, so that a failure is
// one line: `return lvp_fail(LVP_ERR_MODEL, "%s: no tensor %s", path, name);`
enum lvp_status lvp_fail(enum lvp_status status, const char *format, ...) LVP_PRINTF(2, 3);

// Text of the first failure since the last clear; "" when there was none. Valid until the next call in this thread.
const char *lvp_error_text(void);
void lvp_error_clear(void);

const char *lvp_status_name(enum lvp_status status);
int lvp_exit_status(enum lvp_status status);

// For functions with one clean-up path: `enum lvp_status status = LVP_OK; LVP_CHECK(call()); ... fail: free(...);
// return status;`
#define LVP_CHECK(call)                                                                                                \
    do {                                                                                                               \
        status = (call);                                                                                               \
        if (status != LVP_OK) goto fail;                                                                               \
    } while (0)

// For functions that own nothing yet.
#define LVP_TRY(call)                                                                                                  \
    do {                                                                                                               \
        enum lvp_status lvp_try_status = (call);                                                                       \
        if (lvp_try_status != LVP_OK) return lvp_try_status;                                                           \
    } while (0)

#endif
