/* Times passes and plain greedy decoding of llama.cpp, for scripts/bench_peers, which compiles it
 * against the library it has built:
 *
 *     peer_llama curve MODEL THREADS DEPTH REPETITIONS M,M,...
 *     peer_llama plain MODEL THREADS N_TOKENS PROMPT_FILE ...
 *
 * One JSON object a line on standard output. A pass is one decode call over m tokens with all
 * logits, DEPTH tokens before it; its tokens are forgotten afterwards. */
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROWS_MAX = 512, TEXT_MAX = 1 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void quiet(enum ggml_log_level level, const char *text, void *arg) {
    (void)arg;
    if (level == GGML_LOG_LEVEL_ERROR)
        fputs(text, stderr);
}

static void fail(const char *what) {
    fprintf(stderr, "peer_llama: %s\n", what);
    exit(1);
}

typedef struct peer {
    struct llama_model *model;
    struct llama_context *ctx;
    const struct llama_vocab *vocab;
    struct llama_batch batch;
} peer;

static void open_peer(peer *p, const char *path, int n_threads, int n_ctx) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    p->model = llama_model_load_from_file(path, llama_model_default_params());
    if (!p->model)
        fail("cannot load the model");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)n_ctx;
    params.n_batch = params.n_ubatch = ROWS_MAX;
    params.n_threads = params.n_threads_batch = n_threads;
    p->ctx = llama_init_from_model(p->model, params);
    if (!p->ctx)
        fail("cannot open a context");
    p->vocab = llama_model_get_vocab(p->model);
    p->batch = llama_batch_init(ROWS_MAX, 0, 1);
}

static void close_peer(peer *p) {
    llama_batch_free(p->batch);
    llama_free(p->ctx);
    llama_model_free(p->model);
    llama_backend_free();
}

/* Decodes n tokens at `position`; logits for all of them, or for the last. */
static void decode(peer *p, const llama_token *tokens, int n, int position, bool all) {
    p->batch.n_tokens = n;
    for (int i = 0; i < n; i++) {
        p->batch.token[i] = tokens[i];
        p->batch.pos[i] = position + i;
        p->batch.n_seq_id[i] = 1;
        p->batch.seq_id[i][0] = 0;
        p->batch.logits[i] = all || i == n - 1;
    }
    if (llama_decode(p->ctx, p->batch) != 0)
        fail("llama_decode failed");
}

static void read_prompt(peer *p, const llama_token *tokens, int n) {
    for (int done = 0; done < n; done += ROWS_MAX)
        decode(p, tokens + done, n - done < ROWS_MAX ? n - done : ROWS_MAX, done, false);
}

static void forget(peer *p, int from) {
    llama_memory_seq_rm(llama_get_memory(p->ctx), 0, from, -1);
}

static int run_curve(const char *path, int n_threads, int depth, int n_reps, char *list) {
    int sizes[64], n_sizes = 0;
    for (char *at = strtok(list, ","); at && n_sizes < 64; at = strtok(NULL, ","))
        sizes[n_sizes++] = atoi(at);
    peer p;
    open_peer(&p, path, n_threads, depth + ROWS_MAX);
    llama_token *tokens = malloc(sizeof *tokens * (size_t)(depth + ROWS_MAX));
    double *ms = malloc(sizeof *ms * (size_t)n_reps * 64);
    if (!tokens || !ms)
        fail("no memory");
    for (int i = 0; i < depth + ROWS_MAX; i++)
        tokens[i] = 1000 + i * 37 % 5000;
    read_prompt(&p, tokens, depth);
    for (int i = -1; i < n_reps; i++) /* sizes in turn; the first round warms up */
        for (int j = 0; j < n_sizes; j++) {
            double start = now();
            decode(&p, tokens + depth, sizes[j], depth, true);
            if (llama_get_logits_ith(p.ctx, sizes[j] - 1) == NULL)
                fail("no logits");
            if (i >= 0)
                ms[j * n_reps + i] = (now() - start) * 1e3;
            forget(&p, depth);
        }
    for (int j = 0; j < n_sizes; j++) {
        printf("{\"m\": %d, \"ms\": [", sizes[j]);
        for (int i = 0; i < n_reps; i++)
            printf("%s%.4f", i ? ", " : "", ms[j * n_reps + i]);
        printf("]}\n");
    }
    free(ms);
    free(tokens);
    close_peer(&p);
    return 0;
}

static llama_token likeliest(const float *logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void answer(peer *p, int n_tokens, const char *path) {
    static char text[TEXT_MAX];
    static llama_token tokens[TEXT_MAX];
    FILE *file = fopen(path, "rb");
    if (!file)
        fail("cannot open a prompt");
    int n_bytes = (int)fread(text, 1, sizeof text, file);
    fclose(file);
    int n = llama_tokenize(p->vocab, text, n_bytes, tokens, TEXT_MAX, true, true);
    if (n <= 0)
        fail("cannot tokenise a prompt");
    int n_vocab = llama_vocab_n_tokens(p->vocab), n_out = 0;
    forget(p, 0);
    read_prompt(p, tokens, n);
    double start = now();
    llama_token token = likeliest(llama_get_logits_ith(p->ctx, -1), n_vocab);
    for (n_out = 1; n_out < n_tokens && !llama_vocab_is_eog(p->vocab, token); n_out++) {
        decode(p, &token, 1, n + n_out - 1, true);
        token = likeliest(llama_get_logits_ith(p->ctx, 0), n_vocab);
    }
    printf("{\"tokens\": %d, \"seconds\": %.6f}\n", n_out - 1, now() - start);
}

int main(int argc, char **argv) {
    if (argc == 7 && strcmp(argv[1], "curve") == 0)
        return run_curve(argv[2], atoi(argv[3]), atoi(argv[4]), atoi(argv[5]), argv[6]);
    if (argc >= 6 && strcmp(argv[1], "plain") == 0) {
        peer p;
        open_peer(&p, argv[2], atoi(argv[3]), 4096);
        for (int i = 5; i < argc; i++)
            answer(&p, atoi(argv[4]), argv[i]);
        close_peer(&p);
        return 0;
    }
    fail("want: curve MODEL THREADS DEPTH REPETITIONS M,M,... | plain MODEL THREADS N FILE ...");
}
