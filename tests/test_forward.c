/* The CPU forward on tiny models: the bits of a row do not depend on how the rows are batched,
 * where they lie in the cache, how many threads run or which instruction set. */
#include "cpu/cpu.h"
#include "cpu/kernels.h"
#include "dt_build.h"
#include "src/base/mem.h"
#include "tests/test.h"

enum { N_TOKENS = 90, N_ROWS = 700 };

static dt_topo *topo;

static char *data_path(const char *name) {
    static char path[1024];
    const char *folder = getenv("DT_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

typedef struct setup {
    dt_cpu *cpu;
    dt_cpu_weights *weights;
    dt_forward *forward;
} setup;

static dt_kv_type kv = DT_KV_F16;

static void setup_open(
    setup *s, const dt_model *model, int n_threads, const char *isa, dt_matmul_way way) {
    memset(s, 0, sizeof *s);
    CHECK_OK(dt_cpu_open(&s->cpu, topo, n_threads, isa));
    CHECK_OK(dt_cpu_load(&s->weights, s->cpu, model, way, NULL, NULL));
    CHECK_OK(dt_cpu_forward_open_kv(&s->forward, s->weights, N_ROWS, kv));
}

static void setup_close(setup *s) {
    dt_forward_close(s->forward);
    dt_cpu_unload(s->weights);
    dt_cpu_close(s->cpu);
}

/* Logits of every token fed as a chain in batches of `step`, committed after each. */
static void run_chain(float *out, dt_forward *f, const int32_t *tokens, int n, int step) {
    int n_vocab = f->model->config.n_vocab;
    dt_forward_truncate(f, 0);
    for (int first = 0; first < n; first += step) {
        int m = DT_MIN(step, n - first);
        int32_t parents[DT_BATCH_MAX], path[DT_BATCH_MAX];
        for (int i = 0; i < m; i++)
            parents[i] = i ? DT_PARENT(i - 1) : dt_rows_last(&f->rows);
        dt_batch batch = {m, tokens + first, parents, NULL};
        CHECK_OK(dt_forward_eval(f, &batch));
        memcpy(out + (size_t)first * (size_t)n_vocab, f->logits,
            (size_t)m * (size_t)n_vocab * sizeof *out);
        for (int i = 0; i < m; i++)
            path[i] = f->batch_row0 + i;
        CHECK_OK(dt_forward_keep(f, path, m, NULL, 0));
    }
}

static bool same(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

/* A random tree below a committed prefix; every node's logits must equal those of its path run as
 * a chain. Some branches are committed on the way and the rest kept, so that rows move. */
static void check_tree(dt_forward *f, dt_forward *plain, test_rng *rng, float *reference) {
    enum { PREFIX = 21, ROUNDS = 4, NODES = 13 };
    int n_vocab = f->model->config.n_vocab;
    int32_t path_tokens[PREFIX + ROUNDS * NODES + 1];
    float *scratch;
    CHECK_OK(
        dt_mem_alloc(&scratch, (size_t)(PREFIX + NODES * 2) * (size_t)n_vocab * sizeof(float)));
    int n_committed = PREFIX;
    for (int i = 0; i < PREFIX; i++)
        path_tokens[i] = (int32_t)test_rng_below(rng, (uint32_t)n_vocab);
    run_chain(scratch, f, path_tokens, PREFIX, 16);
    dt_mem_free(scratch);
    for (int round = 0; round < ROUNDS; round++) {
        int32_t tokens[NODES], parents[NODES];
        int up[NODES];
        for (int i = 0; i < NODES; i++) {
            tokens[i] = (int32_t)test_rng_below(rng, (uint32_t)n_vocab);
            up[i] = i ? (int)test_rng_below(rng, (uint32_t)i) : -1;
            parents[i] = i ? DT_PARENT(up[i]) : dt_rows_last(&f->rows);
        }
        dt_batch batch = {NODES, tokens, parents, NULL};
        CHECK_OK(dt_forward_eval(f, &batch));
        for (int i = 0; i < NODES; i++) {
            int chain[NODES], n = 0;
            for (int at = i; at >= 0; at = up[at])
                chain[n++] = at;
            int32_t all[PREFIX + ROUNDS * NODES + NODES];
            memcpy(all, path_tokens, (size_t)n_committed * sizeof *all);
            for (int j = 0; j < n; j++)
                all[n_committed + j] = tokens[chain[n - 1 - j]];
            int last;
            dt_forward_truncate(plain, 0);
            CHECK_OK(dt_forward_prefill(&last, plain, all, n_committed + n, 7, NULL, NULL));
            memcpy(reference, plain->logits + (size_t)last * (size_t)n_vocab,
                (size_t)n_vocab * sizeof *reference);
            CHECK_MSG(same(reference, f->logits + (size_t)i * (size_t)n_vocab, (size_t)n_vocab),
                "round %d, node %d of the tree differs from its path", round, i);
        }
        /* Commit the path to a random node. */
        int leaf = (int)test_rng_below(rng, NODES), n = 0, chain[NODES];
        for (int at = leaf; at >= 0; at = up[at])
            chain[n++] = at;
        int32_t path[NODES];
        for (int j = 0; j < n; j++) {
            path[j] = f->batch_row0 + chain[n - 1 - j];
            path_tokens[n_committed++] = tokens[chain[n - 1 - j]];
        }
        CHECK_OK(dt_forward_keep(f, path, n, NULL, 0));
    }
}

/* All thread counts and instruction sets for the models that differ in their weights; three threads
 * alone for those that differ in the phases. */
static void check_model(const char *name, bool all_threads) {
    dt_model *model;
    dt_err err = dt_model_open(&model, data_path(name));
    CHECK_MSG(err == DT_OK, "%s: %s", name, dt_err_message());
    if (err != DT_OK)
        return;
    test_rng rng = test_rng_open();
    int n_vocab = model->config.n_vocab;
    size_t n_logits = (size_t)N_TOKENS * (size_t)n_vocab;
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)test_rng_below(&rng, (uint32_t)n_vocab);
    float *base, *other;
    CHECK_OK(dt_mem_alloc(&base, n_logits * sizeof *base));
    CHECK_OK(dt_mem_alloc(&other, n_logits * sizeof *other));

    setup s;
    setup_open(&s, model, 1, "c", DT_MATMUL_AUTO);
    run_chain(base, s.forward, tokens, N_TOKENS, 1);
    for (int i = 0; i < N_TOKENS * n_vocab; i++)
        CHECK_MSG(base[i] == base[i], "%s: logit %d is no number", name, i);
    setup_close(&s);

    for (int isa = 0; isa < DT_ISA_COUNT; isa++) {
        if (!dt_isa_runs((dt_isa)isa))
            continue;
        for (int n_threads = all_threads ? 1 : 3; n_threads <= 3; n_threads++) {
            setup_open(&s, model, n_threads, dt_isa_name((dt_isa)isa), DT_MATMUL_AUTO);
            static const int steps[] = {1, 2, 7, 16, 33, 64};
            for (size_t i = 0; i < DT_COUNT(steps); i++) {
                run_chain(other, s.forward, tokens, N_TOKENS, steps[i]);
                CHECK_MSG(same(base, other, n_logits),
                    "%s: isa %s, %d threads, batches of %d differ", name, dt_isa_name((dt_isa)isa),
                    n_threads, steps[i]);
            }
            setup plain;
            setup_open(&plain, model, 1, "c", DT_MATMUL_AUTO);
            check_tree(s.forward, plain.forward, &rng, other);
            setup_close(&plain);
            setup_close(&s);
        }
    }
    /* A control: one other token (within every window) must change the last row. */
    setup_open(&s, model, 1, NULL, DT_MATMUL_AUTO);
    tokens[N_TOKENS - 5] = (tokens[N_TOKENS - 5] + 1) % n_vocab;
    run_chain(other, s.forward, tokens, N_TOKENS, 64);
    CHECK(!same(
        base + n_logits - (size_t)n_vocab, other + n_logits - (size_t)n_vocab, (size_t)n_vocab));
    setup_close(&s);
    dt_mem_free(base);
    dt_mem_free(other);
    dt_model_close(model);
}

/* Positions beyond one range of 512: the last logits of a long prompt in batches of 64 and of 5. */
static void check_long(const char *name) {
    dt_model *model;
    if (dt_model_open(&model, data_path(name)) != DT_OK)
        return;
    enum { LONG = 600 };
    int n_vocab = model->config.n_vocab, last;
    int32_t tokens[LONG];
    test_rng rng = test_rng_open();
    for (int i = 0; i < LONG; i++)
        tokens[i] = (int32_t)test_rng_below(&rng, (uint32_t)n_vocab);
    setup a, b;
    setup_open(&a, model, 2, NULL, DT_MATMUL_AUTO);
    setup_open(&b, model, 1, "c", DT_MATMUL_AUTO);
    CHECK_OK(dt_forward_prefill(&last, a.forward, tokens, LONG, 64, NULL, NULL));
    float *logits;
    CHECK_OK(dt_mem_alloc(&logits, (size_t)n_vocab * sizeof *logits));
    memcpy(logits, a.forward->logits + (size_t)last * (size_t)n_vocab,
        (size_t)n_vocab * sizeof *logits);
    CHECK_OK(dt_forward_prefill(&last, b.forward, tokens, LONG, 5, NULL, NULL));
    CHECK(same(logits, b.forward->logits + (size_t)last * (size_t)n_vocab, (size_t)n_vocab));
    dt_mem_free(logits);
    setup_close(&a);
    setup_close(&b);
    dt_model_close(model);
}

/* The other ways of the matrix products keep the law too: rows one by one on one thread against
 * batches on three, and for our own float kernel another instruction set. */
static void check_way(const char *name, dt_matmul_way way, const char *isa) {
    dt_model *model;
    if (dt_model_open(&model, data_path(name)) != DT_OK)
        return;
    test_rng rng = test_rng_open();
    size_t n_logits = (size_t)N_TOKENS * (size_t)model->config.n_vocab;
    int32_t tokens[N_TOKENS];
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)test_rng_below(&rng, (uint32_t)model->config.n_vocab);
    float *base, *other;
    CHECK_OK(dt_mem_alloc(&base, n_logits * sizeof *base));
    CHECK_OK(dt_mem_alloc(&other, n_logits * sizeof *other));
    setup s;
    setup_open(&s, model, 1, isa, way);
    bool promised = dt_cpu_disclaimer(s.weights)[0] == '\0';
    run_chain(base, s.forward, tokens, N_TOKENS, 1);
    setup_close(&s);
    static const int steps[] = {7, 33, 64};
    for (size_t i = 0; i < DT_COUNT(steps); i++) {
        setup_open(&s, model, 3, NULL, way);
        run_chain(other, s.forward, tokens, N_TOKENS, steps[i]);
        CHECK_MSG(!promised || same(base, other, n_logits), "%s: way %d, batches of %d differ",
            name, (int)way, steps[i]);
        setup_close(&s);
    }
    dt_mem_free(base);
    dt_mem_free(other);
    dt_model_close(model);
}

static void check_bad_batches(const char *name) {
    dt_model *model;
    if (dt_model_open(&model, data_path(name)) != DT_OK)
        return;
    setup s;
    setup_open(&s, model, 1, NULL, DT_MATMUL_AUTO);
    int32_t parent = -1, token = model->config.n_vocab;
    dt_batch batch = {1, &token, &parent, NULL};
    CHECK_FAILS(dt_forward_eval(s.forward, &batch), DT_ERR_INPUT, "outside the vocabulary");
    CHECK(s.forward->rows.n_used == 0);
    token = 0;
    parent = DT_PARENT(0);
    CHECK_FAILS(dt_forward_eval(s.forward, &batch), DT_ERR_INTERNAL, "follows");
    int32_t tokens[N_ROWS + 1] = {0};
    int last;
    CHECK_FAILS(
        dt_forward_prefill(&last, s.forward, tokens, N_ROWS + 1, 64, NULL, NULL), DT_ERR_LIMIT, "");
    setup_close(&s);
    dt_model_close(model);
}

/* A draft's head over part of the vocabulary: what is admitted has the same logits, the rest none.
 */
static void check_admit(const char *name) {
    dt_model *model;
    if (dt_model_open(&model, data_path(name)) != DT_OK)
        return;
    int n_vocab = model->config.n_vocab;
    size_t n_all = (size_t)N_TOKENS * (size_t)n_vocab;
    float *all, *some;
    CHECK_OK(dt_mem_alloc(&all, n_all * sizeof *all));
    CHECK_OK(dt_mem_alloc(&some, n_all * sizeof *some));
    int32_t tokens[N_TOKENS];
    test_rng rng = {7};
    for (int i = 0; i < N_TOKENS; i++)
        tokens[i] = (int32_t)test_rng_below(&rng, (uint32_t)n_vocab);
    setup s;
    setup_open(&s, model, 2, NULL, DT_MATMUL_FUSED);
    run_chain(all, s.forward, tokens, N_TOKENS, 5);
    int32_t late[] = {n_vocab - 1, n_vocab / 2, n_vocab, -1};
    CHECK_OK(dt_forward_admit(s.forward, 40, NULL, 0));
    for (int round = 0; round < 2; round++) {
        run_chain(some, s.forward, tokens, N_TOKENS, 5);
        int n_differing = 0;
        for (size_t i = 0; i < n_all; i++) {
            int panel = (int)(i % (size_t)n_vocab) / 16;
            bool admitted =
                panel < 3 || (round == 1 && (panel == late[0] / 16 || panel == late[1] / 16));
            n_differing += admitted ? some[i] != all[i] : some[i] != -__builtin_inff();
        }
        CHECK_MSG(n_differing == 0, "%s, round %d: %d logits differ", name, round, n_differing);
        CHECK_OK(dt_forward_admit(s.forward, 40, late, 4));
    }
    setup_close(&s);
    dt_mem_free(all);
    dt_mem_free(some);
    dt_model_close(model);
}

int main(void) {
    CHECK_OK(dt_topo_open(&topo, NULL));
    check_admit("tiny-qwen2.gguf");
    check_admit("tiny-draft.gguf");
    static const char *const names[] = {
        "tiny-llama.gguf", "tiny-qwen2.gguf", "tiny-draft.gguf", "tiny-f16.gguf", "tiny-iq4.gguf"};
    for (size_t i = 0; i < DT_COUNT(names); i++)
        check_model(names[i], true);
    static const char *const others[] = {
        "tiny-qwen3.gguf", "tiny-gemma3.gguf", "tiny-mistral.gguf", "tiny-phi3.gguf"};
    for (size_t i = 0; i < DT_COUNT(others); i++)
        check_model(others[i], false);
    /* The other KV type, on heads of a part of one block and of two. */
    kv = DT_KV_Q8_0;
    static const char *const q8[] = {"tiny-f16.gguf", "tiny-gemma3.gguf"};
    for (size_t i = 0; i < DT_COUNT(q8); i++)
        check_model(q8[i], false);
    check_long("tiny-gemma3.gguf");
    kv = DT_KV_F16;
    check_way("tiny-qwen2.gguf", DT_MATMUL_FLOAT, "c");
#ifdef DT_HAVE_OPENBLAS
    check_way("tiny-qwen2.gguf", DT_MATMUL_OPENBLAS, NULL);
#endif
    check_long("tiny-qwen2.gguf");
    check_long("tiny-gemma3.gguf");
    check_bad_batches("tiny-qwen2.gguf");
    dt_topo_close(topo);
    return test_end();
}
