#include "src/spec/session.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "src/base/mem.h"
#include "src/spec/place.h"
#include "src/spec/plan.h"

enum {
    /* Where one size is given and the others are not. */
    TREE_DEFAULT = 8,
    TOPK_DEFAULT = 2,
    /* As far as the planner may go. */
    TREE_PLANNED = 32,
    TOPK_PLANNED = 4,
    PREFILL_BATCH_DEFAULT = 64,
    PREFILL_BATCH_MAX = 4096,
};

void dt_session_options_default(dt_session_options *out) {
    *out = (dt_session_options){.guard = true};
    dt_sampling_default(&out->sampling);
}

/* ---- opening ---- */

static dt_err check_range(const char *name, int value, int low, int high) {
    if (value < low || value > high)
        DT_FAIL(DT_ERR_INPUT, "%s: want %d to %d, got %d", name, low, high, value);
    return DT_OK;
}

static dt_err fill_options(dt_session_options *o) {
    DT_TRY(check_range("context size", o->n_ctx, 1, DT_CONTEXT_MAX));
    bool given = o->tree != 0 || o->depth != 0 || o->topk != 0;
    if (o->tree == 0)
        o->tree = given ? TREE_DEFAULT : TREE_PLANNED;
    if (o->topk == 0)
        o->topk = given ? TOPK_DEFAULT : TOPK_PLANNED;
    if (o->prefill_batch == 0)
        o->prefill_batch = PREFILL_BATCH_DEFAULT;
    DT_TRY(check_range("tree size", o->tree, 2, DT_TREE_MAX));
    if (o->depth == 0)
        o->depth = DT_MIN(o->tree - 1, DT_STAT_DEPTH_MAX);
    DT_TRY(check_range("tree depth", o->depth, 1, DT_STAT_DEPTH_MAX));
    DT_TRY(check_range("children of a node", o->topk, 1, DT_TOPK_MAX));
    DT_TRY(check_range("trace", o->n_trace, 0, 1 << 24));
    DT_TRY(check_range("prefill batch", o->prefill_batch, 1, PREFILL_BATCH_MAX));
    o->prefill_batch = DT_MIN(o->prefill_batch, DT_BATCH_MAX); /* what one pass takes */
    return dt_sampling_check(&o->sampling);
}

/* The source that the options ask for, NULL for none. */
static dt_err open_source(dt_draft **out, dt_session *s) {
    const dt_session_options *o = &s->options;
    *out = o->own_draft;
    s->n_allowed = s->n_vocab;
    if (*out)
        return DT_OK;
    bool model = o->draft == DT_DRAFT_MODEL || (o->draft == DT_DRAFT_AUTO && s->parts.draft);
    bool ngram = o->draft == DT_DRAFT_NGRAM || o->draft == DT_DRAFT_AUTO;
    if (!model && !ngram)
        return DT_OK;
    if (model && !s->parts.draft)
        DT_FAIL(DT_ERR_INPUT, "a draft model is asked for, but none is loaded");
    int32_t n_allowed = model ? DT_MIN(s->parts.n_common, s->n_vocab) : s->n_vocab;
    /* What the n-gram copies from the text is the target's own. */
    s->n_allowed = ngram ? s->n_vocab : n_allowed;
    return dt_draft_planned_open(out, &(dt_draft_planned_options){
                                          .model =
                                              {
                                                  .n_ctx = s->n_ctx,
                                                  .tree = o->tree,
                                                  .depth = o->depth,
                                                  .topk = o->topk,
                                                  .n_allowed = n_allowed,
                                                  .n_low = s->parts.n_low,
                                                  .sampling = o->sampling,
                                                  .patience_ns = s->parts.patience_ns,
                                                  .noise = !o->independent_noise,
                                                  .now_ns = s->parts.now_ns,
                                              },
                                          .forward = model ? s->parts.draft : NULL,
                                          .ngram = ngram,
                                          .rests = o->guard,
                                          .shaped = s->tree_given,
                                          .record = s->parts.record,
                                      });
}

