/* The k best tokens of a row of logits, with the keyed noise of ALGORITHM "coupled drafting":
 * candidates are ranked by z = l / temperature + G(seed, position, token), so that a draft and a
 * target that share the noise tend to choose the same token.
 * Cf. Daliri et al., "Coupling without communication and drafter-invariant speculative decoding".
 */
#ifndef DT_MODELS_TOPK_H
#define DT_MODELS_TOPK_H

#include "src/base/common.h"

enum {
    DT_TOPK_MAX = 16,
    DT_TOPK_FILTERED = 64,
    DT_TOPK_WEIGHED = 32,        /* candidates whose weights normalise noisy scores */
    DT_TOPK_NOISE_BLOCKS = 512,  /* blocks looked into for noisy candidates, if it can be helped */
    DT_TOPK_NOISE_TOKENS = 8192, /* tokens that get noise: no further block from there on */
};

/* How far below the best logit, in units of the temperature, blocks are looked into for noisy
 * candidates: the first that leaves DT_TOPK_NOISE_BLOCKS at most, else the last. */
#define DT_TOPK_REACHES                                                                            \
    { 23.0f, 16.0f, 12.0f, 9.0f, 7.0f, 5.0f, 3.5f }
/* And for the sum that normalises plain scores. */
#define DT_TOPK_SUM_REACH 16.0f

typedef struct dt_topk_args {
    int k;             /* 1 .. DT_TOPK_MAX */
    int n_allowed;     /* only tokens below this id are candidates */
    float temperature; /* 0: greedy, no noise */
    bool noise;        /* false: rank by the logits alone at any temperature */
    uint64_t seed;
    int64_t position; /* of the token to be drawn (src/base/noise.h) */
    float tau;        /* scores are log-softmax(z / tau) at temperature > 0; 1 is neutral */
    /* With noise, the target's filters applied to the best DT_TOPK_FILTERED logits, so that tokens
     * which it will not draw are not proposed. Advisory; 0 is off for each. */
    int top_k;
    float top_p, min_p;
} dt_topk_args;

typedef struct dt_topk {
    int n;                       /* <= k */
    int32_t tokens[DT_TOPK_MAX]; /* best first, ties to the smaller id */
    float scores[DT_TOPK_MAX];   /* log-probability of each: the increment of a tree score */
} dt_topk;

/* On host memory: logits [n_vocab]. NaN and -infinity are never returned, and nothing is where the
 * largest logit is not finite. Never fails; allocates nothing. */
void dt_topk_row(dt_topk *out, const float *logits, int n_vocab, const dt_topk_args *args);

/* How a row is ranked, and the candidates that this takes. */
typedef enum dt_topk_mode {
    DT_TOPK_PLAIN,    /* the k best logits, and the sum of dt_scan_exp_sum */
    DT_TOPK_BY_LIST,  /* the DT_TOPK_FILTERED best logits, filtered, then given noise */
    DT_TOPK_BY_NOISE, /* the DT_TOPK_WEIGHED best z of all that may get noise */
} dt_topk_mode;

dt_topk_mode dt_topk_mode_of(const dt_topk_args *args);
/* The scale of the softmax in mode PLAIN. */
float dt_topk_scale(const dt_topk_args *args);

/* The answer from a row's candidates, wherever they were found: `values` descending, ties by
 * ascending token; logits, or z in mode BY_NOISE. `best` is the largest logit, `sum` that of
 * dt_scan_exp_sum in mode PLAIN. */
void dt_topk_finish(dt_topk *out, const int32_t *tokens, const double *values, int n, float best,
    int64_t sum, const dt_topk_args *args);

#endif
