/* Hyper-parameters from keys, and models bound from them: the tiny files of tests/data, files that
 * hold nothing but keys, and copies of the tiny files with a few bytes changed. */
#define _GNU_SOURCE /* memmem */
#include "models/model.h"
#include "models/rope.h"

#include <unistd.h>

#include "tests/test.h"

static char path[320];

static const char *data_path(const char *name) {
    static char out[512];
    const char *data = getenv("DT_TEST_DATA");
    snprintf(out, sizeof out, "%s/%s", data ? data : "tests/data", name);
    return out;
}

static void write_file(const void *data, size_t n) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, n, file) != n || fclose(file)) {
        perror(path);
        exit(1);
    }
}

/* ---- files of keys alone */

enum { U32 = 4, I32 = 5, F32 = 6, BOOL = 7, TEXT = 8 };

/* "llama.x" stands for the key of either architecture. kind 0: the key is left out. */
typedef struct item {
    const char *key;
    int kind;
    double number;
    const char *text;
} item;

static const item BASE[] = {
    {"general.architecture", TEXT, 0, "llama"},
    {"llama.context_length", U32, 4096, NULL},
    {"llama.embedding_length", U32, 96, NULL},
    {"llama.block_count", U32, 2, NULL},
    {"llama.feed_forward_length", U32, 160, NULL},
    {"llama.attention.head_count", U32, 6, NULL},
    {"llama.attention.layer_norm_rms_epsilon", F32, 0.5, NULL},
    {"llama.vocab_size", U32, 500, NULL},
};

static size_t put(uint8_t *to, size_t n, const void *data, size_t n_data) {
    memcpy(to + n, data, n_data);
    return n + n_data;
}

static size_t put_text(uint8_t *to, size_t n, const char *text) {
    uint64_t length = strlen(text);
    n = put(to, n, &length, 8);
    return put(to, n, text, length);
}

static size_t put_item(uint8_t *to, size_t n, const item *it) {
    uint32_t kind = (uint32_t)it->kind;
    n = put_text(to, n, it->key);
    n = put(to, n, &kind, 4);
    if (it->kind == TEXT)
        return put_text(to, n, it->text);
    if (it->kind == F32)
        return put(to, n, &(float){(float)it->number}, 4);
    if (it->kind == BOOL)
        return put(to, n, &(uint8_t){it->number != 0}, 1);
    return put(to, n, &(uint32_t){(uint32_t)(int64_t)it->number}, 4);
}

/* The base with some keys replaced, left out or added; reads its configuration. */
static dt_err read_config(dt_config *out, const item *changes, int n_changes) {
    static uint8_t file[8192];
    uint64_t n_keys = 0, none = 0;
    uint32_t version = 3;
    size_t n = put(file, 0, "GGUF", 4);
    n = put(file, n, &version, 4);
    n = put(file, n, &none, 8);
    n += 8;
    for (size_t i = 0; i < DT_COUNT(BASE); i++) {
        bool changed = false;
        for (int k = 0; k < n_changes; k++)
            changed |= strcmp(changes[k].key, BASE[i].key) == 0;
        if (changed)
            continue;
        n = put_item(file, n, &BASE[i]);
        n_keys++;
    }
    for (int k = 0; k < n_changes; k++) {
        if (changes[k].kind == 0)
            continue;
        n = put_item(file, n, &changes[k]);
        n_keys++;
    }
    put(file, 16, &n_keys, 8);
    write_file(file, n);
    dt_gguf *gguf;
    DT_TRY(dt_gguf_open(&gguf, path));
    dt_err err = dt_config_read(out, gguf);
    dt_gguf_close(gguf);
    return err;
}

#define WITH(...) (const item[]){__VA_ARGS__}, (int)DT_COUNT(((const item[]){__VA_ARGS__}))
#define U(key, number)                                                                             \
    { "llama." key, U32, number, NULL }
#define F(key, number)                                                                             \
    { "llama." key, F32, number, NULL }
#define T(key, text)                                                                               \
    { "llama." key, TEXT, 0, text }
#define WITHOUT(key)                                                                               \
    { "llama." key, 0, 0, NULL }

