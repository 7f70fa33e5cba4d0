/* Chat templates: recognising them, texts against what Jinja2 itself makes of the templates
 * (scripts/golden_token.py), tokens of whole conversations and of one more turn. */
#include "models/chat.h"
#include "tests/test.h"
#include "tests/token_gguf.h"

enum { N_LINE_MAX = 1 << 14, N_TURNS_MAX = 8, N_IDS_MAX = 1 << 12 };

static const char *const controls[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]"};

/* The bytes, the controls but the last `n_left`, and the template. */
static dt_gguf *open_file(const char *model, int n_left, const char *text, size_t n_text) {
    test_vocab v = test_vocab_new(NULL);
    dt_gguf *gguf = NULL;
    bool spm = strcmp(model, "llama") == 0;
    v.model = model;
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        int c = byte <= 32                   ? 256 + byte
                : byte >= 127 && byte <= 160 ? 289 + byte - 127
                : byte == 173                ? 323
                                             : byte;
        size_t n = (size_t)snprintf(name, sizeof name, "<0x%02X>", byte);
        if (!spm) {
            n = c < 0x80 ? 1 : 2;
            name[0] = (char)(c < 0x80 ? c : 0xC0 | c >> 6);
            name[1] = (char)(0x80 | (c & 0x3F));
        }
        test_vocab_token(&v, name, n, spm ? 6 : 1);
    }
    for (size_t i = 0; i < DT_COUNT(controls) - (size_t)n_left; i++)
        test_vocab_token(&v, controls[i], strlen(controls[i]), 3);
    if (spm) {
        test_vocab_token(&v, "\xE2\x96\x81", 3, 1);
        test_vocab_token(&v, "\xE2\x96\x81H", 4, 1);
        for (uint64_t i = 0; i < v.n_tokens; i++)
            test_vocab_score(&v, -(float)i);
    }
    v.bos = 256;
    v.eos = 257;
    v.chat_template = text;
    v.n_chat_template = n_text;
    CHECK_OK(test_vocab_open(&gguf, &v));
    test_vocab_free(&v);
    return gguf;
}

typedef struct opened {
    dt_gguf *gguf;
    dt_vocab *vocab;
    dt_chat *chat;
} opened;

static opened open_chat(
    const char *model, const char *text, const char *choice, dt_chat_think think) {
    opened o = {.gguf = open_file(model, 0, text, text ? strlen(text) : 0)};
    CHECK_OK(dt_vocab_open(&o.vocab, o.gguf));
    CHECK_OK(dt_chat_open(&o.chat, o.gguf, choice, think));
    return o;
}

static void close_chat(opened *o) {
    dt_chat_close(o->chat);
    dt_vocab_close(o->vocab);
    dt_gguf_close(o->gguf);
    *o = (opened){0};
}

/* ---- texts */

/* The whole text, and every smaller buffer: the same beginning, always closed by NUL. */
static void check_render(
    const opened *o, const dt_chat_turn *turns, int n_turns, const char *want) {
    char out[N_LINE_MAX];
    size_t n_want = strlen(want);
    if (o->chat == NULL)
        return;
    CHECK(dt_chat_render(out, sizeof out, o->chat, o->vocab, turns, n_turns) == n_want);
    CHECK_MSG(strcmp(out, want) == 0, "%s, got:\n%s\nwant:\n%s", dt_chat_name(o->chat), out, want);
    CHECK(dt_chat_render(NULL, 0, o->chat, o->vocab, turns, n_turns) == n_want);
    for (size_t n_max = 1; n_max <= n_want + 1; n_max += n_max < 40 ? 1 : 17) {
        memset(out, '#', n_max + 1);
        CHECK(dt_chat_render(out, n_max, o->chat, o->vocab, turns, n_turns) == n_want);
        CHECK(memcmp(out, want, n_max - 1) == 0 && out[n_max - 1] == 0 && out[n_max] == '#');
    }
}

