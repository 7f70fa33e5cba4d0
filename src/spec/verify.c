/* The verify side of a step: ask for a tree, run the target over it, walk down along the target's
 * own tokens, keep their rows, tell the draft, hand out the text. */
#include <stdio.h>
#include <string.h>

#include "src/base/mem.h"
#include "src/spec/plan.h"
#include "src/spec/session.h"

static const int64_t WAIT_MIN_NS = 20000000;
static const int64_t WAIT_MAX_NS = 2000000000; /* the first tree: the draft reads the prompt */
static const int64_t WAIT_LATE_NS = 100000000; /* never had a tree, and late before */
enum {
    N_LATE_MAX = 4,     /* late steps in a row after which verify stops waiting */
    N_UNASKED_MAX = 64, /* steps after which it waits once more */
};

_Static_assert((int)DT_STAT_FROM_REST == (int)DT_PLAN_REST &&
                   (int)DT_STAT_FROM_PLAIN == (int)DT_PLAN_PLAIN &&
                   (int)DT_STAT_FROM_NGRAM == (int)DT_PLAN_NGRAM &&
                   (int)DT_STAT_FROM_MODEL == (int)DT_PLAN_MODEL,
    "the statistics name the planner's choices");

/* How a step came by its tree. */
typedef enum origin {
    ORIGIN_NONE,  /* no draft, or one at rest */
    ORIGIN_DRAFT, /* the draft's */
    ORIGIN_PROBE, /* the root alone, with the draft idle */
    ORIGIN_LATE,  /* the root alone, with the draft still at work */
    ORIGIN_TAIL,  /* the root alone, since there is room for one token only */
} origin;

static void notice(const dt_turn *turn, const char *line) {
    if (turn->options->notice)
        turn->options->notice(turn->options->arg, line);
}

bool dt_session_drafts(const dt_session *s) {
    return s->link && !s->dead && !dt_guard_rests(&s->guard);
}

static int64_t patience_ns(dt_session *s, const dt_turn *turn) {
    if (s->parts.wait_ns)
        return s->parts.wait_ns;
    if (s->n_late_row >= N_LATE_MAX)
        return ++s->n_unasked % N_UNASKED_MAX ? 0 : WAIT_MIN_NS;
    if (s->n_late_row == 0 && (turn->first || s->mean_draft_ns <= 0.0))
        return s->parts.wait_first_ns ? s->parts.wait_first_ns : WAIT_MAX_NS;
    if (s->mean_draft_ns <= 0.0)
        return WAIT_LATE_NS;
    double ns = s->mean_draft_ns * 4.0;
    return ns < (double)WAIT_MIN_NS   ? WAIT_MIN_NS
           : ns > (double)WAIT_MAX_NS ? WAIT_MAX_NS
                                      : (int64_t)ns;
}

/* How long a tree that still grows is waited for: a quarter of what a pass takes. */
static int64_t growth_ns(const dt_session *s) {
    if (s->stats.n_steps == 0)
        return 0;
    return (int64_t)(s->stats.verify_seconds * 0.25e9 / (double)s->stats.n_steps);
}

/* Waits for a snapshot of the present timeline, in s->snapshot. */
static bool wait_snapshot(dt_session *s, const dt_turn *turn) {
    int64_t n = s->n_tokens;
    uint64_t hash = s->hashes[n];
    if (s->snapshot.prefix_len == n && s->snapshot.prefix_hash == hash)
        return true; /* taken before, and the step did not come to its end */
    int64_t start = s->parts.now_ns();
    int64_t deadline = dt_time_ns() + patience_ns(s, turn);
    bool found = false;
    for (;;) {
        uint32_t seen = dt_bell_count(dt_link_bell(s->link));
        dt_link_send(s->link, s->tokens, n); /* what ring B had no room for before */
        bool first = !found;
        found |= dt_link_take(&s->snapshot, s->link, n, hash);
        if ((found && s->snapshot.complete) || dt_link_dead(s->link))
            break;
        if (found && first) /* a draft on a device of its own publishes while it grows */
            deadline = DT_MIN(deadline, dt_time_ns() + growth_ns(s));
        if (!dt_bell_wait(dt_link_bell(s->link), seen, deadline))
            break;
    }
    int64_t waited = s->parts.now_ns();
    dt_trace_add(&s->trace[DT_TRACE_VERIFY], found ? "wait" : "wait in vain", start, waited, 0);
    s->stats.wait_seconds += (double)(waited - start) * 1e-9;
    if (!found)
        return false;
    double ns = (double)s->snapshot.draft_ns;
    s->stats.draft_seconds += ns * 1e-9;
    if (!turn->first) /* that one's time is the prompt's */
        s->mean_draft_ns += s->mean_draft_ns > 0.0 ? (ns - s->mean_draft_ns) * 0.125 : ns;
    return true;
}