static void test_defaults(void) {
    dt_config c;
    CHECK_OK(read_config(&c, NULL, 0));
    CHECK(c.arch == DT_ARCH_LLAMA && strcmp(c.arch_name, "llama") == 0);
    CHECK(c.n_vocab == 500 && c.n_ctx_train == 4096 && c.n_embd == 96 && c.n_layer == 2);
    CHECK(c.n_head == 6 && c.n_head_kv == 6 && c.head_dim == 16 && c.n_rot == 16 && c.n_ff == 160);
    CHECK(c.rope_pairing == DT_ROPE_NEIGHBOURS && c.rope_base == 10000 && c.rope_scale == 1);
    CHECK(c.norm_eps == 0.5f && !c.qkv_bias);
    CHECK_OK(read_config(&c,
        WITH(U("attention.head_count_kv", 2), U("attention.key_length", 24),
            U("attention.value_length", 24), U("rope.dimension_count", 8), F("rope.freq_base", 5e5),
            T("rope.scaling.type", "linear"), F("rope.scaling.factor", 4))));
    CHECK(c.n_head_kv == 2 && c.head_dim == 24 && c.n_rot == 8);
    CHECK(c.rope_base == 5e5 && c.rope_scale == 0.25);
    CHECK_OK(read_config(&c, WITH(T("rope.scaling.type", "none"), F("rope.scaling.factor", 4))));
    CHECK(c.rope_scale == 1);
    CHECK_OK(read_config(&c, WITH(F("rope.scale_linear", 2))));
    CHECK(c.rope_scale == 0.5);
    CHECK_OK(read_config(&c, WITH(F("rope.scaling.factor", 0))));
    CHECK(c.rope_scale == 1);
    CHECK_OK(read_config(&c, WITH(F("rope.scaling.factor", 1.0 / DT_ROPE_RATE_MAX))));
    CHECK(c.rope_scale == DT_ROPE_RATE_MAX);
    CHECK_OK(read_config(&c, WITH(U("expert_count", 0), U("attention.sliding_window", 0))));
}

/* The keys of another architecture beside the base's, whose names say llama. */
#define KEYS(arch)                                                                                 \
    {"general.architecture", TEXT, 0, arch}, {arch ".context_length", U32, 4096, NULL},            \
        {arch ".embedding_length", U32, 96, NULL}, {arch ".block_count", U32, 7, NULL},            \
        {arch ".feed_forward_length", U32, 160, NULL},                                             \
        {arch ".attention.head_count", U32, 6, NULL},                                              \
        {arch ".attention.layer_norm_rms_epsilon", F32, 0.5, NULL}, {                              \
        arch ".vocab_size", U32, 500, NULL                                                         \
    }
#define GEMMA KEYS("gemma3")

static void test_gemma(void) {
    dt_config c;
    CHECK_OK(read_config(&c, WITH(GEMMA)));
    CHECK(c.arch == DT_ARCH_GEMMA3 && c.qk_norm && c.post_norm && c.gate == DT_GATE_GELU);
    CHECK(c.embd_scale == __builtin_sqrtf(96.0f) && c.attn_scale == 0.25f);
    CHECK(c.window == 0 && !c.local[0] && !c.local_rope);
    CHECK_OK(read_config(&c, WITH(GEMMA, {"gemma3.attention.sliding_window", U32, 512, NULL})));
    CHECK(c.window == 512 && c.local_rope && c.rope_base_local == 10000 && c.rope_base == 10000);
    CHECK(c.local[0] && c.local[4] && !c.local[5] && c.local[6]);
    CHECK_OK(read_config(&c, WITH(GEMMA, {"gemma3.attention.sliding_window", U32, 512, NULL},
                                 {"gemma3.attention.sliding_window_pattern", U32, 2, NULL},
                                 {"gemma3.rope.freq_base_swa", F32, 5000, NULL})));
    CHECK(c.local[0] && !c.local[1] && c.local[2] && c.rope_base_local == 5000);
    CHECK_OK(read_config(&c, WITH(GEMMA, {"gemma3.attention.sliding_window", U32, 512, NULL},
                                 {"gemma3.attention.sliding_window_pattern", U32, 0, NULL})));
    CHECK(c.local[0] && c.local[5] && c.local[6] && !c.local[7]);
    CHECK_FAILS(read_config(&c, WITH(GEMMA, {"gemma3.attention.sliding_window", U32, 512, NULL},
                                    {"gemma3.attention.sliding_window_pattern", U32, 1e6, NULL})),
        DT_ERR_INPUT, "sliding_window_pattern: want 0 to 1024");
    CHECK_FAILS(read_config(&c, WITH(GEMMA, {"gemma3.final_logit_softcapping", F32, 30, NULL})),
        DT_ERR_UNSUPPORTED,
        "soft caps are not supported (key gemma3.final_logit_softcapping is 30");
    CHECK_FAILS(read_config(&c, WITH(GEMMA, {"gemma3.attn_logit_softcapping", F32, 50, NULL})),
        DT_ERR_UNSUPPORTED, "attn_logit_softcapping");
}

