/* The planner under a clock that only forwards move: known costs, known drafts. Whole sessions run
 * over toy models, so what is timed is the code that decides, not the machine. */
#include <sys/stat.h>
#include <unistd.h>

#include "src/spec/plan_record.h"
#include "tests/toy.h"

enum { N_ANSWER = 128, N_PROMPT = 40, N_SEEDS = 8 };

/* Of a 1.5B target and a 0.5B draft on two cores of a Zen 4 EPYC, in microseconds. */
static int64_t target_cost_ns(int n_rows) {
    static const int64_t us[] = {32500, 35000, 35000, 50000, 94000, 186000, 372000};
    static const int rows[] = {1, 2, 4, 8, 16, 32, 64};
    for (size_t i = 1; i < DT_COUNT(rows); i++) {
        if (n_rows <= rows[i])
            return 1000 * (us[i - 1] + (us[i] - us[i - 1]) * DT_MAX(n_rows - rows[i - 1], 0) /
                                           (rows[i] - rows[i - 1]));
    }
    return 372000000;
}

static int64_t draft_cost_ns(int n_rows) {
    return 9000000 + 1600000 * (int64_t)DT_MAX(n_rows - 4, 0);
}

/* A costly draft: two thirds of the target. */
static int64_t slow_cost_ns(int n_rows) {
    return target_cost_ns(n_rows) * 2 / 3;
}

typedef struct setting {
    dt_draft_kind kind;
    float disagree;
    int tree, depth, topk;
    bool guard;
    float temperature;
    int64_t (*draft_cost)(int n_rows);
} setting;

static void keep_record(void *arg, const dt_plan_record *record) {
    *(dt_plan_record *)arg = *record;
}

/* Milliseconds of one answer, prompt included. */
static double tell(
    const setting *w, uint64_t seed, dt_plan_record *record, bool known, int32_t *tokens) {
    toy *target = toy_open(300 + DT_TREE_MAX, seed, 0.0f);
    toy *draft = toy_open(300 + 512, seed, w->disagree);
    target->cost_ns = target_cost_ns;
    draft->cost_ns = w->draft_cost;
    dt_session_parts parts = toy_parts(&target->base, &draft->base);
    parts.now_ns = toy_now_ns;
    parts.wait_ns = 60000000000;
    parts.record = known ? record : NULL;
    parts.learned = record ? keep_record : NULL;
    parts.learned_arg = record;
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = 300;
    options.draft = w->kind;
    options.tree = w->tree;
    options.depth = w->depth;
    options.topk = w->topk;
    options.guard = w->guard;
    options.sampling.temperature = w->temperature;
    options.sampling.seed = seed;
    dt_session *session = NULL;
    CHECK_OK(dt_session_open_with(&session, &parts, &options));
    int32_t prompt[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)(toy_mix(seed, (uint64_t)i) % TOY_VOCAB);
    CHECK_OK(dt_session_append(session, prompt, N_PROMPT));
    int64_t start = toy_now_ns();
    dt_stop stop;
    dt_generate_options generate = {.n_max = N_ANSWER, .ignore_end = true};
    CHECK_OK(dt_session_generate(&stop, session, &generate));
    double ms = (double)(toy_now_ns() - start) * 1e-6;
    memcpy(tokens, dt_session_tokens(session) + N_PROMPT, N_ANSWER * sizeof *tokens);
    dt_session_close(session);
    return ms;
}

/* Milliseconds of all seeds; the record is carried from answer to answer, if there is one. */
static double tell_all(const setting *w, dt_plan_record *record, bool known, double *worst_out) {
    static const setting plain = {DT_DRAFT_NONE, 0, 0, 0, 0, true, 0.0f, draft_cost_ns};
    double sum = 0.0;
    int32_t tokens[N_ANSWER], expected[N_ANSWER];
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        setting base = plain;
        base.temperature = w->temperature;
        double plain_ms = tell(&base, seed, NULL, false, expected);
        double ms = tell(w, seed, record, known, tokens);
        known = known || record;
        sum += ms;
        if (worst_out)
            *worst_out = DT_MAX(*worst_out, ms / plain_ms);
        CHECK(memcmp(tokens, expected, sizeof tokens) == 0);
    }
    return sum;
}

