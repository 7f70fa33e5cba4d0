/* Prompt lookup: the timeline's longest suffix of 8 down to 2 tokens that occurred before, and what
 * followed it then. Cf. Saxena 2023 (prompt lookup decoding).
 *
 * For each length n there is a hash table of the last place where an n-gram ended, and each place
 * links to the one before it with the same hash; a cut of the timeline takes places out in reverse
 * order, so the tables need no search. Hash collisions are told apart by comparing tokens. */
#include <string.h>

#include "src/base/fmath.h"
#include "src/base/mem.h"
#include "src/spec/draft.h"
#include "src/spec/plan.h"

enum {
    NGRAM_MIN = 2,
    NGRAM_MAX = 8,
    N_LENGTHS = NGRAM_MAX - NGRAM_MIN + 1,
    N_PLACES = 16,  /* occurrences looked at for one length */
    MATCH_MAX = 32, /* tokens of a match that are counted */
    N_TREE = 256,
};

/* A continuation is followed while it is believed with more than this: log 0.1. */
static const float SCORE_MIN = -2.302585f;

typedef struct ngram {
    dt_draft base;
    int n_ctx, n_best, depth, topk;
    uint32_t mask;
    int32_t *tokens; /* [n_ctx] */
    int64_t n_tokens;
    int32_t *head[N_LENGTHS]; /* [mask + 1]: 1 + the latest place, 0 for none */
    int32_t *back[N_LENGTHS]; /* [n_ctx]: 1 + the place before with the same hash */
    dt_plan *plan;            /* what is believed of matches by their length; not owned */
    int32_t kind[N_TREE];     /* of a node as a proposal; -1: an alternative, not judged */
    int walked;               /* the node that the timeline has come to; -1: none */
    dt_tree tree;
} ngram;

static uint32_t ngram_hash(const ngram *self, int64_t end, int n) {
    uint64_t hash = DT_HASH_EMPTY;
    for (int64_t i = end - n + 1; i <= end; i++)
        hash = dt_hash_next(hash, self->tokens[i]);
    return (uint32_t)hash & self->mask;
}

static void append(ngram *self, int32_t token) {
    int64_t end = self->n_tokens++;
    self->tokens[end] = token;
    for (int n = NGRAM_MIN; n <= NGRAM_MAX && n <= end + 1; n++) {
        int32_t *head = &self->head[n - NGRAM_MIN][ngram_hash(self, end, n)];
        self->back[n - NGRAM_MIN][end] = *head;
        *head = (int32_t)end + 1;
    }
}

static void cut(ngram *self, int64_t n_tokens) {
    while (self->n_tokens > n_tokens) {
        int64_t end = self->n_tokens - 1;
        for (int n = NGRAM_MIN; n <= NGRAM_MAX && n <= end + 1; n++)
            self->head[n - NGRAM_MIN][ngram_hash(self, end, n)] = self->back[n - NGRAM_MIN][end];
        self->n_tokens--;
    }
}

/* Whether the first proposal after the node walked to was right. */
static void learn(ngram *self, int32_t token) {
    const dt_tree *tree = &self->tree;
    int first = self->walked + 1;
    while (first < tree->n_nodes && tree->nodes[first].parent != self->walked)
        first++;
    if (first < tree->n_nodes && self->kind[first] >= 0)
        dt_plan_learn(self->plan, self->kind[first], tree->nodes[first].token == token);
    self->walked = dt_tree_child(tree, self->walked, token);
}

static dt_err observe(dt_draft *draft, const dt_record *records, int n) {
    ngram *self = (ngram *)draft;
    for (int i = 0; i < n; i++) {
        if (records[i].token == DT_RECORD_CUT) {
            cut(self, records[i].position);
            self->walked = -1;
            continue;
        }
        if (self->n_tokens == self->n_ctx)
            DT_FAIL(DT_ERR_LIMIT, "ngram draft: more than %d tokens", self->n_ctx);
        if (self->walked >= 0)
            learn(self, records[i].token);
        append(self, records[i].token);
    }
    return DT_OK;
}

static bool same(const ngram *self, int64_t a, int64_t b, int n) {
    return memcmp(self->tokens + a - n + 1, self->tokens + b - n + 1,
               (size_t)n * sizeof *self->tokens) == 0;
}

/* Tokens in which the text before and at `place` is that before and at the end. */
static int match_length(const ngram *self, int64_t place, int64_t end, int n) {
    while (n < MATCH_MAX && n <= place && self->tokens[place - n] == self->tokens[end - n])
        n++;
    return n;
}

/* Adds what followed `place`, up to which n tokens match, below the root; alternatives to a branch
 * that is there are believed as far as that branch leaves room. */
