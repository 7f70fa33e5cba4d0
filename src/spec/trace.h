/* A record of what both threads of a session did and when. Each lane is written by one thread and
 * read by any; its memory is taken at open, and what does not fit is left out. */
#ifndef DT_SPEC_TRACE_H
#define DT_SPEC_TRACE_H

#include <stdatomic.h>

#include "src/dovetail.h"

typedef struct dt_trace_lane {
    _Atomic int n; /* events written: stored with release by the lane's thread after the event */
    int n_max;
    dt_trace_event *events;
} dt_trace_lane;

/* `lane` may be NULL: nothing is kept. `what` is a constant. */
static inline void dt_trace_add(
    dt_trace_lane *lane, const char *what, int64_t start_ns, int64_t end_ns, int n_rows) {
    int n = lane ? atomic_load_explicit(&lane->n, memory_order_relaxed) : 0;
    if (!lane || n == lane->n_max)
        return;
    lane->events[n] = (dt_trace_event){what, start_ns, end_ns, n_rows};
    /* Pairs with the load in dt_session_trace. */
    atomic_store_explicit(&lane->n, n + 1, memory_order_release);
}

#endif
