/* dovetail run: the answer to one prompt as a stream of text, or to many as lines of JSON. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "src/base/mem.h"
#include "src/cli/bias.h"
#include "src/cli/prompts.h"
#include "src/cli/report.h"
#include "src/cli/inputs.h"
#include "src/cli/start.h"

/* Set by Ctrl-C; the second one ends the program at once. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

static void catch_interrupt(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

typedef struct run {
    const cli_opts *opts;
    dt_engine *engine;
    dt_session_options session;
    dt_chat *chat;
    dt_logit_bias *biases;
    double load_seconds;
    /* of the answer under way */
    bool collects; /* text goes into `text`, not to standard output */
    cli_text text;
    size_t room;
    int write_errno; /* why text could not be written, 0: it could */
    char last;       /* last byte written */
    json_t *notices;
} run;

static int collect_text(run *r, const char *bytes, size_t n_bytes) {
    if (r->room - r->text.n_bytes < n_bytes) {
        size_t room = 2 * r->room + n_bytes + 256;
        char *data = realloc(r->text.data, room);
        if (!data) {
            r->write_errno = ENOMEM;
            return 1;
        }
        r->text.data = data;
        r->room = room;
    }
    memcpy(r->text.data + r->text.n_bytes, bytes, n_bytes);
    r->text.n_bytes += n_bytes;
    return interrupted;
}

static int on_text(void *arg, const char *bytes, size_t n_bytes, bool drafted) {
    run *r = arg;
    (void)drafted;
    if (n_bytes > 0) {
        if (r->collects)
            return collect_text(r, bytes, n_bytes);
        cli_progress_end();
        errno = 0;
        if (fwrite(bytes, 1, n_bytes, stdout) != n_bytes || fflush(stdout) != 0) {
            if (errno != EINTR || !interrupted)
                r->write_errno = errno ? errno : EIO;
            return 1;
        }
        r->last = bytes[n_bytes - 1];
    }
    return interrupted;
}

static int on_prefill(void *arg, int64_t done, int64_t total) {
    (void)arg;
    cli_progress("reading the prompt", done, total);
    return interrupted;
}

static void on_notice(void *arg, const char *line) {
    run *r = arg;
    json_array_append_new(r->notices, report_bytes(line, strlen(line)));
}

/* Notices are shown after the answer, so that they do not run into its text on a terminal. */
static void print_notices(const run *r) {
    size_t i;
    json_t *line;
    if (r->opts->stats == CLI_STATS_JSON)
        return; /* they are part of the object */
    json_array_foreach(r->notices, i, line)(void) cli_fail(CLI_OK, "%s", json_string_value(line));
}

static int open_run(run *r, const cli_opts *opts) {
    int64_t start_ns = dt_time_ns();
    *r = (run){.opts = opts};
    int code = cli_engine_open(&r->engine, opts);
    if (code != CLI_OK)
        return code;
    r->load_seconds = (double)(dt_time_ns() - start_ns) * 1e-9;
    if (opts->chat && dt_chat_open(&r->chat, dt_engine_target(r->engine)->file, opts->chat_template,
                          (dt_chat_think)opts->think) != DT_OK)
        return cli_fail_err();
    cli_session_options(&r->session, opts);
    r->session.n_trace = opts->trace ? 1 << 16 : 0;
    code = bias_read(
        &r->biases, &r->session.sampling.n_biases, opts, dt_engine_target(r->engine)->vocab);
    if (code != CLI_OK)
        return code;
    r->session.sampling.biases = r->biases;
    if (opts->temperature > 0 && opts->seed < 0) {
        uint32_t seed = 0; /* short enough to be typed again */
        if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
            seed = (uint32_t)dt_time_ns();
        r->session.sampling.seed = seed;
    }
    return CLI_OK;
}

static void close_run(run *r) {
    dt_chat_close(r->chat);
    free(r->biases);
    cli_engine_close(r->engine);
    free(r->text.data);
    json_decref(r->notices);
}

