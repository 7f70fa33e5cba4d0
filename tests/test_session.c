/* The same text whatever drafts: sessions over the toy forward, each case run plainly and with
 * every kind of draft. */
#include <unistd.h>

#include "tests/toy.h"

enum { N_CTX = 160, N_TOKENS_MAX = 512 };

/* What a case generates: three answers in one timeline, a rewind between the last two. */
typedef struct story {
    dt_sampling sampling;
    uint64_t seed;
    int n_ctx;
    int n_prompt[2];
    int64_t n_max[3];
    bool ignore_end;
    const char *stops[4];
    int n_stops;
    int stop_at_call;
    int64_t rewind_by;
    bool repetitive; /* the prompt repeats itself */
    int32_t changed_token;
    float change;
} story;

typedef struct way {
    const char *name;
    dt_draft_kind kind;
    float disagree;
    int tree, depth, topk, prefill_batch;
    bool guard, independent;
} way;

typedef struct outcome {
    int32_t tokens[N_TOKENS_MAX];
    int64_t n_tokens, n_answer[3];
    toy_answer answers[3];
    dt_stats stats[3];
} outcome;

static story story_default(void) {
    story s = {
        .seed = 5,
        .n_ctx = N_CTX,
        .n_prompt = {9, 4},
        .n_max = {40, 30, 20},
        .ignore_end = true,
        .rewind_by = 13,
        .changed_token = -1,
    };
    dt_sampling_default(&s.sampling);
    return s;
}

static void fill_prompt(int32_t *out, int n, const story *s, uint64_t salt) {
    for (int i = 0; i < n; i++)
        out[i] = (int32_t)(toy_mix(salt, (uint64_t)(s->repetitive ? i % 5 : i)) % TOY_VOCAB);
}

static void tell(outcome *out, const story *s, const way *w) {
    memset(out, 0, sizeof *out);
    toy *target = toy_open(s->n_ctx + DT_TREE_MAX, s->seed, 0.0f);
    target->changed_token = s->changed_token;
    target->change = s->change;
    toy *draft = toy_open(s->n_ctx + 200, s->seed, w->disagree);
    dt_session_parts parts = toy_parts(&target->base, &draft->base);
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = s->n_ctx;
    options.sampling = s->sampling;
    options.draft = w->kind;
    options.tree = w->tree;
    options.depth = w->depth;
    options.topk = w->topk;
    options.prefill_batch = w->prefill_batch;
    options.guard = w->guard;
    options.independent_noise = w->independent;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    if (!session)
        exit(test_end());
    for (int i = 0; i < 3; i++) {
        int32_t prompt[N_TOKENS_MAX];
        if (i < 2) {
            int n = DT_MIN(s->n_prompt[i], s->n_ctx - (int)dt_session_n_tokens(session));
            fill_prompt(prompt, n, s, (uint64_t)i);
            CHECK_OK(dt_session_append(session, prompt, n));
        } else {
            int64_t n = dt_session_n_tokens(session) - s->rewind_by;
            CHECK_OK(dt_session_rewind(session, DT_MAX(n, 1)));
        }
        out->answers[i].stop_at_call = s->stop_at_call;
        toy_generate(&out->answers[i], session, s->n_max[i], s->ignore_end, s->stops, s->n_stops);
        CHECK(out->answers[i].n_notices == 0 || w->guard);
        out->n_answer[i] = out->answers[i].n_calls;
        dt_session_stats(session, &out->stats[i]);
        if (out->n_answer[i] > 0)
            toy_check_rows(target, dt_session_tokens(session), dt_session_n_tokens(session));
    }
    out->n_tokens = dt_session_n_tokens(session);
    memcpy(out->tokens, dt_session_tokens(session), (size_t)out->n_tokens * sizeof(int32_t));
    dt_session_close(session);
}

static void check_same(
    const outcome *a, const outcome *b, const char *story_name, const char *way_name) {
    bool same = a->n_tokens == b->n_tokens && memcmp(a->tokens, b->tokens, sizeof a->tokens) == 0;
    CHECK_MSG(same, "%s, %s: other tokens", story_name, way_name);
    for (int i = 0; i < 3; i++) {
        const toy_answer *x = &a->answers[i], *y = &b->answers[i];
        CHECK_MSG(x->stop == y->stop && x->n_calls == y->n_calls,
            "%s, %s: answer %d ends by %d after %d tokens, plainly by %d after %d", story_name,
            way_name, i, (int)y->stop, y->n_calls, (int)x->stop, x->n_calls);
        CHECK_MSG(x->n_text == y->n_text && memcmp(x->text, y->text, x->n_text) == 0,
            "%s, %s: answer %d has another text", story_name, way_name, i);
    }
}

