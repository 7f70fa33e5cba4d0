/* Fuzzes encoding and decoding: any bytes must come back, in whole characters when streamed, and
 * the count must not depend on the buffer. The first byte of the input chooses the vocabulary and
 * whether special tokens are recognised. Finds tests/data by DT_TEST_DATA, or from the source
 * folder. */
#include "models/token.h"
#include "tests/fuzz/fuzz.h"
#include "tests/token_gguf.h"

enum { N_PRE = 4, N_VOCABS = N_PRE + 2 };

static const char *const names[N_VOCABS] = {
    "gpt-2", "llama-bpe", "qwen2", "smollm", "spm_llama.txt", "spm_gemma.txt"};
/* Live as long as the process. */
static dt_gguf *files[N_VOCABS];
static dt_vocab *vocabs[N_VOCABS];

int LLVMFuzzerInitialize(int *n_args, char ***args) {
    (void)n_args;
    (void)args;
    for (int i = 0; i < N_VOCABS; i++) {
        static char line[1 << 16];
        bool spm = i >= N_PRE;
        test_vocab v = test_vocab_new(spm ? NULL : names[i]);
        v.model = spm ? "llama" : "gpt2";
        v.add_space = i == N_PRE;
        FILE *file = test_open_data(spm ? names[i] : "token_small.txt");
        fuzz_require(file != NULL, "golden file");
        while (fgets(line, sizeof line, file) != NULL) {
            char *rest;
            if (test_line_is(line, "token", &rest)) {
                test_vocab_token(&v, rest + 2, test_unescape(rest + 2), (uint32_t)(*rest - '0'));
            } else if (test_line_is(line, "merge", &rest)) {
                test_vocab_merge(&v, rest, test_unescape(rest));
            } else if (test_line_is(line, "piece", &rest)) {
                char *text;
                test_vocab_score(&v, strtof(rest + 2, &text));
                test_vocab_token(&v, text + 1, test_unescape(text + 1), (uint32_t)(*rest - '0'));
            }
        }
        fclose(file);
        fuzz_require(test_vocab_open(&files[i], &v) == DT_OK, "gguf");
        fuzz_require(dt_vocab_open(&vocabs[i], files[i]) == DT_OK, "vocabulary");
        test_vocab_free(&v);
    }
    return 0;
}

/* What decoding gives back: SentencePiece makes U+2581 a space, and some of its vocabularies put a
 * space in front. */
static size_t expect(char *out, const dt_vocab *vocab, const char *text, size_t n_text) {
    size_t n = 0;
    if (dt_vocab_add_space(vocab) && n_text > 0)
        out[n++] = ' ';
    for (size_t i = 0; i < n_text; i++) {
        bool mark =
            dt_vocab_is_spm(vocab) && n_text - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        out[n++] = mark ? ' ' : text[i];
        i += mark ? 2 : 0;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 1)
        return 0;
    const dt_vocab *vocab = vocabs[(data[0] & 127) % N_VOCABS];
    /* A space goes behind control tokens too; that is left to test_token_spm. */
    bool special = data[0] & 128 && !dt_vocab_add_space(vocab);
    size_t n_text = n_bytes - 1;
    /* Exact sizes, so that a step outside is seen. */
    char *text = malloc(n_text ? n_text : 1), *want = malloc(n_text + 1);
    fuzz_require(text && want, "malloc");
    memcpy(text, data + 1, n_text);
    size_t n_want = expect(want, vocab, text, n_text);
    char *back = malloc(n_want ? n_want : 1), *out = malloc(2 * n_want + 8);
    int32_t *ids = malloc((n_want + 1) * sizeof *ids);
    fuzz_require(back && out && ids, "malloc");

    int64_t n = 0, n_again = 0;
    fuzz_require(dt_encode(ids, (int64_t)n_want, &n, vocab, text, n_text, false, special) == DT_OK,
        "encode");
    dt_err err = dt_encode(NULL, 0, &n_again, vocab, text, n_text, false, special);
    fuzz_require(n == n_again && err == (n ? DT_ERR_LIMIT : DT_OK), "count");

    size_t n_back = 0, n_out = 0;
    dt_utf8 utf8 = {0};
    for (int64_t i = 0; i < n; i++) {
        size_t part = dt_decode_token(back + n_back, n_want - n_back, vocab, ids[i], special);
        fuzz_require(part <= n_want - n_back, "decoded length");
        fuzz_require(
            special || dt_vocab_kind(vocab, ids[i]) != DT_TOKEN_CONTROL, "a control token");
        n_out += dt_utf8_push(&utf8, out + n_out, back + n_back, part);
        n_back += part;
        fuzz_require(n_out + (size_t)utf8.n_held == n_back, "held");
        if (utf8.n_held > 0)
            fuzz_require(
                dt_utf8_unfinished(utf8.held, (size_t)utf8.n_held), "held back for nothing");
    }
    n_out += dt_utf8_flush(&utf8, out + n_out);
    fuzz_require(n_back == n_want && memcmp(want, back, n_want) == 0, "round trip");
    fuzz_require(n_out == n_want && memcmp(want, out, n_want) == 0, "stream");
    free(text);
    free(want);
    free(back);
    free(out);
    free(ids);
    return 0;
}
