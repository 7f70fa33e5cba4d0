/* The draft's side of the pipeline: sources of trees behind one table, and the link that runs a
 * source on a thread of its own.
 *
 *     draft thread == ring A: snapshots of its tree ==> verify thread (the session's caller)
 *                 <== ring B: committed tokens, cuts ==
 *
 * The threads share the two rings, a doorbell each and one status word. A snapshot names the prefix
 * that it was grown for by length and hash, and verify checks every node of it: a wrong tree costs
 * time, never text. Neither thread waits for room in a ring. */
#ifndef DT_SPEC_DRAFT_H
#define DT_SPEC_DRAFT_H

#include <pthread.h>
#include <stdatomic.h>

#include "models/forward.h"
#include "models/tree.h"
#include "src/base/ring.h"
#include "src/base/wait.h"
#include "src/dovetail.h"

/* ---- what travels ---------------------------------------------------------------------------- */

/* A slot of ring A. Plain data. */
typedef struct dt_snapshot {
    int64_t prefix_len;   /* tokens of the timeline it continues, the root included */
    uint64_t prefix_hash; /* of these tokens */
    int64_t draft_ns;     /* time the source spent on it since the last one */
    int32_t mode;         /* dt_plan_mode of a source that plans, else -1 */
    float plain_ms;       /* what such a source believes a plain step takes; 0: not known */
    int32_t n_nodes;      /* 1 .. DT_TREE_MAX */
    bool complete;        /* the source has nothing to add for now */
    dt_tree_node nodes[DT_TREE_MAX];
} dt_snapshot;

enum { DT_RECORD_CUT = -1 };

/* What verification has to say of the step that ended with a record. */
typedef struct dt_verdict {
    int32_t n_rows;           /* of the target's pass; 0: there was none, the tokens are a prompt */
    int64_t pass_ns, step_ns; /* the step without and with its waiting for the draft */
    int64_t n_left;           /* tokens of the answer still to come */
    int32_t n_tokens;         /* written by the step */
} dt_verdict;

/* A slot of ring B: `token` at `position`, or (token DT_RECORD_CUT) the timeline is cut back to its
 * first `position` tokens. `final`: nothing more follows for now, the draft may grow. */
typedef struct dt_record {
    int64_t position;
    int32_t token;
    bool final;
    dt_verdict verdict; /* of final records */
} dt_record;

/* Hash of the empty prefix, and of a prefix with one more token. */
enum { DT_HASH_EMPTY = 0x2545f491 };

static inline uint64_t dt_hash_next(uint64_t hash, int32_t token) {
    uint64_t z = (hash ^ (uint32_t)token) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93u;
    return z ^ (z >> 29);
}

/* ---- a source of trees ----------------------------------------------------------------------- */

typedef struct dt_draft dt_draft;

/* All but close run on the draft thread. A failure ends the draft, not the session. */
typedef struct dt_draft_ops {
    /* Committed tokens and cuts, in order. */
    dt_err (*observe)(dt_draft *draft, const dt_record *records, int n);
    /* One round of growth; *complete_out: the tree has all it can use. New records are looked for
     * between rounds. */
    dt_err (*grow)(bool *complete_out, dt_draft *draft);
    /* Writes n_nodes and nodes; the prefix is filled in already. */
    dt_err (*snapshot)(dt_draft *draft, dt_snapshot *out);
    void (*close)(dt_draft *draft);
    /* The target draws from another distribution from now on. NULL: no matter. */
    void (*set_sampling)(dt_draft *draft, const dt_sampling *sampling);
} dt_draft_ops;

struct dt_draft {
    const dt_draft_ops *ops;
    const char *name;   /* "model", "ngram", ... */
    const char *device; /* "cpu", "cuda" */
    /* Weighs its proposals itself: what it offers is worth verifying. */
    bool plans;
    /* Works on the cores that verify: grows to the end after a verdict, publishes once and sleeps.
     * Otherwise it publishes after every round and goes on growing. */
    bool serial;
    struct dt_trace_lane *trace; /* of the draft thread; NULL: nothing is kept */
    /* How long a call may take before its thread is taken for stuck in a driver; 0: for ever. */
    int64_t patience_ns;
};

static inline void dt_draft_close(dt_draft *draft) {
    if (draft)
        draft->ops->close(draft);
}

