#include "src/cli/prompts.h"

#include <stdio.h>
#include <string.h>

prompts prompts_of(const cli_text *text) {
    return (prompts){text->data, text->data + text->n_bytes, 0};
}

static bool parse(prompts_item *out, char error[PROMPTS_ERROR_BYTES], const char *line, size_t n) {
    json_error_t problem;
    json_t *object = json_loadb(line, n, JSON_ALLOW_NUL, &problem);
    if (!object) {
        snprintf(error, PROMPTS_ERROR_BYTES, "%s", problem.text);
        return false;
    }
    const json_t *prompt = json_object_get(object, "prompt");
    if (!prompt)
        prompt = json_array_get(json_object_get(object, "turns"), 0);
    if (!json_is_string(prompt) || json_string_length(prompt) == 0) {
        snprintf(error, PROMPTS_ERROR_BYTES,
            "want an object with \"prompt\" or \"turns\", a text that is not empty");
        json_decref(object);
        return false;
    }
    *out = (prompts_item){object, json_object_get(object, "id"), json_string_value(prompt),
        json_string_length(prompt)};
    return true;
}

bool prompts_next(prompts_item *out, char error[PROMPTS_ERROR_BYTES], prompts *p) {
    error[0] = 0;
    while (p->at < p->end) {
        const char *line = p->at, *newline = memchr(line, '\n', (size_t)(p->end - line));
        const char *end = newline ? newline : p->end;
        p->at = end + (newline != NULL);
        p->i_line++;
        if (line + strspn(line, " \t\r") < end)
            return parse(out, error, line, (size_t)(end - line));
    }
    return false;
}

void prompts_drop(prompts_item *item) {
    json_decref(item->object);
    item->object = NULL;
}
