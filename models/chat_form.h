/* Private to models/: the form of a chat family, and how a template is recognised. */
#ifndef DT_MODELS_CHAT_FORM_H
#define DT_MODELS_CHAT_FORM_H

#include "models/chat.h"

/* In the texts of a form: the BOS and EOS of the vocabulary. */
#define DT_CHAT_BOS "\x01"
#define DT_CHAT_EOS "\x02"

/* The text of a turn stands between `open`, and `end` and `tail`. */
typedef struct dt_chat_part {
    const char *open; /* NULL: the family has no such turn */
    const char *end;  /* up to the token that ends the turn, which an answer brings itself */
    const char *tail; /* what follows it */
} dt_chat_part;

typedef struct dt_chat_form {
    const char *name;
    dt_chat_part system, user, assistant;
    const char *lead;     /* in front of an answer that is given; a model writes it by itself */
    const char *join[2];  /* around a system prompt inside the first user's turn */
    const char *preamble; /* of every system turn, "" for none */
    bool always_system;   /* the preamble is written without a system prompt too */
    const char *default_system; /* NULL for none */
    const char *no_think;       /* what switches thinking off behind the opening of an answer */
    bool trims;                 /* texts lose white space at both ends */
    bool trims_joined;  /* with a system prompt in it, a user's text loses it at the end only */
    bool drops_thought; /* answers of earlier turns are given without their <think> part */
    bool drops_empty_system;
    /* In SentencePiece vocabularies white space of the form behind a control token goes, since the
     * text that follows one gets a space anyhow; with bare_texts that of users too. */
    bool bare_markers, bare_texts;
    bool bos; /* BOS in front, also where the vocabulary does not ask for it */
} dt_chat_form;

struct dt_chat {
    dt_chat_form form;
    bool think_off;
    char *texts; /* owned: of a form from a file, or the default system prompt */
};

/* The form of a family by name; false if there is none. */
bool dt_chat_form_named(dt_chat_form *out, const char *name);
/* The names of all families, separated by commas. */
extern const char dt_chat_form_names[];

/* The form of a template. `*texts_out` holds what the form refers to; free it. */
dt_err dt_chat_form_detect(dt_chat_form *out, char **texts_out, dt_text template_text);
/* The same of a file of lines (chat.h). */
dt_err dt_chat_form_read(dt_chat_form *out, char **texts_out, const char *path);

#endif