/* Fills s->tree and s->n_nodes for a step that may yield `room` tokens. */
static origin take_tree(dt_session *s, const dt_turn *turn, int64_t room) {
    s->tree[0] = (dt_tree_node){.token = s->tokens[s->n_tokens - 1], .parent = -1};
    s->n_nodes = 1;
    if (!s->link || s->dead)
        return ORIGIN_NONE;
    dt_guard_step step = dt_guard_next(&s->guard);
    if (step == DT_GUARD_REST)
        return ORIGIN_NONE;
    if (room < 2)
        return ORIGIN_TAIL;
    if (!wait_snapshot(s, turn)) {
        if (dt_link_dead(s->link)) {
            s->dead = true;
            char line[320];
            snprintf(line, sizeof line, "the draft failed, the text goes on without it: %s",
                dt_link_message(s->link));
            notice(turn, line);
            return ORIGIN_NONE;
        }
        s->stats.n_late++;
        s->n_late_row++;
        if (s->n_late_row % N_LATE_MAX == 0 && dt_guard_late(&s->guard) && !s->rest_told) {
            s->rest_told = true;
            notice(turn, "drafting rests for a while: the draft does not keep up");
        }
        return ORIGIN_LATE;
    }
    s->n_late_row = 0;
    s->n_unasked = 0;
    if (step == DT_GUARD_PROBE)
        return ORIGIN_PROBE;
    memcpy(s->tree, s->snapshot.nodes, sizeof s->tree);
    int depth = (int)DT_MIN(room - 1, DT_STAT_DEPTH_MAX);
    int n = dt_accept_check(s->tree, s->snapshot.n_nodes, s->tokens[s->n_tokens - 1], s->n_allowed,
        s->options.tree, depth);
    if (n > 0) {
        s->n_nodes = n;
    } else {
        s->tree[0] = (dt_tree_node){.token = s->tokens[s->n_tokens - 1], .parent = -1};
        s->snapshot.prefix_len = -1;
    }
    return ORIGIN_DRAFT;
}

static dt_err run_target(dt_session *s) {
    dt_forward *target = s->parts.target;
    int32_t tokens[DT_TREE_MAX], parents[DT_TREE_MAX];
    for (int i = 0; i < s->n_nodes; i++) {
        tokens[i] = s->tree[i].token;
        parents[i] = i == 0 ? dt_rows_last(&target->rows) : DT_PARENT(s->tree[i].parent);
    }
    int64_t start = s->parts.now_ns();
    DT_TRY(dt_forward_eval(target, &(dt_batch){s->n_nodes, tokens, parents, NULL}));
    int64_t end = s->parts.now_ns();
    dt_trace_add(&s->trace[DT_TRACE_VERIFY], "verify", start, end, s->n_nodes);
    s->stats.verify_seconds += (double)(end - start) * 1e-9;
    dt_accept_walk(
        &s->walk, &s->sampler, s->tree, s->n_nodes, target->logits, s->tokens, s->n_tokens);
    s->stats.sample_seconds += (double)(s->parts.now_ns() - end) * 1e-9;
    if (s->walk.n == 0) {
        dt_forward_truncate(target, target->rows.n_committed);
        DT_FAIL(DT_ERR_INPUT,
            "token %lld: the model's logits are not finite: its file may be damaged",
            (long long)s->n_tokens);
    }
    return DT_OK;
}

/* The stop that token i of the walk brings, if any; its text goes into the answer. */
static bool stops_at(dt_stop *stop_out, dt_session *s, const dt_turn *turn, int i) {
    const dt_speech *speech = &s->parts.speech;
    int32_t token = s->tokens[s->n_tokens + i];
    *stop_out = DT_STOP_END;
    if (speech->ends && !turn->options->ignore_end && speech->ends(speech->arg, token))
        return true;
    if (speech->decode) {
        size_t n = speech->decode(speech->arg, s->token_bytes, speech->n_bytes_max, token);
        *stop_out = DT_STOP_STRING;
        if (dt_answer_push(&s->answer, s->token_bytes, DT_MIN(n, speech->n_bytes_max)))
            return true;
    }
    *stop_out = DT_STOP_BUDGET;
    if (i + 1 == turn->n_left)
        return true;
    *stop_out = DT_STOP_CONTEXT;
    return s->n_tokens + i + 1 == s->n_ctx;
}

/* How many tokens of the walk become part of the timeline. */
static int trim_walk(dt_session *s, dt_turn *turn) {
    s->answer.n_out = 0;
    int n = 0;
    while (n < s->walk.n && !turn->stopped) {
        turn->stopped = stops_at(&turn->stop, s, turn, n);
        if (turn->stopped && !dt_turn_keeps_open(turn))
            dt_answer_finish(&s->answer);
        s->text_ends[n++] = s->answer.n_out;
    }
    return n;
}

