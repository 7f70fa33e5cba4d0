/* SentencePiece vocabularies: golden ids of `sentencepiece` (scripts/golden_token.py), round trips,
 * long texts, refusals. The part on Gemma's vocabulary runs where its file is (DT_TEST_MODELS, else
 * the cache folder of scripts/get_models); without it the rest still runs and the exit code is 77.
 */
#include "tests/token_cases.h"

enum { N_IDS_MAX = 1 << 21 };

static bool read_pieces(test_vocab *v, const char *file_name) {
    static char line[N_LINE_MAX];
    FILE *file = test_open_data(file_name);
    *v = test_vocab_new(NULL);
    v->model = "llama";
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *rest;
        if (!test_line_is(line, "piece", &rest))
            continue;
        char *text;
        uint32_t kind = (uint32_t)strtoul(rest, &rest, 10);
        float score = strtof(rest, &text);
        text++;
        test_vocab_token(v, text, test_unescape(text), kind);
        test_vocab_score(v, score);
    }
    if (file != NULL)
        fclose(file);
    CHECK(v->n_tokens > 256);
    return v->n_tokens > 256;
}

static dt_vocab *open_pieces(dt_gguf **gguf_out, const char *file_name, bool add_space) {
    test_vocab v;
    dt_vocab *vocab = NULL;
    *gguf_out = NULL;
    if (!read_pieces(&v, file_name))
        return NULL;
    v.bos = 1;
    v.eos = 2;
    v.add_space = add_space ? -1 : 0; /* left out: true */
    CHECK_OK(test_vocab_open(gguf_out, &v));
    if (*gguf_out != NULL)
        CHECK_OK(dt_vocab_open(&vocab, *gguf_out));
    test_vocab_free(&v);
    return vocab;
}

static bool holds_space_mark(const char *text, size_t n) {
    for (size_t i = 0; i + 3 <= n; i++)
        if (memcmp(text + i, "\xE2\x96\x81", 3) == 0)
            return true;
    return false;
}

/* Every byte comes back, behind the space that goes in front. */
static void check_round_trips(const dt_vocab *vocab, int n_texts) {
    enum { N_MAX = 200 };
    char text[N_MAX + 16], back[2 * N_MAX];
    int32_t ids[2 * N_MAX];
    test_rng rng = test_rng_open();
    for (int i = 0; i < n_texts; i++) {
        size_t n_text = random_text(&rng, text, N_MAX);
        int64_t n = 0;
        if (holds_space_mark(text, n_text))
            continue;
        CHECK_OK(dt_encode(ids, DT_COUNT(ids), &n, vocab, text, n_text, false, false));
        size_t n_back = decode_all(back, sizeof back, vocab, ids, n, false);
        size_t skip = dt_vocab_add_space(vocab) && n_text > 0;
        CHECK_MSG(n_back == n_text + skip && (!skip || back[0] == ' ') &&
                      memcmp(text, back + skip, n_text) == 0,
            "text %d of %zu bytes comes back as %zu bytes", i, n_text, n_back);
        for (int64_t j = 0; j < n; j++)
            CHECK(dt_vocab_kind(vocab, ids[j]) != DT_TOKEN_CONTROL);
    }
}

/* A long text must take n log n, not n^2: at n^2 these run for hours. */
static void check_long(const dt_vocab *vocab) {
    enum { N = 1 << 20 };
    static const char *const fills[] = {"a", " ", "ab", "\xE4\xBD\xA0", "= 0", "\xFF", " \n", "<",
        "in tion ", "the quick brown fox  jumps\n"};
    char *text = malloc(N);
    int32_t *ids = malloc(N_IDS_MAX * sizeof *ids);
    for (size_t j = 0; text != NULL && ids != NULL && j < DT_COUNT(fills); j++) {
        size_t n_fill = strlen(fills[j]);
        int64_t n = 0, start = dt_time_ns();
        for (size_t k = 0; k < N; k++)
            text[k] = fills[j][k % n_fill];
        CHECK_OK(dt_encode(ids, N_IDS_MAX, &n, vocab, text, N, true, true));
        CHECK(n > 1 && ids[0] == dt_vocab_bos(vocab));
        double seconds = (double)(dt_time_ns() - start) * 1e-9;
        CHECK_MSG(seconds < 60, "1 MB of \"%s\": %.1f s", fills[j], seconds);
    }
    free(text);
    free(ids);
}

