#define _GNU_SOURCE
#include "cpu/pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "cpu/lateness.h"
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
    LATE_NS = 200000,  /* several chunks of work: such a wait is no unequal share */
};

/* A word that threads wait on until it changes, and how many of them sleep. */
typedef struct gate {
    _Atomic uint32_t word;
    _Atomic uint32_t n_asleep;
} gate;

typedef struct worker {
    _Alignas(64) gate go;               /* steps with every pass that the worker takes part in */
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

    /* The pass: published by the steps of the workers' `go`; fn NULL ends them. */
    _Alignas(64) dt_pool_fn fn;
    void *arg;
    uint32_t n_in;   /* workers that take part */
    uint32_t n_runs; /* passes so far: what `done` steps to */
    dt_lateness lateness;
    int64_t *lost_ns; /* [n_threads] in this pass, see dt_pool_barrier */

    /* Workers that left the pass, and the last pass that all have left. */
    _Alignas(64) _Atomic uint32_t n_done;
    gate done;

    /* The barrier inside a pass. One cache line: the last to arrive owns it already when it opens
     * the barrier, so the others wait for two transfers of the line and not three. */
    _Alignas(64) _Atomic uint32_t n_arrived;
    gate barrier;
    int i_last; /* who arrived last; published by the step of `barrier` */

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

/* Returns once the word is no longer `old`: the time when a wait that did not end at once began, or
 * 0. */
static int64_t gate_wait(gate *g, uint32_t old, bool spins) {
    int64_t start = 0;
    if (spins) {
        for (int i = 0; i < SPINS_FIRST; i++) {
            if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                return 0;
            dt_spin_pause();
        }
        start = dt_time_ns();
        int64_t end = start + SPIN_NS;
        do {
            for (int i = 0; i < SPINS_A_LOOK; i++) {
                if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                    return start;
                dt_spin_pause();
            }
        } while (dt_time_ns() < end);
    } else {
        for (int i = 0; i < YIELDS; i++) {
            if (atomic_load_explicit(&g->word, memory_order_acquire) != old) /* gate_step */
                return 0;
            sched_yield();
        }
        start = dt_time_ns();
    }
    atomic_fetch_add_explicit(&g->n_asleep, 1, memory_order_seq_cst);   /* gate_step, see there */
    while (atomic_load_explicit(&g->word, memory_order_seq_cst) == old) /* gate_step, see there */
        dt_futex_wait(&g->word, old, INT64_MAX);
    /* A stepper that still counts us makes one call too many, nothing else. */
    atomic_fetch_sub_explicit(&g->n_asleep, 1, memory_order_relaxed);
    return start;
}

static void worker_run(dt_pool *pool, int i_thread) {
    worker *self = &pool->workers[i_thread];
    (void)dt_topo_bind(pool->topo, i_thread % dt_topo_n_pus(pool->topo)); /* refused: unbound */
    for (uint32_t turn = 0;; turn++) {
        /* Read before the arrival: after the last one the caller may publish another pass. */
        uint32_t n_runs = pool->n_runs, n_in = pool->n_in;
        /* Arrivals form one release sequence on n_done, so the last one has seen what all workers
         * wrote, and hands it to the caller by the step of `done`. */
        if (atomic_fetch_add_explicit(&pool->n_done, 1, memory_order_acq_rel) + 1 == n_in) {
            atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed); /* seen by way of done */
            gate_step(&pool->done, n_runs);
        }
        gate_wait(&self->go, turn, pool->spins);
        if (pool->fn == NULL)
            return;
        /* No barrier opens before this worker's first arrival, so the word stands still. It was
         * left out of those before: ordered by the passes' end and this one's start. */
        self->barrier_turn = atomic_load_explicit(&pool->barrier.word, memory_order_relaxed);
        pool->fn(pool->arg, i_thread, pool->n_threads);
    }
}

