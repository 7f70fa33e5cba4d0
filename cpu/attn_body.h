/* The attention kernel over one range, compiled for each instruction set (see cpu/lanes.h). */
#ifndef DT_CPU_ATTN_BODY_H
#define DT_CPU_ATTN_BODY_H

#include "cpu/attn.h"
#include "cpu/v16.h"

/* Queries that share one load of a key or value; what the registers hold. */
#if defined(__AVX512F__)
enum { ATTN_TILE = 8, ATTN_VALUE_TILE = 4, ATTN_VALUE_VECTORS = 4 };
#else
enum { ATTN_TILE = 4, ATTN_VALUE_TILE = 2, ATTN_VALUE_VECTORS = 2 };
#endif

/* Where the keys of 16 rows lie. */
typedef struct attn_block {
    const void *keys;
    const uint16_t *scales;
} attn_block;

static inline attn_block attn_block_at(const dt_attn_range *a, int row) {
    size_t step = (size_t)row / DT_ATTN_RANGE, block = (size_t)row % DT_ATTN_RANGE / 16;
    size_t at = step * a->key_step + block * 16 * (size_t)a->head_dim;
    if (a->kv == DT_KV_F16)
        return (attn_block){(const uint16_t *)a->keys + at, NULL};
    size_t n_blocks = (size_t)dt_kv_blocks(a->head_dim);
    return (attn_block){
        (const int8_t *)a->keys + at, a->key_scales + step * a->scale_step + block * 16 * n_blocks};
}

/* scores[j][0..16) of n queries against one block of 16 keys. */
static inline void attn_score_tile(float *scores, size_t stride, const float *const *q,
    attn_block block, int head_dim, v16 scale, const int n, const bool q8) {
    v16 sum[ATTN_TILE], d8 = v16_zero();
    for (int j = 0; j < n; j++)
        sum[j] = v16_zero();
    for (int d = 0; d < head_dim; d++) {
        v16 key;
        if (q8) {
            if (d % DT_KV_BLOCK == 0)
                d8 = v16_from_f16(block.scales + d / DT_KV_BLOCK * 16);
            key = v16_mul(v16_from_i8((const int8_t *)block.keys + (size_t)d * 16), d8);
        } else {
            key = v16_from_f16((const uint16_t *)block.keys + (size_t)d * 16);
        }
        for (int j = 0; j < n; j++)
            sum[j] = v16_fma(v16_set1(q[j][d]), key, sum[j]);
    }
    for (int j = 0; j < n; j++)
        v16_store(scores + (size_t)j * stride, v16_mul(sum[j], scale));
}

static inline void attn_score_block(float *scores, size_t stride, const float *const *q, int n_q,
    attn_block block, int head_dim, float scale, const bool q8) {
    v16 s = v16_set1(scale);
    int j = 0;
    for (; j + ATTN_TILE <= n_q; j += ATTN_TILE)
        attn_score_tile(
            scores + (size_t)j * stride, stride, q + j, block, head_dim, s, ATTN_TILE, q8);
    for (; j + 2 <= n_q; j += 2)
        attn_score_tile(scores + (size_t)j * stride, stride, q + j, block, head_dim, s, 2, q8);
    if (j < n_q)
        attn_score_tile(scores + (size_t)j * stride, stride, q + j, block, head_dim, s, 1, q8);
}

static void attn_score(
    const dt_attn_range *a, float *scores, size_t stride, const float *const *q, int n_q, int row) {
    attn_block block = attn_block_at(a, row);
    if (a->kv == DT_KV_F16)
        attn_score_block(scores, stride, q, n_q, block, a->head_dim, a->scale, false);
    else
        attn_score_block(scores, stride, q, n_q, block, a->head_dim, a->scale, true);
}

/* Scores of the speculative positions of one row, from wherever its ancestors lie. */
static void attn_score_ancestors(const dt_attn_range *a, const dt_attn_row *row, float *scores,
    const float *const *q, int first, int end) {
    float lanes[DT_ATTN_GROUP_MAX * 16]; /* [n_group][16] */
    int block = -1;
    for (int p = first; p < end; p++) {
        int32_t at = row->ancestors[p - a->n_committed];
        if (at / 16 != block) {
            block = at / 16;
            attn_score(a, lanes, 16, q, a->n_group, at);
        }
        for (int g = 0; g < a->n_group; g++)
            scores[(size_t)g * DT_ATTN_RANGE + (size_t)(p - a->position0)] =
                lanes[g * 16 + at % 16];
    }
}

/* Turns scores [begin, n) into exp(score - max) and returns max and sum; begin < n. What lies
 * before in the lanes of the first vector adds exact zeros. */
