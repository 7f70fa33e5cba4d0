/* A model file as the program sees it: configuration, weights by name with checked shapes,
 * vocabulary. Immutable after open and shared by every forward; any thread. */
#ifndef DT_MODELS_MODEL_H
#define DT_MODELS_MODEL_H

#include "models/config.h"
#include "models/token.h"

/* Shapes are [rows, columns] row-major; biases and norms are F32 vectors. D = n_embd,
 * Q = n_head * head_dim, KV = n_head_kv * head_dim, I = n_ff. Optional tensors are NULL. */
typedef struct dt_layer {
    const dt_tensor *attn_norm;                      /* [D] */
    const dt_tensor *wq, *wk, *wv, *wo;              /* [Q, D] [KV, D] [KV, D] [D, Q] */
    const dt_tensor *bq, *bk, *bv;                   /* [Q] [KV] [KV], optional */
    const dt_tensor *q_norm, *k_norm;                /* [head_dim] each, where config.qk_norm */
    const dt_tensor *attn_post_norm, *ffn_post_norm; /* [D] each, where config.post_norm */
    const dt_tensor *ffn_norm;                       /* [D] */
    const dt_tensor *w_gate, *w_up;                  /* [I, D] */
    const dt_tensor *w_down;                         /* [D, I] */
} dt_layer;

typedef struct dt_model {
    dt_gguf *file; /* owned */
    dt_config config;
    dt_vocab *vocab;              /* owned */
    const dt_tensor *token_embd;  /* [n_vocab, D] */
    const dt_tensor *output_norm; /* [D] */
    const dt_tensor *output;      /* [n_vocab, D]; token_embd itself where the head is tied */
    const dt_tensor *rope_freqs;  /* [n_rot / 2] factors that divide the frequencies, optional */
    dt_layer *layers;             /* [n_layer], owned */
    dt_tensor *parts;             /* [n_layer][5] views of fused tensors, owned; else NULL */
} dt_model;

/* Opens the file, reads the configuration and the vocabulary and binds every tensor. A missing
 * tensor or another shape is DT_ERR_INPUT and says which was expected and found; so is a factor of
 * rope_freqs that is not finite and large enough (DT_ROPE_RATE_MAX). */
dt_err dt_model_open(dt_model **out, const char *path);
void dt_model_close(dt_model *model);

#endif