static void test_small(void) {
    static const char *const files[] = {"spm_llama.txt", "spm_gemma.txt"};
    for (int i = 0; i < 2; i++) {
        dt_gguf *gguf;
        dt_vocab *vocab = open_pieces(&gguf, files[i], i == 0);
        if (vocab != NULL) {
            CHECK(dt_vocab_add_bos(vocab)); /* where the file says nothing */
            CHECK(dt_vocab_add_space(vocab) == (i == 0));
            CHECK(dt_vocab_ends(vocab, 2));
            check_golden(vocab, files[i], "spm");
            check_round_trips(vocab, 5000);
            check_long(vocab);
        }
        dt_vocab_close(vocab);
        dt_gguf_close(gguf);
    }
}

/* ---- vocabularies made by hand */

/* The 256 bytes and the given tokens behind them, with their scores. */
typedef struct entry {
    const char *text;
    uint32_t kind;
    float score;
} entry;

static test_vocab make_vocab(const entry *entries, size_t n) {
    test_vocab v = test_vocab_new(NULL);
    v.model = "llama";
    v.add_space = 0;
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        test_vocab_token(&v, text, 6, 6);
        test_vocab_score(&v, 0.0f);
    }
    for (size_t i = 0; i < n; i++) {
        test_vocab_token(&v, entries[i].text, strlen(entries[i].text), entries[i].kind);
        test_vocab_score(&v, entries[i].score);
    }
    return v;
}

static dt_vocab *open_vocab(dt_gguf **gguf_out, test_vocab *v) {
    dt_vocab *vocab = NULL;
    *gguf_out = NULL;
    CHECK_OK(test_vocab_open(gguf_out, v));
    if (*gguf_out != NULL)
        CHECK_OK(dt_vocab_open(&vocab, *gguf_out));
    test_vocab_free(v);
    return vocab;
}

static void check_text(const dt_vocab *vocab, const char *text, const char *want) {
    check_ids(vocab, text, strlen(text), want, false, "by hand");
}

static void test_merges(void) {
    /* 256 a, 257 b, 258 c, 259 ab, 260 bc, 261 aa, 262 "▁", 263 "a▁b", 264 "[x▁]", 265 unused */
    static const entry entries[] = {{"a", 1, -9}, {"b", 1, -9}, {"c", 1, -9}, {"ab", 1, -2},
        {"bc", 1, -1}, {"aa", 1, -2}, {"\xE2\x96\x81", 1, -9},
        {"a\xE2\x96\x81"
         "b",
            1, -3},
        {"[x\xE2\x96\x81]", 4, 0}, {"cc", 5, 0},
        {"\xE2\x96\x81"
         "b",
            1, -4},
        {"<c>", 3, 0}};
    test_vocab v = make_vocab(entries, DT_COUNT(entries));
    dt_gguf *gguf;
    dt_vocab *vocab = open_vocab(&gguf, &v);
    if (vocab != NULL) {
        check_text(vocab, "abc", "256 260"); /* the better score, though not the first */
        check_text(vocab, "aab", "261 257"); /* of equal scores the leftmost */
        check_text(vocab, "aaaaa", "261 261 256");
        check_text(vocab, "a b", "263"); /* over a space */
        check_text(vocab, "c b", "258 266");
        check_text(vocab, "cc", "258 258"); /* no merge gives an unused token */
        check_text(vocab, "a[x ]b", "256 264 257");
        check_text(vocab, "[x\xE2\x96\x81]", "264");
        check_text(vocab, "<c>", "60 258 62"); /* text never gives a control token */
        check_text(vocab, "\xC3\xA9", "195 169");
        check_text(vocab, "a\xC3(", "256 195 40");
        char out[8];
        CHECK(dt_decode_token(out, 8, vocab, 263, false) == 3 && memcmp(out, "a b", 3) == 0);
        CHECK(dt_decode_token(out, 8, vocab, 264, false) == 4 && memcmp(out, "[x ]", 4) == 0);
        CHECK(dt_decode_token(out, 2, vocab, 264, false) == 4);
        CHECK(dt_decode_token(out, 8, vocab, 195, false) == 1 && out[0] == '\xC3');
        CHECK(dt_decode_token(out, 8, vocab, 267, false) == 0);
        CHECK(dt_decode_token(out, 8, vocab, 267, true) == 3);
        int32_t n_common = 0;
        CHECK_OK(dt_vocab_match(&n_common, vocab, vocab));
        CHECK(n_common == 268);
    }
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
}

