/* Tiny models against logits that an independent float64 reference computed from the dequantised
 * weights (scripts/golden_tiny.py): the distance allowed is that of the int8 activations. */
#include "cpu/cpu.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"
#include "tests/test.h"

/* Golden file: int32 n_tokens, int32 n_vocab, int32 tokens[n_tokens], then float32
 * logits[n_tokens][n_vocab], little endian. */
typedef struct golden {
    dt_file_map map;
    int n_tokens, n_vocab;
    const int32_t *tokens;
    const float *logits;
} golden;

static bool golden_open(golden *g, const char *folder, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.logits", folder, name);
    dt_err err = dt_file_map_open(&g->map, path);
    CHECK_MSG(err == DT_OK, "%s", dt_err_message());
    if (err != DT_OK)
        return false;
    const int32_t *head = (const int32_t *)(const void *)g->map.data;
    g->n_tokens = head[0];
    g->n_vocab = head[1];
    g->tokens = head + 2;
    g->logits = (const float *)(const void *)(head + 2 + g->n_tokens);
    size_t want = (2 + (size_t)g->n_tokens + (size_t)g->n_tokens * (size_t)g->n_vocab) * 4;
    CHECK_MSG(g->map.n_bytes == want, "%s: %zu bytes, want %zu", path, g->map.n_bytes, want);
    return g->map.n_bytes == want;
}

static double log_sum_exp(const float *logits, int n) {
    double max = logits[0], sum = 0;
    for (int i = 1; i < n; i++)
        max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++)
        sum += dt_exp_f64((double)logits[i] - max);
    return max + dt_log_f64(sum);
}

/* KL(reference || ours) of one row. */
static double divergence(const float *reference, const float *ours, int n) {
    double zr = log_sum_exp(reference, n), zo = log_sum_exp(ours, n), kl = 0;
    for (int i = 0; i < n; i++) {
        double lr = (double)reference[i] - zr, lo = (double)ours[i] - zo;
        kl += dt_exp_f64(lr) * (lr - lo);
    }
    return kl;
}

/* Mean divergence over positions 1.. of one way of the matrix products. */
static double mean_divergence(
    const golden *g, const dt_model *model, dt_matmul_way way, const char *isa) {
    dt_topo *topo;
    dt_cpu *cpu = NULL;
    dt_cpu_weights *weights = NULL;
    dt_forward *forward = NULL;
    CHECK_OK(dt_topo_open(&topo, NULL));
    CHECK_OK(dt_cpu_open(&cpu, topo, 1, isa));
    dt_err err = dt_cpu_load(&weights, cpu, model, way, NULL, NULL);
    double sum = 0;
    if (err != DT_OK) {
        CHECK_MSG(err == DT_ERR_UNSUPPORTED && way == DT_MATMUL_OPENBLAS, "%s", dt_err_message());
        sum = -1;
        goto done;
    }
    CHECK_OK(dt_cpu_forward_open(&forward, weights, 128));
    int32_t parents[DT_BATCH_MAX];
    for (int i = 0; i < g->n_tokens; i++)
        parents[i] = i ? DT_PARENT(i - 1) : -1;
    dt_batch batch = {g->n_tokens, g->tokens, parents, NULL};
    CHECK_OK(dt_forward_eval(forward, &batch));
    for (int i = 1; i < g->n_tokens; i++)
        sum += divergence(g->logits + (size_t)i * (size_t)g->n_vocab,
            forward->logits + (size_t)i * (size_t)g->n_vocab, g->n_vocab);
    sum /= g->n_tokens - 1;
done:
    dt_forward_close(forward);
    dt_cpu_unload(weights);
    dt_cpu_close(cpu);
    dt_topo_close(topo);
    return sum;
}

static void check_model(const char *folder, const char *name, bool quantised) {
    char path[1024];
    golden g;
    dt_model *model;
    snprintf(path, sizeof path, "%s/%s.gguf", folder, name);
    CHECK_OK(dt_model_open(&model, path));
    if (!golden_open(&g, folder, name))
        return;
    CHECK(g.n_vocab == model->config.n_vocab && g.n_tokens <= DT_BATCH_MAX);
    double fused = mean_divergence(&g, model, DT_MATMUL_FUSED, getenv("DT_TEST_ISA"));
    double exact = mean_divergence(&g, model, DT_MATMUL_FLOAT, "c");
    double plain = mean_divergence(&g, model, DT_MATMUL_OPENBLAS, NULL);
    printf("%s: mean KL to float64: fused %.3g, float %.3g, openblas %.3g\n", name, fused, exact,
        plain);
    /* int8 activations: the bound of doc/numerics.md; float32 activations: only the half-precision
     * keys and values stand between. */
    CHECK_MSG(fused <= (quantised ? 0.006 : 1e-5), "%s: fused %g", name, fused);
    CHECK_MSG(exact <= 1e-5, "%s: float %g", name, exact);
    CHECK_MSG(plain <= 1e-5, "%s: openblas %g", name, plain);
    /* The measure must bite: the reference of the next position is far away. */
    double wrong = divergence(g.logits + g.n_vocab, g.logits + 2 * g.n_vocab, g.n_vocab);
    CHECK_MSG(wrong > 0.05, "neighbouring positions differ by %g only", wrong);
    dt_model_close(model);
    dt_file_map_close(&g.map);
}

int main(void) {
    const char *folder = getenv("DT_TEST_DATA");
    if (!folder)
        folder = "tests/data";
    check_model(folder, "tiny-llama", true);
    check_model(folder, "tiny-qwen2", true);
    check_model(folder, "tiny-draft", true);
    check_model(folder, "tiny-iq4", true);
    check_model(folder, "tiny-f16", false);
    check_model(folder, "tiny-qwen3", true);
    check_model(folder, "tiny-gemma3", true);
    check_model(folder, "tiny-mistral", true);
    check_model(folder, "tiny-phi3", true);
    return test_end();
}
