/* bench_gpu MODEL [DEPTH]: what a draft's rounds cost on a GPU, as lines of JSON: the device's copy
 * bandwidth, then for each number of rows the time of a round (forward and best tokens) and the
 * bytes of weights a second that it amounts to. Exit code 77: no device. */
#include "gpu/gpu_device.h"
#include "src/base/mem.h"
#include "tests/test.h"

enum { REPEATS = 50, COPY_BYTES = 256 << 20, COPIES = 20 };

static int compare_ns(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Bytes read and written a second by copies within the device's memory; 0 if they fail. */
static double copy_rate(const dt_gpu *gpu) {
    void *a = NULL, *b = NULL;
    double rate = 0;
    if (gpu->ops->alloc(&a, gpu->device, COPY_BYTES) == DT_OK &&
        gpu->ops->alloc(&b, gpu->device, COPY_BYTES) == DT_OK) {
        (void)gpu->ops->copy_within(gpu->device, b, a, COPY_BYTES);
        (void)gpu->ops->wait(gpu->device);
        int64_t start = dt_time_ns();
        for (int i = 0; i < COPIES; i++)
            (void)gpu->ops->copy_within(gpu->device, b, a, COPY_BYTES);
        if (gpu->ops->wait(gpu->device) == DT_OK)
            rate = 2.0 * COPIES * COPY_BYTES / ((double)(dt_time_ns() - start) * 1e-9);
    }
    gpu->ops->release(gpu->device, a);
    gpu->ops->release(gpu->device, b);
    return rate;
}

/* Bytes of weights that a round reads. */
static double weight_bytes(const dt_model *model) {
    double n = (double)model->output->n_bytes;
    for (int i = 0; i < model->config.n_layer; i++) {
        const dt_layer *l = &model->layers[i];
        const dt_tensor *all[] = {l->wq, l->wk, l->wv, l->wo, l->w_gate, l->w_up, l->w_down};
        for (size_t j = 0; j < DT_COUNT(all); j++)
            n += (double)all[j]->n_bytes;
    }
    return n;
}

static dt_err time_rounds(dt_forward *f, int m, int depth, double copy, double bytes) {
    int64_t ns[REPEATS];
    int32_t tokens[DT_BATCH_MAX], parents[DT_BATCH_MAX];
    for (int i = 0; i < m; i++) {
        tokens[i] = 100 + i;
        parents[i] = i ? DT_PARENT(i - 1) : dt_rows_last(&f->rows);
    }
    for (int i = -3; i < REPEATS; i++) {
        int64_t start = dt_time_ns();
        DT_TRY(dt_forward_eval(f, &(dt_batch){m, tokens, parents, NULL}));
        if (i >= 0)
            ns[i] = dt_time_ns() - start;
        dt_forward_truncate(f, depth);
    }
    qsort(ns, REPEATS, sizeof *ns, compare_ns);
    double seconds = (double)ns[REPEATS / 2] * 1e-9;
    printf("{\"rows\": %d, \"depth\": %d, \"round_ms\": %.3f, \"rows_per_second\": %.1f, "
           "\"weights_gb_per_second\": %.1f, \"share_of_copy\": %.3f}\n",
        m, depth, seconds * 1e3, m / seconds, bytes / seconds * 1e-9,
        copy > 0 ? bytes / seconds / copy : 0.0);
    return DT_OK;
}

static dt_err bench(const dt_gpu *gpu, dt_forward *f, int depth) {
    static const int ms[] = {1, 2, 4, 8, 16, 32, 64};
    double copy = copy_rate(gpu), bytes = weight_bytes(f->model);
    printf("{\"device\": \"%s\", \"copy_gb_per_second\": %.1f, \"weights_mb\": %.1f}\n",
        dt_gpu_describe(gpu), copy * 1e-9, bytes * 1e-6);
    dt_topk_args args = {.k = 2, .n_allowed = f->model->config.n_vocab, .tau = 1.0f};
    f->topk_hint = &args;
    int32_t *prompt = NULL;
    int last = 0;
    DT_TRY(dt_mem_alloc(&prompt, (size_t)depth * sizeof *prompt));
    for (int i = 0; i < depth; i++)
        prompt[i] = 1000 + i % 1000;
    dt_err err = dt_forward_prefill(&last, f, prompt, depth, DT_BATCH_MAX, NULL, NULL);
    dt_mem_free(prompt);
    DT_TRY(err);
    for (size_t i = 0; i < DT_COUNT(ms); i++)
        DT_TRY(time_rounds(f, ms[i], depth, copy, bytes));
    return DT_OK;
}

int main(int argc, char **argv) {
    dt_gpu *gpu = NULL;
    dt_model *model = NULL;
    dt_gpu_weights *weights = NULL;
    dt_forward *f = NULL;
    int depth = argc > 2 ? atoi(argv[2]) : 256;
    if (argc < 2 || depth < 1) {
        fprintf(stderr, "usage: bench_gpu MODEL [DEPTH]\n");
        return 2;
    }
    if (dt_gpu_open(&gpu, DT_GPU_ANY) != DT_OK) {
        printf("skipped: %s\n", dt_err_message());
        return TEST_SKIPPED;
    }
    dt_err err = dt_model_open(&model, argv[1]);
    if (err == DT_OK)
        err = dt_gpu_load(&weights, gpu, model, NULL, NULL);
    if (err == DT_OK)
        err = dt_gpu_forward_open(&f, weights, depth + DT_BATCH_MAX, false);
    if (err == DT_OK)
        err = bench(gpu, f, depth);
    if (err != DT_OK)
        fprintf(stderr, "bench_gpu: %s\n", dt_err_message());
    dt_forward_close(f);
    dt_gpu_unload(weights);
    dt_model_close(model);
    dt_gpu_close(gpu);
    return err == DT_OK ? 0 : 1;
}
