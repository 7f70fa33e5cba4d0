#define _GNU_SOURCE
#include "cpu/pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "dt_build.h"
#include "src/base/mem.h"
#include "src/base/wait.h"

/* ThreadSanitizer does not know the OpenMP runtimes; plain threads run the same worker. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define POOL_TSAN
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define POOL_TSAN
#endif
#if defined(DT_HAVE_OPENMP) && defined(_OPENMP) && !defined(POOL_TSAN)
#define POOL_OPENMP
#include <omp.h>
#endif

enum {
    SPIN_NS = 20000,
    SPINS_FIRST = 64,  /* looks before the first pause: most barriers end within them */
    SPINS_A_LOOK = 32, /* pauses between two looks at the clock: about 1 us */
    YIELDS = 4,        /* in place of spinning where threads outnumber CPUs */
};

/* A word that threads wait on until it changes, and how many of them sleep. */
typedef struct gate {
    _Atomic uint32_t word;
    _Atomic uint32_t n_asleep;
} gate;

typedef struct worker {
    _Alignas(64) uint32_t barrier_turn; /* the worker's own copy of pool->barrier.word */
} worker;

struct dt_pool {
    const dt_topo *topo;
    int n_threads;
    bool spins;        /* there is a CPU for every worker */
    bool caller_spins; /* and one more for the thread that submitted */
    pthread_t host;    /* runs the parallel region; without OpenMP: starts and joins the workers */
    worker *workers;   /* [n_threads] */

    /* Submitting: a ticket is drawn from next_ticket and served when `serving` reaches it. */
    _Alignas(64) _Atomic uint32_t next_ticket;
    _Alignas(64) gate serving;

    /* The pass: fn and arg are published by a step of `pass`; fn NULL ends the workers. */
    _Alignas(64) gate pass;
    dt_pool_fn fn;
    void *arg;

    /* Workers that left the pass, and the last pass that all have left. */
    _Alignas(64) _Atomic uint32_t n_done;
    gate done;

    /* The barrier inside a pass. One cache line: the last to arrive owns it already when it opens
     * the barrier, so the others wait for two transfers of the line and not three. */
    _Alignas(64) _Atomic uint32_t n_arrived;
    gate barrier;

    int n_granted; /* threads that really run; read after the first step of `done` */
};

/* The steps and waits of all gates. No wake-up is lost: gate_step changes the word, then reads
 * n_asleep; a waiter adds to n_asleep, then reads the word. All four are seq_cst, so in their
 * single order either the stepper sees the sleeper and calls the kernel, or the waiter sees the
 * step. The kernel compares the word once more under the lock that a wake call takes. */
static void gate_step(gate *g, uint32_t value) {
    /* Pairs with the loads of word in gate_wait: what came before is seen after the wait. */
    atomic_store_explicit(&g->word, value, memory_order_seq_cst);
    /* Pairs with the addition to n_asleep in gate_wait. */
    if (atomic_load_explicit(&g->n_asleep, memory_order_seq_cst))
        dt_futex_wake_all(&g->word);
}

/* Returns once the word is no longer `old`. */
static void gate_wait(gate *g, uint32_t old, bool spins) {
    if (spins) {
        for (int i = 0; i < SPINS_FIRST; i++) {
            if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                return;
            dt_spin_pause();
        }
        int64_t end = dt_time_ns() + SPIN_NS;
        do {
            for (int i = 0; i < SPINS_A_LOOK; i++) {
                if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                    return;
                dt_spin_pause();
            }
        } while (dt_time_ns() < end);
    } else {
        for (int i = 0; i < YIELDS; i++) {
            if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                return;
            sched_yield();
        }
    }
    atomic_fetch_add_explicit(&g->n_asleep, 1, memory_order_seq_cst);   /* gate_step, see there */
    while (atomic_load_explicit(&g->word, memory_order_seq_cst) == old) /* gate_step, see there */
        dt_futex_wait(&g->word, old, INT64_MAX);
    /* A stepper that still counts us makes one call too many, nothing else. */
    atomic_fetch_sub_explicit(&g->n_asleep, 1, memory_order_relaxed);
}

static void worker_run(dt_pool *pool, int i_thread) {
    (void)dt_topo_bind(pool->topo, i_thread % dt_topo_n_pus(pool->topo)); /* refused: unbound */
    for (uint32_t pass = 0;; pass++) {
        /* Arrivals form one release sequence on n_done, so the last one has seen what all workers
         * wrote, and hands it to the caller by the step of `done`. */
        if (atomic_fetch_add_explicit(&pool->n_done, 1, memory_order_acq_rel) + 1 ==
            (uint32_t)pool->n_threads) {
            atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed); /* seen by way of done */
            gate_step(&pool->done, pass + 1);
        }
        gate_wait(&pool->pass, pass, pool->spins);
        if (pool->fn == NULL)
            return;
        pool->fn(pool->arg, i_thread, pool->n_threads);
    }
}

#ifdef POOL_OPENMP

static void *host_main(void *arg) {
    dt_pool *pool = arg;
    /* A task's own setting, so this thread's alone: the team must not shrink with the load. */
    omp_set_dynamic(0);
#ifdef KMP_VERSION_MAJOR /* LLVM's runtime: a closed team's threads must not spin for 200 ms */
    kmp_set_blocktime(0);
#endif
#pragma omp parallel num_threads(pool->n_threads)
    {
        if (omp_get_num_threads() == pool->n_threads) {
            if (omp_get_thread_num() == 0)
                pool->n_granted = pool->n_threads; /* before worker_run's first arrival */
            worker_run(pool, omp_get_thread_num());
        } else if (omp_get_thread_num() == 0) {
            pool->n_granted = omp_get_num_threads();
            gate_step(&pool->done, 1);
        }
    }
    return NULL;
}

