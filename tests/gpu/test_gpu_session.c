/* A session whose draft runs on the emulated device: the draft's trees are those of the CPU's
 * draft, and a driver's call that hangs costs the draft and two seconds at the end, nothing else.
 */
#include <dirent.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cpu/cpu.h"
#include "gpu/gpu.h"
#include "src/base/mem.h"
#include "src/dovetail.h"
#include "src/spec/draft.h"
#include "tests/shim/shim_test.h"
#include "tests/test.h"

static char *data_path(char path[1024], const char *name) {
    const char *folder = getenv("DT_TEST_DATA");
    snprintf(path, 1024, "%s/%s", folder ? folder : "tests/data", name);
    return path;
}

/* ---- trees ---- */

static int64_t fixed_clock(void) {
    static int64_t now;
    return now += 1000000;
}

static dt_draft *open_draft(dt_forward *forward, float temperature, int top_k) {
    dt_draft *draft = NULL;
    dt_draft_planned_options options = {
        .model =
            {
                .n_ctx = 200,
                .tree = 12,
                .depth = 5,
                .topk = 3,
                .n_allowed = forward->model->config.n_vocab,
                .sampling = {.temperature = temperature, .top_k = top_k, .top_p = 1.0f, .seed = 5},
                .noise = true,
                .now_ns = fixed_clock,
            },
        .forward = forward,
        .shaped = true,
    };
    CHECK_OK(dt_draft_planned_open(&draft, &options));
    return draft;
}

/* Grows to the end and gives the tree. */
static void grow(dt_snapshot *out, dt_draft *draft, const dt_record *records, int n) {
    bool complete = false;
    memset(out, 0, sizeof *out);
    CHECK_OK(draft->ops->observe(draft, records, n));
    for (int i = 0; i < 40 && !complete; i++)
        CHECK_OK(draft->ops->grow(&complete, draft));
    CHECK(complete);
    CHECK_OK(draft->ops->snapshot(draft, out));
}

static void check_trees(float temperature, int top_k) {
    char path[1024];
    dt_topo *topo = NULL;
    dt_cpu *cpu = NULL;
    dt_gpu *gpu = NULL;
    dt_model *model = NULL;
    dt_cpu_weights *on_cpu = NULL;
    dt_gpu_weights *on_gpu = NULL;
    dt_forward *a = NULL, *b = NULL;
    CHECK_OK(dt_topo_open(&topo, NULL));
    CHECK_OK(dt_cpu_open(&cpu, topo, 1, NULL));
    CHECK_OK(dt_gpu_open(&gpu, DT_GPU_ANY));
    CHECK_OK(dt_model_open(&model, data_path(path, "tiny-draft.gguf")));
    CHECK_OK(dt_cpu_load(&on_cpu, cpu, model, DT_MATMUL_AUTO, NULL, NULL));
    CHECK_OK(dt_gpu_load(&on_gpu, gpu, model, NULL, NULL));
    CHECK_OK(dt_cpu_forward_open(&a, on_cpu, 400));
    CHECK_OK(dt_gpu_forward_open(&b, on_gpu, 400, false));
    dt_draft *x = open_draft(a, temperature, top_k), *y = open_draft(b, temperature, top_k);
    CHECK(x->serial && x->patience_ns == 0);
    CHECK(!y->serial && y->patience_ns > 0 && strcmp(y->device, "emulated") == 0);
    test_rng rng = test_rng_open();
    int64_t n_tokens = 0;
    int n_nodes = 0;
    dt_snapshot trees[2];
    for (int round = 0; round < 12; round++) {
        dt_record records[8];
        int n = round == 0 ? 8 : 1 + round % 3;
        for (int i = 0; i < n; i++) {
            /* Mostly what the draft proposed. */
            int32_t token = (int32_t)test_rng_below(&rng, (uint32_t)model->config.n_vocab);
            if (round > 0 && i == 0 && round % 4 != 3 && trees[0].n_nodes > 1)
                token = trees[0].nodes[1].token;
            records[i] = (dt_record){.position = n_tokens++, .token = token, .final = i == n - 1};
            if (round > 0)
                records[i].verdict = (dt_verdict){1, 20000000, 21000000, 100, n};
        }
        grow(&trees[0], x, records, n);
        grow(&trees[1], y, records, n);
        CHECK(trees[0].n_nodes == trees[1].n_nodes);
        for (int i = 0; i < trees[0].n_nodes; i++)
            CHECK_MSG(trees[0].nodes[i].token == trees[1].nodes[i].token &&
                          trees[0].nodes[i].parent == trees[1].nodes[i].parent &&
                          trees[0].nodes[i].score == trees[1].nodes[i].score,
                "round %d, node %d: token %d (%.9g), on the CPU %d (%.9g)", round, i,
                trees[1].nodes[i].token, (double)trees[1].nodes[i].score, trees[0].nodes[i].token,
                (double)trees[0].nodes[i].score);
        n_nodes += trees[0].n_nodes;
    }
    CHECK_MSG(n_nodes > 30, "the trees have %d nodes in all", n_nodes);
    dt_draft_close(x);
    dt_draft_close(y);
    dt_forward_close(a);
    dt_forward_close(b);
    dt_cpu_unload(on_cpu);
    dt_gpu_unload(on_gpu);
    dt_model_close(model);
    dt_gpu_close(gpu);
    dt_cpu_close(cpu);
    dt_topo_close(topo);
}

