/* dovetail bench: speed of prompt and answer in the conventions of llama-bench, answers to a
 * set of prompts, the cost curve of a pass, the latency of the ring. */
#include <string.h>

#include "src/cli/bench.h"
#include "src/cli/start.h"

enum { ISAS_MAX = 16, REPS_SPEED = 5, REPS_CURVE = 15, REPS_PROMPTS = 3, DEPTH_CURVE = 256 };

static void set_default(cli_list *list, int64_t value) {
    if (list->n == 0)
        *list = (cli_list){.values = {value}, .n = 1};
}

static bool all_zero(const cli_list *list) {
    for (int i = 0; i < list->n; i++)
        if (list->values[i] != 0)
            return false;
    return true;
}

static void set_defaults(cli_opts *o) {
    bool curve = o->curve.n > 0;
    set_default(&o->pp, 512);
    set_default(&o->tg, 128);
    set_default(&o->depth, curve ? DEPTH_CURVE : 0);
    if (o->n_reps < 0)
        o->n_reps = curve ? REPS_CURVE : o->prompts ? REPS_PROMPTS : REPS_SPEED;
    if (!o->draft && o->draft_kind == DT_DRAFT_AUTO)
        o->draft_kind = DT_DRAFT_NONE;
}

/* Combinations that ask for nothing, or for two things at once. */
static int check(const cli_opts *o) {
    bool drafts = o->draft || o->draft_kind == DT_DRAFT_MODEL || o->draft_kind == DT_DRAFT_NGRAM;
    bool speed = o->pp.n > 0 || o->tg.n > 0 || o->file;
    if (o->ring && (o->curve.n > 0 || speed || drafts || o->depth.n > 0 || o->target || o->prompts))
        return cli_fail(CLI_USAGE, "--ring measures the ring alone: it takes no model and no test");
    if (o->curve.n > 0 && (speed || drafts))
        return cli_fail(CLI_USAGE,
            "--curve measures passes of the target alone: it does not go with -p, -n, -f or a "
            "draft");
    if (o->prompts && (o->curve.n > 0 || o->pp.n > 0 || o->depth.n > 0 || o->file))
        return cli_fail(
            CLI_USAGE, "--prompts is a test of its own: it does not go with -p, -d, -f or --curve");
    if (o->prompts && (o->tg.n > 1 || all_zero(&o->tg)) && o->tg.n > 0)
        return cli_fail(CLI_USAGE, "--prompts takes one -n above 0: tokens of an answer at most");
    if (o->pp.n > 0 && o->tg.n > 0 && all_zero(&o->pp) && all_zero(&o->tg))
        return cli_fail(CLI_USAGE, "-p 0 and -n 0 leave nothing to measure");
    if (o->tg.n > 0 && all_zero(&o->tg) && drafts)
        return cli_fail(CLI_USAGE, "a draft takes part in the answer test only: give -n above 0");
    return CLI_OK;
}

/* "auto", "avx2,avx512" or "all": every set that the machine runs, the C reference only where there
 * is nothing else. Returns how many, 0 after one line on stderr. */
static int read_isas(char out[ISAS_MAX][16], const char *list) {
    int n = 0;
    if (list && strcmp(list, "all") == 0) {
        const char *name;
        for (int i = 1; (name = dt_engine_isa_name(i)) != NULL && n < ISAS_MAX; i++)
            if (dt_engine_isa_runs(name))
                snprintf(out[n++], sizeof out[0], "%s", name);
        if (n == 0)
            snprintf(out[n++], sizeof out[0], "%s", dt_engine_isa_name(0));
        return n;
    }
    for (const char *at = list ? list : "auto";; at++) {
        size_t length = strcspn(at, ",");
        bool known = length == 4 && memcmp(at, "auto", 4) == 0;
        const char *name;
        for (int i = 0; !known && (name = dt_engine_isa_name(i)) != NULL; i++)
            known = strlen(name) == length && memcmp(at, name, length) == 0;
        if (!known || n == ISAS_MAX) {
            char names[160] = "auto, all";
            for (int i = 0; (name = dt_engine_isa_name(i)) != NULL; i++) {
                size_t used = strlen(names);
                snprintf(names + used, sizeof names - used, ", %s", name);
            }
            cli_fail(CLI_USAGE, "option --isa: '%.*s' is none of %s", (int)length, at, names);
            return 0;
        }
        snprintf(out[n++], sizeof out[0], "%.*s", (int)length, at);
        at += length;
        if (*at == '\0')
            return n;
    }
}

static int run_isa(bench *b, const cli_opts *opts) {
    int code = cli_engine_open(&b->engine, opts);
    if (code != CLI_OK)
        return code;
    b->opts = opts;
    bench_describe_models(b);
    code = opts->curve.n > 0 ? bench_curve(b) : opts->prompts ? bench_prompts(b) : bench_speed(b);
    cli_engine_close(b->engine);
    return code;
}

int cmd_bench(const cli_opts *opts) {
    char isas[ISAS_MAX][16];
    cli_opts own = *opts;
    bench b = {.opts = &own};
    int code = check(opts);
    if (code != CLI_OK)
        return code;
    if (opts->ring)
        return bench_ring(opts);
    int n_isas = read_isas(isas, opts->isa);
    if (n_isas == 0)
        return CLI_USAGE;
    set_defaults(&own);
    b.rows = json_array();
    code = bench_describe_machine(&b);
    for (int i = 0; i < n_isas && code == CLI_OK; i++) {
        own.isa = isas[i];
        code = run_isa(&b, &own);
    }
    if (code == CLI_OK && opts->curve.n > 0)
        bench_print_curve(&b);
    else if (code == CLI_OK && opts->prompts)
        bench_print_prompts(&b);
    else if (code == CLI_OK)
        bench_print_speed(&b);
    json_decref(b.rows);
    return code;
}
