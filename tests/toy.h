/* A forward in a page of C: logits are a pseudo-random function of the path of tokens that a row
 * continues, so any mistake with rows, parents or moves gives other text. Its rows are checked
 * strictly, rows not wanted read as NaN, and a draft is the same function with some disagreement.
 */
#ifndef DT_TESTS_TOY_H
#define DT_TESTS_TOY_H

#include "models/forward.h"
#include "src/base/mem.h"
#include "src/spec/session.h"
#include "tests/test.h"

/* CHECK for what may run on the draft thread, where the counters of test.h are not at home. */
static _Atomic int toy_n_failed;
#define TOY_CHECK(condition)                                                                       \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            atomic_fetch_add(&toy_n_failed, 1);                                                    \
        }                                                                                          \
    } while (0)

enum { TOY_VOCAB = 97, TOY_END = 3, TOY_SILENT = 4 };

typedef struct toy {
    dt_forward base;
    dt_model model;
    uint64_t seed;
    float scale;    /* spread of the logits */
    float disagree; /* spread of what a draft adds to them */
    uint64_t disagree_seed;
    int32_t changed_token; /* this token's logit gets `change` more; -1: none */
    float change;
    int nan_place; /* rows from this position on give no numbers; 0: none */
    int fail_at;   /* eval that fails, from 1; 0: none */
    int n_evals;
    int64_t n_rows_run;
    uint64_t *hashes; /* [n_rows] of the path that ends in each row */
    int32_t *places;  /* [n_rows] position */
    float *logits;
    bool wanted[DT_BATCH_MAX];
    int n_batch;
    int64_t (*cost_ns)(int n_rows); /* what an eval adds to the toy clock; NULL: nothing */
} toy;

/* Time that only evals spend. */
static _Atomic int64_t toy_clock_ns;
static inline int64_t toy_now_ns(void) {
    return atomic_load(&toy_clock_ns);
}

static inline uint64_t toy_mix(uint64_t a, uint64_t b) {
    test_rng rng = {a * 0x2545f4914f6cdd1du + b};
    return test_rng_next(&rng);
}

/* Roughly normal, variance 1. */
static inline float toy_normal(uint64_t bits) {
    float sum = 0.0f;
    for (int i = 0; i < 4; i++)
        sum += (float)((bits >> (16 * i)) & 0xffff) / 65536.0f - 0.5f;
    return sum * 1.7320508f;
}

static inline void toy_logits(const toy *t, float *out, uint64_t path) {
    int n_vocab = t->model.config.n_vocab;
    for (int v = 0; v < n_vocab; v++) {
        out[v] = t->scale * toy_normal(toy_mix(path ^ t->seed, (uint64_t)v));
        if (t->disagree > 0.0f)
            out[v] += t->disagree * toy_normal(toy_mix(path ^ t->disagree_seed, (uint64_t)v));
        if (v == t->changed_token)
            out[v] += t->change;
    }
}

static inline dt_err toy_eval(dt_forward *forward, const dt_batch *batch) {
    toy *t = (toy *)forward;
    dt_rows *rows = &forward->rows;
    if (++t->n_evals == t->fail_at)
        DT_FAIL(DT_ERR_DEVICE, "toy: eval %d fails", t->n_evals);
    TOY_CHECK(batch->n_rows >= 1 && batch->n_rows <= DT_BATCH_MAX);
    int32_t row0 = rows->n_used;
    for (int i = 0; i < batch->n_rows; i++) {
        int32_t parent = batch->parents[i];
        if (parent <= DT_PARENT(0)) {
            TOY_CHECK(-2 - parent < i);
            parent = row0 + (-2 - parent);
        }
        int32_t row = -1;
        dt_err err = DT_OK;
        if (batch->tokens[i] < 0 || batch->tokens[i] >= t->model.config.n_vocab)
            err = DT_ERROR(DT_ERR_INPUT, "toy: token %d", (int)batch->tokens[i]);
        if (err == DT_OK)
            err = dt_rows_append(&row, rows, parent);
        if (err != DT_OK) {
            rows->n_used = row0;
            return err;
        }
        t->hashes[row] = toy_mix(parent < 0 ? 77 : t->hashes[parent], (uint64_t)batch->tokens[i]);
        t->places[row] = parent < 0 ? 0 : t->places[parent] + 1;
        TOY_CHECK(t->places[row] == dt_rows_position(rows, row));
        float *out = t->logits + (size_t)i * (size_t)t->model.config.n_vocab;
        t->wanted[i] = !batch->wants || batch->wants[i];
        bool lost = t->nan_place > 0 && t->places[row] >= t->nan_place;
        if (t->wanted[i] && !lost)
            toy_logits(t, out, t->hashes[row]);
        else
            for (int v = 0; v < t->model.config.n_vocab; v++)
                out[v] = __builtin_nanf("");
    }
    if (t->cost_ns)
        atomic_fetch_add(&toy_clock_ns, t->cost_ns(batch->n_rows));
    t->n_batch = batch->n_rows;
    t->n_rows_run += batch->n_rows;
    forward->batch_row0 = row0;
    return DT_OK;
}

static inline dt_err toy_topk(
    dt_forward *forward, dt_topk *out, int i_row, const dt_topk_args *args) {
    toy *t = (toy *)forward;
    TOY_CHECK(i_row >= 0 && i_row < t->n_batch && t->wanted[i_row]);
    int n_vocab = t->model.config.n_vocab;
    dt_topk_row(out, t->logits + (size_t)i_row * (size_t)n_vocab, n_vocab, args);
    return DT_OK;
}

