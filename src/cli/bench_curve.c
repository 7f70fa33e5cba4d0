/* dovetail bench --curve: the time of a pass over m tokens, beside the time that reading the
 * weights takes on the same threads in the same run: the floor. */
#include <stdlib.h>
#include <string.h>

#include "src/cli/bench.h"

/* The floor is read from a buffer that no cache holds, or, where the model fits the last level,
 * from one of the model's own size. */
#define FLOOR_BYTES ((size_t)1 << 30)
static const int STREAMS[] = {1, 2, 4, 8, 16};

static int open_floor(dt_reader **out, bench *b) {
    size_t n_bytes = dt_engine_pass_bytes(b->engine);
    b->floor_bytes = n_bytes <= b->cache_bytes ? n_bytes : DT_MAX(n_bytes, FLOOR_BYTES);
    return dt_reader_open(out, b->engine, b->floor_bytes) == DT_OK ? CLI_OK : cli_fail_err();
}

static int read_floor(bench *b, dt_reader *reader) {
    for (size_t i = 0; i < DT_COUNT(STREAMS); i++) {
        double rate;
        if (dt_reader_rate(&rate, reader, STREAMS[i]) != DT_OK)
            return cli_fail_err();
        if (rate > b->floor_rate) {
            b->floor_rate = rate;
            b->floor_streams = STREAMS[i];
        }
    }
    return CLI_OK;
}

/* samples[n_curve + 1][n_reps] */
static int time_passes(
    bench *b, dt_session *session, dt_reader *reader, int n_reps, double *samples) {
    int n_curve = b->opts->curve.n;
    /* Sizes in turn, and the floor among them, so that a slow spell of the machine touches all.
     * Row n_curve is m = 1, for the ratios of a curve without it. */
    for (int i = -1; i < n_reps; i++) {
        cli_progress("passes", i + 1, n_reps + 1);
        for (int j = 0; j <= n_curve; j++) {
            double seconds;
            int m = j < n_curve ? (int)b->opts->curve.values[j] : 1;
            if (dt_session_time_pass(&seconds, session, m) != DT_OK)
                return cli_fail_err();
            if (i >= 0)
                samples[j * n_reps + i] = seconds;
        }
        int code = read_floor(b, reader);
        if (code != CLI_OK)
            return code;
    }
    return CLI_OK;
}

static void add_rows(bench *b, int64_t depth, int n_reps, double *samples) {
    const cli_list *curve = &b->opts->curve;
    char name[64];
    double n_bytes = (double)dt_engine_pass_bytes(b->engine);
    int i_one = curve->n;
    for (int j = 0; j < curve->n; j++)
        i_one = curve->values[j] == 1 ? j : i_one;
    double one = report_quantile(samples + i_one * n_reps, n_reps, 0.5);
    for (int j = 0; j < curve->n; j++) {
        double seconds = report_quantile(samples + j * n_reps, n_reps, 0.5);
        bench_test_name(name, sizeof name, "pass of ", curve->values[j], depth);
        json_t *row = bench_new_row(b, name);
        json_object_set_new(row, "n_depth", json_integer(depth));
        json_object_set_new(row, "m", json_integer(curve->values[j]));
        json_object_set_new(row, "ms", report_real(seconds * 1e3));
        json_object_set_new(row, "ms_min", report_real(samples[j * n_reps] * 1e3)); /* sorted */
        json_object_set_new(row, "ratio", report_real(seconds / one));
        json_object_set_new(row, "gb_per_s", report_real(n_bytes / seconds * 1e-9));
        json_object_set_new(
            row, "rows_per_second", report_real((double)curve->values[j] / seconds));
        json_object_set_new(row, "pass_bytes", json_integer((json_int_t)n_bytes));
        json_object_set_new(row, "repetitions", json_integer(n_reps));
    }
}

static int curve_at(bench *b, int64_t depth, dt_reader *reader) {
    int n_reps = (int)b->opts->n_reps;
    dt_session *session = NULL;
    double *samples = calloc((size_t)(b->opts->curve.n + 1) * (size_t)n_reps, sizeof *samples);
    int32_t *ids = malloc((size_t)(depth + 1) * sizeof *ids);
    int code = CLI_OK;
    if (!samples || !ids)
        code = cli_fail(CLI_FAILED, "no memory for %d repetitions", n_reps);
    if (code == CLI_OK)
        code = bench_filler(ids, depth, b);
    if (code == CLI_OK)
        code = bench_open_session(&session, b, DT_DRAFT_NONE, depth + DT_TREE_MAX + 2);
    if (code == CLI_OK)
        code = bench_settle(session, ids, depth);
    if (code == CLI_OK)
        code = time_passes(b, session, reader, n_reps, samples);
    cli_progress_end();
    if (code == CLI_OK)
        add_rows(b, depth, n_reps, samples);
    dt_session_close(session);
    free(ids);
    free(samples);
    return code;
}