static dt_err open_parts(dt_session *s) {
    size_t n_ctx = (size_t)s->n_ctx;
    DT_TRY(dt_mem_alloc(&s->tokens, (n_ctx + DT_TREE_MAX) * sizeof *s->tokens));
    DT_TRY(dt_mem_alloc(&s->hashes, (n_ctx + 1) * sizeof *s->hashes));
    s->hashes[0] = DT_HASH_EMPTY;
    DT_TRY(dt_sampler_init(&s->sampler, &s->options.sampling, s->n_vocab));
    size_t n_bytes = s->parts.speech.n_bytes_max;
    DT_TRY(dt_mem_alloc(&s->token_bytes, n_bytes));
    DT_TRY(dt_answer_init(&s->answer, n_bytes * DT_TREE_MAX));
    dt_guard_init(&s->guard, s->options.guard);
    for (int i = 0; i < DT_TRACE_LANES && s->options.n_trace > 0; i++) {
        size_t n = (size_t)s->options.n_trace;
        DT_TRY(dt_mem_alloc(&s->trace[i].events, n * sizeof *s->trace[i].events));
        s->trace[i].n_max = s->options.n_trace;
    }
    dt_draft *draft = NULL;
    DT_TRY(open_source(&draft, s));
    if (!draft)
        return DT_OK;
    s->guard.planned = draft->plans;
    if (s->options.n_trace > 0)
        draft->trace = &s->trace[DT_TRACE_DRAFT];
    dt_err err = dt_link_open(&s->link, draft, s->n_ctx, s->parts.n_snapshots, s->parts.n_records);
    if (err != DT_OK)
        draft->trace = NULL; /* its owner may use it again */
    if (err != DT_OK && draft != s->options.own_draft)
        dt_draft_close(draft);
    return err;
}

static void free_session(dt_session *s) {
    dt_answer_deinit(&s->answer);
    dt_sampler_deinit(&s->sampler);
    for (int i = 0; i < DT_TRACE_LANES; i++)
        dt_mem_free(s->trace[i].events);
    dt_mem_free(s->token_bytes);
    dt_mem_free(s->tokens);
    dt_mem_free(s->hashes);
    dt_mem_free(s);
}

dt_err dt_session_open_with(
    dt_session **out, const dt_session_parts *parts, const dt_session_options *options) {
    *out = NULL;
    dt_session_options filled = *options;
    DT_TRY(fill_options(&filled));
    dt_session *s = NULL;
    DT_TRY(dt_mem_alloc(&s, sizeof *s));
    s->parts = *parts;
    if (!s->parts.now_ns)
        s->parts.now_ns = dt_time_ns;
    s->options = filled;
    s->snapshot.mode = -1;
    s->tree_given = options->tree != 0 || options->depth != 0 || options->topk != 0;
    s->n_ctx = filled.n_ctx;
    s->n_vocab = parts->target->model->config.n_vocab;
    dt_err err = open_parts(s);
    if (err != DT_OK) {
        free_session(s);
        return err;
    }
    *out = s;
    return DT_OK;
}

void dt_session_close(dt_session *s) {
    if (!s)
        return;
    if (s->link && s->parts.learned && s->options.guard && !s->tree_given &&
        dt_link_stop(s->link)) {
        const dt_plan *plan = dt_draft_planned_plan(dt_link_draft(s->link));
        if (plan)
            s->parts.learned(s->parts.learned_arg, &plan->record);
    }
    /* The link before the forward that its thread uses. */
    bool ended = dt_link_close(s->link);
    if ((!ended || !dt_place_forward_close(s->parts.draft)) && s->parts.stuck)
        *s->parts.stuck = true;
    if (!ended && s->options.n_trace > 0)
        return; /* its thread may yet write into the trace */
    dt_forward_close(s->parts.target);
    free_session(s);
}

/* ---- the timeline ---- */

dt_err dt_session_append(dt_session *s, const int32_t *tokens, int64_t n) {
    if (n < 0 || n > s->n_ctx - s->n_tokens)
        DT_FAIL(DT_ERR_LIMIT, "%lld tokens do not fit: the context of %d holds %lld already",
            (long long)n, s->n_ctx, (long long)s->n_tokens);
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= s->n_vocab)
            DT_FAIL(DT_ERR_INPUT, "token %d at %lld is outside the vocabulary of %d",
                (int)tokens[i], (long long)i, s->n_vocab);
    }
    for (int64_t i = 0; i < n; i++) {
        s->tokens[s->n_tokens] = tokens[i];
        s->hashes[s->n_tokens + 1] = dt_hash_next(s->hashes[s->n_tokens], tokens[i]);
        s->n_tokens++;
    }
    return DT_OK;
}

int64_t dt_session_n_tokens(const dt_session *s) {
    return s->n_tokens;
}

const int32_t *dt_session_tokens(const dt_session *s) {
    return s->tokens;
}