/* Ids of the prompt, wrapped in the chat template if asked for. */
static int encode_prompt(
    int32_t **out, int64_t *n_out, const run *r, const char *text, size_t n_bytes) {
    const dt_vocab *vocab = dt_engine_target(r->engine)->vocab;
    if (!r->opts->chat)
        return cli_encode(out, n_out, vocab, text, n_bytes, true, false);
    if (memchr(text, '\0', n_bytes))
        return cli_fail(CLI_FAILED, "the prompt holds a NUL byte; --chat takes text only");
    dt_chat_turn turns[2] = {{"system", r->opts->system}, {"user", text}};
    int n_turns = r->opts->system ? 2 : 1;
    return cli_encode_chat(out, n_out, r->chat, vocab, turns + 2 - n_turns, n_turns);
}

/* Opens a session and generates. `*stop_out` and `*stats_out` are set on CLI_OK and
 * CLI_INTERRUPTED; `*tokens_out` (free it) holds the answer's ids if it is not NULL. */
static int answer(dt_stop *stop_out, dt_stats *stats_out, json_t **tokens_out, run *r,
    const char *prompt, size_t n_bytes) {
    dt_session *session = NULL;
    int32_t *ids = NULL;
    int64_t n_ids = 0;
    int code = encode_prompt(&ids, &n_ids, r, prompt, n_bytes);
    if (code != CLI_OK)
        return code;
    int64_t n_ctx = cli_n_ctx(r->opts, dt_engine_target(r->engine));
    json_decref(r->notices);
    r->notices = json_array();
    r->text.n_bytes = 0;
    if (n_ids == 0) {
        code = cli_fail(CLI_FAILED, "the prompt is empty");
    } else if (n_ids > n_ctx) {
        code = cli_fail(CLI_FAILED,
            "the prompt has %lld %s, the context holds %lld: give a "
            "larger -c or a shorter prompt",
            (long long)n_ids, report_tokens(n_ids), (long long)n_ctx);
    } else if (dt_session_open(&session, r->engine, &r->session) != DT_OK ||
               dt_session_append(session, ids, n_ids) != DT_OK) {
        code = cli_fail_err();
    } else {
        dt_generate_options options = {
            .n_max = r->opts->n_max,
            .stops = r->opts->stops,
            .n_stops = r->opts->n_stops,
            .ignore_end = r->opts->ignore_end,
            .text = on_text,
            .prefill = on_prefill,
            .notice = on_notice,
            .arg = r,
        };
        *stop_out = DT_STOP_CALLER;
        dt_err err = dt_session_generate(stop_out, session, &options);
        cli_progress_end();
        if (r->write_errno)
            code = cli_fail(CLI_FAILED, "cannot write the text: %s", strerror(r->write_errno));
        else if (interrupted && (err == DT_OK || err == DT_ERR_STOPPED))
            code = CLI_INTERRUPTED;
        else if (err != DT_OK)
            code = cli_fail_err();
        dt_session_stats(session, stats_out);
        if (r->opts->trace && !report_trace(r->opts->trace, session) && code == CLI_OK)
            code = cli_fail(CLI_FAILED, "cannot write %s: %s", r->opts->trace, strerror(errno));
        if (dt_engine_disclaimer(r->engine)[0])
            on_notice(r, dt_engine_disclaimer(r->engine));
        if (dt_engine_draft_notice(r->engine)[0])
            on_notice(r, dt_engine_draft_notice(r->engine));
        if (tokens_out) {
            *tokens_out = json_array();
            const int32_t *all = dt_session_tokens(session);
            for (int64_t i = n_ids; i < dt_session_n_tokens(session); i++)
                json_array_append_new(*tokens_out, json_integer(all[i]));
        }
    }
    dt_session_close(session);
    free(ids);
    return code;
}

static void print_stats(run *r, const dt_stats *stats, dt_stop stop) {
    if (r->opts->stats == CLI_STATS_NONE)
        return;
    if (r->opts->stats == CLI_STATS_JSON) {
        json_t *object =
            report_stats(r->engine, stats, stop, r->load_seconds, json_incref(r->notices));
        report_json(stderr, object, 0);
        json_decref(object);
        return;
    }
    char end[64] = "";
    if (stop == DT_STOP_BUDGET)
        snprintf(end, sizeof end, "-n %lld reached", (long long)r->opts->n_max);
    else if (stop == DT_STOP_CONTEXT)
        snprintf(end, sizeof end, "the context is full (-c %lld)",
            (long long)cli_n_ctx(r->opts, dt_engine_target(r->engine)));
    report_stats_line(stderr, stats, r->session.sampling.temperature > 0, end[0] != 0 ? end : NULL);
}

