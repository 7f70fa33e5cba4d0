#include "cpu/matmul_openblas.h"

#include "dt_build.h"

#ifdef DT_HAVE_OPENBLAS

#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "src/base/mem.h"

/* OpenBLAS starts threads of its own as soon as it is loaded, and their end can hang where memory
 * is short, so it is loaded only by those who ask for it. Written once, by start(). */
static struct {
    __typeof__(&cblas_sgemm) sgemm;
    __typeof__(&openblas_set_num_threads) set_num_threads;
    __typeof__(&openblas_get_config) get_config;
    __typeof__(&openblas_get_corename) get_corename;
} blas;

static dt_err load_library(void) {
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        DT_FAIL(DT_ERR_UNSUPPORTED, "cannot load OpenBLAS: %s", dlerror());
    struct {
        const char *name;
        void *slot;
    } symbols[] = {{"cblas_sgemm", &blas.sgemm},
        {"openblas_set_num_threads", &blas.set_num_threads},
        {"openblas_get_config", &blas.get_config}, {"openblas_get_corename", &blas.get_corename}};
    for (size_t i = 0; i < DT_COUNT(symbols); i++) {
        void *symbol = dlsym(library, symbols[i].name);
        if (!symbol)
            DT_FAIL(DT_ERR_UNSUPPORTED, "OpenBLAS has no %s: %s", symbols[i].name, dlerror());
        memcpy(symbols[i].slot, &symbol, sizeof symbol);
    }
    return DT_OK;
}

size_t dt_openblas_scratch_bytes(int k) {
    return ((size_t)k + DT_OPENBLAS_PANEL_MAX) * DT_OPENBLAS_TILE * sizeof(float);
}

/* scratch: c[PANEL_MAX][TILE], then a padded x[TILE][k]. */
void dt_openblas_panel(float *out, size_t out_stride, const float *w, int n_w, int k,
    const float *x, size_t x_stride, int n_rows, float *scratch) {
    float *c = scratch;
    if (n_rows < DT_OPENBLAS_TILE) {
        float *padded = scratch + DT_OPENBLAS_PANEL_MAX * DT_OPENBLAS_TILE;
        for (int r = 0; r < n_rows; r++)
            memcpy(padded + (size_t)r * (size_t)k, x + (size_t)r * x_stride, (size_t)k * sizeof *x);
        memset(padded + (size_t)n_rows * (size_t)k, 0,
            (size_t)(DT_OPENBLAS_TILE - n_rows) * (size_t)k * sizeof *x);
        x = padded;
        x_stride = (size_t)k;
    }
    blas.sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n_w, DT_OPENBLAS_TILE, k, 1.0f, w, k, x,
        (int)x_stride, 0.0f, c, DT_OPENBLAS_TILE);
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < n_w; i++)
            out[(size_t)r * out_stride + (size_t)i] = c[i * DT_OPENBLAS_TILE + r];
}

/* Pseudo-random in [-1, 1), xorshift32. */
static void fill(float *x, size_t n, uint32_t *state) {
    for (size_t i = 0; i < n; i++) {
        *state ^= *state << 13;
        *state ^= *state >> 17;
        *state ^= *state << 5;
        x[i] = (float)(int32_t)*state * 0x1p-31f;
    }
}

enum { TEST_K_MAX = 8960, TEST_ROWS = 16 };

typedef struct test_memory {
    float w[TEST_ROWS * TEST_K_MAX];
    float x[DT_OPENBLAS_TILE * TEST_K_MAX];
    float others[DT_OPENBLAS_TILE * TEST_K_MAX];
    float out[DT_OPENBLAS_TILE * TEST_ROWS];
    float want[TEST_ROWS];
    float scratch[(TEST_K_MAX + DT_OPENBLAS_PANEL_MAX) * DT_OPENBLAS_TILE];
} test_memory;

