/* Which workers of a team are left out. A worker whose core is taken by another program holds the
 * others up at every barrier: the team then runs at the pace of a time slice. Where the waiting for
 * one worker costs more than its share of the work is worth, the next passes run without it, and it
 * is tried again later, at falling cost.
 *
 * Plain decisions over given times; the pool keeps one of these and asks between passes. */
#ifndef DT_CPU_LATENESS_H
#define DT_CPU_LATENESS_H

#include "src/base/common.h"

typedef struct dt_late_worker {
    bool out;
    bool on_trial;    /* back since a short while */
    int64_t lost_ns;  /* the others waited for it, since the window began */
    int64_t rest_ns;  /* how long it stays out the next time */
    int64_t until_ns; /* out: tried again from then on; on trial: the end of it */
} dt_late_worker;

typedef struct dt_lateness {
    bool enabled;
    int n_threads, n_in;
    int64_t window_ns;       /* length of the passes in the window */
    dt_late_worker *workers; /* [n_threads] */
} dt_lateness;

/* All take part. Allocates; deinit takes a zeroed struct. */
dt_err dt_lateness_init(dt_lateness *out, int n_threads);
void dt_lateness_deinit(dt_lateness *l);

/* After a pass of pass_ns that ended at now_ns; lost_ns [n_threads]: how long others waited for
 * each worker beyond what unequal work explains (0 for those that were out). */
void dt_lateness_pass(dt_lateness *l, int64_t now_ns, int64_t pass_ns, const int64_t *lost_ns);

static inline bool dt_lateness_in(const dt_lateness *l, int i_thread) {
    return !l->workers[i_thread].out;
}

#endif
