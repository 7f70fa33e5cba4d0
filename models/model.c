#include "models/model.h"

#include <inttypes.h>
#include <stdio.h>

#include "src/base/mem.h"

enum { NAME_BYTES = 64 };

typedef struct binder {
    const dt_gguf *file;
    bool *bound; /* [n_tensors]: the program reads it */
} binder;

static void shape_text(char *out, size_t n_bytes, const dt_tensor *t) {
    size_t n = 0;
    for (int i = t->n_dims - 1; i >= 0 && n < n_bytes; i--)
        n += (size_t)snprintf(
            out + n, n_bytes - n, "%s%" PRId64, i < t->n_dims - 1 ? "," : "", t->ne[i]);
}

/* Binds a tensor of [n_rows, n_cols], or a vector of n_cols if n_rows is 0. Vectors are norms,
 * biases and factors, which every converter leaves in F32. */
static dt_err bind(const dt_tensor **out, binder *b, const char *name, int64_t n_rows,
    int64_t n_cols, bool optional) {
    const dt_tensor *t = dt_gguf_find(b->file, name);
    *out = t;
    if (!t && optional)
        return DT_OK;
    char want[48], found[96];
    if (n_rows)
        snprintf(want, sizeof want, "%" PRId64 ",%" PRId64, n_rows, n_cols);
    else
        snprintf(want, sizeof want, "%" PRId64, n_cols);
    if (!t)
        DT_FAIL(DT_ERR_INPUT, "tensor %s is missing (want [%s])", name, want);
    if (t->ne[0] != n_cols || t->ne[1] != (n_rows ? n_rows : 1) || t->ne[2] != 1 || t->ne[3] != 1) {
        shape_text(found, sizeof found, t);
        DT_FAIL(DT_ERR_INPUT, "tensor %s: want [%s], the file has [%s]", name, want, found);
    }
    if (!n_rows && t->type != DT_TYPE_F32)
        DT_FAIL(DT_ERR_UNSUPPORTED, "tensor %s: want F32, the file has %s", name,
            dt_type_name(t->type));
    b->bound[t - dt_gguf_tensor(b->file, 0)] = true;
    return DT_OK;
}

static dt_err bind_in_layer(const dt_tensor **out, binder *b, int i_layer, const char *part,
    int64_t n_rows, int64_t n_cols, bool optional) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blk.%d.%s", i_layer, part);
    return bind(out, b, name, n_rows, n_cols, optional);
}

/* Rows [row0, row0 + n_rows) of a matrix as a tensor of its own. */
static const dt_tensor *view_rows(
    dt_tensor *view, const dt_tensor *whole, int64_t row0, int64_t n_rows) {
    size_t row_bytes = dt_type_row_bytes(whole->type, whole->ne[0]);
    *view = *whole;
    view->ne[1] = n_rows;
    view->data = (const uint8_t *)whole->data + (size_t)row0 * row_bytes;
    view->n_bytes = (size_t)n_rows * row_bytes;
    return view;
}

/* q, k, v below each other in one matrix, gate and up in another. */
static dt_err bind_fused(
    dt_layer *layer, dt_tensor parts[5], binder *b, const dt_config *c, int i) {
    int64_t q = (int64_t)c->n_head * c->head_dim, kv = (int64_t)c->n_head_kv * c->head_dim;
    const dt_tensor *qkv, *gate_up;
    DT_TRY(bind_in_layer(&qkv, b, i, "attn_qkv.weight", q + 2 * kv, c->n_embd, false));
    DT_TRY(bind_in_layer(&gate_up, b, i, "ffn_up.weight", 2 * (int64_t)c->n_ff, c->n_embd, false));
    layer->wq = view_rows(&parts[0], qkv, 0, q);
    layer->wk = view_rows(&parts[1], qkv, q, kv);
    layer->wv = view_rows(&parts[2], qkv, q + kv, kv);
    layer->w_gate = view_rows(&parts[3], gate_up, 0, c->n_ff);
    layer->w_up = view_rows(&parts[4], gate_up, c->n_ff, c->n_ff);
    return DT_OK;
}

static dt_err bind_layer(dt_layer *layer, binder *b, const dt_config *c, int i) {
    int64_t d = c->n_embd, q = (int64_t)c->n_head * c->head_dim;
    int64_t kv = (int64_t)c->n_head_kv * c->head_dim, ff = c->n_ff;
    DT_TRY(bind_in_layer(&layer->attn_norm, b, i, "attn_norm.weight", 0, d, false));
    if (!c->fused) {
        DT_TRY(bind_in_layer(&layer->wq, b, i, "attn_q.weight", q, d, false));
        DT_TRY(bind_in_layer(&layer->wk, b, i, "attn_k.weight", kv, d, false));
        DT_TRY(bind_in_layer(&layer->wv, b, i, "attn_v.weight", kv, d, false));
        DT_TRY(bind_in_layer(&layer->w_gate, b, i, "ffn_gate.weight", ff, d, false));
        DT_TRY(bind_in_layer(&layer->w_up, b, i, "ffn_up.weight", ff, d, false));
    }
    DT_TRY(bind_in_layer(&layer->wo, b, i, "attn_output.weight", d, q, false));
    if (c->qkv_bias) {
        DT_TRY(bind_in_layer(&layer->bq, b, i, "attn_q.bias", 0, q, true));
        DT_TRY(bind_in_layer(&layer->bk, b, i, "attn_k.bias", 0, kv, true));
        DT_TRY(bind_in_layer(&layer->bv, b, i, "attn_v.bias", 0, kv, true));
    }
    if (c->qk_norm) {
        DT_TRY(bind_in_layer(&layer->q_norm, b, i, "attn_q_norm.weight", 0, c->head_dim, false));
        DT_TRY(bind_in_layer(&layer->k_norm, b, i, "attn_k_norm.weight", 0, c->head_dim, false));
    }
    if (c->post_norm) {
        DT_TRY(
            bind_in_layer(&layer->attn_post_norm, b, i, "post_attention_norm.weight", 0, d, false));
        DT_TRY(bind_in_layer(&layer->ffn_post_norm, b, i, "post_ffw_norm.weight", 0, d, false));
    }
    DT_TRY(bind_in_layer(&layer->ffn_norm, b, i, "ffn_norm.weight", 0, d, false));
    return bind_in_layer(&layer->w_down, b, i, "ffn_down.weight", d, ff, false);
}

