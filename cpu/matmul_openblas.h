/* Matrix products through OpenBLAS, for any weight type and CPU, one small tile a call.
 *
 * Products keep the law that a token's result does not depend on the batch it came in: every call
 * is one single-threaded sgemm of C[n_w, 16] = W X^T in row-major order, the 16 tokens being the
 * columns of C, zero-padded. Measured with OpenBLAS 0.3.21, K from 64 to 11,008: a column's bits
 * are then the same at all 16 positions on its Sandybridge, Haswell, Zen, SkylakeX and Cooperlake
 * kernels (in column-major order they are not on Haswell and Zen). The start-up proves it again on
 * the machine at hand. The bits still depend on n_w, so a tensor must always be cut into the same
 * panels; they differ between machines.
 *
 * matmul_openblas.c alone sees cblas.h. */
#ifndef DT_CPU_MATMUL_OPENBLAS_H
#define DT_CPU_MATMUL_OPENBLAS_H

#include "src/base/common.h"

enum {
    DT_OPENBLAS_TILE = 16,      /* tokens of a tile */
    DT_OPENBLAS_PANEL_MAX = 64, /* weight rows of a call at most; 16 is as fast */
};

/* Sets OpenBLAS to one thread, for the whole process, and runs the self-test (some 20 ms, the first
 * time only). `*id_out` is "openblas-VERSION-CORE", valid for the life of the program. `disclaimer`
 * (160 bytes are enough) becomes empty, or one line that says that the property does not hold here.
 * Any thread. Without OpenBLAS: DT_ERR_UNSUPPORTED. Also DT_ERR_MEMORY. */
dt_err dt_openblas_open(const char **id_out, char *disclaimer, size_t n_bytes);

/* Bytes of the scratch that one thread needs for panels of up to `k` columns. */
size_t dt_openblas_scratch_bytes(int k);

/* out[r * out_stride + i] = w row i times x row r: w[n_w][k] dequantised, n_w 1 ..
 * DT_OPENBLAS_PANEL_MAX; x[n_rows] rows x_stride floats apart (>= k), n_rows 1 .. DT_OPENBLAS_TILE.
 * Nothing overlaps; no alignment is asked. Writes only i < n_w and r < n_rows. After
 * dt_openblas_open, from any number of threads at once, each with a scratch of its own. */
void dt_openblas_panel(float *out, size_t out_stride, const float *w, int n_w, int k,
    const float *x, size_t x_stride, int n_rows, float *scratch);

#endif