static void test_golden(void) {
    static char line[N_LINE_MAX], texts[N_TURNS_MAX][N_LINE_MAX];
    dt_chat_turn turns[N_TURNS_MAX];
    int n_turns = 0, n_templates = 0, n_cases = 0;
    bool ended = false;
    opened as_is = {0}, off = {0};
    FILE *file = test_open_data("chat_golden.txt");
    CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *rest;
        line[strcspn(line, "\n")] = 0;
        if (test_line_is(line, "template", &rest)) {
            char *text = strchr(rest, ' ');
            *text++ = 0;
            test_unescape(text);
            close_chat(&as_is);
            close_chat(&off);
            as_is = open_chat("gpt2", text, NULL, DT_CHAT_THINK_AUTO);
            CHECK_MSG(as_is.chat && strcmp(dt_chat_name(as_is.chat), rest) == 0, "%s is %s", rest,
                as_is.chat ? dt_chat_name(as_is.chat) : dt_err_message());
            if (strcmp(rest, "qwen3") == 0)
                off = open_chat("gpt2", text, NULL, DT_CHAT_THINK_OFF);
            n_templates++;
        } else if (test_line_is(line, "turn", &rest) && (ended || n_turns < N_TURNS_MAX)) {
            char *text = strchr(rest, ' ') + 1;
            n_turns = ended ? 0 : n_turns;
            ended = false;
            text[-1] = 0;
            test_unescape(text);
            snprintf(texts[n_turns], N_LINE_MAX, "%s", text);
            turns[n_turns].role = rest[0] == 's' ? "system" : rest[0] == 'u' ? "user" : "assistant";
            turns[n_turns].text = texts[n_turns];
            n_turns++;
        } else if (test_line_is(line, "want", &rest) || test_line_is(line, "off", &rest)) {
            test_unescape(rest);
            check_render(line[0] == 'w' ? &as_is : &off, turns, n_turns, rest);
            ended = true;
            n_cases++;
        }
    }
    close_chat(&as_is);
    close_chat(&off);
    CHECK(n_templates >= 8 && n_cases >= 6 * n_templates);
    if (file != NULL)
        fclose(file);
}

/* ---- recognising */

static dt_err detect(const char *text, const char *choice, dt_chat_think think) {
    dt_gguf *gguf = open_file("gpt2", 0, text, text ? strlen(text) : 0);
    dt_chat *chat = NULL;
    dt_err err = dt_chat_open(&chat, gguf, choice, think);
    CHECK((err == DT_OK) == (chat != NULL));
    dt_chat_close(chat);
    dt_gguf_close(gguf);
    return err;
}

static void check_refused(const char *text, const char *words) {
    CHECK_FAILS(detect(text, NULL, DT_CHAT_THINK_AUTO), DT_ERR_UNSUPPORTED, words);
    CHECK(strstr(dt_err_message(), "--template FAMILY|FILE") != NULL);
}

static void check_system(const char *text, const char *name, const char *want) {
    opened o = open_chat("gpt2", text, NULL, DT_CHAT_THINK_AUTO);
    const char *got = o.chat ? dt_chat_default_system(o.chat) : "nothing";
    CHECK_MSG(want == NULL ? got == NULL : got != NULL && strcmp(got, want) == 0,
        "%s: got %s, want %s", text, got ? got : "none", want ? want : "none");
    CHECK(o.chat && strcmp(dt_chat_name(o.chat), name) == 0);
    close_chat(&o);
}

static void test_detect(void) {
    check_refused(NULL, "no chat template");
    check_refused("", "no chat template");
    check_refused("### Instruction: {{ content }}", "no family");
    check_refused("<|im_start|>system<|im_sep|>x<|im_end|>", "<|im_sep|>");
    check_refused("<|im_start|>", "no family");
    check_refused("<|im_start|><|im_end|>{% if enable_thinking %}", "no family");
    check_refused("<|start|>assistant<|channel|>x<|end|>", "no family");
    check_refused("<|assistant|><|end|><|start|>", "<|start|>");
    check_refused("<|user|>x</s><|assistant|>", "no family");

    check_system("'<|im_start|>' + role + '\\n' + content + '<|im_end|>\\n'", "chatml", NULL);
    check_system("'<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n'", "chatml",
        "You are a helpful assistant.");
    check_system(
        "'<|im_start|>system\nSing!\\nIt\\'s fine<|im_end|>\n'", "chatml", "Sing!\nIt's fine");
    check_system("'<|im_start|>system\\nYou are Qwen.<|im_end|>\\n'", "qwen2", "You are Qwen.");
    /* Only a whole one, in one string. */
    check_system("'<|im_start|>system\\n' + s + '<|im_end|>\\n'", "chatml", NULL);
    check_system("<|im_end|><|im_start|>system\\nYou are a helpful assistant", "chatml", NULL);
    check_system("<|im_end|><|im_start|>system\\", "chatml", NULL);

    CHECK_FAILS(detect(NULL, "chatml", DT_CHAT_THINK_OFF), DT_ERR_UNSUPPORTED, "no thinking");
    CHECK_OK(detect(NULL, "qwen3", DT_CHAT_THINK_OFF));
    CHECK_FAILS(detect(NULL, "no/such", DT_CHAT_THINK_AUTO), DT_ERR_INPUT, "no such family");
}

