/* Fuzzes GGUF files: any bytes, opened and read as a caller would; then configuration, vocabulary,
 * one text encoded with it, and the chat template. */
#include <string.h>

#include "models/chat.h"
#include "models/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *n_args, char ***args) {
    (void)n_args;
    (void)args;
    return 0;
}

/* What a hostile vocabulary makes of a text must still come back as ids of it. */
static unsigned use_vocab(const dt_gguf *gguf) {
    static const char text[] = "Hello  w\xC3\xB6rld\n<|im_end|>\xFF 12 \xE2\x96\x81 x";
    dt_vocab *vocab;
    dt_chat *chat;
    int32_t ids[256];
    int64_t n = 0;
    int32_t n_common;
    unsigned sum = 0;
    if (dt_vocab_open(&vocab, gguf) == DT_OK) {
        dt_err err = dt_encode(ids, DT_COUNT(ids), &n, vocab, text, sizeof text - 1, true, true);
        for (int64_t i = 0; i < n && err == DT_OK; i++) {
            char bytes[16];
            fuzz_require(ids[i] >= 0 && ids[i] < dt_vocab_size(vocab), "id");
            sum += (unsigned)dt_decode_token(bytes, sizeof bytes, vocab, ids[i], i & 1);
            sum += dt_vocab_ends(vocab, ids[i]);
        }
        fuzz_require(
            dt_vocab_match(&n_common, vocab, vocab) == DT_OK, "a vocabulary is not itself");
        if (dt_chat_open(&chat, gguf, NULL, DT_CHAT_THINK_AUTO) == DT_OK) {
            dt_chat_turn turn = {"user", text};
            sum += dt_chat_encode(ids, DT_COUNT(ids), &n, chat, vocab, &turn, 1) == DT_OK;
        }
        dt_chat_close(chat);
    }
    dt_vocab_close(vocab);
    return sum;
}

static unsigned use(const dt_gguf *gguf) {
    unsigned sum = 0;
    char line[100];
    for (int64_t i = 0; i < dt_gguf_n_keys(gguf); i++) {
        const char *key = dt_gguf_key(gguf, i);
        dt_gguf_describe(gguf, i, line, sizeof line);
        int64_t integer = 0, n;
        double real = 0;
        dt_text text = {NULL, 0};
        const dt_text *texts;
        const int64_t *integers;
        const float *reals;
        if (!dt_gguf_has(gguf, key))
            abort();
        sum += (unsigned)strlen(line);
        sum += dt_gguf_get_int(gguf, key, &integer) == DT_OK;
        sum += dt_gguf_get_float(gguf, key, &real) == DT_OK;
        if (dt_gguf_get_text(gguf, key, &text) == DT_OK && text.n_bytes)
            sum += (unsigned char)text.data[text.n_bytes - 1];
        if (dt_gguf_get_int_array(gguf, key, &integers, &n) == DT_OK && n)
            sum += (unsigned)integers[n - 1];
        if (dt_gguf_get_float_array(gguf, key, &reals, &n) == DT_OK && n)
            sum += reals[n - 1] > 0;
        if (dt_gguf_get_text_array(gguf, key, &texts, &n) == DT_OK && n && texts[n - 1].n_bytes)
            sum += (unsigned char)texts[n - 1].data[texts[n - 1].n_bytes - 1];
    }
    for (int64_t i = 0; i < dt_gguf_n_tensors(gguf); i++) {
        const dt_tensor *t = dt_gguf_tensor(gguf, i);
        const uint8_t *bytes = t->data;
        if (dt_gguf_find(gguf, t->name) != t)
            abort();
        for (size_t k = 0; k < t->n_bytes; k += 64)
            sum += bytes[k];
        sum += bytes[t->n_bytes - 1];
    }
    dt_config config;
    sum += use_vocab(gguf);
    return sum + (dt_config_read(&config, gguf) == DT_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static volatile unsigned sink;
    dt_gguf *gguf;
    if (dt_gguf_open(&gguf, fuzz_file(data, n_bytes)) == DT_OK)
        sink = sink + use(gguf);
    dt_gguf_close(gguf);
    return 0;
}