/* Whether one token's products are the same bits alone and at every column among others. */
static bool columns_agree(test_memory *m, int n_w, int k, uint32_t *state) {
    const size_t row = (size_t)k;
    fill(m->w, (size_t)n_w * row, state);
    fill(m->others, DT_OPENBLAS_TILE * row, state);
    const float *token = m->others; /* row 0; `x` takes the others in turn */
    dt_openblas_panel(m->want, TEST_ROWS, m->w, n_w, k, token, row, 1, m->scratch);
    for (int column = 0; column < DT_OPENBLAS_TILE; column++) {
        for (int r = 0; r < DT_OPENBLAS_TILE; r++) {
            int source = r == column ? 0 : 1 + (r + column) % (DT_OPENBLAS_TILE - 1);
            memcpy(m->x + (size_t)r * row, m->others + (size_t)source * row, row * sizeof *m->x);
        }
        dt_openblas_panel(m->out, TEST_ROWS, m->w, n_w, k, m->x, row, DT_OPENBLAS_TILE, m->scratch);
        if (memcmp(m->out + column * TEST_ROWS, m->want, (size_t)n_w * sizeof *m->out) != 0)
            return false;
    }
    return true;
}

/* What the start-up found: written once, under `once`, and only read afterwards. */
static struct {
    dt_err err;
    char message[256];
    char id[48];
    char disclaimer[160];
} found;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void start(void) {
    found.err = load_library();
    if (found.err != DT_OK) {
        snprintf(found.message, sizeof found.message, "%s", dt_err_message());
        return;
    }
    /* "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ..." */
    char version[16] = "unknown";
    (void)sscanf(blas.get_config(), "OpenBLAS %15s", version);
    snprintf(found.id, sizeof found.id, "openblas-%s-%s", version, blas.get_corename());
    blas.set_num_threads(1); /* the parallel loop is ours */

    test_memory *memory;
    found.err = dt_mem_alloc(&memory, sizeof *memory);
    if (found.err != DT_OK) {
        snprintf(found.message, sizeof found.message, "%s", dt_err_message());
        return;
    }
    static const int ks[] = {128, 896, 1536, 8960};
    static const int rows[] = {TEST_ROWS, 10}; /* a full panel, a last one */
    uint32_t state = 2463534242;
    for (size_t i = 0; i < DT_COUNT(ks); i++)
        for (size_t j = 0; j < DT_COUNT(rows); j++)
            if (!columns_agree(memory, rows[j], ks[i], &state) && found.disclaimer[0] == 0)
                snprintf(found.disclaimer, sizeof found.disclaimer,
                    "not exact: %s rounds by batch position (k = %d): "
                    "the text may depend on the draft",
                    found.id, ks[i]);
    dt_mem_free(memory);
}

dt_err dt_openblas_open(const char **id_out, char *disclaimer, size_t n_bytes) {
    *id_out = "";
    if (n_bytes > 0)
        disclaimer[0] = 0;
    pthread_once(&once, start);
    if (found.err != DT_OK)
        DT_FAIL(found.err, "%s", found.message);
    blas.set_num_threads(1); /* again: another user of the library may have changed it */
    *id_out = found.id;
    snprintf(disclaimer, n_bytes, "%s", found.disclaimer);
    return DT_OK;
}

#else

dt_err dt_openblas_open(const char **id_out, char *disclaimer, size_t n_bytes) {
    *id_out = "";
    if (n_bytes > 0)
        disclaimer[0] = 0;
    DT_FAIL(DT_ERR_UNSUPPORTED, "this build has no OpenBLAS: build it with -Dopenblas=enabled, or "
                                "leave --matmul at auto");
}

size_t dt_openblas_scratch_bytes(int k) {
    (void)k;
    return 0;
}

/* Never reached: nothing opens without OpenBLAS. */
void dt_openblas_panel(float *out, size_t out_stride, const float *w, int n_w, int k,
    const float *x, size_t x_stride, int n_rows, float *scratch) {
    (void)out, (void)out_stride, (void)w, (void)n_w, (void)k;
    (void)x, (void)x_stride, (void)n_rows, (void)scratch;
}

#endif
