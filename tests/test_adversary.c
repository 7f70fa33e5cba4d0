/* Drafts that are wrong, slow, broken or hostile: the text stays, and nothing hangs. */
#include <time.h>
#include <unistd.h>

#include "tests/toy.h"

/* The compiler tells AddressSanitizer of pthread_exit, but not of a thread that is cancelled, and
 * the frames left behind stay poisoned. */
#if defined(__SANITIZE_ADDRESS__)
#define CANCELS false
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CANCELS false
#endif
#endif
#ifndef CANCELS
#define CANCELS true
#endif

enum { N_CTX = 120, N_PROMPT = 8, N_ANSWER = 60 };

typedef enum deed {
    DEED_ORACLE,     /* knows the answer: the harness itself works */
    DEED_RANDOM,     /* valid trees of random tokens */
    DEED_WRONG,      /* a long chain of one token */
    DEED_SLEEP,      /* takes longer than verify */
    DEED_NEVER,      /* never completes a tree */
    DEED_ERROR,      /* fails at a call */
    DEED_EXIT,       /* its thread ends at a call */
    DEED_CANCEL,     /* its thread is cancelled at a call */
    DEED_HASH,       /* random hashes */
    DEED_LENGTH,     /* right hash, wrong length, and the other way round */
    DEED_STALE,      /* says that an old tree is for now */
    DEED_COUNT,      /* impossible numbers of nodes */
    DEED_PARENTS,    /* parents out of order */
    DEED_TOKENS,     /* tokens outside the vocabulary */
    DEED_GARBAGE,    /* random bytes */
    DEED_DUPLICATES, /* many children with the same token */
    N_DEEDS,
} deed;

static const char *const deed_names[N_DEEDS] = {"oracle", "random", "wrong", "sleep", "never",
    "error", "exit", "cancel", "hash", "length", "stale", "count", "parents", "tokens", "garbage",
    "duplicates"};

typedef struct villain {
    dt_draft base;
    deed deed;
    int at_call, n_calls; /* of the deeds that happen once */
    test_rng rng;
    const int32_t *answer; /* the true timeline */
    int64_t n_answer, n_seen;
    dt_snapshot old;
} villain;

static dt_err misbehave(villain *v) {
    if (++v->n_calls != v->at_call)
        return DT_OK;
    if (v->deed == DEED_ERROR)
        DT_FAIL(DT_ERR_DEVICE, "villain: call %d", v->n_calls);
    if (v->deed == DEED_EXIT)
        pthread_exit(NULL);
    if (v->deed == DEED_CANCEL) {
        pthread_cancel(pthread_self());
        pthread_testcancel();
    }
    return DT_OK;
}

static void doze(int64_t ns) {
    struct timespec t = {0, (long)ns};
    nanosleep(&t, NULL);
}

static dt_err villain_observe(dt_draft *draft, const dt_record *records, int n) {
    villain *v = (villain *)draft;
    for (int i = 0; i < n; i++) {
        TOY_CHECK(records[i].token == DT_RECORD_CUT || records[i].position == v->n_seen);
        v->n_seen = records[i].position + (records[i].token != DT_RECORD_CUT);
    }
    return misbehave(v);
}

static dt_err villain_grow(bool *complete_out, dt_draft *draft) {
    villain *v = (villain *)draft;
    if (v->deed == DEED_SLEEP)
        doze(test_rng_below(&v->rng, 4) == 0 ? 8000000 : 300000);
    if (v->deed == DEED_NEVER)
        doze(100000);
    *complete_out = v->deed != DEED_NEVER && (v->base.serial || test_rng_below(&v->rng, 4) == 0);
    return misbehave(v);
}

static void random_tree(villain *v, dt_snapshot *out) {
    out->n_nodes = 1 + (int32_t)test_rng_below(&v->rng, DT_TREE_MAX);
    for (int i = 0; i < out->n_nodes; i++) {
        out->nodes[i].token = (int32_t)test_rng_below(&v->rng, TOY_VOCAB);
        out->nodes[i].parent = i == 0 ? -1 : (int32_t)test_rng_below(&v->rng, (uint32_t)i);
        out->nodes[i].score = test_rng_float(&v->rng);
    }
}