static inline dt_err toy_move(dt_forward *forward, const dt_row_move *moves, int n_moves) {
    toy *t = (toy *)forward;
    for (int i = 0; i < n_moves; i++) {
        TOY_CHECK(moves[i].to <= moves[i].from && (i == 0 || moves[i].to > moves[i - 1].to));
        t->hashes[moves[i].to] = t->hashes[moves[i].from];
        t->places[moves[i].to] = t->places[moves[i].from];
    }
    for (int i = 0; i < forward->rows.n_used; i++)
        TOY_CHECK(t->places[i] == dt_rows_position(&forward->rows, i));
    return DT_OK;
}

static inline void toy_close(dt_forward *forward) {
    toy *t = (toy *)forward;
    dt_rows_deinit(&forward->rows);
    free(t->hashes);
    free(t->places);
    free(t->logits);
    free(t);
}

static inline toy *toy_open(int n_rows, uint64_t seed, float disagree) {
    static const dt_forward_ops ops = {toy_eval, toy_topk, toy_move, toy_close};
    toy *t = calloc(1, sizeof *t);
    t->model.config.n_vocab = TOY_VOCAB;
    t->seed = seed;
    t->scale = 3.0f;
    t->disagree = disagree;
    t->disagree_seed = seed + 1;
    t->changed_token = -1;
    t->hashes = calloc((size_t)n_rows, sizeof *t->hashes);
    t->places = calloc((size_t)n_rows, sizeof *t->places);
    t->logits = calloc(DT_BATCH_MAX * TOY_VOCAB, sizeof *t->logits);
    CHECK_OK(dt_rows_init(&t->base.rows, n_rows));
    t->base.ops = &ops;
    t->base.model = &t->model;
    t->base.device = "toy";
    t->base.numerics = "toy";
    t->base.logits = t->logits;
    t->base.kv_bytes = (size_t)n_rows * sizeof *t->hashes;
    return t;
}

/* The committed rows are those of all tokens but the last, and nothing else is left. */
static inline void toy_check_rows(const toy *t, const int32_t *tokens, int64_t n_tokens) {
    CHECK(t->base.rows.n_used == t->base.rows.n_committed);
    CHECK_MSG(t->base.rows.n_committed == (n_tokens > 0 ? n_tokens - 1 : 0),
        "%d rows of %lld tokens", t->base.rows.n_committed, (long long)n_tokens);
    uint64_t hash = 77;
    for (int i = 0; i < t->base.rows.n_committed; i++) {
        hash = toy_mix(hash, (uint64_t)tokens[i]);
        CHECK_MSG(t->hashes[i] == hash, "row %d holds another path", i);
    }
}

/* Token texts: letters, some longer, some that split a character. */
static inline size_t toy_decode(const void *arg, char *out, size_t n_max, int32_t token) {
    (void)arg;
    static const char *const odd[] = {"\xc3", "\xa9", "\xe2\x82", "\xac!", "", "", "ab", "abc",
        "the ", "\n\n", "\xf0\x9f", "\x98", "\x80 "};
    char text[8] = {0};
    if (token < (int32_t)DT_COUNT(odd))
        snprintf(
            text, sizeof text, "%s", token == TOY_END || token == TOY_SILENT ? "" : odd[token]);
    else
        snprintf(text, sizeof text, token % 3 ? "%c" : "%cx", 'a' + token % 26);
    size_t n = strlen(text);
    memcpy(out, text, n < n_max ? n : n_max);
    return n;
}

static inline bool toy_ends(const void *arg, int32_t token) {
    (void)arg;
    return token == TOY_END;
}

static inline dt_session_parts toy_parts(dt_forward *target, dt_forward *draft) {
    return (dt_session_parts){
        .target = target,
        .draft = draft,
        .n_common = TOY_VOCAB - 2,
        .speech = {NULL, toy_decode, toy_ends, 8},
    };
}

/* What an answer gave. */
typedef struct toy_answer {
    char text[8192];
    size_t n_text;
    int n_calls, n_drafted, n_notices;
    char notice[512];
    int stop_at_call; /* the callback stops at this call, from 1; 0: never */
    dt_stop stop;
} toy_answer;

static inline int toy_text(void *arg, const char *bytes, size_t n_bytes, bool drafted) {
    toy_answer *answer = arg;
    if (answer->n_text + n_bytes < sizeof answer->text)
        memcpy(answer->text + answer->n_text, bytes, n_bytes);
    answer->n_text += n_bytes;
    answer->n_drafted += drafted;
    return ++answer->n_calls == answer->stop_at_call;
}

static inline void toy_notice(void *arg, const char *line) {
    toy_answer *answer = arg;
    answer->n_notices++;
    snprintf(answer->notice, sizeof answer->notice, "%s", line);
}

static inline void toy_generate(toy_answer *answer, dt_session *session, int64_t n_max,
    bool ignore_end, const char *const *stops, int n_stops) {
    int64_t before = dt_session_n_tokens(session);
    dt_generate_options options = {
        .n_max = n_max,
        .stops = stops,
        .n_stops = n_stops,
        .ignore_end = ignore_end,
        .text = toy_text,
        .notice = toy_notice,
        .arg = answer,
    };
    CHECK_OK(dt_session_generate(&answer->stop, session, &options));
    dt_stats stats;
    dt_session_stats(session, &stats);
    CHECK(stats.n_generated == dt_session_n_tokens(session) - before);
    CHECK(stats.n_generated == answer->n_calls);
    CHECK(stats.n_generated == stats.n_steps + stats.n_accepted);
    /* A stop within a path makes an accepted token the last of its step. */
    CHECK(answer->n_drafted == stats.n_accepted || answer->n_drafted == stats.n_accepted + 1);
}

#endif
