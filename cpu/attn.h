/* Attention over a KV cache in which a tree's rows lie apart: keys are visited by absolute
 * position, in ranges of 512 that are combined in ascending order, so that the result depends
 * neither on where a row lies nor on the number of threads. Formulas: doc/numerics.md, "Attention".
 *
 * Cache of one layer and KV head, in steps of DT_ATTN_RANGE rows: keys [rows / 16][head_dim][16]
 * (lanes are rows), values [rows][v_stride], v_stride = head_dim rounded up to 16 and padded with
 * zeros; of halves, or of int8 with scales, which are halves: key_scales [rows / 16][n_blocks][16],
 * value_scales [rows][n_blocks], n_blocks = dt_kv_blocks(head_dim). */
#ifndef DT_CPU_ATTN_H
#define DT_CPU_ATTN_H

#include "cpu/kernels.h"
#include "models/rows.h"

/* Positions of a range; queries (rows x heads) that are worked on together, which also bounds the
 * heads of a group. */
enum { DT_ATTN_RANGE = 512, DT_ATTN_QUERIES = 64, DT_ATTN_GROUP_MAX = 64 };

enum { DT_KV_BLOCK = 32 };

static inline int dt_kv_blocks(int head_dim) {
    return (head_dim + DT_KV_BLOCK - 1) / DT_KV_BLOCK;
}

/* One query row: where it stands and what it sees. Positions below n_committed lie in the cache row
 * of the same number; position n_committed + i lies in row ancestors[i]. */
typedef struct dt_attn_row {
    int n_positions;          /* visible: first .. n_positions-1 */
    const int32_t *ancestors; /* [n_positions - n_committed] */
    int first;                /* 0 without a sliding window */
} dt_attn_row;

/* Work of one KV head (or some of the query heads that share it), one range of positions and some
 * rows. The query of row r and head g: q[r * q_stride + g * head_dim ..], rotated, not scaled. Its
 * result lies at part + r * part_row_stride + g * part_stride: {max, sum, 14 unused,
 * weighted sum of values [v_stride]}. A row that sees nothing of the range gets max = -inf and
 * sum = 0. */
typedef struct dt_attn_range {
    int head_dim, v_stride;
    int n_group; /* query heads, at most DT_ATTN_GROUP_MAX */
    int n_rows;
    int n_committed;
    int position0;           /* first position of the range: a multiple of DT_ATTN_RANGE */
    float scale;             /* of the scores */
    const dt_attn_row *rows; /* [n_rows] */
    const float *q;
    size_t q_stride;
    dt_kv_type kv;
    const void *keys, *values;                 /* of the first step; uint16_t or int8_t */
    size_t key_step, value_step;               /* elements from one step to the next */
    const uint16_t *key_scales, *value_scales; /* DT_KV_Q8_0 */
    size_t scale_step;                         /* of either, elements */
    float *part;
    size_t part_row_stride;
    size_t part_stride; /* v_stride + 16 */
    float *scores;      /* scratch [DT_ATTN_QUERIES][DT_ATTN_RANGE] */
} dt_attn_range;

#endif
