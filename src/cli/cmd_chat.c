/* dovetail chat: a conversation at the terminal, or one message a line from a pipe. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/mem.h"
#include "src/cli/line.h"
#include "src/cli/report.h"
#include "src/cli/show.h"
#include "src/cli/talk.h"
#include "src/cli/term.h"
#include "src/cli/inputs.h"
#include "src/cli/start.h"

typedef struct chat {
    cli_opts opts; /* of the command line, changed by /set */
    dt_engine *engine;
    dt_session *session;
    int64_t n_ctx;
    talk talk;
    cli_line_reader *lines;
    double load_seconds;
    bool sampling_changed; /* since the last answer */
    /* of the answer under way */
    bool coloured; /* the colour is on */
    char last;     /* last byte written */
    int write_errno;
    json_t *notices;
    /* of the latest answer */
    dt_stats stats;
    dt_stop stop;
} chat;

/* One line that is no failure. */
#define note(...) (void)cli_fail(CLI_OK, __VA_ARGS__)

/* ---- the answer's text ---------------------------------------------------------------------- */

static const char COLOUR[] = "\033[32m", COLOUR_OFF[] = "\033[0m";

static bool write_all(chat *c, const char *bytes, size_t n_bytes) {
    errno = 0;
    if (fwrite(bytes, 1, n_bytes, stdout) == n_bytes)
        return true;
    c->write_errno = errno ? errno : EIO;
    return false;
}

static void set_colour(chat *c, bool on) {
    if (on == c->coloured)
        return;
    c->coloured = on;
    term_set_colour(on);
    write_all(c, on ? COLOUR : COLOUR_OFF, strlen(on ? COLOUR : COLOUR_OFF));
}

/* A model's text must not steer the terminal: control characters are shown as ^X there, those of C1
 * (U+009B begins a sequence as ESC [ does) and what is no UTF-8 as U+FFFD. The text comes in whole
 * characters, so none is split between two calls. */
static void write_text(chat *c, const char *bytes, size_t n_bytes) {
    if (!isatty(STDOUT_FILENO)) {
        write_all(c, bytes, n_bytes);
        return;
    }
    for (size_t i = 0, length; i < n_bytes; i += length) {
        unsigned char byte = (unsigned char)bytes[i];
        char shown[2] = {'^', (char)(byte ^ 0x40)};
        bool plain;
        length = show_char(&plain, bytes + i, n_bytes - i);
        if (plain || byte == '\n' || byte == '\t')
            write_all(c, bytes + i, length);
        else if (byte < 0x80)
            write_all(c, shown, 2);
        else
            write_all(c, "\xef\xbf\xbd", 3);
    }
}

static int on_text(void *arg, const char *bytes, size_t n_bytes, bool drafted) {
    chat *c = arg;
    if (n_bytes > 0) {
        cli_progress_end();
        if (c->opts.color)
            set_colour(c, drafted);
        write_text(c, bytes, n_bytes);
        if (fflush(stdout) != 0 && !c->write_errno)
            c->write_errno = errno ? errno : EIO;
        c->last = bytes[n_bytes - 1];
    }
    return c->write_errno || term_interrupted();
}

static int on_prefill(void *arg, int64_t done, int64_t total) {
    (void)arg;
    if (total > 64)
        cli_progress("reading", done, total);
    return term_interrupted();
}

static void on_notice(void *arg, const char *line) {
    chat *c = arg;
    json_array_append_new(c->notices, report_bytes(line, strlen(line)));
}

/* ---- the timeline --------------------------------------------------------------------------- */

/* Makes the session's timeline that of the conversation; what they have in common stays. */
static int settle(chat *c) {
    int64_t n = talk_n_tokens(&c->talk), n_old = dt_session_n_tokens(c->session), n_same = 0;
    int32_t *ids = malloc(((size_t)n + 1) * sizeof *ids);
    if (!ids)
        return cli_fail(CLI_FAILED, "no memory for the conversation");
    talk_write_ids(&c->talk, ids);
    const int32_t *old = dt_session_tokens(c->session);
    while (n_same < DT_MIN(n, n_old) && ids[n_same] == old[n_same])
        n_same++;
    bool done = (n_same == n_old || dt_session_rewind(c->session, n_same) == DT_OK) &&
                dt_session_append(c->session, ids + n_same, n - n_same) == DT_OK;
    free(ids);
    return done ? CLI_OK : cli_fail_err();
}

