#include "models/config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "src/base/fmath.h"

enum {
    N_CTX_MAX = 1 << 24,
    N_EMBD_MAX = 1 << 16,
    N_HEAD_MAX = 1024,
    HEAD_DIM_MAX = 1024,
    N_FF_MAX = 1 << 20,
    N_VOCAB_MAX = 1 << 24,
    KEY_BYTES = 96,
};

/* What an architecture is beyond its keys: a new one is a row here, and whatever it does that none
 * of these fields says. */
static const struct {
    const char *name; /* value of general.architecture and prefix of the keys */
    dt_rope_pairing rope_pairing;
    bool qkv_bias, qk_norm, fused;
    bool window; /* the key of a sliding window is obeyed: by every layer, or as gemma does */
    bool
        gemma; /* post norms, GELU, scaled embeddings, local layers with a RoPE base of their own */
} ARCHS[DT_ARCH_COUNT] = {
    [DT_ARCH_LLAMA] = {.name = "llama", .rope_pairing = DT_ROPE_NEIGHBOURS, .window = true},
    [DT_ARCH_QWEN2] = {.name = "qwen2", .rope_pairing = DT_ROPE_HALVES, .qkv_bias = true},
    [DT_ARCH_QWEN3] = {.name = "qwen3", .rope_pairing = DT_ROPE_HALVES, .qk_norm = true},
    [DT_ARCH_GEMMA3] = {.name = "gemma3",
        .rope_pairing = DT_ROPE_HALVES,
        .qk_norm = true,
        .window = true,
        .gemma = true},
    [DT_ARCH_MISTRAL] = {.name = "mistral", .rope_pairing = DT_ROPE_NEIGHBOURS, .window = true},
    [DT_ARCH_PHI3] = {.name = "phi3",
        .rope_pairing = DT_ROPE_HALVES,
        .fused = true,
        .window = true},
};

typedef struct source {
    const dt_gguf *gguf;
    const char *arch_name;
    char key[KEY_BYTES];
} source;

static const char *key_of(source *s, const char *name) {
    snprintf(s->key, sizeof s->key, "%s.%s", s->arch_name, name);
    return s->key;
}

enum { REQUIRED = -1 }; /* as the preset of read_count: the key must be there */

/* An integer from `low` to `high`, `preset` where the key is absent. */
static dt_err read_count(int *out, source *s, const char *name, int preset, int low, int high) {
    const char *key = key_of(s, name);
    if (preset == REQUIRED && !dt_gguf_has(s->gguf, key))
        DT_FAIL(DT_ERR_INPUT, "key %s is missing", key);
    int64_t value = preset;
    DT_TRY(dt_gguf_get_int(s->gguf, key, &value));
    if (value < low || value > high)
        DT_FAIL(
            DT_ERR_INPUT, "key %s: want %d to %d, the file has %" PRId64, key, low, high, value);
    *out = (int)value;
    return DT_OK;
}

static dt_err read_real(double *out, source *s, const char *name, double low, double high) {
    const char *key = key_of(s, name);
    DT_TRY(dt_gguf_get_float(s->gguf, key, out));
    if (!(*out >= low && *out <= high))
        DT_FAIL(DT_ERR_INPUT, "key %s: want %g to %g, the file has %g", key, low, high, *out);
    return DT_OK;
}

/* A feature that changes the text and that we do not have: its count must be absent or 0. */
static dt_err refuse_count(source *s, const char *name, const char *what) {
    const char *key = key_of(s, name);
    int64_t value = 0;
    DT_TRY(dt_gguf_get_int(s->gguf, key, &value));
    if (value != 0)
        DT_FAIL(
            DT_ERR_UNSUPPORTED, "%s are not supported (key %s is %" PRId64 ")", what, key, value);
    return DT_OK;
}

/* A cap of scores or logits, likewise. */
static dt_err refuse_cap(source *s, const char *name) {
    const char *key = key_of(s, name);
    double value = 0;
    DT_TRY(dt_gguf_get_float(s->gguf, key, &value));
    if (value != 0)
        DT_FAIL(DT_ERR_UNSUPPORTED, "soft caps are not supported (key %s is %g)", key, value);
    return DT_OK;
}