static bool near(double a, double b) {
    return a - b < 1e-12 * b && b - a < 1e-12 * b;
}

/* Scalings of the rotation, against their definitions worked out by hand or by another program. */
static void test_rope(void) {
    dt_config c;
    double f[8];
    CHECK_OK(read_config(&c, WITH(U("attention.sliding_window", 4096))));
    CHECK(c.window == 4096 && c.local[0] && c.local[1] && !c.local_rope);
    /* n_rot 16, base 10000: pair i turns by 10^(-i / 2). */
    CHECK_OK(read_config(&c, WITH(F("rope.scaling.factor", 4))));
    dt_rope_frequencies(f, &c, NULL);
    CHECK(near(f[0], 0.25) && near(f[2], 0.025));
    CHECK_OK(read_config(&c, WITH(T("rope.scaling.type", "llama3"), F("rope.scaling.factor", 4),
                                 U("rope.scaling.original_context_length", 628))));
    dt_rope_frequencies(f, &c, NULL);
    /* Turns over 628 positions: 99.9, 31.6, 9.99, 3.16, 0.999 (below 1, scaled), ... */
    CHECK(near(f[0], 1) && near(f[2], 0.1) && near(f[4], 0.0025) && near(f[6], 0.00025));
    double turns = 628 * f[1] / 10 / (2 * 3.14159265358979323846), blend = (turns - 1) / 3;
    CHECK(near(f[3], f[1] / 10 * ((1 - blend) / 4 + blend)));
    const float factors[8] = {1, 2, 1, 1, 1, 1, 1, 8};
    dt_rope_frequencies(f, &c, factors);
    CHECK(near(f[0], 1) && near(f[1] * 2, f[3] * 10) && near(f[4], 0.01));
    CHECK_OK(read_config(&c, WITH(T("rope.scaling.type", "yarn"), F("rope.scaling.factor", 4),
                                 U("rope.scaling.original_context_length", 1024))));
    CHECK(c.rope_fast == 32 && c.rope_slow == 1 && near(c.rope_gain, 1.138629436111989));
    dt_rope_frequencies(f, &c, NULL);
    /* 32 turns at pair 1.41, 1 turn at pair 4.42: the ramp goes from 1 to 5. */
    CHECK(near(f[0], 1) && near(f[1] * f[1], 0.1) && near(f[2], 0.1 * (0.75 + 0.25 / 4)));
    CHECK(near(f[4], 0.01 * (0.25 + 0.75 / 4)) && near(f[6], 0.001 / 4));
    CHECK_OK(read_config(&c, WITH(T("rope.scaling.type", "yarn"), F("rope.scaling.factor", 1))));
    CHECK(c.rope_gain == 1 && c.rope_n_ctx == 4096);
    CHECK_FAILS(read_config(&c, WITH(T("rope.scaling.type", "yarn"), F("rope.freq_base", 1))),
        DT_ERR_INPUT, "YaRN wants a RoPE base above 1");
    CHECK_FAILS(read_config(&c, WITH(T("rope.scaling.type", "yarn"),
                                    F("rope.scaling.yarn_log_multiplier", 0.1))),
        DT_ERR_UNSUPPORTED, "variant of YaRN");
    CHECK_FAILS(read_config(&c,
                    WITH(T("rope.scaling.type", "llama3"), F("rope.scaling.low_freq_factor", 4))),
        DT_ERR_INPUT, "high_freq_factor: want more than 4, the file has 4");
    CHECK_FAILS(read_config(&c, WITH(T("rope.scaling.type", "yarn"),
                                    U("rope.scaling.original_context_length", 0))),
        DT_ERR_INPUT, "original_context_length");
    CHECK_FAILS(
        read_config(&c, WITH(KEYS("qwen3"), {"qwen3.attention.sliding_window", U32, 64, NULL})),
        DT_ERR_UNSUPPORTED, "sliding windows");
}

