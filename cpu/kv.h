/* The KV cache of one forward on the CPU. Rows come in steps of DT_ATTN_RANGE; within a step every
 * head of every layer has its rows together. Open reserves address space for all rows and takes
 * nothing else: memory comes with the first row written to a page, so that a long context costs
 * what is used of it. Nothing here fails afterwards; one thread at a time writes a row. */
#ifndef DT_CPU_KV_H
#define DT_CPU_KV_H

#include "cpu/attn.h"
#include "models/config.h"
#include "models/rows.h"

typedef struct dt_kv {
    dt_kv_type type;
    int n_heads; /* n_layer * n_head_kv: head i_layer * n_head_kv + i_kv */
    int head_dim, v_stride;
    size_t head_keys, head_values; /* elements of a head's rows of one step */
    size_t key_step, value_step;   /* elements from one step to the next */
    uint8_t *keys;   /* [step][n_heads][DT_ATTN_RANGE / 16][head_dim][16] halves or int8 */
    uint8_t *values; /* [step][n_heads][DT_ATTN_RANGE][v_stride] likewise */
    /* DT_KV_Q8_0: halves [step][n_heads][DT_ATTN_RANGE / 16][n_blocks][16], and
     * [step][n_heads][DT_ATTN_RANGE][n_blocks]. */
    uint16_t *key_scales, *value_scales;
    int n_blocks;
    size_t head_scales, scale_step; /* of either */
    size_t keys_bytes, values_bytes, scales_bytes;
} dt_kv;

/* Bytes that n_rows rows take when all are written. */
size_t dt_kv_bytes(const dt_config *config, int n_rows, dt_kv_type type);

dt_err dt_kv_open(dt_kv *kv, const dt_config *config, int n_rows, dt_kv_type type);
void dt_kv_close(dt_kv *kv); /* takes a zeroed one too */

/* Writes one row of one head from key[head_dim] and value[head_dim]. */
void dt_kv_store(dt_kv *kv, const dt_kernels *kernels, int i_head, int row, const float *key,
    const float *value);

/* A block of n <= DT_KV_BLOCK elements as DT_KV_Q8_0: int8 q_stride apart, and the scale. */
uint16_t dt_kv_quantise(int8_t *q, size_t q_stride, const float *x, int n);

/* Copies rows of all heads in list order. */
void dt_kv_move(dt_kv *kv, const dt_row_move *moves, int n_moves);

#endif
