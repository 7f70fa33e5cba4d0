/* A set of prompts: lines of JSON, {"id", "turns": [first, ...]} or {"id", "prompt"}. Main thread.
 */
#ifndef DT_CLI_PROMPTS_H
#define DT_CLI_PROMPTS_H

#include <jansson.h>

#include "src/cli/opts.h"
#include "src/cli/inputs.h"

/* What is left of the text, and the line that was taken last, from 1. */
typedef struct prompts {
    const char *at, *end;
    int i_line;
} prompts;

/* One prompt. All of it belongs to `object`. */
typedef struct prompts_item {
    json_t *object;
    const json_t *id; /* NULL: none given */
    const char *text; /* the prompt, or the first turn; not empty, with a NUL behind it */
    size_t n_bytes;
} prompts_item;

enum { PROMPTS_ERROR_BYTES = 256 };

/* The text must have a NUL behind it, as cli_read_file gives it. */
prompts prompts_of(const cli_text *text);

/* Takes the next line that is not blank. False behind the last, and where a line is no prompt:
 * then `error` says why in one line, else it is "". After true, prompts_drop the item. */
bool prompts_next(prompts_item *out, char error[PROMPTS_ERROR_BYTES], prompts *p);
void prompts_drop(prompts_item *item);

#endif
