/* --logit-bias: what is added to the logits of chosen tokens. */
#ifndef DT_CLI_BIAS_H
#define DT_CLI_BIAS_H

#include "src/cli/opts.h"

/* The items of all --logit-bias options, each TOKEN:VALUE, where TOKEN is an id or the text of one
 * token; free() them. Without any `*out` is NULL. CLI_OK, or CLI_USAGE or CLI_FAILED after one line
 * on stderr. */
int bias_read(dt_logit_bias **out, int *n_out, const cli_opts *opts, const dt_vocab *vocab);

#endif
