/* A conversation as token ids. What the model wrote stays the ids it wrote, for ever: nothing of it
 * is decoded and encoded again, so the ids of all turns in a row are the session's timeline, and
 * what the KV cache holds of them stays good.
 *
 * Plain data of the main thread. Functions that return an exit code write one line to stderr when
 * it is not CLI_OK, and then leave the conversation as it was. */
#ifndef DT_CLI_TALK_H
#define DT_CLI_TALK_H

#include <jansson.h>

#include "src/cli/opts.h"

typedef struct talk_turn {
    char *user; /* what the user wrote, NUL-terminated */
    /* The prompt (what lies between the answer before and this one, in the model's template) and
     * behind it the answer. */
    int32_t *ids;
    int64_t n_prompt, n_ids;
} talk_turn;

typedef struct talk {
    const dt_model *model;
    dt_chat *chat;      /* the template */
    const char *choice; /* which one, and how, as dt_chat_open takes it */
    dt_chat_think think;
    char *system; /* NULL: the template's own */
    talk_turn *turns;
    int n_turns;
} talk;

/* Finds the template of the model, or the one chosen. `choice` and `system` may be NULL; `choice`
 * must outlive the talk. */
int talk_open(
    talk *out, const dt_model *model, const char *choice, dt_chat_think think, const char *system);
void talk_close(talk *talk);

/* Adds a turn without an answer. The text holds no NUL. */
int talk_ask(talk *talk, const char *user);
/* Tokens of a conversation of this message alone. */
int talk_count_alone(int64_t *n_out, const talk *talk, const char *user);
/* Appends to the answer of the last turn. */
int talk_answer(talk *talk, const int32_t *ids, int64_t n);
/* Takes the last answer back, or the last turn. */
void talk_take_answer(talk *talk);
void talk_take_turn(talk *talk);
void talk_clear(talk *talk);

/* Another system prompt, as if it had stood there from the start; NULL: the template's own. */
int talk_set_system(talk *talk, const char *system);

/* Forgets the oldest turns until at most n_max tokens are left, but never the last turn.
 * `*n_out`: how many. */
int talk_forget(talk *talk, int *n_out, int64_t n_max);

int64_t talk_n_tokens(const talk *talk);
/* Token i of the turns in a row, turn by turn: writes talk_n_tokens() ids. */
void talk_write_ids(const talk *talk, int32_t *out);

/* The conversation as JSON, and back into another talk of the model that `like` talks to. A saved
 * one fits if its vocabulary and template are this model's; `*other_model_out` is set if it came
 * from another file with the same vocabulary. */
json_t *talk_save(const talk *talk);
int talk_load(
    talk *out, const talk *like, bool *other_model_out, const json_t *saved, const char *path);

#endif
