/* The terminal and the signals: what the program does to a terminal is undone however it ends, and
 * a signal that ends it says so in one line.
 *
 * Process-wide state, as signals are. Main thread; the handlers call only what POSIX lists as
 * async-signal-safe. */
#ifndef DT_CLI_TERM_H
#define DT_CLI_TERM_H

#include <signal.h>
#include <stdbool.h>

/* For every command, before any work: SIGTERM, SIGQUIT and SIGHUP end the program with one line and
 * by the signal itself, SIGBUS (a mapped file that was cut short) with one line and exit code 1. */
void term_catch_ends(void);

/* Keeps the state of the terminal that standard input is, if it is one; from now on every end of
 * the program puts it back. */
void term_save(void);
void term_restore(void);

/* Colours that are on when the program ends are switched off by term_restore. */
void term_set_colour(bool on);

/* Ctrl-C. In an answer the first one asks for its end, the second ends the program with exit code
 * 130. At the prompt it only counts, and its reader decides. */
void term_catch_interrupt(void);
void term_begin_answer(void);
void term_end_answer(void);
bool term_interrupted(void);
void term_forget_interrupt(void);

/* While a line editor holds the terminal, Ctrl-Z only counts, so that it can let go first. */
void term_catch_suspend(bool on);

/* Waits until standard input has something to read or has ended. False: a signal came first
 * (Ctrl-C, a new size of the terminal, Ctrl-Z), however short before the wait. */
bool term_wait_input(void);

/* Whether the terminal's size has changed, or Ctrl-Z was pressed, since the last call. */
bool term_resized(void);
bool term_suspended(void);

#endif