static const char *const team_name = "OpenMP";

#else

typedef struct thread_start {
    dt_pool *pool;
    int i_thread;
    pthread_t thread;
} thread_start;

static void *worker_main(void *arg) {
    thread_start *start = arg;
    worker_run(start->pool, start->i_thread);
    return NULL;
}

/* As in the OpenMP form this thread is worker 0 and starts the others. */
static void *host_main(void *arg) {
    dt_pool *pool = arg;
    thread_start *starts;
    int n = 1;
    if (dt_mem_alloc(&starts, (size_t)pool->n_threads * sizeof *starts) == DT_OK)
        for (; n < pool->n_threads; n++) {
            starts[n] = (thread_start){.pool = pool, .i_thread = n};
            if (pthread_create(&starts[n].thread, NULL, worker_main, &starts[n]) != 0)
                break;
        }
    pool->n_granted = n;
    if (n == pool->n_threads) {
        worker_run(pool, 0);
    } else {
        /* Those that started wait for the first pass: it tells them to go. */
        pool->fn = NULL;
        gate_step(&pool->pass, 1);
    }
    for (int i = 1; i < n; i++)
        pthread_join(starts[i].thread, NULL);
    dt_mem_free(starts);
    if (n != pool->n_threads)
        gate_step(&pool->done, 1);
    return NULL;
}

static const char *const team_name = "the system";

#endif

dt_err dt_pool_open(dt_pool **out, const dt_topo *topo, int n_threads) {
    *out = NULL;
    if (n_threads < 1 || n_threads > DT_POOL_THREADS_MAX)
        DT_FAIL(DT_ERR_INPUT, "%d threads: want 1 to %d", n_threads, DT_POOL_THREADS_MAX);
    dt_pool *pool;
    DT_TRY(dt_mem_alloc(&pool, sizeof *pool));
    dt_err err = dt_mem_alloc(&pool->workers, (size_t)n_threads * sizeof *pool->workers);
    if (err != DT_OK) {
        dt_mem_free(pool);
        return err;
    }
    pool->topo = topo;
    pool->n_threads = n_threads;
    pool->spins = n_threads <= dt_topo_n_pus(topo) && dt_topo_n_pus(topo) > 1;
    pool->caller_spins = n_threads < dt_topo_n_pus(topo);

    /* Signals are for the thread that opened us: the team inherits a mask that blocks them, save
     * those of a fault, and of a profiler. */
    static const int own_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < DT_COUNT(own_signals); i++)
        sigdelset(&blocked, own_signals[i]);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    int code = pthread_create(&pool->host, NULL, host_main, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        dt_mem_free(pool->workers);
        dt_mem_free(pool);
        DT_FAIL(DT_ERR_LIMIT, "cannot start the worker threads: %s", strerror(code));
    }
    gate_wait(&pool->done, 0, false);
    if (pool->n_granted != n_threads) {
        int n_granted = pool->n_granted;
        pthread_join(pool->host, NULL);
        dt_mem_free(pool->workers);
        dt_mem_free(pool);
        DT_FAIL(DT_ERR_LIMIT,
            "%s grants %d of %d threads: ask for fewer (--threads), or raise OMP_THREAD_LIMIT or "
            "the limit on processes",
            team_name, n_granted, n_threads);
    }
    *out = pool;
    return DT_OK;
}

void dt_pool_close(dt_pool *pool) {
    if (pool == NULL)
        return;
    pool->fn = NULL;
    /* Nobody else submits any more; our own passes came in order, so the word is ours to read. */
    uint32_t pass = atomic_load_explicit(&pool->pass.word, memory_order_relaxed);
    gate_step(&pool->pass, pass + 1);
    pthread_join(pool->host, NULL);
    dt_mem_free(pool->workers);
    dt_mem_free(pool);
}

int dt_pool_n_threads(const dt_pool *pool) {
    return pool->n_threads;
}

void dt_pool_run(dt_pool *pool, dt_pool_fn fn, void *arg) {
    /* Orders nothing but the callers among themselves; `serving` hands the pool over. */
    uint32_t ticket = atomic_fetch_add_explicit(&pool->next_ticket, 1, memory_order_relaxed);
    uint32_t now;
    /* Pairs with the step of `serving` below: the caller before us is done with the pool. */
    while ((now = atomic_load_explicit(&pool->serving.word, memory_order_acquire)) != ticket)
        gate_wait(&pool->serving, now, pool->caller_spins);

    pool->fn = fn;
    pool->arg = arg;
    /* Only the caller that is served steps `pass`, so it reads its own word. */
    uint32_t pass = atomic_load_explicit(&pool->pass.word, memory_order_relaxed);
    gate_step(&pool->pass, pass + 1);
    gate_wait(&pool->done, pass + 1, pool->caller_spins);
    gate_step(&pool->serving, ticket + 1);
}

void dt_pool_barrier(dt_pool *pool, int i_thread) {
    /* Every worker counts the barriers itself: reading the shared word first would cost one more
     * transfer of its cache line. */
    uint32_t turn = pool->workers[i_thread].barrier_turn++;
    /* Pairs with itself: the last arrival has seen what all workers wrote before theirs. */
    if (atomic_fetch_add_explicit(&pool->n_arrived, 1, memory_order_acq_rel) + 1 ==
        (uint32_t)pool->n_threads) {
        /* Nobody arrives again before the step below, which publishes this store. */
        atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
        gate_step(&pool->barrier, turn + 1);
    } else {
        gate_wait(&pool->barrier, turn, pool->spins);
    }
}