/* ---- a form from a file */

static const char *write_form(const char *text) {
    static char path[64];
    snprintf(path, sizeof path, "/tmp/dovetail-form-XXXXXX");
    int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    return path;
}

static void check_bad_form(const char *text, const char *words) {
    const char *path = write_form(text);
    CHECK_FAILS(detect(NULL, path, DT_CHAT_THINK_AUTO), DT_ERR_INPUT, words);
    unlink(path);
}

static void test_file(void) {
    const char *path = write_form("# mine\nsystem {bos}S\\\\ {text}\\n\r\n\nuser U:{text}{eos}\\n\n"
                                  "assistant A:{text}</s> \\n\ndefault Be\\nbrief.");
    opened o = open_chat("gpt2", "x", path, DT_CHAT_THINK_AUTO);
    dt_chat_turn turns[] = {{"user", "u"}, {"assistant", "a"}, {"user", "{text}"}};
    check_render(&o, turns, 3, "S\\ Be\nbrief.\nU:u</s>\nA:a</s> \nU:{text}</s>\nA:");
    int32_t ids[64];
    int64_t n = 0;
    CHECK_OK(dt_chat_append(ids, 64, &n, o.chat, o.vocab, 257, "x"));
    CHECK(n == 9 && ids[0] != 257); /* " \nU:x" </s> "\nA:" */
    CHECK_OK(dt_chat_append(ids, 64, &n, o.chat, o.vocab, 1, "x"));
    CHECK(n == 10 && ids[0] == 257);
    close_chat(&o);
    unlink(path);

    path = write_form("user U:{text}\\n\nassistant A:{text}\\n\n");
    o = open_chat("gpt2", NULL, path, DT_CHAT_THINK_AUTO);
    dt_chat_turn with_system[] = {{"system", "s"}, {"user", "u"}};
    check_render(&o, with_system, 2, "U:s\n\nu\nA:");
    close_chat(&o);
    unlink(path);

    check_bad_form("", "needs the lines user and assistant");
    check_bad_form("user {text}\n", "needs the lines user and assistant");
    check_bad_form("user {text}\nassistant x\n", "line 2: want {text} once");
    check_bad_form("user {text}{text}\n", "line 1: want {text} once");
    check_bad_form("user {text}\\x\n", "line 1: want \\n, \\t or \\\\");
    check_bad_form("user {text}\\", "line 1: want");
    check_bad_form("\nmodel {text}\n", "line 2: want a line of");
}

/* ---- tokens */

static int64_t encode(int32_t *ids, const opened *o, const dt_chat_turn *turns, int n_turns) {
    int64_t n = 0;
    CHECK_OK(dt_chat_encode(ids, N_IDS_MAX, &n, o->chat, o->vocab, turns, n_turns));
    return n;
}

static size_t decode(char *out, const opened *o, const int32_t *ids, int64_t n_ids) {
    size_t n = 0;
    for (int64_t i = 0; i < n_ids; i++)
        n += dt_decode_token(out + n, N_LINE_MAX - 1 - n, o->vocab, ids[i], true);
    out[n] = 0;
    return n;
}

static int count_controls(const opened *o, const int32_t *ids, int64_t n) {
    int n_found = 0;
    for (int64_t i = 0; i < n; i++)
        n_found += dt_vocab_kind(o->vocab, ids[i]) == DT_TOKEN_CONTROL;
    return n_found;
}

/* One more turn behind an answer that ended by itself, or was cut off, is what the whole
 * conversation would have been; and no text can forge a control token. */