static void attn_softmax(float *scores, int begin, int n, float *max_out, float *sum_out) {
    int start = begin / 16 * 16, n16 = (n + 15) / 16 * 16;
    for (int i = start; i < begin; i++)
        scores[i] = -__builtin_inff();
    for (int i = n; i < n16; i++)
        scores[i] = -__builtin_inff();
    float max[16];
    for (int i = 0; i < 16; i++)
        max[i] = scores[start + i];
    for (int i = start + 16; i < n16; i += 16)
        for (int l = 0; l < 16; l++)
            max[l] = scores[i + l] > max[l] ? scores[i + l] : max[l];
    for (int l = 1; l < 16; l++)
        max[0] = max[l] > max[0] ? max[l] : max[0];
    float top = max[0];
    v16 sum = v16_zero();
    for (int i = start; i < n16; i += 16) {
        for (int l = 0; l < 16; l++)
            scores[i + l] = dt_exp_f32(scores[i + l] - top);
        sum = v16_add(sum, v16_load(scores + i));
    }
    *max_out = top;
    *sum_out = v16_sum(sum);
}

/* out[j][0 .. n_v*16) += weights of n queries times columns [c ..) of n values, positions
 * ascending. `rows`: the cache rows in which the values lie; NULL: row0 and those that follow it in
 * its step. */
static inline void attn_value_tile(float *const *out, const float *const *weights,
    const dt_attn_range *a, int c, int row0, const int32_t *rows, int n_positions, const int n,
    const int n_v, const bool q8) {
    v16 sum[ATTN_VALUE_TILE][ATTN_VALUE_VECTORS];
    size_t v_stride = (size_t)a->v_stride, n_blocks = (size_t)dt_kv_blocks(a->head_dim);
    for (int j = 0; j < n; j++)
        for (int v = 0; v < n_v; v++)
            sum[j][v] = v16_load(out[j] + v * 16);
    size_t step = (size_t)row0 / DT_ATTN_RANGE, in = (size_t)row0 % DT_ATTN_RANGE;
    for (int p = 0; p < n_positions; p++, in++) {
        if (rows) {
            step = (size_t)rows[p] / DT_ATTN_RANGE;
            in = (size_t)rows[p] % DT_ATTN_RANGE;
        }
        size_t at = step * a->value_step + in * v_stride + (size_t)c;
        const uint16_t *scales = q8 ? a->value_scales + step * a->scale_step + in * n_blocks : NULL;
        for (int v = 0; v < n_v; v++) {
            v16 x;
            if (q8)
                x = v16_mul(v16_from_i8((const int8_t *)a->values + at + v * 16),
                    v16_set1_f16(scales + (c + v * 16) / DT_KV_BLOCK));
            else
                x = v16_from_f16((const uint16_t *)a->values + at + v * 16);
            for (int j = 0; j < n; j++)
                sum[j][v] = v16_fma(v16_set1(weights[j][p]), x, sum[j][v]);
        }
    }
    for (int j = 0; j < n; j++)
        for (int v = 0; v < n_v; v++)
            v16_store(out[j] + v * 16, sum[j][v]);
}

/* All value columns of n queries (n <= ATTN_VALUE_TILE). */
static inline void attn_value_columns(float *const *out, const float *const *weights,
    const dt_attn_range *a, int row0, const int32_t *rows, int n_positions, const int n,
    const bool q8) {
    float *at[ATTN_VALUE_TILE];
    int c = 0;
    for (; c + ATTN_VALUE_VECTORS * 16 <= a->v_stride; c += ATTN_VALUE_VECTORS * 16) {
        for (int j = 0; j < n; j++)
            at[j] = out[j] + c;
        attn_value_tile(at, weights, a, c, row0, rows, n_positions, n, ATTN_VALUE_VECTORS, q8);
    }
    for (; c < a->v_stride; c += 16) {
        for (int j = 0; j < n; j++)
            at[j] = out[j] + c;
        attn_value_tile(at, weights, a, c, row0, rows, n_positions, n, 1, q8);
    }
}

static inline void attn_values_of(float *const *out, const float *const *weights, int n_q,
    const dt_attn_range *a, int row0, const int32_t *rows, int n_positions, const bool q8) {
    int j = 0;
    for (; j + ATTN_VALUE_TILE <= n_q; j += ATTN_VALUE_TILE)
        attn_value_columns(out + j, weights + j, a, row0, rows, n_positions, ATTN_VALUE_TILE, q8);
    for (; j < n_q; j++)
        attn_value_columns(out + j, weights + j, a, row0, rows, n_positions, 1, q8);
}

static void attn_values(float *const *out, const float *const *weights, int n_q,
    const dt_attn_range *a, int row0, const int32_t *rows, int n_positions) {
    if (a->kv == DT_KV_F16)
        attn_values_of(out, weights, n_q, a, row0, rows, n_positions, false);
    else
        attn_values_of(out, weights, n_q, a, row0, rows, n_positions, true);
}

/* What a row sees of the range, in positions of the range: committed keys [begin, committed), then
 * those of its ancestors [apart, end). Nothing where end <= begin. */
typedef struct attn_span {
    int begin, committed, apart, end;
} attn_span;

static inline attn_span attn_span_of(const dt_attn_range *a, const dt_attn_row *row) {
    attn_span s;
    s.begin = DT_MIN(DT_MAX(row->first - a->position0, 0), DT_ATTN_RANGE);
    s.committed = DT_MAX(DT_MIN(a->n_committed - a->position0, DT_ATTN_RANGE), 0);
    s.apart = DT_MAX(DT_MAX(a->n_committed - a->position0, 0), s.begin);
    s.end = DT_MIN(row->n_positions - a->position0, DT_ATTN_RANGE);
    return s;
}

