/* What every file may use: fixed-width types, the error record, small helpers.
 *
 * Errors are values. A function that can fail returns dt_err; the message of the latest failure
 * lies in a record of the calling thread (the one piece of thread-local state in the program), so
 * that it survives being forwarded through any number of DT_TRY. */
#ifndef DT_BASE_COMMON_H
#define DT_BASE_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dt_err {
    DT_OK = 0,
    DT_ERR_INPUT,       /* a file, a prompt or an option says something impossible */
    DT_ERR_UNSUPPORTED, /* well-formed, but not something this build can do */
    DT_ERR_IO,          /* the operating system refused a read, a write or a mapping */
    DT_ERR_MEMORY,      /* an allocation failed */
    DT_ERR_LIMIT,       /* the context is full, a buffer given is too small */
    DT_ERR_DEVICE,      /* a device or its driver failed; ends the draft, never the session */
    DT_ERR_STOPPED,     /* the caller's callback asked to stop */
    DT_ERR_INTERNAL,    /* a broken invariant of our own */
} dt_err;

/* Records a message (cut to 511 bytes) and returns `code`. The place is not part of the message: it
 * is there for a debugger that stops here. Any thread. */
dt_err dt_err_set(dt_err code, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The latest message of this thread, one line, never NULL; "" before the first failure. */
const char *dt_err_message(void);

/* Puts context in front of the latest message: "context: message". Returns `code`. */
dt_err dt_err_prefix(dt_err code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* An error value with its message; DT_FAIL returns it, DT_TRY forwards one. */
#define DT_ERROR(code, ...) dt_err_set((code), __FILE__, __LINE__, __VA_ARGS__)
#define DT_FAIL(code, ...) return DT_ERROR(code, __VA_ARGS__)
#define DT_TRY(expression)                                                                         \
    do {                                                                                           \
        dt_err try_err_ = (expression);                                                            \
        if (try_err_ != DT_OK)                                                                     \
            return try_err_;                                                                       \
    } while (0)

#define DT_MIN(a, b) ((a) < (b) ? (a) : (b))
#define DT_MAX(a, b) ((a) > (b) ? (a) : (b))
#define DT_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* `value` rounded up to a multiple of `step` (any step > 0). */
static inline size_t dt_round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

#ifdef __cplusplus
}
#endif

#endif
