/* Fuzzes encoding and decoding: any bytes must come back, in whole characters when streamed, and
 * the count must not depend on the buffer. The first byte of the input chooses the pre-tokenizer
 * and whether special tokens are recognised.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined ... ; run in the source folder, or with
 *     DT_TEST_DATA set to tests/data */
#include "models/token.h"
#include "models/token_bpe.h"
#include "tests/token_gguf.h"

int LLVMFuzzerInitialize(int *n_args, char ***args);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const char *const pre_names[] = {"gpt-2", "llama-bpe", "qwen2", "smollm"};
/* Live as long as the process. */
static dt_gguf *files[DT_COUNT(pre_names)];
static dt_vocab *vocabs[DT_COUNT(pre_names)];

static void require(bool condition, const char *what) {
    if (condition)
        return;
    fprintf(stderr, "fuzz_token: %s: %s\n", what, dt_err_message());
    abort();
}

int LLVMFuzzerInitialize(int *n_args, char ***args) {
    (void)n_args;
    (void)args;
    for (size_t i = 0; i < DT_COUNT(pre_names); i++) {
        static char line[1 << 16];
        test_vocab v = test_vocab_new(pre_names[i]);
        FILE *file = test_open_data("token_small.txt");
        require(file != NULL, "golden file");
        while (fgets(line, sizeof line, file) != NULL) {
            char *rest;
            if (test_line_is(line, "token", &rest))
                test_vocab_token(&v, rest + 2, test_unescape(rest + 2), (uint32_t)(*rest - '0'));
            else if (test_line_is(line, "merge", &rest))
                test_vocab_merge(&v, rest, test_unescape(rest));
        }
        fclose(file);
        require(test_vocab_open(&files[i], &v) == DT_OK, "gguf");
        require(dt_vocab_open(&vocabs[i], files[i]) == DT_OK, "vocabulary");
        test_vocab_free(&v);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 1)
        return 0;
    const dt_vocab *vocab = vocabs[data[0] % DT_COUNT(pre_names)];
    bool special = data[0] & 4;
    size_t n_text = n_bytes - 1;
    /* Exact sizes, so that a step outside is seen. */
    char *text = malloc(n_text + 1), *back = malloc(n_text + 1), *out = malloc(2 * n_text + 8);
    int32_t *ids = malloc((n_text + 1) * sizeof *ids);
    require(text && back && out && ids, "malloc");
    text = realloc(text, n_text ? n_text : 1);
    memcpy(text, data + 1, n_text);

    int64_t n = 0, n_again = 0;
    require(dt_encode(ids, (int64_t)n_text, &n, vocab, text, n_text, false, special) == DT_OK,
        "encode");
    dt_err err = dt_encode(NULL, 0, &n_again, vocab, text, n_text, false, special);
    require(n == n_again && err == (n ? DT_ERR_LIMIT : DT_OK), "count");

    size_t n_back = 0, n_out = 0;
    dt_utf8 utf8 = {0};
    for (int64_t i = 0; i < n; i++) {
        size_t part = dt_decode_token(back + n_back, n_text - n_back, vocab, ids[i], special);
        require(part <= n_text - n_back, "decoded length");
        n_out += dt_utf8_push(&utf8, out + n_out, back + n_back, part);
        n_back += part;
        require(n_out + (size_t)utf8.n_held == n_back, "held");
        if (utf8.n_held > 0)
            require(dt_utf8_unfinished(utf8.held, (size_t)utf8.n_held), "held back for nothing");
    }
    n_out += dt_utf8_flush(&utf8, out + n_out);
    require(n_back == n_text && memcmp(text, back, n_text) == 0, "round trip");
    require(n_out == n_text && memcmp(text, out, n_text) == 0, "stream");
    free(text);
    free(back);
    free(out);
    free(ids);
    return 0;
}