/* With a record of the pair the plan is about as fast as the best fixed setting. */
static void check_against_fixed(
    float disagree, float temperature, int64_t (*cost)(int), double allowed) {
    double best = 1e30;
    static const int shapes[][3] = {{2, 1, 1}, {3, 2, 1}, {4, 3, 1}, {5, 4, 1}, {7, 6, 1},
        {9, 8, 1}, {13, 12, 1}, {4, 1, 3}, {4, 2, 2}, {6, 3, 2}, {8, 4, 2}, {8, 3, 4}, {16, 6, 2}};
    setting w = {DT_DRAFT_NONE, disagree, 0, 0, 0, false, temperature, cost};
    double plain = tell_all(&w, NULL, false, NULL);
    best = plain;
    w.kind = DT_DRAFT_MODEL;
    int i_best = -1;
    for (size_t i = 0; i < DT_COUNT(shapes); i++) {
        w.tree = shapes[i][0];
        w.depth = shapes[i][1];
        w.topk = shapes[i][2];
        double ms = tell_all(&w, NULL, false, NULL);
        if (ms < best) {
            best = ms;
            i_best = (int)i;
        }
    }
    setting planned = {DT_DRAFT_AUTO, disagree, 0, 0, 0, true, temperature, cost};
    dt_plan_record record = {0};
    double first = tell_all(&planned, &record, false, NULL);
    double later = tell_all(&planned, &record, true, NULL);
    printf("disagreement %.1f, T %.1f, %s draft: of plain %.3f planned, %.3f with a record; best "
           "fixed %.3f (tree of %d)\n",
        (double)disagree, (double)temperature, cost == slow_cost_ns ? "slow" : "fast",
        first / plain, later / plain, best / plain, i_best < 0 ? 1 : shapes[i_best][0]);
    CHECK(later <= DT_MIN(best * allowed, plain * 1.01));
    CHECK(first <= plain * 1.02);
}

static void check_useless(float temperature, dt_draft_kind kind) {
    setting none = {DT_DRAFT_NONE, 0, 0, 0, 0, true, temperature, draft_cost_ns};
    setting w = {kind, 50.0f, 0, 0, 0, true, temperature, draft_cost_ns};
    double plain = tell_all(&none, NULL, false, NULL);
    dt_plan_record record = {0};
    double worst_first = 0.0, worst = 0.0;
    double first = tell_all(&w, &record, false, &worst_first) / plain;
    double later = tell_all(&w, &record, true, &worst) / plain;
    printf("useless draft, T %.1f: %.3f of plain at first, worst %.3f; %.3f with a record, worst "
           "%.3f\n",
        (double)temperature, first, worst_first, later, worst);
    CHECK(first <= 1.08 && later <= 1.03);
    CHECK(worst_first <= 1.15 && worst <= 1.10);
}

static void test_rows(void) {
    dt_plan plan;
    dt_plan_record record = {0};
    for (int m = 1; m <= DT_TREE_MAX; m++)
        record.pass_ns[m] = (double)target_cost_ns(m);
    dt_plan_init(&plan, &record);
    plan.rests = true;
    dt_tree_node chain[17];
    for (int i = 0; i < 17; i++)
        chain[i] = (dt_tree_node){i, i - 1, -0.01f * (float)i};
    CHECK(dt_plan_trim(&plan, chain, 17, 64) == 17); /* nearly sure: all rows */
    for (int i = 0; i < 17; i++)
        chain[i] = (dt_tree_node){i, i - 1, -1.0f * (float)i};
    int n = dt_plan_trim(&plan, chain, 17, 64);
    CHECK_MSG(n >= 3 && n <= 4, "%d rows of an unlikely chain", n); /* the fourth is free */
    /* Branches: the worse subtree goes, order and parents stay right. */
    dt_tree_node tree[] = {{9, -1, 0}, {1, 0, -0.1f}, {2, 0, -6.0f}, {3, 1, -0.2f}, {4, 2, -6.1f},
        {5, 3, -0.3f}, {6, 5, -0.4f}, {7, 6, -0.5f}};
    n = dt_plan_trim(&plan, tree, 8, 64);
    CHECK(n == 6 && tree[1].token == 1 && tree[2].token == 3 && tree[2].parent == 1);
    CHECK(tree[5].token == 7 && tree[5].parent == 4);
    plan.shaped = true;
    for (int i = 0; i < 17; i++)
        chain[i] = (dt_tree_node){i, i - 1, -1.0f * (float)i};
    CHECK(dt_plan_trim(&plan, chain, 17, 9) == 9);
}

