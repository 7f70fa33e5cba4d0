/* The draft's growing tree of likely continuations. Node 0 is the root, the last token of the
 * timeline; every other node follows its parent, and parent < child. A score is the sum of the
 * log-probabilities from the root, so that a child never scores above its parent.
 *
 * Owned by a draft source, not thread-safe. All memory is taken by init.
 * Source: Li et al. 2024 (EAGLE-2), the dynamic draft tree. */
#ifndef DT_MODELS_TREE_H
#define DT_MODELS_TREE_H

#include "src/base/common.h"

typedef struct dt_tree_node {
    int32_t token;
    int32_t parent; /* -1 of the root */
    float score;    /* 0 of the root */
} dt_tree_node;

typedef struct dt_tree {
    int n_max;
    int n_nodes;
    dt_tree_node *nodes; /* [n_max] */
    int32_t *depth;      /* [n_max], 0 of the root */
    int32_t *order;      /* [n_max], working memory */
} dt_tree;

/* Starts with the root alone, token 0. n_max >= 1. */
dt_err dt_tree_init(dt_tree *tree, int n_max);
void dt_tree_deinit(dt_tree *tree); /* takes a zeroed one too */

/* Forgets everything but a root with this token. */
void dt_tree_reset(dt_tree *tree, int32_t root_token);

/* Appends a child whose score is its parent's plus `log_p` (above 0 counts as 0, NaN and anything
 * below -10000 as -10000). Returns its id, or -1 when the tree is full. */
int dt_tree_add(dt_tree *tree, int parent, int32_t token, float log_p);

/* The first child of `parent` that carries `token`, or -1. */
int dt_tree_child(const dt_tree *tree, int parent, int32_t token);

/* Makes `node` the root: it and its descendants stay, in order, with scores and depths counted from
 * it; all others are freed. map[old id] (n_max entries) is the new id or -1. */
void dt_tree_reroot(int32_t *map, dt_tree *tree, int node);

/* The best n_best nodes (root included) by score descending, id ascending, sorted by id, with
 * parents as indices of `out`. Closed under ancestors. Returns their number. */
int dt_tree_best(dt_tree_node *out, dt_tree *tree, int n_best);

/* The score of the n_best-th best node, root included; -infinity while there are fewer. A node that
 * does not score above it has no descendant among the best. */
float dt_tree_threshold(dt_tree *tree, int n_best);

#endif
