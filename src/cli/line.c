#define _GNU_SOURCE
#include "src/cli/line.h"

#include <errno.h>
#include <fcntl.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include "dt_build.h"
#include "src/base/common.h"
#include "src/cli/opts.h"
#include "src/cli/term.h"

#if DT_HAVE_LIBEDIT
#include <histedit.h>
#endif

enum { HISTORY_LINES = 1000 };

struct cli_line_reader {
    bool terminal;
    const char *prompt;
    char *line;
    size_t n_line, room;
    /* bytes read ahead */
    char ahead[4096];
    size_t i_ahead, n_ahead;
    bool ended;
#if DT_HAVE_LIBEDIT
    EditLine *editor; /* NULL: plain */
    History *history;
    char *history_path; /* NULL: not kept */
    bool dirty;         /* something was typed in the present line */
    bool eof, interrupted;
#endif
};

bool line_interactive(const cli_line_reader *reader) {
    return reader->terminal;
}

/* ---- plain ---- */

/* The next byte of standard input; -1: a signal (see term.h), -2: the end, -3: an error. */
static int next_byte(cli_line_reader *r) {
    if (r->i_ahead == r->n_ahead) {
        if (r->ended)
            return -2;
        if (!term_wait_input())
            return -1;
        ssize_t n;
        do
            n = read(STDIN_FILENO, r->ahead, sizeof r->ahead);
        while (n < 0 && errno == EINTR);
        if (n < 0)
            return -3;
        r->i_ahead = 0;
        r->n_ahead = (size_t)n;
        r->ended = n == 0 && !r->terminal; /* a terminal may go on after Ctrl-D */
        if (n == 0)
            return -2;
    }
    return (unsigned char)r->ahead[r->i_ahead++];
}

void line_drop_ahead(cli_line_reader *r) {
    if (r->terminal)
        r->i_ahead = r->n_ahead;
}

static bool append(cli_line_reader *r, char byte) {
    if (r->n_line + 2 > r->room) {
        size_t room = 2 * r->room + 256;
        char *line = realloc(r->line, room);
        if (!line)
            return false;
        r->line = line;
        r->room = room;
    }
    r->line[r->n_line++] = byte;
    return true;
}

static line_end read_plain(cli_line_reader *r, const char **text_out, size_t *n_out) {
    r->n_line = 0;
    if (r->terminal) {
        fputs(r->prompt, stderr);
        fflush(stderr);
    }
    while (true) {
        int byte = next_byte(r);
        if (byte == -1 && term_interrupted()) {
            *n_out = r->n_line;
            return LINE_INTERRUPTED;
        }
        if (byte == -3) {
            cli_fail(CLI_FAILED, "cannot read standard input: %s", strerror(errno));
            return LINE_FAILED;
        }
        if (byte == -2 && r->n_line == 0)
            return LINE_EOF;
        if (byte == '\n' || byte == -2)
            break;
        if (byte >= 0 && !append(r, (char)byte)) {
            cli_fail(CLI_FAILED, "no memory for a line of %zu bytes", r->n_line);
            return LINE_FAILED;
        }
    }
    if (r->n_line > 0 && r->line[r->n_line - 1] == '\r')
        r->n_line--;
    if (!append(r, '\0')) {
        cli_fail(CLI_FAILED, "no memory for a line of %zu bytes", r->n_line);
        return LINE_FAILED;
    }
    *text_out = r->line;
    *n_out = --r->n_line;
    return LINE_OK;
}

/* ---- edited ---- */

#if DT_HAVE_LIBEDIT

static char *get_prompt(EditLine *editor) {
    cli_line_reader *r = NULL;
    el_get(editor, EL_CLIENTDATA, &r);
    return (char *)(uintptr_t)r->prompt; /* libedit only reads it */
}

static void stop_here(EditLine *editor) {
    el_set(editor, EL_PREP_TERM, 0);
    raise(SIGSTOP);
    el_set(editor, EL_PREP_TERM, 1);
    el_set(editor, EL_REFRESH);
}

/* One character for libedit: 1, or -1 where the line ends without one. */
static int get_wide(EditLine *editor, wchar_t *out) {
    cli_line_reader *r = NULL;
    mbstate_t state = {0};
    el_get(editor, EL_CLIENTDATA, &r);
    while (true) {
        int byte = next_byte(r);
        if (byte == -1) {
            if (term_interrupted()) {
                r->interrupted = true;
                return -1;
            }
            if (term_resized())
                el_resize(editor);
            if (term_suspended())
                stop_here(editor);
            continue;
        }
        if (byte < 0) {
            r->eof = true;
            return -1;
        }
        r->dirty = true;
        char c = (char)byte;
        size_t n = mbrtowc(out, &c, 1, &state);
        if (n == (size_t)-2)
            continue;
        if (n == (size_t)-1) {
            memset(&state, 0, sizeof state);
            *out = L'?'; /* bytes that are no character of the terminal's encoding */
        }
        return 1;
    }
}