/* Forgets old turns if less than an eighth of the context is free (`full`: whatever is free), so
 * many that a third is: each time, all that is kept must be read again. */
static int make_room(chat *c, bool full) {
    int64_t n_free = c->n_ctx - talk_n_tokens(&c->talk), wanted = DT_MAX(c->n_ctx / 8, 1);
    int n_forgotten = 0;
    if (c->opts.n_max > 0)
        wanted = DT_MIN(wanted, c->opts.n_max);
    if (!full && n_free >= wanted)
        return CLI_OK;
    int code = talk_forget(&c->talk, &n_forgotten, c->n_ctx - DT_MAX(c->n_ctx / 3, 1));
    if (n_forgotten > 0)
        on_notice(
            c, n_forgotten == 1
                   ? "the context is full: the oldest turn is forgotten (not the system prompt)"
                   : "the context is full: the oldest turns are forgotten (not the system prompt)");
    return code;
}

/* ---- answering ------------------------------------------------------------------------------ */

/* Generates until the answer's end; where the context fills up on the way, old turns go and the
 * answer goes on. */
static int generate(chat *c) {
    int64_t n_left = c->opts.n_max;
    for (bool first = true;; first = false) {
        int code = make_room(c, !first);
        if (code == CLI_OK)
            code = settle(c);
        if (code != CLI_OK)
            return code;
        int64_t n_before = dt_session_n_tokens(c->session);
        bool can_forget = c->talk.n_turns > 1;
        dt_generate_options options = {
            .n_max = n_left,
            .stops = c->opts.stops,
            .n_stops = c->opts.n_stops,
            .goes_on = !first,
            .will_go_on = can_forget,
            .text = on_text,
            .prefill = on_prefill,
            .notice = on_notice,
            .arg = c,
        };
        c->stop = DT_STOP_CALLER;
        dt_err err = dt_session_generate(&c->stop, c->session, &options);
        cli_progress_end();
        dt_session_stats(c->session, &c->stats);
        int64_t n_new = dt_session_n_tokens(c->session) - n_before;
        code = talk_answer(&c->talk, dt_session_tokens(c->session) + n_before, n_new);
        if (code != CLI_OK || err != DT_OK)
            return code != CLI_OK ? code : cli_fail_err();
        if (n_left >= 0)
            n_left -= n_new;
        if (c->stop != DT_STOP_CONTEXT || !can_forget)
            return CLI_OK;
    }
}

static void report_answer(chat *c) {
    size_t i;
    json_t *line;
    if (c->opts.stats == CLI_STATS_JSON) {
        json_t *object =
            report_stats(c->engine, &c->stats, c->stop, c->load_seconds, json_incref(c->notices));
        json_object_set_new(object, "context",
            json_pack("{s:I, s:I, s:i}", "tokens", (json_int_t)talk_n_tokens(&c->talk), "size",
                (json_int_t)c->n_ctx, "turns", c->talk.n_turns));
        report_json(stderr, object, 0);
        json_decref(object);
        return;
    }
    json_array_foreach(c->notices, i, line) note("%s", json_string_value(line));
    if (c->stop == DT_STOP_CONTEXT)
        note("the answer fills the context of %lld tokens (-c)", (long long)c->n_ctx);
    if (c->opts.stats == CLI_STATS_TEXT)
        report_answer_line(stderr, &c->stats, talk_n_tokens(&c->talk), c->n_ctx);
}

/* Answers the last turn, which has no answer yet. If nothing comes, `old` (n_old ids, may be NULL)
 * is its answer again, or the turn is taken back. */
static int answer(chat *c, const int32_t *old, int64_t n_old) {
    json_decref(c->notices);
    c->notices = json_array();
    c->last = '\n';
    c->write_errno = 0;
    c->stats = (dt_stats){0};
    term_begin_answer();
    int code = generate(c);
    set_colour(c, false);
    if (c->last != '\n')
        write_all(c, "\n", 1);
    if (fflush(stdout) != 0 && !c->write_errno)
        c->write_errno = errno ? errno : EIO;
    bool interrupted = term_interrupted();
    term_end_answer();
    if (interrupted)
        line_drop_ahead(c->lines);
    const talk_turn *turn = &c->talk.turns[c->talk.n_turns - 1];
    bool empty = turn->n_ids == turn->n_prompt;
    if (empty && n_old > 0)
        (void)talk_answer(&c->talk, old, n_old);
    else if (empty)
        talk_take_turn(&c->talk);
    if (c->write_errno)
        return cli_fail(CLI_FAILED, "cannot write the text: %s", strerror(c->write_errno));
    if (code != CLI_OK)
        return code;
    if (interrupted && empty)
        note("interrupted before the first word: %s",
            n_old > 0 ? "the old answer stays" : "the message is taken back");
    else
        report_answer(c);
    c->sampling_changed = false;
    return CLI_OK;
}