dt_err dt_session_rewind(dt_session *s, int64_t n) {
    if (n < 0 || n > s->n_tokens)
        DT_FAIL(DT_ERR_INPUT, "rewind: the timeline has %lld tokens, not %lld",
            (long long)s->n_tokens, (long long)n);
    s->n_tokens = n;
    int64_t n_rows = DT_MAX(n - 1, 0);
    dt_forward_truncate(s->parts.target, (int)DT_MIN(n_rows, s->parts.target->rows.n_committed));
    if (s->link)
        dt_link_cut(s->link, n);
    return DT_OK;
}

dt_err dt_session_set_sampling(dt_session *s, const dt_sampling *sampling) {
    dt_sampler fresh;
    DT_TRY(dt_sampler_init(&fresh, sampling, s->n_vocab));
    dt_sampler_deinit(&s->sampler);
    s->sampler = fresh;
    s->options.sampling = *sampling;
    if (s->link)
        dt_link_set_sampling(s->link, sampling);
    return DT_OK;
}

/* ---- generating ---- */

typedef struct prefill_report {
    const dt_generate_options *options;
    int64_t total;
} prefill_report;

static int report_prefill(void *arg, int n_done) {
    const prefill_report *report = arg;
    return report->options->prefill(report->options->arg, n_done, report->total);
}

/* Runs all tokens but the last through the target. */
static dt_err prefill(dt_session *s, dt_turn *turn) {
    dt_forward *target = s->parts.target;
    int first = target->rows.n_committed;
    int n = (int)(s->n_tokens - 1) - first;
    s->stats.n_prompt += s->n_tokens - first; /* the last one is read by the first step */
    if (n <= 0)
        return DT_OK;
    int64_t start = s->parts.now_ns();
    prefill_report report = {turn->options, n};
    int i_last = 0;
    dt_err err = dt_forward_prefill(&i_last, target, s->tokens + first, n, s->options.prefill_batch,
        turn->options->prefill ? report_prefill : NULL, &report);
    s->stats.prefill_seconds += (double)(s->parts.now_ns() - start) * 1e-9;
    dt_trace_add(&s->trace[DT_TRACE_VERIFY], "read prompt", start, s->parts.now_ns(), n);
    if (err != DT_ERR_STOPPED)
        return err;
    turn->stopped = true;
    turn->stop = DT_STOP_CALLER;
    return DT_OK;
}

/* Once a session. */
static void warn_context(dt_session *s, const dt_generate_options *options) {
    int trained = s->parts.target->model->config.n_ctx_train;
    if (s->context_told || !options->notice || trained < 1 || s->n_ctx <= trained)
        return;
    s->context_told = true;
    char line[160];
    snprintf(line, sizeof line,
        "a context of %d tokens is longer than the %d that the model was trained for", s->n_ctx,
        trained);
    options->notice(options->arg, line);
}

/* What an answer of which nothing more comes had held back. */
static void end_held(dt_session *s, dt_turn *turn) {
    const dt_generate_options *o = turn->options;
    s->answer.n_out = 0;
    dt_answer_finish(&s->answer);
    if (s->answer.n_out > 0 && o->text && o->text(o->arg, s->answer.out, s->answer.n_out, false))
        turn->stop = DT_STOP_CALLER;
}

dt_err dt_session_generate(dt_stop *stop_out, dt_session *s, const dt_generate_options *options) {
    if (s->n_tokens < 1)
        DT_FAIL(DT_ERR_INPUT, "nothing to go on from: the timeline is empty");
    bool goes_on = options->goes_on && s->answer_open;
    s->answer_open = false;
    if (!goes_on) {
        DT_TRY(dt_answer_start(&s->answer, options->stops, options->n_stops));
        memset(&s->stats, 0, sizeof s->stats);
    }
    warn_context(s, options);
    dt_guard_start(&s->guard);
    dt_turn turn = {
        .options = options,
        .n_left = options->n_max < 0 ? INT64_MAX : options->n_max,
        .first = true,
        .stopped = options->n_max == 0 || s->n_tokens == s->n_ctx,
        .stop = options->n_max == 0 ? DT_STOP_BUDGET : DT_STOP_CONTEXT,
    };
    if (!turn.stopped) {
        /* The draft reads the prompt while the target does. */
        if (dt_session_drafts(s)) {
            dt_link_note(s->link, &(dt_verdict){.n_left = turn.n_left});
            dt_link_send(s->link, s->tokens, s->n_tokens);
        }
        DT_TRY(prefill(s, &turn));
    }
    if (turn.stopped && goes_on && !dt_turn_keeps_open(&turn))
        end_held(s, &turn);
    int64_t start = s->parts.now_ns();
    dt_err err = DT_OK;
    while (err == DT_OK && !turn.stopped)
        err = dt_verify_step(s, &turn);
    s->stats.decode_seconds += (double)(s->parts.now_ns() - start) * 1e-9;
    s->answer_open = err == DT_OK && dt_turn_keeps_open(&turn);
    *stop_out = turn.stop;
    return err;
}

