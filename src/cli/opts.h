/* The command line: one table of options is the parser and the help of every command. What the
 * options name is read by inputs.h and opened by start.h.
 *
 * Plain data, filled once by the main thread. Strings point into argv. */
#ifndef DT_CLI_OPTS_H
#define DT_CLI_OPTS_H

#include <stdio.h>

#include "models/chat.h"
#include "models/model.h"
#include "src/dovetail.h"

/* Exit codes of the program. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

typedef enum cli_command {
    CLI_RUN,
    CLI_CHAT,
    CLI_BENCH,
    CLI_TOKENIZE,
    CLI_PERPLEXITY,
    CLI_INFO,
    CLI_N_COMMANDS,
} cli_command;

/* Seeds are whole numbers that a double holds, so that JSON keeps them. */
#define CLI_SEED_MAX ((int64_t)1 << 53)

enum { CLI_STOPS_MAX = 16, CLI_BIASES_MAX = 64, CLI_LIST_MAX = 64 };

/* "512" or "0,4096,8192". */
typedef struct cli_list {
    int64_t values[CLI_LIST_MAX];
    int n; /* 0: not given */
} cli_list;

typedef enum cli_stats_form { CLI_STATS_TEXT, CLI_STATS_JSON, CLI_STATS_NONE } cli_stats_form;
typedef enum cli_table_form {
    CLI_TABLE_MD,
    CLI_TABLE_CSV,
    CLI_TABLE_JSON,
    CLI_TABLE_JSONL,
} cli_table_form;

typedef struct cli_opts {
    cli_command command;
    bool help;
    /* the models and the machine */
    const char *target, *draft;
    int draft_kind; /* dt_draft_kind */
    const char *draft_device;
    int64_t gpu; /* -1: none given */
    int64_t n_threads;
    const char *isa, *matmul, *kv;
    /* the prompt */
    const char *prompt, *file, *jsonl, *ids_file, *system, *chat_template;
    int think; /* dt_chat_think */
    bool chat, color;
    /* the answer */
    int64_t n_max, n_ctx, prefill_batch;
    const char *stops[CLI_STOPS_MAX];
    int n_stops;
    const char *biases[CLI_BIASES_MAX]; /* TOKEN:VALUE,... */
    int n_biases;
    bool ignore_end;
    /* sampling */
    double temperature, top_p, min_p, repeat_penalty, presence_penalty, frequency_penalty;
    int64_t top_k, penalty_window;
    int64_t seed; /* -1: none given */
    /* drafting */
    int64_t tree, tree_depth, tree_topk;
    bool no_guard, independent_noise;
    int stats; /* cli_stats_form */
    const char *trace;
    /* tokenize */
    bool special, no_bos;
    const char *decode;
    /* perplexity */
    bool json;
    const char *logits_file;
    int64_t max_tokens;
    /* info */
    const char *topology;
    /* bench */
    cli_list pp, tg, depth, curve;
    int64_t n_reps; /* -1: not given */
    const char *prompts;
    bool ring;
    int table; /* cli_table_form */
} cli_opts;

/* Reads argv (argv[1] is the command). CLI_OK, or CLI_USAGE after one line on stderr. `--help` and
 * `--version` of the program itself are the caller's. */
int cli_opts_read(cli_opts *out, int argc, char **argv);

/* Help for the whole program, or for one command on stdout. */
void cli_help(FILE *out);
void cli_help_command(cli_command command);

/* The table for manuals: names and texts of a command; option i of a command, false behind the
 * last. */
typedef struct cli_command_text {
    const char *name, *help, *notes;
} cli_command_text;

typedef enum cli_value {
    CLI_VALUE_NONE,
    CLI_VALUE_TEXT,
    CLI_VALUE_FILE,
    CLI_VALUE_CHOICE
} cli_value;

typedef struct cli_opt_text {
    const char *names[3]; /* NULL behind the last */
    cli_value kind;
    const char *value; /* its name, or the choices with | between them; NULL for a flag */
    const char *help;
} cli_opt_text;

cli_command_text cli_describe_command(cli_command command);
bool cli_describe_option(cli_opt_text *out, cli_command command, int i);

/* The options that a chat changes while it runs, by name without dashes; NULL after the last.
 * CLI_USAGE after one line on stderr for a name or a value that does not fit. */
const char *cli_setting_name(int i);
int cli_setting_set(cli_opts *opts, const char *name, const char *value);
double cli_setting_get(const cli_opts *opts, const char *name);

/* One line on stderr: "dovetail: ...". Returns `code`, so that `return cli_fail(...)` reads well.
 */
int cli_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same with the library's message of the latest error. */
int cli_fail_err(void);

/* A progress line on stderr, drawn only on a terminal; cli_progress_end wipes it. */
void cli_progress(const char *what, int64_t done, int64_t total);
void cli_progress_end(void);
/* Whether one is there; a signal's handler may ask. */
bool cli_progress_shown(void);

/* The commands; each returns the exit code. */
int cmd_run(const cli_opts *opts);
int cmd_chat(const cli_opts *opts);
int cmd_bench(const cli_opts *opts);
int cmd_tokenize(const cli_opts *opts);
int cmd_perplexity(const cli_opts *opts);
int cmd_info(const cli_opts *opts);

#endif
