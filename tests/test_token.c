/* Tokenizer: golden ids of Hugging Face `tokenizers` (scripts/golden_token.py), round trips of
 * random bytes, streaming, refusals. The part on the real models' vocabularies runs where their
 * files are (DT_TEST_MODELS, else the cache folder of scripts/get_models); without them the rest
 * still runs and the exit code is 77. */
#include <pthread.h>

#include "src/base/mem.h"
#include "tests/token_cases.h"

enum { N_IDS_MAX = 1 << 20 };

static const char *const pre_names[] = {"gpt-2", "llama-bpe", "qwen2", "smollm"};

/* ---- golden ids */

static bool read_small(test_vocab *v, const char *pre) {
    static char line[N_LINE_MAX];
    FILE *file = test_open_data("token_small.txt");
    *v = test_vocab_new(pre);
    if (file == NULL)
        return false;
    while (fgets(line, sizeof line, file) != NULL) {
        char *rest;
        if (test_line_is(line, "token", &rest))
            test_vocab_token(v, rest + 2, test_unescape(rest + 2), (uint32_t)(rest[0] - '0'));
        else if (test_line_is(line, "merge", &rest))
            test_vocab_merge(v, rest, test_unescape(rest));
    }
    fclose(file);
    return v->n_tokens > 0;
}

static dt_vocab *open_small(dt_gguf **gguf_out, const char *pre) {
    test_vocab v;
    dt_vocab *vocab = NULL;
    *gguf_out = NULL;
    CHECK(read_small(&v, pre));
    v.eos = (int64_t)v.n_tokens - 3;
    CHECK_OK(test_vocab_open(gguf_out, &v));
    if (*gguf_out != NULL)
        CHECK_OK(dt_vocab_open(&vocab, *gguf_out));
    test_vocab_free(&v);
    return vocab;
}

/* ---- round trips */

static void check_round_trips(const dt_vocab *vocab, int n_texts) {
    enum { N_MAX = 200 };
    char text[N_MAX + 16], back[2 * N_MAX];
    int32_t ids[2 * N_MAX];
    test_rng rng = test_rng_open();
    for (int i = 0; i < n_texts; i++) {
        size_t n_text = random_text(&rng, text, N_MAX);
        bool special = test_rng_below(&rng, 2) != 0;
        int64_t n = 0;
        CHECK_OK(dt_encode(ids, DT_COUNT(ids), &n, vocab, text, n_text, false, special));
        size_t n_back = decode_all(back, sizeof back, vocab, ids, n, special);
        CHECK_MSG(n_back == n_text && memcmp(text, back, n_text) == 0,
            "text %d of %zu bytes (special %d) comes back as %zu bytes", i, n_text, special,
            n_back);
        for (int64_t j = 0; j < n && !special; j++)
            CHECK(dt_vocab_kind(vocab, ids[j]) != DT_TOKEN_CONTROL);
    }
}

/* ---- streaming */

static bool well_formed(const uint8_t *s, size_t n, size_t *length_out) {
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    uint32_t c = length == 1 ? s[0] : s[0] & (0xFFu >> (length + 1));
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    *length_out = length;
    if ((s[0] >= 0x80 && s[0] < 0xC0) || s[0] > 0xF7 || length > n)
        return false;
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return false;
        c = c << 6 | (s[i] & 0x3F);
    }
    return c >= least[length] && c <= 0x10FFFF && (c < 0xD800 || c > 0xDFFF);
}

