/* Fuzzes chat templates: the first byte chooses between a Jinja template to recognise and a file of
 * a form, and the vocabulary; up to the first NUL the input is the template, behind it a user's
 * text. Whatever the template is, the user's text must not change how many control tokens the
 * conversation has, and one more turn must be the end of the whole conversation. */
#include "models/chat.h"
#include "tests/fuzz/fuzz.h"
#include "tests/token_gguf.h"

static const char *const controls[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|end|>", "[INST]", "[/INST]", "<|im_", "<|im_start|>user"};

static const test_vocab *base_vocab(bool spm) {
    static test_vocab vocabs[2];
    test_vocab *v = &vocabs[spm];
    if (v->n_tokens > 0)
        return v;
    *v = test_vocab_new("gpt-2");
    v->model = spm ? "llama" : "gpt2";
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        size_t n = (size_t)snprintf(name, sizeof name, "<0x%02X>", byte);
        int c = dt_byte_to_char((uint8_t)byte);
        if (!spm) {
            n = c < 0x80 ? 1 : 2;
            name[0] = (char)(c < 0x80 ? c : 0xC0 | c >> 6);
            name[1] = (char)(0x80 | (c & 0x3F));
        }
        test_vocab_token(v, name, n, spm ? 6 : 1);
    }
    for (size_t i = 0; i < DT_COUNT(controls); i++)
        test_vocab_token(v, controls[i], strlen(controls[i]), 3);
    test_vocab_token(v, "\n\n", 2, 4);
    for (uint64_t i = 0; i < v->n_tokens && spm; i++)
        test_vocab_score(v, 0.0f);
    v->bos = 256;
    v->eos = 257;
    return v;
}

static int count_controls(const dt_vocab *vocab, const dt_chat *chat, const char *user) {
    static int32_t ids[1 << 16];
    int64_t n = 0;
    dt_chat_turn turns[] = {{"system", user}, {"user", user}, {"assistant", user}, {"user", user}};
    dt_err err = dt_chat_encode(ids, DT_COUNT(ids), &n, chat, vocab, turns, 4);
    fuzz_require(err == DT_OK || err == DT_ERR_LIMIT, "encode");
    int n_found = 0;
    for (int64_t i = 0; i < n && err == DT_OK; i++)
        n_found += dt_vocab_kind(vocab, ids[i]) == DT_TOKEN_CONTROL;
    return err == DT_OK ? n_found : -1;
}

static void check_append(const dt_vocab *vocab, const dt_chat *chat, const char *user) {
    static int32_t ids[1 << 16];
    int64_t n = 0, n_count = 0;
    dt_err err = dt_chat_append(ids, DT_COUNT(ids), &n, chat, vocab, 'x', user);
    fuzz_require(err == DT_OK || err == DT_ERR_LIMIT, "append");
    err = dt_chat_append(NULL, 0, &n_count, chat, vocab, 'x', user);
    fuzz_require(n == n_count && err == (n > 0 ? DT_ERR_LIMIT : DT_OK), "count");
}

int LLVMFuzzerInitialize(int *n_args, char ***args) {
    (void)n_args;
    (void)args;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 1 || n_bytes > 8192)
        return 0;
    bool from_file = data[0] & 1, spm = data[0] & 2;
    dt_chat_think think = data[0] & 4 ? DT_CHAT_THINK_OFF : DT_CHAT_THINK_AUTO;
    const uint8_t *end = memchr(data + 1, 0, n_bytes - 1);
    size_t n_template = end ? (size_t)(end - data) - 1 : n_bytes - 1;
    size_t n_user = n_bytes - 1 - n_template;
    char *user = calloc(1, n_user + 1); /* up to its next NUL */
    if (n_user > 1)
        memcpy(user, end + 1, n_user - 1);

    test_vocab v = *base_vocab(spm);
    v.chat_template = (const char *)data + 1;
    v.n_chat_template = n_template;
    dt_gguf *gguf = NULL;
    dt_vocab *vocab = NULL;
    dt_chat *chat = NULL;
    fuzz_require(test_vocab_open(&gguf, &v) == DT_OK, "gguf");
    fuzz_require(dt_vocab_open(&vocab, gguf) == DT_OK, "vocabulary");
    const char *path = from_file ? fuzz_file(data + 1, n_template) : NULL;
    if (dt_chat_open(&chat, gguf, path, think) == DT_OK) {
        char small[8];
        dt_chat_turn turn = {"user", user};
        size_t n = dt_chat_render(small, sizeof small, chat, vocab, &turn, 1);
        fuzz_require(n == dt_chat_render(NULL, 0, chat, vocab, &turn, 1), "length");
        int n_controls = count_controls(vocab, chat, user);
        /* An empty text may take its whole turn with it. */
        if (n_controls >= 0 && user[strspn(user, " \t\n\v\f\r")] != 0)
            fuzz_require(n_controls == count_controls(vocab, chat, "x"), "forged");
        check_append(vocab, chat, user);
    }
    dt_chat_close(chat);
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    free(user);
    return 0;
}
