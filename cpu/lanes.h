/* The element-wise kernels, written once over sixteen lanes and compiled for each instruction set
 * by the kernels_*.c that include this. Formulas: doc/numerics.md, "Element-wise steps". */
#ifndef DT_CPU_LANES_H
#define DT_CPU_LANES_H

#include "cpu/attn_body.h"
#include "cpu/kernels.h"
#include "cpu/v16.h"

static void lanes_rms_norm(float *y, const float *x, const float *w, int n, float eps) {
    v16 squares = v16_zero();
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v = v16_load(x + i);
        squares = v16_fma(v, v, squares);
    }
    if (i < n) {
        float tail[16] = {0};
        memcpy(tail, x + i, (size_t)(n - i) * sizeof *tail);
        v16 v = v16_load(tail);
        squares = v16_fma(v, v, squares);
    }
    float mean = v16_sum(squares) / (float)n;
    float scale = 1.0f / __builtin_sqrtf(mean + eps);
    for (i = 0; i < n; i++)
        y[i] = x[i] * scale * w[i];
}

static void lanes_swiglu(float *y, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++)
        y[i] = dt_silu_f32(gate[i]) * up[i];
}

static void lanes_geglu(float *y, const float *gate, const float *up, int n) {
    for (int i = 0; i < n; i++)
        y[i] = dt_gelu_f32(gate[i]) * up[i];
}

static void lanes_subtract_q8(float *x, const int8_t *q, const float *d, int block, int n) {
    for (int i = 0; i < n; i += block) {
        float minus = -d[i / block];
        for (int j = i; j < i + block; j++)
            x[j] = __builtin_fmaf(minus, (float)q[j], x[j]);
    }
}

static void lanes_add(float *y, const float *x, int n) {
    for (int i = 0; i < n; i++)
        y[i] += x[i];
}

static void lanes_rope(float *head, const float *cos_sin, int n_rot, bool halves) {
    int n_pairs = n_rot / 2, step = halves ? 1 : 2, other = halves ? n_pairs : 1;
    for (int i = 0; i < n_pairs; i++) {
        float a = head[i * step], b = head[i * step + other];
        float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        head[i * step] = __builtin_fmaf(-b, s, a * c);
        head[i * step + other] = __builtin_fmaf(b, c, a * s);
    }
}

static void lanes_to_f16(uint16_t *out, const float *x, int n) {
    int i = 0;
    for (; i + 16 <= n; i += 16)
        v16_to_f16(out + i, v16_load(x + i));
    if (i < n) {
        float tail[16] = {0};
        uint16_t half[16];
        memcpy(tail, x + i, (size_t)(n - i) * sizeof *tail);
        v16_to_f16(half, v16_load(tail));
        memcpy(out + i, half, (size_t)(n - i) * sizeof *half);
    }
}

static inline void lanes_fill(dt_kernels *table) {
    table->rms_norm = lanes_rms_norm;
    table->swiglu = lanes_swiglu;
    table->geglu = lanes_geglu;
    table->subtract_q8 = lanes_subtract_q8;
    table->add = lanes_add;
    table->rope = lanes_rope;
    table->to_f16 = lanes_to_f16;
    table->attn_range = attn_range;
    table->attn_combine = attn_combine;
}

#endif
