/* A doorbell: one futex word that every event meant for a thread rings. The thread spins some 20 us
 * and then sleeps. Only its owner waits; any thread rings. */
#ifndef DT_BASE_WAIT_H
#define DT_BASE_WAIT_H

#include <stdatomic.h>

#include "src/base/common.h"

typedef struct dt_bell {
    _Alignas(64) _Atomic uint32_t count; /* rings so far */
    _Atomic uint32_t asleep;             /* the owner sleeps or is about to */
    bool spins;                          /* false where there is one CPU to run on */
} dt_bell;

/* Looks once at the CPUs that the calling thread may run on. */
void dt_bell_init(dt_bell *bell);

/* Rings so far: read it, look for work, and hand it to dt_bell_wait if there was none. */
uint32_t dt_bell_count(const dt_bell *bell);

/* What was written before the ring is seen after the wait that it ends. */
void dt_bell_ring(dt_bell *bell);

/* Returns true once the bell has been rung since `seen`, false when dt_time_ns() reaches
 * `deadline_ns` (INT64_MAX: never). */
bool dt_bell_wait(dt_bell *bell, uint32_t seen, int64_t deadline_ns);

/* Pauses the core for a few cycles inside a spin loop. */
static inline void dt_spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Raw futex operations, for the pool's barriers. */
void dt_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns);
void dt_futex_wake_all(_Atomic uint32_t *word);

#endif
