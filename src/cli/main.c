#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "dt_build.h"
#include "src/cli/opts.h"
#include "src/cli/term.h"
#include "src/cli/start.h"

/* A program started with a closed standard stream would see the next file it opens under that
 * number, and write text into it. What is missing becomes a stream that refuses. */
static void hold_standard_streams(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) == -1)
            (void)!open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);
}

/* The parts of the build explain what an option refuses. */
static void print_version(void) {
    printf("dovetail %s\nparts: %s\ninstruction sets:", DT_VERSION, DT_PARTS);
    for (int i = 0; dt_engine_isa_name(i); i++)
        printf("%s %s%s", i ? "," : "", dt_engine_isa_name(i),
            dt_engine_isa_runs(dt_engine_isa_name(i)) ? "" : " (not on this machine)");
    printf("\n");
}

int main(int argc, char **argv) {
    static int (*const COMMANDS[CLI_N_COMMANDS])(const cli_opts *) = {
        [CLI_RUN] = cmd_run,
        [CLI_CHAT] = cmd_chat,
        [CLI_BENCH] = cmd_bench,
        [CLI_TOKENIZE] = cmd_tokenize,
        [CLI_PERPLEXITY] = cmd_perplexity,
        [CLI_INFO] = cmd_info,
    };
    hold_standard_streams();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of the write, with a message */
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is a write error too */
    term_catch_ends();
    if (argc < 2) {
        cli_help(stderr);
        return CLI_USAGE;
    }
    int code = CLI_OK;
    if (strcmp(argv[1], "--version") == 0) {
        print_version();
    } else if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
               strcmp(argv[1], "help") == 0) {
        cli_help(stdout);
    } else {
        cli_opts opts;
        code = cli_opts_read(&opts, argc, argv);
        if (code == CLI_OK && opts.help)
            cli_help_command(opts.command);
        else if (code == CLI_OK)
            code = COMMANDS[opts.command](&opts);
    }
    if (code == CLI_OK && (fflush(stdout) != 0 || ferror(stdout)))
        return cli_leave(cli_fail(CLI_FAILED, "cannot write to standard output"));
    return cli_leave(code);
}