/* ---- calls that hang ---- */

enum { N_PROMPT = 20, N_ANSWER = 400 };

typedef struct outcome {
    int32_t tokens[N_PROMPT + N_ANSWER];
    dt_stats stats;
    char device[32], state[32], notice[400], engine_notice[400];
    bool closed;
    double close_seconds;
} outcome;

static void keep_notice(void *arg, const char *line) {
    outcome *out = arg;
    snprintf(out->notice, sizeof out->notice, "%s", line);
}

static dt_engine *open_engine(const char *device, int64_t patience_ns) {
    char target[1024], draft[1024];
    dt_engine *engine = NULL;
    dt_engine_options options = {
        .target = data_path(target, "tiny-qwen2.gguf"),
        .draft = data_path(draft, "tiny-draft.gguf"),
        .n_threads = 1,
        .draft_device = device,
        .gpu = -1,
        .gpu_patience_ns = patience_ns,
    };
    CHECK_OK(dt_engine_open(&engine, &options));
    return engine;
}

static dt_session *open_session(dt_engine *engine, dt_draft_kind kind) {
    dt_session *session = NULL;
    dt_session_options options;
    dt_session_options_default(&options);
    options.n_ctx = N_PROMPT + N_ANSWER + 8;
    options.draft = kind;
    options.guard = false;
    CHECK_OK(dt_session_open(&session, engine, &options));
    int32_t prompt[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++)
        prompt[i] = 30 + 7 * i % 50;
    CHECK_OK(dt_session_append(session, prompt, N_PROMPT));
    return session;
}

static void generate(outcome *out, dt_session *session, int n) {
    dt_generate_options options = {
        .n_max = n, .ignore_end = true, .notice = keep_notice, .arg = out};
    dt_stop stop;
    CHECK_OK(dt_session_generate(&stop, session, &options));
    size_t n_tokens = (size_t)dt_session_n_tokens(session);
    memcpy(out->tokens, dt_session_tokens(session), n_tokens * sizeof *out->tokens);
    dt_session_stats(session, &out->stats);
    snprintf(out->device, sizeof out->device, "%s", out->stats.draft_device);
    snprintf(out->state, sizeof out->state, "%s", out->stats.draft_state);
}

static void answer(outcome *out, dt_draft_kind kind, const char *device, int64_t patience_ns) {
    memset(out, 0, sizeof *out);
    dt_engine *engine = open_engine(device, patience_ns);
    dt_session *session = open_session(engine, kind);
    generate(out, session, N_ANSWER);
    CHECK(dt_session_n_tokens(session) == N_PROMPT + N_ANSWER);
    int64_t start = dt_time_ns();
    dt_session_close(session);
    snprintf(out->engine_notice, sizeof out->engine_notice, "%s", dt_engine_draft_notice(engine));
    out->closed = dt_engine_close(engine);
    out->close_seconds = (double)(dt_time_ns() - start) * 1e-9;
}

static bool same_text(const outcome *a, const outcome *b) {
    return memcmp(a->tokens, b->tokens, sizeof a->tokens) == 0;
}

/* ---- several sessions of one engine ---- */