static const way plain = {"plain", DT_DRAFT_NONE, 0, 0, 0, 0, 0, false, false};
static const way ways[] = {
    {"plain, prefill 1", DT_DRAFT_NONE, 0, 0, 0, 0, 1, false, false},
    {"plain, prefill 3", DT_DRAFT_NONE, 0, 0, 0, 0, 3, false, false},
    {"chain 1", DT_DRAFT_MODEL, 0.7f, 2, 1, 1, 0, false, false},
    {"chain 4", DT_DRAFT_MODEL, 0.7f, 5, 4, 1, 7, false, false},
    {"chain 8", DT_DRAFT_MODEL, 0.3f, 9, 8, 1, 0, false, false},
    {"chain 16", DT_DRAFT_MODEL, 0.0f, 17, 16, 1, 1, false, false},
    {"tree 6, top 2", DT_DRAFT_MODEL, 0.7f, 6, 3, 2, 0, false, false},
    {"tree 16, top 3", DT_DRAFT_MODEL, 0.9f, 16, 7, 3, 0, false, false},
    {"tree 64, top 4", DT_DRAFT_MODEL, 0.6f, 64, 32, 4, 0, false, false},
    {"tree 16, top 16, guarded", DT_DRAFT_MODEL, 0.6f, 16, 7, 16, 0, true, false},
    {"tree 9, own noise", DT_DRAFT_MODEL, 0.3f, 9, 7, 3, 0, false, true},
    {"useless draft", DT_DRAFT_MODEL, 50.0f, 16, 7, 3, 0, false, false},
    {"n-gram", DT_DRAFT_NGRAM, 0, 8, 0, 2, 0, false, false},
    {"model and n-gram", DT_DRAFT_AUTO, 0.5f, 0, 0, 0, 0, false, false},
    {"model and n-gram, planned", DT_DRAFT_AUTO, 0.5f, 0, 0, 0, 0, true, false},
    {"model and n-gram, tree 9", DT_DRAFT_AUTO, 0.9f, 9, 6, 3, 5, false, false},
    {"n-gram, guarded", DT_DRAFT_NGRAM, 0, 32, 0, 4, 0, true, false},
};

static void check_story(const story *s, const char *name) {
    static outcome expected, got;
    tell(&expected, s, &plain);
    for (size_t i = 0; i < DT_COUNT(ways); i++) {
        tell(&got, s, &ways[i]);
        check_same(&expected, &got, name, ways[i].name);
    }
}

static void test_stories(void) {
    story s = story_default();
    check_story(&s, "greedy");
    s.repetitive = true;
    s.n_prompt[0] = 40;
    check_story(&s, "greedy, repetitive prompt");

    s = story_default();
    s.ignore_end = false;
    for (s.seed = 100; s.seed < 106; s.seed++)
        check_story(&s, "until the end");

    for (int filter = 0; filter < 6; filter++) {
        static const char *const names[] = {
            "T = 0.8", "top-k", "top-p", "min-p", "penalties", "all filters"};
        s = story_default();
        s.sampling.temperature = 0.8f;
        s.sampling.seed = 42 + (uint64_t)filter;
        bool all = filter == 5;
        if (filter == 1 || all)
            s.sampling.top_k = 6;
        if (filter == 2 || all)
            s.sampling.top_p = 0.9f;
        if (filter == 3 || all)
            s.sampling.min_p = 0.05f;
        if (filter == 4 || all) {
            s.sampling.repeat_penalty = 1.2f;
            s.sampling.presence_penalty = 0.3f;
            s.sampling.frequency_penalty = 0.2f;
            s.sampling.penalty_window = 20;
        }
        check_story(&s, names[filter]);
    }
    s = story_default();
    s.sampling.repeat_penalty = 1.5f;
    s.sampling.penalty_window = 1000;
    check_story(&s, "greedy with penalties");
}