/* The true continuation. */
static void true_chain(const villain *v, dt_snapshot *out) {
    out->n_nodes = 1;
    for (int64_t at = v->n_seen; at < v->n_answer && out->n_nodes < 8; at++) {
        out->nodes[out->n_nodes] =
            (dt_tree_node){v->answer[at], out->n_nodes - 1, -(float)out->n_nodes};
        out->n_nodes++;
    }
}

static dt_err villain_snapshot(dt_draft *draft, dt_snapshot *out) {
    villain *v = (villain *)draft;
    static const int32_t counts[] = {0, -1, DT_TREE_MAX + 1, 1 << 30, INT32_MIN};
    random_tree(v, out);
    int last = out->n_nodes - 1;
    switch (v->deed) {
    case DEED_ORACLE:
    case DEED_SLEEP:
    case DEED_ERROR:
    case DEED_EXIT:
    case DEED_CANCEL:
        true_chain(v, out);
        break;
    case DEED_WRONG:
        out->n_nodes = DT_TREE_MAX;
        for (int i = 0; i < DT_TREE_MAX; i++)
            out->nodes[i] = (dt_tree_node){TOY_VOCAB - 1, i - 1, 0.0f};
        break;
    case DEED_HASH:
        out->prefix_hash = test_rng_next(&v->rng);
        break;
    case DEED_LENGTH:
        true_chain(v, out);
        if (test_rng_below(&v->rng, 2))
            out->prefix_len += 1 - 2 * (int64_t)test_rng_below(&v->rng, 2);
        break;
    case DEED_STALE: {
        dt_snapshot now = *out;
        true_chain(v, &now);
        int64_t prefix_len = out->prefix_len;
        uint64_t prefix_hash = out->prefix_hash;
        if (v->old.n_nodes > 0)
            *out = v->old;
        out->prefix_len = prefix_len;
        out->prefix_hash = prefix_hash;
        v->old = now;
        break;
    }
    case DEED_COUNT:
        out->n_nodes = counts[test_rng_below(&v->rng, DT_COUNT(counts))];
        break;
    case DEED_PARENTS:
        out->nodes[last].parent = (int32_t)test_rng_next(&v->rng);
        break;
    case DEED_TOKENS:
        out->nodes[last].token = (int32_t)test_rng_next(&v->rng);
        break;
    case DEED_GARBAGE:
        for (size_t i = 0; i < sizeof *out; i++)
            ((uint8_t *)out)[i] = (uint8_t)test_rng_next(&v->rng);
        break;
    case DEED_DUPLICATES:
        true_chain(v, out);
        for (int i = 1; i < out->n_nodes; i++)
            out->nodes[i] = (dt_tree_node){v->answer[v->n_seen], 0, 0.0f};
        break;
    default:
        break;
    }
    return misbehave(v);
}

static void villain_close(dt_draft *draft) {
    free(draft);
}

static villain *villain_open(
    deed d, int at_call, bool serial, const int32_t *answer, int64_t n_answer) {
    static const dt_draft_ops ops = {
        villain_observe, villain_grow, villain_snapshot, villain_close};
    villain *v = calloc(1, sizeof *v);
    v->base = (dt_draft){&ops, "villain", "none", serial};
    v->deed = d;
    v->at_call = at_call;
    v->rng.state = (uint64_t)d * 1000 + (uint64_t)at_call;
    v->answer = answer;
    v->n_answer = n_answer;
    return v;
}

typedef struct outcome {
    int32_t tokens[N_CTX];
    int64_t n_tokens;
    toy_answer answers[2];
    dt_stats stats;
} outcome;

