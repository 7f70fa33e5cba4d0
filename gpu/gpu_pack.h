/* Weights in the layout of the kernels (gpu/ops.h, "packed weights"): made on the host, once, at
 * load. Pieces are the file's own bytes, so packed weights are as large as the file's; only Q3_K's
 * scales are unpacked (110 bytes become 114). By type, in the order of the pieces:
 *
 *   Q4_0, IQ4_NL  q[16] | half d
 *   Q4_1          q[16] | word d, m
 *   Q5_0          q[16] | word fifth bits | half d
 *   Q5_1          q[16] | word d, m; word fifth bits
 *   Q8_0          q[32] | half d
 *   Q4_K          d, dmin, scales[12]; q[128]
 *   Q5_K          d, dmin, scales[12]; high[32]; q[128]
 *   Q6_K          low[128]; high[64]; scales[16] | half d
 *   Q3_K          third[32]; low[64]; scales[16] less 32 | half d
 *   IQ4_XS        q[128] | word d, scales' upper bits; word their low nibbles
 *   F32, F16, BF16  4, 8, 8 weights, zeros behind the last */
#ifndef DT_GPU_GPU_PACK_H
#define DT_GPU_GPU_PACK_H

#include "gpu/ops.h"

/* n_block 0 for a type that has no kernel. */
dt_gpu_shape dt_gpu_shape_of(dt_type type);

/* Everything about a packed tensor but where it lies. */
void dt_gpu_matrix_of(dt_gpu_matrix *out, const dt_tensor *tensor);

/* Packs panel i_panel into out[panel_bytes]. Any thread. */
void dt_gpu_pack_panel(uint8_t *out, const dt_tensor *tensor, int i_panel);

#endif