/* Budgets, full contexts and stops by the caller that fall anywhere in an accepted path. */
static void test_ends(void) {
    for (int n = 0; n < 20; n++) {
        story s = story_default();
        s.n_max[0] = n;
        s.n_max[1] = n + 3;
        s.rewind_by = n % 7;
        check_story(&s, "budget");
        s = story_default();
        s.n_ctx = 60 + n;
        s.n_max[0] = s.n_max[1] = s.n_max[2] = -1;
        check_story(&s, "context");
        s = story_default();
        s.stop_at_call = n + 1;
        check_story(&s, "caller");
    }
    /* A prompt of one token; a prompt that fills the context. */
    story s = story_default();
    s.n_prompt[0] = 1;
    check_story(&s, "one token");
    s.n_prompt[0] = s.n_ctx;
    check_story(&s, "full prompt");
}

/* Stop strings taken out of the plain text itself, so that they cross token borders. */
static void test_stop_strings(void) {
    static outcome free_run, stopped;
    story s = story_default();
    s.sampling.temperature = 0.7f;
    tell(&free_run, &s, &plain);
    const toy_answer *answer = &free_run.answers[0];
    for (size_t at = 1; at + 8 < answer->n_text; at += 3) {
        char stop[16] = {0}, never[16] = {0};
        size_t n = 1 + at % 6;
        memcpy(stop, answer->text + at, n);
        snprintf(never, sizeof never, "%.4s#", answer->text + at / 2);
        s.stops[0] = never;
        s.stops[1] = stop;
        s.n_stops = 2;
        tell(&stopped, &s, &plain);
        char whole[8192];
        memcpy(whole, answer->text, answer->n_text);
        whole[answer->n_text] = 0;
        const char *found = strstr(whole, stop);
        if (!found)
            continue;
        CHECK(stopped.answers[0].stop == DT_STOP_STRING);
        CHECK(stopped.answers[0].n_text == (size_t)(found - whole));
        CHECK(memcmp(stopped.answers[0].text, whole, stopped.answers[0].n_text) == 0);
        check_story(&s, "stop string");
    }
}

/* What the calls of an answer in two parts gave, and where each callback's text ends. */
typedef struct parts_text {
    char text[1024];
    size_t n, ends[N_CTX];
    int n_calls;
} parts_text;

static int take_part(void *arg, const char *bytes, size_t n_bytes, bool drafted) {
    parts_text *out = arg;
    (void)drafted;
    memcpy(out->text + out->n, bytes, n_bytes);
    out->n += n_bytes;
    out->text[out->n] = '\0';
    out->ends[out->n_calls++] = out->n;
    return 0;
}

/* Two calls: the first fills a context of n_ctx tokens, then there is room for n_more (0: the
 * second finds the context full again). The tokens' bytes come into `*whole`, those of the first
 * call being *n_first. With `split` the context fills in the middle of a character. */
static dt_stop tell_parts(parts_text *out, parts_text *whole, size_t *n_first, dt_stats *stats,
    int n_ctx, int n_more, const char *const *stops, int n_stops, bool split) {
    toy *target = toy_open(n_ctx + DT_TREE_MAX, 5, 0.0f);
    dt_session_parts parts = toy_parts(&target->base, NULL);
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = n_ctx;
    options.draft = DT_DRAFT_NONE;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    if (!session)
        exit(test_end());
    *out = *whole = (parts_text){0};
    dt_generate_options generate = {
        .n_max = -1,
        .stops = stops,
        .n_stops = n_stops,
        .ignore_end = true,
        .text = take_part,
        .arg = out,
        .will_go_on = true,
    };
    dt_stop stop;
    for (int i = 0; i < 2; i++) {
        int32_t prompt[9];
        story s = {.repetitive = false};
        fill_prompt(prompt, 9, &s, (uint64_t)i);
        target->changed_token = split ? i : -1; /* "\xc3" again and again, then "\xa9" */
        target->change = split ? 1e6f : 0.0f;
        int64_t n = dt_session_n_tokens(session);
        if (i > 0 && n_more > 0) {
            CHECK_OK(dt_session_rewind(session, n_ctx - 9 - n_more));
            CHECK_OK(dt_session_append(session, prompt, 9));
        } else if (i == 0) {
            CHECK_OK(dt_session_append(session, prompt, 9));
        }
        n = dt_session_n_tokens(session);
        CHECK_OK(dt_session_generate(&stop, session, &generate));
        for (; n < dt_session_n_tokens(session); n++)
            whole->n += toy_decode(NULL, whole->text + whole->n, 8, dt_session_tokens(session)[n]);
        *n_first = i == 0 ? whole->n : *n_first;
        if (stop != DT_STOP_CONTEXT)
            break;
        generate.goes_on = true;
        generate.will_go_on = false;
    }
    dt_session_stats(session, stats);
    dt_session_close(session);
    return stop;
}

