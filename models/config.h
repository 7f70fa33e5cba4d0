/* Hyper-parameters of a model, read from GGUF metadata and checked against each other.
 * Source: GGUF specification, "Standardized key-value pairs", keys "[arch].*". */
#ifndef DT_MODELS_CONFIG_H
#define DT_MODELS_CONFIG_H

#include "models/gguf.h"

typedef enum dt_arch {
    DT_ARCH_LLAMA,
    DT_ARCH_QWEN2,
    DT_ARCH_QWEN3,
    DT_ARCH_GEMMA3,
    DT_ARCH_MISTRAL,
    DT_ARCH_PHI3,
    DT_ARCH_COUNT,
} dt_arch;

/* Which two elements of a head are rotated together: neighbours (2i, 2i+1), as converters leave
 * llama weights, or the two halves (i, i + n_rot / 2). */
typedef enum dt_rope_pairing {
    DT_ROPE_NEIGHBOURS,
    DT_ROPE_HALVES,
} dt_rope_pairing;

/* How the rotary embedding is stretched over a context longer than the model's first one
 * (models/rope.h). LINEAR with a scale of 1 is none. */
typedef enum dt_rope_scaling {
    DT_ROPE_LINEAR,
    DT_ROPE_YARN,
    DT_ROPE_LLAMA3, /* a tensor of factors, where the file has one, stands for all of it */
} dt_rope_scaling;

/* What goes over the gate of a feed-forward block: x / (1 + e^-x), or the tanh form of GELU. */
typedef enum dt_gate {
    DT_GATE_SILU,
    DT_GATE_GELU,
} dt_gate;

/* The most by which one position turns a pair (rope_scale over the file's factor). Positions stay
 * below 2^25 (DT_CONTEXT_MAX and the rows of a tree), so angles below 2^30, which is what
 * dt_sincos_f64 asks for. */
enum { DT_ROPE_RATE_MAX = 32, DT_LAYER_MAX = 1024 };

/* Plain data. Sizes in elements. */
typedef struct dt_config {
    dt_arch arch;
    const char *arch_name; /* static */
    int n_vocab;
    int n_ctx_train;
    int n_embd;
    int n_layer;
    int n_head;
    int n_head_kv; /* divides n_head */
    int head_dim;  /* of K and V alike */
    int n_ff;
    int n_rot; /* rotated elements of a head, even, <= head_dim */
    dt_rope_pairing rope_pairing;
    double rope_base;  /* 1 to 1e12 */
    double rope_scale; /* 1 / factor of the scaling (1 = none), <= DT_ROPE_RATE_MAX */
    float norm_eps;
    dt_rope_scaling rope_scaling;
    double rope_n_ctx;           /* YARN, LLAMA3: the context before stretching */
    double rope_fast, rope_slow; /* turns over it: pairs with more stay, with fewer are scaled */
    double rope_gain;            /* of cosine and sine: 1, or YaRN's */
    bool fused;                  /* q, k, v lie in one tensor, gate and up in another */
    bool qkv_bias;               /* the architecture may carry biases on q, k and v */
    bool qk_norm;                /* every head of q and k is normalised before its rotation */
    bool post_norm;              /* what a block adds to the residual stream is normalised too */
    dt_gate gate;     /* behind GELU, activations are quantised twice (doc/numerics.md) */
    float embd_scale; /* of the embedding rows */
    float attn_scale; /* of the scores */
    int window; /* positions that a local layer sees, the newest included; 0: no layer is local */
    bool local[DT_LAYER_MAX];
    bool local_rope; /* local layers turn by rope_base_local, unscaled */
    double rope_base_local;
} dt_config;

/* Refuses by name: an unknown architecture, a RoPE scaling other than none, linear, yarn and
 * llama3, experts, sliding windows where the architecture has none, soft caps of scores or logits,
 * differing K and V head sizes, counts out of range. */
dt_err dt_config_read(dt_config *out, const dt_gguf *gguf);

#endif
