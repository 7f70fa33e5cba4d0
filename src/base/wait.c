#define _GNU_SOURCE
#include "src/base/wait.h"

#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "src/base/mem.h"

enum {
    SPIN_NS = 20000,
    SPINS_A_LOOK = 32, /* pauses between two looks at the clock: about 1 us */
};

void dt_bell_init(dt_bell *bell) {
    atomic_init(&bell->count, 0);
    atomic_init(&bell->asleep, 0);
    /* With one CPU to run on, spinning only keeps the ringer from running. */
    cpu_set_t set;
    bell->spins = sysconf(_SC_NPROCESSORS_ONLN) > 1 &&
                  (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) > 1);
}

uint32_t dt_bell_count(const dt_bell *bell) {
    /* Pairs with the addition in dt_bell_ring: what was written before that ring is seen. */
    return atomic_load_explicit(&bell->count, memory_order_acquire);
}

/* No wake-up is lost. The ringer adds to count, then reads asleep; the owner writes asleep, then
 * reads count; all four are seq_cst, so in their single order either the ringer's read comes after
 * the owner's write, and it calls the kernel, or the owner's read comes after the ringer's
 * addition, and it does not sleep. Between that read and the sleep, the kernel compares count once
 * more under its own lock, which a wake call takes too. */
void dt_bell_ring(dt_bell *bell) {
    /* Pairs with the loads of count in dt_bell_count and dt_bell_wait (release to acquire), and
     * with the store to asleep in dt_bell_wait (seq_cst). */
    atomic_fetch_add_explicit(&bell->count, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&bell->asleep, memory_order_seq_cst))
        dt_futex_wake_all(&bell->count);
}

bool dt_bell_wait(dt_bell *bell, uint32_t seen, int64_t deadline_ns) {
    if (dt_bell_count(bell) != seen)
        return true;
    int64_t now = dt_time_ns();
    int64_t spin_end = now + SPIN_NS;
    while (bell->spins && now < spin_end && now < deadline_ns) {
        for (int i = 0; i < SPINS_A_LOOK; i++) {
            dt_spin_pause();
            if (dt_bell_count(bell) != seen)
                return true;
        }
        now = dt_time_ns();
    }
    /* Pairs with the load in dt_bell_ring, see there. */
    atomic_store_explicit(&bell->asleep, 1, memory_order_seq_cst);
    bool rung;
    /* Pairs with the addition in dt_bell_ring, see there. */
    while (!(rung = atomic_load_explicit(&bell->count, memory_order_seq_cst) != seen) &&
           now < deadline_ns) {
        dt_futex_wait(&bell->count, seen, deadline_ns);
        now = dt_time_ns();
    }
    /* A ringer that still reads 1 makes one call too many, nothing else. */
    atomic_store_explicit(&bell->asleep, 0, memory_order_relaxed);
    return rung;
}

void dt_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t deadline_ns) {
    struct timespec at, *timeout = NULL;
    if (deadline_ns != INT64_MAX) {
        int64_t ns = deadline_ns > 0 ? deadline_ns : 0;
        at.tv_sec = (time_t)(ns / 1000000000);
        at.tv_nsec = (long)(ns % 1000000000);
        timeout = &at;
    }
    /* The BITSET form takes an absolute time on CLOCK_MONOTONIC, so a signal or a false wake-up
     * never stretches it. Every outcome means: look again. */
    (void)syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, expected, timeout, NULL,
        FUTEX_BITSET_MATCH_ANY);
}

void dt_futex_wake_all(_Atomic uint32_t *word) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL, 0);
}