static line_end read_edited(cli_line_reader *r, const char **text_out, size_t *n_out) {
    int n = 0;
    r->dirty = r->eof = r->interrupted = false;
    term_catch_suspend(true);
    const char *text = el_gets(r->editor, &n);
    term_catch_suspend(false);
    if (r->interrupted) {
        *n_out = r->dirty;
        el_reset(r->editor);
        fputs("^C\n", stderr);
        return LINE_INTERRUPTED;
    }
    if (!text || n <= 0) {
        el_reset(r->editor); /* after an end of input it leaves the terminal raw */
        fputc('\n', stderr);
        return LINE_EOF;
    }
    r->n_line = 0;
    for (int i = 0; i <= n; i++) {
        if (!append(r, i < n && text[i] != '\n' ? text[i] : '\0')) {
            cli_fail(CLI_FAILED, "no memory for a line of %d bytes", n);
            return LINE_FAILED;
        }
    }
    *text_out = r->line;
    *n_out = strlen(r->line);
    return LINE_OK;
}

/* ---- history ---- */

/* Makes the folders of a path, as far as they do not exist. */
static bool make_folders(char *path) {
    for (char *at = path + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *at = '/';
        if (!made)
            return false;
    }
    return true;
}

static void open_history(cli_line_reader *r) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    HistEvent event;
    int n;
    if (state && state[0] == '/')
        n = asprintf(&path, "%s/dovetail/history", state);
    else if (home && home[0] == '/')
        n = asprintf(&path, "%s/.local/state/dovetail/history", home);
    else {
        cli_fail(CLI_OK, "HOME is not set: lines are not remembered");
        return;
    }
    if (n < 0)
        return;
    r->history_path = path;
    if (!make_folders(path)) {
        cli_fail(CLI_OK, "cannot make the folder of %s: %s; lines are not remembered", path,
            strerror(errno));
        free(r->history_path);
        r->history_path = NULL;
        return;
    }
    /* A file that is no history, or none at all, is an empty history. */
    history(r->history, &event, H_LOAD, path);
}

/* The new file replaces the old one whole, so that two chats at once cannot garble it. */
static bool write_history(cli_line_reader *r) {
    char *path = NULL;
    HistEvent event;
    if (asprintf(&path, "%s.%ld", r->history_path, (long)getpid()) < 0)
        return false;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    bool done = file && fchmod(fd, 0600) == 0 && history(r->history, &event, H_SAVE_FP, file) >= 0;
    int kept = errno;
    if (file ? fclose(file) != 0 : fd >= 0 && close(fd) != 0) {
        kept = done ? errno : kept;
        done = false;
    }
    if (done && rename(path, r->history_path) != 0) {
        kept = errno;
        done = false;
    }
    if (!done && fd >= 0)
        unlink(path);
    free(path);
    errno = kept;
    return done;
}

static void keep_history(cli_line_reader *r) {
    if (r->history_path && !write_history(r)) {
        cli_fail(CLI_OK, "cannot write %s: %s; lines are not remembered", r->history_path,
            strerror(errno));
        free(r->history_path);
        r->history_path = NULL;
    }
}

static void open_editor(cli_line_reader *r) {
    HistEvent event;
    FILE *shown = isatty(STDOUT_FILENO) ? stdout : stderr;
    /* Wide characters need a locale that knows them; numbers stay as they are. */
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
    r->editor = el_init("dovetail", stdin, shown, stderr);
    if (!r->editor)
        return;
    r->history = history_init();
    el_set(r->editor, EL_CLIENTDATA, r);
    el_set(r->editor, EL_PROMPT, get_prompt);
    el_set(r->editor, EL_SIGNAL, 0);
    el_set(r->editor, EL_EDITOR, "emacs");
    el_set(r->editor, EL_GETCFN, get_wide);
    if (r->history) {
        history(r->history, &event, H_SETSIZE, HISTORY_LINES);
        history(r->history, &event, H_SETUNIQUE, 1);
        el_set(r->editor, EL_HIST, history, r->history);
        open_history(r);
    }
    el_source(r->editor, NULL);
}

#endif

/* ---- both ---- */

int line_open(cli_line_reader **out) {
    cli_line_reader *r = calloc(1, sizeof *r);
    *out = r;
    if (!r)
        return cli_fail(CLI_FAILED, "no memory for reading lines");
    r->terminal = isatty(STDIN_FILENO) && (isatty(STDOUT_FILENO) || isatty(STDERR_FILENO));
#if DT_HAVE_LIBEDIT
    if (r->terminal)
        open_editor(r);
#endif
    return CLI_OK;
}

void line_close(cli_line_reader *r) {
    if (!r)
        return;
#if DT_HAVE_LIBEDIT
    if (r->editor)
        el_end(r->editor);
    if (r->history)
        history_end(r->history);
    free(r->history_path);
#endif
    free(r->line);
    free(r);
}

line_end line_read(cli_line_reader *r, const char *prompt, const char **text_out, size_t *n_out) {
    r->prompt = prompt;
    *text_out = "";
    *n_out = 0;
#if DT_HAVE_LIBEDIT
    if (r->editor)
        return read_edited(r, text_out, n_out);
#endif
    line_end end = read_plain(r, text_out, n_out);
    if (r->terminal && (end == LINE_EOF || end == LINE_INTERRUPTED))
        fputc('\n', stderr);
    return end;
}

void line_remember(cli_line_reader *r, const char *text) {
#if DT_HAVE_LIBEDIT
    HistEvent event;
    if (r->history && text[0]) {
        history(r->history, &event, H_ENTER, text);
        keep_history(r);
    }
#else
    (void)r;
    (void)text;
#endif
}
