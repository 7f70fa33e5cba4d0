/* The worker team: every worker runs every pass once, barriers separate phases, callers are served
 * in turn, idle threads burn nothing, a team that is not granted is an error. And the instruction
 * sets' names. DT_TEST_LONG=1 also prints what a barrier and a pass cost. */
#define _GNU_SOURCE
#include "tests/test.h"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cpu/kernels.h"
#include "cpu/lateness.h"
#include "cpu/pool.h"
#include "dt_build.h"
#include "src/base/mem.h"
#include "src/base/wait.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define TEST_SLOW
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define TEST_SLOW
#endif

enum { THREADS_MAX = 8 };

static int scale = 1; /* fewer rounds under a sanitizer */

typedef struct job {
    dt_pool *pool;
    int n_barriers;
    int n_wrong;                 /* written by worker 0 only */
    int phase[THREADS_MAX * 16]; /* plain data, a line apart: torn or stale means a bad barrier */
    _Atomic int next;
    _Atomic int n_taken;
} job;

static void check_phases(void *arg, int i_thread, int n_threads) {
    job *j = arg;
    for (int i = 1; i <= j->n_barriers; i++) {
        j->phase[i_thread * 16] = i;
        dt_pool_barrier(j->pool, i_thread);
        if (i_thread == 0)
            for (int t = 0; t < n_threads; t++)
                j->n_wrong += j->phase[t * 16] != i;
        dt_pool_barrier(j->pool, i_thread);
    }
}

static void take_chunks(void *arg, int i_thread, int n_threads) {
    job *j = arg;
    (void)i_thread, (void)n_threads;
    while (dt_pool_next(&j->next) < 1000)
        atomic_fetch_add_explicit(&j->n_taken, 1, memory_order_relaxed);
}

static void only_barriers(void *arg, int i_thread, int n_threads) {
    job *j = arg;
    (void)n_threads;
    for (int i = 0; i < j->n_barriers; i++)
        dt_pool_barrier(j->pool, i_thread);
}

static void nothing(void *arg, int i_thread, int n_threads) {
    (void)arg, (void)i_thread, (void)n_threads;
}

static void test_phases(const dt_topo *topo, int n_threads) {
    job j = {.n_barriers = 300 / scale};
    CHECK_OK(dt_pool_open(&j.pool, topo, n_threads));
    if (j.pool == NULL)
        return;
    CHECK(dt_pool_n_threads(j.pool) == n_threads);
    dt_pool_set_leaves_out(j.pool, false);
    for (int round = 0; round < 5; round++) {
        dt_pool_run(j.pool, check_phases, &j);
        for (int t = 0; t < n_threads; t++)
            CHECK(j.phase[t * 16] == j.n_barriers);
        if (round % 2)
            usleep(1000); /* long enough for the team to fall asleep */
    }
    CHECK(j.n_wrong == 0);
    dt_pool_run(j.pool, take_chunks, &j);
    CHECK(j.n_taken == 1000);
    dt_pool_close(j.pool);
}

typedef struct caller {
    dt_pool *pool;
    int id, n_passes;
    int *log, *n_log; /* shared, without a lock: a pass runs alone */
    pthread_t thread;
} caller;

static void write_log(void *arg, int i_thread, int n_threads) {
    caller *c = arg;
    (void)n_threads;
    if (i_thread == 0)
        c->log[(*c->n_log)++] = c->id;
}

static void *call(void *arg) {
    caller *c = arg;
    for (int i = 0; i < c->n_passes; i++)
        dt_pool_run(c->pool, write_log, c);
    return NULL;
}