static void test_refusals(void) {
    dt_config c;
    static const char *const required[] = {"llama.context_length", "llama.embedding_length",
        "llama.block_count", "llama.feed_forward_length", "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon", "llama.vocab_size", "general.architecture"};
    for (size_t i = 0; i < DT_COUNT(required); i++) {
        const item without = {required[i], 0, 0, NULL};
        char words[80];
        snprintf(words, sizeof words, "key %s is missing", required[i]);
        CHECK_FAILS(read_config(&c, &without, 1), DT_ERR_INPUT, words);
    }
    static const struct {
        item change;
        dt_err err;
        const char *words;
    } cases[] = {
        {{"general.architecture", TEXT, 0, "mamba"}, DT_ERR_UNSUPPORTED,
            "architecture \"mamba\" is not supported; supported are llama, qwen2, qwen3, gemma3, "
            "mistral, "
            "phi3"},
        {{"general.architecture", TEXT, 0, "\x1b[31mred"}, DT_ERR_UNSUPPORTED, "\"?[31mred\""},
        {{"general.architecture", U32, 1, NULL}, DT_ERR_INPUT, "want a text"},
        {U("expert_count", 8), DT_ERR_UNSUPPORTED, "experts are not supported"},
        {T("rope.scaling.type", "longrope"), DT_ERR_UNSUPPORTED, "RoPE scaling \"longrope\""},
        {U("attention.value_length", 24), DT_ERR_UNSUPPORTED, "16 for keys and 24 for values"},
        {U("context_length", 0), DT_ERR_INPUT, "want 1 to 16777216, the file has 0"},
        {U("embedding_length", 4e9), DT_ERR_INPUT, "embedding_length"},
        {U("block_count", 1e6), DT_ERR_INPUT, "want 1 to 1024, the file has 1000000"},
        {{"llama.block_count", I32, -3, NULL}, DT_ERR_INPUT, "the file has -3"},
        {{"llama.block_count", F32, 2, NULL}, DT_ERR_INPUT, "want an integer, the file has f32"},
        {U("feed_forward_length", 0), DT_ERR_INPUT, "feed_forward_length"},
        {U("attention.head_count", 0), DT_ERR_INPUT, "head_count"},
        {U("attention.head_count", 7), DT_ERR_INPUT, "that 7 heads divide, the file has 96"},
        {U("attention.head_count_kv", 4), DT_ERR_INPUT, "4 KV heads divide, the file has 6"},
        {U("attention.head_count_kv", 7), DT_ERR_INPUT, "want 1 to 6, the file has 7"},
        {U("attention.key_length", 5000), DT_ERR_INPUT, "key_length"},
        {U("rope.dimension_count", 7), DT_ERR_INPUT, "want an even number, the file has 7"},
        {U("rope.dimension_count", 18), DT_ERR_INPUT, "want 2 to 16, the file has 18"},
        {F("rope.freq_base", 0), DT_ERR_INPUT, "rope.freq_base"},
        {F("rope.freq_base", (double)__builtin_nanf("")), DT_ERR_INPUT, "rope.freq_base"},
        {F("rope.freq_base", (double)__builtin_inff()), DT_ERR_INPUT, "rope.freq_base"},
        {F("rope.freq_base", 1e13), DT_ERR_INPUT, "rope.freq_base"},
        {F("rope.scaling.factor", -2), DT_ERR_INPUT, "rope.scaling.factor"},
        {F("rope.scaling.factor", 1e-30), DT_ERR_INPUT,
            "rope.scaling.factor: want 0.03125 to 1e+06, or 0 for none, the file has 1e-30"},
        {F("rope.scaling.factor", 0.03), DT_ERR_INPUT, "rope.scaling.factor"},
        {F("rope.scaling.factor", 1e7), DT_ERR_INPUT, "rope.scaling.factor"},
        {F("rope.scaling.factor", (double)__builtin_inff()), DT_ERR_INPUT, "the file has inf"},
        {F("rope.scaling.factor", (double)__builtin_nanf("")), DT_ERR_INPUT, "nan"},
        {F("rope.scale_linear", 1e-3), DT_ERR_INPUT, "rope.scale_linear"},
        {F("attention.layer_norm_rms_epsilon", -1), DT_ERR_INPUT, "epsilon"},
        {U("vocab_size", 1e9), DT_ERR_INPUT, "vocab_size"},
    };
    for (size_t i = 0; i < DT_COUNT(cases); i++)
        CHECK_FAILS(read_config(&c, &cases[i].change, 1), cases[i].err, cases[i].words);
    CHECK(strncmp(dt_err_message(), path, strlen(path)) == 0);
    CHECK_FAILS(read_config(&c, WITH(WITHOUT("attention.head_count"), WITHOUT("block_count"))),
        DT_ERR_INPUT, "block_count is missing");
}

/* ---- models */