/* An answer that goes on after a full context: stop strings and characters across that place. */
static void test_parts(void) {
    static parts_text out, whole, rest;
    dt_stats stats;
    size_t n_first;
    for (int n_ctx = 30; n_ctx < 50; n_ctx++) {
        dt_stop stop = tell_parts(&out, &whole, &n_first, &stats, n_ctx, 12, NULL, 0, false);
        CHECK(stop == DT_STOP_CONTEXT && n_first > 4 && whole.n > n_first + 4);
        CHECK(out.n == whole.n && memcmp(out.text, whole.text, whole.n) == 0);
        CHECK(stats.n_generated == n_ctx - 9 + 12 && stats.n_steps == stats.n_generated);
        CHECK(stats.tokens_by[DT_STAT_FROM_PLAIN] + stats.tokens_by[DT_STAT_FROM_REST] ==
              stats.n_generated);
        for (size_t before = 1; before < 4; before++) {
            char across[16] = {0}, longer[16] = {0};
            memcpy(across, whole.text + n_first - before, before + 2);
            /* No stop string in the end: what was held back for it comes out. */
            memcpy(longer, across, before + 2);
            longer[before + 2] = '#';
            const char *stops[] = {longer, across};
            const char *found = strstr(whole.text, across);
            stop = tell_parts(&out, &rest, &n_first, &stats, n_ctx, 12, stops, 2, false);
            CHECK_MSG(stop == DT_STOP_STRING && out.n == (size_t)(found - whole.text),
                "n_ctx %d: stop by %d after %zu bytes, want %zu", n_ctx, (int)stop, out.n,
                (size_t)(found - whole.text));
            CHECK(memcmp(out.text, whole.text, out.n) == 0);
            stop = tell_parts(&out, &rest, &n_first, &stats, n_ctx, 12, stops, 1, false);
            CHECK(stop == DT_STOP_CONTEXT && out.n == whole.n);
            CHECK(memcmp(out.text, whole.text, out.n) == 0);
            longer[before] = '#'; /* held at the end of the first call, where nothing comes then */
            longer[before + 1] = '\0';
            stop = tell_parts(&out, &rest, &n_first, &stats, n_ctx, 0, stops, 1, false);
            CHECK(stop == DT_STOP_CONTEXT && out.n == n_first && rest.n == n_first);
            CHECK(memcmp(out.text, whole.text, out.n) == 0);
        }
    }
    tell_parts(&out, &whole, &n_first, &stats, 30, 12, NULL, 0, true);
    CHECK(out.n == whole.n && memcmp(out.text, whole.text, whole.n) == 0);
    CHECK(memcmp(out.text + n_first - 1, "\xc3\xa9", 2) == 0);
    for (int i = 0; i < out.n_calls; i++)
        CHECK_MSG(out.ends[i] != n_first, "callback %d ends within a character", i);
}

static void test_statistics(void) {
    static outcome out;
    story s = story_default();
    way w = {"perfect", DT_DRAFT_MODEL, 0.0f, 9, 8, 1, 0, false, false};
    s.n_max[0] = 45;
    tell(&out, &s, &w);
    const dt_stats *stats = &out.stats[0];
    CHECK(strcmp(stats->draft_source, "model") == 0 && strcmp(stats->draft_state, "on") == 0);
    CHECK(stats->n_generated == 45 && stats->n_prompt == 9);
    CHECK_MSG(stats->n_late > 0 || stats->mean_acceptance_length > 3.0,
        "acceptance length %g of a perfect draft", stats->mean_acceptance_length);
    CHECK(stats->accepted_at[0] >= stats->accepted_at[1]);
    CHECK(stats->n_off_branch == 0);
    CHECK(stats->kv_bytes > 0 && stats->decode_seconds > 0.0);

    /* Repetition is found by the n-gram draft. */
    toy *target = toy_open(400, 5, 0.0f);
    target->scale = 0.0f; /* all logits alike: token 0 for ever */
    dt_session_parts parts = toy_parts(&target->base, NULL);
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = 300;
    options.guard = false;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    int32_t prompt[] = {5, 6, 7};
    CHECK_OK(dt_session_append(session, prompt, 3));
    toy_answer answer = {0};
    toy_generate(&answer, session, 200, true, NULL, 0);
    dt_stats ngram;
    dt_session_stats(session, &ngram);
    CHECK(strcmp(ngram.draft_source, "ngram") == 0);
    CHECK_MSG(
        ngram.mean_acceptance_length > 2.0, "acceptance length %g", ngram.mean_acceptance_length);
    dt_session_close(session);
}

