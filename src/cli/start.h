/* The engine and the session that the options ask for, and the end of the program. Main thread. */
#ifndef DT_CLI_START_H
#define DT_CLI_START_H

#include "src/cli/opts.h"

/* The library's options from those of the command line. Progress goes to stderr if it is a
 * terminal. */
int cli_engine_open(dt_engine **out, const cli_opts *opts);
/* NULL is fine. */
void cli_engine_close(dt_engine *engine);
/* dt_gpu_report. */
void cli_gpu_report(char *out, size_t n_bytes);
/* Ends the program: at once where a driver hangs. */
int cli_leave(int code);
void cli_session_options(dt_session_options *out, const cli_opts *opts);
/* What session.n_ctx will be for this model: -c, or the library's default. */
int64_t cli_n_ctx(const cli_opts *opts, const dt_model *model);

#endif
