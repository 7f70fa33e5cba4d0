/* Room for the context: what it would take, what is taken, what is refused, what is told. */
#define _GNU_SOURCE
#include <unistd.h>

#include "cpu/cpu.h"
#include "cpu/kv.h"
#include "src/base/dtype.h"
#include "src/base/limits.h"
#include "src/spec/session.h"
#include "tests/test.h"

static char *data_path(const char *name) {
    static char path[1024];
    const char *folder = getenv("DT_TEST_DATA");
    snprintf(path, sizeof path, "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

static size_t resident_bytes(void) {
    size_t total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    CHECK(file && fscanf(file, "%zu %zu", &total, &resident) == 2);
    if (file)
        fclose(file);
    return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static int n_notices;
static char last_notice[256];

static void take_notice(void *arg, const char *line) {
    (void)arg;
    n_notices++;
    snprintf(last_notice, sizeof last_notice, "%s", line);
}

static void check_limits(dt_engine *engine) {
    dt_session_options o;
    dt_session_options_default(&o);
    o.n_ctx = 100000;
    CHECK_OK(dt_context_check(engine, &o, SIZE_MAX));
    CHECK_FAILS(
        dt_context_check(engine, &o, 20000000), DT_ERR_MEMORY, "a context of 100000 tokens needs");
    int n_fit = 0;
    const char *at = strstr(dt_err_message(), "available; ");
    CHECK(at && sscanf(at, "available; %d tokens would fit", &n_fit) == 1);
    CHECK_MSG(n_fit > 1024 && n_fit < 100000, "%d tokens would fit", n_fit);
    o.n_ctx = n_fit;
    CHECK_OK(dt_context_check(engine, &o, 20000000));
    o.n_ctx = n_fit + 1024; /* caches grow by steps of 512 rows */
    CHECK_FAILS(dt_context_check(engine, &o, 20000000), DT_ERR_MEMORY, "tokens would fit");
    o.n_ctx = 4000;
    CHECK_FAILS(dt_context_check(engine, &o, 1000), DT_ERR_MEMORY, "0 tokens would fit");
    /* Without the draft's cache more fits. */
    o.n_ctx = n_fit + 1024;
    o.draft = DT_DRAFT_NONE;
    CHECK_OK(dt_context_check(engine, &o, 20000000));
    /* A smaller KV type does too. */
    dt_session *session = NULL;
    o.kv = "q8_0";
    o.n_ctx = 64;
    CHECK_OK(dt_session_open(&session, engine, &o));
    dt_stats stats;
    dt_session_stats(session, &stats);
    CHECK_MSG(strstr(stats.numerics, ",kv-q8_0"), "%s", stats.numerics);
    dt_session_close(session);
    o.kv = "q4_0";
    CHECK_FAILS(dt_session_open(&session, engine, &o), DT_ERR_INPUT, "want f16 or q8_0");
}

/* Opening a long context takes little, and using some of it takes that much. */
static void check_growth(dt_engine *engine) {
    enum { N_CTX = 4000000, N_USED = 2000 };
    dt_session_options o;
    dt_session_options_default(&o);
    o.n_ctx = N_CTX;
    o.draft = DT_DRAFT_NONE;
    dt_limits limits;
    dt_limits_read(&limits, "");
    if (dt_context_check(engine, &o, limits.available_bytes) != DT_OK) {
        printf("skipped: %s\n", dt_err_message());
        return;
    }
    dt_topo *topo;
    dt_cpu *cpu = NULL;
    dt_cpu_weights *weights = NULL;
    dt_forward *forward = NULL;
    CHECK_OK(dt_topo_open(&topo, NULL));
    CHECK_OK(dt_cpu_open(&cpu, topo, 1, NULL));
    CHECK_OK(dt_cpu_load(&weights, cpu, dt_engine_target(engine), DT_MATMUL_AUTO, NULL, NULL));
    size_t before = resident_bytes();
    CHECK_OK(dt_cpu_forward_open(&forward, weights, N_CTX));
    size_t opened = resident_bytes();
    static int32_t tokens[N_USED];
    int last;
    CHECK_OK(dt_forward_prefill(&last, forward, tokens, N_USED, 64, NULL, NULL));
    size_t used = resident_bytes();
    size_t whole = dt_cpu_forward_bytes(&forward->model->config, N_CTX, DT_KV_F16);
    size_t part = dt_cpu_forward_bytes(&forward->model->config, N_USED, DT_KV_F16);
    printf("context of %d: %zu KB when full, %zu KB at open, %zu KB with %d tokens (%zu KB)\n",
        N_CTX, whole >> 10, (opened - before) >> 10, (used - before) >> 10, N_USED, part >> 10);
    CHECK(whole > (size_t)400 << 20);
    /* Rows' book-keeping (8 bytes a row) and work memory; then four huge pages at the most more. */
    CHECK(opened - before < (size_t)N_CTX * 8 + ((size_t)24 << 20));
    CHECK(used - opened < part + ((size_t)10 << 20));
    dt_forward_close(forward);
    dt_cpu_unload(weights);
    dt_cpu_close(cpu);
    dt_topo_close(topo);
}

/* Blocks of the Q8_0 cache: the levels, the scale, and what is no number. */
static void check_blocks(void) {
    float x[DT_KV_BLOCK];
    int8_t q[DT_KV_BLOCK * 16];
    test_rng rng = test_rng_open();
    for (int round = 0; round < 1000; round++) {
        float largest = 0;
        for (int i = 0; i < DT_KV_BLOCK; i++) {
            x[i] = (test_rng_float(&rng) - 0.5f) * (round % 3 ? 7.0f : 1e-5f);
            largest = DT_MAX(largest, x[i] < 0 ? -x[i] : x[i]);
        }
        float d = dt_f16_to_f32(dt_kv_quantise(q, 16, x, DT_KV_BLOCK));
        /* Half a level, and where the scale was rounded down what the largest lost by the cut. */
        double most = 0.5 * (double)d + 127 * 0x1p-11 * (double)d + 127 * 0x1p-25;
        for (int i = 0; i < DT_KV_BLOCK; i++) {
            double off = (double)x[i] - (double)d * q[i * 16];
            CHECK_MSG(off <= most && -off <= most, "%g became %d levels of %g", (double)x[i],
                q[i * 16], (double)d);
        }
    }
    memset(x, 0, sizeof x);
    CHECK(dt_kv_quantise(q, 1, x, DT_KV_BLOCK) == 0 && q[0] == 0);
    x[3] = __builtin_nanf("");
    float d = dt_f16_to_f32(dt_kv_quantise(q, 1, x, DT_KV_BLOCK));
    CHECK(d != d && q[3] == 0);
    x[3] = -__builtin_inff();
    d = dt_f16_to_f32(dt_kv_quantise(q, 1, x, DT_KV_BLOCK));
    CHECK(d == __builtin_inff() && q[3] == 0);
}

static void check_warning(dt_engine *engine) {
    int trained = dt_engine_target(engine)->config.n_ctx_train;
    const int32_t prompt[2] = {65, 66};
    size_t kv_bytes = 0;
    for (int beyond = 0; beyond <= 1; beyond++) {
        dt_session *session = NULL;
        dt_session_options o;
        dt_session_options_default(&o);
        o.draft = DT_DRAFT_NONE;
        o.n_ctx = beyond ? trained + 1 : DT_CONTEXT_TRAINED;
        CHECK_OK(dt_session_open(&session, engine, &o));
        CHECK_OK(dt_session_append(session, prompt, 2));
        dt_generate_options g = {.n_max = 1, .ignore_end = true, .notice = take_notice};
        dt_stop stop;
        n_notices = 0;
        CHECK_OK(dt_session_generate(&stop, session, &g));
        CHECK_OK(dt_session_generate(&stop, session, &g));
        CHECK_MSG(n_notices == beyond, "%d notices", n_notices);
        CHECK(
            !beyond || strstr(last_notice, "longer than the 4096 that the model was trained for"));
        dt_stats stats;
        dt_session_stats(session, &stats);
        if (!beyond)
            kv_bytes = stats.kv_bytes;
        dt_session_close(session);
    }
    /* The trained context, and the rows of a tree. */
    CHECK(kv_bytes >= (size_t)(trained + DT_TREE_MAX) * 2 * 2 * 2 * 16);
}

int main(void) {
    char target[1024];
    snprintf(target, sizeof target, "%s", data_path("tiny-qwen2.gguf"));
    check_blocks();
    dt_engine *engine = NULL;
    dt_engine_options o = {.target = target, .draft = data_path("tiny-draft.gguf"), .n_threads = 1};
    CHECK_OK(dt_engine_open(&engine, &o));
    if (engine) {
        check_limits(engine);
        check_growth(engine);
        check_warning(engine);
    }
    dt_engine_close(engine);
    return test_end();
}
