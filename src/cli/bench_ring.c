/* dovetail bench --ring: the latency of a message between the two threads. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/base/mem.h"
#include "src/base/ring.h"
#include "src/base/topo.h"
#include "src/base/wait.h"
#include "src/cli/bench.h"

/* Two threads send each other the time, one message under way at any moment. Between spinning
 * threads a sample is half a round trip, which two clocks that disagree cannot falsify; a sleeper's
 * wake-up takes far longer than clocks disagree, and is timed one way. */
typedef struct ring_end {
    dt_ring ring;    /* to this end */
    dt_bell bell;    /* of this end */
    int64_t sent_ns; /* the ring's one slot */
} ring_end;

typedef struct ring_bench {
    ring_end ends[2];
    const dt_topo *topo;
    int n_messages, pause_us;
    double *samples; /* ns, [n_messages] */
} ring_bench;

static void ring_send(ring_end *to) {
    uint32_t i_slot;
    while (!dt_ring_reserve(&i_slot, &to->ring))
        dt_spin_pause();
    to->sent_ns = dt_time_ns();
    dt_ring_commit(&to->ring);
    dt_bell_ring(&to->bell);
}

/* Waits for a message; how long it was under way. */
static double ring_receive(ring_end *self) {
    while (true) {
        uint32_t i_slot, seen = dt_bell_count(&self->bell);
        if (dt_ring_peek(&i_slot, &self->ring)) {
            double ns = (double)(dt_time_ns() - self->sent_ns);
            dt_ring_release(&self->ring);
            return ns;
        }
        dt_bell_wait(&self->bell, seen, INT64_MAX);
    }
}

static void *ring_answerer(void *arg) {
    ring_bench *b = arg;
    (void)dt_topo_bind(b->topo, 1);
    for (int i = 0; i < b->n_messages; i++) {
        double ns = ring_receive(&b->ends[1]);
        if (b->pause_us > 0)
            b->samples[i] = ns;
        ring_send(&b->ends[0]);
    }
    return NULL;
}

static void *ring_asker(void *arg) {
    ring_bench *b = arg;
    (void)dt_topo_bind(b->topo, 0);
    for (int i = 0; i < b->n_messages; i++) {
        if (b->pause_us > 0)
            nanosleep(&(struct timespec){0, b->pause_us * 1000L}, NULL);
        int64_t start_ns = dt_time_ns();
        ring_send(&b->ends[1]);
        ring_receive(&b->ends[0]);
        if (b->pause_us == 0)
            b->samples[i] = (double)(dt_time_ns() - start_ns) / 2;
    }
    return NULL;
}

/* n messages, `pause_us` apart: 0 finds the receiver spinning, a long pause asleep. Both ends have
 * threads of their own: a bell spins only if the thread that set it up may run on two cores. */
static int ring_round(json_t *rows, const char *test, const dt_topo *topo, int n, int pause_us) {
    ring_bench *b = NULL;
    double *samples = malloc((size_t)n * sizeof *samples);
    pthread_t threads[2];
    if (!samples || dt_mem_alloc(&b, sizeof *b) != DT_OK) {
        free(samples);
        return cli_fail(CLI_FAILED, "no memory for %d samples", n);
    }
    *b = (ring_bench){.topo = topo, .n_messages = n, .pause_us = pause_us, .samples = samples};
    for (int i = 0; i < 2; i++) {
        dt_ring_init(&b->ends[i].ring, 1, 0);
        dt_bell_init(&b->ends[i].bell);
    }
    int err = pthread_create(&threads[1], NULL, ring_answerer, b);
    if (err == 0) {
        err = pthread_create(&threads[0], NULL, ring_asker, b);
        if (err != 0) /* the other one waits for messages for ever: play its partner */
            ring_asker(b);
        else
            pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
    }
    if (err == 0) {
        int n_warm = n / 10; /* the first tenth warms up */
        double median = report_quantile(samples + n_warm, n - n_warm, 0.5);
        double late = report_quantile(samples + n_warm, n - n_warm, 0.99);
        json_array_append_new(
            rows, json_pack("{s:s, s:i, s:o, s:o}", "test", test, "messages", n - n_warm,
                      "median_ns", report_real(median), "p99_ns", report_real(late)));
    }
    dt_mem_free(b);
    free(samples);
    return err == 0 ? CLI_OK : cli_fail(CLI_FAILED, "cannot start a thread: %s", strerror(err));
}

int bench_ring(const cli_opts *opts) {
    static const report_column COLUMNS[] = {{"one-way latency", "test", NULL, 0},
        {"messages", "messages", NULL, 0}, {"median, ns", "median_ns", NULL, 0},
        {"99th percentile, ns", "p99_ns", NULL, 0}};
    dt_topo *topo = NULL;
    bench b = {.opts = opts};
    json_t *rows = json_array(), *row;
    size_t i;
    int code = bench_describe_machine(&b);
    if (code != CLI_OK) {
        json_decref(rows);
        return code;
    }
    if (dt_topo_open(&topo, NULL) != DT_OK)
        code = cli_fail_err();
    else if (dt_topo_n_pus(topo) < 2)
        code = cli_fail(CLI_FAILED, "the ring needs two hardware threads, this process may use 1");
    if (code == CLI_OK)
        code = ring_round(rows, "receiver spinning", topo, 50000, 0);
    if (code == CLI_OK)
        code = ring_round(rows, "receiver asleep", topo, 2000, 200);
    json_array_foreach(rows, i, row) {
        json_object_set_new(row, "machine", report_bytes(b.machine, strlen(b.machine)));
        json_object_set_new(row, "version", json_string(DT_VERSION));
    }
    if (code == CLI_OK && opts->table == CLI_TABLE_MD)
        printf("%s\n\n", b.machine);
    if (code == CLI_OK)
        report_table(stdout, (cli_table_form)opts->table, rows, COLUMNS, DT_COUNT(COLUMNS));
    json_decref(rows);
    dt_topo_close(topo);
    return code;
}
