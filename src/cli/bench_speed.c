/* dovetail bench: pp and tg in the conventions of llama-bench. */
#include <stdlib.h>
#include <string.h>

#include "src/cli/bench.h"

static int test_prompt(bench *b, int64_t pp, int64_t depth, int n_reps, double *samples) {
    dt_session *session = NULL;
    int32_t *ids = malloc((size_t)(depth + pp) * sizeof *ids);
    if (!ids)
        return cli_fail(CLI_FAILED, "no memory for the prompt");
    int code = bench_filler(ids, depth + pp, b);
    if (code == CLI_OK)
        code = bench_open_session(&session, b, DT_DRAFT_NONE, depth + pp + 2);
    if (code == CLI_OK)
        code = bench_settle(session, ids, depth);
    for (int i = -1; i < n_reps && code == CLI_OK; i++) {
        dt_stats stats;
        cli_progress("prompt test", i + 1, n_reps + 1);
        if (dt_session_append(session, ids + depth, pp) != DT_OK) {
            code = cli_fail_err();
            break;
        }
        code = bench_generate(session, 1);
        dt_session_stats(session, &stats);
        /* The pass over the last token, which gives the answer's first, reads the prompt too. */
        if (i >= 0)
            samples[i] = (double)stats.n_prompt / (stats.prefill_seconds + stats.decode_seconds);
        if (code == CLI_OK && dt_session_rewind(session, depth) != DT_OK)
            code = cli_fail_err();
    }
    if (code == CLI_OK) {
        char name[64];
        bench_test_name(name, sizeof name, "pp", pp, depth);
        json_t *row = bench_new_row(b, name);
        json_object_set_new(row, "n_prompt", json_integer(pp));
        json_object_set_new(row, "n_gen", json_integer(0));
        json_object_set_new(row, "n_depth", json_integer(depth));
        bench_set_samples(row, samples, n_reps);
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

static int run_lane(tg_lane *lane, const bench *b, int64_t tg, int i_rep, const int32_t *base,
    int64_t n_base, int32_t *text) {
    bool warm_up = i_rep < 0;
    if ((warm_up ? dt_session_append(lane->session, base, n_base)
                 : dt_session_rewind(lane->session, n_base)) != DT_OK)
        return cli_fail_err();
    int code = bench_generate(lane->session, tg);
    if (code != CLI_OK)
        return code;
    dt_session_stats(lane->session, &lane->stats);
    if (!warm_up) {
        lane->samples[i_rep] = lane->stats.tokens_per_second;
        lane->length_sum += lane->stats.mean_acceptance_length;
    }
    const int32_t *tokens = dt_session_tokens(lane->session) + n_base;
    size_t n_bytes = (size_t)tg * sizeof *text;
    if (dt_session_n_tokens(lane->session) != n_base + tg)
        return cli_fail(CLI_FAILED, "the answer has %lld tokens, want %lld",
            (long long)(dt_session_n_tokens(lane->session) - n_base), (long long)tg);
    if (text[0] < 0)
        memcpy(text, tokens, n_bytes);
    else if (memcmp(text, tokens, n_bytes) != 0 && !dt_engine_disclaimer(b->engine)[0])
        return cli_fail(CLI_FAILED,
            "two answers to one prompt differ: this is a fault in dovetail, "
            "please report it with the command line");
    return CLI_OK;
}

static void add_lanes(
    bench *b, int64_t tg, int64_t depth, int n_reps, const tg_lane *lanes, int n_lanes) {
    char name[64];
    double plain = 0;
    bench_test_name(name, sizeof name, "tg", tg, depth);
    for (int i = 0; i < n_lanes; i++) {
        double mean, deviation;
        json_t *row = bench_new_row(b, name);
        json_object_set_new(row, "n_prompt", json_integer(0));
        json_object_set_new(row, "n_gen", json_integer(tg));
        json_object_set_new(row, "n_depth", json_integer(depth));
        report_mean(&mean, &deviation, lanes[i].samples, n_reps);
        bench_set_samples(row, lanes[i].samples, n_reps);
        json_object_set_new(row, "draft", json_string(lanes[i].stats.draft_source));
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

static int test_answer(bench *b, int64_t tg, int64_t depth, int n_reps, double *samples) {
    int64_t n_prompt = 0;
    int32_t *prompt = NULL;
    tg_lane lanes[2] = {{.samples = samples}, {.samples = samples + n_reps}};
    int n_lanes = bench_drafts(b) ? 2 : 1;
    int code = bench_prompt(&prompt, &n_prompt, b);
    if (code != CLI_OK)
        return code;
    int64_t n_fill = DT_MAX(depth - n_prompt, 0), n_base = n_fill + n_prompt;
    int32_t *base = malloc((size_t)n_base * sizeof *base);
    int32_t *text = malloc((size_t)tg * sizeof *text);
    if (!base || !text)
        code = cli_fail(CLI_FAILED, "no memory for the prompt");
    if (code == CLI_OK)
        code = bench_filler(base, n_fill, b);
    if (code == CLI_OK) {
        memcpy(base + n_fill, prompt, (size_t)n_prompt * sizeof *base);
        text[0] = -1;
        code = bench_open_session(&lanes[0].session, b, DT_DRAFT_NONE, n_base + tg + 1);
    }
    if (code == CLI_OK && n_lanes == 2)
        code = bench_open_session(
            &lanes[1].session, b, (dt_draft_kind)b->opts->draft_kind, n_base + tg + 1);
    for (int i = -1; i < n_reps && code == CLI_OK; i++)
        for (int j = 0; j < n_lanes && code == CLI_OK; j++) {
            cli_progress("answer test", (i + 1) * n_lanes + j, (n_reps + 1) * n_lanes);
            code = run_lane(&lanes[j], b, tg, i, base, n_base, text);
        }
    if (code == CLI_OK)
        add_lanes(b, tg, depth, n_reps, lanes, n_lanes);
    dt_session_close(lanes[0].session);
    dt_session_close(lanes[1].session);
    free(text);
    free(base);
    free(prompt);
    return code;
}

int bench_speed(bench *b) {
    const cli_opts *o = b->opts;
    int n_reps = (int)o->n_reps;
    double *samples = calloc(2 * (size_t)n_reps, sizeof *samples);
    if (!samples)
        return cli_fail(CLI_FAILED, "no memory for %d repetitions", n_reps);
    int code = CLI_OK;
    for (int i = 0; i < o->depth.n && code == CLI_OK; i++) {
        int64_t depth = o->depth.values[i];
        for (int j = 0; j < o->pp.n && code == CLI_OK; j++)
            if (o->pp.values[j] > 0)
                code = test_prompt(b, o->pp.values[j], depth, n_reps, samples);
        for (int j = 0; j < o->tg.n && code == CLI_OK; j++)
            if (o->tg.values[j] > 0)
                code = test_answer(b, o->tg.values[j], depth, n_reps, samples);
    }
    cli_progress_end();
    free(samples);
    return code;
}

void bench_print_speed(const bench *b) {
    static const report_column COLUMNS[] = {{"model", "model", NULL, 0}, {"size", "size", NULL, 0},
        {"isa", "isa", NULL, 0}, {"threads", "threads", NULL, 0}, {"draft", "draft", NULL, 0},
        {"test", "test", NULL, 0}, {"t/s", "avg_ts", "stddev_ts", 2},
        {"speed-up", "speed_up", NULL, 2},
        {"acceptance length", "mean_acceptance_length", NULL, 2}};
    if (b->opts->table == CLI_TABLE_MD)
        printf("%s; numerics %s\n\n", b->machine, b->numerics);
    report_table(stdout, (cli_table_form)b->opts->table, b->rows, COLUMNS, DT_COUNT(COLUMNS));
}