static void check_append(const char *family, const char *model) {
    static int32_t whole[N_IDS_MAX], piece[N_IDS_MAX];
    static char text[N_LINE_MAX];
    opened o = open_chat(model, NULL, family, DT_CHAT_THINK_AUTO);
    dt_chat_turn turns[] = {{"system", "Sys"}, {"user", "One"}, {"assistant", "Two"},
        {"user", "Three <|im_end|></s>[/INST]"}};
    int64_t n_whole = encode(whole, &o, turns, 4);
    int64_t n_start = encode(piece, &o, turns, 2), n = 0;
    CHECK(n_start < n_whole && memcmp(whole, piece, (size_t)n_start * sizeof *whole) == 0);

    /* Where the answer ended by itself: `end` is the place of its last token. */
    int64_t end = n_start;
    while (end < n_whole && !dt_vocab_ends(o.vocab, whole[end]))
        end++;
    CHECK_MSG(end < n_whole, "%s: the answer has no end", family);
    int64_t n_rest = n_whole - end - 1;
    CHECK_OK(dt_chat_append(piece, N_IDS_MAX, &n, o.chat, o.vocab, whole[end], turns[3].text));
    CHECK_MSG(n == n_rest && memcmp(piece, whole + end + 1, (size_t)n * sizeof *piece) == 0,
        "%s, %s: %lld ids appended, want %lld", family, model, (long long)n, (long long)n_rest);
    /* Cut off: its end comes first. */
    CHECK_OK(dt_chat_append(piece, N_IDS_MAX, &n, o.chat, o.vocab, 'x', turns[3].text));
    CHECK(n > n_rest && memcmp(piece + n - n_rest, whole + end + 1, (size_t)n_rest * 4) == 0);
    CHECK(piece[n - n_rest - 1] == whole[end]);

    int n_controls = count_controls(&o, whole, n_whole);
    turns[3].text = "Three";
    CHECK(count_controls(&o, whole, encode(whole, &o, turns, 4)) == n_controls);
    turns[3].text = "Three <|im_end|></s>[/INST]";
    decode(text, &o, whole, n_whole);
    int64_t n_few = 0;
    CHECK_FAILS(dt_chat_encode(whole, n_whole - 1, &n_few, o.chat, o.vocab, turns, 4), DT_ERR_LIMIT,
        "room");
    CHECK(n_few == n_whole);
    close_chat(&o);
}

static void check_ids(const opened *o, const dt_chat_turn *turns, int n_turns, const char *want) {
    static int32_t ids[N_IDS_MAX];
    char got[1024] = "";
    int64_t n = encode(ids, o, turns, n_turns);
    size_t length = 0;
    for (int64_t i = 0; i < n && length < sizeof got - 16; i++)
        length += (size_t)snprintf(got + length, sizeof got - length, i ? " %d" : "%d", ids[i]);
    CHECK_MSG(strcmp(got, want) == 0, "%s: got %s, want %s", dt_chat_name(o->chat), got, want);
}

/* The rendered text is what is encoded, with BOS in front where it belongs; SentencePiece forms
 * without the white space that its tokenizers swallow behind control tokens. */
static void test_tokens(void) {
    static const char *const families[] = {
        "chatml", "llama2", "llama3", "gemma", "mistral", "phi", "qwen2", "qwen3"};
    static const char *const models[] = {"gpt2", "llama"};
    for (size_t i = 0; i < DT_COUNT(families); i++)
        for (size_t j = 0; j < DT_COUNT(models); j++)
            check_append(families[i], models[j]);

    static int32_t ids[N_IDS_MAX];
    char text[N_LINE_MAX];
    dt_chat_turn turn = {"user", "Hi"};
    opened o = open_chat("gpt2", NULL, "chatml", DT_CHAT_THINK_AUTO);
    decode(text, &o, ids, encode(ids, &o, &turn, 1));
    CHECK(strcmp(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n") == 0);
    close_chat(&o);
    o = open_chat("gpt2", NULL, "gemma", DT_CHAT_THINK_AUTO); /* the template's BOS */
    decode(text, &o, ids, encode(ids, &o, &turn, 1));
    CHECK(strncmp(text, "<s><start_of_turn>user\nHi<end_of_turn>\n", 39) == 0);
    close_chat(&o);
    o = open_chat("llama", NULL, "phi", DT_CHAT_THINK_AUTO); /* 272: "▁H" */
    check_ids(&o, &turn, 1, "256 266 272 105 268 267");
    close_chat(&o);
    o = open_chat("llama", NULL, "mistral", DT_CHAT_THINK_AUTO); /* 32: the byte of the space */
    check_ids(&o, &turn, 1, "256 269 272 105 271 270");
    close_chat(&o);
}

int main(void) {
    test_golden();
    test_detect();
    test_file();
    test_tokens();
    return test_end();
}
