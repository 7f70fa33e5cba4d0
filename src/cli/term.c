#define _GNU_SOURCE
#include "src/cli/term.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "src/cli/opts.h"

static struct termios saved;
static volatile sig_atomic_t is_saved, colour_on;
static volatile sig_atomic_t in_answer, n_interrupts, resized, suspended;
static int wake[2] = {-1, -1}; /* a handler writes a byte: whichever thread took the signal */
static const char COLOUR_OFF[] = "\033[0m";

static void put(const char *text) {
    (void)!write(STDERR_FILENO, text, strlen(text));
}

void term_restore(void) {
    int kept = errno;
    if (colour_on && isatty(STDOUT_FILENO))
        (void)!write(STDOUT_FILENO, COLOUR_OFF, sizeof COLOUR_OFF - 1);
    if (is_saved)
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    errno = kept;
}

void term_set_colour(bool on) {
    colour_on = on;
}

/* ---- signals that end the program ---- */

static void catch_with(int signal_number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    sigaction(signal_number, &action, NULL);
}

static void on_end(int signal_number) {
    term_restore();
    put(signal_number == SIGHUP    ? "\ndovetail: ended: the terminal is gone (SIGHUP)\n"
        : signal_number == SIGQUIT ? "\ndovetail: ended by a signal (SIGQUIT)\n"
                                   : "\ndovetail: ended by a signal (SIGTERM)\n");
    raise(signal_number); /* the handler is reset: whoever waits sees the signal */
}

/* A fault of our own; the handler is reset, so the second signal ends the program as it should. */
static void on_crash(int signal_number) {
    term_restore();
    raise(signal_number);
}

static void on_bus_error(int signal_number) {
    (void)signal_number;
    term_restore();
    put("\ndovetail: a file in use was cut short or its disk failed (SIGBUS); if it is the model, "
        "fetch it again\n");
    _exit(CLI_FAILED);
}

void term_save(void) {
    if (is_saved || tcgetattr(STDIN_FILENO, &saved) != 0)
        return;
    is_saved = 1;
    atexit(term_restore);
    static const int CRASHES[] = {SIGSEGV, SIGABRT, SIGFPE, SIGILL};
    for (size_t i = 0; i < DT_COUNT(CRASHES); i++) {
        struct sigaction before;
        /* Sanitizers have handlers of their own. */
        if (sigaction(CRASHES[i], NULL, &before) == 0 && before.sa_handler == SIG_DFL)
            catch_with(CRASHES[i], on_crash, (int)SA_RESETHAND);
    }
}

void term_catch_ends(void) {
    struct sigaction before;
    catch_with(SIGBUS, on_bus_error, 0);
    catch_with(SIGTERM, on_end, (int)SA_RESETHAND);
    catch_with(SIGQUIT, on_end, (int)SA_RESETHAND);
    /* nohup has it ignored, and so it stays. */
    if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN)
        catch_with(SIGHUP, on_end, (int)SA_RESETHAND);
}

/* ---- signals of the terminal ---- */

static void wake_reader(void) {
    int kept = errno;
    (void)!write(wake[1], "", 1);
    errno = kept;
}

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (n_interrupts++ > 0 && in_answer) {
        term_restore();
        put("\n");
        _exit(CLI_INTERRUPTED);
    }
    wake_reader();
}

static void on_resize(int signal_number) {
    (void)signal_number;
    resized = 1;
    wake_reader();
}

static void on_suspend(int signal_number) {
    (void)signal_number;
    suspended = 1;
    wake_reader();
}

void term_catch_interrupt(void) {
    if (wake[0] < 0 && pipe2(wake, O_CLOEXEC | O_NONBLOCK) != 0)
        wake[0] = wake[1] = -1; /* Ctrl-C then shows at the next key */
    catch_with(SIGINT, on_interrupt, SA_RESTART);
    catch_with(SIGWINCH, on_resize, SA_RESTART);
}

void term_begin_answer(void) {
    n_interrupts = 0;
    in_answer = 1;
}

void term_end_answer(void) {
    /* One that comes between the two lines is for the prompt, and is not forgotten. */
    n_interrupts = 0;
    in_answer = 0;
}

bool term_interrupted(void) {
    return n_interrupts > 0;
}

void term_forget_interrupt(void) {
    n_interrupts = 0;
}

bool term_resized(void) {
    bool was = resized;
    resized = 0;
    return was;
}

bool term_suspended(void) {
    bool was = suspended;
    suspended = 0;
    return was;
}

void term_catch_suspend(bool on) {
    catch_with(SIGTSTP, on ? on_suspend : SIG_DFL, SA_RESTART);
}

bool term_wait_input(void) {
    struct pollfd fds[2] = {
        {.fd = STDIN_FILENO, .events = POLLIN}, {.fd = wake[0], .events = POLLIN}};
    char bytes[64];
    while (true) {
        int n = poll(fds, 2, -1);
        if (n < 0 && errno != EINTR)
            return true; /* the read will say what is wrong */
        if (n > 0 && fds[1].revents) {
            while (read(wake[0], bytes, sizeof bytes) > 0)
                ;
            return false;
        }
        if (n > 0)
            return true;
    }
}