/* CLI_FAILED if a message could not be answered even alone; nothing is forgotten for it then. */
static int check_length(chat *c, const char *text) {
    int64_t n = 0;
    int code = talk_count_alone(&n, &c->talk, text);
    if (code != CLI_OK || n < c->n_ctx)
        return code;
    return cli_fail(CLI_FAILED,
        "the message has %lld tokens with its template, the context holds %lld: give a larger -c "
        "or a shorter message",
        (long long)n, (long long)c->n_ctx);
}

static int ask(chat *c, const char *text) {
    int code = check_length(c, text);
    if (code == CLI_OK)
        code = talk_ask(&c->talk, text);
    return code == CLI_OK ? answer(c, NULL, 0) : code;
}

/* ---- commands ------------------------------------------------------------------------------- */

static const char HELP[] =
    "/help               this list\n"
    "/system [TEXT]      sets or shows the system prompt; the conversation is read again with it\n"
    "/clear              forgets the conversation, keeps the system prompt\n"
    "/retry              answers the last message again, with a new seed\n"
    "/save FILE          writes the conversation and the settings\n"
    "/load FILE          goes on with a saved one\n"
    "/set [OPTION VALUE] sets or lists: temp, top-k, top-p, min-p, repeat-penalty, seed, n, ...\n"
    "/stats              figures of the last answer\n"
    "/quit               ends the program, as Ctrl-D does\n"
    "A line that ends in \\ goes on in the next; \"\"\" begins and ends a message of many lines.\n"
    "// begins a message with /. Ctrl-C ends an answer, and at an empty prompt the program.\n";

static int apply_sampling(chat *c) {
    dt_session_options options;
    cli_session_options(&options, &c->opts);
    c->sampling_changed = true;
    return dt_session_set_sampling(c->session, &options.sampling) == DT_OK ? CLI_OK
                                                                           : cli_fail_err();
}

static int cmd_help(chat *c, const char *text) {
    (void)c;
    (void)text;
    fputs(HELP, stderr);
    return CLI_OK;
}

static int cmd_system(chat *c, const char *text) {
    const char *now = c->talk.system ? c->talk.system : dt_chat_default_system(c->talk.chat);
    if (text[0]) {
        char *before = c->talk.system ? strdup(c->talk.system) : NULL;
        int64_t n = 0;
        int code = talk_set_system(&c->talk, text);
        if (code == CLI_OK)
            code = talk_count_alone(&n, &c->talk, "");
        if (code == CLI_OK && n >= c->n_ctx) {
            code = cli_fail(CLI_FAILED,
                "the system prompt has %lld tokens with its template, the context holds %lld: it "
                "stays as it was",
                (long long)n, (long long)c->n_ctx);
            (void)talk_set_system(&c->talk, before);
        }
        free(before);
        return code;
    }
    fprintf(stderr, "%s\n", now ? now : "(no system prompt)");
    return CLI_OK;
}

static int cmd_clear(chat *c, const char *text) {
    (void)text;
    talk_clear(&c->talk);
    return CLI_OK;
}

static int cmd_retry(chat *c, const char *text) {
    (void)text;
    if (c->talk.n_turns == 0)
        return cli_fail(CLI_FAILED, "there is no answer to try again");
    if (c->opts.temperature > 0) {
        /* A seed within the option's range that follows from the old one: a chat with a given
         * --seed can be repeated. */
        c->opts.seed = c->opts.seed < CLI_SEED_MAX ? c->opts.seed + 1 : 0;
        if (apply_sampling(c) != CLI_OK)
            return CLI_FAILED;
    } else if (!c->sampling_changed && c->stop != DT_STOP_CALLER) {
        note("at temperature 0 the answer will be the same (/set temp 0.8 draws another)");
    }
    const talk_turn *turn = &c->talk.turns[c->talk.n_turns - 1];
    int64_t n_old = turn->n_ids - turn->n_prompt;
    int32_t *old = malloc(((size_t)n_old + 1) * sizeof *old);
    if (!old)
        return cli_fail(CLI_FAILED, "no memory for the conversation");
    memcpy(old, turn->ids + turn->n_prompt, (size_t)n_old * sizeof *old);
    talk_take_answer(&c->talk);
    int code = answer(c, old, n_old);
    free(old);
    return code;
}

