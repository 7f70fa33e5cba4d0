/* dovetail bench: speed of prompt and answer in the conventions of llama-bench, the cost curve of a
 * pass, the latency of the ring. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "src/base/mem.h"
#include "src/base/ring.h"
#include "src/base/topo.h"
#include "src/base/wait.h"
#include "src/cli/report.h"

/* Fills a context to the depth asked for. */
static const char FILLER[] =
    "A river does not hurry, and yet it arrives. The mill on its bank was built when the town was "
    "young: two storeys of grey stone, a wheel of oak, and a channel that a child could step over. "
    "In spring the water stood high and the stones turned all night; in August they turned for an "
    "hour after rain. The miller kept a book of these hours, and from the book his daughter "
    "learned "
    "to guess, weeks ahead, how much grain the mill could take. People called it luck. ";

/* What the answer test answers: long enough that no model is done after a hundred tokens. */
static const char QUESTION[] =
    "Write a Python class for a double-ended queue on top of a circular buffer, with the methods "
    "push_front, push_back, pop_front, pop_back, __len__, __iter__ and __getitem__. Add type "
    "hints, "
    "a docstring for every method and a short test for each of them.";

typedef struct bench {
    const cli_opts *opts;
    dt_engine *engine;
    const dt_model *model;
    json_t *rows;
    char model_name[96];
    char size[32];
} bench;

/* ---- texts ---------------------------------------------------------------------------------- */

/* Exactly n tokens of prose. */
static int make_filler(int32_t *out, int64_t n, const bench *b) {
    int32_t *ids;
    int64_t n_ids;
    int code = cli_encode(&ids, &n_ids, b->model->vocab, FILLER, sizeof FILLER - 1, false, false);
    if (code != CLI_OK)
        return code;
    for (int64_t i = 0; i < n; i++)
        out[i] = ids[i % n_ids];
    free(ids);
    return CLI_OK;
}

/* The prompt of the answer test: the user's own as it stands, or the question above as a chat. */
static int make_prompt(int32_t **out, int64_t *n_out, const bench *b) {
    dt_chat_format format;
    const char *system;
    if (b->opts->prompt || b->opts->file) {
        cli_text text;
        int code = cli_read_prompt(&text, b->opts);
        if (code != CLI_OK)
            return code;
        code = cli_encode(out, n_out, b->model->vocab, text.data, text.n_bytes, true, false);
        free(text.data);
        return code;
    }
    if (dt_chat_detect(&format, &system, b->model->file) != DT_OK)
        return cli_encode(out, n_out, b->model->vocab, QUESTION, sizeof QUESTION - 1, true, false);
    char text[4096];
    dt_chat_turn turn = {"user", QUESTION};
    size_t n = dt_chat_render(text, sizeof text, format, system, &turn, 1);
    return cli_encode(out, n_out, b->model->vocab, text, DT_MIN(n, sizeof text - 1), true, true);
}

/* ---- rows ----------------------------------------------------------------------------------- */

static const char *draft_name(const bench *b) {
    switch ((dt_draft_kind)b->opts->draft_kind) {
    case DT_DRAFT_AUTO:
        return b->opts->draft ? "model" : NULL;
    case DT_DRAFT_MODEL:
        return "model";
    case DT_DRAFT_NGRAM:
        return "ngram";
    case DT_DRAFT_NONE:
        break;
    }
    return NULL;
}

static void describe_model(bench *b) {
    dt_text name = {0};
    const char *path = dt_gguf_path(b->model->file);
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    if (dt_gguf_get_text(b->model->file, "general.name", &name) == DT_OK && name.n_bytes > 0)
        snprintf(
            b->model_name, sizeof b->model_name, "%.*s", (int)DT_MIN(name.n_bytes, 60u), name.data);
    else
        snprintf(b->model_name, sizeof b->model_name, "%s", base);
    double mib = (double)dt_gguf_file_bytes(b->model->file) / (1024.0 * 1024.0);
    if (mib >= 1024)
        snprintf(b->size, sizeof b->size, "%.2f GiB", mib / 1024);
    else
        snprintf(b->size, sizeof b->size, "%.2f MiB", mib);
}

