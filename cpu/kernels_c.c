/* The C reference: the formulas of doc/numerics.md, from the packed panel. A block is widened once
 * to int16 with its zero point taken off, then multiplied with every row of activations. */
#include "cpu/kernels.h"

#include <string.h>

#include "cpu/lanes.h"
#include "cpu/layout.h"
#include "src/base/fmath.h"

enum { ROWS = DT_PANEL_ROWS, GROUPS_MAX = 64 };

typedef struct wide_block {
    int16_t w[GROUPS_MAX][DT_LINE]; /* [group][row * 4 + weight], zero point taken off */
    int scale[16][ROWS];            /* [sub-block][row] */
    int min[8][ROWS];
    float d[ROWS];
    float m[ROWS]; /* dmin, or m of Q4_1 and Q5_1 */
} wide_block;

typedef void (*widen_fn)(wide_block *wide, const uint8_t *panel, int i_block);

static void halves(float *out, const uint8_t *src) {
    for (int r = 0; r < ROWS; r++) {
        uint16_t h;
        memcpy(&h, src + 2 * r, sizeof h);
        out[r] = dt_f16_to_f32(h);
    }
}

/* Nibbles of a line: the low ones to one group, the high ones to another. */
static inline void nibbles(int16_t *low, int16_t *high, const uint8_t *line, int zero) {
    for (int i = 0; i < DT_LINE; i++) {
        low[i] = (int16_t)((line[i] & 15) - zero);
        high[i] = (int16_t)((line[i] >> 4) - zero);
    }
}

/* Adds field `shift` of a line, a value of `mask`, times `unit`. */
static inline void add_bits(int16_t *w, const uint8_t *line, int shift, int mask, int unit) {
    for (int i = 0; i < DT_LINE; i++)
        w[i] = (int16_t)(w[i] + ((line[i] >> shift) & mask) * unit);
}

static void scale_pairs(int scale[16][ROWS], const uint8_t *pairs, int n) {
    for (int j = 0; j < n; j++)
        for (int r = 0; r < ROWS; r++)
            scale[j][r] = (int8_t)pairs[(j / 2) * 2 * ROWS + 2 * r + j % 2];
}

static void widen_min_k(wide_block *wide, const uint8_t *b, const uint8_t *lines) {
    halves(wide->d, b);
    halves(wide->m, b + DT_KM_DMIN);
    for (int j = 0; j < 8; j++)
        for (int r = 0; r < ROWS; r++) {
            wide->scale[j][r] = b[DT_KM_SCALE + j * ROWS + r];
            wide->min[j][r] = b[DT_KM_MIN + (j / 2) * 2 * ROWS + 2 * r + j % 2];
        }
    for (int p = 0; p < 4; p++)
        for (int g = 0; g < 8; g++)
            nibbles(wide->w[16 * p + g], wide->w[16 * p + 8 + g], lines + (8 * p + g) * DT_LINE, 0);
}

static void widen_q4_K(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = panel + (size_t)i * DT_Q4K_BYTES;
    widen_min_k(wide, b, b + DT_Q4K_LINES);
}

static void widen_q5_K(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = panel + (size_t)i * DT_Q5K_BYTES;
    widen_min_k(wide, b, b + DT_Q5K_LINES);
    for (int j = 0; j < 8; j++)
        for (int g = 0; g < 8; g++)
            add_bits(wide->w[8 * j + g], b + DT_Q5K_FIFTH + g * DT_LINE, j, 1, 16);
}

static void widen_q6_K(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = dt_pair_body(panel, DT_Q6K_BODY, i);
    halves(wide->d, dt_pair_d(panel, DT_Q6K_BODY, i));
    scale_pairs(wide->scale, b, 16);
    for (int he = 0; he < 4; he++) {
        const uint8_t *part = b + DT_Q6K_LINES + he * DT_Q6K_PART;
        int16_t(*w)[DT_LINE] = wide->w + he / 2 * 32 + he % 2 * 4;
        for (int g = 0; g < 4; g++) {
            for (int f = 0; f < 2; f++)
                nibbles(w[8 * f + g], w[16 + 8 * f + g],
                    part + DT_Q6K_NIBBLES + (4 * f + g) * DT_LINE, 32);
            for (int f = 0; f < 4; f++)
                add_bits(w[8 * f + g], part + g * DT_LINE, 2 * f, 3, 16);
        }
    }
}