static dt_err read_arch(dt_config *out, const dt_gguf *gguf) {
    dt_text name = {NULL, 0};
    DT_TRY(dt_gguf_get_text(gguf, "general.architecture", &name));
    if (!name.data)
        DT_FAIL(DT_ERR_INPUT, "key general.architecture is missing: not a model file");
    for (int i = 0; i < DT_ARCH_COUNT; i++) {
        if (dt_text_is(name, ARCHS[i].name)) {
            out->arch = (dt_arch)i;
            out->arch_name = ARCHS[i].name;
            out->rope_pairing = ARCHS[i].rope_pairing;
            out->qkv_bias = ARCHS[i].qkv_bias;
            out->qk_norm = ARCHS[i].qk_norm;
            out->fused = ARCHS[i].fused;
            out->post_norm = ARCHS[i].gemma;
            out->gate = ARCHS[i].gemma ? DT_GATE_GELU : DT_GATE_SILU;
            return DT_OK;
        }
    }
    char known[128] = "", shown[DT_TEXT_SHOWN_BYTES];
    size_t n = 0;
    for (int i = 0; i < DT_ARCH_COUNT && n < sizeof known; i++)
        n += (size_t)snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", ARCHS[i].name);
    DT_FAIL(DT_ERR_UNSUPPORTED, "architecture \"%s\" is not supported; supported are %s",
        dt_text_shown(shown, name), known);
}

static dt_err read_heads(dt_config *out, source *s) {
    DT_TRY(read_count(&out->n_head, s, "attention.head_count", REQUIRED, 1, N_HEAD_MAX));
    DT_TRY(read_count(&out->n_head_kv, s, "attention.head_count_kv", out->n_head, 1, out->n_head));
    if (out->n_head % out->n_head_kv != 0)
        DT_FAIL(DT_ERR_INPUT, "want a head count that %d KV heads divide, the file has %d",
            out->n_head_kv, out->n_head);
    if (!dt_gguf_has(s->gguf, key_of(s, "attention.key_length")) && out->n_embd % out->n_head != 0)
        DT_FAIL(DT_ERR_INPUT,
            "want an embedding length that %d heads divide, the file has %d (and no %s)",
            out->n_head, out->n_embd, s->key);
    int preset = DT_MIN(out->n_embd / out->n_head, HEAD_DIM_MAX + 1), v_dim;
    DT_TRY(read_count(&out->head_dim, s, "attention.key_length", preset, 2, HEAD_DIM_MAX));
    DT_TRY(read_count(&v_dim, s, "attention.value_length", preset, 2, HEAD_DIM_MAX));
    if (v_dim != out->head_dim)
        DT_FAIL(DT_ERR_UNSUPPORTED, "heads of %d for keys and %d for values: they must be equal",
            out->head_dim, v_dim);
    DT_TRY(
        read_count(&out->n_rot, s, "rope.dimension_count", out->head_dim & ~1, 2, out->head_dim));
    if (out->n_rot % 2 != 0)
        DT_FAIL(DT_ERR_INPUT, "key %s: want an even number, the file has %d",
            key_of(s, "rope.dimension_count"), out->n_rot);
    return DT_OK;
}

/* What positions are divided by; 0 means no scaling. */
static dt_err read_factor(double *out, source *s, const char *name) {
    const double low = 1.0 / DT_ROPE_RATE_MAX, high = 1e6;
    const char *key = key_of(s, name);
    DT_TRY(dt_gguf_get_float(s->gguf, key, out));
    if (*out != 0 && !(*out >= low && *out <= high))
        DT_FAIL(DT_ERR_INPUT, "key %s: want %g to %g, or 0 for none, the file has %g", key, low,
            high, *out);
    return DT_OK;
}