static int cmd_set(chat *c, const char *text) {
    char name[32], value[64];
    if (!text[0]) {
        for (int i = 0; cli_setting_name(i); i++)
            fprintf(stderr, "%-18s %.16g\n", cli_setting_name(i),
                cli_setting_get(&c->opts, cli_setting_name(i)));
        return CLI_OK;
    }
    if (sscanf(text, "%31s %63s", name, value) != 2)
        return cli_fail(CLI_FAILED, "want /set OPTION VALUE; /set lists the options");
    cli_opts before = c->opts;
    if (cli_setting_set(&c->opts, name, value) != CLI_OK)
        return CLI_FAILED;
    int code = apply_sampling(c);
    if (code != CLI_OK)
        c->opts = before;
    return code;
}

static int cmd_stats(chat *c, const char *text) {
    (void)text;
    report_stats_line(stderr, &c->stats, c->opts.temperature > 0, NULL);
    fprintf(stderr, "context: %lld of %lld tokens in %d turns\n",
        (long long)talk_n_tokens(&c->talk), (long long)c->n_ctx, c->talk.n_turns);
    return CLI_OK;
}

static bool file_is_chat(const char *path) {
    json_t *old = json_load_file(path, 0, NULL);
    bool is_chat = json_object_get(old, "dovetail_chat") != NULL;
    json_decref(old);
    return is_chat;
}

/* Written beside, to a file that nobody has, and renamed, so that a full disk does not cost an
 * older file. 0 or an errno. */
static int write_saved(const char *path, const json_t *saved) {
    char *part = NULL;
    if (asprintf(&part, "%s.XXXXXX", path) < 0)
        return ENOMEM;
    errno = 0;
    int code = 0, fd = mkostemp(part, O_CLOEXEC); /* mode 0600 */
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (!file)
        code = errno;
    if (fd >= 0 && !file)
        close(fd);
    errno = 0; /* that json_dumpf may leave as it is */
    if (file && json_dumpf(saved, file, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) != 0)
        code = errno ? errno : EIO;
    if (file && fclose(file) != 0 && code == 0)
        code = errno ? errno : EIO;
    if (code == 0 && rename(part, path) != 0)
        code = errno;
    if (code != 0 && fd >= 0)
        unlink(part);
    free(part);
    return code;
}

/* A pipe or a terminal would hold the chat until someone writes or reads there. */
static int check_regular(const char *path) {
    struct stat status;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return cli_fail(CLI_FAILED, "%s is no regular file", path);
    return CLI_OK;
}

static int cmd_save(chat *c, const char *text) {
    if (!text[0])
        return cli_fail(CLI_FAILED, "want /save FILE");
    if (check_regular(text) != CLI_OK)
        return CLI_FAILED;
    if (access(text, F_OK) == 0 && !file_is_chat(text))
        return cli_fail(CLI_FAILED, "%s exists and is no saved chat: it stays as it is", text);
    json_t *saved = talk_save(&c->talk), *settings = json_object();
    for (int i = 0; cli_setting_name(i); i++)
        json_object_set_new(settings, cli_setting_name(i),
            json_real(cli_setting_get(&c->opts, cli_setting_name(i))));
    json_object_set_new(saved, "settings", settings);
    int write_errno = write_saved(text, saved);
    json_decref(saved);
    return write_errno == 0
               ? CLI_OK
               : cli_fail(CLI_FAILED, "cannot write %s: %s", text, strerror(write_errno));
}

static int load_settings(cli_opts *opts, const json_t *settings, const char *path) {
    const char *name;
    json_t *value;
    char text[64];
    json_object_foreach((json_t *)(uintptr_t)settings, name, value) {
        snprintf(text, sizeof text, "%.17g", json_number_value(value));
        if (!json_is_number(value) || cli_setting_set(opts, name, text) != CLI_OK)
            return cli_fail(CLI_FAILED, "%s: the setting %s does not fit", path, name);
    }
    return CLI_OK;
}

