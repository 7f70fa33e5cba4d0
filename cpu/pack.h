/* Packed weights: the layout that the matmul kernels read, made once at load.
 *
 * A tensor [n_out, k] becomes panels of 16 output rows (the last one padded with zero weights). A
 * panel holds its blocks in ascending order, each block the 16 rows side by side, so that a vector
 * lane is an output row: 4 consecutive weights of each of the 16 rows make a "line" of 64 bytes.
 * Layouts by type are written in cpu/layout.h; packed bytes stay
 * within 4% of the file's. The same layout serves every instruction set. */
#ifndef DT_CPU_PACK_H
#define DT_CPU_PACK_H

#include "src/base/dtype.h"

enum { DT_PANEL_ROWS = 16 };

typedef struct dt_packed {
    dt_type type;
    int n_out; /* rows of the tensor */
    int k;     /* columns: a multiple of the type's block */
    int n_panels;
    size_t panel_bytes;  /* a multiple of 32 */
    const uint8_t *data; /* [n_panels][panel_bytes], 64-byte aligned */
} dt_packed;

/* Bytes of a panel of `k` columns. */
size_t dt_pack_panel_bytes(dt_type type, int k);

/* Packs panel i_panel of `tensor` into out[dt_pack_panel_bytes]. Any thread. */
void dt_pack_panel(uint8_t *out, const dt_tensor *tensor, int i_panel);

/* out[k] = output row `i_row` of a packed tensor, dequantised: equals dt_dequantise of the source
 * row in bits. For tests and listings. */
void dt_pack_dequantise(float *out, const dt_packed *packed, int i_row);

#endif
