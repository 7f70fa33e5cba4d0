/* A causal language model as draft: it grows a tree of its own likeliest continuations
 * (ALGORITHM "a dynamic tree"), and keeps the KV rows of what was accepted.
 *
 * Committed rows of the KV cache hold the timeline up to the root and including it; speculative
 * rows hold the tree's expanded nodes. A verdict walks down the tree: rows on its way are
 * committed, the subtree below the bonus token stays with its rows, all else is forgotten. Tokens
 * that have no row yet are the catch-up, run as a chain. */
#include <string.h>

#include "src/base/mem.h"
#include "src/spec/draft.h"
#include "src/spec/patient.h"
#include "src/spec/plan.h"

enum {
    N_TREE = 1024,
    HINT_MAX = 8,
    /* Rows of a forward come in steps of the kernels: a few more cost next to nothing. */
    ROW_STEP = 4,
};

/* The logarithm of 0.03: a node less likely takes no row of a forward that is run for others. */
static const float RIDE_FLOOR = -3.5f;

typedef struct model_draft {
    dt_draft base;
    dt_forward *forward; /* not owned */
    dt_draft_model_options options;
    dt_topk_args args;
    int32_t *tokens; /* [n_ctx], the timeline */
    int64_t n_tokens;
    dt_tree tree;
    int32_t *row;       /* [N_TREE]: KV row of a node; -1: not expanded */
    int32_t *kind;      /* [N_TREE]: of a node as a proposal, for the plan */
    int32_t *map;       /* [N_TREE] of a re-rooting */
    int32_t *path;      /* [N_TREE]: rows of the nodes walked since the last settling */
    int32_t *rest;      /* [N_TREE]: rows below the new root */
    int32_t *rest_node; /* [N_TREE] */
    int n_path;
    bool planted; /* the tree grows from an expanded root; its row is the last committed one */
    bool moved;   /* tokens came since */
    int walked;   /* the node that the timeline has come to; -1: it left the tree */
    int32_t hint[HINT_MAX]; /* a guess at the tokens that follow */
    int n_hint;
} model_draft;

/* ---- verdicts ---- */

static void uproot(model_draft *self) {
    self->planted = false;
    self->moved = false;
    self->n_path = 0;
}

static void cut(model_draft *self, int64_t n_tokens) {
    dt_rows *rows = &self->forward->rows;
    /* The new last token is run again, since its logits are needed. */
    int64_t n_rows = DT_MAX(n_tokens - 1, 0);
    dt_forward_truncate(self->forward, (int)DT_MIN(n_rows, rows->n_committed));
    self->n_tokens = n_tokens;
    uproot(self);
}

/* The proposals after the node walked to were right or wrong. */
static void learn(model_draft *self, int32_t token) {
    const dt_tree *tree = &self->tree;
    for (int i = self->walked + 1; i < tree->n_nodes; i++) {
        if (tree->nodes[i].parent == self->walked)
            dt_plan_learn(self->options.plan, self->kind[i], tree->nodes[i].token == token);
    }
}

static dt_err observe(dt_draft *draft, const dt_record *records, int n) {
    model_draft *self = (model_draft *)draft;
    self->n_hint = 0;
    for (int i = 0; i < n; i++) {
        int32_t token = records[i].token;
        if (token == DT_RECORD_CUT) {
            cut(self, records[i].position);
            continue;
        }
        if (self->n_tokens == self->options.n_ctx)
            DT_FAIL(DT_ERR_LIMIT, "model draft: more than %d tokens", self->options.n_ctx);
        self->tokens[self->n_tokens++] = token;
        if (self->options.n_low > 0)
            DT_TRY(dt_forward_admit(self->forward, self->options.n_low, &token, 1));
        if (!self->planted)
            continue;
        self->moved = true;
        if (self->walked >= 0 && self->row[self->walked] >= 0) {
            learn(self, token);
            self->walked = dt_tree_child(&self->tree, self->walked, token);
        } else {
            self->walked = -1;
        }
        if (self->walked >= 0 && self->row[self->walked] >= 0)
            self->path[self->n_path++] = self->row[self->walked];
    }
    return DT_OK;
}

