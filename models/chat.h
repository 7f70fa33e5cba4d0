/* Chat templates: turns a conversation into the text a model was trained on.
 *
 * The model file carries a Jinja template; it is recognised by what it contains and mapped to one
 * of the formats below. */
#ifndef DT_MODELS_CHAT_H
#define DT_MODELS_CHAT_H

#include "models/gguf.h"

typedef enum dt_chat_format {
    DT_CHAT_CHATML, /* <|im_start|>role\n...<|im_end|>\n : qwen2, smollm2 */
    DT_CHAT_LLAMA3, /* <|start_header_id|>role<|end_header_id|>\n\n...<|eot_id|> */
} dt_chat_format;

typedef struct dt_chat_turn {
    const char *role; /* "system", "user" or "assistant" */
    const char *text;
} dt_chat_turn;

/* The format of a file's template, and the system prompt that the template puts in where the
 * conversation has none (static text, NULL for none). DT_ERR_UNSUPPORTED for a template of another
 * family or none at all. */
dt_err dt_chat_detect(dt_chat_format *out, const char **default_system_out, const dt_gguf *gguf);

/* The text of the conversation, ready for encoding with special tokens, closed by the opening of
 * an assistant turn. Returns the length without NUL; writes at most n_max bytes with the NUL.
 * `default_system` may be NULL. */
size_t dt_chat_render(char *out, size_t n_max, dt_chat_format format, const char *default_system,
    const dt_chat_turn *turns, int n_turns);

#endif