/* A causal language model as draft. `forward` stays the caller's and must outlive the source; its
 * KV cache should have room for n_ctx rows and some hundred of the tree. Only ids below n_allowed
 * are proposed. tree, depth and topk as in dt_session_options, none of them 0. The plan says what
 * is worth a forward and hears what came of it; it is the owner's, used on the draft thread. */
typedef struct dt_draft_model_options {
    int n_ctx, tree, depth, topk;
    int32_t n_allowed;
    int32_t n_low; /* propose ids below and those of the timeline only; 0: all */
    dt_sampling sampling;
    bool noise;          /* share the target's noise at temperature > 0 */
    int64_t patience_ns; /* where the forward runs on a GPU; 0: as designed */
    struct dt_plan *plan;
    int64_t (*now_ns)(void);
} dt_draft_model_options;

dt_err dt_draft_model_open(
    dt_draft **out, dt_forward *forward, const dt_draft_model_options *options);

/* A guess at what follows the timeline, as a tree with its root, for the next growth: where the
 * model has to run the root anyway, it runs the first tokens of the guess in the same forward. */
void dt_draft_model_hint(dt_draft *model, const dt_tree_node *nodes, int n_nodes);
/* Tokens of the timeline that the model has not read. */
int64_t dt_draft_model_behind(const dt_draft *model);

/* Continuations of earlier occurrences of the timeline's longest suffix. `plan` as above. */
dt_err dt_draft_ngram_open(
    dt_draft **out, int n_ctx, int tree, int depth, int topk, struct dt_plan *plan);

/* The source of a session: a draft model, n-grams or both, under a planner. */
typedef struct dt_draft_planned_options {
    dt_draft_model_options model; /* plan is filled in; now_ns NULL: the real clock */
    dt_forward *forward;          /* NULL: no draft model */
    bool ngram;
    bool rests;                          /* leave the draft out where it does not pay */
    bool shaped;                         /* the sizes come from the user: they are not weighed */
    const struct dt_plan_record *record; /* what is known of the pair, or NULL; copied */
} dt_draft_planned_options;

dt_err dt_draft_planned_open(dt_draft **out, const dt_draft_planned_options *options);
/* What it knows by now. Only while no thread uses the source: after dt_link_stop. */
const struct dt_plan *dt_draft_planned_plan(const dt_draft *draft);

/* ---- the link -------------------------------------------------------------------------------- */

typedef struct dt_link dt_link;

/* Starts the draft thread. Slots of the rings are rounded up to powers of two; 0: as many as the
 * design asks for. Takes ownership of the source on success. */
dt_err dt_link_open(
    dt_link **out, dt_draft *draft, int n_ctx, uint32_t n_snapshots, uint32_t n_records);
/* Ends the thread; the source stays, with what it knows. A thread that is stuck in a driver is left
 * to itself after two seconds, with all that it uses: false. NULL is fine. */
bool dt_link_stop(dt_link *link);
/* The same, and closes the source. False: the thread is stuck, and nothing was closed. */
bool dt_link_close(dt_link *link);

/* The rest is for the verify thread alone. */

/* The timeline was cut back to n tokens. Only noted; the next send tells the draft. */
void dt_link_cut(dt_link *link, int64_t n);

/* Goes with the final record of the next tokens that are sent. */
void dt_link_note(dt_link *link, const dt_verdict *verdict);

/* Sends what the draft does not have yet of tokens[0 .. n-1], as far as ring B has room; what does
 * not fit goes with the next call. */
void dt_link_send(dt_link *link, const int32_t *tokens, int64_t n);

/* The draft is to imitate another distribution; told with the next send that has room for it. */
void dt_link_set_sampling(dt_link *link, const dt_sampling *sampling);

/* Empties ring A; whether one fits, the newest, if any, in *out (else untouched). */
bool dt_link_take(dt_snapshot *out, dt_link *link, int64_t prefix_len, uint64_t prefix_hash);

/* The draft thread has ended, or is stuck; dt_link_message then says why. */
bool dt_link_dead(const dt_link *link);
const char *dt_link_message(const dt_link *link);

/* The draft thread sleeps for want of work. */
bool dt_link_idle(const dt_link *link);

/* Rung by the draft thread: a snapshot, its end, or room in ring B. */
dt_bell *dt_link_bell(dt_link *link);
const dt_draft *dt_link_draft(const dt_link *link);

#endif
