/* dovetail bench --prompts: answers to a set of prompts, without and with the draft in turn, by
 * category. */
#include <stdlib.h>
#include <string.h>

#include "src/cli/bench.h"
#include "src/cli/talk.h"
#include "src/cli/inputs.h"

enum { TURNS_MAX = 16, LANES_MAX = 2, WARM_UP_TOKENS = 16 };

typedef struct prompt {
    json_t *object; /* owned; the texts lie in it */
    int i_line;
    const char *turns[TURNS_MAX];
    int n_turns;
    int i_category;
} prompt;

/* What one session made of the prompts of a category. Speed is kept by round. */
typedef struct tally {
    double *tokens, *seconds; /* [n_rounds] */
    int64_t n_steps, n_drafted, n_accepted;
    int64_t accepted_at[DT_STAT_DEPTH_MAX];
} tally;

typedef struct category {
    const char *name;
    int n_prompts;
    tally lanes[LANES_MAX];
} category;

typedef struct prompt_set {
    bench *b;
    prompt *prompts;
    int n_prompts;
    category *categories;
    int n_categories, i_all; /* i_all: all of them together */
    int n_lanes, n_rounds;
    dt_session *sessions[LANES_MAX]; /* without the draft, with it */
    bool is_chat;
} prompt_set;

static int no_memory(void) {
    return cli_fail(CLI_FAILED, "no memory for the prompts");
}

/* ---- the file ------------------------------------------------------------------------------- */

/* Some texts go through C strings. */
static bool is_text(const json_t *value) {
    return json_is_string(value) && json_string_length(value) > 0 &&
           strlen(json_string_value(value)) == json_string_length(value);
}

static bool read_turns(prompt *p) {
    const json_t *turns = json_object_get(p->object, "turns");
    const json_t *single = json_object_get(p->object, "prompt");
    if (is_text(single) && !turns) {
        p->turns[p->n_turns++] = json_string_value(single);
        return true;
    }
    size_t i;
    json_t *turn;
    json_array_foreach(turns, i, turn) {
        if (!is_text(turn) || p->n_turns == TURNS_MAX)
            return false;
        p->turns[p->n_turns++] = json_string_value(turn);
    }
    return p->n_turns > 0;
}

static int find_category(prompt_set *set, const char *name) {
    for (int i = 0; i < set->n_categories; i++)
        if (strcmp(set->categories[i].name, name) == 0)
            return i;
    category *more = realloc(set->categories, ((size_t)set->n_categories + 1) * sizeof *more);
    if (!more)
        return -1;
    set->categories = more;
    more[set->n_categories] = (category){.name = name};
    return set->n_categories++;
}

static int read_line(prompt_set *set, const char *line, size_t n_bytes, int i_line) {
    const char *path = set->b->opts->prompts;
    json_error_t error;
    prompt *more = realloc(set->prompts, ((size_t)set->n_prompts + 1) * sizeof *more);
    if (!more)
        return no_memory();
    set->prompts = more;
    prompt *p = &more[set->n_prompts];
    *p = (prompt){json_loadb(line, n_bytes, JSON_ALLOW_NUL, &error), .i_line = i_line};
    if (!p->object)
        return cli_fail(CLI_FAILED, "%s, line %d: %s", path, i_line, error.text);
    set->n_prompts++;
    if (!read_turns(p))
        return cli_fail(CLI_FAILED,
            "%s, line %d: want an object with \"prompt\", or \"turns\" of 1 to %d texts", path,
            i_line, TURNS_MAX);
    const json_t *name = json_object_get(p->object, "category");
    p->i_category = find_category(set, is_text(name) ? json_string_value(name) : "none");
    if (p->i_category < 0)
        return no_memory();
    set->categories[p->i_category].n_prompts++;
    return CLI_OK;
}