/* Against the other definition, over every beginning of two bytes and what could follow. */
static void test_utf8_char(void) {
    static const uint8_t ends[] = {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
    for (int i = 0; i < 65536 * 36; i++) {
        uint8_t text[4] = {(uint8_t)(i >> 8), (uint8_t)i, ends[(i >> 16) / 6], ends[(i >> 16) % 6]};
        for (size_t n = 1; n <= 4; n++) {
            size_t length;
            int want = well_formed(text, n, &length) ? (int)length : 0;
            if (dt_utf8_char((const char *)text, n) != want)
                CHECK_MSG(false, "%02x %02x %02x %02x, %zu bytes: want %d", text[0], text[1],
                    text[2], text[3], n, want);
        }
    }
}

/* Feeds `text` in random parts: nothing may be lost, held longer than 3 bytes, or cut inside one of
 * the text's well-formed characters. */
static void check_stream(test_rng *rng, const char *text, size_t n_text) {
    bool inside[301] = {0}; /* whether a cut before this byte splits a character */
    char out[300];
    dt_utf8 utf8 = {0};
    for (size_t i = 0, length; i < n_text; i += length) {
        if (!well_formed((const uint8_t *)text + i, n_text - i, &length))
            length = 1;
        for (size_t j = 1; j < length; j++)
            inside[i + j] = true;
    }
    size_t n_in = 0, n_out = 0;
    while (n_in < n_text) {
        size_t part = test_rng_below(rng, 5);
        part = DT_MIN(part, n_text - n_in);
        n_out += dt_utf8_push(&utf8, out + n_out, text + n_in, part);
        n_in += part;
        CHECK(n_in - n_out <= 3 && n_in - n_out == (size_t)utf8.n_held);
        CHECK(!inside[n_out]);
    }
    n_out += dt_utf8_flush(&utf8, out + n_out);
    CHECK(n_out == n_text && memcmp(out, text, n_text) == 0 && utf8.n_held == 0);
}

static void test_streaming(void) {
    test_rng rng = test_rng_open();
    char text[216];
    for (int i = 0; i < 20000; i++)
        check_stream(&rng, text, random_text(&rng, text, 200));

    dt_utf8 utf8 = {0};
    char out[8];
    CHECK(dt_utf8_push(&utf8, out, "\xE4\xBD", 2) == 0);
    CHECK(dt_utf8_push(&utf8, out, "", 0) == 0);
    CHECK(dt_utf8_push(&utf8, out, "\xA0", 1) == 3 && memcmp(out, "\xE4\xBD\xA0", 3) == 0);
    CHECK(dt_utf8_push(&utf8, out, "\xF0\x9F", 2) == 0);
    CHECK(dt_utf8_push(&utf8, out, "x", 1) == 3); /* what cannot become a character passes */
    CHECK(dt_utf8_push(&utf8, out, "\xED\xA0", 2) == 2);
    CHECK(dt_utf8_push(&utf8, out, "\xC3", 1) == 0 && dt_utf8_flush(&utf8, out) == 1);
}

/* ---- the small vocabulary */

static void test_small(void) {
    for (size_t i = 0; i < DT_COUNT(pre_names); i++) {
        dt_gguf *gguf;
        dt_vocab *vocab = open_small(&gguf, pre_names[i]);
        if (vocab != NULL) {
            check_golden(vocab, "token_small.txt", pre_names[i]);
            check_round_trips(vocab, 10000 / (int)DT_COUNT(pre_names));
        }
        dt_vocab_close(vocab);
        dt_gguf_close(gguf);
    }
}

/* Limits, decoding into short buffers, special tokens and the ends of turn. */
static void test_calls(void) {
    dt_gguf *gguf;
    dt_vocab *vocab = open_small(&gguf, "qwen2");
    if (vocab == NULL)
        return;
    int32_t ids[64], end = dt_vocab_eos(vocab);
    int64_t n = 0;
    const char *text = "Hello, world!<|im_end|>";
    CHECK(end > 0 && dt_vocab_bos(vocab) == -1 && !dt_vocab_add_bos(vocab));
    CHECK(dt_vocab_ends(vocab, end) && !dt_vocab_ends(vocab, 0));
    CHECK(!dt_vocab_ends(vocab, -1) && !dt_vocab_ends(vocab, dt_vocab_size(vocab)));
    CHECK(dt_vocab_text(vocab, end).n_bytes == strlen("<|im_end|>"));
    CHECK(dt_vocab_text(vocab, -1).n_bytes == 0);

    CHECK_OK(dt_encode(ids, 64, &n, vocab, text, strlen(text), true, true));
    CHECK(n > 3 && ids[n - 1] == end);
    int64_t n_all = n;
    ids[2] = -7;
    CHECK_FAILS(dt_encode(ids, 2, &n, vocab, text, strlen(text), true, true), DT_ERR_LIMIT, "room");
    CHECK(n == n_all && ids[2] == -7);
    CHECK_FAILS(
        dt_encode(NULL, 0, &n, vocab, text, strlen(text), true, true), DT_ERR_LIMIT, "room for 0");
    CHECK(n == n_all);
    CHECK_OK(dt_encode(NULL, 0, &n, vocab, NULL, 0, true, true));
    CHECK(n == 0);

    char out[16] = "################";
    CHECK(dt_decode_token(out, sizeof out, vocab, end, false) == 0);
    CHECK(dt_decode_token(out, 3, vocab, end, true) == 10 && memcmp(out, "<|i#", 4) == 0);
    CHECK(dt_decode_token(NULL, 0, vocab, end, true) == 10);
    CHECK(dt_decode_token(out, sizeof out, vocab, -1, true) == 0);
    CHECK(dt_decode_token(out, sizeof out, vocab, dt_vocab_size(vocab), true) == 0);

    int32_t n_common;
    CHECK_OK(dt_vocab_match(&n_common, vocab, vocab));
    CHECK(n_common == dt_vocab_size(vocab));
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
}

/* A long piece must take n log n, not n^2: at n^2 these run for minutes. */
static void test_long(void) {
    enum { N = 1 << 20 };
    static const char *const fills[] = {
        "a", " ", "ab", "\xE4\xBD\xA0", "7", "\xFF", " \n", "-", "\t", "'s", "<"};
    char *text = malloc(N);
    int32_t *ids = malloc(N_IDS_MAX * sizeof *ids);
    for (size_t i = 0; text != NULL && ids != NULL && i < DT_COUNT(pre_names); i++) {
        dt_gguf *gguf;
        dt_vocab *vocab = open_small(&gguf, pre_names[i]);
        for (size_t j = 0; vocab != NULL && j < DT_COUNT(fills); j++) {
            size_t n_fill = strlen(fills[j]);
            int64_t n = 0, start = dt_time_ns();
            for (size_t k = 0; k < N; k++)
                text[k] = fills[j][k % n_fill];
            CHECK_OK(dt_encode(ids, N_IDS_MAX, &n, vocab, text, N, false, true));
            CHECK(n > 0);
            double seconds = (double)(dt_time_ns() - start) * 1e-9;
            CHECK_MSG(seconds < 20, "%s, 1 MB of \"%s\": %.1f s", pre_names[i], fills[j], seconds);
        }
        dt_vocab_close(vocab);
        dt_gguf_close(gguf);
    }
    free(text);
    free(ids);
}

typedef struct thread_case {
    const dt_vocab *vocab;
    bool same;
} thread_case;

static void *encode_often(void *arg) {
    thread_case *c = arg;
    static const char text[] = "for (int i = 0; i < n; i++)\n    the return isn't <|im_end|> \xFF";
    int32_t first[128], ids[128];
    int64_t n_first = 0, n = 0;
    c->same = dt_encode(first, 128, &n_first, c->vocab, text, sizeof text, false, true) == DT_OK;
    for (int i = 0; i < 200 && c->same; i++)
        c->same = dt_encode(ids, 128, &n, c->vocab, text, sizeof text, false, true) == DT_OK &&
                  n == n_first && memcmp(first, ids, (size_t)n * sizeof *ids) == 0;
    return NULL;
}

static void test_threads(void) {
    dt_gguf *gguf;
    dt_vocab *vocab = open_small(&gguf, "llama-bpe");
    pthread_t threads[4];
    thread_case cases[4];
    for (int i = 0; vocab != NULL && i < 4; i++) {
        cases[i] = (thread_case){vocab, false};
        CHECK(pthread_create(&threads[i], NULL, encode_often, &cases[i]) == 0);
    }
    for (int i = 0; vocab != NULL && i < 4; i++) {
        pthread_join(threads[i], NULL);
        CHECK(cases[i].same);
    }
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
}

/* ---- vocabularies made by hand */

typedef struct entry {
    const char *text;
    uint32_t kind;
} entry;

static test_vocab make_vocab(const entry *entries, size_t n) {
    test_vocab v = test_vocab_new("gpt-2");
    for (size_t i = 0; i < n; i++)
        test_vocab_token(&v, entries[i].text, strlen(entries[i].text), entries[i].kind);
    return v;
}

static const entry letters[] = {{"a", 1}, {"b", 1}, {"ab", 1}, {"<s>", 3}, {"</s>", 3}};

static dt_err open_and_close(const test_vocab *v) {
    dt_gguf *gguf = NULL;
    dt_vocab *vocab = NULL;
    dt_err err = test_vocab_open(&gguf, v);
    if (err == DT_OK)
        err = dt_vocab_open(&vocab, gguf);
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    return err;
}

static void check_merge_refused(const char *merge, const char *words) {
    test_vocab v = make_vocab(letters, DT_COUNT(letters));
    test_vocab_merge(&v, merge, strlen(merge));
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, words);
    test_vocab_free(&v);
}

