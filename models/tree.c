#include "models/tree.h"

#include "src/base/mem.h"

dt_err dt_tree_init(dt_tree *tree, int n_max) {
    *tree = (dt_tree){.n_max = n_max};
    dt_err err = dt_mem_alloc(&tree->nodes, (size_t)n_max * sizeof *tree->nodes);
    if (err == DT_OK)
        err = dt_mem_alloc(&tree->depth, (size_t)n_max * sizeof *tree->depth);
    if (err == DT_OK)
        err = dt_mem_alloc(&tree->order, (size_t)n_max * sizeof *tree->order);
    if (err != DT_OK) {
        dt_tree_deinit(tree);
        return err;
    }
    dt_tree_reset(tree, 0);
    return DT_OK;
}

void dt_tree_deinit(dt_tree *tree) {
    dt_mem_free(tree->nodes);
    dt_mem_free(tree->depth);
    dt_mem_free(tree->order);
    *tree = (dt_tree){0};
}

void dt_tree_reset(dt_tree *tree, int32_t root_token) {
    tree->nodes[0] = (dt_tree_node){.token = root_token, .parent = -1};
    tree->depth[0] = 0;
    tree->n_nodes = 1;
}

int dt_tree_add(dt_tree *tree, int parent, int32_t token, float log_p) {
    if (tree->n_nodes == tree->n_max)
        return -1;
    /* Finite scores stay finite when a later root's is taken away from them. */
    float step = log_p > -10000.0f ? log_p : -10000.0f;
    if (step > 0.0f)
        step = 0.0f;
    int id = tree->n_nodes++;
    tree->nodes[id] = (dt_tree_node){token, parent, tree->nodes[parent].score + step};
    tree->depth[id] = tree->depth[parent] + 1;
    return id;
}

int dt_tree_child(const dt_tree *tree, int parent, int32_t token) {
    for (int i = parent + 1; i < tree->n_nodes; i++) {
        if (tree->nodes[i].parent == parent && tree->nodes[i].token == token)
            return i;
    }
    return -1;
}

void dt_tree_reroot(int32_t *map, dt_tree *tree, int node) {
    float score = tree->nodes[node].score;
    int depth = tree->depth[node];
    int n = 0;
    for (int i = 0; i < tree->n_nodes; i++) {
        int parent = tree->nodes[i].parent;
        /* A parent is met before its children, so its place in the map is known. */
        if (i != node && (i < node || map[parent] < 0)) {
            map[i] = -1;
            continue;
        }
        tree->nodes[n] = (dt_tree_node){
            .token = tree->nodes[i].token,
            .parent = i == node ? -1 : map[parent],
            .score = tree->nodes[i].score - score,
        };
        tree->depth[n] = tree->depth[i] - depth;
        map[i] = n++;
    }
    tree->n_nodes = n;
}

/* The best ids into tree->order, best first; returns how many. */
static int rank(dt_tree *tree, int n_best) {
    int32_t *order = tree->order;
    int n = 0;
    for (int i = 0; i < tree->n_nodes; i++) {
        float score = tree->nodes[i].score;
        if (n == n_best && !(score > tree->nodes[order[n - 1]].score))
            continue;
        int at = n < n_best ? n++ : n - 1;
        for (; at > 0 && score > tree->nodes[order[at - 1]].score; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    return n;
}

int dt_tree_best(dt_tree_node *out, dt_tree *tree, int n_best) {
    int n = rank(tree, DT_MIN(n_best, tree->n_max));
    int32_t *order = tree->order;
    for (int i = 1; i < n; i++) {
        int32_t id = order[i];
        int at = i;
        for (; at > 0 && order[at - 1] > id; at--)
            order[at] = order[at - 1];
        order[at] = id;
    }
    for (int i = 0; i < n; i++) {
        out[i] = tree->nodes[order[i]];
        int parent = i;
        while (--parent >= 0 && order[parent] != out[i].parent) {
        }
        out[i].parent = parent;
    }
    return n;
}

float dt_tree_threshold(dt_tree *tree, int n_best) {
    if (tree->n_nodes < n_best)
        return -__builtin_inff();
    rank(tree, n_best);
    return tree->nodes[tree->order[n_best - 1]].score;
}