/* Coupled noise makes both sides choose alike more often than independent ranking does. */
static void test_coupling(void) {
    static outcome coupled, independent;
    int64_t accepted[2] = {0}, steps[2] = {0};
    for (uint64_t seed = 0; seed < 12; seed++) {
        story s = story_default();
        s.sampling.temperature = 0.8f;
        s.sampling.seed = seed;
        s.n_max[0] = 100;
        way w = {"chain", DT_DRAFT_MODEL, 0.5f, 5, 4, 1, 0, false, false};
        tell(&coupled, &s, &w);
        w.independent = true;
        tell(&independent, &s, &w);
        check_same(&coupled, &independent, "coupling", "independent");
        accepted[0] += coupled.stats[0].n_accepted;
        steps[0] += coupled.stats[0].n_steps;
        accepted[1] += independent.stats[0].n_accepted;
        steps[1] += independent.stats[0].n_steps;
    }
    double length[2];
    for (int i = 0; i < 2; i++)
        length[i] = 1.0 + (double)accepted[i] / (double)steps[i];
    printf("acceptance length at T = 0.8: %.2f coupled, %.2f independent\n", length[0], length[1]);
    CHECK(length[0] > length[1] + 0.2);
}

static void test_negative_controls(void) {
    static outcome a, b;
    story s = story_default();
    s.sampling.temperature = 0.8f;
    s.sampling.seed = 1;
    tell(&a, &s, &plain);
    s.sampling.seed = 2;
    tell(&b, &s, &plain);
    CHECK(memcmp(a.tokens, b.tokens, sizeof a.tokens) != 0);
    s = story_default();
    tell(&a, &s, &plain);
    s.changed_token = a.tokens[20]; /* a token of the answer becomes unlikely */
    s.change = -30.0f;
    tell(&b, &s, &plain);
    CHECK(memcmp(a.tokens, b.tokens, sizeof a.tokens) != 0);
}

/* Appending in pieces, and generating in pieces, is the same timeline. */
static void test_pieces(void) {
    int32_t prompt[24];
    story s = story_default();
    fill_prompt(prompt, 24, &s, 3);
    int32_t whole[80];
    for (int pieces = 0; pieces < 2; pieces++) {
        toy *target = toy_open(N_CTX + DT_TREE_MAX, 9, 0.0f);
        toy *draft = toy_open(N_CTX + 200, 9, 0.5f);
        dt_session_parts parts = toy_parts(&target->base, &draft->base);
        dt_session_options options;
        dt_session_options_default(&options);
        options.n_ctx = N_CTX;
        options.sampling.temperature = 0.9f;
        options.sampling.seed = 77;
        options.guard = false;
        dt_session *session = NULL;
        CHECK_OK(dt_session_open_with(&session, &parts, &options));
        toy_answer answer = {0};
        if (pieces) {
            for (int i = 0; i < 24; i += 6)
                CHECK_OK(dt_session_append(session, prompt + i, 6));
            for (int i = 0; i < 8; i++) {
                memset(&answer, 0, sizeof answer);
                toy_generate(&answer, session, 7, true, NULL, 0);
            }
        } else {
            CHECK_OK(dt_session_append(session, prompt, 24));
            toy_generate(&answer, session, 56, true, NULL, 0);
        }
        CHECK(dt_session_n_tokens(session) == 80);
        if (pieces)
            CHECK(memcmp(whole, dt_session_tokens(session), sizeof whole) == 0);
        else
            memcpy(whole, dt_session_tokens(session), sizeof whole);
        dt_session_close(session);
    }
}

/* Another distribution in the middle of a timeline gives what a fresh session gives there, and the
 * draft follows: with coupled noise a perfect one is accepted whole. */