static void test_refusals(void) {
    test_vocab v = make_vocab(letters, DT_COUNT(letters));
    CHECK_OK(open_and_close(&v));
    v.model = "t5";
    CHECK_FAILS(open_and_close(&v), DT_ERR_UNSUPPORTED, "\"t5\"");
    v.model = NULL;
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "no tokenizer");
    v.model = "gpt2";
    v.pre = "tekken";
    CHECK_FAILS(open_and_close(&v), DT_ERR_UNSUPPORTED, "\"tekken\"");
    v.pre = "\x1b[31mred";
    CHECK_FAILS(open_and_close(&v), DT_ERR_UNSUPPORTED, "\"?[31mred\"");
    v.pre = NULL; /* as "default" */
    CHECK_OK(open_and_close(&v));
    v.eos = 5;
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "eos_token_id is 5");
    v.eos = 4;
    v.bos = 0xFFFFFFFF;
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "bos_token_id is 4294967295");
    test_vocab_free(&v);

    v = make_vocab(letters, 0);
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "0 tokens");
    test_vocab_free(&v);
    v = make_vocab((const entry[]){{"a", 7}}, 1);
    CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT, "token_type of token 0 is 7");
    test_vocab_free(&v);

    static char text[DT_TOKEN_TEXT_MAX + 1];
    memset(text, 'x', sizeof text);
    for (size_t n = sizeof text - 1; n <= sizeof text; n++) {
        v = make_vocab(letters, DT_COUNT(letters));
        test_vocab_token(&v, text, n, DT_TOKEN_NORMAL);
        if (n <= DT_TOKEN_TEXT_MAX)
            CHECK_OK(open_and_close(&v));
        else
            CHECK_FAILS(open_and_close(&v), DT_ERR_INPUT,
                "want texts of at most 65536 bytes, token 5 has 65537");
        test_vocab_free(&v);
    }

    check_merge_refused("ab", "merge 0 is not two texts");
    check_merge_refused("", "merge 0 is not two texts");
    check_merge_refused(" b", "merge 0 is not two texts");
    check_merge_refused("a ", "merge 0 is not two texts");
    check_merge_refused("c b", "the left text of merge 0");
    check_merge_refused("a c", "the right text of merge 0");
    check_merge_refused("b a", "the result of merge 0");
    check_merge_refused("a b c", "the right text of merge 0");
}

