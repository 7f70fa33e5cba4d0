#include "src/base/common.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 512 };

static _Thread_local char message[MESSAGE_BYTES];

dt_err dt_err_set(dt_err code, const char *file, int line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    (void)file; /* kept in the signature for debuggers: break here and look up one frame */
    (void)line;
    return code;
}

const char *dt_err_message(void) {
    return message;
}

dt_err dt_err_prefix(dt_err code, const char *format, ...) {
    char old[MESSAGE_BYTES];
    memcpy(old, message, sizeof old);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (n >= 0 && n < MESSAGE_BYTES - 3)
        snprintf(message + n, sizeof message - (size_t)n, ": %s", old);
    return code;
}