static int cmd_load(chat *c, const char *text) {
    json_error_t error;
    cli_opts opts = c->opts;
    bool other_model = false;
    if (!text[0])
        return cli_fail(CLI_FAILED, "want /load FILE");
    cli_text data;
    int code = check_regular(text);
    if (code == CLI_OK)
        code = cli_read_file(&data, text);
    if (code != CLI_OK)
        return code;
    json_t *saved = json_loadb(data.data, data.n_bytes, 0, &error);
    free(data.data);
    if (!saved)
        return cli_fail(CLI_FAILED, "%s is no saved chat: %s", text, error.text);
    code = load_settings(&opts, json_object_get(saved, "settings"), text);
    talk loaded = {0};
    if (code == CLI_OK)
        code = talk_load(&loaded, &c->talk, &other_model, saved, text);
    json_decref(saved);
    if (code == CLI_OK && talk_n_tokens(&loaded) > c->n_ctx) {
        code =
            cli_fail(CLI_FAILED, "%s holds %lld tokens, the context %lld: start with a larger -c",
                text, (long long)talk_n_tokens(&loaded), (long long)c->n_ctx);
    }
    if (code != CLI_OK) {
        talk_close(&loaded);
        return code;
    }
    talk_close(&c->talk);
    c->talk = loaded;
    c->opts = opts;
    c->stop = DT_STOP_CALLER; /* of an answer of which nothing is known */
    if (other_model)
        note("saved with another model of the same vocabulary: it may go on differently");
    if (line_interactive(c->lines))
        note("%d turns, %lld of %lld tokens", c->talk.n_turns, (long long)talk_n_tokens(&c->talk),
            (long long)c->n_ctx);
    return apply_sampling(c);
}

static int cmd_quit(chat *c, const char *text) {
    (void)c;
    (void)text;
    return CLI_OK;
}

static const struct {
    const char *name;
    int (*run)(chat *c, const char *text);
} COMMANDS[] = {
    {"/help", cmd_help},
    {"/system", cmd_system},
    {"/clear", cmd_clear},
    {"/retry", cmd_retry},
    {"/set", cmd_set},
    {"/stats", cmd_stats},
    {"/save", cmd_save},
    {"/load", cmd_load},
    {"/quit", cmd_quit},
    {"/exit", cmd_quit},
};

static int run_command(chat *c, bool *quit_out, const char *line) {
    size_t n = strcspn(line, " \t\n");
    for (size_t i = 0; i < DT_COUNT(COMMANDS); i++) {
        if (strlen(COMMANDS[i].name) != n || memcmp(COMMANDS[i].name, line, n) != 0)
            continue;
        *quit_out = COMMANDS[i].run == cmd_quit;
        return COMMANDS[i].run(c, line + n + strspn(line + n, " \t\n"));
    }
    return cli_fail(
        CLI_FAILED, "unknown command %.*s; /help lists them", (int)DT_MIN(n, 40u), line);
}

/* ---- messages ------------------------------------------------------------------------------- */

typedef struct message {
    char *text;
    size_t n_bytes, room;
} message;

static bool add_line(message *m, const char *text, size_t n_bytes) {
    if (m->room - m->n_bytes < n_bytes + 2) {
        size_t room = 2 * m->room + n_bytes + 256;
        char *bytes = realloc(m->text, room);
        if (!bytes)
            return false;
        m->text = bytes;
        m->room = room;
    }
    memcpy(m->text + m->n_bytes, text, n_bytes);
    m->n_bytes += n_bytes;
    m->text[m->n_bytes] = '\0';
    return true;
}

/* One message: a line, lines that end in a backslash but for the last, or a block between """. A
 * block that the input ends in is complete. */