static void test_set_sampling(void) {
    enum { N_PROMPT = 12, N_ANSWER = 60 };
    story s = story_default();
    int32_t prompt[N_PROMPT], drawn[3][N_PROMPT + N_ANSWER];
    fill_prompt(prompt, N_PROMPT, &s, 4);
    for (int kind = 0; kind < 3; kind++) {
        toy *target = toy_open(N_CTX + DT_TREE_MAX, 9, 0.0f);
        toy *draft = kind == 1 ? toy_open(N_CTX + 200, 9, 0.0f) : NULL;
        dt_session_parts parts = toy_parts(&target->base, draft ? &draft->base : NULL);
        dt_session_options options;
        dt_session_options_default(&options);
        options.n_ctx = N_CTX;
        options.guard = false;
        options.tree = 5;
        options.depth = 4;
        options.topk = 1;
        options.draft = draft ? DT_DRAFT_MODEL : DT_DRAFT_NONE;
        options.sampling.temperature = 1.2f;
        options.sampling.seed = kind == 0 ? 8 : 7; /* kind 0 is the fresh one */
        dt_session *session = NULL;
        CHECK_OK(dt_session_open_with(&session, &parts, &options));
        CHECK_OK(dt_session_append(session, prompt, N_PROMPT));
        toy_answer answer = {0};
        if (kind != 0) {
            toy_generate(&answer, session, N_ANSWER, true, NULL, 0);
            dt_sampling other = options.sampling;
            other.top_p = 2.0f;
            CHECK_FAILS(dt_session_set_sampling(session, &other), DT_ERR_INPUT, "top-p");
            other = options.sampling;
            other.seed = 8;
            other.top_k = 20;
            CHECK_OK(dt_session_set_sampling(session, &other)); /* the later one counts */
            other.top_k = 0;
            CHECK_OK(dt_session_set_sampling(session, &other));
            CHECK_OK(dt_session_rewind(session, N_PROMPT));
            memset(&answer, 0, sizeof answer);
        }
        toy_generate(&answer, session, N_ANSWER, true, NULL, 0);
        memcpy(drawn[kind], dt_session_tokens(session), sizeof drawn[kind]);
        CHECK(memcmp(drawn[0], drawn[kind], sizeof drawn[0]) == 0);
        dt_stats stats;
        dt_session_stats(session, &stats);
        CHECK(stats.seed == 8);
        CHECK_MSG(!draft || stats.n_late > 0 || stats.mean_acceptance_length > 4.0,
            "acceptance length %g of a draft told of the seed", stats.mean_acceptance_length);
        dt_session_close(session);
    }
}

static int stop_prefill(void *arg, int64_t done, int64_t total) {
    int *calls = arg;
    CHECK(done <= total);
    return ++*calls == 2;
}

/* A failing target is an error of generate; the next call goes on as if nothing had been. */
static void test_failures(void) {
    static outcome expected;
    story s = story_default();
    tell(&expected, &s, &plain);
    int32_t prompt[9];
    fill_prompt(prompt, 9, &s, 0);
    for (int fail_at = 1; fail_at < 8; fail_at++) {
        toy *target = toy_open(N_CTX + DT_TREE_MAX, 5, 0.0f);
        toy *draft = toy_open(N_CTX + 200, 5, 0.5f);
        target->fail_at = fail_at;
        dt_session_parts parts = toy_parts(&target->base, &draft->base);
        dt_session_options options;
        dt_session_options_default(&options);
        options.n_ctx = N_CTX;
        options.prefill_batch = 4;
        dt_session *session = NULL;
        CHECK_OK(dt_session_open_with(&session, &parts, &options));
        CHECK_OK(dt_session_append(session, prompt, 9));
        dt_stop stop;
        dt_generate_options generate = {.n_max = 40, .ignore_end = true};
        CHECK_FAILS(dt_session_generate(&stop, session, &generate), DT_ERR_DEVICE, "toy");
        int calls = 0;
        generate.prefill = stop_prefill;
        generate.arg = &calls;
        generate.n_max = 49 - dt_session_n_tokens(session);
        CHECK_OK(dt_session_generate(&stop, session, &generate));
        if (stop == DT_STOP_CALLER)
            CHECK_OK(dt_session_generate(&stop, session, &generate));
        CHECK(stop == DT_STOP_BUDGET && dt_session_n_tokens(session) == 49);
        CHECK(memcmp(expected.tokens, dt_session_tokens(session), 49 * sizeof(int32_t)) == 0);
        dt_session_close(session);
    }
}

