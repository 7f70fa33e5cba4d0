#include "cpu/matmul.h"

#include <string.h>

#include "cpu/matmul_openblas.h"
#include "models/forward.h"

/* A chunk is about this many bytes of weights, some 20 us from memory: small enough that a busy
 * core does not hold the others up, large enough that the counter costs nothing. */
enum { CHUNK_BYTES = 192 << 10, CHUNKS_PER_THREAD_MIN = 4 };

int dt_act_block(dt_type type, dt_matmul_way way) {
    return way != DT_MATMUL_FUSED || dt_type_block(type) == 1 ? 0 : dt_type_block(type);
}

size_t dt_matmul_scratch_bytes(dt_matmul_way way, int k_max) {
    size_t spill = DT_BATCH_MAX * DT_PANEL_ROWS * sizeof(float);
    size_t panel = (size_t)k_max * DT_PANEL_ROWS * sizeof(float);
    if (way == DT_MATMUL_FUSED)
        return spill;
    return spill + panel + (way == DT_MATMUL_OPENBLAS ? dt_openblas_scratch_bytes(k_max) : panel);
}

static int panels_of(const dt_product *product) {
    if (product->panels)
        return product->n_panels;
    return (int)((product->weight->tensor->ne[1] + DT_PANEL_ROWS - 1) / DT_PANEL_ROWS);
}

/* Panels of one chunk of a product. */
static int panels_per_chunk(const dt_product *product, int n_threads) {
    const dt_tensor *t = product->weight->tensor;
    size_t panel = dt_type_row_bytes(t->type, t->ne[0]) * DT_PANEL_ROWS;
    int by_bytes = (int)(CHUNK_BYTES / DT_MAX(panel, 1));
    int by_threads = panels_of(product) / (CHUNKS_PER_THREAD_MIN * n_threads);
    return DT_MAX(1, DT_MIN(by_bytes, by_threads));
}

static void panel_multiply(dt_matmul_fn multiply, const dt_product *product, int i_panel,
    const uint8_t *panel, int row0, int n_rows, float *spill) {
    float *out = product->out + (size_t)row0 * product->out_stride + i_panel * DT_PANEL_ROWS;
    int n_valid =
        DT_MIN(DT_PANEL_ROWS, (int)product->weight->tensor->ne[1] - i_panel * DT_PANEL_ROWS);
    if (n_valid == DT_PANEL_ROWS) {
        multiply(out, product->out_stride, panel, product->act, row0, n_rows);
        return;
    }
    /* The last panel of an odd tensor: its padding must not reach the next row. */
    multiply(spill, DT_PANEL_ROWS, panel, product->act, row0, n_rows);
    for (int r = 0; r < n_rows; r++)
        memcpy(out + (size_t)r * product->out_stride, spill + (size_t)r * DT_PANEL_ROWS,
            (size_t)n_valid * sizeof *out);
}

/* The panel's rows of the mapped file in float32; returns their number. */
static int panel_dequantise(float *out, const dt_tensor *t, int i_panel) {
    int n_valid = DT_MIN(DT_PANEL_ROWS, (int)t->ne[1] - i_panel * DT_PANEL_ROWS);
    size_t row_bytes = dt_type_row_bytes(t->type, t->ne[0]);
    for (int i = 0; i < n_valid; i++)
        dt_dequantise(out + (size_t)i * (size_t)t->ne[0],
            (const uint8_t *)t->data + (size_t)(i_panel * DT_PANEL_ROWS + i) * row_bytes, t->type,
            t->ne[0]);
    return n_valid;
}

static void panel_float(const dt_kernels *kernels, const dt_product *product, int i_panel, int row0,
    int n_rows, float *scratch) {
    const dt_tensor *t = product->weight->tensor;
    size_t k = (size_t)t->ne[0];
    float *spill = scratch, *panel = spill + DT_BATCH_MAX * DT_PANEL_ROWS;
    float *rows = panel + DT_PANEL_ROWS * k;
    int n_valid = panel_dequantise(rows, t, i_panel);
    memset(panel, 0, DT_PANEL_ROWS * k * sizeof *panel);
    for (size_t i = 0; i < k; i++)
        for (int r = 0; r < n_valid; r++)
            panel[i * DT_PANEL_ROWS + (size_t)r] = rows[(size_t)r * k + i];
    panel_multiply(kernels->matmul[DT_TYPE_F32], product, i_panel, (const uint8_t *)panel, row0,
        n_rows, spill);
}

static void panel_openblas(
    const dt_product *product, int i_panel, int row0, int n_rows, float *scratch) {
    int k = (int)product->weight->tensor->ne[0];
    float *weights = scratch;
    int n_valid = panel_dequantise(weights, product->weight->tensor, i_panel);
    float *tile = weights + (size_t)DT_PANEL_ROWS * (size_t)k;
    for (int r = row0; r < row0 + n_rows; r += DT_OPENBLAS_TILE)
        dt_openblas_panel(product->out + (size_t)r * product->out_stride + i_panel * DT_PANEL_ROWS,
            product->out_stride, weights, n_valid, k,
            product->act->x + (size_t)r * product->act->x_stride, product->act->x_stride,
            DT_MIN(DT_OPENBLAS_TILE, row0 + n_rows - r), tile);
}

void dt_matmul_work(const dt_kernels *kernels, const dt_product *products, int n_products, int row0,
    int n_rows, _Atomic int *next, int n_threads, dt_matmul_way way, void *scratch) {
    int i_product = 0, chunk0 = 0; /* chunks before the present product */
    for (;;) {
        int chunk = dt_pool_next(next);
        for (;;) {
            if (i_product == n_products)
                return;
            int per = panels_per_chunk(&products[i_product], n_threads);
            int n_chunks = (panels_of(&products[i_product]) + per - 1) / per;
            if (chunk < chunk0 + n_chunks)
                break;
            chunk0 += n_chunks;
            i_product++;
        }
        const dt_product *product = &products[i_product];
        int per = panels_per_chunk(product, n_threads);
        int first = (chunk - chunk0) * per;
        int end = DT_MIN(first + per, panels_of(product));
        for (int i = first; i < end; i++) {
            int p = product->panels ? product->panels[i] : i;
            const dt_packed *packed = &product->weight->packed;
            if (way == DT_MATMUL_OPENBLAS)
                panel_openblas(product, p, row0, n_rows, scratch);
            else if (way == DT_MATMUL_FLOAT)
                panel_float(kernels, product, p, row0, n_rows, scratch);
            else
                panel_multiply(dt_kernels_matmul(kernels, packed->type, n_rows), product, p,
                    packed->data + (size_t)p * packed->panel_bytes, row0, n_rows, scratch);
        }
    }
}
