#include "src/cli/inputs.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/mem.h"

int cli_read_file(cli_text *out, const char *path) {
    bool standard = strcmp(path, "-") == 0;
    FILE *file = standard ? stdin : fopen(path, "rb");
    *out = (cli_text){NULL, 0};
    if (!file)
        return cli_fail(CLI_FAILED, "cannot open %s: %s", path, strerror(errno));
    size_t room = 0;
    int code = CLI_OK;
    while (true) {
        if (room - out->n_bytes < 2) {
            room = room ? 2 * room : 65536;
            char *data = realloc(out->data, room);
            if (!data) {
                code = cli_fail(CLI_FAILED, "no memory for %s", path);
                break;
            }
            out->data = data;
        }
        size_t n = fread(out->data + out->n_bytes, 1, room - out->n_bytes - 1, file);
        out->n_bytes += n;
        if (out->n_bytes > CLI_FILE_BYTES_MAX) {
            code = cli_fail(CLI_FAILED, "%s holds more than %d MB, which is more than any context",
                standard ? "standard input" : path, CLI_FILE_BYTES_MAX >> 20);
            break;
        }
        if (n == 0 || feof(file)) /* on a terminal one Ctrl-D is the end */
            break;
    }
    if (code == CLI_OK && ferror(file))
        code = cli_fail(
            CLI_FAILED, "cannot read %s: %s", standard ? "standard input" : path, strerror(errno));
    if (!standard)
        fclose(file);
    if (code != CLI_OK) {
        free(out->data);
        *out = (cli_text){NULL, 0};
        return code;
    }
    out->data[out->n_bytes] = '\0';
    return CLI_OK;
}

int cli_check_output(const char *name, const char *path, const char *const *read, size_t n) {
    struct stat out, in;
    if (!path || stat(path, &out) != 0 || !S_ISREG(out.st_mode))
        return CLI_OK;
    for (size_t i = 0; i < n; i++) {
        if (!read[i])
            continue;
        int found = strcmp(read[i], "-") == 0 ? fstat(STDIN_FILENO, &in) : stat(read[i], &in);
        if (found == 0 && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
            return cli_fail(CLI_USAGE, "option %s: %s is read by this command", name, path);
    }
    return CLI_OK;
}

int cli_read_prompt(cli_text *out, const cli_opts *opts) {
    if (opts->prompt) {
        out->data = strdup(opts->prompt);
        if (!out->data)
            return cli_fail(CLI_FAILED, "no memory for the prompt");
        out->n_bytes = strlen(opts->prompt);
    } else {
        const char *path = opts->file ? opts->file : "-";
        if (!opts->file && isatty(STDIN_FILENO) && isatty(STDERR_FILENO))
            fputs("Type the text; Ctrl-D on an empty line ends it.\n", stderr);
        int code = cli_read_file(out, path);
        if (code != CLI_OK)
            return code;
    }
    if (out->n_bytes == 0) {
        free(out->data);
        *out = (cli_text){NULL, 0};
        return cli_fail(CLI_FAILED, "the %s is empty",
            opts->command == CLI_RUN || opts->command == CLI_BENCH ? "prompt" : "text");
    }
    return CLI_OK;
}

int cli_encode(int32_t **out, int64_t *n_out, const dt_vocab *vocab, const char *text,
    size_t n_bytes, bool bos, bool special) {
    /* A token stands for at least one byte, as a rule; BOS and a space in front come on top. */
    int64_t n_max = (int64_t)n_bytes + 2;
    dt_err err = DT_ERR_LIMIT;
    *out = NULL;
    for (int i = 0; i < 2 && err == DT_ERR_LIMIT; i++) {
        free(*out);
        *out = malloc((size_t)n_max * sizeof **out);
        if (!*out)
            return cli_fail(CLI_FAILED, "no memory for the text's tokens");
        err = dt_encode(*out, n_max, n_out, vocab, text, n_bytes, bos, special);
        n_max = DT_MAX(*n_out, 1);
    }
    if (err == DT_OK)
        return CLI_OK;
    free(*out);
    *out = NULL;
    return cli_fail_err();
}

/* A conversation, or if `turns` is NULL what follows `last`. */
static int encode_chat(int32_t **out, int64_t *n_out, const dt_chat *chat, const dt_vocab *vocab,
    const dt_chat_turn *turns, int n_turns, int32_t last, const char *user) {
    int64_t n_max = 0;
    dt_err err = DT_ERR_LIMIT;
    *out = NULL;
    for (int i = 0; i < 2 && err == DT_ERR_LIMIT; i++) {
        err = turns ? dt_chat_encode(*out, n_max, n_out, chat, vocab, turns, n_turns)
                    : dt_chat_append(*out, n_max, n_out, chat, vocab, last, user);
        if (i == 0 && err == DT_ERR_LIMIT) {
            n_max = *n_out;
            *out = malloc((size_t)n_max * sizeof **out);
            if (!*out)
                return cli_fail(CLI_FAILED, "no memory for the text's tokens");
        }
    }
    if (err == DT_OK && *out)
        return CLI_OK;
    free(*out);
    *out = NULL;
    return err == DT_OK ? cli_fail(CLI_FAILED, "the chat template writes nothing") : cli_fail_err();
}

int cli_encode_chat(int32_t **out, int64_t *n_out, const dt_chat *chat, const dt_vocab *vocab,
    const dt_chat_turn *turns, int n_turns) {
    return encode_chat(out, n_out, chat, vocab, turns, n_turns, -1, NULL);
}

int cli_encode_append(int32_t **out, int64_t *n_out, const dt_chat *chat, const dt_vocab *vocab,
    int32_t last, const char *user) {
    return encode_chat(out, n_out, chat, vocab, NULL, 0, last, user);
}

int cli_read_ids(int32_t **out, int64_t *n_out, const char *text, int n_vocab, const char *what) {
    json_error_t error;
    json_t *array = json_loads(text, 0, &error);
    *out = NULL;
    if (!json_is_array(array)) {
        json_decref(array);
        return cli_fail(CLI_FAILED, "%s: want a JSON array of token ids%s%s", what,
            array ? "" : ": ", array ? "" : error.text);
    }
    size_t n = json_array_size(array);
    int code = CLI_OK;
    *out = malloc((n + 1) * sizeof **out);
    if (!*out)
        code = cli_fail(CLI_FAILED, "no memory for the ids");
    for (size_t i = 0; i < n && code == CLI_OK; i++) {
        const json_t *item = json_array_get(array, i);
        json_int_t id = json_integer_value(item);
        if (!json_is_integer(item))
            code = cli_fail(CLI_FAILED, "%s: element %zu is not a token id", what, i);
        else if (id < 0 || id >= n_vocab)
            code = cli_fail(CLI_FAILED, "%s: token id %lld is out of range, want 0 to %d", what,
                (long long)id, n_vocab - 1);
        else
            (*out)[i] = (int32_t)id;
    }
    json_decref(array);
    if (code != CLI_OK) {
        free(*out);
        *out = NULL;
        return code;
    }
    *n_out = (int64_t)n;
    return CLI_OK;
}
