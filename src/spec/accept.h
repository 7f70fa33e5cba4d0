/* What verification does with a tree: checks it, and walks down it along the target's own tokens.
 * A tree decides which rows are computed, never what they say. */
#ifndef DT_SPEC_ACCEPT_H
#define DT_SPEC_ACCEPT_H

#include "models/tree.h"
#include "src/spec/sampler.h"

/* Makes a proposal fit for one pass: node 0 becomes the root token, at most n_max nodes and
 * depth_max levels below the root stay (0: the root alone). Returns the number of nodes; 0 for a
 * tree that is no tree (parents out of order, tokens outside 0 .. n_tokens-1, an impossible count).
 */
int dt_accept_check(dt_tree_node *nodes, int32_t n_nodes, int32_t root_token, int32_t n_tokens,
    int n_max, int depth_max);

typedef struct dt_walk {
    int n;                     /* tokens drawn: the accepted ones and the bonus token */
    int32_t path[DT_TREE_MAX]; /* [n] nodes that drew them; path[0] is the root */
} dt_walk;

/* Draws the target's token at the root and follows the child that carries it, as far as there is
 * one. logits [n_nodes][n_vocab]. The tokens are appended to timeline[n_timeline ..], whose last
 * one before is the root; room for n_nodes more is needed. */
void dt_accept_walk(dt_walk *out, dt_sampler *sampler, const dt_tree_node *nodes, int n_nodes,
    const float *logits, int32_t *timeline, int64_t n_timeline);

/* Whether the node is not the first of its parent's children. */
bool dt_accept_off_branch(const dt_tree_node *nodes, int node);

#endif
