#include "src/cli/show.h"

#include <string.h>

#include "models/token.h"
#include "src/base/common.h"

enum { SHOWN_BYTES = 16 };

size_t show_char(bool *plain_out, const char *text, size_t n_bytes) {
    unsigned char c = (unsigned char)*text;
    size_t length = (size_t)dt_utf8_char(text, n_bytes);
    /* U+0080 to U+009F are c2 80 to c2 9f. */
    bool control = c < ' ' || c == 0x7f || (c == 0xc2 && length == 2 && (text[1] & 0xff) < 0xa0);
    *plain_out = length > 0 && !control;
    return DT_MAX(length, 1u);
}

/* The first character as it is shown; returns its bytes in the text. */
static size_t show_one(char out[SHOWN_BYTES], const char *text, size_t n_bytes) {
    bool plain;
    size_t length = show_char(&plain, text, n_bytes), n = 0;
    for (size_t i = 0; i < length; i++) {
        if (plain)
            out[n++] = text[i];
        else
            n += (size_t)snprintf(out + n, SHOWN_BYTES - n, "\\x%02x", (unsigned char)text[i]);
    }
    out[n] = '\0';
    return length;
}

void show_bytes(char *out, size_t n_out, const char *text, size_t n_bytes) {
    char shown[SHOWN_BYTES];
    size_t used = 0;
    while (n_bytes > 0) {
        size_t length = show_one(shown, text, n_bytes), n = strlen(shown);
        if (n >= n_out - used)
            break;
        memcpy(out + used, shown, n);
        used += n;
        text += length;
        n_bytes -= length;
    }
    out[used] = '\0';
}

void show_text(FILE *out, const char *text) {
    char shown[SHOWN_BYTES];
    for (size_t n = strlen(text); n > 0;) {
        size_t length = show_one(shown, text, n);
        fputs(shown, out);
        text += length;
        n -= length;
    }
}