static dt_err read_turns(dt_config *out, source *s, const char *fast, const char *slow) {
    int n_ctx;
    DT_TRY(read_count(
        &n_ctx, s, "rope.scaling.original_context_length", out->n_ctx_train, 1, N_CTX_MAX));
    out->rope_n_ctx = n_ctx;
    DT_TRY(read_real(&out->rope_fast, s, fast, 1e-3, 1e6));
    DT_TRY(read_real(&out->rope_slow, s, slow, 1e-3, 1e6));
    if (!(out->rope_slow < out->rope_fast))
        DT_FAIL(DT_ERR_INPUT, "key %s: want more than %g, the file has %g", key_of(s, fast),
            out->rope_slow, out->rope_fast);
    return DT_OK;
}

static dt_err read_yarn(dt_config *out, source *s) {
    out->rope_scaling = DT_ROPE_YARN;
    out->rope_fast = 32;
    out->rope_slow = 1;
    DT_TRY(read_turns(out, s, "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"));
    if (out->rope_base <= 1)
        DT_FAIL(DT_ERR_INPUT, "YaRN wants a RoPE base above 1, the file has %g", out->rope_base);
    double mix = 1, multiplier = 0, gain = 1;
    DT_TRY(dt_gguf_get_float(s->gguf, key_of(s, "rope.scaling.yarn_ext_factor"), &mix));
    DT_TRY(dt_gguf_get_float(s->gguf, key_of(s, "rope.scaling.yarn_log_multiplier"), &multiplier));
    if (mix != 1 || multiplier != 0)
        DT_FAIL(DT_ERR_UNSUPPORTED, "a variant of YaRN (its mix %g, its multiplier %g): want 1, 0",
            mix, multiplier);
    DT_TRY(read_real(&gain, s, "rope.scaling.attn_factor", 1e-3, 1e3));
    DT_TRY(read_real(&gain, s, "rope.scaling.yarn_attn_factor", 1e-3, 1e3));
    if (out->rope_scale < 1)
        gain *= 1 - 0.1 * dt_log_f64(out->rope_scale);
    out->rope_gain = gain;
    return DT_OK;
}

static dt_err read_llama3(dt_config *out, source *s) {
    out->rope_scaling = DT_ROPE_LLAMA3;
    out->rope_fast = 4;
    out->rope_slow = 1;
    return read_turns(out, s, "rope.scaling.high_freq_factor", "rope.scaling.low_freq_factor");
}

/* rope.scale_linear is the older name of rope.scaling.factor. */
static dt_err read_rope(dt_config *out, source *s) {
    char shown[DT_TEXT_SHOWN_BYTES];
    out->rope_base = 10000;
    DT_TRY(read_real(&out->rope_base, s, "rope.freq_base", 1, 1e12));
    double factor = 1;
    DT_TRY(read_factor(&factor, s, "rope.scale_linear"));
    DT_TRY(read_factor(&factor, s, "rope.scaling.factor"));
    out->rope_scale = factor > 0 ? 1 / factor : 1;
    out->rope_gain = 1;
    dt_text type = {"linear", 6};
    DT_TRY(dt_gguf_get_text(s->gguf, key_of(s, "rope.scaling.type"), &type));
    if (dt_text_is(type, "none"))
        out->rope_scale = 1;
    else if (dt_text_is(type, "yarn"))
        DT_TRY(read_yarn(out, s));
    else if (dt_text_is(type, "llama3"))
        DT_TRY(read_llama3(out, s));
    else if (!dt_text_is(type, "linear"))
        DT_FAIL(DT_ERR_UNSUPPORTED, "RoPE scaling \"%s\" is not supported (key %s)",
            dt_text_shown(shown, type), key_of(s, "rope.scaling.type"));
    return DT_OK;
}

/* Which layers are local: a number says that every so-manieth sees all positions, a list names the
 * local ones. */
static dt_err read_pattern(dt_config *out, source *s, int preset) {
    const char *key = key_of(s, "attention.sliding_window_pattern");
    const int64_t *list = NULL;
    int64_t n = 0, period = preset;
    if (dt_gguf_get_int_array(s->gguf, key, &list, &n) == DT_OK && n > 0) {
        if (n != out->n_layer)
            DT_FAIL(DT_ERR_INPUT, "key %s: want %d elements, the file has %" PRId64, key,
                out->n_layer, n);
        for (int i = 0; i < out->n_layer; i++)
            out->local[i] = list[i] != 0;
        return DT_OK;
    }
    DT_TRY(dt_gguf_get_int(s->gguf, key, &period));
    if (period < 0 || period > DT_LAYER_MAX)
        DT_FAIL(
            DT_ERR_INPUT, "key %s: want 0 to %d, the file has %" PRId64, key, DT_LAYER_MAX, period);
    for (int i = 0; i < out->n_layer; i++)
        out->local[i] = period == 0 || i % period < period - 1;
    return DT_OK;
}