/* Where the model gives no numbers, all tokens before are the same as ever, whatever drafts. */
static void test_lost(void) {
    static outcome expected;
    story s = story_default();
    tell(&expected, &s, &plain);
    for (size_t i = 0; i < DT_COUNT(ways); i++) {
        toy *target = toy_open(N_CTX + DT_TREE_MAX, 5, 0.0f);
        toy *draft = toy_open(N_CTX + 200, 5, ways[i].disagree);
        target->nan_place = 24;
        dt_session_parts parts = toy_parts(&target->base, &draft->base);
        dt_session_options options;
        dt_session_options_default(&options);
        options.n_ctx = N_CTX;
        options.draft = ways[i].kind;
        options.tree = ways[i].tree;
        options.depth = ways[i].depth;
        options.topk = ways[i].topk;
        dt_session *session = NULL;
        CHECK_OK(dt_session_open_with(&session, &parts, &options));
        CHECK_OK(dt_session_append(session, expected.tokens, 9));
        dt_stop stop;
        dt_generate_options generate = {.n_max = 40, .ignore_end = true};
        for (int k = 0; k < 2; k++)
            CHECK_FAILS(dt_session_generate(&stop, session, &generate), DT_ERR_INPUT,
                "token 25: the model's logits are not finite");
        CHECK(dt_session_n_tokens(session) == 25);
        CHECK(memcmp(expected.tokens, dt_session_tokens(session), 25 * sizeof(int32_t)) == 0);
        toy_check_rows(target, dt_session_tokens(session), 25);
        target->nan_place = 0;
        generate.n_max = 49 - 25;
        CHECK_OK(dt_session_generate(&stop, session, &generate));
        CHECK(memcmp(expected.tokens, dt_session_tokens(session), 49 * sizeof(int32_t)) == 0);
        dt_session_close(session);
    }
}

static void test_refusals(void) {
    toy *target = toy_open(100 + DT_TREE_MAX, 5, 0.0f);
    dt_session_parts parts = toy_parts(&target->base, NULL);
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = 100;
    dt_session *session = NULL;
    options.tree = 65;
    CHECK_FAILS(dt_session_open_with(&session, &parts, &options), DT_ERR_INPUT, "tree size");
    options.tree = 0;
    options.sampling.top_p = 0.0f;
    CHECK_FAILS(dt_session_open_with(&session, &parts, &options), DT_ERR_INPUT, "top-p");
    options.sampling.top_p = 1.0f;
    options.draft = DT_DRAFT_MODEL;
    CHECK_FAILS(dt_session_open_with(&session, &parts, &options), DT_ERR_INPUT, "draft model");
    options.draft = DT_DRAFT_AUTO;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));

    dt_stop stop;
    dt_generate_options generate = {.n_max = 4};
    CHECK_FAILS(dt_session_generate(&stop, session, &generate), DT_ERR_INPUT, "empty");
    int32_t bad[] = {1, TOY_VOCAB};
    CHECK_FAILS(dt_session_append(session, bad, 2), DT_ERR_INPUT, "vocabulary");
    CHECK(dt_session_n_tokens(session) == 0);
    int32_t many[101] = {0};
    CHECK_FAILS(dt_session_append(session, many, 101), DT_ERR_LIMIT, "do not fit");
    CHECK_OK(dt_session_append(session, many, 3));
    CHECK_FAILS(dt_session_rewind(session, 4), DT_ERR_INPUT, "rewind");
    const char *stops[] = {""};
    generate.stops = stops;
    generate.n_stops = 1;
    CHECK_FAILS(dt_session_generate(&stop, session, &generate), DT_ERR_INPUT, "stop string");
    dt_session_close(session);
}

/* Drafting that costs more than it gives rests, for longer and longer, and comes back. */
static void test_guard(void) {
    dt_guard guard;
    double drafted = 0.0, plain_rate = 0.0;
    dt_guard_init(&guard, true);
    dt_guard_start(&guard);
    int64_t rest = 32;
    for (int round = 0; round < 4; round++, rest *= 2) {
        int n_steps = 0, n_probes = 0;
        bool rests = false;
        while (!rests && n_steps < 100) {
            n_steps++;
            CHECK(dt_guard_next(&guard) != DT_GUARD_REST);
            if (dt_guard_next(&guard) == DT_GUARD_PROBE) {
                n_probes++;
                dt_guard_plain(&guard, 10000000);
            } else {
                rests = dt_guard_drafted(&guard, &drafted, &plain_rate, 24000000, 2);
            }
        }
        CHECK(rests && dt_guard_rests(&guard) && n_probes == (round == 0 ? 2 : 0));
        CHECK(drafted > 83.0 && drafted < 84.0 && plain_rate > 99.9 && plain_rate < 100.1);
        for (int64_t i = 0; i < rest; i++) {
            CHECK(dt_guard_next(&guard) == DT_GUARD_REST);
            dt_guard_plain(&guard, 10000000);
        }
        CHECK(!dt_guard_rests(&guard));
    }
    /* It pays now. */
    for (int i = 0; i < 400; i++) {
        CHECK(dt_guard_next(&guard) == DT_GUARD_DRAFT);
        CHECK(!dt_guard_drafted(&guard, &drafted, &plain_rate, 15000000, 3));
    }
    CHECK(guard.rest_next == 32);
    /* A source that plans rests only where it is late, and steps in time make good for it. */
    dt_guard_init(&guard, true);
    guard.planned = true;
    for (int i = 0; i < 3; i++) {
        CHECK(dt_guard_late(&guard) && dt_guard_rests(&guard));
        while (dt_guard_rests(&guard))
            dt_guard_plain(&guard, 10000000);
    }
    CHECK(guard.rest_next == 256);
    for (int i = 0; i < 20; i++)
        CHECK(!dt_guard_drafted(&guard, &drafted, &plain_rate, 90000000, 1));
    CHECK(guard.rest_next == 32);
    dt_guard_init(&guard, false);
    for (int i = 0; i < 1000; i++) {
        CHECK(dt_guard_next(&guard) == DT_GUARD_DRAFT);
        CHECK(!dt_guard_drafted(&guard, &drafted, &plain_rate, 900000000, 1));
        dt_guard_plain(&guard, 1);
    }
}