static json_t *hex_text(const cli_text *text) {
    static const char digits[] = "0123456789abcdef";
    char *hex = malloc(2 * text->n_bytes + 1);
    if (!hex)
        return json_null();
    for (size_t i = 0; i < text->n_bytes; i++) {
        hex[2 * i] = digits[(unsigned char)text->data[i] >> 4];
        hex[2 * i + 1] = digits[(unsigned char)text->data[i] & 15];
    }
    json_t *value = json_stringn(hex, 2 * text->n_bytes);
    free(hex);
    return value;
}

/* The answer as an object; takes `tokens` over. */
static json_t *describe_answer(run *r, const dt_stats *stats, dt_stop stop, json_t *tokens) {
    json_t *out = json_object();
    json_object_set_new(out, "text", report_bytes(r->text.data, r->text.n_bytes));
    json_object_set_new(out, "bytes", hex_text(&r->text));
    json_object_set_new(out, "tokens", tokens);
    json_object_set_new(out, "finish_reason", json_string(report_stop_name(stop)));
    json_object_set_new(out, "stats",
        report_stats(r->engine, stats, stop, r->load_seconds, json_incref(r->notices)));
    return out;
}

static int print_answer(json_t *object) {
    report_json(stdout, object, 0);
    json_decref(object);
    return fflush(stdout) == 0 ? CLI_OK
                               : cli_fail(CLI_FAILED, "cannot write the text: %s", strerror(errno));
}

static int run_one(run *r, const cli_text *prompt) {
    dt_stop stop;
    dt_stats stats;
    json_t *tokens = NULL;
    r->collects = r->opts->json;
    int code =
        answer(&stop, &stats, r->collects ? &tokens : NULL, r, prompt->data, prompt->n_bytes);
    if (code != CLI_OK && code != CLI_INTERRUPTED) {
        json_decref(tokens);
        return code;
    }
    if (r->collects) {
        int written = print_answer(describe_answer(r, &stats, stop, tokens));
        return written == CLI_OK ? code : written;
    }
    if (isatty(STDOUT_FILENO) && r->last != '\n' && r->last != '\0') {
        putchar('\n');
        fflush(stdout);
    }
    print_notices(r);
    print_stats(r, &stats, stop);
    return code;
}

/* ---- many prompts --------------------------------------------------------------------------- */

static int run_item(run *r, const prompts_item *item, int i_line) {
    dt_stop stop;
    dt_stats stats;
    json_t *tokens = NULL;
    int code = answer(&stop, &stats, &tokens, r, item->text, item->n_bytes);
    if (code != CLI_OK && code != CLI_INTERRUPTED) {
        json_decref(tokens);
        return code;
    }
    json_t *out = json_object(), *rest = describe_answer(r, &stats, stop, tokens);
    json_object_set_new(out, "id", item->id ? json_deep_copy(item->id) : json_integer(i_line));
    json_object_update(out, rest);
    json_decref(rest);
    int written = print_answer(out);
    return written == CLI_OK ? code : written;
}

static int run_lines(run *r, const cli_text *file) {
    prompts set = prompts_of(file);
    prompts_item item;
    char error[PROMPTS_ERROR_BYTES];
    int code = CLI_OK;
    r->collects = true;
    while (code == CLI_OK && prompts_next(&item, error, &set)) {
        code = run_item(r, &item, set.i_line);
        prompts_drop(&item);
    }
    if (code == CLI_OK && error[0] != 0)
        code = cli_fail(CLI_FAILED, "%s, line %d: %s", r->opts->jsonl, set.i_line, error);
    return code;
}

int cmd_run(const cli_opts *opts) {
    cli_text text;
    run r;
    bool standard = !opts->prompt && !opts->file && !opts->jsonl;
    const char *read[] = {
        opts->target, opts->draft, opts->jsonl, standard ? "-" : opts->file, opts->chat_template};
    int code = cli_check_output("--trace", opts->trace, read, DT_COUNT(read));
    if (code != CLI_OK)
        return code;
    code = opts->jsonl ? cli_read_file(&text, opts->jsonl) : cli_read_prompt(&text, opts);
    if (code != CLI_OK)
        return code;
    code = open_run(&r, opts);
    if (code == CLI_OK) {
        catch_interrupt();
        code = opts->jsonl ? run_lines(&r, &text) : run_one(&r, &text);
    }
    close_run(&r);
    free(text.data);
    return code;
}