/* Two answers with a rewind between them; `v` NULL is plain. */
static void tell(
    outcome *out, villain *v, float temperature, uint32_t n_snapshots, uint32_t n_records) {
    memset(out, 0, sizeof *out);
    toy *target = toy_open(N_CTX + DT_TREE_MAX, 11, 0.0f);
    dt_session_parts parts = toy_parts(&target->base, NULL);
    parts.n_snapshots = n_snapshots;
    parts.n_records = n_records;
    parts.wait_first_ns = 150000000;
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = N_CTX;
    options.sampling.temperature = temperature;
    options.sampling.seed = 4;
    options.draft = DT_DRAFT_NONE;
    options.own_draft = v ? &v->base : NULL;
    options.guard = false;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    int32_t prompt[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(toy_mix(1, (uint64_t)i) % TOY_VOCAB);
    CHECK_OK(dt_session_append(session, prompt, N_PROMPT));
    toy_generate(&out->answers[0], session, N_ANSWER, true, NULL, 0);
    toy_check_rows(target, dt_session_tokens(session), dt_session_n_tokens(session));
    CHECK_OK(dt_session_rewind(session, 40));
    toy_generate(&out->answers[1], session, -1, true, NULL, 0);
    dt_session_stats(session, &out->stats);
    out->n_tokens = dt_session_n_tokens(session);
    memcpy(out->tokens, dt_session_tokens(session), (size_t)out->n_tokens * sizeof(int32_t));
    dt_session_close(session);
}

static outcome expected[2]; /* at T = 0 and T = 0.8 */

static void check_villain(outcome *got, deed d, int at_call, bool serial, bool warm,
    uint32_t n_snapshots, uint32_t n_records) {
    const outcome *want = &expected[warm];
    villain *v = villain_open(d, at_call, serial, want->tokens, want->n_tokens);
    tell(got, v, warm ? 0.8f : 0.0f, n_snapshots, n_records);
    bool same = got->n_tokens == want->n_tokens &&
                memcmp(got->tokens, want->tokens, sizeof want->tokens) == 0;
    for (int i = 0; i < 2; i++)
        same = same && got->answers[i].n_text == want->answers[i].n_text &&
               memcmp(got->answers[i].text, want->answers[i].text, want->answers[i].n_text) == 0;
    CHECK_MSG(same, "%s, call %d, %s, T %s 0, rings of %u and %u: another text", deed_names[d],
        at_call, serial ? "serial" : "eager", warm ? ">" : "=", n_snapshots, n_records);
}

int main(void) {
    alarm(240); /* a hang is a failure */
    static outcome got;
    tell(&expected[0], NULL, 0.0f, 0, 0);
    tell(&expected[1], NULL, 0.8f, 0, 0);
    CHECK(expected[0].n_tokens == N_CTX && expected[0].answers[1].stop == DT_STOP_CONTEXT);
    CHECK(memcmp(expected[0].tokens, expected[1].tokens, sizeof expected[0].tokens) != 0);

    for (int serial = 0; serial < 2; serial++) {
        for (int warm = 0; warm < 2; warm++) {
            for (int d = 0; d < N_DEEDS; d++) {
                if (d == DEED_CANCEL && !CANCELS)
                    continue;
                bool once = d == DEED_ERROR || d == DEED_EXIT || d == DEED_CANCEL;
                for (int call = 1; call <= (once ? 20 : 1); call++) {
                    check_villain(&got, (deed)d, call, serial, warm, 0, 0);
                    int n_notices = got.answers[0].n_notices + got.answers[1].n_notices;
                    if (once) {
                        /* One line tells of it; a late call may not have come yet. */
                        bool dead = strcmp(got.stats.draft_state, "dead") == 0;
                        CHECK(n_notices == (dead ? 1 : 0));
                        CHECK(dead || call > 8);
                    } else {
                        CHECK(n_notices == 0 && strcmp(got.stats.draft_state, "on") == 0);
                    }
                    if (d == DEED_ORACLE && serial)
                        CHECK_MSG(got.stats.n_late > 0 || got.stats.mean_acceptance_length > 4.0,
                            "acceptance length %g", got.stats.mean_acceptance_length);
                }
            }
        }
    }
    /* Rings with hardly any room: both sides run into their ends. */
    for (uint32_t n = 1; n <= 2; n++) {
        for (int serial = 0; serial < 2; serial++) {
            check_villain(&got, DEED_ORACLE, 1, serial, true, n, n);
            check_villain(&got, DEED_SLEEP, 1, serial, false, n, n);
            check_villain(&got, DEED_NEVER, 1, serial, false, n, n);
            check_villain(&got, DEED_HASH, 1, serial, true, n, n);
            check_villain(&got, DEED_ERROR, 9, serial, true, n, n);
        }
    }
    CHECK(toy_n_failed == 0);
    return test_end();
}