static dt_err commit(dt_session *s, int n) {
    dt_forward *target = s->parts.target;
    int32_t path[DT_TREE_MAX];
    /* The rows of the root and of all new tokens but the last, which is the next root. */
    for (int i = 0; i < n; i++)
        path[i] = target->batch_row0 + s->walk.path[i];
    dt_err err = dt_forward_keep(target, path, n, NULL, 0);
    if (err != DT_OK) {
        dt_forward_truncate(target, 0); /* whatever was moved, nothing of it is trusted */
        return err;
    }
    for (int i = 0; i < n; i++, s->n_tokens++)
        s->hashes[s->n_tokens + 1] = dt_hash_next(s->hashes[s->n_tokens], s->tokens[s->n_tokens]);
    return DT_OK;
}

static void account(dt_session *s, const dt_turn *turn, origin from, int64_t step_ns,
    int64_t wait_ns, int n_tokens) {
    /* A draft on the same cores that still works makes a step slower than a plain one. */
    bool idle = (from == ORIGIN_NONE && (!s->link || s->dead || dt_link_idle(s->link))) ||
                from == ORIGIN_PROBE ||
                (from == ORIGIN_DRAFT && s->n_nodes == 1 && dt_link_draft(s->link)->serial);
    if (idle)
        dt_guard_plain(&s->guard, step_ns - wait_ns);
    double drafted = 0.0, plain = 0.0;
    if ((from == ORIGIN_DRAFT || from == ORIGIN_LATE) &&
        dt_guard_drafted(&s->guard, &drafted, &plain, step_ns, n_tokens) && !s->rest_told) {
        s->rest_told = true;
        char line[160];
        snprintf(line, sizeof line,
            "drafting rests for a while: %.1f tokens/s with it, %.1f without", drafted, plain);
        notice(turn, line);
    }
}

/* Hands out the text of the n new tokens. A caller's stop cuts the timeline after the token it came
 * with; returns how many stay. */
static int deliver(dt_session *s, dt_turn *turn, int n) {
    const dt_generate_options *o = turn->options;
    size_t start = 0;
    for (int i = 0; i < n && o->text; i++) {
        int answer = o->text(o->arg, s->answer.out + start, s->text_ends[i] - start,
            i + 1 < s->walk.n /* the last of a walk is the target's own */);
        start = s->text_ends[i];
        if (answer == 0)
            continue;
        turn->stopped = true;
        turn->stop = DT_STOP_CALLER;
        int64_t n_tokens = s->n_tokens - n + i + 1;
        if (n_tokens < s->n_tokens)
            dt_session_rewind(s, n_tokens);
        return i + 1;
    }
    return n;
}

static void count(dt_session *s, int n) {
    dt_stats *stats = &s->stats;
    stats->n_steps++;
    stats->steps_by[s->from]++;
    stats->tokens_by[s->from] += n;
    stats->n_drafted += s->n_nodes - 1;
    stats->n_generated += n;
    stats->n_accepted += n - 1;
    for (int i = 1; i < n; i++) {
        stats->accepted_at[i - 1]++;
        stats->n_off_branch += dt_accept_off_branch(s->tree, s->walk.path[i]);
    }
}

dt_err dt_verify_step(dt_session *s, dt_turn *turn) {
    int64_t start = s->parts.now_ns();
    double waited = s->stats.wait_seconds;
    origin from = take_tree(s, turn, DT_MIN(s->n_ctx - s->n_tokens, turn->n_left));
    turn->first = false;
    s->from = dt_guard_rests(&s->guard) ? DT_STAT_FROM_REST : DT_STAT_FROM_PLAIN;
    if (from == ORIGIN_DRAFT && (uint32_t)s->snapshot.mode < DT_STAT_FROM_COUNT)
        s->from = (dt_stat_from)s->snapshot.mode;
    else if (from == ORIGIN_DRAFT && s->n_nodes > 1)
        s->from = DT_STAT_FROM_MODEL;
    DT_TRY(run_target(s));
    int n = trim_walk(s, turn);
    DT_TRY(commit(s, n));
    int64_t wait_ns = (int64_t)((s->stats.wait_seconds - waited) * 1e9);
    int64_t step_ns = s->parts.now_ns() - start;
    account(s, turn, from, step_ns, wait_ns, n);
    /* The draft goes on while the text is handed out. After the last token it would grow a tree
     * that may never be asked for. */
    if (!turn->stopped && dt_session_drafts(s)) {
        dt_link_note(
            s->link, &(dt_verdict){s->n_nodes, step_ns - wait_ns, step_ns, turn->n_left - n, n});
        dt_link_send(s->link, s->tokens, s->n_tokens);
    }
    n = deliver(s, turn, n);
    count(s, n);
    turn->n_left -= n;
    return DT_OK;
}
