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

enum {
    NGRAM_MIN = 2,
    NGRAM_MAX = 8,
    N_LENGTHS = NGRAM_MAX - NGRAM_MIN + 1,
    N_PLACES = 16, /* occurrences looked at for one length */
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
    /* Belief that a continuation found by a match of this length is right, learnt from verdicts. */
    float belief[N_LENGTHS];
    int i_length;  /* of the present tree; -1: none */
    int32_t guess; /* its first token */
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

static dt_err observe(dt_draft *draft, const dt_record *records, int n) {
    ngram *self = (ngram *)draft;
    for (int i = 0; i < n; i++) {
        if (records[i].token == DT_RECORD_CUT) {
            cut(self, records[i].position);
        } else {
            if (self->n_tokens == self->n_ctx)
                DT_FAIL(DT_ERR_LIMIT, "ngram draft: more than %d tokens", self->n_ctx);
            if (self->i_length >= 0) {
                float hit = records[i].token == self->guess ? 1.0f : 0.0f;
                float *belief = &self->belief[self->i_length];
                *belief += (hit - *belief) * 0.125f;
                *belief = DT_MIN(DT_MAX(*belief, 0.05f), 0.98f);
            }
            append(self, records[i].token);
        }
        self->i_length = -1;
    }
    return DT_OK;
}

static bool same(const ngram *self, int64_t a, int64_t b, int n) {
    return memcmp(self->tokens + a - n + 1, self->tokens + b - n + 1,
               (size_t)n * sizeof *self->tokens) == 0;
}

/* Adds what followed `place` below the root; alternatives to a branch that is there are believed
 * as far as that branch leaves room. */
static void follow(ngram *self, int64_t place, float belief) {
    dt_tree *tree = &self->tree;
    int node = 0;
    int depth = 0;
    for (int64_t at = place + 1; at < self->n_tokens && depth < self->depth; at++, depth++) {
        int child = dt_tree_child(tree, node, self->tokens[at]);
        if (child < 0) {
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
        }
        node = child;
    }
}

static dt_err grow(bool *complete_out, dt_draft *draft) {
    ngram *self = (ngram *)draft;
    *complete_out = true;
    self->i_length = -1;
    int64_t end = self->n_tokens - 1;
    dt_tree_reset(&self->tree, end >= 0 ? self->tokens[end] : 0);
    for (int n = NGRAM_MAX; n >= NGRAM_MIN; n--) {
        if (n > end + 1)
            continue;
        int i_length = n - NGRAM_MIN;
        int64_t place = self->back[i_length][end] - 1;
        for (int i = 0; i < N_PLACES && place >= 0; i++) {
            if (same(self, place, end, n)) {
                follow(self, place, self->belief[i_length]);
                if (self->i_length < 0) {
                    self->i_length = i_length;
                    self->guess = self->tokens[place + 1];
                }
            }
            place = self->back[i_length][place] - 1;
        }
        if (self->i_length >= 0)
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
        self->belief[i] = 0.4f + 0.08f * (float)i;
    }
    return dt_tree_init(&self->tree, N_TREE);
}

dt_err dt_draft_ngram_open(dt_draft **out, int n_ctx, int tree, int depth, int topk) {
    *out = NULL;
    ngram *self = NULL;
    DT_TRY(dt_mem_alloc(&self, sizeof *self));
    self->base = (dt_draft){&ngram_ops, "ngram", "cpu", true};
    self->n_ctx = n_ctx;
    self->n_best = tree;
    self->depth = depth;
    self->topk = topk;
    self->i_length = -1;
    dt_err err = take_memory(self);
    if (err != DT_OK) {
        close_ngram(&self->base);
        return err;
    }
    *out = &self->base;
    return DT_OK;
}
