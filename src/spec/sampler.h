/* The one definition of the next token, with and without a draft:
 *
 *     y = argmax over the allowed tokens of (l / T + G(seed, position, token)), ties to the smaller
 * id
 *
 * where l are the logits after biases and penalties and the tokens allowed are those that top-k,
 * top-p and min-p leave. At T = 0 it is the argmax of l. The tokens before are an argument, so that
 * nodes of a tree are drawn with their path's history, and the same call twice gives the same
 * token.
 *
 * Penalties: a token seen c > 0 times in the last penalty_window tokens has l divided by
 * repeat_penalty (multiplied where l <= 0), then less presence_penalty + c * frequency_penalty.
 * Top-p keeps the smallest set of best tokens whose weight reaches top_p of all that top-k left;
 * min-p those with at least min_p of the best one's probability. NaN is never chosen; where
 * the best is not finite, `lost` is set and the token means nothing.
 *
 * Owned by a session, not thread-safe. All memory is taken by init. */
#ifndef DT_SPEC_SAMPLER_H
#define DT_SPEC_SAMPLER_H

#include "models/scan.h"
#include "src/dovetail.h"

typedef struct dt_sampler {
    dt_sampling options;
    int n_vocab;
    bool penalties;
    bool lost;           /* the latest call found nothing to choose from */
    int n_window;        /* tokens looked back on */
    int32_t *counts;     /* [n_vocab], zero between calls */
    float *changed;      /* [n_vocab] logits after biases and penalties, if there are any */
    int32_t *candidates; /* [n_vocab], if top-k or top-p is on */
    dt_scan scan;
} dt_sampler;

/* DT_ERR_INPUT for options out of range, by name; init checks the tokens of biases too. */
dt_err dt_sampling_check(const dt_sampling *options);

dt_err dt_sampler_init(dt_sampler *sampler, const dt_sampling *options, int n_vocab);
void dt_sampler_deinit(dt_sampler *sampler); /* takes a zeroed one too */

/* The token that follows tokens[0 .. n_tokens-1], of logits [n_vocab]. Its position is n_tokens. */
int32_t dt_sampler_next(
    dt_sampler *sampler, const float *logits, const int32_t *tokens, int64_t n_tokens);

#endif
