/* The team: worker threads bound to cores, one OpenMP parallel region for the life of the pool,
 * asleep on a futex between passes. Several threads may submit passes; these run one at a time, in
 * turn. (Without OpenMP, and under ThreadSanitizer, the same worker runs on plain threads.) */
#ifndef DT_CPU_POOL_H
#define DT_CPU_POOL_H

#include <stdatomic.h>

#include "src/base/topo.h"

enum { DT_POOL_THREADS_MAX = 256 };

typedef struct dt_pool dt_pool;

/* Runs on every worker of a pass at once; i_thread in 0 .. n_threads-1. A pass may run without some
 * of the workers (see dt_pool_set_leaves_out), so work is taken from counters and never dealt out
 * by i_thread. */
typedef void (*dt_pool_fn)(void *arg, int i_thread, int n_threads);

/* n_threads 1 .. DT_POOL_THREADS_MAX. `topo` must outlive the pool. */
dt_err dt_pool_open(dt_pool **out, const dt_topo *topo, int n_threads);
void dt_pool_close(dt_pool *pool);
int dt_pool_n_threads(const dt_pool *pool);

/* Workers whose core another program keeps busy are left out of passes for a while, where the
 * others are faster without them (cpu/lateness.h). On by default; not to be changed during a pass.
 */
void dt_pool_set_leaves_out(dt_pool *pool, bool on);
/* Workers that the next pass will have. */
int dt_pool_n_in(const dt_pool *pool);

/* Runs fn on the team and returns when every worker has left it. Callers waiting at the same time
 * are served in the order they came. What the caller wrote is seen by the workers, and what they
 * wrote by the caller. Allocates nothing. */
void dt_pool_run(dt_pool *pool, dt_pool_fn fn, void *arg);

/* Inside fn, called by every worker: returns when all have arrived. Spins some 20 us, then sleeps.
 */
void dt_pool_barrier(dt_pool *pool, int i_thread);

/* The next chunk of work of a phase: workers take chunks until they get one >= n_chunks. Results
 * must not depend on who takes what. The counter starts at 0 and orders nothing: the barrier after
 * the phase does. */
static inline int dt_pool_next(_Atomic int *counter) {
    return atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

#endif