static void test_tiny_models(void) {
    dt_model *m;
    CHECK_OK(dt_model_open(&m, data_path("tiny-llama.gguf")));
    if (m) {
        const dt_config *c = &m->config;
        CHECK(c->arch == DT_ARCH_LLAMA && c->n_vocab == 333 && c->n_embd == 96 && c->n_layer == 2);
        CHECK(c->n_head == 3 && c->n_head_kv == 1 && c->head_dim == 32 && c->n_ff == 160);
        CHECK(m->output != m->token_embd && m->output->type == DT_TYPE_Q4_1);
        CHECK(!m->rope_freqs && !m->layers[0].bq && m->layers[1].w_down->ne[0] == 160);
        CHECK(dt_vocab_size(m->vocab) == 333);
    }
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-qwen2.gguf")));
    if (m) {
        const dt_config *c = &m->config;
        CHECK(c->arch == DT_ARCH_QWEN2 && c->rope_pairing == DT_ROPE_HALVES && c->qkv_bias);
        CHECK(c->n_vocab == 312 && c->head_dim == 16 && c->n_rot == 16 && c->rope_base == 1e6);
        CHECK(m->output == m->token_embd && m->layers[1].bk && m->layers[1].bk->ne[0] == 16);
    }
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-draft.gguf")));
    CHECK(m && m->config.n_layer == 1);
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-qwen3.gguf")));
    if (m) {
        const dt_config *c = &m->config;
        CHECK(c->arch == DT_ARCH_QWEN3 && c->rope_pairing == DT_ROPE_HALVES && c->qk_norm);
        CHECK(c->head_dim == 32 && c->n_head_kv == 2 && !c->qkv_bias && !m->layers[0].bq);
        CHECK(m->layers[1].q_norm && m->layers[1].k_norm->ne[0] == 32);
    }
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-gemma3.gguf")));
    if (m) {
        CHECK(m->config.arch == DT_ARCH_GEMMA3 && m->config.window == 8 && m->config.local[1]);
        CHECK(!m->config.local[2] && m->layers[2].attn_post_norm && m->layers[2].ffn_post_norm);
    }
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-mistral.gguf")));
    CHECK(m && m->config.window == 10 && m->config.rope_scaling == DT_ROPE_LLAMA3);
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-phi3.gguf")));
    if (m) {
        const dt_layer *l = &m->layers[1];
        CHECK(m->config.fused && m->config.n_rot == 12 && m->config.rope_scaling == DT_ROPE_YARN);
        CHECK(l->wq->ne[1] == 64 && l->wk->ne[1] == 32 && l->wv->ne[1] == 32);
        CHECK((const char *)l->wv->data == (const char *)l->wk->data + l->wk->n_bytes);
        CHECK(l->w_gate->ne[1] == 96 && l->w_up->ne[1] == 96 && l->w_gate->data < l->w_up->data);
    }
    dt_model_close(m);
    CHECK_OK(dt_model_open(&m, data_path("tiny-f16.gguf")));
    if (m) {
        CHECK(m->config.n_rot == 16 && m->config.head_dim == 24 && m->config.rope_scale == 0.5);
        CHECK(m->rope_freqs && m->rope_freqs->ne[0] == 8 && dt_gguf_version(m->file) == 2);
    }
    dt_model_close(m);
}

/* A tiny file with the bytes that follow the first place of `what` (skipping `skip`) overwritten.
 */
static dt_err open_patched_at(const char *name, const void *what, size_t n_what, size_t skip,
    const void *with, size_t n_with) {
    static uint8_t file[1 << 18];
    FILE *in = fopen(data_path(name), "rb");
    size_t n = in ? fread(file, 1, sizeof file, in) : 0;
    if (in)
        fclose(in);
    uint8_t *at = memmem(file, n, what, n_what);
    CHECK(at != NULL);
    if (at)
        memcpy(at + skip, with, n_with);
    write_file(file, n);
    dt_model *model;
    dt_err err = dt_model_open(&model, path);
    dt_model_close(model);
    return err;
}

static dt_err open_patched(
    const char *name, const char *text, size_t skip, const void *with, size_t n_with) {
    return open_patched_at(name, text, strlen(text), skip, with, n_with);
}