/* A session may be closed at any moment of its draft thread's life. */
static void test_open_close(void) {
    for (int i = 0; i < 1500; i++) {
        toy *target = toy_open(20 + DT_TREE_MAX, 5, 0.0f);
        dt_session_parts parts = toy_parts(&target->base, NULL);
        dt_session_options options;
        dt_session_options_default(&options);
        options.n_ctx = 20;
        dt_session *session = NULL;
        CHECK_OK(dt_session_open_with(&session, &parts, &options));
        int32_t prompt[] = {1, 2, 1, 2};
        dt_stop stop;
        dt_generate_options generate = {.n_max = i % 3};
        CHECK_OK(dt_session_append(session, prompt, 4));
        CHECK_OK(dt_session_generate(&stop, session, &generate));
        dt_session_close(session);
    }
}

static void keep_row(void *arg, int64_t position, const float *logits) {
    memcpy((float *)arg + position * TOY_VOCAB, logits, TOY_VOCAB * sizeof(float));
}

static void test_measuring(void) {
    toy *target = toy_open(100 + DT_TREE_MAX, 5, 0.0f);
    dt_session_parts parts = toy_parts(&target->base, NULL);
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = 100;
    options.prefill_batch = 7;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    int32_t tokens[30];
    story s = story_default();
    fill_prompt(tokens, 30, &s, 8);
    static float rows[30 * TOY_VOCAB];
    CHECK_OK(dt_session_logits(session, tokens, 30, keep_row, rows));
    double nll = 0.0, sum = 0.0;
    uint64_t path = 77;
    for (int i = 0; i < 30; i++) {
        float expected[TOY_VOCAB];
        path = toy_mix(path, (uint64_t)tokens[i]);
        toy_logits(target, expected, path);
        CHECK(memcmp(expected, rows + i * TOY_VOCAB, sizeof expected) == 0);
        double total = 0.0;
        for (int v = 0; v < TOY_VOCAB; v++)
            total += dt_exp_f64((double)expected[v]);
        if (i + 1 < 30)
            sum += dt_log_f64(total) - (double)expected[tokens[i + 1]];
    }
    CHECK_OK(dt_session_nll(&nll, session, tokens, 30));
    double error = nll - sum / 29.0;
    CHECK_MSG(error < 1e-9 && error > -1e-9, "nll %.12f, want %.12f", nll, sum / 29.0);
    CHECK(dt_session_n_tokens(session) == 0);
    CHECK_OK(dt_session_append(session, tokens, 30));
    double seconds = 0.0;
    CHECK_OK(dt_session_time_pass(&seconds, session, 16));
    CHECK(seconds > 0.0);
    toy_check_rows(target, tokens, 30);
    CHECK_FAILS(dt_session_nll(&nll, session, tokens, 1), DT_ERR_INPUT, "at least 2");
    dt_session_close(session);
}

int main(void) {
    alarm(240);
    test_stories();
    test_ends();
    test_stop_strings();
    test_parts();
    test_statistics();
    test_coupling();
    test_negative_controls();
    test_pieces();
    test_set_sampling();
    test_failures();
    test_lost();
    test_refusals();
    test_guard();
    test_open_close();
    test_measuring();
    CHECK(toy_n_failed == 0);
    return test_end();
}