/* Committed values [from, to) of the range, for queries [j0, j0 + n). */
static void attn_committed(
    const dt_attn_range *a, float *const *out, int j0, int n, int from, int to) {
    const float *weights[DT_ATTN_QUERIES];
    for (int j = 0; j < n; j++)
        weights[j] = a->scores + (size_t)(j0 + j) * DT_ATTN_RANGE + from;
    attn_values(out + j0, weights, n, a, a->position0 + from, NULL, to - from);
}

/* At most DT_ATTN_QUERIES queries: they share the loads of the committed keys and values that all
 * of them see. */
static void attn_rows(const dt_attn_range *a, int row0, int n_rows) {
    const float *q[DT_ATTN_QUERIES], *weights[DT_ATTN_GROUP_MAX];
    float *out[DT_ATTN_QUERIES];
    int n_q = n_rows * a->n_group;
    float *scores = a->scores;
    for (int j = 0; j < n_q; j++) {
        int r = row0 + j / a->n_group, g = j % a->n_group;
        q[j] = a->q + (size_t)r * a->q_stride + (size_t)g * (size_t)a->head_dim;
    }
    int low = DT_ATTN_RANGE, high = 0,
        committed = 0; /* some row sees keys from low, all from high */
    for (int i = 0; i < n_rows; i++) {
        attn_span s = attn_span_of(a, &a->rows[row0 + i]);
        low = DT_MIN(low, s.begin);
        high = DT_MAX(high, s.begin);
        committed = s.committed;
    }
    for (int p = low / 16 * 16; p < committed; p += 16)
        attn_score(a, scores + p, DT_ATTN_RANGE, q, n_q, a->position0 + p);
    for (int i = 0; i < n_rows; i++) {
        const dt_attn_row *row = &a->rows[row0 + i];
        attn_span s = attn_span_of(a, row);
        attn_score_ancestors(a, row, scores + (size_t)(i * a->n_group) * DT_ATTN_RANGE,
            q + i * a->n_group, a->position0 + s.apart, a->position0 + s.end);
        for (int g = 0; g < a->n_group; g++) {
            int j = i * a->n_group + g;
            float *part =
                a->part + (size_t)(row0 + i) * a->part_row_stride + (size_t)g * a->part_stride;
            memset(part, 0, a->part_stride * sizeof *part);
            out[j] = part + 16;
            if (s.end > s.begin)
                attn_softmax(
                    scores + (size_t)j * DT_ATTN_RANGE, s.begin, s.end, &part[0], &part[1]);
            else
                part[0] = -__builtin_inff();
        }
    }
    /* A key outside a row's window is not even multiplied by zero: it might hold an infinity. */
    int shared = DT_MIN(high, committed);
    for (int i = 0; i < n_rows && low < shared; i++) {
        int begin = attn_span_of(a, &a->rows[row0 + i]).begin;
        if (begin < shared)
            attn_committed(a, out, i * a->n_group, a->n_group, begin, shared);
    }
    if (shared < committed)
        attn_committed(a, out, 0, n_q, shared, committed);
    for (int i = 0; i < n_rows; i++) {
        const dt_attn_row *row = &a->rows[row0 + i];
        attn_span s = attn_span_of(a, row);
        if (s.end <= s.apart)
            continue;
        for (int g = 0; g < a->n_group; g++)
            weights[g] = scores + (size_t)(i * a->n_group + g) * DT_ATTN_RANGE + s.apart;
        attn_values(out + i * a->n_group, weights, a->n_group, a, 0,
            row->ancestors + (a->position0 + s.apart - a->n_committed), s.end - s.apart);
    }
}

static void attn_range(const dt_attn_range *a) {
    int n_together = DT_MAX(1, DT_ATTN_QUERIES / a->n_group);
    for (int r = 0; r < a->n_rows; r += n_together)
        attn_rows(a, r, DT_MIN(n_together, a->n_rows - r));
}

static void attn_combine(
    float *out, int head_dim, const float *part, size_t range_stride, int n_ranges) {
    float max = part[0];
    for (int i = 1; i < n_ranges; i++)
        max = part[(size_t)i * range_stride] > max ? part[(size_t)i * range_stride] : max;
    float sum = 0.0f;
    for (int d = 0; d < head_dim; d++)
        out[d] = 0.0f;
    for (int i = 0; i < n_ranges; i++) {
        const float *range = part + (size_t)i * range_stride;
        float weight = dt_exp_f32(range[0] - max);
        sum = __builtin_fmaf(weight, range[1], sum);
        for (int d = 0; d < head_dim; d++)
            out[d] = __builtin_fmaf(weight, range[16 + d], out[d]);
    }
    float inverse = 1.0f / sum;
    for (int d = 0; d < head_dim; d++)
        out[d] *= inverse;
}

#endif