/* Only by whoever may publish a pass. */
static void call_worker(dt_pool *pool, int i_thread) {
    gate *go = &pool->workers[i_thread].go;
    gate_step(go, atomic_load_explicit(&go->word, memory_order_relaxed) + 1); /* our own steps */
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
        for (int i = 1; i < n; i++)
            call_worker(pool, i);
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

static void pool_free(dt_pool *pool) {
    dt_lateness_deinit(&pool->lateness);
    dt_mem_free(pool->lost_ns);
    dt_mem_free(pool->workers);
    dt_mem_free(pool);
}

#if defined(DT_HAVE_OPENMP) && defined(_OPENMP) && !defined(POOL_TSAN)

static void *wait_turn(void *arg) {
    pthread_mutex_lock(arg);
    pthread_mutex_unlock(arg);
    return NULL;
}

/* An OpenMP runtime that cannot start a thread ends the program. So as many are started and ended
 * here before, where that is an error; their stacks stay cached for the team. Returns an errno. */
static int try_threads(int n_threads) {
    pthread_t threads[DT_POOL_THREADS_MAX];
    pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
    int n = 0, code = 0;
    pthread_mutex_lock(&turn); /* none ends before the last has started */
    while (n < n_threads && code == 0) {
        code = pthread_create(&threads[n], NULL, wait_turn, &turn);
        n += code == 0;
    }
    pthread_mutex_unlock(&turn);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    return code;
}

#else

static int try_threads(int n_threads) {
    (void)n_threads;
    return 0;
}

#endif

dt_err dt_pool_open(dt_pool **out, const dt_topo *topo, int n_threads) {
    *out = NULL;
    if (n_threads < 1 || n_threads > DT_POOL_THREADS_MAX)
        DT_FAIL(DT_ERR_INPUT, "%d threads: want 1 to %d", n_threads, DT_POOL_THREADS_MAX);
    dt_pool *pool;
    DT_TRY(dt_mem_alloc(&pool, sizeof *pool));
    dt_err err = dt_mem_alloc(&pool->workers, (size_t)n_threads * sizeof *pool->workers);
    if (err == DT_OK)
        err = dt_mem_alloc(&pool->lost_ns, (size_t)n_threads * sizeof *pool->lost_ns);
    if (err == DT_OK)
        err = dt_lateness_init(&pool->lateness, n_threads);
    if (err != DT_OK) {
        pool_free(pool);
        return err;
    }
    pool->topo = topo;
    pool->n_threads = n_threads;
    pool->n_in = (uint32_t)n_threads;
    pool->n_runs = 1; /* the start: every worker arrives once */
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
    int code = try_threads(n_threads);
    if (code == 0)
        code = pthread_create(&pool->host, NULL, host_main, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        pool_free(pool);
        DT_FAIL(DT_ERR_LIMIT, "cannot start the worker threads: %s", strerror(code));
    }
    gate_wait(&pool->done, 0, false);
    if (pool->n_granted != n_threads) {
        int n_granted = pool->n_granted;
        pthread_join(pool->host, NULL);
        pool_free(pool);
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
    for (int i = 0; i < pool->n_threads; i++)
        call_worker(pool, i);
    pthread_join(pool->host, NULL);
    pool_free(pool);
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

    int64_t start = dt_time_ns();
    pool->fn = fn;
    pool->arg = arg;
    pool->n_in = (uint32_t)pool->lateness.n_in;
    uint32_t n_runs = pool->n_runs++;
    for (int i = 0; i < pool->n_threads; i++) {
        pool->lost_ns[i] = 0;
        if (dt_lateness_in(&pool->lateness, i))
            call_worker(pool, i);
    }
    gate_wait(&pool->done, n_runs, pool->caller_spins);
    int64_t end = dt_time_ns();
    dt_lateness_pass(&pool->lateness, end, end - start, pool->lost_ns);
    gate_step(&pool->serving, ticket + 1);
}

void dt_pool_set_leaves_out(dt_pool *pool, bool on) {
    pool->lateness.enabled = on;
}

int dt_pool_n_in(const dt_pool *pool) {
    return pool->lateness.n_in;
}

/* The first to arrive measures how long the last one kept it, beyond what a chunk of work or a
 * cache line explains. One measurement a barrier, and those of two barriers are ordered by the
 * second, which does not open before the first one's writer arrives: plain data will do. */
static void note_lateness(dt_pool *pool, int64_t since_ns) {
    int64_t ns = since_ns ? dt_time_ns() - since_ns : 0;
    if (ns > LATE_NS)
        pool->lost_ns[pool->i_last] += ns;
}

void dt_pool_barrier(dt_pool *pool, int i_thread) {
    /* Every worker counts the barriers itself: reading the shared word first would cost one more
     * transfer of its cache line. */
    uint32_t turn = pool->workers[i_thread].barrier_turn++;
    /* Pairs with itself: the last arrival has seen what all workers wrote before theirs. */
    uint32_t n_before = atomic_fetch_add_explicit(&pool->n_arrived, 1, memory_order_acq_rel);
    if (n_before + 1 == pool->n_in) {
        /* Nobody arrives again before the step below, which publishes these stores. */
        atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
        pool->i_last = i_thread;
        gate_step(&pool->barrier, turn + 1);
    } else {
        int64_t since_ns = gate_wait(&pool->barrier, turn, pool->spins);
        if (n_before == 0)
            note_lateness(pool, since_ns);
    }
}