/* Where gemma differs. Converters have added the 1 to the weights of its norms already. */
static dt_err read_gemma(dt_config *out, source *s) {
    enum { LAYERS_27B = 62 };
    DT_TRY(refuse_cap(s, "attn_logit_softcapping"));
    DT_TRY(refuse_cap(s, "final_logit_softcapping"));
    out->embd_scale = __builtin_sqrtf((float)out->n_embd);
    /* The 27B alone was trained with the scale of another head size, and no key says so. */
    if (out->n_layer == LAYERS_27B)
        out->attn_scale = 1.0f / __builtin_sqrtf((float)(out->n_embd / out->n_head));
    if (out->window == 0)
        return DT_OK;
    DT_TRY(read_pattern(out, s, 6));
    out->local_rope = true;
    out->rope_base_local = 10000;
    return read_real(&out->rope_base_local, s, "rope.freq_base_swa", 1, 1e12);
}

static dt_err read_vocab(dt_config *out, source *s) {
    const dt_text *tokens;
    int64_t n_tokens;
    DT_TRY(dt_gguf_get_text_array(s->gguf, "tokenizer.ggml.tokens", &tokens, &n_tokens));
    int preset = n_tokens > 0 ? (int)DT_MIN(n_tokens, (int64_t)N_VOCAB_MAX + 1) : REQUIRED;
    return read_count(&out->n_vocab, s, "vocab_size", preset, 1, N_VOCAB_MAX);
}

static dt_err read_all(dt_config *out, const dt_gguf *gguf) {
    DT_TRY(read_arch(out, gguf));
    source s = {gguf, out->arch_name, ""};
    DT_TRY(refuse_count(&s, "expert_count", "mixtures of experts"));
    DT_TRY(read_count(&out->n_ctx_train, &s, "context_length", REQUIRED, 1, N_CTX_MAX));
    DT_TRY(read_count(&out->n_embd, &s, "embedding_length", REQUIRED, 1, N_EMBD_MAX));
    DT_TRY(read_count(&out->n_layer, &s, "block_count", REQUIRED, 1, DT_LAYER_MAX));
    DT_TRY(read_count(&out->n_ff, &s, "feed_forward_length", REQUIRED, 1, N_FF_MAX));
    DT_TRY(read_heads(out, &s));
    out->embd_scale = 1.0f;
    out->attn_scale = 1.0f / __builtin_sqrtf((float)out->head_dim);
    DT_TRY(read_rope(out, &s));
    if (ARCHS[out->arch].window)
        DT_TRY(read_count(&out->window, &s, "attention.sliding_window", 0, 0, N_CTX_MAX));
    else
        DT_TRY(refuse_count(&s, "attention.sliding_window", "sliding windows"));
    for (int i = 0; i < out->n_layer; i++)
        out->local[i] = out->window > 0;
    if (ARCHS[out->arch].gemma)
        DT_TRY(read_gemma(out, &s));
    if (!dt_gguf_has(gguf, key_of(&s, "attention.layer_norm_rms_epsilon")))
        DT_FAIL(DT_ERR_INPUT, "key %s is missing", s.key);
    double eps = 0;
    DT_TRY(read_real(&eps, &s, "attention.layer_norm_rms_epsilon", 0, 1));
    out->norm_eps = (float)eps;
    return read_vocab(out, &s);
}

dt_err dt_config_read(dt_config *out, const dt_gguf *gguf) {
    memset(out, 0, sizeof *out);
    dt_err err = read_all(out, gguf);
    return err == DT_OK ? DT_OK : dt_err_prefix(err, "%.255s", dt_gguf_path(gguf));
}
