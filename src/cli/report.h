/* What the program reports: statistics of an answer as a line or as JSON, tables as Markdown, CSV,
 * JSON or lines of JSON. Main thread. */
#ifndef DT_CLI_REPORT_H
#define DT_CLI_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "src/cli/opts.h"

/* Jansson refuses numbers that are not finite; they become null. */
json_t *report_real(double value);

/* Bytes as a JSON string; what is not valid UTF-8 becomes U+FFFD. */
json_t *report_bytes(const char *bytes, size_t n_bytes);

const char *report_stop_name(dt_stop stop);

/* "token" or "tokens", "1 token" being one. */
const char *report_tokens(int64_t n);

/* The figures of the session's latest answer. `notices` (a JSON array, may be NULL) is taken over.
 */
json_t *report_stats(const dt_engine *engine, const dt_stats *stats, dt_stop stop,
    double load_seconds, json_t *notices);

/* The same in one line: "42.1 tokens/s, 1.62 x plain (26.0), 3.40 tokens a step, ...". `end` (may
 * be NULL) says why the answer ended. */
/* Writes a session's trace in Chrome's format. False with errno set where the file fails. */
bool report_trace(const char *path, const dt_session *session);

void report_stats_line(FILE *out, const dt_stats *stats, bool with_seed, const char *end);

/* An answer of a chat: "42 tokens, 53.1 tokens/s, 1.62 x plain, 3.40 tokens a step; 14 read, 512 of
 * 4096 in the context". */
void report_answer_line(FILE *out, const dt_stats *stats, int64_t n_tokens, int64_t n_ctx);

/* Mean and sample deviation of n values (0 for n < 2). */
void report_mean(double *mean_out, double *deviation_out, const double *values, int n);
/* Sorts `values` and returns the quantile (0.5: median). n > 0. */
double report_quantile(double *values, int n, double quantile);

/* A column of a Markdown table: the rows are JSON objects, `key` the member shown. Numbers get
 * `decimals` places and, where `deviation_key` names a member, " ± deviation". */
typedef struct report_column {
    const char *title, *key, *deviation_key;
    int decimals;
} report_column;

/* Prints an array of objects. JSON and CSV show all members (a list is one field of CSV, its values
 * with blanks between them), Markdown the columns (none for a column that is empty in every row).
 */
void report_table(FILE *out, cli_table_form form, const json_t *rows, const report_column *columns,
    int n_columns);

/* One JSON value and a newline. */
void report_json(FILE *out, const json_t *value, size_t flags);

#endif
