/* What the options name: texts from arguments, files and standard input, and their token ids. */
#ifndef DT_CLI_INPUTS_H
#define DT_CLI_INPUTS_H

#include "models/chat.h"
#include "src/cli/opts.h"

enum { CLI_FILE_BYTES_MAX = 256 << 20 };

/* Any bytes, with a NUL behind them that `n_bytes` does not count; free(data). */
typedef struct cli_text {
    char *data;
    size_t n_bytes;
} cli_text;

/* The whole file, of at most CLI_FILE_BYTES_MAX; "-" is standard input. CLI_OK or CLI_FAILED after
 * one line on stderr. */
int cli_read_file(cli_text *out, const char *path);
/* Writing over what a command reads would destroy it: CLI_USAGE after one line on stderr if `path`
 * (NULL: none) is the same file as one of read[n] (NULL: none; "-": standard input). `name` is the
 * option that gives the path. */
int cli_check_output(const char *name, const char *path, const char *const *read, size_t n);
/* The prompt: -p, else -f, else standard input. An empty one is CLI_FAILED. */
int cli_read_prompt(cli_text *out, const cli_opts *opts);

/* Tokens of a text, free() them. CLI_OK or CLI_FAILED after one line on stderr. */
int cli_encode(int32_t **out, int64_t *n_out, const dt_vocab *vocab, const char *text,
    size_t n_bytes, bool bos, bool special);
/* The same of a conversation and of what follows one (models/chat.h). */
int cli_encode_chat(int32_t **out, int64_t *n_out, const dt_chat *chat, const dt_vocab *vocab,
    const dt_chat_turn *turns, int n_turns);
int cli_encode_append(int32_t **out, int64_t *n_out, const dt_chat *chat, const dt_vocab *vocab,
    int32_t last, const char *user);

/* Ids written as a JSON array, or as numbers with blanks or commas between them. free() them. Each
 * must lie in 0 .. n_vocab - 1. `what` names the source in messages. */
int cli_read_ids(int32_t **out, int64_t *n_out, const char *text, int n_vocab, const char *what);

#endif