/* The second finds no room on the device: the first goes on there. */
static void check_no_room(const outcome *plain) {
    outcome a = {0}, b = {0}, c = {0};
    size_t n_bytes = shim_device_bytes();
    dt_engine *engine = open_engine("auto", 0);
    dt_session *first = open_session(engine, DT_DRAFT_MODEL);
    generate(&a, first, N_ANSWER / 4);
    CHECK(!dt_engine_draft_notice(engine)[0]);
    shim_set_vram(0, shim_device_bytes() + 4096);
    dt_session *second = open_session(engine, DT_DRAFT_MODEL);
    CHECK(strstr(dt_engine_draft_notice(engine), "memory is full"));
    generate(&b, second, N_ANSWER);
    generate(&a, first, N_ANSWER - N_ANSWER / 4);
    CHECK(same_text(&a, plain) && same_text(&b, plain));
    CHECK_MSG(strcmp(a.device, "emulated") == 0 && strcmp(a.state, "on") == 0 && !a.notice[0],
        "the first: %s, %s, %s", a.device, a.state, a.notice);
    CHECK_MSG(strcmp(b.device, "cpu") == 0, "the second: %s", b.device);
    dt_session_close(first);
    dt_session *third = open_session(engine, DT_DRAFT_MODEL); /* where the first was */
    generate(&c, third, N_ANSWER);
    CHECK(same_text(&c, plain) && strcmp(c.device, "emulated") == 0);
    dt_session_close(third);
    dt_session_close(second);
    CHECK(dt_engine_close(engine));
    CHECK(shim_device_bytes() == n_bytes);
    shim_set_vram(0, (size_t)8192 << 20);
}

enum { N_CALLERS = 3, N_SHORT = 40 };

typedef struct caller {
    pthread_t thread;
    dt_engine *engine;
    outcome out;
} caller;

static void *call(void *arg) {
    caller *c = arg;
    dt_session *session = open_session(c->engine, DT_DRAFT_MODEL);
    generate(&c->out, session, N_SHORT);
    dt_session_close(session);
    return NULL;
}

/* Threads that open and use sessions at once, with room for all of them on the device, or none. */
static void check_callers(const outcome *plain, bool room) {
    static caller callers[N_CALLERS];
    memset(callers, 0, sizeof callers);
    dt_engine *engine = open_engine("auto", 0);
    if (!room)
        shim_set_vram(0, shim_device_bytes() + 4096);
    for (int i = 0; i < N_CALLERS; i++) {
        callers[i].engine = engine;
        CHECK(pthread_create(&callers[i].thread, NULL, call, &callers[i]) == 0);
    }
    for (int i = 0; i < N_CALLERS; i++)
        pthread_join(callers[i].thread, NULL);
    for (int i = 0; i < N_CALLERS; i++) {
        const outcome *out = &callers[i].out;
        size_t n_bytes = (N_PROMPT + N_SHORT) * sizeof *out->tokens;
        CHECK(memcmp(out->tokens, plain->tokens, n_bytes) == 0);
        CHECK_MSG(strcmp(out->device, room ? "emulated" : "cpu") == 0 &&
                      strcmp(out->state, "on") == 0 && !out->notice[0],
            "caller %d: %s, %s, %s", i, out->device, out->state, out->notice);
    }
    CHECK(room == !dt_engine_draft_notice(engine)[0]);
    CHECK(dt_engine_close(engine));
    shim_set_vram(0, (size_t)8192 << 20);
}

static int n_threads(void) {
    int n = 0;
    DIR *folder = opendir("/proc/self/task");
    while (folder && readdir(folder))
        n++;
    if (folder)
        closedir(folder);
    return n;
}

/* A session after one whose thread hangs does not ask the device again, or another thread would be
 * left in there. */