/* A vocabulary by which few bytes have tokens, merges give a control token, BOS is asked for. */
static void test_odd(void) {
    static const entry entries[] = {{"a", 1}, {"b", 1}, {"ab", 1}, {"ba", 3}, {"<0x0A>", 6},
        {"", 1}, {"\xC4", 1}, {"x y\xE4\xBD\xA0", 1}, {"<s>", 3}, {"<unk>", 2}, {"[PAD10]", 5}};
    test_vocab v = make_vocab(entries, DT_COUNT(entries));
    test_vocab_merge(&v, "b a", 3);
    test_vocab_merge(&v, "a b", 3);
    v.bos = 8;
    v.add_bos = 1;
    dt_gguf *gguf = NULL;
    dt_vocab *vocab = NULL;
    CHECK_OK(test_vocab_open(&gguf, &v));
    CHECK_OK(dt_vocab_open(&vocab, gguf));
    int32_t ids[8];
    int64_t n = 0;
    /* "b a" would come first and give a control token: never from ordinary text. */
    CHECK_OK(dt_encode(ids, 8, &n, vocab, "aba", 3, true, false));
    CHECK(n == 3 && ids[0] == 8 && ids[1] == 2 && ids[2] == 0);
    CHECK_OK(dt_encode(ids, 8, &n, vocab, "a?b", 3, false, false)); /* no token: left out */
    CHECK(n == 2 && ids[0] == 0 && ids[1] == 1);
    char out[16];
    CHECK(dt_decode_token(out, 16, vocab, 4, false) == 1 && out[0] == '\n');
    CHECK(dt_decode_token(out, 16, vocab, 5, true) == 0);
    CHECK(dt_decode_token(out, 16, vocab, 6, true) == 1 && out[0] == '\xC4');
    CHECK(dt_decode_token(out, 16, vocab, 7, false) == 6 && memcmp(out, "x y\xE4\xBD\xA0", 6) == 0);
    CHECK(dt_decode_token(out, 16, vocab, 9, false) == 0);
    CHECK(dt_decode_token(out, 16, vocab, 9, true) == 5);
    CHECK(dt_decode_token(out, 16, vocab, 10, true) == 0);
    dt_vocab_close(vocab);
    dt_gguf_close(gguf);
    test_vocab_free(&v);
}