static json_t *new_row(bench *b, const char *test) {
    json_t *row = json_object();
    json_object_set_new(row, "model", report_bytes(b->model_name, strlen(b->model_name)));
    json_object_set_new(row, "size", json_string(b->size));
    json_object_set_new(
        row, "size_bytes", json_integer((json_int_t)dt_gguf_file_bytes(b->model->file)));
    json_object_set_new(row, "isa", json_string(dt_engine_isa(b->engine)));
    json_object_set_new(row, "threads", json_integer(dt_engine_n_threads(b->engine)));
    json_object_set_new(row, "test", json_string(test));
    json_array_append_new(b->rows, row);
    return row;
}

static void set_samples(json_t *row, const double *samples, int n) {
    double mean, deviation;
    json_t *list = json_array();
    report_mean(&mean, &deviation, samples, n);
    for (int i = 0; i < n; i++)
        json_array_append_new(list, report_real(samples[i]));
    json_object_set_new(row, "avg_ts", report_real(mean));
    json_object_set_new(row, "stddev_ts", report_real(deviation));
    json_object_set_new(row, "samples_ts", list);
}

static void test_name(char *out, size_t n_bytes, const char *kind, int64_t n, int64_t depth) {
    if (depth > 0)
        snprintf(out, n_bytes, "%s%lld @ d%lld", kind, (long long)n, (long long)depth);
    else
        snprintf(out, n_bytes, "%s%lld", kind, (long long)n);
}

/* ---- pp and tg ------------------------------------------------------------------------------ */

static int open_session(dt_session **out, const bench *b, dt_draft_kind draft, int64_t n_ctx) {
    dt_session_options options;
    cli_session_options(&options, b->opts);
    options.draft = draft;
    options.n_ctx = (int)n_ctx;
    return dt_session_open(out, b->engine, &options) == DT_OK ? CLI_OK : cli_fail_err();
}

/* Generates exactly n tokens. */
static int generate(dt_session *session, int64_t n) {
    dt_stop stop;
    dt_generate_options options = {.n_max = n, .ignore_end = true};
    return dt_session_generate(&stop, session, &options) == DT_OK ? CLI_OK : cli_fail_err();
}

/* Puts `ids` on the timeline and runs the prefill. */
static int settle(dt_session *session, const int32_t *ids, int64_t n) {
    if (n == 0)
        return CLI_OK;
    if (dt_session_append(session, ids, n) != DT_OK)
        return cli_fail_err();
    int code = generate(session, 1);
    if (code == CLI_OK && dt_session_rewind(session, n) != DT_OK)
        code = cli_fail_err();
    return code;
}

static int bench_prompt(bench *b, int64_t depth, int n_reps, double *samples) {
    int64_t pp = b->opts->pp;
    dt_session *session = NULL;
    int32_t *ids = malloc((size_t)(depth + pp) * sizeof *ids);
    if (!ids)
        return cli_fail(CLI_FAILED, "no memory for the prompt");
    int code = make_filler(ids, depth + pp, b);
    if (code == CLI_OK)
        code = open_session(&session, b, DT_DRAFT_NONE, depth + pp + 2);
    if (code == CLI_OK)
        code = settle(session, ids, depth);
    for (int i = -1; i < n_reps && code == CLI_OK; i++) {
        dt_stats stats;
        cli_progress("prompt test", i + 1, n_reps + 1);
        if (dt_session_append(session, ids + depth, pp) != DT_OK) {
            code = cli_fail_err();
            break;
        }
        code = generate(session, 1);
        dt_session_stats(session, &stats);
        if (i >= 0)
            samples[i] = (double)pp / stats.prefill_seconds;
        if (code == CLI_OK && dt_session_rewind(session, depth) != DT_OK)
            code = cli_fail_err();
    }
    if (code == CLI_OK) {
        char name[64];
        test_name(name, sizeof name, "pp", pp, depth);
        set_samples(new_row(b, name), samples, n_reps);
    }
    dt_session_close(session);
    free(ids);
    return code;
}

