/* Which proposals are worth their time. The planner knows what a pass of the target costs by its
 * rows and a forward of the draft by its own, what became of earlier proposals, and from both the
 * price of time: the tokens that the session writes in a nanosecond. Whatever yields less than its
 * time costs at that price is left out: a row of a tree, a forward of the draft, the draft model
 * for a step, and, where plain decoding measures faster, drafting for a while.
 *
 * It decides what is proposed, never what is written, so the text does not depend on it. Plain data
 * and arithmetic: no clock, no threads, no memory of its own. Times are in nanoseconds and measured
 * by the caller. Owned by a draft source, used on the draft thread. */
#ifndef DT_SPEC_PLAN_H
#define DT_SPEC_PLAN_H

#include "models/tree.h"
#include "src/dovetail.h"

/* ---- beliefs: how often a proposal of some kind was right -------------------------------------
 */

/* A proposal's kind: what the n-gram said of its place, crossed with the draft's own probability;
 * or, for proposals of the n-gram itself, how long the match was. */
enum {
    DT_BELIEF_BUCKETS = 12,              /* of the draft's log-probability */
    DT_BELIEF_ALONE = 0,                 /* the n-gram said nothing; the draft's best */
    DT_BELIEF_OTHER = DT_BELIEF_BUCKETS, /* nor here; not the draft's best */
    DT_BELIEF_AGREED = 2 * DT_BELIEF_BUCKETS,
    DT_BELIEF_OPPOSED = 3 * DT_BELIEF_BUCKETS,
    DT_BELIEF_FOREIGN = 4 * DT_BELIEF_BUCKETS, /* the n-gram's, not among the draft's best */
    DT_BELIEF_MATCH,                           /* of the n-gram, by length of the match */
    DT_BELIEF_LENGTHS = 10,
    DT_N_BELIEFS = DT_BELIEF_MATCH + DT_BELIEF_LENGTHS,
};

typedef struct dt_belief {
    float hits, trials; /* decayed counts */
} dt_belief;

/* ---- what is remembered of a pair of models between sessions ----------------------------------
 */

enum { DT_PLAN_STATES = 4 }; /* what the n-gram offers: nothing, little, something, much */

/* What the draft model did for steps that began in one state. */
typedef struct dt_plan_value {
    double n;       /* steps, decayed */
    double tokens;  /* accepted a step */
    double cost_ns; /* time a step took beyond a plain one */
} dt_plan_value;

typedef struct dt_plan_record {
    double pass_ns[DT_TREE_MAX + 1];  /* [rows] a step of the target; 0: not known */
    double draft_ns[DT_TREE_MAX + 1]; /* [rows] a forward of the draft; 0: not known */
    dt_belief beliefs[DT_N_BELIEFS];
    dt_plan_value values[DT_PLAN_STATES];
    double try_at;          /* steps after which a draft model that does not pay is tried again */
    double tokens, time_ns; /* of the latest steps of all answers, decayed */
    double n_tokens;        /* written under the planner's eyes, ever */
} dt_plan_record;

/* ---- the planner ------------------------------------------------------------------------------
 */

typedef enum dt_plan_mode {
    DT_PLAN_REST,  /* the root alone: drafting measured slower than plain decoding */
    DT_PLAN_PLAIN, /* the root alone: nothing to propose is worth a row */
    DT_PLAN_NGRAM, /* what the n-gram proposes, for free */
    DT_PLAN_MODEL, /* the draft model is run */
} dt_plan_mode;

typedef struct dt_plan {
    /* Settings. */
    bool rests;  /* may leave proposals out; false: everything that can be proposed is */
    bool shaped; /* the tree's sizes are given: rows and forwards are not weighed */
    bool has_ngram, has_model;
    bool apart; /* the draft has a device of its own: it may read the prompt at once */
    dt_plan_record record;

    /* Running means. */
    double tokens, time_ns;           /* of the latest steps, decayed: the price of time */
    double best_child;                /* belief in the best child of an expanded node */
    double try_state[DT_PLAN_STATES]; /* as record.try_at, of one state where others pay */
    int n_skipped[DT_PLAN_STATES];    /* steps that went without the model */
    int n_since_model, n_since_merit, n_since_plain; /* steps */
    /* Drafting against plain decoding. */
    int64_t window_ns, window_tokens;
    int window_steps;
    int64_t rest_left, rest_next; /* tokens */

    /* The present step. */
    dt_plan_mode mode;
    int state;
    int n_steps; /* of this answer */
    bool fresh;  /* its time holds the reading of a prompt */
} dt_plan;

/* `record` may be NULL: nothing is known. */
void dt_plan_init(dt_plan *plan, const dt_plan_record *record);

/* An answer starts: the time of its first step is not counted. */
void dt_plan_start(dt_plan *plan);

/* A step begins. `ngram` is the n-gram's tree, root included (n_ngram <= 1: nothing); n_behind the
 * tokens that the draft model has not read, n_left those of the answer still to come. */
dt_plan_mode dt_plan_choose(
    dt_plan *plan, const dt_tree_node *ngram, int n_ngram, int64_t n_behind, int64_t n_left);

/* Whether a forward of the draft over n nodes with these scores (logarithms of the belief that each
 * is reached) at this depth is worth its time. */
bool dt_plan_expands(const dt_plan *plan, const float *scores, int n, int depth);

/* Keeps the nodes of a tree that are worth a row, at most n_max; returns how many. Scores are
 * logarithms of beliefs; no child scores above its parent. */
int dt_plan_trim(const dt_plan *plan, dt_tree_node *nodes, int n, int n_max);

/* The kind of a proposal of the draft model that it gives this log-probability; `opinion` is one of
 * DT_BELIEF_ALONE, _OTHER, _AGREED, _OPPOSED. */
int dt_plan_kind(float log_p, int opinion);
/* The kind of a proposal of the n-gram behind a match of n tokens. */
int dt_plan_kind_match(int n);
/* The logarithm of the belief that a proposal of this kind is right. */
float dt_plan_belief(const dt_plan *plan, int kind);
/* What became of one. */
void dt_plan_learn(dt_plan *plan, int kind, bool right);

/* A forward of the draft over n rows took this long. */
void dt_plan_drafted(dt_plan *plan, int n_rows, int64_t ns);
/* A node was expanded, and its best child is believed with e^score. */
void dt_plan_expanded(dt_plan *plan, float score);

/* The step ended: the pass over n_rows took pass_ns, all of it step_ns, and it gave n_tokens. */
void dt_plan_verdict(dt_plan *plan, int n_rows, int64_t pass_ns, int64_t step_ns, int64_t n_tokens);

/* What a step over n rows of the target, or a forward of the draft, is expected to take; 0 while
 * nothing is known. */
double dt_plan_pass_ns(const dt_plan *plan, int n_rows);
double dt_plan_draft_ns(const dt_plan *plan, int n_rows);

#endif