static void widen_q3_K(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = dt_pair_body(panel, DT_Q3K_BODY, i);
    halves(wide->d, dt_pair_d(panel, DT_Q3K_BODY, i));
    scale_pairs(wide->scale, b, 16);
    for (int j = 0; j < 8; j++) /* runs of 32 weights: one third bit, one field of low bits */
        for (int g = 0; g < 8; g++) {
            int16_t *w = wide->w[8 * j + g];
            for (int c = 0; c < DT_LINE; c++)
                w[c] = -4;
            add_bits(w, b + DT_Q3K_LINES + (8 * (j / 4) + g) * DT_LINE, 2 * (j % 4), 3, 1);
            add_bits(w, b + DT_Q3K_THIRD + g * DT_LINE, j, 1, 4);
        }
}

static void widen_nibble_lines(wide_block *wide, const uint8_t *lines, int zero) {
    for (int g = 0; g < 4; g++)
        nibbles(wide->w[g], wide->w[4 + g], lines + g * DT_LINE, zero);
}

static void widen_fifth_line(wide_block *wide, const uint8_t *line) {
    for (int g = 0; g < 8; g++)
        add_bits(wide->w[g], line, g, 1, 16);
}

static void widen_q4_0(wide_block *wide, const uint8_t *panel, int i) {
    halves(wide->d, dt_pair_d(panel, DT_Q40_BODY, i));
    widen_nibble_lines(wide, dt_pair_body(panel, DT_Q40_BODY, i), 8);
}

static void level_lines(int16_t (*w)[DT_LINE], const uint8_t *lines) {
    for (int g = 0; g < 4; g++)
        for (int c = 0; c < DT_LINE; c++) {
            w[g][c] = dt_iq4_levels[lines[g * DT_LINE + c] & 15];
            w[4 + g][c] = dt_iq4_levels[lines[g * DT_LINE + c] >> 4];
        }
}

static void widen_iq4_nl(wide_block *wide, const uint8_t *panel, int i) {
    halves(wide->d, dt_pair_d(panel, DT_Q40_BODY, i));
    level_lines(wide->w, dt_pair_body(panel, DT_Q40_BODY, i));
}

static void widen_iq4_xs(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = dt_pair_body(panel, DT_IQ4XS_BODY, i);
    halves(wide->d, dt_pair_d(panel, DT_IQ4XS_BODY, i));
    scale_pairs(wide->scale, b, 8);
    for (int j = 0; j < 8; j++)
        level_lines(wide->w + 8 * j, b + DT_IQ4XS_LINES + 4 * j * DT_LINE);
}

static void widen_q5_0(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = dt_pair_body(panel, DT_Q50_BODY, i);
    halves(wide->d, dt_pair_d(panel, DT_Q50_BODY, i));
    widen_nibble_lines(wide, b, 16);
    widen_fifth_line(wide, b + DT_Q50_FIFTH);
}

static void widen_q4_1(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = panel + (size_t)i * DT_Q41_BYTES;
    halves(wide->d, b);
    halves(wide->m, b + DT_Q41_M);
    widen_nibble_lines(wide, b + DT_Q41_LINES, 0);
}

static void widen_q5_1(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = panel + (size_t)i * DT_Q51_BYTES;
    halves(wide->d, b);
    halves(wide->m, b + DT_Q41_M);
    widen_nibble_lines(wide, b + DT_Q41_LINES, 0);
    widen_fifth_line(wide, b + DT_Q41_FIFTH);
}

static void widen_q8_0(wide_block *wide, const uint8_t *panel, int i) {
    const uint8_t *b = dt_pair_body(panel, DT_Q80_BODY, i);
    halves(wide->d, dt_pair_d(panel, DT_Q80_BODY, i));
    for (int g = 0; g < 8; g++)
        for (int c = 0; c < DT_LINE; c++)
            wide->w[g][c] = (int8_t)b[g * DT_LINE + c];
}

/* sum[row] = the weights of n_groups groups times the activations q[4 * n_groups]. */
static void dot(int32_t sum[ROWS], int16_t (*w)[DT_LINE], const int8_t *q, int n_groups) {
    int32_t acc[DT_LINE] = {0};
    for (int g = 0; g < n_groups; g++) {
        int16_t four[4], line[DT_LINE];
        for (int c = 0; c < 4; c++)
            four[c] = q[4 * g + c];
        for (int r = 0; r < ROWS; r++)
            memcpy(line + 4 * r, four, sizeof four);
        for (int i = 0; i < DT_LINE; i++)
            acc[i] += (int32_t)w[g][i] * line[i];
    }
    for (int r = 0; r < ROWS; r++)
        sum[r] = acc[4 * r] + acc[4 * r + 1] + acc[4 * r + 2] + acc[4 * r + 3];
}