static dt_err match(int32_t *n_common_out, const test_vocab *target, const test_vocab *draft) {
    dt_gguf *files[2] = {0};
    dt_vocab *vocabs[2] = {0};
    CHECK_OK(test_vocab_open(&files[0], target));
    CHECK_OK(test_vocab_open(&files[1], draft));
    CHECK_OK(dt_vocab_open(&vocabs[0], files[0]));
    CHECK_OK(dt_vocab_open(&vocabs[1], files[1]));
    dt_err err = dt_vocab_match(n_common_out, vocabs[0], vocabs[1]);
    for (int i = 0; i < 2; i++) {
        dt_vocab_close(vocabs[i]);
        dt_gguf_close(files[i]);
    }
    return err;
}

static void test_match(void) {
    int32_t n = 0;
    test_vocab a = make_vocab(letters, DT_COUNT(letters));
    test_vocab b = make_vocab(letters, DT_COUNT(letters));
    CHECK_OK(match(&n, &a, &b));
    CHECK(n == 5);
    test_vocab_token(&b, "[PAD5]", 6, 1);
    test_vocab_token(&b, "<|dummy_1|>", 11, 3);
    test_vocab_token(&b, "", 0, 1);
    test_vocab_token(&b, "whatever", 8, 5);
    CHECK_OK(match(&n, &a, &b));
    CHECK_OK(match(&n, &b, &a));
    CHECK(n == 5);
    test_vocab_token(&a, "<unused0>", 9, 1); /* padding against padding of another name */
    CHECK_OK(match(&n, &a, &b));
    CHECK(n == 6);
    test_vocab_token(&b, "[PAD]", 5, 1);
    CHECK_FAILS(match(&n, &a, &b), DT_ERR_INPUT, "token 9 (\"[PAD]\") is only in the draft");
    CHECK(n == 0);
    test_vocab_free(&b);

    b = make_vocab(letters, 4);
    test_vocab_token(&b, "</s>", 4, 1); /* not a control token: does not end a turn */
    CHECK_FAILS(
        match(&n, &a, &b), DT_ERR_INPUT, "token 4 (\"</s>\") ends a turn only in the target");
    test_vocab_free(&b);
    b = make_vocab(letters, 2);
    test_vocab_token(&b, "ba", 2, 1);
    CHECK_FAILS(match(&n, &a, &b), DT_ERR_INPUT, "token 2 is \"ba\", the target has \"ab\"");
    test_vocab_free(&b);
    b = make_vocab(letters, DT_COUNT(letters));
    b.eos = 4;
    CHECK_FAILS(match(&n, &a, &b), DT_ERR_INPUT, "BOS and EOS are -1 and 4");
    test_vocab_free(&b);
    test_vocab_free(&a);
}

