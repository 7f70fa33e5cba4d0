#include "src/cli/bias.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The lowest id whose bytes are the text, -1 for none. Control tokens count with their text. */
static int32_t find_token(const dt_vocab *vocab, const char *text, size_t n_bytes) {
    char bytes[256];
    for (int32_t id = 0; id < dt_vocab_size(vocab) && n_bytes <= sizeof bytes; id++)
        if (dt_decode_token(bytes, sizeof bytes, vocab, id, true) == n_bytes &&
            memcmp(bytes, text, n_bytes) == 0)
            return id;
    return -1;
}

static bool read_id(int32_t *out, const char *text, size_t n_bytes) {
    int64_t id = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        id = DT_MIN(id * 10 + (text[i] - '0'), INT32_MAX);
    }
    *out = (int32_t)id;
    return n_bytes > 0;
}

/* One item, [text, end). The last colon ends the token, so that its text may hold others. */
static int read_item(dt_logit_bias *out, const dt_vocab *vocab, const char *text, const char *end) {
    int n = (int)DT_MIN(end - text, 200);
    const char *colon = end;
    while (colon > text && colon[-1] != ':')
        colon--;
    char number[64], *rest;
    size_t n_number = (size_t)(end - colon),
           n_token = colon > text ? (size_t)(colon - text) - 1 : 0;
    snprintf(number, sizeof number, "%.*s", (int)DT_MIN(n_number, sizeof number - 1), colon);
    double value = strtod(number, &rest);
    if (n_token == 0 || n_number == 0 || n_number >= sizeof number || *rest != 0 ||
        !(value <= 1e6 && (value >= -1e6 || value == -HUGE_VAL)))
        return cli_fail(CLI_USAGE,
            "option --logit-bias: '%.*s': want TOKEN:VALUE, VALUE from -1e6 to 1e6 or -inf", n,
            text);
    out->bias = (float)value;
    if (!read_id(&out->token, text, n_token)) {
        out->token = find_token(vocab, text, n_token);
        if (out->token < 0)
            return cli_fail(CLI_FAILED,
                "option --logit-bias: '%.*s' is no single token; `dovetail tokenize` shows ids",
                (int)DT_MIN(n_token, (size_t)200), text);
    }
    if (out->token >= dt_vocab_size(vocab))
        return cli_fail(CLI_FAILED, "option --logit-bias: token %.*s: want 0 to %d",
            (int)DT_MIN(n_token, (size_t)20), text, dt_vocab_size(vocab) - 1);
    return CLI_OK;
}

/* Items are separated by commas; a comma that no colon and number follow belongs to a text. */
int bias_read(dt_logit_bias **out, int *n_out, const cli_opts *opts, const dt_vocab *vocab) {
    *out = NULL;
    *n_out = 0;
    size_t n_max = 0;
    for (int i = 0; i < opts->n_biases; i++)
        n_max += strlen(opts->biases[i]) / 2 + 1;
    if (n_max == 0)
        return CLI_OK;
    *out = malloc(n_max * sizeof **out);
    if (!*out)
        return cli_fail(CLI_FAILED, "no memory for --logit-bias");
    int code = CLI_OK;
    for (int i = 0; i < opts->n_biases; i++) {
        const char *at = opts->biases[i];
        do {
            const char *end = at + strcspn(at, ",");
            while (*end != 0 && !memchr(at, ':', (size_t)(end - at)))
                end += 1 + strcspn(end + 1, ",");
            code = read_item(&(*out)[*n_out], vocab, at, end);
            ++*n_out;
            at = *end != 0 ? end + 1 : NULL;
        } while (at && code == CLI_OK);
        if (code != CLI_OK)
            break;
    }
    if (code != CLI_OK) {
        free(*out);
        *out = NULL;
        *n_out = 0;
    }
    return code;
}