int bench_curve(bench *b) {
    dt_reader *reader = NULL;
    int code = open_floor(&reader, b);
    for (int i = 0; i < b->opts->depth.n && code == CLI_OK; i++)
        code = curve_at(b, b->opts->depth.values[i], reader);
    dt_reader_close(reader);
    return code;
}

/* The floor is the best of the whole run, so it is known only at its end. */
static void add_floor(bench *b) {
    size_t i;
    json_t *row;
    json_array_foreach(b->rows, i, row) {
        double ms = json_real_value(json_object_get(row, "ms"));
        double n_bytes = (double)json_integer_value(json_object_get(row, "pass_bytes"));
        double floor_ms = n_bytes / b->floor_rate * 1e3;
        json_object_set_new(row, "ratio_to_floor", report_real(ms / floor_ms));
        json_object_set_new(row, "floor_ms", report_real(floor_ms));
        json_object_set_new(row, "floor_gb_per_s", report_real(b->floor_rate * 1e-9));
        json_object_set_new(row, "floor_streams", json_integer(b->floor_streams));
        json_object_set_new(row, "floor_buffer_bytes", json_integer((json_int_t)b->floor_bytes));
    }
}

/* The rows' common members once, the rows without them as "curve". */
static json_t *fold(const json_t *rows) {
    static const char *const COMMON[] = {"model", "size", "size_bytes", "machine", "threads",
        "numerics", "version", "pass_bytes", "repetitions", "floor_ms", "floor_gb_per_s",
        "floor_streams", "floor_buffer_bytes"};
    json_t *root = json_object(), *curve = json_array(), *row;
    size_t i_row;
    for (size_t i = 0; i < DT_COUNT(COMMON); i++)
        json_object_set(root, COMMON[i], json_object_get(json_array_get(rows, 0), COMMON[i]));
    json_array_foreach(rows, i_row, row) {
        json_t *own = json_copy(row);
        for (size_t i = 0; i < DT_COUNT(COMMON); i++)
            json_object_del(own, COMMON[i]);
        json_array_append_new(curve, own);
    }
    json_object_set_new(root, "curve", curve);
    return root;
}

void bench_print_curve(bench *b) {
    static const report_column COLUMNS[] = {{"isa", "isa", NULL, 0}, {"depth", "n_depth", NULL, 0},
        {"m", "m", NULL, 0}, {"ms", "ms", NULL, 2}, {"T(m) / T(1)", "ratio", NULL, 2},
        {"T(m) / F", "ratio_to_floor", NULL, 2}, {"GB/s", "gb_per_s", NULL, 1},
        {"rows/s", "rows_per_second", NULL, 1}};
    add_floor(b);
    if (b->opts->table == CLI_TABLE_JSON) {
        json_t *root = fold(b->rows);
        report_json(stdout, root, JSON_INDENT(2));
        json_decref(root);
        return;
    }
    if (b->opts->table == CLI_TABLE_MD) {
        const json_t *row = json_array_get(b->rows, 0);
        double n_bytes = (double)json_integer_value(json_object_get(row, "pass_bytes"));
        bench_print_names(b);
        printf(", %d threads; numerics %s; medians of %d\n",
            (int)json_integer_value(json_object_get(row, "threads")), b->numerics,
            (int)b->opts->n_reps);
        printf("F = %.2f ms: %.1f MB at %.1f GB/s, read from a buffer of %.0f MB, %d stream%s a "
               "thread\n\n",
            n_bytes / b->floor_rate * 1e3, n_bytes * 1e-6, b->floor_rate * 1e-9,
            (double)b->floor_bytes * 1e-6, b->floor_streams, b->floor_streams == 1 ? "" : "s");
    }
    report_table(stdout, (cli_table_form)b->opts->table, b->rows, COLUMNS, DT_COUNT(COLUMNS));
}
