#include "models/chat_form.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "src/base/mem.h"

/* ---- the families */

#define CHATML(role)                                                                               \
    { "<|im_start|>" role "\n", "<|im_end|>", "\n" }
#define LLAMA3(role)                                                                               \
    { "<|start_header_id|>" role "<|end_header_id|>\n\n", "<|eot_id|>", "" }
#define GEMMA(role)                                                                                \
    { "<start_of_turn>" role "\n", "<end_of_turn>", "\n" }
#define PHI(role)                                                                                  \
    { "<|" role "|>\n", "<|end|>", "\n" }
#define NO_THOUGHT "<think>\n\n</think>\n\n"

static const dt_chat_form forms[] = {
    {.name = "qwen3",
        .system = CHATML("system"),
        .user = CHATML("user"),
        .assistant = CHATML("assistant"),
        .no_think = NO_THOUGHT,
        .drops_thought = true},
    {.name = "qwen2",
        .system = CHATML("system"),
        .user = CHATML("user"),
        .assistant = CHATML("assistant"),
        .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
    {.name = "chatml",
        .system = CHATML("system"),
        .user = CHATML("user"),
        .assistant = CHATML("assistant")},
    {.name = "llama3",
        .system = LLAMA3("system"),
        .user = LLAMA3("user"),
        .assistant = LLAMA3("assistant"),
        .trims = true,
        .bos = true},
    {.name = "gemma",
        .user = GEMMA("user"),
        .assistant = GEMMA("model"),
        .join = {"", "\n\n"},
        .trims = true,
        .bos = true},
    {.name = "phi",
        .system = PHI("system"),
        .user = PHI("user"),
        .assistant = PHI("assistant"),
        .drops_empty_system = true,
        .bare_markers = true,
        .bare_texts = true},
    {.name = "llama2",
        .user = {DT_CHAT_BOS "[INST] ", " [/INST]", ""},
        .assistant = {"", " " DT_CHAT_EOS, ""},
        .lead = " ",
        .join = {"<<SYS>>\n", "\n<</SYS>>\n\n"},
        .trims = true,
        .trims_joined = true,
        .bos = true},
    {.name = "mistral",
        .user = {"[INST] ", " [/INST]", ""},
        .assistant = {"", DT_CHAT_EOS, ""},
        .join = {"", "\n\n"},
        .bare_markers = true,
        .bos = true},
};

const char dt_chat_form_names[] = "chatml, llama2, llama3, gemma, mistral, phi, qwen2, qwen3";

/* All texts are set afterwards, so that none has to be asked for. */
static void fill(dt_chat_form *form) {
    dt_chat_part *parts[] = {&form->system, &form->user, &form->assistant};
    for (size_t i = 0; i < DT_COUNT(parts); i++) {
        parts[i]->end = parts[i]->end ? parts[i]->end : "";
        parts[i]->tail = parts[i]->tail ? parts[i]->tail : "";
    }
    for (int i = 0; i < 2; i++)
        form->join[i] = form->join[i] ? form->join[i] : "";
    form->lead = form->lead ? form->lead : "";
    form->preamble = form->preamble ? form->preamble : "";
}

bool dt_chat_form_named(dt_chat_form *out, const char *name) {
    for (size_t i = 0; i < DT_COUNT(forms); i++)
        if (strcmp(forms[i].name, name) == 0) {
            *out = forms[i];
            fill(out);
            return true;
        }
    return false;
}

/* ---- recognising a template */

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

/* What a template of the family must contain, all of it, and must not, any of it. The first that
 * fits counts. */
static const struct {
    const char *family;
    const char *has[4], *lacks[4];
} signatures[] = {
    {"qwen3", {"<|im_start|>", "<|im_end|>", "enable_thinking", "<think>\\n\\n</think>\\n\\n"},
        {"## Metadata"}},
    {"chatml", {"<|im_start|>", "<|im_end|>"}, {"enable_thinking", "assistant\\n<think>"}},
    {"llama3", {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, {NULL}},
    {"gemma", {"<start_of_turn>", "<end_of_turn>"}, {"<start_function"}},
    {"phi", {"<|assistant|>", "<|end|>"}, {"<|im_start|>", "<|channel|>", "enable_thinking"}},
    {"llama2", {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}, {NULL}},
    {"mistral", {"[INST]", "[/INST]"}, {"<<SYS>>", "[THINK]"}},
};

/* Markers of the form <|...|> that the templates of a family may have: their own, and those of
 * tools, pictures and the like, which no conversation of texts meets. Another one means that the
 * template writes something the form does not know. */
static const struct {
    const char *family;
    const char *markers;
} known_markers[] = {
    {"qwen3", "<|im_start|><|im_end|><|endoftext|>"},
    {"chatml", "<|im_start|><|im_end|><|endoftext|><|vision_start|><|image_pad|><|vision_end|>"
               "<|video_pad|><|begin_of_text|>"},
    {"llama3", "<|begin_of_text|><|start_header_id|><|end_header_id|><|eot_id|><|python_tag|>"
               "<|eom_id|><|image|><|end_of_text|>"},
    {"gemma", ""},
    {"phi", "<|system|><|user|><|assistant|><|end|><|tool|><|/tool|><|endoftext|><|tool_call|>"
            "<|/tool_call|><|tool_response|>"},
    {"llama2", ""},
    {"mistral", ""},
};

/* The first marker that the family does not know; an empty text for none. */
static dt_text find_unknown_marker(dt_text text, const char *family) {
    const char *known = "";
    for (size_t i = 0; i < DT_COUNT(known_markers); i++)
        if (strcmp(known_markers[i].family, family) == 0)
            known = known_markers[i].markers;
    dt_text list = {known, strlen(known)};
    while (skip_behind(&text, "<|")) {
        size_t n = 0;
        /* What is put together of pieces (<|' + role + '|>) is not looked at. */
        while (n < text.n_bytes && n < 40 && strchr("'\" {}<", text.data[n]) == NULL &&
               text.data[n] != '|')
            n++;
        dt_text marker = {text.data - 2, n + 4};
        if (n == 0 || n + 2 > text.n_bytes || text.data[n] != '|' || text.data[n + 1] != '>')
            continue;
        dt_text left = list;
        bool found = false;
        for (; !found && left.n_bytes >= marker.n_bytes; left.data++, left.n_bytes--)
            found = memcmp(left.data, marker.data, marker.n_bytes) == 0;
        if (!found)
            return marker;
    }
    return (dt_text){NULL, 0};
}

/* Copies a piece of a string of the template, from `text` up to `end`, as the string has it;
 * false if it is no piece of one string alone. */
static bool copy_literal(char *out, size_t n_max, dt_text text, const char *end) {
    size_t n = 0;
    for (; text.n_bytes > 0 && !begins_with(text, end); text.data++, text.n_bytes--) {
        char c = text.data[0];
        if (c == '\'' || c == '"' || c == '{' || c == '}' || c == 0 || n + 1 >= n_max)
            return false;
        if (c == '\\' && text.n_bytes > 1) {
            text.data++;
            text.n_bytes--;
            c = text.data[0] == 'n' ? '\n' : text.data[0] == 't' ? '\t' : text.data[0];
        }
        out[n++] = c;
    }
    out[n] = 0;
    return text.n_bytes > 0;
}

/* The system prompt that a template puts in by itself: one that it writes whole, between the
 * opening and the end of a system turn. */
static dt_err find_default_system(dt_chat_form *form, char **texts_out, dt_text text) {
    enum { N_MAX = 4096 };
    while (skip_behind(&text, "<|im_start|>system")) {
        if (begins_with(text, "\n"))
            text = (dt_text){text.data + 1, text.n_bytes - 1};
        else if (begins_with(text, "\\n")) /* as strings of the template write a line feed */
            text = (dt_text){text.data + 2, text.n_bytes - 2};
        else
            continue;
        char *system;
        DT_TRY(dt_mem_alloc(&system, N_MAX));
        if (copy_literal(system, N_MAX, text, "<|im_end|>")) {
            form->default_system = *texts_out = system;
            if (strstr(system, "Qwen") != NULL)
                form->name = "qwen2";
            return DT_OK;
        }
        dt_mem_free(system);
    }
    return DT_OK;
}

/* The templates of Llama 3.1 and later begin the system turn with two dates; today's is the one
 * that they fall back on without a clock, so that the text does not change from day to day. */
static void detect_llama3(dt_chat_form *form, dt_text text) {
    if (!contains(text, "Cutting Knowledge Date: December 2023") || !contains(text, "26 Jul 2024"))
        return;
    form->preamble = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    form->always_system = !contains(text, "if system_message %}");
}

/* Mistral's templates differ in their spaces, and the later ones have a system turn. */
static void detect_mistral(dt_chat_form *form, dt_text text) {
    form->user.open = contains(text, "[INST] ") ? "[INST] " : "[INST]";
    form->user.end = contains(text, " [/INST]") ? " [/INST]" : "[/INST]";
    if (contains(text, "' ' + message") || contains(text, "\" \" + message"))
        form->lead = " ";
    if (contains(text, "eos_token + ' '") || contains(text, "eos_token+' '"))
        form->assistant.tail = " ";
    if (contains(text, "[SYSTEM_PROMPT]"))
        form->system = (dt_chat_part){
            contains(text, "[SYSTEM_PROMPT] ") ? "[SYSTEM_PROMPT] " : "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]", ""};
}

static void detect_phi(dt_chat_form *form, dt_text text) {
    static const char *const breaks[] = {
        "<|assistant|>\n", "<|assistant|>\\n", "<|assistant|>' + '\n", "<|assistant|>' + '\\n"};
    for (size_t i = 0; i < DT_COUNT(breaks); i++)
        if (contains(text, breaks[i]))
            return;
    form->system = (dt_chat_part){"<|system|>", "<|end|>", ""};
    form->user = (dt_chat_part){"<|user|>", "<|end|>", ""};
    form->assistant = (dt_chat_part){"<|assistant|>", "<|end|>", ""};
    form->drops_empty_system = false;
}

static bool has_signature(size_t i, dt_text text) {
    bool fits = true;
    for (size_t k = 0; k < DT_COUNT(signatures[i].has); k++) {
        const char *has = signatures[i].has[k], *lacks = signatures[i].lacks[k];
        fits = fits && (has == NULL || contains(text, has)) &&
               (lacks == NULL || !contains(text, lacks));
    }
    return fits;
}

dt_err dt_chat_form_detect(dt_chat_form *out, char **texts_out, dt_text text) {
    const char *family = NULL;
    for (size_t i = 0; i < DT_COUNT(signatures) && family == NULL; i++)
        if (has_signature(i, text))
            family = signatures[i].family;
    if (family == NULL || !dt_chat_form_named(out, family))
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "the chat template is of no family this program knows; to choose one: "
            "--template FAMILY|FILE, families: %s",
            dt_chat_form_names);
    dt_text marker = find_unknown_marker(text, family);
    if (marker.n_bytes > 0) {
        char shown[DT_TEXT_SHOWN_BYTES];
        DT_FAIL(DT_ERR_UNSUPPORTED,
            "the chat template looks like %s but has %s, which that family has not; to choose one: "
            "--template FAMILY|FILE, families: %s",
            family, dt_text_shown(shown, marker), dt_chat_form_names);
    }
    out->bos = contains(text, "bos_token") || contains(text, "<|begin_of_text|>");
    if (strcmp(family, "chatml") == 0)
        return find_default_system(out, texts_out, text);
    if (strcmp(family, "llama3") == 0)
        detect_llama3(out, text);
    else if (strcmp(family, "mistral") == 0)
        detect_mistral(out, text);
    else if (strcmp(family, "phi") == 0)
        detect_phi(out, text);
    return DT_OK;
}

/* ---- a form from a file */

enum { FILE_BYTES_MAX = 65536 };

/* In place: \n, \\, {bos} and {eos}; false for another escape. */
static bool unescape(char *text) {
    char *out = text;
    for (const char *in = text; *in != 0; in++) {
        if (*in == '\\') {
            in++;
            if (*in != 'n' && *in != 't' && *in != '\\')
                return false;
            *out++ = *in == 'n' ? '\n' : *in == 't' ? '\t' : '\\';
        } else if (strncmp(in, "{bos}", 5) == 0 || strncmp(in, "{eos}", 5) == 0) {
            *out++ = in[1] == 'b' ? DT_CHAT_BOS[0] : DT_CHAT_EOS[0];
            in += 4;
        } else {
            *out++ = *in;
        }
    }
    *out = 0;
    return true;
}

/* One line, the line feed taken off. `*problem` says what is wrong with it. */
static bool read_line(dt_chat_form *form, char *line, const char **problem) {
    static const char mark[] = "{text}";
    static const char *const roles[] = {"system", "user", "assistant"};
    dt_chat_part *parts[] = {&form->system, &form->user, &form->assistant};
    size_t n = strcspn(line, " ");
    if (line[0] == 0 || line[0] == '#')
        return true;
    char *text = line + n + (line[n] == ' ');
    line[n] = 0;
    *problem = "want \\n, \\t or \\\\ behind a backslash";
    if (!unescape(text))
        return false;
    if (strcmp(line, "default") == 0) {
        form->default_system = text;
        return true;
    }
    for (size_t i = 0; i < DT_COUNT(roles); i++) {
        if (strcmp(line, roles[i]) != 0)
            continue;
        char *at = strstr(text, mark);
        *problem = "want {text} once";
        if (at == NULL || strstr(at + 1, mark) != NULL)
            return false;
        *at = 0;
        /* White space at the very end is no part of what an answer brings; the NUL before it takes
         * the room that {text} had. */
        char *end = at + 1, *after = at + strlen(mark);
        size_t n_after = strlen(after), n_end = n_after;
        while (n_end > 0 && strchr(" \t\n", after[n_end - 1]) != NULL)
            n_end--;
        memmove(end, after, n_end);
        end[n_end] = 0;
        *parts[i] = (dt_chat_part){text, end, after + n_end};
        return true;
    }
    *problem = "want a line of system, user, assistant or default";
    return false;
}

static dt_err read_lines(dt_chat_form *form, char *text, const char *path) {
    const char *problem = NULL;
    int i_line = 1;
    for (char *line = text; line != NULL; i_line++) {
        char *next = strchr(line, '\n');
        if (next != NULL)
            *next++ = 0;
        size_t n = strlen(line);
        if (n > 0 && line[n - 1] == '\r')
            line[n - 1] = 0;
        if (!read_line(form, line, &problem))
            DT_FAIL(DT_ERR_INPUT, "%.255s, line %d: %s", path, i_line, problem);
        line = next;
    }
    if (form->user.open == NULL || form->assistant.open == NULL)
        DT_FAIL(DT_ERR_INPUT, "%.255s: a chat template needs the lines user and assistant", path);
    return DT_OK;
}

dt_err dt_chat_form_read(dt_chat_form *out, char **texts_out, const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        DT_FAIL(DT_ERR_INPUT,
            "chat template %.255s: no such family (%s), and no file that can be read: %s", path,
            dt_chat_form_names, strerror(errno));
    char *text;
    dt_err err = dt_mem_alloc(&text, FILE_BYTES_MAX + 1);
    size_t n = 0;
    if (err == DT_OK) {
        n = fread(text, 1, FILE_BYTES_MAX + 1, file);
        if (ferror(file))
            err = DT_ERROR(DT_ERR_IO, "%.255s: %s", path, strerror(errno));
        else if (n > FILE_BYTES_MAX)
            err = DT_ERROR(DT_ERR_INPUT, "%.255s: a chat template of more than %d bytes", path,
                FILE_BYTES_MAX);
        else if (memchr(text, 0, n) != NULL)
            err = DT_ERROR(DT_ERR_INPUT, "%.255s: a chat template with a NUL byte", path);
    }
    fclose(file);
    *texts_out = text;
    if (err != DT_OK)
        return err;
    text[n] = 0;
    *out = (dt_chat_form){.name = "file", .join = {"", "\n\n"}};
    fill(out);
    return read_lines(out, text, path);
}
