/* Lines from standard input: edited and with a history by libedit where both ends are a terminal,
 * plain otherwise. Main thread; one reader at a time. */
#ifndef DT_CLI_LINE_H
#define DT_CLI_LINE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct cli_line_reader cli_line_reader;

typedef enum line_end {
    LINE_OK,
    LINE_EOF,         /* Ctrl-D on an empty line, or the end of the input */
    LINE_INTERRUPTED, /* Ctrl-C; what was typed is dropped, *n_out > 0 if there was something */
    LINE_FAILED,      /* one line was written to stderr */
} line_end;

/* CLI_OK, or CLI_FAILED after one line on stderr. A history that cannot be kept is a line on
 * stderr and no failure. */
int line_open(cli_line_reader **out);
void line_close(cli_line_reader *reader); /* NULL is fine */

/* Whether someone sits in front of it. */
bool line_interactive(const cli_line_reader *reader);

/* One line without its newline, any bytes, NUL-terminated; valid until the next call. The prompt is
 * shown on a terminal only. */
line_end line_read(
    cli_line_reader *reader, const char *prompt, const char **text_out, size_t *n_out);

/* Forgets what was typed ahead at a terminal: the rest of a paste whose answer was interrupted. */
void line_drop_ahead(cli_line_reader *reader);

/* Puts a line into the history and writes the file. */
void line_remember(cli_line_reader *reader, const char *text);

#endif
