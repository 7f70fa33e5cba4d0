/* Never slower, for drafts that do not weigh their proposals themselves: compares what drafting
 * yields with plain decoding, both measured while running, and stops drafting for a while where it
 * does not pay. It decides only whether a tree is asked for, so the text does not depend on it.
 * Where the draft plans, only a draft that does not keep up is left alone. Plain data, owned by a
 * session. */
#ifndef DT_SPEC_GUARD_H
#define DT_SPEC_GUARD_H

#include "src/base/common.h"

typedef enum dt_guard_step {
    DT_GUARD_DRAFT, /* ask the draft and use its tree */
    DT_GUARD_PROBE, /* ask the draft, but verify the root alone, to time a plain step */
    DT_GUARD_REST,  /* leave the draft alone */
} dt_guard_step;

typedef struct dt_guard {
    bool enabled;
    bool planned;    /* the draft plans: nothing is compared here */
    double plain_ns; /* of one plain step, a running mean; 0: not known */
    int n_plain;
    int64_t window_ns; /* of the latest drafted steps */
    int64_t window_tokens;
    int window_steps;
    bool fresh; /* the next drafted step pays for the draft's catch-up: not counted */
    int64_t n_since_plain;
    int64_t rest_left; /* tokens until drafting is tried again */
    int64_t rest_next; /* how long the next rest will be */
} dt_guard;

void dt_guard_init(dt_guard *guard, bool enabled);

/* An answer starts. */
void dt_guard_start(dt_guard *guard);

dt_guard_step dt_guard_next(const dt_guard *guard);

/* A step without a tree, while the draft was idle, took this long. */
void dt_guard_plain(dt_guard *guard, int64_t step_ns);

/* A step that asked the draft took this long, waiting included, and gave n_tokens. True if this
 * makes drafting rest; the rates compared are then in tokens per second. */
bool dt_guard_drafted(dt_guard *guard, double *drafted_rate_out, double *plain_rate_out,
    int64_t step_ns, int64_t n_tokens);

/* The draft does not keep up: drafting rests though nothing could be compared. False where the
 * guard is off. */
bool dt_guard_late(dt_guard *guard);

static inline bool dt_guard_rests(const dt_guard *guard) {
    return guard->rest_left > 0;
}

#endif