/* The space in front: at the beginning, before a user-defined text too, and behind control tokens.
 */
static void test_spaces(void) {
    static const entry entries[] = {{"a", 1, -9}, {"\xE2\x96\x81", 1, -9},
        {"\xE2\x96\x81"
         "a",
            1, -1},
        {"<u>", 4, 0}, {"<c>", 3, 0}};
    test_vocab v = make_vocab(entries, DT_COUNT(entries));
    v.add_space = 1;
    dt_gguf *gguf;
    dt_vocab *vocab = open_vocab(&gguf, &v);
    if (vocab != NULL) {
        check_text(vocab, "a", "258");
        check_text(vocab, " a", "257 258");
        check_text(vocab, "", "");
        check_text(vocab, "<u>a", "257 259 256");
        check_text(vocab,
            "\xFF"
            "a",
            "257 255 256");
        check_ids(vocab, "<c>", 3, "260", true, "by hand");
        check_ids(vocab, "a<c>a", 5, "258 260 258", true, "by hand");
        check_ids(vocab, "<c><u>a<c>", 10, "260 257 259 256 260", true, "by hand");
    }
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
}

static dt_err open_and_close(test_vocab *v) {
    dt_gguf *gguf = NULL;
    dt_vocab *vocab = NULL;
    dt_err err = test_vocab_open(&gguf, v);
    if (err == DT_OK)
        err = dt_vocab_open(&vocab, gguf);
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    test_vocab_free(v);
    return err;
}

static void test_refusals(void) {
    static const entry letters[] = {{"a", 1, 0}};
    test_vocab v = make_vocab(letters, 1);
    test_vocab_token(&v, "b", 1, 1);
    CHECK_FAILS(
        open_and_close(&v), DT_ERR_INPUT, "257 entries in tokenizer.ggml.scores for 258 tokens");
    v = make_vocab(letters, 1);
    v.n_scores = 0;
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "0 entries in tokenizer.ggml.scores for 257");
    v = make_vocab(letters, 1);
    test_vocab_token(&v, "b", 1, 1);
    test_vocab_score(&v, __builtin_nanf(""));
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "token 257 has no number");
    v = make_vocab(letters, 1);
    ((uint32_t *)(void *)v.kinds.data)[65] = 1;
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "no token for byte 65 (text \"<0x41>\"");
}

static bool test_gemma(void) {
    char folder[1024];
    dt_gguf *gguf;
    find_models(folder, sizeof folder);
    dt_vocab *vocab = open_model(&gguf, folder, "gemma-3-270m-q4_k_m.gguf");
    if (vocab != NULL) {
        int32_t n_common = 0;
        check_golden(vocab, "token_gemma.txt", "spm");
        check_round_trips(vocab, 5000);
        check_long(vocab);
        CHECK(dt_vocab_ends(vocab, 1) && dt_vocab_ends(vocab, 106) && dt_vocab_add_bos(vocab));
        CHECK_OK(dt_vocab_match(&n_common, vocab, vocab));
        CHECK(n_common == 262144);
    } else {
        printf("no Gemma in %s: its part was skipped\n", folder);
    }
    bool found = vocab != NULL;
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    return found;
}

int main(void) {
    test_small();
    test_merges();
    test_spaces();
    test_refusals();
    bool found = test_gemma();
    int code = test_end();
    return code != 0 || found ? code : TEST_SKIPPED;
}
