/* The k best tokens of a row of logits, with the keyed noise of ALGORITHM "coupled drafting":
 * candidates are ranked by z = l / temperature + G(seed, position, token), so that a draft and a
 * target that share the noise tend to choose the same token.
 * Cf. Daliri et al., "Coupling without communication and drafter-invariant speculative decoding".
 */
#ifndef DT_MODELS_TOPK_H
#define DT_MODELS_TOPK_H

#include "src/base/common.h"

enum { DT_TOPK_MAX = 16, DT_TOPK_FILTERED = 64 };

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

#endif
