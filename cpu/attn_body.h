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

/* scores[j][0..16) of n queries against one block of 16 keys. */
static inline void attn_score_tile(float *scores, size_t stride, const float *const *q,
    const uint16_t *block, int head_dim, v16 scale, const int n) {
    v16 sum[ATTN_TILE];
    for (int j = 0; j < n; j++)
        sum[j] = v16_zero();
    for (int d = 0; d < head_dim; d++) {
        v16 key = v16_from_f16(block + (size_t)d * 16);
        for (int j = 0; j < n; j++)
            sum[j] = v16_fma(v16_set1(q[j][d]), key, sum[j]);
    }
    for (int j = 0; j < n; j++)
        v16_store(scores + (size_t)j * stride, v16_mul(sum[j], scale));
}

static void attn_score(float *scores, size_t stride, const float *const *q, int n_q,
    const uint16_t *block, int head_dim, float scale) {
    v16 s = v16_set1(scale);
    int j = 0;
    for (; j + ATTN_TILE <= n_q; j += ATTN_TILE)
        attn_score_tile(scores + (size_t)j * stride, stride, q + j, block, head_dim, s, ATTN_TILE);
    for (; j + 2 <= n_q; j += 2)
        attn_score_tile(scores + (size_t)j * stride, stride, q + j, block, head_dim, s, 2);
    if (j < n_q)
        attn_score_tile(scores + (size_t)j * stride, stride, q + j, block, head_dim, s, 1);
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
            attn_score(lanes, 16, q, a->n_group,
                a->keys + (size_t)(at / DT_ATTN_RANGE) * a->key_step +
                    (size_t)(at % DT_ATTN_RANGE / 16) * 16 * (size_t)a->head_dim,
                a->head_dim, a->scale);
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

/* out[j][0 .. n_v*16) += weights of n queries times n values, positions ascending. `rows`: where
 * the values lie, NULL for consecutive rows. */
static inline void attn_value_tile(float *const *out, const float *const *weights,
    const uint16_t *values, size_t v_stride, size_t step, const int32_t *rows, int n_positions,
    const int n, const int n_v) {
    v16 sum[ATTN_VALUE_TILE][ATTN_VALUE_VECTORS];
    for (int j = 0; j < n; j++)
        for (int v = 0; v < n_v; v++)
            sum[j][v] = v16_load(out[j] + v * 16);
    for (int p = 0; p < n_positions; p++) {
        const uint16_t *value = values + (size_t)p * v_stride;
        if (rows)
            value = values + (size_t)(rows[p] / DT_ATTN_RANGE) * step +
                    (size_t)(rows[p] % DT_ATTN_RANGE) * v_stride;
        for (int v = 0; v < n_v; v++) {
            v16 x = v16_from_f16(value + v * 16);
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
    const uint16_t *values, int v_stride, size_t step, const int32_t *rows, int n_positions,
    const int n) {
    float *at[ATTN_VALUE_TILE];
    int c = 0;
    for (; c + ATTN_VALUE_VECTORS * 16 <= v_stride; c += ATTN_VALUE_VECTORS * 16) {
        for (int j = 0; j < n; j++)
            at[j] = out[j] + c;
        attn_value_tile(at, weights, values + c, (size_t)v_stride, step, rows, n_positions, n,
            ATTN_VALUE_VECTORS);
    }
    for (; c < v_stride; c += 16) {
        for (int j = 0; j < n; j++)
            at[j] = out[j] + c;
        attn_value_tile(at, weights, values + c, (size_t)v_stride, step, rows, n_positions, n, 1);
    }
}

static void attn_values(float *const *out, const float *const *weights, int n_q,
    const uint16_t *values, int v_stride, size_t step, const int32_t *rows, int n_positions) {
    int j = 0;
    for (; j + ATTN_VALUE_TILE <= n_q; j += ATTN_VALUE_TILE)
        attn_value_columns(
            out + j, weights + j, values, v_stride, step, rows, n_positions, ATTN_VALUE_TILE);
    for (; j < n_q; j++)
        attn_value_columns(out + j, weights + j, values, v_stride, step, rows, n_positions, 1);
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
    attn_values(out + j0, weights, n,
        a->values + (size_t)(a->position0 / DT_ATTN_RANGE) * a->value_step +
            (size_t)from * (size_t)a->v_stride,
        a->v_stride, 0, NULL, to - from);
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
    const uint16_t *keys = a->keys + (size_t)(a->position0 / DT_ATTN_RANGE) * a->key_step;
    for (int p = low / 16 * 16; p < committed; p += 16)
        attn_score(scores + p, DT_ATTN_RANGE, q, n_q, keys + (size_t)p * (size_t)a->head_dim,
            a->head_dim, a->scale);
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
        attn_values(out + i * a->n_group, weights, a->n_group, a->values, a->v_stride,
            a->value_step, row->ancestors + (a->position0 + s.apart - a->n_committed),
            s.end - s.apart);
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