/* A frequency is divided by its factor. With one that is zero, NaN or tiny the angles would leave
 * the range of dt_sincos_f64 (models/config.h); a negative or infinite one has no meaning. */
static dt_err check_factors(const dt_tensor *t, const dt_config *c) {
    const float *factors = t->data;
    /* Only linear scaling slows every pair down. */
    double most = c->rope_scaling == DT_ROPE_LINEAR ? c->rope_scale : DT_MAX(c->rope_scale, 1.0);
    double low = most / DT_ROPE_RATE_MAX;
    for (int64_t i = 0; i < t->ne[0]; i++) {
        double factor = (double)factors[i];
        if (!(factor >= low && factor < (double)__builtin_inff()))
            DT_FAIL(DT_ERR_INPUT,
                "tensor %s: want finite factors of %g or more, element %" PRId64 " is %g", t->name,
                low, i, factor);
    }
    return DT_OK;
}

static dt_err bind_all(dt_model *model, binder *b) {
    const dt_config *c = &model->config;
    DT_TRY(bind(&model->token_embd, b, "token_embd.weight", c->n_vocab, c->n_embd, false));
    DT_TRY(bind(&model->output_norm, b, "output_norm.weight", 0, c->n_embd, false));
    DT_TRY(bind(&model->output, b, "output.weight", c->n_vocab, c->n_embd, true));
    if (!model->output)
        model->output = model->token_embd;
    DT_TRY(bind(&model->rope_freqs, b, "rope_freqs.weight", 0, c->n_rot / 2, true));
    if (model->rope_freqs)
        DT_TRY(check_factors(model->rope_freqs, c));
    /* Two sets of factors, chosen by the length of the text. */
    if (dt_gguf_find(b->file, "rope_factors_long.weight"))
        DT_FAIL(DT_ERR_UNSUPPORTED, "RoPE scaling \"longrope\" is not supported (tensor "
                                    "rope_factors_long.weight)");
    for (int i = 0; i < c->n_layer; i++) {
        if (c->fused)
            DT_TRY(bind_fused(&model->layers[i], model->parts + (size_t)i * 5, b, c, i));
        DT_TRY(bind_layer(&model->layers[i], b, c, i));
    }
    /* A tensor that no part of the program reads (a bias, an expert, a norm of another design)
     * would change the text if it were read, so ignoring it would be wrong without a word. */
    for (int64_t i = 0; i < dt_gguf_n_tensors(b->file); i++)
        if (!b->bound[i])
            DT_FAIL(DT_ERR_UNSUPPORTED, "tensor %.255s is no part of a %s model of %d layers",
                dt_gguf_tensor(b->file, i)->name, c->arch_name, c->n_layer);
    return DT_OK;
}

static dt_err open_parts(dt_model *model) {
    DT_TRY(dt_config_read(&model->config, model->file));
    DT_TRY(dt_mem_alloc(&model->layers, (size_t)model->config.n_layer * sizeof *model->layers));
    if (model->config.fused)
        DT_TRY(
            dt_mem_alloc(&model->parts, (size_t)model->config.n_layer * 5 * sizeof *model->parts));
    binder b = {model->file, NULL};
    DT_TRY(dt_mem_alloc(&b.bound, (size_t)dt_gguf_n_tensors(model->file)));
    dt_err err = bind_all(model, &b);
    dt_mem_free(b.bound);
    if (err != DT_OK)
        return dt_err_prefix(err, "%.255s", dt_gguf_path(model->file));
    DT_TRY(dt_vocab_open(&model->vocab, model->file));
    int n_tokens = dt_vocab_size(model->vocab);
    if (n_tokens != model->config.n_vocab)
        DT_FAIL(DT_ERR_INPUT,
            "%.255s: want a list of %d tokens, as token_embd.weight has rows, "
            "the file has %d",
            dt_gguf_path(model->file), model->config.n_vocab, n_tokens);
    return DT_OK;
}

dt_err dt_model_open(dt_model **out, const char *path) {
    dt_model *model;
    *out = NULL;
    DT_TRY(dt_mem_alloc(&model, sizeof *model));
    dt_err err = dt_gguf_open(&model->file, path);
    if (err == DT_OK)
        err = open_parts(model);
    if (err != DT_OK) {
        dt_model_close(model);
        return err;
    }
    *out = model;
    return DT_OK;
}

void dt_model_close(dt_model *model) {
    if (!model)
        return;
    dt_vocab_close(model->vocab);
    dt_mem_free(model->layers);
    dt_mem_free(model->parts);
    dt_gguf_close(model->file);
    dt_mem_free(model);
}
