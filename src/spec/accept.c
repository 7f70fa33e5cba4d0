#include "src/spec/accept.h"

int dt_accept_check(dt_tree_node *nodes, int32_t n_nodes, int32_t root_token, int32_t n_tokens,
    int n_max, int depth_max) {
    if (n_nodes < 1 || n_nodes > DT_TREE_MAX)
        return 0;
    int32_t depth[DT_TREE_MAX];
    int32_t place[DT_TREE_MAX]; /* where a node goes; -1: left out */
    nodes[0] = (dt_tree_node){.token = root_token, .parent = -1};
    depth[0] = place[0] = 0;
    int n = 1;
    for (int i = 1; i < n_nodes; i++) {
        dt_tree_node node = nodes[i];
        if (node.parent < 0 || node.parent >= i || node.token < 0 || node.token >= n_tokens)
            return 0;
        depth[i] = depth[node.parent] + 1;
        place[i] = -1;
        /* A node that is left out is too deep or too late, and so are its descendants. */
        if (n < n_max && depth[i] <= depth_max) {
            node.parent = place[node.parent];
            place[i] = n;
            nodes[n++] = node;
        }
    }
    return n;
}

void dt_accept_walk(dt_walk *out, dt_sampler *sampler, const dt_tree_node *nodes, int n_nodes,
    const float *logits, int32_t *timeline, int64_t n_timeline) {
    size_t n_vocab = (size_t)sampler->n_vocab;
    int at = 0;
    out->n = 0;
    while (at >= 0) {
        int32_t token =
            dt_sampler_next(sampler, logits + (size_t)at * n_vocab, timeline, n_timeline);
        if (sampler->lost)
            return;
        out->path[out->n++] = at;
        timeline[n_timeline++] = token;
        int child = at + 1;
        while (child < n_nodes && !(nodes[child].parent == at && nodes[child].token == token))
            child++;
        at = child < n_nodes ? child : -1;
    }
}

bool dt_accept_off_branch(const dt_tree_node *nodes, int node) {
    for (int i = nodes[node].parent + 1; i < node; i++) {
        if (nodes[i].parent == nodes[node].parent)
            return true;
    }
    return false;
}
