/* The forward on the device of this program's table (emulated, or a real GPU) against the CPU's:
 * logits equal in bits for chains and trees however they are batched, and the best tokens equal to
 * those found on the host. Exit code 77: no device. Arguments are paths of other models, of which a
 * few steps are run. */
#include "cpu/cpu.h"
#include "gpu/gpu.h"
#include "src/base/mem.h"
#include "tests/test.h"

enum { N_TOKENS = 40, N_ROWS = 700, N_NODES = 11 };

static dt_topo *topo;
static dt_cpu *cpu;
static dt_gpu *gpu;

static char *data_path(const char *name) {
    static char path[1024];
    const char *folder = getenv("DT_TEST_DATA");
    if (strchr(name, '/'))
        return strncpy(path, name, sizeof path - 1);
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

typedef struct pair {
    dt_model *model;
    dt_cpu_weights *cpu_weights;
    dt_gpu_weights *gpu_weights;
    dt_forward *a, *b; /* CPU, GPU */
} pair;

static bool pair_open(pair *p, const char *name) {
    memset(p, 0, sizeof *p);
    dt_err err = dt_model_open(&p->model, data_path(name));
    CHECK_MSG(err == DT_OK, "%s: %s", name, dt_err_message());
    if (err != DT_OK)
        return false;
    CHECK_OK(dt_cpu_load(&p->cpu_weights, cpu, p->model, DT_MATMUL_AUTO, NULL, NULL));
    CHECK_OK(dt_cpu_forward_open(&p->a, p->cpu_weights, N_ROWS));
    err = dt_gpu_load(&p->gpu_weights, gpu, p->model, NULL, NULL);
    CHECK_MSG(err == DT_OK, "%s: %s", name, dt_err_message());
    if (err == DT_OK)
        CHECK_OK(dt_gpu_forward_open(&p->b, p->gpu_weights, N_ROWS, true));
    return p->a && p->b;
}

static void pair_close(pair *p) {
    dt_forward_close(p->a);
    dt_forward_close(p->b);
    dt_cpu_unload(p->cpu_weights);
    dt_gpu_unload(p->gpu_weights);
    dt_model_close(p->model);
}

static void check_row(const pair *p, int i_row, const char *what) {
    size_t n = (size_t)p->model->config.n_vocab;
    const float *x = p->a->logits + (size_t)i_row * n, *y = p->b->logits + (size_t)i_row * n;
    for (size_t i = 0; i < n; i++) {
        if (memcmp(x + i, y + i, sizeof *x) == 0)
            continue;
        CHECK_MSG(false, "%s, row %d: logit %d is %.9g on the CPU, %.9g on the device", what, i_row,
            (int)i, (double)x[i], (double)y[i]);
        return;
    }
    CHECK(true);
}

/* Both rank the row; the device's answer may have been found during the eval. */
static void check_topk(const pair *p, int i_row, const dt_topk_args *args, const char *what) {
    dt_topk x, y;
    CHECK_OK(dt_forward_topk(p->a, &x, i_row, args));
    CHECK_OK(dt_forward_topk(p->b, &y, i_row, args));
    CHECK_MSG(x.n == y.n, "%s: %d tokens on the CPU, %d on the device", what, x.n, y.n);
    for (int i = 0; i < x.n && i < y.n; i++)
        CHECK_MSG(x.tokens[i] == y.tokens[i] &&
                      memcmp(&x.scores[i], &y.scores[i], sizeof x.scores[i]) == 0,
            "%s: place %d is token %d (%.9g) on the CPU, %d (%.9g) on the device", what, i,
            (int)x.tokens[i], (double)x.scores[i], (int)y.tokens[i], (double)y.scores[i]);
}

/* Arguments of every way to rank. */
static dt_topk_args topk_args(int way, int n_vocab) {
    dt_topk_args args = {.k = 1 + way % 4, .n_allowed = n_vocab, .seed = 77, .tau = 1.0f};
    switch (way % 5) {
    case 0:
        break;
    case 1: /* noise */
        args.temperature = 0.8f;
        args.noise = true;
        break;
    case 2: /* noise on a filtered list */
        args.temperature = 1.3f;
        args.noise = true;
        args.top_k = 20;
        args.top_p = 0.9f;
        break;
    case 3: /* temperature without noise, fewer ids */
        args.temperature = 0.5f;
        args.n_allowed = n_vocab - n_vocab / 7;
        args.tau = 1.5f;
        break;
    default: /* much noise over all tokens */
        args.temperature = 30.0f;
        args.noise = true;
        args.k = DT_TOPK_MAX;
    }
    return args;
}

static void check_chain(const pair *p, const int32_t *tokens, int step, int way) {
    dt_topk_args args = topk_args(way, p->model->config.n_vocab);
    dt_forward *both[2] = {p->a, p->b};
    dt_forward_truncate(p->a, 0);
    dt_forward_truncate(p->b, 0);
    p->b->topk_hint = way < 5 ? &args : NULL;
    char what[64];
    snprintf(what, sizeof what, "batches of %d, way %d", step, way);
    for (int first = 0; first < N_TOKENS; first += step) {
        int m = DT_MIN(step, N_TOKENS - first);
        int32_t parents[DT_BATCH_MAX], path[DT_BATCH_MAX];
        bool wants[DT_BATCH_MAX];
        for (int i = 0; i < m; i++) {
            parents[i] = i ? DT_PARENT(i - 1) : dt_rows_last(&p->a->rows);
            path[i] = p->a->rows.n_used + i;
            wants[i] = step < 5 || i % 3 == 1 || i == m - 1;
        }
        for (int j = 0; j < 2; j++) {
            dt_err err = dt_forward_eval(both[j], &(dt_batch){m, tokens + first, parents, wants});
            CHECK_MSG(err == DT_OK, "%s", dt_err_message());
        }
        for (int i = 0; i < m; i++) {
            if (!wants[i])
                continue;
            check_row(p, i, what);
            args.position = first + i + 1;
            check_topk(p, i, &args, what);
        }
        for (int j = 0; j < 2; j++)
            CHECK_OK(dt_forward_keep(both[j], path, m, NULL, 0));
    }
    p->b->topk_hint = NULL;
}

/* Random trees below a committed prefix, some branches committed and others kept. */
static void check_trees(const pair *p, test_rng *rng) {
    dt_forward *both[2] = {p->a, p->b};
    uint32_t n_vocab = (uint32_t)p->model->config.n_vocab;
    int32_t prefix[9];
    for (size_t i = 0; i < DT_COUNT(prefix); i++)
        prefix[i] = (int32_t)test_rng_below(rng, n_vocab);
    for (int j = 0; j < 2; j++) {
        int last;
        dt_forward_truncate(both[j], 0);
        CHECK_OK(dt_forward_prefill(&last, both[j], prefix, DT_COUNT(prefix), 4, NULL, NULL));
    }
    for (int round = 0; round < 3; round++) {
        int n = 1 + (int)test_rng_below(rng, N_NODES);
        int32_t tokens[N_NODES], parents[N_NODES];
        int32_t row0 = p->a->rows.n_used, first_kept = p->a->rows.n_committed;
        for (int i = 0; i < n; i++) {
            tokens[i] = (int32_t)test_rng_below(rng, n_vocab);
            /* Of this batch, or of the rows that were kept. */
            int up = (int)test_rng_below(rng, (uint32_t)(i + 1 + (row0 - first_kept)));
            parents[i] = up < i        ? DT_PARENT(up)
                         : up - i == 0 ? dt_rows_last(&p->a->rows)
                                       : first_kept + (up - i - 1);
        }
        for (int j = 0; j < 2; j++)
            CHECK_OK(dt_forward_eval(both[j], &(dt_batch){n, tokens, parents, NULL}));
        for (int i = 0; i < n; i++)
            check_row(p, i, "tree");
        /* Commit one row below the last committed one and keep what hangs below it. */
        int32_t path[1], rest[N_ROWS];
        int n_rest = 0;
        bool below[N_ROWS] = {false};
        const dt_rows *rows = &p->a->rows;
        int32_t start = row0;
        for (int32_t r = rows->n_committed; r < rows->n_used; r++)
            if (rows->parent[r] == dt_rows_last(rows))
                start = r;
        path[0] = start;
        for (int32_t r = start + 1; r < rows->n_used; r++) {
            below[r] =
                rows->parent[r] == start || (rows->parent[r] > start && below[rows->parent[r]]);
            if (below[r])
                rest[n_rest++] = r;
        }
        for (int j = 1; j >= 0; j--)
            CHECK_OK(dt_forward_keep(both[j], path, 1, rest, n_rest));
    }
}

/* Beyond one range of 512 positions. */
static void check_long(const pair *p, test_rng *rng) {
    enum { LONG = 520 };
    int32_t tokens[LONG];
    int last = 0;
    for (int i = 0; i < LONG; i++)
        tokens[i] = (int32_t)test_rng_below(rng, (uint32_t)p->model->config.n_vocab);
    dt_forward_truncate(p->a, 0);
    dt_forward_truncate(p->b, 0);
    CHECK_OK(dt_forward_prefill(&last, p->a, tokens, LONG, 64, NULL, NULL));
    CHECK_OK(dt_forward_prefill(&last, p->b, tokens, LONG, 64, NULL, NULL));
    check_row(p, last, "long");
}

static void check_bad_batches(const pair *p) {
    int32_t parent = -1, token = p->model->config.n_vocab;
    dt_batch batch = {1, &token, &parent, NULL};
    dt_forward_truncate(p->b, 0);
    CHECK_FAILS(dt_forward_eval(p->b, &batch), DT_ERR_INPUT, "outside the vocabulary");
    CHECK(p->b->rows.n_used == 0);
    token = 0;
    parent = DT_PARENT(0);
    CHECK_FAILS(dt_forward_eval(p->b, &batch), DT_ERR_INTERNAL, "follows");
}

static void check_model(const char *name, bool whole) {
    pair p;
    test_rng rng = test_rng_open();
    if (pair_open(&p, name)) {
        int32_t tokens[N_TOKENS];
        for (int i = 0; i < N_TOKENS; i++)
            tokens[i] = (int32_t)test_rng_below(&rng, (uint32_t)p.model->config.n_vocab);
        static const int steps[] = {40, 1, 3, 17, 8, 33};
        for (int i = 0; i < (int)DT_COUNT(steps); i++)
            if (whole || i != 1)
                check_chain(&p, tokens, steps[i], i);
        check_trees(&p, &rng);
        if (whole)
            check_long(&p, &rng);
        check_bad_batches(&p);
    }
    pair_close(&p);
}

/* A prompt of five tokens, then a row, then a fork of two. */
static void check_steps(const char *path) {
    pair p;
    if (pair_open(&p, path)) {
        int32_t prompt[] = {11, 785, 264, 40, 1207}, tokens[] = {13, 279, 1073}, parents[3];
        dt_forward *both[2] = {p.a, p.b};
        dt_topk_args args = topk_args(0, p.model->config.n_vocab);
        int last = 0;
        for (int j = 0; j < 2; j++)
            CHECK_OK(dt_forward_prefill(&last, both[j], prompt, 5, 5, NULL, NULL));
        check_row(&p, last, path);
        args.position = 5;
        check_topk(&p, last, &args, path);
        parents[0] = dt_rows_last(&p.a->rows);
        parents[1] = parents[2] = parents[0] + 1;
        for (int j = 0; j < 2; j++) {
            CHECK_OK(dt_forward_eval(both[j], &(dt_batch){1, tokens, parents, NULL}));
            if (j == 1)
                check_row(&p, 0, path);
        }
        for (int j = 0; j < 2; j++)
            CHECK_OK(dt_forward_eval(both[j], &(dt_batch){2, tokens + 1, parents + 1, NULL}));
        for (int way = 0; way < 3; way++)
            for (int i = 0; i < 2; i++) {
                args = topk_args(way, p.model->config.n_vocab);
                args.position = 7;
                check_row(&p, i, path);
                check_topk(&p, i, &args, path);
            }
    }
    pair_close(&p);
}

int main(int argc, char **argv) {
    if (dt_gpu_open(&gpu, DT_GPU_ANY) != DT_OK) {
        printf("skipped: %s\n", dt_err_message());
        return 77;
    }
    printf("%s\n", dt_gpu_describe(gpu));
    CHECK_OK(dt_topo_open(&topo, NULL));
    CHECK_OK(dt_cpu_open(&cpu, topo, 1, NULL));
    for (int i = 1; i < argc; i++)
        check_steps(argv[i]);
    if (argc > 1)
        goto end;
    check_model("tiny-llama.gguf", true);
    check_model("tiny-qwen2.gguf", true);
    check_model("tiny-qwen3.gguf", false);
    check_model("tiny-gemma3.gguf", true);
    check_model("tiny-mistral.gguf", false);
    check_model("tiny-phi3.gguf", false);
    check_model("tiny-iq4.gguf", false);
    check_model("tiny-draft.gguf", false);
    check_model("tiny-f16.gguf", false);
end:
    dt_cpu_close(cpu);
    dt_topo_close(topo);
    dt_gpu_close(gpu);
    return test_end();
}