static int read_set(prompt_set *set) {
    cli_text file;
    int code = cli_read_file(&file, set->b->opts->prompts);
    if (code != CLI_OK)
        return code;
    const char *at = file.data, *end = file.data + file.n_bytes;
    for (int i_line = 1; at < end && code == CLI_OK; i_line++) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline ? newline : end;
        if (at + strspn(at, " \t\r") < stop)
            code = read_line(set, at, (size_t)(stop - at), i_line);
        at = stop + 1;
    }
    free(file.data);
    if (code == CLI_OK && set->n_prompts == 0)
        code = cli_fail(CLI_FAILED, "%s holds no prompt", set->b->opts->prompts);
    if (code != CLI_OK)
        return code;
    set->i_all = find_category(set, "all");
    if (set->i_all < 0)
        return no_memory();
    set->categories[set->i_all].n_prompts = set->n_prompts;
    for (int i = 0; i < set->n_categories; i++)
        for (int j = 0; j < set->n_lanes; j++) {
            tally *t = &set->categories[i].lanes[j];
            t->tokens = calloc((size_t)set->n_rounds, sizeof *t->tokens);
            t->seconds = calloc((size_t)set->n_rounds, sizeof *t->seconds);
            if (!t->tokens || !t->seconds)
                return no_memory();
        }
    return CLI_OK;
}

static void close_set(prompt_set *set) {
    for (int j = 0; j < LANES_MAX; j++)
        dt_session_close(set->sessions[j]);
    for (int i = 0; i < set->n_categories; i++)
        for (int j = 0; j < set->n_lanes; j++) {
            free(set->categories[i].lanes[j].tokens);
            free(set->categories[i].lanes[j].seconds);
        }
    for (int i = 0; i < set->n_prompts; i++)
        json_decref(set->prompts[i].object);
    free(set->categories);
    free(set->prompts);
}

/* ---- answers -------------------------------------------------------------------------------- */

static void count(tally *t, const dt_stats *stats, int i_round) {
    t->tokens[i_round] += (double)stats->n_generated;
    t->seconds[i_round] += stats->decode_seconds;
    t->n_steps += stats->n_steps;
    t->n_drafted += stats->n_drafted;
    t->n_accepted += stats->n_accepted;
    for (int i = 0; i < DT_STAT_DEPTH_MAX; i++)
        t->accepted_at[i] += stats->accepted_at[i];
}

/* Answers what lies in ids[n]; the timeline already holds the first n_there of them. A negative
 * round is not counted. */
static int answer(prompt_set *set, const prompt *p, int i_lane, int i_round, const int32_t *ids,
    int64_t n_there, int64_t n) {
    dt_session *session = set->sessions[i_lane];
    dt_stop stop;
    dt_stats stats;
    dt_generate_options options = {
        .n_max = i_round < 0 ? WARM_UP_TOKENS : set->b->opts->tg.values[0]};
    if (dt_session_rewind(session, n_there) != DT_OK)
        return cli_fail_err();
    if (dt_session_append(session, ids + n_there, n - n_there) != DT_OK)
        return cli_fail(
            CLI_FAILED, "%s, line %d: %s", set->b->opts->prompts, p->i_line, dt_err_message());
    if (dt_session_generate(&stop, session, &options) != DT_OK)
        return cli_fail_err();
    dt_session_stats(session, &stats);
    if (i_round >= 0) {
        count(&set->categories[p->i_category].lanes[i_lane], &stats, i_round);
        if (p->i_category != set->i_all)
            count(&set->categories[set->i_all].lanes[i_lane], &stats, i_round);
    }
    return CLI_OK;
}

