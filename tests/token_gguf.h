/* For the tests and the fuzz target of tokenizer and chat template: reads the golden files made by
 * scripts/golden_token.py, and writes small GGUF files of metadata alone. */
#ifndef DT_TESTS_TOKEN_GGUF_H
#define DT_TESTS_TOKEN_GGUF_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "models/gguf.h"

/* Bytes that grow. Running out of memory ends the test. */
typedef struct test_bytes {
    char *data;
    size_t n, n_max;
} test_bytes;

static inline void test_put(test_bytes *b, const void *data, size_t n) {
    if (b->n + n > b->n_max) {
        b->n_max = (b->n + n) * 2;
        b->data = realloc(b->data, b->n_max);
        if (b->data == NULL)
            exit(1);
    }
    if (n > 0)
        memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void test_put_u32(test_bytes *b, uint32_t value) {
    test_put(b, &value, sizeof value);
}

static inline void test_put_u64(test_bytes *b, uint64_t value) {
    test_put(b, &value, sizeof value);
}

static inline void test_put_text(test_bytes *b, const char *text, size_t n) {
    test_put_u64(b, n);
    test_put(b, text, n);
}

/* What goes into a file: texts as GGUF arrays store them, one after the other. */
typedef struct test_vocab {
    test_bytes tokens, merges, kinds, scores;
    uint64_t n_tokens, n_merges, n_scores;
    const char *model, *pre, *chat_template; /* NULL: left out */
    size_t n_chat_template;
    int64_t bos, eos; /* -1: left out */
    int add_bos;      /* -1: left out */
    int add_space;    /* -1: left out */
} test_vocab;

static inline test_vocab test_vocab_new(const char *pre) {
    return (test_vocab){
        .model = "gpt2", .pre = pre, .bos = -1, .eos = -1, .add_bos = -1, .add_space = -1};
}

static inline void test_vocab_token(test_vocab *v, const char *text, size_t n, uint32_t kind) {
    test_put_text(&v->tokens, text, n);
    test_put_u32(&v->kinds, kind);
    v->n_tokens++;
}

static inline void test_vocab_score(test_vocab *v, float score) {
    test_put(&v->scores, &score, sizeof score);
    v->n_scores++;
}

static inline void test_vocab_merge(test_vocab *v, const char *text, size_t n) {
    test_put_text(&v->merges, text, n);
    v->n_merges++;
}

static inline void test_vocab_free(test_vocab *v) {
    free(v->tokens.data);
    free(v->merges.data);
    free(v->kinds.data);
    free(v->scores.data);
    memset(v, 0, sizeof *v);
}

static inline void test_put_key(test_bytes *b, uint64_t *n_keys, const char *key, uint32_t kind) {
    test_put_text(b, key, strlen(key));
    test_put_u32(b, kind);
    ++*n_keys;
}

static inline void test_put_string_key(
    test_bytes *b, uint64_t *n_keys, const char *key, const char *text, size_t n) {
    test_put_key(b, n_keys, key, 8);
    test_put_text(b, text, n);
}

static inline void test_put_array_key(test_bytes *b, uint64_t *n_keys, const char *key,
    uint32_t kind, uint64_t n, const test_bytes *elements) {
    test_put_key(b, n_keys, key, 9);
    test_put_u32(b, kind);
    test_put_u64(b, n);
    test_put(b, elements->data, elements->n);
}

/* Writes the file into the folder for temporary files, opens it and takes its name away again. */
static inline dt_err test_vocab_open(dt_gguf **out, const test_vocab *v) {
    test_bytes keys = {0}, file = {0};
    uint64_t n = 0;
    if (v->model != NULL)
        test_put_string_key(&keys, &n, "tokenizer.ggml.model", v->model, strlen(v->model));
    if (v->pre != NULL)
        test_put_string_key(&keys, &n, "tokenizer.ggml.pre", v->pre, strlen(v->pre));
    if (v->chat_template != NULL)
        test_put_string_key(
            &keys, &n, "tokenizer.chat_template", v->chat_template, v->n_chat_template);
    if (v->n_tokens > 0) {
        test_put_array_key(&keys, &n, "tokenizer.ggml.tokens", 8, v->n_tokens, &v->tokens);
        test_put_array_key(&keys, &n, "tokenizer.ggml.token_type", 5, v->n_tokens, &v->kinds);
    }
    if (v->n_merges > 0)
        test_put_array_key(&keys, &n, "tokenizer.ggml.merges", 8, v->n_merges, &v->merges);
    if (v->n_scores > 0)
        test_put_array_key(&keys, &n, "tokenizer.ggml.scores", 6, v->n_scores, &v->scores);
    if (v->bos >= 0) {
        test_put_key(&keys, &n, "tokenizer.ggml.bos_token_id", 4);
        test_put_u32(&keys, (uint32_t)v->bos);
    }
    if (v->eos >= 0) {
        test_put_key(&keys, &n, "tokenizer.ggml.eos_token_id", 4);
        test_put_u32(&keys, (uint32_t)v->eos);
    }
    if (v->add_bos >= 0) {
        test_put_key(&keys, &n, "tokenizer.ggml.add_bos_token", 7);
        test_put(&keys, v->add_bos ? "\1" : "\0", 1);
    }
    if (v->add_space >= 0) {
        test_put_key(&keys, &n, "tokenizer.ggml.add_space_prefix", 7);
        test_put(&keys, v->add_space ? "\1" : "\0", 1);
    }
    test_put(&file, "GGUF\3\0\0\0\0\0\0\0\0\0\0", 16);
    test_put_u64(&file, n);
    test_put(&file, keys.data, keys.n);
    free(keys.data);

    char path[512];
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/dovetail-test-XXXXXX", folder ? folder : "/tmp");
    int fd = mkstemp(path);
    bool written = fd >= 0 && write(fd, file.data, file.n) == (ssize_t)file.n;
    free(file.data);
    if (fd >= 0)
        close(fd);
    dt_err err =
        written ? dt_gguf_open(out, path) : DT_ERROR(DT_ERR_IO, "%s cannot be written", path);
    if (fd >= 0)
        unlink(path);
    return err;
}

/* ---- golden files: lines "word rest", the rest escaped (\n \r \t \\ \xNN) */

static inline FILE *test_open_data(const char *name) {
    char path[1024];
    const char *folder = getenv("DT_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "tests/data", name);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        fprintf(
            stderr, "%s cannot be opened; set DT_TEST_DATA or run in the source folder\n", path);
    return file;
}

/* In place; returns the length (the text may hold NUL), and puts one NUL behind. */
static inline size_t test_unescape(char *text) {
    char *out = text;
    for (const char *in = text; *in != 0 && *in != '\n'; in++) {
        unsigned byte = (unsigned char)*in;
        if (*in == '\\') {
            in++;
            byte = *in == 'n' ? '\n' : *in == 'r' ? '\r' : *in == 't' ? '\t' : '\\';
            if (*in == 'x') {
                sscanf(in + 1, "%2x", &byte);
                in += 2;
            }
        }
        *out++ = (char)byte;
    }
    *out = 0;
    return (size_t)(out - text);
}

/* Whether the line begins with `word` and a space; then *rest_out is what follows. */
static inline bool test_line_is(char *line, const char *word, char **rest_out) {
    size_t n = strlen(word);
    if (strncmp(line, word, n) != 0 || line[n] != ' ')
        return false;
    *rest_out = line + n + 1;
    return true;
}

#endif