/* Three callers at once: no pass is lost, none runs beside another. */
static void test_callers(const dt_topo *topo) {
    enum { N_CALLERS = 3, N_PASSES = 500 };
    static int log[N_CALLERS * N_PASSES];
    int n_log = 0, count[N_CALLERS] = {0};
    int n_passes = N_PASSES / scale;
    dt_pool *pool;
    CHECK_OK(dt_pool_open(&pool, topo, 2));
    if (pool == NULL)
        return;
    caller callers[N_CALLERS];
    for (int i = 0; i < N_CALLERS; i++) {
        callers[i] = (caller){pool, i, n_passes, log, &n_log, 0};
        CHECK(pthread_create(&callers[i].thread, NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < N_CALLERS; i++)
        pthread_join(callers[i].thread, NULL);
    CHECK(n_log == N_CALLERS * n_passes);
    for (int i = 0; i < n_log; i++)
        count[log[i]]++;
    for (int i = 0; i < N_CALLERS; i++)
        CHECK(count[i] == n_passes);
    dt_pool_close(pool);
}

typedef struct turn {
    dt_pool *pool;
    _Atomic int n_started;
    _Atomic int release;
    int order[4], n_order;
} turn;

typedef struct turn_caller {
    turn *turn;
    int id;
} turn_caller;

/* Worker 1 comes late to every barrier, as one does whose core is taken. */
static void come_late(void *arg, int i_thread, int n_threads) {
    job *j = arg;
    (void)n_threads;
    for (int i = 0; i < 4; i++) {
        if (i_thread == 1)
            usleep(1000);
        dt_pool_barrier(j->pool, i_thread);
    }
    atomic_fetch_add_explicit(&j->n_taken, 1 << 8 * i_thread, memory_order_relaxed);
}

/* The late worker is left out, and the passes without it are whole. */
static void test_left_out(const dt_topo *topo) {
    job j = {0};
    CHECK_OK(dt_pool_open(&j.pool, topo, 3));
    if (j.pool == NULL)
        return;
    for (int i = 0; i < 100; i++)
        dt_pool_run(j.pool, only_barriers, &j);
    for (int i = 0; i < 10000 && dt_pool_n_in(j.pool) == 3; i++)
        dt_pool_run(j.pool, come_late, &j);
    CHECK(dt_pool_n_in(j.pool) < 3);
    int n_in = dt_pool_n_in(j.pool);
    j.n_taken = 0;
    dt_pool_run(j.pool, come_late, &j);
    int n_took = (j.n_taken & 255) + (j.n_taken >> 8 & 255) + (j.n_taken >> 16);
    CHECK_MSG(n_took == n_in, "%d of %d workers ran", n_took, n_in);
    dt_pool_close(j.pool);
}

/* Passes of pass_ns until end_ns, in which the others lose a share of the time to worker i. */
static void run_late(dt_lateness *l, int64_t *now_ns, int64_t end_ns, int i, double share) {
    const int64_t pass_ns = 30000000;
    while (*now_ns < end_ns) {
        int64_t lost_ns[4] = {0};
        if (dt_lateness_in(l, i))
            lost_ns[i] = (int64_t)(share * (double)pass_ns);
        *now_ns += pass_ns;
        dt_lateness_pass(l, *now_ns, pass_ns, lost_ns);
    }
}

static void test_lateness(void) {
    const int64_t second = 1000000000;
    dt_lateness l;
    CHECK_OK(dt_lateness_init(&l, 4));
    int64_t now = 0;
    run_late(&l, &now, second, 2, 0.2); /* cheaper than doing without a quarter of the team */
    CHECK(l.n_in == 4);
    run_late(&l, &now, now + second / 10, 2, 0.5);
    CHECK(l.n_in == 3 && !dt_lateness_in(&l, 2));
    /* A core that stays taken is tried ever more rarely. */
    int n_tries = 0;
    for (int64_t end = now + 60 * second; now < end;) {
        bool was_out = !dt_lateness_in(&l, 2);
        run_late(&l, &now, now + 1, 2, 0.5);
        n_tries += was_out && dt_lateness_in(&l, 2);
    }
    CHECK_MSG(n_tries >= 8 && n_tries <= 14, "%d tries in a minute", n_tries);
    /* A core that is free again is back within the longest rest, and stays. */
    run_late(&l, &now, now + 9 * second, 2, 0.0);
    CHECK(l.n_in == 4);
    run_late(&l, &now, now + 5 * second, 2, 0.0);
    CHECK(l.workers[2].rest_ns == second / 4);
    /* Never the last one. */
    for (int i = 0; i < 4; i++)
        run_late(&l, &now, now + second / 8, i, 0.9);
    CHECK(l.n_in >= 1);
    l.enabled = false;
    int n_in = l.n_in;
    run_late(&l, &now, now + second, 3, 1.0);
    CHECK(l.n_in == n_in);
    dt_lateness_deinit(&l);
}

static void hold(void *arg, int i_thread, int n_threads) {
    turn *t = arg;
    (void)i_thread, (void)n_threads;
    while (!atomic_load(&t->release))
        usleep(100);
}

static void note(void *arg, int i_thread, int n_threads) {
    turn_caller *c = arg;
    (void)n_threads;
    if (i_thread == 0)
        c->turn->order[c->turn->n_order++] = c->id;
}

static void *hold_call(void *arg) {
    turn *t = arg;
    dt_pool_run(t->pool, hold, t);
    return NULL;
}

static void *note_call(void *arg) {
    turn_caller *c = arg;
    atomic_fetch_add(&c->turn->n_started, 1);
    dt_pool_run(c->turn->pool, note, c);
    return NULL;
}

/* Callers that come 20 ms apart while a pass is running are served in that order. */
static void test_turns(const dt_topo *topo) {
    turn t = {0};
    CHECK_OK(dt_pool_open(&t.pool, topo, 1));
    if (t.pool == NULL)
        return;
    pthread_t holder, threads[4];
    turn_caller callers[4];
    CHECK(pthread_create(&holder, NULL, hold_call, &t) == 0);
    usleep(20000);
    for (int i = 0; i < 4; i++) {
        callers[i] = (turn_caller){&t, i};
        CHECK(pthread_create(&threads[i], NULL, note_call, &callers[i]) == 0);
        while (atomic_load(&t.n_started) <= i)
            usleep(1000);
        usleep(20000);
    }
    atomic_store(&t.release, 1);
    pthread_join(holder, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < 4; i++)
        CHECK(t.order[i] == i);
    dt_pool_close(t.pool);
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_idle(const dt_topo *topo) {
    dt_pool *pool;
    CHECK_OK(dt_pool_open(&pool, topo, 2));
    if (pool == NULL)
        return;
    dt_pool_run(pool, nothing, NULL);
    usleep(2000);
    double before = cpu_seconds();
    usleep(50000);
    double used = cpu_seconds() - before;
    CHECK_MSG(used < 0.01, "an idle team used %.1f of 50 ms", 1e3 * used);
    dt_pool_close(pool);
}

static void test_errors(const dt_topo *topo) {
    dt_pool *pool;
    CHECK_FAILS(dt_pool_open(&pool, topo, 0), DT_ERR_INPUT, "1 to 256");
    CHECK(pool == NULL);
    CHECK_FAILS(dt_pool_open(&pool, topo, 257), DT_ERR_INPUT, "1 to 256");
    dt_pool_close(NULL);
}

/* In a process of its own, whose OpenMP has read OMP_THREAD_LIMIT=2. */
static int test_refused(const dt_topo *topo) {
    dt_pool *pool;
    CHECK_FAILS(dt_pool_open(&pool, topo, 5), DT_ERR_LIMIT, "of 5 threads");
    CHECK(pool == NULL);
    CHECK_OK(dt_pool_open(&pool, topo, 2));
    if (pool != NULL)
        dt_pool_run(pool, nothing, NULL);
    dt_pool_close(pool);
    return test_end();
}

#if defined(DT_HAVE_OPENMP) && !defined(TEST_SLOW)
static void test_thread_limit(const char *program) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        setenv("OMP_THREAD_LIMIT", "2", 1);
        execl(program, program, "refused", (char *)NULL);
        _exit(99);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

static void test_isa(void) {
    dt_isa isa;
    for (int i = 0; i < DT_ISA_COUNT; i++) {
        CHECK_OK(dt_isa_parse(&isa, dt_isa_name((dt_isa)i)));
        CHECK(isa == (dt_isa)i);
        dt_kernels table;
        if (dt_isa_runs((dt_isa)i)) {
            dt_kernels_get(&table, (dt_isa)i);
            CHECK(strcmp(table.isa, dt_isa_name((dt_isa)i)) == 0);
        }
    }
    CHECK_FAILS(dt_isa_parse(&isa, "mmx"), DT_ERR_INPUT, "c, avx2, avxvnni, avx512, amx");
    CHECK(dt_isa_runs(DT_ISA_C) && dt_isa_runs(dt_isa_best()) && !dt_isa_runs(DT_ISA_COUNT));
    for (int i = (int)dt_isa_best() + 1; i < DT_ISA_COUNT; i++)
        CHECK(!dt_isa_runs((dt_isa)i));
    printf("best instruction set: %s\n", dt_isa_name(dt_isa_best()));
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const dt_topo *topo, int n_threads) {
    enum { N = 21, BARRIERS = 2000, PASSES = 200 };
    double barrier[N], pass[N], cold[N];
    job j = {.n_barriers = BARRIERS};
    CHECK_OK(dt_pool_open(&j.pool, topo, n_threads));
    if (j.pool == NULL)
        return;
    for (int i = 0; i < N; i++) {
        int64_t t0 = dt_time_ns();
        dt_pool_run(j.pool, only_barriers, &j);
        int64_t t1 = dt_time_ns();
        for (int k = 0; k < PASSES; k++)
            dt_pool_run(j.pool, nothing, NULL);
        int64_t t2 = dt_time_ns();
        barrier[i] = (double)(t1 - t0) / BARRIERS;
        pass[i] = (double)(t2 - t1) / PASSES;
        usleep(2000);
        t0 = dt_time_ns();
        dt_pool_run(j.pool, nothing, NULL);
        cold[i] = (double)(dt_time_ns() - t0);
    }
    qsort(barrier, N, sizeof *barrier, by_value);
    qsort(pass, N, sizeof *pass, by_value);
    qsort(cold, N, sizeof *cold, by_value);
    printf(
        "%d threads: a barrier %.0f ns (best %.0f), an empty pass %.1f us (best %.1f), after 2 ms "
        "of sleep %.1f us\n",
        n_threads, barrier[N / 2], barrier[0], 1e-3 * pass[N / 2], 1e-3 * pass[0],
        1e-3 * cold[N / 2]);
    dt_pool_close(j.pool);
}

int main(int argc, char **argv) {
#ifdef TEST_SLOW
    scale = 10;
#endif
    dt_topo *topo;
    CHECK_OK(dt_topo_open(&topo, NULL));
    if (topo == NULL)
        return test_end();
    if (argc > 1 && strcmp(argv[1], "refused") == 0)
        return test_refused(topo);
    static const int counts[] = {1, 2, 3, 8}; /* also more than there are CPUs */
    for (size_t i = 0; i < DT_COUNT(counts); i++)
        test_phases(topo, counts[i]);
    test_callers(topo);
    test_turns(topo);
    test_left_out(topo);
    test_lateness();
    test_idle(topo);
    test_errors(topo);
    test_isa();
#if defined(DT_HAVE_OPENMP) && !defined(TEST_SLOW)
    test_thread_limit(argv[0]);
#endif
    if (getenv("DT_TEST_LONG") != NULL)
        for (int n = 1; n <= DT_MIN(dt_topo_n_pus(topo), THREADS_MAX); n++)
            measure(topo, n);
    dt_topo_close(topo);
    return test_end();
}