/* Factors that would make angles NaN, or larger than sine and cosine are made for. */
static void test_rope_factors(void) {
    enum { N_FACTORS = 8 };
    float factors[N_FACTORS];
    dt_model *m;
    CHECK_OK(dt_model_open(&m, data_path("tiny-f16.gguf")));
    if (!m)
        return;
    memcpy(factors, m->rope_freqs->data, sizeof factors);
    dt_model_close(m);
    static const struct {
        float value;
        const char *words;
    } cases[] = {
        {0.0f, "element 5 is 0"},
        {-1.0f, "element 5 is -1"},
        {1e-30f, "want finite factors of 0.015625 or more, element 5 is 1e-30"},
        {__builtin_inff(), "element 5 is inf"},
        {-__builtin_inff(), "element 5 is -inf"},
        {__builtin_nanf(""), "tensor rope_freqs.weight: want finite factors"},
    };
    for (size_t i = 0; i < DT_COUNT(cases); i++)
        CHECK_FAILS(open_patched_at("tiny-f16.gguf", factors, sizeof factors, 5 * sizeof(float),
                        &cases[i].value, sizeof(float)),
            DT_ERR_INPUT, cases[i].words);
    float least = 0.5f / DT_ROPE_RATE_MAX; /* the file's scale is 0.5 */
    CHECK_OK(open_patched_at(
        "tiny-f16.gguf", factors, sizeof factors, 7 * sizeof(float), &least, sizeof least));
}

static void test_broken_models(void) {
#define PATCH(name, text, with) open_patched(name, text, 0, with, strlen(with))
    CHECK_FAILS(PATCH("tiny-llama.gguf", "blk.1.attn_q.weight", "blk.1.attn_x"), DT_ERR_INPUT,
        "tensor blk.1.attn_q.weight is missing (want [96,96])");
    CHECK_FAILS(PATCH("tiny-llama.gguf", "output_norm.weight", "output_form"), DT_ERR_INPUT,
        "tensor output_norm.weight is missing (want [96])");
    /* Without a head of its own the model would be tied, and the head would be a stranger. */
    CHECK_FAILS(PATCH("tiny-llama.gguf", "output.weight", "outgro"), DT_ERR_UNSUPPORTED,
        "tensor outgro.weight is no part of a llama model of 2 layers");
    CHECK_FAILS(PATCH("tiny-qwen2.gguf", "blk.1.attn_k.bias", "blk.1.attn_k.boas"),
        DT_ERR_UNSUPPORTED, "blk.1.attn_k.boas");
    CHECK_FAILS(PATCH("tiny-qwen3.gguf", "blk.1.attn_k_norm.weight", "blk.1.attn_k_form"),
        DT_ERR_INPUT, "tensor blk.1.attn_k_norm.weight is missing (want [32])");
    CHECK_FAILS(PATCH("tiny-phi3.gguf", "blk.0.attn_qkv.weight", "blk.0.attn_abc"), DT_ERR_INPUT,
        "tensor blk.0.attn_qkv.weight is missing (want [128,64])");
#undef PATCH
    uint32_t number = 128;
    const char *key = "llama.feed_forward_length";
    CHECK_FAILS(open_patched("tiny-llama.gguf", key, strlen(key) + 4, &number, 4), DT_ERR_INPUT,
        "tensor blk.0.ffn_gate.weight: want [128,96], the file has [160,96]");
    number = 334;
    key = "llama.vocab_size";
    CHECK_FAILS(open_patched("tiny-llama.gguf", key, strlen(key) + 4, &number, 4), DT_ERR_INPUT,
        "tensor token_embd.weight: want [334,96], the file has [333,96]");
    number = 1;
    key = "llama.block_count";
    CHECK_FAILS(open_patched("tiny-llama.gguf", key, strlen(key) + 4, &number, 4),
        DT_ERR_UNSUPPORTED, "is no part of a llama model of 1 layers");
    number = DT_TYPE_F16;
    key = "blk.0.ffn_norm.weight"; /* then the count of dimensions, one length, the type */
    CHECK_FAILS(open_patched("tiny-llama.gguf", key, strlen(key) + 12, &number, 4),
        DT_ERR_UNSUPPORTED, "tensor blk.0.ffn_norm.weight: want F32, the file has F16");
    dt_model *model;
    CHECK_FAILS(dt_model_open(&model, "/nonexistent.gguf"), DT_ERR_IO, "/nonexistent.gguf");
    CHECK(model == NULL);
}

int main(void) {
    const char *base = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/dt_config_XXXXXX", base ? base : "/tmp");
    int fd = mkstemp(path);
    if (fd < 0) {
        perror(path);
        return 1;
    }
    close(fd);
    test_defaults();
    test_gemma();
    test_rope();
    test_refusals();
    test_tiny_models();
    test_rope_factors();
    test_broken_models();
    unlink(path);
    return test_end();
}
