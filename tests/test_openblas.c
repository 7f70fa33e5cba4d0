/* OpenBLAS tiles: a token's bits do not depend on its row, on the rows beside it, on the other
 * threads; nothing is written beyond what was asked; and the sums are right. */
#include "tests/test.h"

#include <math.h>
#include <pthread.h>

#include "cpu/matmul_openblas.h"
#include "dt_build.h"
#include "src/base/mem.h"

#ifdef DT_HAVE_OPENBLAS

enum { K_MAX = 4864, ROWS = DT_OPENBLAS_TILE, STRIDE = DT_OPENBLAS_PANEL_MAX + 3 };

typedef struct panel {
    int n_w, k;
    float w[DT_OPENBLAS_PANEL_MAX * K_MAX];
    float x[ROWS * (K_MAX + 5)];
    float want[ROWS * STRIDE];
} panel;

static void fill(panel *p, test_rng *rng, int n_w, int k) {
    p->n_w = n_w;
    p->k = k;
    for (int i = 0; i < n_w * k; i++)
        p->w[i] = test_rng_float(rng);
    for (int i = 0; i < ROWS * (k + 5); i++)
        p->x[i] = test_rng_float(rng);
}

static void test_values(panel *p, float *scratch) {
    size_t x_stride = (size_t)p->k + 5;
    for (int n_rows = 1; n_rows <= ROWS; n_rows += 3) {
        float out[ROWS * STRIDE];
        for (int i = 0; i < ROWS * STRIDE; i++)
            out[i] = 12345;
        dt_openblas_panel(out, STRIDE, p->w, p->n_w, p->k, p->x, x_stride, n_rows, scratch);
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < STRIDE; i++) {
                float got = out[r * STRIDE + i];
                if (r >= n_rows || i >= p->n_w) {
                    CHECK(got == 12345); /* the padding stays ours */
                    continue;
                }
                double sum = 0, size = 0;
                for (int j = 0; j < p->k; j++) {
                    double product =
                        (double)p->w[i * p->k + j] * (double)p->x[(size_t)r * x_stride + (size_t)j];
                    sum += product;
                    size += fabs(product);
                }
                /* k roundings at most, each of half an ulp of a partial sum. */
                CHECK(fabs((double)got - sum) <= p->k * 0x1p-24 * size);
            }
    }
}

/* Every row alone, and every batch from every start, against the full tile. */
static void test_rows(panel *p, float *scratch, bool exact) {
    size_t x_stride = (size_t)p->k + 5;
    dt_openblas_panel(p->want, STRIDE, p->w, p->n_w, p->k, p->x, x_stride, ROWS, scratch);
    int n_wrong = 0;
    for (int first = 0; first < ROWS; first++)
        for (int n_rows = 1; n_rows <= ROWS - first; n_rows++) {
            float out[ROWS * STRIDE];
            dt_openblas_panel(out, STRIDE, p->w, p->n_w, p->k, p->x + (size_t)first * x_stride,
                x_stride, n_rows, scratch);
            for (int r = 0; r < n_rows; r++)
                n_wrong += memcmp(out + r * STRIDE, p->want + (first + r) * STRIDE,
                               (size_t)p->n_w * sizeof *out) != 0;
        }
    CHECK_MSG(n_wrong == 0 || !exact, "n_w %d, k %d: %d rows differ between batches", p->n_w, p->k,
        n_wrong);
}

typedef struct caller {
    const panel *p;
    int n_wrong;
    pthread_t thread;
} caller;

static void *call(void *arg) {
    caller *c = arg;
    const panel *p = c->p;
    float *scratch, out[ROWS * STRIDE];
    if (dt_mem_alloc(&scratch, dt_openblas_scratch_bytes(p->k)) != DT_OK) {
        c->n_wrong = -1;
        return NULL;
    }
    for (int i = 0; i < 300; i++) {
        dt_openblas_panel(out, STRIDE, p->w, p->n_w, p->k, p->x, (size_t)p->k + 5, ROWS, scratch);
        for (int r = 0; r < ROWS; r++)
            c->n_wrong +=
                memcmp(out + r * STRIDE, p->want + r * STRIDE, (size_t)p->n_w * sizeof *out) != 0;
    }
    dt_mem_free(scratch);
    return NULL;
}

static void test_threads(const panel *p) {
    caller callers[2] = {{.p = p}, {.p = p}};
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&callers[i].thread, NULL, call, &callers[i]) == 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(callers[i].thread, NULL);
        CHECK_MSG(callers[i].n_wrong == 0, "%d rows differ with two threads", callers[i].n_wrong);
    }
}

int main(void) {
    const char *id, *again;
    char disclaimer[160];
    test_rng rng = test_rng_open();
    int64_t start = dt_time_ns();
    CHECK_OK(dt_openblas_open(&id, disclaimer, sizeof disclaimer));
    printf("%s in %.0f ms: %s\n", id, 1e-6 * (double)(dt_time_ns() - start),
        disclaimer[0] ? disclaimer : "rows are exact");
    CHECK(strncmp(id, "openblas-", 9) == 0 && strlen(id) > 11);
    CHECK_OK(dt_openblas_open(&again, disclaimer, sizeof disclaimer));
    CHECK(again == id);

    panel *p;
    float *scratch;
    CHECK_OK(dt_mem_alloc(&p, sizeof *p));
    CHECK_OK(dt_mem_alloc(&scratch, dt_openblas_scratch_bytes(K_MAX)));
    static const int ks[] = {32, 64, 576, 896, K_MAX}, n_ws[] = {1, 10, 16, DT_OPENBLAS_PANEL_MAX};
    for (size_t i = 0; i < DT_COUNT(ks); i++)
        for (size_t j = 0; j < DT_COUNT(n_ws); j++) {
            fill(p, &rng, n_ws[j], ks[i]);
            if (ks[i] <= 896)
                test_values(p, scratch);
            test_rows(p, scratch, disclaimer[0] == 0);
            if (n_ws[j] == 16)
                test_threads(p);
        }
    dt_mem_free(scratch);
    dt_mem_free(p);
    return test_end();
}

#else

int main(void) {
    const char *id;
    char disclaimer[160] = "x";
    CHECK_FAILS(
        dt_openblas_open(&id, disclaimer, sizeof disclaimer), DT_ERR_UNSUPPORTED, "OpenBLAS");
    CHECK(id[0] == 0 && disclaimer[0] == 0);
    return test_end();
}

#endif