/* The answer test of one session; plain and drafted ones are run in turn. */
typedef struct tg_lane {
    dt_session *session;
    double *samples;
    double length_sum; /* of mean acceptance lengths */
    dt_stats stats;
} tg_lane;

static int run_lane(
    tg_lane *lane, const bench *b, int i_rep, const int32_t *base, int64_t n_base, int32_t *text) {
    bool warm_up = i_rep < 0;
    if ((warm_up ? dt_session_append(lane->session, base, n_base)
                 : dt_session_rewind(lane->session, n_base)) != DT_OK)
        return cli_fail_err();
    int code = generate(lane->session, b->opts->tg);
    if (code != CLI_OK)
        return code;
    dt_session_stats(lane->session, &lane->stats);
    if (!warm_up) {
        lane->samples[i_rep] = lane->stats.tokens_per_second;
        lane->length_sum += lane->stats.mean_acceptance_length;
    }
    const int32_t *tokens = dt_session_tokens(lane->session) + n_base;
    size_t n_bytes = (size_t)b->opts->tg * sizeof *text;
    if (dt_session_n_tokens(lane->session) != n_base + b->opts->tg)
        return cli_fail(CLI_FAILED, "the answer has %lld tokens, want %lld",
            (long long)(dt_session_n_tokens(lane->session) - n_base), (long long)b->opts->tg);
    if (text[0] < 0)
        memcpy(text, tokens, n_bytes);
    else if (memcmp(text, tokens, n_bytes) != 0 && !dt_engine_disclaimer(b->engine)[0])
        return cli_fail(CLI_FAILED,
            "two answers to one prompt differ: this is a fault in dovetail, "
            "please report it with the command line");
    return CLI_OK;
}

static void report_lanes(bench *b, int64_t depth, int n_reps, const tg_lane *lanes, int n_lanes) {
    char name[64];
    double plain = 0;
    test_name(name, sizeof name, "tg", b->opts->tg, depth);
    for (int i = 0; i < n_lanes; i++) {
        double mean, deviation;
        json_t *row = new_row(b, name);
        report_mean(&mean, &deviation, lanes[i].samples, n_reps);
        set_samples(row, lanes[i].samples, n_reps);
        json_object_set_new(row, "draft", json_string(i == 0 ? "none" : draft_name(b)));
        if (i == 0) {
            plain = mean;
            continue;
        }
        json_object_set_new(row, "draft_device", json_string(lanes[i].stats.draft_device));
        json_object_set_new(row, "draft_state", json_string(lanes[i].stats.draft_state));
        json_object_set_new(row, "speed_up", report_real(mean / plain));
        json_object_set_new(
            row, "mean_acceptance_length", report_real(lanes[i].length_sum / n_reps));
    }
}