static void check_after_hang(const outcome *plain) {
    outcome a = {0}, b = {0};
    dt_engine *engine = open_engine("auto", 100000000);
    shim_reset();
    shim_hang_nth(SHIM_KIND_GRAPH, 9);
    dt_session *session = open_session(engine, DT_DRAFT_MODEL);
    generate(&a, session, N_ANSWER);
    int n_hanging = shim_n_hanging();
    dt_session_close(session);
    long n_calls = shim_n_calls(SHIM_KIND_ANY);
    int n_left = n_threads();
    session = open_session(engine, DT_DRAFT_MODEL);
    CHECK(strstr(dt_engine_draft_notice(engine), "does not answer"));
    generate(&b, session, N_ANSWER);
    CHECK(same_text(&a, plain) && same_text(&b, plain));
    CHECK_MSG(strcmp(b.device, "cpu") == 0 && strcmp(b.state, "on") == 0, "%s, %s, %s", b.device,
        b.state, b.notice);
    dt_session_close(session);
    /* Threads that were joined may be listed for a moment. */
    for (int i = 0; i < 500 && n_threads() > n_left; i++)
        usleep(10000);
    CHECK_MSG(n_threads() <= n_left, "%d threads, then %d", n_left, n_threads());
    CHECK(!dt_engine_close(engine));
    CHECK(shim_n_calls(SHIM_KIND_ANY) == n_calls);
    CHECK(n_hanging > 0 && shim_n_hanging() == n_hanging);
}

/* Takes the memory away when the draft is on its way to the device. */
static void take_memory(void *arg, const char *what, size_t done, size_t total) {
    struct rlimit limit;
    (void)done;
    (void)total;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = 1;
    if (strcmp(what, "draft") == 0 && setrlimit(RLIMIT_AS, &limit) == 0)
        *(int *)arg += 1;
}

/* The device hangs while it loads, and then the CPU has no memory for the draft. */
static void check_open_fails(void) {
    char target[1024];
    dt_engine *engine = NULL;
    int n_taken = 0;
    bool stuck = false;
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    dt_engine_options options = {
        .target = data_path(target, "tiny-qwen2.gguf"),
        .draft = target,
        .n_threads = 1,
        .gpu = -1,
        .gpu_patience_ns = 500000000,
        .progress = take_memory,
        .arg = &n_taken,
        .stuck = &stuck,
    };
    shim_reset();
    shim_hang_nth(SHIM_KIND_COPY, 12);
    dt_err err = dt_engine_open(&engine, &options);
    setrlimit(RLIMIT_AS, &limit);
    CHECK_MSG(err == DT_ERR_MEMORY && !engine, "%d: %s", err, dt_err_message());
    CHECK(n_taken > 0 && stuck);
}

static void check_hangs(void) {
    outcome plain, other;
    answer(&plain, DT_DRAFT_NONE, "cpu", 0);
    answer(&other, DT_DRAFT_MODEL, "auto", 0);
    CHECK(same_text(&plain, &other));
    CHECK(strcmp(other.device, "emulated") == 0 && other.closed && !other.notice[0]);
    long n_graphs = shim_n_calls(SHIM_KIND_GRAPH);
    CHECK(n_graphs > 10);
    check_no_room(&plain);
    check_callers(&plain, true);
    check_callers(&plain, false);
    static const struct {
        shim_kind kind;
        long n;
        bool opens; /* the session begins on the device */
    } cases[] = {
        {SHIM_KIND_OTHER, 1, false},
        {SHIM_KIND_ALLOC, 1, false},
        {SHIM_KIND_COPY, 3, false},
        {SHIM_KIND_ALLOC, 4, false}, /* of the forward */
        {SHIM_KIND_GRAPH, 7, true},
        {SHIM_KIND_EVENT, 60, true},
    };
    for (size_t i = 0; i < DT_COUNT(cases); i++) {
        shim_reset();
        shim_hang_nth(cases[i].kind, cases[i].n);
        answer(&other, DT_DRAFT_MODEL, "auto", 100000000);
        CHECK_MSG(same_text(&plain, &other), "case %zu: another text", i);
        CHECK_MSG(!other.closed, "case %zu: nothing hung", i);
        CHECK_MSG(strcmp(other.device, cases[i].opens ? "emulated" : "cpu") == 0,
            "case %zu: served by %s", i, other.device);
        const char *told = cases[i].opens ? other.notice : other.engine_notice;
        CHECK_MSG(!told[0] || strstr(told, "does not answer"), "case %zu: %s", i, told);
        CHECK_MSG(cases[i].opens || told[0], "case %zu: not a word", i);
        CHECK_MSG(
            other.close_seconds < 4.0, "case %zu: closing takes %.1f s", i, other.close_seconds);
    }
    check_after_hang(&plain);
    check_open_fails();
    /* Nothing is released: a thread that came back would take the next case's hanging call. */
}

int main(void) {
    check_trees(0.0f, 0);
    check_trees(0.9f, 0);
    check_trees(0.9f, 10);
    check_hangs();
    return test_end();
}