/* ---- model files */

/* Files made by scripts/make_tiny.py: whatever tokens they have, ids come back as themselves. */
static void test_tiny(void) {
    static const char *const names[] = {
        "tiny-qwen2.gguf", "tiny-llama.gguf", "tiny-draft.gguf", "tiny-f16.gguf"};
    const char *folder = getenv("DT_TEST_DATA");
    for (size_t i = 0; i < DT_COUNT(names); i++) {
        dt_gguf *gguf;
        dt_vocab *vocab = open_model(&gguf, folder ? folder : "tests/data", names[i]);
        static const char text[] = "Hello, world! 123\n";
        int32_t ids[64];
        char back[64];
        int64_t n = 0;
        if (vocab != NULL) {
            CHECK_OK(dt_encode(ids, 64, &n, vocab, text, strlen(text), false, true));
            CHECK(decode_all(back, sizeof back, vocab, ids, n, true) <= strlen(text));
            for (int64_t j = 0; j < n; j++)
                CHECK(ids[j] >= 0 && ids[j] < dt_vocab_size(vocab));
        }
        dt_vocab_close(vocab);
        dt_gguf_close(gguf);
    }
}

static bool test_models(void) {
    char folder[1024];
    find_models(folder, sizeof folder);
    dt_gguf *gguf[3];
    dt_vocab *vocab[3] = {
        open_model(&gguf[0], folder, "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
        open_model(&gguf[1], folder, "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
        open_model(&gguf[2], folder, "smollm2-135m-instruct-q4_1.gguf"),
    };
    int32_t n_common = 0;
    if (vocab[0] != NULL) {
        check_golden(vocab[0], "token_qwen2.txt", "qwen2");
        check_round_trips(vocab[0], 10000);
        CHECK(dt_vocab_ends(vocab[0], 151643) && dt_vocab_ends(vocab[0], 151645));
    }
    if (vocab[0] != NULL && vocab[1] != NULL) {
        CHECK_OK(dt_vocab_match(&n_common, vocab[0], vocab[1]));
        CHECK(n_common == 151936);
    }
    if (vocab[2] != NULL)
        check_golden(vocab[2], "token_smollm.txt", "smollm");
    if (vocab[0] != NULL && vocab[2] != NULL)
        CHECK_FAILS(dt_vocab_match(&n_common, vocab[0], vocab[2]), DT_ERR_INPUT, "token 0 is");
    bool all = vocab[0] != NULL && vocab[1] != NULL && vocab[2] != NULL;
    for (int i = 0; i < 3; i++) {
        dt_vocab_close(vocab[i]);
        dt_gguf_close(gguf[i]);
    }
    if (!all)
        printf("not all of the model files are in %s: their part was skipped\n", folder);
    return all;
}

int main(void) {
    test_utf8_char();
    test_streaming();
    test_small();
    test_calls();
    test_long();
    test_threads();
    test_refusals();
    test_odd();
    test_match();
    test_tiny();
    bool all = test_models();
    int code = test_end();
    return code != 0 || all ? code : TEST_SKIPPED;
}
