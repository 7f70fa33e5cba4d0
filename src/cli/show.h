/* Texts that others wrote, for a terminal: names of files, what a model file says of itself. What
 * could move the cursor or change colours, and what is no UTF-8, is shown by its number: \x1b. */
#ifndef DT_CLI_SHOW_H
#define DT_CLI_SHOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Bytes of the character at text[0], n_bytes > 0 (1 for a byte that is none), and whether a
 * terminal may have it as it is: no C0 or C1 control, no DEL, well-formed. */
size_t show_char(bool *plain_out, const char *text, size_t n_bytes);

/* A string with its NUL in n_out > 0 bytes; what does not fit is left out, never a part of a
 * character. */
void show_bytes(char *out, size_t n_out, const char *text, size_t n_bytes);

/* The whole text to a file. */
void show_text(FILE *out, const char *text);

#endif
