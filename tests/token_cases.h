/* For the tests of tokenizers: golden ids, texts to encode and decode, the model files. */
#ifndef DT_TESTS_TOKEN_CASES_H
#define DT_TESTS_TOKEN_CASES_H

#include "models/token.h"
#include "src/base/mem.h"
#include "tests/test.h"
#include "tests/token_gguf.h"

enum { N_LINE_MAX = 1 << 16 };

static void check_ids(const dt_vocab *vocab, const char *text, size_t n_text, const char *want,
    bool special, const char *where) {
    static int32_t ids[4096];
    char got[N_LINE_MAX / 2];
    int64_t n = 0;
    CHECK_OK(dt_encode(ids, DT_COUNT(ids), &n, vocab, text, n_text, false, special));
    size_t length = 0;
    got[0] = 0;
    for (int64_t i = 0; i < n && length < sizeof got - 16; i++)
        length += (size_t)snprintf(got + length, sizeof got - length, i ? " %d" : "%d", ids[i]);
    CHECK_MSG(strcmp(got, want) == 0, "%s: \"%s\" (special %d):\n  got  %s\n  want %s", where, text,
        special, got, want);
}

/* Checks the "ids PRE SPECIAL ..." lines of one pre-tokenizer. */
static void check_golden(const dt_vocab *vocab, const char *file_name, const char *pre) {
    static char line[N_LINE_MAX], text[N_LINE_MAX];
    size_t n_text = 0;
    int n_cases = 0;
    FILE *file = test_open_data(file_name);
    CHECK(file != NULL);
    if (file == NULL)
        return;
    while (fgets(line, sizeof line, file) != NULL) {
        char *rest;
        line[strcspn(line, "\n")] = 0;
        if (test_line_is(line, "text", &rest)) {
            n_text = test_unescape(rest);
            memcpy(text, rest, n_text + 1);
        } else if (test_line_is(line, "ids", &rest) && test_line_is(rest, pre, &rest)) {
            const char *want = rest[1] == ' ' ? rest + 2 : rest + 1;
            check_ids(vocab, text, n_text, want, rest[0] == '1', file_name);
            n_cases++;
        }
    }
    CHECK(n_cases > 20);
    fclose(file);
}

static size_t decode_all(char *out, size_t n_max, const dt_vocab *vocab, const int32_t *ids,
    int64_t n_ids, bool special) {
    size_t n = 0;
    for (int64_t i = 0; i < n_ids; i++)
        n += dt_decode_token(out + n, n < n_max ? n_max - n : 0, vocab, ids[i], special);
    return n;
}

/* Bytes of several kinds: any, ASCII, mostly well-formed characters, pieces of special texts. */
static size_t random_text(test_rng *rng, char *out, size_t n_max) {
    static const char *const words[] = {"<|im_end|>", "<|im_", "<tool_call>", "  ", "\r\n", "'s",
        "12", "\xF0\x9F\x91\xA9\xE2\x80\x8D", "\xE4\xBD\xA0", "the", " return", "\xED\xA0\x80"};
    size_t n = 0, length = test_rng_below(rng, (uint32_t)n_max - 16);
    uint32_t kind = test_rng_below(rng, 4);
    while (n < length) {
        if (kind == 0 || test_rng_below(rng, 8) == 0) {
            out[n++] = (char)test_rng_below(rng, 256);
        } else if (kind == 1) {
            out[n++] = (char)test_rng_below(rng, 128);
        } else if (kind == 2) {
            uint32_t c = 0x80 + test_rng_below(rng, 0x700);
            out[n++] = (char)(0xC0 | c >> 6);
            out[n++] = (char)(0x80 | (c & 0x3F));
        } else {
            const char *word = words[test_rng_below(rng, DT_COUNT(words))];
            memcpy(out + n, word, strlen(word));
            n += strlen(word);
        }
    }
    return n;
}

/* DT_TEST_MODELS, else the cache folder of scripts/get_models. */
static void find_models(char *out, size_t n_bytes) {
    const char *models = getenv("DT_TEST_MODELS"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    if (models != NULL)
        snprintf(out, n_bytes, "%s", models);
    else if (cache != NULL && cache[0] != 0)
        snprintf(out, n_bytes, "%s/dovetail/models", cache);
    else
        snprintf(out, n_bytes, "%s/.cache/dovetail/models", home ? home : "");
}

static dt_vocab *open_model(dt_gguf **gguf_out, const char *folder, const char *name) {
    char path[2048];
    dt_vocab *vocab = NULL;
    *gguf_out = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (access(path, R_OK) != 0)
        return NULL;
    CHECK_OK(dt_gguf_open(gguf_out, path));
    int64_t start = dt_time_ns();
    if (*gguf_out != NULL)
        CHECK_OK(dt_vocab_open(&vocab, *gguf_out));
    if (vocab != NULL)
        printf("%s: vocabulary of %d opened in %.1f ms\n", name, dt_vocab_size(vocab),
            (double)(dt_time_ns() - start) * 1e-6);
    return vocab;
}

#endif
