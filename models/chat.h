/* Chat templates: turns a conversation into the tokens a model was trained on.
 *
 * The model file carries a Jinja template. It is not run: it is recognised by what it contains, and
 * mapped to a family whose form is written here. What cannot be recognised is refused, and the
 * caller may choose: a family by name, or a form from a file.
 *
 * Texts of users and systems are only text: what looks like a control token in them is encoded as
 * ordinary characters, so nobody can forge a turn.
 *
 * Immutable after open; any thread. */
#ifndef DT_MODELS_CHAT_H
#define DT_MODELS_CHAT_H

#include "models/token.h"

typedef struct dt_chat dt_chat;

typedef enum dt_chat_think {
    DT_CHAT_THINK_AUTO, /* as the template does it: on */
    DT_CHAT_THINK_ON,
    DT_CHAT_THINK_OFF,
} dt_chat_think;

typedef struct dt_chat_turn {
    const char *role; /* "system" (the first turn, as a rule), "user" or "assistant" */
    const char *text;
} dt_chat_turn;

/* `choice`: NULL for the template of the file; the name of a family ("chatml", "llama2", "llama3",
 * "gemma", "mistral", "phi", "qwen2", "qwen3"); else the path of a file of lines
 *
 *     # a comment
 *     system <|im_start|>system\n{text}<|im_end|>\n
 *     user <|im_start|>user\n{text}<|im_end|>\n
 *     assistant <|im_start|>assistant\n{text}<|im_end|>\n
 *     default You are a helpful assistant.
 *
 * "user" and "assistant" are required, {text} stands once in each; \n is a line feed, \\ a
 * backslash, {bos} and {eos} the vocabulary's tokens. Without "system" a system prompt and an empty
 * line go in front of the first user's text; "default" is the system prompt of conversations
 * without one.
 *
 * DT_ERR_UNSUPPORTED for a file without a template or with one of an unknown family, and for
 * thinking asked of a family that has no switch for it; DT_ERR_INPUT for a bad file. */
dt_err dt_chat_open(dt_chat **out, const dt_gguf *gguf, const char *choice, dt_chat_think think);
void dt_chat_close(dt_chat *chat); /* takes NULL */

/* The family's name, or "file". */
const char *dt_chat_name(const dt_chat *chat);
/* The system prompt of a conversation that has none, NULL for none. */
const char *dt_chat_default_system(const dt_chat *chat);

/* Ids of a whole conversation: BOS where the vocabulary or the template has it, the turns, and the
 * opening of an assistant's turn. At most n_max ids are written, the whole count goes to `*n_out`;
 * DT_ERR_LIMIT if that is more than n_max. Families without a system turn (gemma, llama2, mistral)
 * put the system prompt into the first user's turn. */
dt_err dt_chat_encode(int32_t *out, int64_t n_max, int64_t *n_out, const dt_chat *chat,
    const dt_vocab *vocab, const dt_chat_turn *turns, int n_turns);

/* Ids that follow a timeline which holds a conversation up to an assistant's answer: the end of
 * that turn where `last`, the timeline's last token, does not end one (the answer was cut off),
 * the user's turn and the opening of the next answer. Nothing of the timeline is encoded again.
 * Same results as dt_chat_encode. */
dt_err dt_chat_append(int32_t *out, int64_t n_max, int64_t *n_out, const dt_chat *chat,
    const dt_vocab *vocab, int32_t last, const char *user);

/* The text that dt_chat_encode encodes, without BOS. Returns the length without NUL; writes at most
 * n_max bytes with the NUL. */
size_t dt_chat_render(char *out, size_t n_max, const dt_chat *chat, const dt_vocab *vocab,
    const dt_chat_turn *turns, int n_turns);

#endif