static int bench_answer(bench *b, int64_t depth, int n_reps, double *samples) {
    int64_t tg = b->opts->tg, n_prompt = 0;
    int32_t *prompt = NULL;
    tg_lane lanes[2] = {{.samples = samples}, {.samples = samples + n_reps}};
    int n_lanes = draft_name(b) ? 2 : 1;
    int code = make_prompt(&prompt, &n_prompt, b);
    if (code != CLI_OK)
        return code;
    int64_t n_fill = DT_MAX(depth - n_prompt, 0), n_base = n_fill + n_prompt;
    int32_t *base = malloc((size_t)n_base * sizeof *base);
    int32_t *text = malloc((size_t)tg * sizeof *text);
    if (!base || !text)
        code = cli_fail(CLI_FAILED, "no memory for the prompt");
    if (code == CLI_OK)
        code = make_filler(base, n_fill, b);
    if (code == CLI_OK) {
        memcpy(base + n_fill, prompt, (size_t)n_prompt * sizeof *base);
        text[0] = -1;
        code = open_session(&lanes[0].session, b, DT_DRAFT_NONE, n_base + tg + 1);
    }
    if (code == CLI_OK && n_lanes == 2)
        code =
            open_session(&lanes[1].session, b, (dt_draft_kind)b->opts->draft_kind, n_base + tg + 1);
    for (int i = -1; i < n_reps && code == CLI_OK; i++)
        for (int j = 0; j < n_lanes && code == CLI_OK; j++) {
            cli_progress("answer test", (i + 1) * n_lanes + j, (n_reps + 1) * n_lanes);
            code = run_lane(&lanes[j], b, i, base, n_base, text);
        }
    if (code == CLI_OK)
        report_lanes(b, depth, n_reps, lanes, n_lanes);
    dt_session_close(lanes[0].session);
    dt_session_close(lanes[1].session);
    free(text);
    free(base);
    free(prompt);
    return code;
}

static int bench_speed(bench *b) {
    static const report_column COLUMNS[] = {{"model", "model", NULL, 0}, {"size", "size", NULL, 0},
        {"isa", "isa", NULL, 0}, {"threads", "threads", NULL, 0}, {"draft", "draft", NULL, 0},
        {"test", "test", NULL, 0}, {"t/s", "avg_ts", "stddev_ts", 2},
        {"speed-up", "speed_up", NULL, 2},
        {"acceptance length", "mean_acceptance_length", NULL, 2}};
    int n_reps = b->opts->n_reps > 0 ? (int)b->opts->n_reps : 5;
    int64_t depth = DT_MAX(b->opts->depth, 0);
    double *samples = calloc(2 * (size_t)n_reps, sizeof *samples);
    if (!samples)
        return cli_fail(CLI_FAILED, "no memory for %d repetitions", n_reps);
    int code = CLI_OK;
    if (b->opts->pp > 0)
        code = bench_prompt(b, depth, n_reps, samples);
    if (code == CLI_OK && b->opts->tg > 0)
        code = bench_answer(b, depth, n_reps, samples);
    cli_progress_end();
    if (code == CLI_OK)
        report_table(stdout, (cli_table_form)b->opts->table, b->rows, COLUMNS, DT_COUNT(COLUMNS));
    free(samples);
    return code;
}

/* ---- the cost curve ------------------------------------------------------------------------- */

static int time_passes(bench *b, dt_session *session, int n_reps, double *samples) {
    int n_curve = b->opts->n_curve;
    /* Sizes in turn, so that a slow spell of the machine touches all of them. Row n_curve is m = 1,
     * for the ratios of a curve without it. */
    for (int i = -1; i < n_reps; i++) {
        cli_progress("passes", i + 1, n_reps + 1);
        for (int j = 0; j <= n_curve; j++) {
            double seconds;
            int m = j < n_curve ? (int)b->opts->curve[j] : 1;
            if (dt_session_time_pass(&seconds, session, m) != DT_OK)
                return cli_fail_err();
            if (i >= 0)
                samples[j * n_reps + i] = seconds;
        }
    }
    return CLI_OK;
}