static void test_beliefs(void) {
    dt_plan plan;
    dt_plan_init(&plan, NULL);
    int sure = dt_plan_kind(-0.001f, DT_BELIEF_ALONE);
    for (int i = 0; i < 100; i++)
        dt_plan_learn(&plan, sure, i % 4 == 0);
    float belief = dt_exp_f32(dt_plan_belief(&plan, sure));
    CHECK_MSG(belief > 0.2f && belief < 0.35f, "belief %g after one of four", (double)belief);
    for (int i = 0; i < 1000; i++)
        dt_plan_learn(&plan, sure, true);
    CHECK(dt_exp_f32(dt_plan_belief(&plan, sure)) > 0.95f);
    CHECK(dt_plan_kind(-100.0f, DT_BELIEF_OPPOSED) == DT_BELIEF_OPPOSED);
    CHECK(dt_plan_kind(0.0f, DT_BELIEF_AGREED) == DT_BELIEF_OPPOSED - 1);
    CHECK(dt_plan_kind_match(2) == DT_BELIEF_MATCH && dt_plan_kind_match(999) == DT_N_BELIEFS - 1);
}

static void test_files(void) {
    char folder[] = "/tmp/dovetail-plan-XXXXXX", path[128], text[65536];
    CHECK(mkdtemp(folder) != NULL);
    CHECK(setenv("XDG_CACHE_HOME", folder, 1) == 0);
    const char *key = "machine; target; draft";
    CHECK(dt_plan_record_path(path, sizeof path, key));
    dt_plan_record record = {0}, got = {0};
    CHECK(!dt_plan_record_load(&got, path, key));
    test_rng rng = {3};
    for (int i = 1; i <= DT_TREE_MAX; i++)
        record.pass_ns[i] = 1e6 * (double)test_rng_below(&rng, 1000);
    record.beliefs[7] = (dt_belief){12.5f, 100.25f};
    record.values[2] = (dt_plan_value){3.0, 1.25, -4e6};
    record.try_at = 64.0;
    record.n_tokens = 1e6;
    CHECK_OK(dt_plan_record_save(path, key, &record));
    CHECK_OK(dt_plan_record_save(path, key, &record));
    CHECK(dt_plan_record_load(&got, path, key) && memcmp(&got, &record, sizeof got) == 0);
    CHECK(!dt_plan_record_load(&got, path, "another key"));
    /* Any damaged byte, any cut. */
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    size_t n = file ? fread(text, 1, sizeof text, file) : 0;
    if (file)
        fclose(file);
    for (size_t i = 0; i < n; i += 1 + n / 97) {
        for (int cut = 0; cut < 2; cut++) {
            file = fopen(path, "wb");
            text[i] ^= 4;
            fwrite(text, 1, cut ? i : n, file);
            text[i] ^= 4;
            fclose(file);
            CHECK_MSG(!dt_plan_record_load(&got, path, key), "byte %zu of %zu", i, n);
        }
    }
    CHECK(memcmp(&got, &record, sizeof got) == 0);
    unlink(path);
    for (int i = 0; i < 3; i++) {
        *strrchr(path, '/') = '\0';
        rmdir(path);
    }
    CHECK_FAILS(dt_plan_record_save("/proc/nowhere/x.txt", key, &record), DT_ERR_IO, "nowhere");
}

int main(void) {
    alarm(240);
    test_rows();
    test_beliefs();
    test_files();
    check_against_fixed(0.2f, 0.0f, draft_cost_ns, 1.05);
    check_against_fixed(0.7f, 0.0f, draft_cost_ns, 1.05);
    /* One token in three is right: a chain of one would pay a little, and is not found. */
    check_against_fixed(2.0f, 0.0f, draft_cost_ns, 1.15);
    check_against_fixed(0.5f, 0.8f, draft_cost_ns, 1.05);
    check_against_fixed(0.3f, 0.0f, slow_cost_ns, 1.10);
    check_against_fixed(0.2f, 1.2f, draft_cost_ns, 1.05);
    check_useless(0.0f, DT_DRAFT_AUTO);
    check_useless(0.8f, DT_DRAFT_MODEL);
    CHECK(toy_n_failed == 0);
    return test_end();
}