static line_end read_message(chat *c, message *m) {
    static const char QUOTES[] = "\"\"\"";
    bool block = false, more = true;
    m->n_bytes = 0;
    for (int i = 0; more; i++) {
        const char *text;
        size_t n;
        line_end end = line_read(c->lines, i == 0 ? "> " : ". ", &text, &n);
        if (end == LINE_EOF && i > 0)
            return LINE_OK;
        if (end != LINE_OK) {
            m->n_bytes = n + (size_t)(i > 0); /* whether something was dropped */
            return end;
        }
        line_remember(c->lines, text);
        if (i == 0 && n >= 3 && memcmp(text, QUOTES, 3) == 0) {
            block = true;
            text += 3;
            n -= 3;
        }
        bool closes = block && n >= 3 && memcmp(text + n - 3, QUOTES, 3) == 0;
        bool continues = !block && n > 0 && text[n - 1] == '\\';
        more = continues || (block && !closes);
        n -= closes ? 3 : continues ? 1 : 0;
        /* A line break after the opening quotes and before the closing ones is not the message's.
         */
        bool skip_break = (block && i == 0 && n == 0) || !more;
        if (closes && n == 0 && m->n_bytes > 0)
            m->n_bytes--;
        if (!add_line(m, text, n) || (!skip_break && !add_line(m, "\n", 1))) {
            cli_fail(CLI_FAILED, "no memory for the message");
            return LINE_FAILED;
        }
    }
    return LINE_OK;
}

static int take_message(chat *c, bool *quit_out, const message *m) {
    if (m->n_bytes == 0 || strspn(m->text, " \t\n") == m->n_bytes)
        return CLI_OK;
    if (memchr(m->text, '\0', m->n_bytes))
        return cli_fail(CLI_FAILED, "the message holds a NUL byte; a chat takes text only");
    if (m->text[0] == '/' && m->text[1] != '/')
        return run_command(c, quit_out, m->text);
    return ask(c, m->text + (m->text[0] == '/'));
}

static int converse(chat *c) {
    message m = {0};
    bool interactive = line_interactive(c->lines), quit = false;
    int code = CLI_OK;
    while (!quit && code == CLI_OK) {
        line_end end = read_message(c, &m);
        if (end == LINE_EOF)
            break;
        if (end == LINE_FAILED)
            code = CLI_FAILED;
        if (end == LINE_INTERRUPTED) {
            term_forget_interrupt();
            if (m.n_bytes == 0 || !interactive)
                code = CLI_INTERRUPTED;
        }
        if (end != LINE_OK)
            continue;
        code = take_message(c, &quit, &m);
        /* Someone who sits in front of it reads what was wrong and goes on. */
        if (interactive && !c->write_errno)
            code = CLI_OK;
    }
    free(m.text);
    return code;
}

/* ---- the command ---------------------------------------------------------------------------- */

static int open_chat(chat *c, const cli_opts *opts) {
    int64_t start_ns = dt_time_ns();
    *c = (chat){.opts = *opts, .stop = DT_STOP_CALLER};
    int code = cli_engine_open(&c->engine, opts);
    if (code != CLI_OK)
        return code;
    c->load_seconds = (double)(dt_time_ns() - start_ns) * 1e-9;
    const dt_model *model = dt_engine_target(c->engine);
    c->n_ctx = cli_n_ctx(opts, model);
    code =
        talk_open(&c->talk, model, opts->chat_template, (dt_chat_think)opts->think, opts->system);
    if (code != CLI_OK)
        return code;
    if (opts->seed < 0) {
        uint32_t seed = 0; /* short enough to be typed again */
        if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
            seed = (uint32_t)dt_time_ns();
        c->opts.seed = seed;
    }
    dt_session_options options;
    cli_session_options(&options, &c->opts);
    if (dt_session_open(&c->session, c->engine, &options) != DT_OK)
        return cli_fail_err();
    return line_open(&c->lines);
}

static void close_chat(chat *c) {
    line_close(c->lines);
    talk_close(&c->talk);
    dt_session_close(c->session);
    cli_engine_close(c->engine);
    json_decref(c->notices);
}

int cmd_chat(const cli_opts *opts) {
    chat c;
    term_save();
    int code = open_chat(&c, opts);
    if (code == CLI_OK) {
        term_catch_interrupt();
        if (line_interactive(c.lines))
            fprintf(stderr, "%lld tokens of context; /help lists the commands, Ctrl-D ends.\n",
                (long long)c.n_ctx);
        if (dt_engine_disclaimer(c.engine)[0])
            note("%s", dt_engine_disclaimer(c.engine));
        if (dt_engine_draft_notice(c.engine)[0])
            note("%s", dt_engine_draft_notice(c.engine));
        code = converse(&c);
    }
    close_chat(&c);
    return code;
}