/* K-quants: n_sub sub-blocks of a super-block, each with its integer scale. */
static inline void matmul_k(float *out, size_t out_stride, const uint8_t *panel, const dt_act *act,
    int row0, int n_rows, widen_fn widen, int n_sub, bool has_min) {
    int n_blocks = act->k / 256;
    for (int t = 0; t < n_rows; t++)
        memset(out + (size_t)t * out_stride, 0, ROWS * sizeof *out);
    for (int i = 0; i < n_blocks; i++) {
        wide_block wide;
        widen(&wide, panel, i);
        for (int t = 0; t < n_rows; t++) {
            size_t row = (size_t)(row0 + t);
            const int8_t *q = act->q + row * (size_t)act->k + (size_t)i * 256;
            const int16_t *sum32 = act->sum32 + row * (size_t)(act->k / 32) + (size_t)i * 8;
            float dx = act->d[row * (size_t)n_blocks + (size_t)i];
            float *y = out + (size_t)t * out_stride;
            int32_t p[ROWS] = {0}, m[ROWS] = {0};
            for (int j = 0; j < n_sub; j++) {
                int32_t sum[ROWS];
                int n_groups = GROUPS_MAX / n_sub;
                dot(sum, wide.w + j * n_groups, q + 4 * j * n_groups, n_groups);
                for (int r = 0; r < ROWS; r++)
                    p[r] += wide.scale[j][r] * sum[r];
            }
            for (int r = 0; r < ROWS; r++)
                y[r] = __builtin_fmaf(wide.d[r] * dx, (float)p[r], y[r]);
            if (!has_min)
                continue;
            for (int j = 0; j < 8; j++)
                for (int r = 0; r < ROWS; r++)
                    m[r] += wide.min[j][r] * sum32[j];
            for (int r = 0; r < ROWS; r++)
                y[r] = __builtin_fmaf(-(wide.m[r] * dx), (float)m[r], y[r]);
        }
    }
}

/* Types with blocks of 32. */
static inline void matmul_32(float *out, size_t out_stride, const uint8_t *panel, const dt_act *act,
    int row0, int n_rows, widen_fn widen, bool has_min) {
    int n_blocks = act->k / 32;
    for (int t = 0; t < n_rows; t++)
        memset(out + (size_t)t * out_stride, 0, ROWS * sizeof *out);
    for (int i = 0; i < n_blocks; i++) {
        wide_block wide;
        widen(&wide, panel, i);
        for (int t = 0; t < n_rows; t++) {
            size_t row = (size_t)(row0 + t);
            float dx = act->d[row * (size_t)n_blocks + (size_t)i];
            float sum32 = act->sum32[row * (size_t)n_blocks + (size_t)i];
            float *y = out + (size_t)t * out_stride;
            int32_t sum[ROWS];
            dot(sum, wide.w, act->q + row * (size_t)act->k + (size_t)i * 32, 8);
            for (int r = 0; r < ROWS; r++)
                y[r] = __builtin_fmaf(wide.d[r] * dx, (float)sum[r], y[r]);
            if (has_min)
                for (int r = 0; r < ROWS; r++)
                    y[r] = __builtin_fmaf(wide.m[r] * dx, sum32, y[r]);
        }
    }
}

#define MATMUL_K(type, n_sub, has_min)                                                             \
    static void matmul_##type##_c(float *out, size_t out_stride, const uint8_t *panel,             \
        const dt_act *act, int row0, int n_rows) {                                                 \
        matmul_k(out, out_stride, panel, act, row0, n_rows, widen_##type, n_sub, has_min);         \
    }
#define MATMUL_32(type, has_min)                                                                   \
    static void matmul_##type##_c(float *out, size_t out_stride, const uint8_t *panel,             \
        const dt_act *act, int row0, int n_rows) {                                                 \
        matmul_32(out, out_stride, panel, act, row0, n_rows, widen_##type, has_min);               \
    }

MATMUL_K(q3_K, 16, false)
MATMUL_K(q4_K, 8, true)
MATMUL_K(q5_K, 8, true)
MATMUL_K(q6_K, 16, false)
MATMUL_K(iq4_xs, 8, false)
MATMUL_32(iq4_nl, false)
MATMUL_32(q4_0, false)
MATMUL_32(q4_1, true)
MATMUL_32(q5_0, false)
MATMUL_32(q5_1, true)
MATMUL_32(q8_0, false)

typedef float (*load_fn)(const uint8_t *p);

static float load_f32(const uint8_t *p) {
    float f;
    memcpy(&f, p, sizeof f);
    return f;
}
static float load_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return dt_f16_to_f32(h);
}
static float load_bf16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return dt_bf16_to_f32(h);
}

