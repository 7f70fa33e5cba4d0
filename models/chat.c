#include "models/chat.h"

#include <string.h>

/* System prompts that templates put in by themselves. The template says which: one of these counts
 * only where the template writes it, whole, between the opening and the end of a system turn. A
 * default that is not listed is left out, as if the template had none. */
static const char *const default_systems[] = {
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", /* Qwen2.5 */
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face", /* SmolLM2 */
    "You are a helpful assistant.",                                         /* Qwen2 */
    "You are a helpful assistant",                                          /* Qwen1.5 */
};

static bool begins_with(dt_text text, const char *word) {
    size_t n = strlen(word);
    return text.n_bytes >= n && memcmp(text.data, word, n) == 0;
}

/* Advances `text` to behind the next `word`; false if there is none. */
static bool skip_behind(dt_text *text, const char *word) {
    for (; text->n_bytes > 0; text->data++, text->n_bytes--)
        if (begins_with(*text, word)) {
            text->data += strlen(word);
            text->n_bytes -= strlen(word);
            return true;
        }
    return false;
}

static bool contains(dt_text text, const char *word) {
    return skip_behind(&text, word);
}

static const char *find_default_system(dt_text template_text) {
    static const char end[] = "<|im_end|>";
    while (skip_behind(&template_text, "<|im_start|>system")) {
        /* A line feed, or the two characters that stand for it in a string of the template. */
        if (begins_with(template_text, "\n"))
            template_text = (dt_text){template_text.data + 1, template_text.n_bytes - 1};
        else if (begins_with(template_text, "\\n"))
            template_text = (dt_text){template_text.data + 2, template_text.n_bytes - 2};
        else
            continue;
        for (size_t i = 0; i < DT_COUNT(default_systems); i++) {
            size_t n = strlen(default_systems[i]);
            if (begins_with(template_text, default_systems[i]) &&
                begins_with((dt_text){template_text.data + n, template_text.n_bytes - n}, end))
                return default_systems[i];
        }
    }
    return NULL;
}

dt_err dt_chat_detect(dt_chat_format *out, const char **default_system_out, const dt_gguf *gguf) {
    dt_text template_text = {0};
    *default_system_out = NULL;
    DT_TRY(dt_gguf_get_text(gguf, "tokenizer.chat_template", &template_text));
    if (template_text.n_bytes == 0)
        DT_FAIL(DT_ERR_UNSUPPORTED, "%s: the file has no chat template (is it a base model?)",
            dt_gguf_path(gguf));
    /* Phi-4 has <|im_start|> too, but closes the role with <|im_sep|>. */
    if (contains(template_text, "<|im_start|>") && contains(template_text, "<|im_end|>") &&
        !contains(template_text, "<|im_sep|>")) {
        *out = DT_CHAT_CHATML;
        *default_system_out = find_default_system(template_text);
        return DT_OK;
    }
    if (contains(template_text, "<|start_header_id|>") && contains(template_text, "<|eot_id|>")) {
        *out = DT_CHAT_LLAMA3;
        return DT_OK;
    }
    DT_FAIL(DT_ERR_UNSUPPORTED,
        "%s: the chat template is of a family this program does not know (it knows ChatML and "
        "Llama 3)",
        dt_gguf_path(gguf));
}

typedef struct writer {
    char *out;
    size_t n_max, n;
} writer;

static void put(writer *w, const char *text, size_t n_bytes) {
    if (w->n < w->n_max)
        memcpy(w->out + w->n, text, DT_MIN(n_bytes, w->n_max - w->n));
    w->n += n_bytes;
}

static void put_string(writer *w, const char *text) {
    put(w, text, strlen(text));
}

/* Jinja's trim filter, on ASCII white space. */
static void put_trimmed(writer *w, const char *text) {
    static const char white[] = " \t\n\v\f\r";
    text += strspn(text, white);
    size_t n = strlen(text);
    while (n > 0 && strchr(white, text[n - 1]) != NULL)
        n--;
    put(w, text, n);
}

/* The opening of a turn, its text and its end; no text: the opening alone. */
static void put_turn(writer *w, dt_chat_format format, const char *role, const char *text) {
    switch (format) {
    case DT_CHAT_CHATML:
        put_string(w, "<|im_start|>");
        put_string(w, role);
        put_string(w, "\n");
        if (text != NULL) {
            put_string(w, text);
            put_string(w, "<|im_end|>\n");
        }
        break;
    case DT_CHAT_LLAMA3:
        /* BOS, which the template writes too, comes with the encoding. The lines with today's date
         * that Llama 3.1 and later put into the system turn are left out. */
        put_string(w, "<|start_header_id|>");
        put_string(w, role);
        put_string(w, "<|end_header_id|>\n\n");
        if (text != NULL) {
            put_trimmed(w, text);
            put_string(w, "<|eot_id|>");
        }
        break;
    }
}

size_t dt_chat_render(char *out, size_t n_max, dt_chat_format format, const char *default_system,
    const dt_chat_turn *turns, int n_turns) {
    writer w = {.out = out, .n_max = n_max ? n_max - 1 : 0};
    if (default_system != NULL && (n_turns == 0 || strcmp(turns[0].role, "system") != 0))
        put_turn(&w, format, "system", default_system);
    for (int i = 0; i < n_turns; i++)
        put_turn(&w, format, turns[i].role, turns[i].text);
    put_turn(&w, format, "assistant", NULL);
    if (n_max > 0)
        out[DT_MIN(w.n, w.n_max)] = 0;
    return w.n;
}
