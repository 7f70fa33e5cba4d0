/* Writes the man page or the bash completion from the option table: docgen man|completion. Runs at
 * build time and is not installed. */
#include <ctype.h>
#include <string.h>

#include "src/cli/opts.h"

/* ---- man(7) ---- */

/* Text in which nothing is a request or an escape. `fills`: it is wrapped in the source too. */
static void put_text(const char *text, size_t n, bool fills) {
    enum { COLUMNS = 60 }; /* a word and its escapes may go beyond */
    int column = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (fills && c == ' ' && column > COLUMNS)
            c = '\n';
        if (column == 0 && (c == '.' || c == '\''))
            fputs("\\&", stdout);
        if (c == '\\')
            fputs("\\e", stdout);
        else if (c == '-')
            fputs("\\-", stdout);
        else
            putchar(c);
        column = c == '\n' ? 0 : column + 1;
    }
}

static void put_line(const char *text) {
    put_text(text, strlen(text), true);
    putchar('\n');
}

/* A note: paragraphs, and examples, which are lines that begin with two blanks. */
static void put_note(const char *note) {
    bool in_example = false, paragraph = true;
    while (*note) {
        size_t n = strcspn(note, "\n");
        bool example = n > 2 && note[0] == ' ' && note[1] == ' ';
        if (example && !in_example)
            puts(".PP\n.nf\n.RS");
        if (!example && in_example)
            puts(".RE\n.fi");
        if (n == 0)
            paragraph = true;
        else if (!example && paragraph) {
            puts(".PP");
            paragraph = false;
        }
        in_example = example;
        if (n > 0) {
            put_text(note + (example ? 2 : 0), n - (example ? 2 : 0), !example);
            putchar('\n');
        }
        note += n + (note[n] == '\n');
    }
    if (in_example)
        puts(".RE\n.fi");
}

static void put_option(const cli_opt_text *o) {
    puts(".TP");
    for (int i = 0; i < 3 && o->names[i]; i++) {
        fputs(i ? ", \\fB" : "\\fB", stdout);
        put_text(o->names[i], strlen(o->names[i]), false);
        fputs("\\fR", stdout);
    }
    if (o->value) {
        fputs(" \\fI", stdout);
        put_text(o->value, strlen(o->value), false);
        fputs("\\fR", stdout);
    }
    putchar('\n');
    put_line(o->help);
}

static const char MAN_END[] =
    ".SH FILES\n"
    ".TP\n\\fI~/.local/state/dovetail/history\\fR\n"
    "lines typed in a chat, readable by their owner alone;\nunder \\fB$XDG_STATE_HOME\\fR if that "
    "is "
    "set\n"
    ".TP\n\\fI~/.editrc\\fR\nkeys of the line editor, see \\fBeditrc\\fR(5)\n"
    ".SH EXIT STATUS\n"
    ".TP\n0\ndone\n"
    ".TP\n1\nfailed; one line on standard error says why\n"
    ".TP\n2\nwrong usage\n"
    ".TP\n130\ninterrupted by Ctrl\\-C; the answer up to there has been written\n"
    ".PP\nEnded by SIGTERM or SIGHUP, it says so and dies of that signal.\n";

static void put_man(void) {
    printf(".TH DOVETAIL 1 \"\" \"dovetail %s\" \"User Commands\"\n", DT_VERSION);
    puts(".SH NAME\ndovetail \\- runs a language model, with a smaller one ahead of it for speed\n"
         ".SH SYNOPSIS\n.B dovetail\n.I command\n.RI [ options ]\n.br\n"
         ".B dovetail \\-\\-help\n.br\n.B dovetail \\-\\-version\n.SH DESCRIPTION");
    put_line(
        "A small model, the draft, proposes several tokens ahead; the large one, the target, "
        "checks all of them in one pass and keeps those it would have written itself. The text "
        "is the target's, byte for byte, with and without a draft. Models are GGUF files.");
    for (int i = 0; i < CLI_N_COMMANDS; i++) {
        cli_command_text command = cli_describe_command((cli_command)i);
        cli_opt_text option;
        fputs(".SH ", stdout);
        for (const char *at = command.name; *at; at++)
            putchar(toupper((unsigned char)*at));
        printf("\n.B dovetail %s\n.RI [ options ]\n.PP\n", command.name);
        put_line(command.help);
        put_note(command.notes);
        for (int j = 0; cli_describe_option(&option, (cli_command)i, j); j++)
            put_option(&option);
    }
    fputs(MAN_END, stdout);
}

/* ---- bash ---- */

/* What `complete` offers after an option. */
static void put_case(const cli_opt_text *o) {
    if (o->kind == CLI_VALUE_NONE)
        return;
    fputs("        ", stdout);
    for (int i = 0; i < 3 && o->names[i]; i++)
        printf("%s%s", i ? "|" : "", o->names[i]);
    fputs(")\n            ", stdout);
    if (o->kind == CLI_VALUE_FILE)
        puts("mapfile -t COMPREPLY < <(compgen -f -- \"$word\")");
    if (o->kind == CLI_VALUE_CHOICE) {
        fputs("COMPREPLY=($(compgen -W '", stdout);
        for (const char *at = o->value; *at; at++)
            putchar(*at == '|' ? ' ' : *at);
        puts("' -- \"$word\"))");
    }
    puts("            return ;;");
}

static void put_completion(void) {
    puts("# bash completion for dovetail\n"
         "_dovetail() {\n"
         "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} options=\n"
         "    COMPREPLY=()\n"
         "    if [ \"$COMP_CWORD\" = 1 ]; then");
    fputs("        COMPREPLY=($(compgen -W '", stdout);
    for (int i = 0; i < CLI_N_COMMANDS; i++)
        printf("%s ", cli_describe_command((cli_command)i).name);
    puts("--help --version' -- \"$word\"))\n        return\n    fi\n"
         "    case ${COMP_WORDS[1]} in");
    for (int i = 0; i < CLI_N_COMMANDS; i++) {
        cli_opt_text option;
        printf("    %s)\n        case $before in\n", cli_describe_command((cli_command)i).name);
        for (int j = 0; cli_describe_option(&option, (cli_command)i, j); j++)
            put_case(&option);
        fputs("        esac\n        options='", stdout);
        for (int j = 0; cli_describe_option(&option, (cli_command)i, j); j++)
            for (int k = 0; k < 3 && option.names[k]; k++)
                printf("%s%s", j + k ? " " : "", option.names[k]);
        puts("' ;;");
    }
    puts("    esac\n"
         "    COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n"
         "}\n"
         "complete -o filenames -F _dovetail dovetail");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "man") == 0)
        put_man();
    else if (argc == 2 && strcmp(argv[1], "completion") == 0)
        put_completion();
    else
        return cli_fail(CLI_USAGE, "usage: docgen man|completion");
    return fflush(stdout) == 0 && !ferror(stdout) ? CLI_OK
                                                  : cli_fail(CLI_FAILED, "docgen: cannot write");
}