/* Both sessions answer a turn, which of them first by turns: the law says that they agree. */
static int answer_turn(
    prompt_set *set, const prompt *p, int i_round, const int32_t *ids, int64_t n_there, int64_t n) {
    for (int j = 0; j < set->n_lanes; j++) {
        int i_lane = (j + DT_MAX(i_round, 0)) % set->n_lanes;
        int code = answer(set, p, i_lane, i_round, ids, n_there, n);
        if (code != CLI_OK)
            return code;
    }
    dt_session *a = set->sessions[0], *b = set->sessions[set->n_lanes - 1];
    int64_t n_a = dt_session_n_tokens(a), n_b = dt_session_n_tokens(b);
    bool same = n_a == n_b && memcmp(dt_session_tokens(a), dt_session_tokens(b),
                                  (size_t)n_a * sizeof(int32_t)) == 0;
    if (!same && !dt_engine_disclaimer(set->b->engine)[0])
        return cli_fail(CLI_FAILED,
            "%s, line %d: the answers with and without the draft differ: this is a fault in "
            "dovetail, please report it with the command line",
            set->b->opts->prompts, p->i_line);
    return CLI_OK;
}

static int ask_plain(prompt_set *set, const prompt *p, int i_round) {
    int32_t *ids;
    int64_t n;
    const char *text = p->turns[0];
    int code = cli_encode(&ids, &n, set->b->model->vocab, text, strlen(text), true, false);
    if (code != CLI_OK)
        return code;
    code = answer_turn(set, p, i_round, ids, 0, n);
    free(ids);
    return code;
}

static int ask_chat(prompt_set *set, const prompt *p, int i_round) {
    talk t;
    int64_t n_there = 0;
    int n_turns = i_round < 0 ? 1 : p->n_turns;
    int code = talk_open(&t, set->b->model, NULL, DT_CHAT_THINK_AUTO, NULL);
    for (int i = 0; i < n_turns && code == CLI_OK; i++) {
        code = talk_ask(&t, p->turns[i]);
        if (code != CLI_OK)
            break;
        int64_t n = talk_n_tokens(&t);
        int32_t *ids = malloc((size_t)n * sizeof *ids);
        if (!ids) {
            code = no_memory();
            break;
        }
        talk_write_ids(&t, ids);
        /* The end token of the answer before may have been taken off. */
        n_there = DT_MIN(n_there, n - t.turns[i].n_prompt);
        code = answer_turn(set, p, i_round, ids, n_there, n);
        free(ids);
        if (code == CLI_OK) {
            const dt_session *session = set->sessions[0];
            n_there = dt_session_n_tokens(session);
            code = talk_answer(&t, dt_session_tokens(session) + n, n_there - n);
        }
    }
    talk_close(&t);
    return code;
}

static int run_rounds(prompt_set *set) {
    int code = CLI_OK;
    for (int i = -1; i < set->n_rounds && code == CLI_OK; i++)
        for (int j = 0; j < (i < 0 ? 1 : set->n_prompts) && code == CLI_OK; j++) {
            const prompt *p = &set->prompts[j];
            cli_progress("prompts", DT_MAX(i, 0) * set->n_prompts + j,
                (int64_t)set->n_rounds * set->n_prompts);
            code = set->is_chat ? ask_chat(set, p, i) : ask_plain(set, p, i);
        }
    cli_progress_end();
    return code;
}

/* ---- rows ----------------------------------------------------------------------------------- */

/* vLLM's definitions, a step being one verification: the mean acceptance length is
 * 1 + accepted / steps, the acceptance at position i the share of steps that accepted at least i
 * proposals. */
static void set_acceptance(json_t *row, const tally *t) {
    json_t *positions = json_array();
    double n_steps = (double)DT_MAX(t->n_steps, 1);
    int depth = DT_STAT_DEPTH_MAX;
    while (depth > 0 && t->accepted_at[depth - 1] == 0)
        depth--;
    for (int i = 0; i < depth; i++)
        json_array_append_new(positions, report_real((double)t->accepted_at[i] / n_steps));
    json_object_set_new(
        row, "mean_acceptance_length", report_real(1 + (double)t->n_accepted / n_steps));
    json_object_set_new(row, "acceptance_per_position", positions);
    json_object_set_new(row, "steps", json_integer(t->n_steps));
    json_object_set_new(row, "drafted", json_integer(t->n_drafted));
    json_object_set_new(row, "accepted", json_integer(t->n_accepted));
}