static void follow(ngram *self, int64_t place, int n) {
    dt_tree *tree = &self->tree;
    int node = 0;
    int depth = 0;
    for (int64_t at = place + 1; at < self->n_tokens && depth < self->depth; at++, depth++) {
        int child = dt_tree_child(tree, node, self->tokens[at]);
        if (child < 0) {
            int kind = dt_plan_kind_match(n + depth);
            float belief = dt_exp_f32(dt_plan_belief(self->plan, kind));
            float left = 1.0f;
            int n_siblings = 0;
            for (int i = node + 1; i < tree->n_nodes; i++) {
                if (tree->nodes[i].parent == node) {
                    left *= 1.0f - belief;
                    n_siblings++;
                }
            }
            if (n_siblings == self->topk)
                return;
            float log_p = (float)dt_log_f64((double)(belief * left));
            if (tree->nodes[node].score + log_p < SCORE_MIN)
                return;
            child = dt_tree_add(tree, node, self->tokens[at], log_p);
            if (child < 0)
                return;
            self->kind[child] = n_siblings == 0 ? kind : -1;
        }
        node = child;
    }
}

static dt_err grow(bool *complete_out, dt_draft *draft) {
    ngram *self = (ngram *)draft;
    *complete_out = true;
    int64_t end = self->n_tokens - 1;
    dt_tree_reset(&self->tree, end >= 0 ? self->tokens[end] : 0);
    self->walked = 0;
    for (int n = NGRAM_MAX; n >= NGRAM_MIN; n--) {
        if (n > end + 1)
            continue;
        int i_length = n - NGRAM_MIN;
        /* The longest matches first; the latest among equals. */
        int64_t places[N_PLACES];
        int lengths[N_PLACES];
        int n_places = 0;
        int64_t place = self->back[i_length][end] - 1;
        for (int i = 0; i < N_PLACES && place >= 0; i++) {
            if (same(self, place, end, n)) {
                int length = match_length(self, place, end, n);
                int at = n_places++;
                for (; at > 0 && lengths[at - 1] < length; at--) {
                    lengths[at] = lengths[at - 1];
                    places[at] = places[at - 1];
                }
                lengths[at] = length;
                places[at] = place;
            }
            place = self->back[i_length][place] - 1;
        }
        for (int i = 0; i < n_places; i++)
            follow(self, places[i], lengths[i]);
        if (n_places > 0)
            return DT_OK;
    }
    return DT_OK;
}

static dt_err snapshot(dt_draft *draft, dt_snapshot *out) {
    ngram *self = (ngram *)draft;
    out->n_nodes = dt_tree_best(out->nodes, &self->tree, self->n_best);
    return DT_OK;
}

static void close_ngram(dt_draft *draft) {
    ngram *self = (ngram *)draft;
    for (int i = 0; i < N_LENGTHS; i++) {
        dt_mem_free(self->head[i]);
        dt_mem_free(self->back[i]);
    }
    dt_tree_deinit(&self->tree);
    dt_mem_free(self->tokens);
    dt_mem_free(self);
}

static const dt_draft_ops ngram_ops = {observe, grow, snapshot, close_ngram};

static dt_err take_memory(ngram *self) {
    size_t n = (size_t)self->n_ctx;
    size_t n_heads = 64;
    while (n_heads < 2 * n)
        n_heads *= 2;
    self->mask = (uint32_t)n_heads - 1;
    DT_TRY(dt_mem_alloc(&self->tokens, n * sizeof *self->tokens));
    for (int i = 0; i < N_LENGTHS; i++) {
        DT_TRY(dt_mem_alloc(&self->head[i], n_heads * sizeof *self->head[i]));
        DT_TRY(dt_mem_alloc(&self->back[i], n * sizeof *self->back[i]));
    }
    return dt_tree_init(&self->tree, N_TREE);
}

dt_err dt_draft_ngram_open(
    dt_draft **out, int n_ctx, int tree, int depth, int topk, dt_plan *plan) {
    *out = NULL;
    ngram *self = NULL;
    DT_TRY(dt_mem_alloc(&self, sizeof *self));
    self->base = (dt_draft){.ops = &ngram_ops, .name = "ngram", .device = "cpu", .serial = true};
    self->n_ctx = n_ctx;
    self->n_best = tree;
    self->depth = depth;
    self->topk = topk;
    self->walked = -1;
    self->plan = plan;
    dt_err err = take_memory(self);
    if (err != DT_OK) {
        close_ngram(&self->base);
        return err;
    }
    *out = &self->base;
    return DT_OK;
}
