#include "models/chat_form.h"

#include <string.h>

#include "src/base/mem.h"

/* ---- open */

static dt_err choose_form(dt_chat *chat, const dt_gguf *gguf, const char *choice) {
    dt_text template_text = {0};
    if (choice != NULL)
        return dt_chat_form_named(&chat->form, choice)
                   ? DT_OK
                   : dt_chat_form_read(&chat->form, &chat->texts, choice);
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.chat_template", &template_text));
    if (template_text.n_bytes == 0)
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "%.255s: the file has no chat template (is it a base model?); to choose one: "
            "--template FAMILY|FILE, families: %s",
            dt_gguf_path(gguf), dt_chat_form_names);
    dt_err err = dt_chat_form_detect(&chat->form, &chat->texts, template_text);
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "%.200s", dt_gguf_path(gguf));
}

dt_err dt_chat_open(dt_chat **out, const dt_gguf *gguf, const char *choice, dt_chat_think think) {
    dt_chat *chat;
    *out = NULL;
    DT_TRY(dt_mem_alloc(&chat, sizeof *chat));
    dt_err err = choose_form(chat, gguf, choice);
    if (err == DT_OK && think != DT_CHAT_THINK_AUTO && chat->form.no_think == NULL)
        err = DT_ERROR(DT_ERR_UNSUPPORTED,
            "the chat template (%s) has no thinking that could be switched", chat->form.name);
    if (err != DT_OK) {
        dt_chat_close(chat);
        return err;
    }
    chat->think_off = think == DT_CHAT_THINK_OFF;
    *out = chat;
    return DT_OK;
}

void dt_chat_close(dt_chat *chat) {
    if (chat == NULL)
        return;
    dt_mem_free(chat->texts);
    dt_mem_free(chat);
}

const char *dt_chat_name(const dt_chat *chat) {
    return chat->form.name;
}

const char *dt_chat_default_system(const dt_chat *chat) {
    return chat->form.default_system;
}

/* ---- text */

/* Counts all, writes what fits: the text, and the spans of it that are users' own. */
typedef struct writer {
    char *out;
    size_t n_max, n;
    dt_text_span *plain;
    int n_plain_max, n_plain;
    const dt_chat_form *form;
    const dt_vocab *vocab;
    bool begins;  /* at the beginning of a conversation, where BOS comes with the encoding */
    bool bare;    /* white space behind markers goes */
    bool at_mark; /* it does so here */
} writer;