static inline void matmul_float(float *out, size_t out_stride, const uint8_t *panel,
    const dt_act *act, int row0, int n_rows, load_fn load, int size) {
    for (int t = 0; t < n_rows; t++) {
        const float *x = act->x + (size_t)(row0 + t) * act->x_stride;
        float *y = out + (size_t)t * out_stride;
        memset(y, 0, ROWS * sizeof *y);
        for (int i = 0; i < act->k; i++)
            for (int r = 0; r < ROWS; r++)
                y[r] =
                    __builtin_fmaf(load(panel + (size_t)(i * ROWS + r) * (size_t)size), x[i], y[r]);
    }
}

#define MATMUL_FLOAT(type, size)                                                                   \
    static void matmul_##type##_c(float *out, size_t out_stride, const uint8_t *panel,             \
        const dt_act *act, int row0, int n_rows) {                                                 \
        matmul_float(out, out_stride, panel, act, row0, n_rows, load_##type, size);                \
    }

MATMUL_FLOAT(f32, 4)
MATMUL_FLOAT(f16, 2)
MATMUL_FLOAT(bf16, 2)

static void quantise_c(dt_act *act, int i_row, const float *x) {
    int k = act->k, block = act->block;
    int8_t *q = act->q + (size_t)i_row * (size_t)k;
    float *d = act->d + (size_t)i_row * (size_t)(k / block);
    int16_t *sum32 = act->sum32 + (size_t)i_row * (size_t)(k / 32);
    for (int i = 0; i < k / block; i++) {
        uint32_t largest = 0; /* without their sign, bit patterns are in the order of the values */
        for (int j = 0; j < block; j++) {
            uint32_t u = dt_f32_bits(x[i * block + j]) & 0x7fffffff;
            largest = DT_MAX(largest, u);
        }
        float a = dt_bits_f32(largest), r = 0.0f;
        bool finite = largest < 0x7f800000, counts = finite && a >= 0x1p-100f;
        d[i] = counts ? a / 127.0f : finite ? 0.0f : dt_bits_f32(0x7fc00000);
        if (counts)
            r = 127.0f / a;
        for (int j = i * block; j < (i + 1) * block; j++)
            q[j] = counts ? (int8_t)dt_rint_f32(x[j] * r) : 0;
    }
    for (int i = 0; i < k / 32; i++) {
        int sum[2] = {0, 0};
        for (int j = 0; j < 32; j++)
            sum[j / 16] += q[i * 32 + j];
        sum32[i] = (int16_t)(sum[0] + sum[1]);
        if (block == 256) {
            int16_t *sum16 = act->sum16 + (size_t)i_row * (size_t)(k / 16);
            sum16[2 * i] = (int16_t)sum[0];
            sum16[2 * i + 1] = (int16_t)sum[1];
        }
    }
}

void dt_kernels_c(dt_kernels *table) {
    table->isa = "c";
    table->matmul[DT_TYPE_F32] = matmul_f32_c;
    table->matmul[DT_TYPE_F16] = matmul_f16_c;
    table->matmul[DT_TYPE_BF16] = matmul_bf16_c;
    table->matmul[DT_TYPE_Q4_0] = matmul_q4_0_c;
    table->matmul[DT_TYPE_Q4_1] = matmul_q4_1_c;
    table->matmul[DT_TYPE_Q5_0] = matmul_q5_0_c;
    table->matmul[DT_TYPE_Q5_1] = matmul_q5_1_c;
    table->matmul[DT_TYPE_Q8_0] = matmul_q8_0_c;
    table->matmul[DT_TYPE_Q3_K] = matmul_q3_K_c;
    table->matmul[DT_TYPE_Q4_K] = matmul_q4_K_c;
    table->matmul[DT_TYPE_Q5_K] = matmul_q5_K_c;
    table->matmul[DT_TYPE_Q6_K] = matmul_q6_K_c;
    table->matmul[DT_TYPE_IQ4_NL] = matmul_iq4_nl_c;
    table->matmul[DT_TYPE_IQ4_XS] = matmul_iq4_xs_c;
    table->quantise = quantise_c;
    lanes_fill(table);
}
