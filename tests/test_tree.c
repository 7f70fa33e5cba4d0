#include "models/tree.h"
#include "tests/test.h"

/* Against a slow and simple choice: sort everything. */
static int compare_nodes(const dt_tree *tree, int a, int b) {
    float d = tree->nodes[a].score - tree->nodes[b].score;
    return d > 0.0f ? -1 : d < 0.0f ? 1 : a - b;
}

static void check_best(dt_tree *tree, int n_best) {
    int ids[300];
    int n = tree->n_nodes;
    for (int i = 0; i < n; i++) {
        int at = i;
        for (; at > 0 && compare_nodes(tree, i, ids[at - 1]) < 0; at--)
            ids[at] = ids[at - 1];
        ids[at] = i;
    }
    bool chosen[300] = {false};
    for (int i = 0; i < n && i < n_best; i++)
        chosen[ids[i]] = true;
    dt_tree_node best[300];
    int n_got = dt_tree_best(best, tree, n_best);
    CHECK(n_got == DT_MIN(n, n_best));
    int place[300];
    for (int i = 0, at = 0; i < n; i++) {
        place[i] = -1;
        if (!chosen[i])
            continue;
        CHECK(at < n_got && best[at].token == tree->nodes[i].token &&
              best[at].score == tree->nodes[i].score);
        if (i == 0)
            CHECK(best[at].parent == -1);
        else
            CHECK(best[at].parent == place[tree->nodes[i].parent] && best[at].parent >= 0);
        place[i] = at++;
    }
    float threshold = dt_tree_threshold(tree, n_best);
    CHECK(n < n_best ? threshold == -__builtin_inff()
                     : threshold == tree->nodes[ids[n_best - 1]].score);
}

static void check_shape(const dt_tree *tree) {
    CHECK(tree->n_nodes >= 1 && tree->nodes[0].parent == -1 && tree->nodes[0].score == 0.0f);
    for (int i = 1; i < tree->n_nodes; i++) {
        int parent = tree->nodes[i].parent;
        CHECK(parent >= 0 && parent < i);
        CHECK(tree->nodes[i].score <= tree->nodes[parent].score);
        CHECK(tree->depth[i] == tree->depth[parent] + 1);
    }
}

/* Tokens are unique in the random trees, so that nodes can be known again. */
static void test_random(test_rng *rng) {
    dt_tree tree;
    CHECK_OK(dt_tree_init(&tree, 256));
    for (int round = 0; round < 300; round++) {
        int32_t token = 1;
        dt_tree_reset(&tree, 0);
        int n = 1 + (int)test_rng_below(rng, 256);
        while (tree.n_nodes < n) {
            float step = -(float)test_rng_below(rng, 4) * 0.25f; /* many ties */
            int parent = (int)test_rng_below(rng, (uint32_t)tree.n_nodes);
            CHECK(dt_tree_add(&tree, parent, token++, step) == tree.n_nodes - 1);
        }
        check_shape(&tree);
        check_best(&tree, 1 + (int)test_rng_below(rng, 64));

        dt_tree_node before[256];
        memcpy(before, tree.nodes, sizeof before);
        int n_before = tree.n_nodes;
        int root = (int)test_rng_below(rng, (uint32_t)n_before);
        int32_t map[256];
        dt_tree_reroot(map, &tree, root);
        check_shape(&tree);
        int n_kept = 0;
        for (int i = 0; i < n_before; i++) {
            int up = i;
            while (up > root)
                up = before[up].parent;
            CHECK((map[i] >= 0) == (up == root));
            if (map[i] < 0)
                continue;
            CHECK(map[i] == n_kept++);
            CHECK(tree.nodes[map[i]].token == before[i].token);
            CHECK(tree.nodes[map[i]].score == before[i].score - before[root].score);
            if (i != root)
                CHECK(tree.nodes[map[i]].parent == map[before[i].parent]);
        }
        CHECK(tree.n_nodes == n_kept);
        check_best(&tree, 16);
    }
    dt_tree_deinit(&tree);
}

static void test_edges(void) {
    dt_tree tree;
    CHECK_OK(dt_tree_init(&tree, 4));
    CHECK(tree.n_nodes == 1);
    dt_tree_reset(&tree, 7);
    CHECK(dt_tree_add(&tree, 0, 1, __builtin_nanf("")) == 1);
    CHECK(dt_tree_add(&tree, 0, 2, 3.0f) == 2);
    CHECK(dt_tree_add(&tree, 1, 3, -__builtin_inff()) == 3);
    CHECK(dt_tree_add(&tree, 0, 4, 0.0f) == -1);
    CHECK(tree.nodes[1].score == -10000.0f && tree.nodes[2].score == 0.0f);
    CHECK(tree.nodes[3].score == -20000.0f);
    CHECK(dt_tree_child(&tree, 0, 2) == 2 && dt_tree_child(&tree, 0, 3) == -1 &&
          dt_tree_child(&tree, 1, 3) == 3);
    dt_tree_node best[4];
    CHECK(dt_tree_best(best, &tree, 2) == 2 && best[1].token == 2 && best[1].parent == 0);
    int32_t map[4];
    dt_tree_reroot(map, &tree, 1);
    CHECK(tree.n_nodes == 2 && tree.nodes[0].token == 1 && tree.nodes[1].score == -10000.0f);
    dt_tree_deinit(&tree);
    dt_tree_deinit(&tree);
}

int main(void) {
    test_rng rng = test_rng_open();
    test_random(&rng);
    test_edges();
    return test_end();
}