/* Expanded descendants of the node walked to, by ascending row. */
static int gather_rest(model_draft *self) {
    const dt_tree *tree = &self->tree;
    int n = 0;
    for (int i = 0; i < tree->n_nodes; i++) {
        int parent = tree->nodes[i].parent;
        bool below = i > self->walked && (parent == self->walked || self->map[parent] > 0);
        self->map[i] = below;
        if (!below || self->row[i] < 0)
            continue;
        int at = n++;
        for (; at > 0 && self->rest[at - 1] > self->row[i]; at--) {
            self->rest[at] = self->rest[at - 1];
            self->rest_node[at] = self->rest_node[at - 1];
        }
        self->rest[at] = self->row[i];
        self->rest_node[at] = i;
    }
    return n;
}

/* Applies the tokens that came to the KV cache and the tree. */
static dt_err settle(model_draft *self) {
    dt_forward *forward = self->forward;
    bool stays = self->walked >= 0 && self->row[self->walked] >= 0;
    int n_path = self->n_path;
    self->moved = false;
    self->n_path = 0;
    if (!stays) {
        /* Rows on the way are right whatever came after them. */
        self->planted = false;
        return dt_forward_keep(forward, self->path, n_path, NULL, 0);
    }
    int n_rest = gather_rest(self);
    DT_TRY(dt_forward_keep(forward, self->path, n_path, self->rest, n_rest));
    for (int i = 0; i < n_rest; i++)
        self->row[self->rest_node[i]] = forward->rows.n_committed + i;
    int n_old = self->tree.n_nodes;
    dt_tree_reroot(self->map, &self->tree, self->walked);
    /* New ids never exceed old ones, so this goes in place. */
    for (int i = 0; i < n_old; i++) {
        if (self->map[i] < 0)
            continue;
        self->row[self->map[i]] = self->row[i];
        self->kind[self->map[i]] = self->kind[i];
    }
    self->row[0] = dt_rows_last(&forward->rows);
    self->walked = 0;
    return DT_OK;
}

/* ---- growth ---- */

static int add(model_draft *self, int parent, int32_t token, int kind) {
    int child = dt_tree_add(&self->tree, parent, token, dt_plan_belief(self->options.plan, kind));
    if (child >= 0) {
        self->row[child] = -1;
        self->kind[child] = kind;
    }
    return child;
}

/* Gives a node the best children of row i_row of the latest eval; `hinted` is the guess at the
 * token there, -1 for none. */
static dt_err expand(model_draft *self, int node, int i_row, int32_t hinted) {
    dt_topk best;
    self->args.position = self->n_tokens + self->tree.depth[node];
    DT_TRY(dt_forward_topk(self->forward, &best, i_row, &self->args));
    float top = -__builtin_inff();
    for (int i = 0; i < best.n; i++) {
        int opinion = hinted >= 0 ? best.tokens[i] == hinted ? DT_BELIEF_AGREED : DT_BELIEF_OPPOSED
                      : i == 0    ? DT_BELIEF_ALONE
                                  : DT_BELIEF_OTHER;
        int kind = dt_plan_kind(best.scores[i], opinion);
        if (add(self, node, best.tokens[i], kind) < 0)
            break;
        top = DT_MAX(top, dt_plan_belief(self->options.plan, kind));
    }
    dt_plan_expanded(self->options.plan, top);
    return DT_OK;
}

/* Plants the tree: the root's logits are those of row i_root of the latest eval, and the guess's
 * rows follow it there and, from `row0` on, in the cache. */
static dt_err plant(model_draft *self, int i_root, int32_t row0, int n_hint) {
    dt_tree_reset(&self->tree, self->tokens[self->n_tokens - 1]);
    self->row[0] = dt_rows_last(&self->forward->rows);
    self->planted = true;
    self->walked = 0;
    int node = 0;
    for (int i = 0;; i++) {
        DT_TRY(expand(self, node, i_root + i, i < self->n_hint ? self->hint[i] : -1));
        if (i == n_hint)
            return DT_OK;
        int child = dt_tree_child(&self->tree, node, self->hint[i]);
        if (child < 0)
            child = add(self, node, self->hint[i], DT_BELIEF_FOREIGN);
        if (child < 0)
            return DT_OK;
        self->row[child] = row0 + i;
        node = child;
    }
}

static dt_err timed_eval(model_draft *self, const dt_batch *batch) {
    int64_t start = self->options.now_ns();
    DT_TRY(dt_forward_eval(self->forward, batch));
    dt_plan_drafted(self->options.plan, batch->n_rows, self->options.now_ns() - start);
    return DT_OK;
}