static bool is_white(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void put(writer *w, const char *text, size_t n_bytes) {
    while (w->at_mark && n_bytes > 0 && is_white(text[0])) {
        text++;
        n_bytes--;
    }
    w->at_mark = w->at_mark && n_bytes == 0;
    if (w->n < w->n_max)
        memcpy(w->out + w->n, text, DT_MIN(n_bytes, w->n_max - w->n));
    w->n += n_bytes;
}

/* Words of the form. All that `bare` forms write in front of white space is a marker. */
static void put_form(writer *w, const char *text) {
    for (const char *c = text; *c != 0; c++) {
        int32_t token = *c == DT_CHAT_BOS[0]   ? dt_vocab_bos(w->vocab)
                        : *c == DT_CHAT_EOS[0] ? dt_vocab_eos(w->vocab)
                                               : -2;
        dt_text named = dt_vocab_text(w->vocab, token);
        if (token == -2)
            put(w, c, 1);
        else if (!w->begins || w->n > 0 || *c != DT_CHAT_BOS[0])
            put(w, named.data, named.n_bytes);
        w->at_mark = w->bare && (w->at_mark || *c == '>' || *c == ']');
    }
}

/* A text of the conversation, without white space in front and behind if asked for. */
static void put_plain(writer *w, const char *text, bool trims_front, bool trims_back) {
    size_t n = strlen(text), start = w->n;
    w->at_mark = w->at_mark && w->form->bare_texts;
    while (trims_front && n > 0 && is_white(text[0])) {
        text++;
        n--;
    }
    while (trims_back && n > 0 && is_white(text[n - 1]))
        n--;
    put(w, text, n);
    if (w->n == start)
        return;
    if (w->n_plain < w->n_plain_max)
        w->plain[w->n_plain] = (dt_text_span){start, w->n};
    w->n_plain++;
}

static void put_system(writer *w, const char *system) {
    const dt_chat_form *f = w->form;
    put_form(w, f->system.open);
    put_form(w, f->preamble);
    put_plain(w, system, f->trims, f->trims);
    put_form(w, f->system.end);
    put_form(w, f->system.tail);
}

/* A user's turn, with the system prompt in it if `system` is not NULL. */
static void put_user(writer *w, const char *text, const char *system) {
    const dt_chat_form *f = w->form;
    put_form(w, f->user.open);
    if (system != NULL) {
        put_form(w, f->join[0]);
        put_plain(w, system, false, false);
        put_form(w, f->join[1]);
    }
    put_plain(w, text, f->trims && !(system != NULL && f->trims_joined), f->trims);
    put_form(w, f->user.end);
    put_form(w, f->user.tail);
}

static void put_assistant(writer *w, const char *text) {
    const dt_chat_form *f = w->form;
    if (f->drops_thought) {
        static const char end[] = "</think>";
        bool found = false;
        for (const char *at; (at = strstr(text, end)) != NULL; found = true)
            text = at + strlen(end);
        while (found && *text == '\n')
            text++;
    }
    put_form(w, f->assistant.open);
    put_form(w, f->lead);
    put_plain(w, text, f->trims, f->trims);
    put_form(w, f->assistant.end);
    put_form(w, f->assistant.tail);
}

static void open_answer(writer *w, const dt_chat *chat) {
    put_form(w, w->form->assistant.open);
    if (chat->think_off)
        put_form(w, w->form->no_think);
}

static bool is_role(const dt_chat_turn *turn, const char *role) {
    return strcmp(turn->role, role) == 0;
}

static void put_conversation(
    writer *w, const dt_chat *chat, const dt_chat_turn *turns, int n_turns) {
    const dt_chat_form *f = w->form;
    const char *system = f->default_system;
    w->begins = true;
    if (n_turns > 0 && is_role(&turns[0], "system")) {
        system = turns[0].text;
        turns++;
        n_turns--;
    }
    if (system != NULL && f->drops_empty_system && system[0] == 0)
        system = NULL;
    if (f->system.open != NULL && (system != NULL || f->always_system)) {
        put_system(w, system != NULL ? system : "");
        system = NULL;
    }
    for (int i = 0; i < n_turns; i++) {
        if (is_role(&turns[i], "assistant")) {
            put_assistant(w, turns[i].text);
        } else if (is_role(&turns[i], "system") && f->system.open != NULL) {
            put_system(w, turns[i].text);
        } else {
            put_user(w, turns[i].text, system);
            system = NULL;
        }
    }
    open_answer(w, chat);
}

size_t dt_chat_render(char *out, size_t n_max, const dt_chat *chat, const dt_vocab *vocab,
    const dt_chat_turn *turns, int n_turns) {
    writer w = {.out = out, .n_max = n_max ? n_max - 1 : 0, .form = &chat->form, .vocab = vocab};
    put_conversation(&w, chat, turns, n_turns);
    if (n_max > 0)
        out[DT_MIN(w.n, w.n_max)] = 0;
    return w.n;
}

/* ---- tokens */

/* What is written: a conversation, or if `turns` is NULL a user's turn behind the token `last`. */
typedef struct request {
    const dt_chat *chat;
    const dt_vocab *vocab;
    const dt_chat_turn *turns;
    int n_turns;
    int32_t last;
    const char *user;
} request;

static void put_request(writer *w, const request *r) {
    w->n = 0;
    w->n_plain = 0;
    w->at_mark = false;
    if (r->user == NULL) {
        put_conversation(w, r->chat, r->turns, r->n_turns);
        return;
    }
    const dt_chat_part *answer = &w->form->assistant;
    if (dt_vocab_ends(r->vocab, r->last))
        w->at_mark = w->bare;
    else
        put_form(w, answer->end);
    put_form(w, answer->tail);
    put_user(w, r->user, NULL);
    open_answer(w, r->chat);
}

/* Whether the vocabulary has the form's markers as control tokens; Mistral's first has not. */
static bool has_markers(const dt_chat_form *form, const dt_vocab *vocab) {
    int32_t token = -1;
    int64_t n = 0;
    size_t n_bytes = strcspn(form->user.open, " \n");
    return dt_encode(&token, 1, &n, vocab, form->user.open, n_bytes, false, true) == DT_OK &&
           n == 1 && dt_vocab_kind(vocab, token) == DT_TOKEN_CONTROL;
}

static dt_err encode(int32_t *out, int64_t n_max, int64_t *n_out, const request *r) {
    const dt_chat_form *form = &r->chat->form;
    writer w = {.form = form, .vocab = r->vocab};
    w.bare = form->bare_markers && dt_vocab_is_spm(r->vocab) && has_markers(form, r->vocab);
    put_request(&w, r);
    w.n_max = w.n;
    w.n_plain_max = w.n_plain;
    *n_out = 0;
    dt_err err = dt_mem_alloc(&w.out, w.n_max);
    if (err == DT_OK)
        err = dt_mem_alloc(&w.plain, (size_t)w.n_plain_max * sizeof *w.plain);
    if (err == DT_OK) {
        put_request(&w, r);
        bool bos = r->user == NULL && (form->bos || dt_vocab_add_bos(r->vocab));
        err = dt_encode_spans(out, n_max, n_out, r->vocab, w.out, w.n, bos, w.plain, w.n_plain);
    }
    dt_mem_free(w.out);
    dt_mem_free(w.plain);
    return err;
}

dt_err dt_chat_encode(int32_t *out, int64_t n_max, int64_t *n_out, const dt_chat *chat,
    const dt_vocab *vocab, const dt_chat_turn *turns, int n_turns) {
    return encode(out, n_max, n_out, &(request){chat, vocab, turns, n_turns, -1, NULL});
}

dt_err dt_chat_append(int32_t *out, int64_t n_max, int64_t *n_out, const dt_chat *chat,
    const dt_vocab *vocab, int32_t last, const char *user) {
    return encode(out, n_max, n_out, &(request){chat, vocab, NULL, 0, last, user});
}
