/* Chat templates: detection, and rendering against what Jinja2 itself makes of the templates of
 * Qwen2.5, SmolLM2 and Llama 3 (scripts/golden_token.py). */
#include "models/chat.h"
#include "tests/test.h"
#include "tests/token_gguf.h"

enum { N_LINE_MAX = 1 << 14, N_TURNS_MAX = 8 };

static dt_err detect(dt_chat_format *out, const char **system_out, const char *text, size_t n) {
    test_vocab v = test_vocab_new(NULL);
    dt_gguf *gguf = NULL;
    v.chat_template = text;
    v.n_chat_template = n;
    dt_err err = test_vocab_open(&gguf, &v);
    if (err == DT_OK)
        err = dt_chat_detect(out, system_out, gguf);
    dt_gguf_close(gguf);
    return err;
}

/* The whole text, and every smaller buffer: the same beginning, always closed by NUL. */
static void check_render(dt_chat_format format, const char *system, const dt_chat_turn *turns,
    int n_turns, const char *want) {
    char out[N_LINE_MAX];
    size_t n_want = strlen(want);
    CHECK(dt_chat_render(out, sizeof out, format, system, turns, n_turns) == n_want);
    CHECK_MSG(strcmp(out, want) == 0, "got:\n%s\nwant:\n%s", out, want);
    CHECK(dt_chat_render(NULL, 0, format, system, turns, n_turns) == n_want);
    for (size_t n_max = 1; n_max <= n_want + 1; n_max++) {
        memset(out, '#', n_max + 1);
        CHECK(dt_chat_render(out, n_max, format, system, turns, n_turns) == n_want);
        CHECK(memcmp(out, want, n_max - 1) == 0 && out[n_max - 1] == 0 && out[n_max] == '#');
    }
}

static void test_golden(void) {
    static char line[N_LINE_MAX], texts[N_TURNS_MAX][N_LINE_MAX];
    dt_chat_turn turns[N_TURNS_MAX];
    int n_turns = 0, n_templates = 0, n_cases = 0;
    dt_chat_format format = DT_CHAT_CHATML;
    const char *system = NULL;
    FILE *file = test_open_data("chat_golden.txt");
    CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *rest;
        line[strcspn(line, "\n")] = 0;
        if (test_line_is(line, "template", &rest)) {
            char *text = strchr(rest, ' ') + 1;
            CHECK_OK(detect(&format, &system, text, test_unescape(text)));
            bool llama3 = strncmp(rest, "llama3 ", 7) == 0;
            CHECK(format == (llama3 ? DT_CHAT_LLAMA3 : DT_CHAT_CHATML));
            CHECK((system == NULL) == llama3);
            n_templates++;
        } else if (test_line_is(line, "turn", &rest) && n_turns < N_TURNS_MAX) {
            char *text = strchr(rest, ' ') + 1;
            text[-1] = 0;
            test_unescape(text);
            snprintf(texts[n_turns], N_LINE_MAX, "%s", text);
            turns[n_turns].role = rest[0] == 's' ? "system" : rest[0] == 'u' ? "user" : "assistant";
            turns[n_turns].text = texts[n_turns];
            n_turns++;
        } else if (test_line_is(line, "want", &rest)) {
            test_unescape(rest);
            check_render(format, system, turns, n_turns, rest);
            n_turns = 0;
            n_cases++;
        }
    }
    CHECK(n_templates == 3 && n_cases >= 12);
    if (file != NULL)
        fclose(file);
}

static void check_refused(const char *text, const char *words) {
    dt_chat_format format;
    const char *system = "";
    CHECK_FAILS(detect(&format, &system, text, text ? strlen(text) : 0), DT_ERR_UNSUPPORTED, words);
    CHECK(system == NULL);
}

static void check_system(const char *text, const char *want) {
    dt_chat_format format = DT_CHAT_LLAMA3;
    const char *system = "";
    CHECK_OK(detect(&format, &system, text, strlen(text)));
    CHECK(format == DT_CHAT_CHATML);
    CHECK(want == NULL ? system == NULL : system != NULL && strcmp(system, want) == 0);
}

static void test_detect(void) {
    check_refused(NULL, "no chat template");
    check_refused("", "no chat template");
    check_refused("[INST] {{ content }} [/INST]", "family");
    check_refused("<|im_start|>system<|im_sep|>x<|im_end|>", "family");
    check_refused("<|im_start|>", "family");
    check_refused("<|im_start|>system", "family");

    check_system("'<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n'", NULL);
    check_system("'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'",
        "You are a helpful assistant.");
    check_system("'<|im_start|>system\nYou are a helpful assistant<|im_end|>\n'",
        "You are a helpful assistant");
    /* Another one is not taken for a listed one that it begins with; nor is one at the very end. */
    check_system("'<|im_start|>system\\nYou are a helpful assistant. Sing!<|im_end|>\\n'", NULL);
    check_system("<|im_end|><|im_start|>system\\nYou are a helpful assistant", NULL);
    check_system("<|im_end|><|im_start|>system\\", NULL);
}

static void test_render(void) {
    dt_chat_turn turn = {"user", "\v\n "};
    check_render(DT_CHAT_CHATML, NULL, NULL, 0, "<|im_start|>assistant\n");
    check_render(
        DT_CHAT_CHATML, "S", NULL, 0, "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n");
    check_render(DT_CHAT_LLAMA3, NULL, &turn, 1,
        "<|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

int main(void) {
    test_golden();
    test_detect();
    test_render();
    return test_end();
}