/* Runs a batch of the timeline's tokens that have no row; after the last, and with the guess in the
 * same batch, plants the tree. */
static dt_err catch_up(model_draft *self) {
    dt_forward *forward = self->forward;
    dt_forward_truncate(forward, forward->rows.n_committed);
    int first = forward->rows.n_committed;
    int n = DT_MIN((int)self->n_tokens - first, DT_BATCH_MAX);
    if (n <= 0)
        DT_FAIL(DT_ERR_INTERNAL, "model draft: %d rows for %lld tokens", first,
            (long long)self->n_tokens);
    bool last = first + n == self->n_tokens;
    int n_hint = 0;
    if (last) {
        n_hint = DT_MIN(self->n_hint, (int)dt_round_up((size_t)n + 1, ROW_STEP) - n);
        n_hint = DT_MIN(n_hint, DT_BATCH_MAX - n);
        n_hint = DT_MIN(n_hint, forward->rows.n_max - first - n);
    }
    int32_t tokens[DT_BATCH_MAX], parents[DT_BATCH_MAX], rows[DT_BATCH_MAX];
    bool wants[DT_BATCH_MAX];
    for (int i = 0; i < n + n_hint; i++) {
        tokens[i] = i < n ? self->tokens[first + i] : self->hint[i - n];
        parents[i] = i == 0 ? dt_rows_last(&forward->rows) : DT_PARENT(i - 1);
        wants[i] = last && i >= n - 1;
        rows[i] = first + i;
    }
    DT_TRY(timed_eval(self, &(dt_batch){n + n_hint, tokens, parents, wants}));
    DT_TRY(dt_forward_keep(forward, rows, n, rows + n, n_hint));
    return last ? plant(self, n - 1, first + n, n_hint) : DT_OK;
}

/* The best nodes that may still add to the tree, at most topk, into out; returns how many. */
static int frontier(int32_t *out, model_draft *self, int depth_max) {
    const dt_tree *tree = &self->tree;
    float limit = dt_tree_threshold(&self->tree, self->options.tree);
    int n_max = DT_MIN(self->options.topk, self->forward->rows.n_max - self->forward->rows.n_used);
    n_max = DT_MIN(n_max, (tree->n_max - tree->n_nodes) / self->options.topk);
    int n = 0;
    for (int i = 1; i < tree->n_nodes && n_max > 0; i++) {
        float score = tree->nodes[i].score;
        if (self->row[i] >= 0 || tree->depth[i] >= depth_max || !(score > limit))
            continue;
        if (n == n_max && !(score > tree->nodes[out[n - 1]].score))
            continue;
        int at = n < n_max ? n++ : n - 1;
        for (; at > 0 && score > tree->nodes[out[at - 1]].score; at--)
            out[at] = out[at - 1];
        out[at] = i;
    }
    return n;
}

static dt_err grow(bool *complete_out, dt_draft *draft) {
    model_draft *self = (model_draft *)draft;
    dt_forward *forward = self->forward;
    if (self->moved)
        DT_TRY(settle(self));
    /* Tokens beyond a full context are never asked for. */
    int depth_max = (int)DT_MIN(self->options.n_ctx - self->n_tokens, self->options.depth);
    *complete_out = depth_max <= 0;
    if (*complete_out)
        return DT_OK;
    if (!self->planted)
        return catch_up(self);

    int32_t nodes[DT_TOPK_MAX], tokens[DT_TOPK_MAX], parents[DT_TOPK_MAX];
    float scores[DT_TOPK_MAX];
    int n = frontier(nodes, self, depth_max);
    for (int i = 0; i < n; i++)
        scores[i] = self->tree.nodes[nodes[i]].score;
    while (n > 1 && scores[n - 1] < RIDE_FLOOR)
        n--;
    *complete_out =
        n == 0 || !dt_plan_expands(self->options.plan, scores, n, self->tree.depth[nodes[0]]);
    if (*complete_out)
        return DT_OK;
    int row0 = forward->rows.n_used;
    for (int i = 0; i < n; i++) {
        const dt_tree_node *node = &self->tree.nodes[nodes[i]];
        tokens[i] = node->token;
        parents[i] = self->row[node->parent];
    }
    DT_TRY(timed_eval(self, &(dt_batch){n, tokens, parents, NULL}));
    for (int i = 0; i < n; i++) {
        self->row[nodes[i]] = row0 + i;
        DT_TRY(expand(self, nodes[i], i, -1));
    }
    return DT_OK;
}