static int bench_curve(bench *b) {
    static const report_column COLUMNS[] = {{"m", "m", NULL, 0}, {"ms", "ms", NULL, 2},
        {"T(m) / T(1)", "ratio", NULL, 2}, {"rows/s", "rows_per_second", NULL, 1}};
    int n_curve = b->opts->n_curve;
    int n_reps = b->opts->n_reps > 0 ? (int)b->opts->n_reps : 15;
    int64_t depth = b->opts->depth >= 0 ? b->opts->depth : 256;
    dt_session *session = NULL;
    double *samples = calloc((size_t)(n_curve + 1) * (size_t)n_reps, sizeof *samples);
    int32_t *ids = malloc((size_t)(depth + 1) * sizeof *ids);
    int code = CLI_OK;
    if (!samples || !ids)
        code = cli_fail(CLI_FAILED, "no memory for %d repetitions", n_reps);
    if (code == CLI_OK)
        code = make_filler(ids, depth, b);
    if (code == CLI_OK)
        code = open_session(&session, b, DT_DRAFT_NONE, depth + DT_TREE_MAX + 2);
    if (code == CLI_OK)
        code = settle(session, ids, depth);
    if (code == CLI_OK)
        code = time_passes(b, session, n_reps, samples);
    cli_progress_end();
    if (code == CLI_OK) {
        char name[64];
        int i_one = n_curve;
        for (int j = 0; j < n_curve; j++)
            i_one = b->opts->curve[j] == 1 ? j : i_one;
        double one = report_quantile(samples + i_one * n_reps, n_reps, 0.5);
        for (int j = 0; j < n_curve; j++) {
            double seconds = report_quantile(samples + j * n_reps, n_reps, 0.5);
            test_name(name, sizeof name, "pass of ", b->opts->curve[j], depth);
            json_t *row = new_row(b, name);
            json_object_set_new(row, "m", json_integer(b->opts->curve[j]));
            json_object_set_new(row, "ms", report_real(seconds * 1e3));
            json_object_set_new(row, "ratio", report_real(seconds / one));
            json_object_set_new(
                row, "rows_per_second", report_real((double)b->opts->curve[j] / seconds));
        }
        if (b->opts->table == CLI_TABLE_MD)
            printf("%s, %s, %s, %d threads, depth %lld, medians of %d\n\n", b->model_name, b->size,
                dt_engine_isa(b->engine), dt_engine_n_threads(b->engine), (long long)depth, n_reps);
        report_table(stdout, (cli_table_form)b->opts->table, b->rows, COLUMNS, DT_COUNT(COLUMNS));
    }
    dt_session_close(session);
    free(ids);
    free(samples);
    return code;
}

/* ---- the ring ------------------------------------------------------------------------------- */

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

static int bench_ring(const cli_opts *opts) {
    static const report_column COLUMNS[] = {{"one-way latency", "test", NULL, 0},
        {"messages", "messages", NULL, 0}, {"median, ns", "median_ns", NULL, 0},
        {"99th percentile, ns", "p99_ns", NULL, 0}};
    dt_topo *topo = NULL;
    json_t *rows = json_array();
    int code = CLI_OK;
    if (dt_topo_open(&topo, NULL) != DT_OK)
        code = cli_fail_err();
    else if (dt_topo_n_pus(topo) < 2)
        code = cli_fail(CLI_FAILED, "the ring needs two hardware threads, this process may use 1");
    if (code == CLI_OK)
        code = ring_round(rows, "receiver spinning", topo, 50000, 0);
    if (code == CLI_OK)
        code = ring_round(rows, "receiver asleep", topo, 2000, 200);
    if (code == CLI_OK)
        report_table(stdout, (cli_table_form)opts->table, rows, COLUMNS, DT_COUNT(COLUMNS));
    json_decref(rows);
    dt_topo_close(topo);
    return code;
}

int cmd_bench(const cli_opts *opts) {
    if (opts->ring)
        return bench_ring(opts);
    bench b = {.opts = opts};
    cli_opts own = *opts;
    if (!opts->draft && opts->draft_kind == DT_DRAFT_AUTO)
        own.draft_kind = DT_DRAFT_NONE;
    b.opts = &own;
    int code = cli_engine_open(&b.engine, &own);
    if (code == CLI_OK) {
        b.model = dt_engine_target(b.engine);
        b.rows = json_array();
        describe_model(&b);
        code = own.n_curve > 0 ? bench_curve(&b) : bench_speed(&b);
    }
    json_decref(b.rows);
    dt_engine_close(b.engine);
    return code;
}