int dt_session_trace(const dt_trace_event **out, const dt_session *s, int lane) {
    *out = s->trace[lane].events;
    return atomic_load_explicit(&s->trace[lane].n, memory_order_acquire);
}

/* Appends to a line as far as there is room. */
__attribute__((format(printf, 3, 4))) static void say(
    char *line, size_t n_max, const char *format, ...) {
    size_t n = strlen(line);
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, n_max - n, format, args);
    va_end(args);
}

static void explain(dt_stats *stats) {
    char *why = stats->why;
    size_t n_max = sizeof stats->why;
    const int64_t *steps = stats->steps_by, *tokens = stats->tokens_by;
    if (strcmp(stats->draft_state, "none") == 0) {
        say(why, n_max, "no draft was asked for");
        return;
    }
    if (strcmp(stats->draft_state, "dead") == 0)
        say(why, n_max, "the draft failed; ");
    if (steps[DT_STAT_FROM_NGRAM] > 0)
        say(why, n_max, "%lld tokens in %lld steps with proposals from n-grams, ",
            (long long)tokens[DT_STAT_FROM_NGRAM], (long long)steps[DT_STAT_FROM_NGRAM]);
    if (steps[DT_STAT_FROM_MODEL] > 0)
        say(why, n_max, "%lld in %lld with the draft's, ", (long long)tokens[DT_STAT_FROM_MODEL],
            (long long)steps[DT_STAT_FROM_MODEL]);
    if (steps[DT_STAT_FROM_PLAIN] > 0)
        say(why, n_max, "%lld without, since nothing was worth its time, ",
            (long long)tokens[DT_STAT_FROM_PLAIN]);
    if (steps[DT_STAT_FROM_REST] > 0)
        say(why, n_max, "%lld at rest, since drafting measured slower, ",
            (long long)tokens[DT_STAT_FROM_REST]);
    if (stats->saved_seconds > 0.05 || stats->saved_seconds < -0.05)
        say(why, n_max, "%.1f s %s against %.1f tokens/s without proposals",
            stats->saved_seconds > 0.0 ? stats->saved_seconds : -stats->saved_seconds,
            stats->saved_seconds > 0.0 ? "saved" : "lost", stats->plain_tokens_per_second);
    size_t n = strlen(why);
    if (n > 2 && why[n - 1] == ' ')
        why[n - 2] = '\0';
}

void dt_session_stats(const dt_session *s, dt_stats *out) {
    *out = s->stats;
    if (out->n_steps > 0)
        out->mean_acceptance_length = 1.0 + (double)out->n_accepted / (double)out->n_steps;
    if (out->decode_seconds > 0.0)
        out->tokens_per_second = (double)out->n_generated / out->decode_seconds;
    if (s->guard.planned && s->snapshot.plain_ms > 0.0f)
        out->plain_tokens_per_second = 1e3 / (double)s->snapshot.plain_ms;
    else if (s->guard.plain_ns > 0.0)
        out->plain_tokens_per_second = 1e9 / s->guard.plain_ns;
    const dt_draft *draft = s->link ? dt_link_draft(s->link) : NULL;
    out->draft_source = draft ? draft->name : "none";
    out->draft_device = draft ? draft->device : "none";
    out->draft_state = !draft                                                          ? "none"
                       : s->dead                                                       ? "dead"
                       : dt_guard_rests(&s->guard) || s->snapshot.mode == DT_PLAN_REST ? "off"
                                                                                       : "on";
    out->numerics = s->parts.target->numerics;
    if (out->plain_tokens_per_second > 0.0 && out->n_generated > 0)
        out->saved_seconds =
            (double)out->n_generated / out->plain_tokens_per_second - out->decode_seconds;
    out->why[0] = '\0';
    explain(out);
    out->seed = s->options.sampling.seed;
    out->kv_bytes = s->parts.target->kv_bytes + (s->parts.draft ? s->parts.draft->kv_bytes : 0);
}