static void add_row(prompt_set *set, const category *c, double *rates) {
    char name[64];
    double means[LANES_MAX] = {0}, deviations[LANES_MAX] = {0};
    snprintf(name, sizeof name, "tg%lld", (long long)set->b->opts->tg.values[0]);
    json_t *row = bench_new_row(set->b, name);
    json_object_set_new(row, "category", report_bytes(c->name, strlen(c->name)));
    json_object_set_new(row, "prompts", json_integer(c->n_prompts));
    json_object_set_new(row, "tokens", json_integer((json_int_t)c->lanes[0].tokens[0]));
    json_object_set_new(row, "rounds", json_integer(set->n_rounds));
    json_object_set_new(row, "draft", json_string(set->b->draft_source));
    if (set->b->draft_name[0])
        json_object_set_new(
            row, "draft_model", report_bytes(set->b->draft_name, strlen(set->b->draft_name)));
    for (int j = 0; j < set->n_lanes; j++) {
        for (int i = 0; i < set->n_rounds; i++)
            rates[i] = c->lanes[j].tokens[i] / DT_MAX(c->lanes[j].seconds[i], 1e-9);
        report_mean(&means[j], &deviations[j], rates, set->n_rounds);
    }
    json_object_set_new(row, "plain_ts", report_real(means[0]));
    json_object_set_new(row, "plain_stddev_ts", report_real(deviations[0]));
    if (set->n_lanes < 2)
        return;
    json_object_set_new(row, "avg_ts", report_real(means[1]));
    json_object_set_new(row, "stddev_ts", report_real(deviations[1]));
    json_object_set_new(row, "speed_up", report_real(means[1] / means[0]));
    set_acceptance(row, &c->lanes[1]);
}

int bench_prompts(bench *b) {
    prompt_set set = {.b = b, .n_rounds = (int)b->opts->n_reps};
    dt_chat *chat;
    dt_stats stats;
    set.n_lanes = bench_drafts(b) ? 2 : 1;
    set.is_chat = dt_chat_open(&chat, b->model->file, NULL, DT_CHAT_THINK_AUTO) == DT_OK;
    dt_chat_close(chat);
    double *rates = calloc((size_t)set.n_rounds, sizeof *rates);
    int code = rates ? read_set(&set) : no_memory();
    for (int j = 0; j < set.n_lanes && code == CLI_OK; j++)
        code = bench_open_session(
            &set.sessions[j], b, j == 0 ? DT_DRAFT_NONE : (dt_draft_kind)b->opts->draft_kind, 0);
    if (code == CLI_OK) {
        dt_session_stats(set.sessions[set.n_lanes - 1], &stats);
        b->draft_source = stats.draft_source; /* static text */
        code = run_rounds(&set);
    }
    for (int i = 0; i < set.n_categories && code == CLI_OK; i++)
        add_row(&set, &set.categories[i], rates);
    close_set(&set);
    free(rates);
    return code;
}

void bench_print_prompts(const bench *b) {
    static const report_column COLUMNS[] = {{"category", "category", NULL, 0},
        {"prompts", "prompts", NULL, 0}, {"tokens", "tokens", NULL, 0}, {"isa", "isa", NULL, 0},
        {"no draft, t/s", "plain_ts", "plain_stddev_ts", 2},
        {"with draft, t/s", "avg_ts", "stddev_ts", 2}, {"speed-up", "speed_up", NULL, 2},
        {"acceptance length", "mean_acceptance_length", NULL, 2},
        {"accepted at position 1, 2, ...", "acceptance_per_position", NULL, 2}};
    if (b->opts->table == CLI_TABLE_MD) {
        bench_print_names(b);
        printf(", %d threads; numerics %s; %d rounds\n\n",
            (int)json_integer_value(json_object_get(json_array_get(b->rows, 0), "threads")),
            b->numerics, (int)b->opts->n_reps);
    }
    report_table(stdout, (cli_table_form)b->opts->table, b->rows, COLUMNS, DT_COUNT(COLUMNS));
}
