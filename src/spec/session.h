/* A session's inside, for the files that make it up and for tests that drive it with forwards of
 * their own. */
#ifndef DT_SPEC_SESSION_H
#define DT_SPEC_SESSION_H

#include <stdatomic.h>

#include "models/forward.h"
#include "src/spec/accept.h"
#include "src/spec/answer.h"
#include "src/spec/draft.h"
#include "src/spec/guard.h"
#include "src/spec/sampler.h"
#include "src/spec/trace.h"

enum { DT_CONTEXT_MAX = 1 << 24 }; /* tokens */

/* Where a session has the text of tokens from: a vocabulary, or a test. */
typedef struct dt_speech {
    const void *arg;
    /* The token's bytes; at most n_max are written. NULL: tokens show nothing. */
    size_t (*decode)(const void *arg, char *out, size_t n_max, int32_t token);
    bool (*ends)(const void *arg, int32_t token); /* NULL: none does */
    size_t n_bytes_max;                           /* of one token */
} dt_speech;

typedef struct dt_session_parts {
    dt_forward *target; /* room for n_ctx + DT_TREE_MAX rows */
    dt_forward *draft;  /* NULL without one */
    int32_t n_common;   /* ids below may be proposed by the draft model */
    int32_t n_low;      /* it proposes ids below and those of the text only; 0: all */
    dt_speech speech;
    /* Set when a thread of the session had to be left to itself; may be NULL. */
    atomic_bool *stuck;
    int64_t patience_ns; /* of a GPU's call; 0: as designed */
    /* What is known of this pair, NULL for nothing, and who hears at the session's end what was
     * learnt; `learned` may be NULL. */
    const struct dt_plan_record *record;
    void (*learned)(void *arg, const struct dt_plan_record *record);
    void *learned_arg;
    /* For tests; 0: as designed. */
    uint32_t n_snapshots, n_records; /* slots of the rings */
    int64_t wait_first_ns;           /* how long verify waits for the first tree */
    int64_t wait_ns;                 /* how long it waits for any */
    int64_t (*now_ns)(void);         /* the clock that costs are measured with */
} dt_session_parts;

/* Whether the context of the options (n_ctx resolved) fits into so many bytes; see dt_session_open.
 */
dt_err dt_context_check(
    const dt_engine *engine, const dt_session_options *options, size_t available_bytes);

/* The session owns the forwards and own_draft once this has succeeded, not before. n_ctx may not be
 * 0 here. */
dt_err dt_session_open_with(
    dt_session **out, const dt_session_parts *parts, const dt_session_options *options);

struct dt_session {
    dt_session_parts parts;
    dt_session_options options; /* defaults filled in */
    bool tree_given;            /* sizes of the tree come from the caller */
    int n_ctx, n_vocab;
    bool context_told; /* that n_ctx exceeds the training's */
    int32_t n_allowed; /* ids below may be proposed */

    /* The timeline. The target's KV cache holds a prefix of it that never includes the last token,
     * the root of the next tree. Room for the tokens drawn by one walk beyond n_ctx. */
    int32_t *tokens;  /* [n_ctx + DT_TREE_MAX] */
    uint64_t *hashes; /* [n_ctx + 1] of each prefix */
    int64_t n_tokens;

    dt_sampler sampler;
    dt_answer answer;
    bool answer_open;  /* the next call may go on with it */
    char *token_bytes; /* [parts.speech.n_bytes_max] */

    dt_link *link; /* NULL without a draft */
    dt_guard guard;
    bool dead; /* the draft has ended, and the user was told */
    bool rest_told;
    dt_snapshot snapshot; /* the latest taken */
    double mean_draft_ns; /* of a tree, running; 0: not known */
    int n_late_row;       /* late steps in a row */
    int n_unasked;        /* steps since verify gave up waiting */

    dt_tree_node tree[DT_TREE_MAX]; /* of the present step */
    int n_nodes;
    dt_stat_from from; /* of the present step's proposals */
    dt_walk walk;
    size_t text_ends[DT_TREE_MAX]; /* answer.n_out after each token of the walk */

    dt_stats stats;
    dt_trace_lane trace[DT_TRACE_LANES];
};

/* One call of dt_session_generate. */
typedef struct dt_turn {
    const dt_generate_options *options;
    int64_t n_left; /* tokens of the budget */
    bool first;     /* no step was made yet */
    bool stopped;
    dt_stop stop;
} dt_turn;

/* Whether the answer's text goes on with the next call. */
static inline bool dt_turn_keeps_open(const dt_turn *turn) {
    return turn->stop == DT_STOP_CONTEXT && turn->options->will_go_on;
}

/* src/spec/verify.c: one verification and all that follows from it. The timeline holds at least one
 * token and is not full, n_left > 0, and the target's rows are those of all tokens but the last. */
dt_err dt_verify_step(dt_session *session, dt_turn *turn);

/* Whether a draft runs that should hear of tokens. */
bool dt_session_drafts(const dt_session *session);

#endif