static dt_err snapshot(dt_draft *draft, dt_snapshot *out) {
    model_draft *self = (model_draft *)draft;
    if (self->planted && !self->moved) {
        out->n_nodes = dt_tree_best(out->nodes, &self->tree, self->options.tree);
        return DT_OK;
    }
    out->nodes[0] = (dt_tree_node){.parent = -1};
    out->n_nodes = 1;
    return DT_OK;
}

static void take_sampling(model_draft *self, const dt_sampling *sampling) {
    self->args.temperature = sampling->temperature;
    self->args.seed = sampling->seed;
    self->args.top_k = sampling->top_k;
    self->args.top_p = sampling->top_p;
    self->args.min_p = sampling->min_p;
}

/* What has grown was grown for another distribution: the root is run again. */
static void set_sampling(dt_draft *draft, const dt_sampling *sampling) {
    model_draft *self = (model_draft *)draft;
    take_sampling(self, sampling);
    cut(self, self->n_tokens);
}

void dt_draft_model_hint(dt_draft *draft, const dt_tree_node *nodes, int n_nodes) {
    model_draft *self = (model_draft *)draft;
    int32_t n_vocab = self->forward->model->config.n_vocab;
    int node = 0;
    self->n_hint = 0;
    for (int i = 1; i < n_nodes && self->n_hint < HINT_MAX; i++) {
        /* The first child of a node is its best. */
        if (nodes[i].parent != node || nodes[i].token >= n_vocab)
            continue;
        self->hint[self->n_hint++] = nodes[i].token;
        node = i;
    }
}

int64_t dt_draft_model_behind(const dt_draft *draft) {
    const model_draft *self = (const model_draft *)draft;
    if (self->planted && self->walked >= 0 && self->row[self->walked] >= 0)
        return 0;
    return self->n_tokens - self->forward->rows.n_committed - self->n_path;
}

static void close_model(dt_draft *draft) {
    model_draft *self = (model_draft *)draft;
    self->forward->topk_hint = NULL;
    dt_tree_deinit(&self->tree);
    dt_mem_free(self->tokens);
    dt_mem_free(self->row);
    dt_mem_free(self->kind);
    dt_mem_free(self->map);
    dt_mem_free(self->path);
    dt_mem_free(self->rest);
    dt_mem_free(self->rest_node);
    dt_mem_free(self);
}

static const dt_draft_ops model_ops = {observe, grow, snapshot, close_model, set_sampling};

static dt_err take_memory(model_draft *self) {
    size_t n = N_TREE * sizeof(int32_t);
    DT_TRY(dt_mem_alloc(&self->tokens, (size_t)self->options.n_ctx * sizeof *self->tokens));
    DT_TRY(dt_mem_alloc(&self->row, n));
    DT_TRY(dt_mem_alloc(&self->kind, n));
    DT_TRY(dt_mem_alloc(&self->map, n));
    DT_TRY(dt_mem_alloc(&self->path, n));
    DT_TRY(dt_mem_alloc(&self->rest, n));
    DT_TRY(dt_mem_alloc(&self->rest_node, n));
    return dt_tree_init(&self->tree, N_TREE);
}

dt_err dt_draft_model_open(
    dt_draft **out, dt_forward *forward, const dt_draft_model_options *options) {
    *out = NULL;
    model_draft *self = NULL;
    DT_TRY(dt_mem_alloc(&self, sizeof *self));
    int64_t patience_ns = options->patience_ns ? options->patience_ns : DT_PATIENCE_NS;
    self->base = (dt_draft){.ops = &model_ops,
        .name = "model",
        .device = forward->device,
        .serial = !forward->apart,
        .patience_ns = forward->apart ? patience_ns : 0};
    self->forward = forward;
    self->options = *options;
    self->args = (dt_topk_args){
        .k = options->topk,
        .n_allowed = options->n_allowed,
        .noise = options->noise,
        .tau = 1.0f,
    };
    take_sampling(self, &options->sampling);
    dt_err err = take_memory(self);
    if (err == DT_OK && options->n_low > 0)
        err = dt_forward_admit(forward, options->n_low, NULL, 0);
    if (err != DT_OK) {
        close_model(&self->base);
        return err;
    }
    forward->topk_hint = &self->args;
    *out = &self->base;
    return DT_OK;
}
