/* What the matmul kernels of every vector width share. A kernel cuts its rows of activations into
 * tiles, functions unrolled for each number of rows up to DT_TILE. The including file defines
 * DT_TILE (4 or 8) and DT_ISA, the end of its kernels' names, and has functions tile_TYPE(out,
 * out_stride, panel, act, row0, m) with a constant m, `out` being the place of row0's outputs. */
#ifndef DT_CPU_TILE_H
#define DT_CPU_TILE_H

#include <immintrin.h>
#include <string.h>

#include "cpu/kernels.h"
#include "cpu/layout.h"

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")
#endif

enum { TILE = DT_TILE, NEAR = 1024, FAR = 6144 };

/* How far ahead of the arithmetic on m rows weights are brought into L2, beyond the present panel
 * too. On a Zen 4 core (November 2026, AVX-512, huge pages, plain reading 32 GB/s): m = 1 from 1 KB
 * ahead 28-33 GB/s, from 3 KB 16-30 by chance, from 6 KB 23, as it cuts off the hardware's own
 * stream. That stream comes too late for more rows: m = 4 from 1 KB 12, from 6 KB 25; m = 8 8 and
 * 13, which is the speed of the arithmetic. Nor does it find its way in Q3_K, whose blocks are not
 * read in order (8 and 22; with AVX2 7 and 17), and with AVX2 in Q5_1 (13 and 30). */
INLINE int ahead_of(const int m) {
    return m == 1 ? NEAR : FAR;
}
INLINE void fetch(const uint8_t *p, const int n_lines) {
    for (int i = 0; i < n_lines; i++)
        _mm_prefetch((const char *)p + i * DT_LINE, _MM_HINT_T1);
}

/* The rows of a tile. */
typedef struct tile_rows {
    const int8_t *q[TILE];
    const int16_t *sum16, *sum32;
    const float *d;
    size_t n16, n32, n_d; /* a row's values of each */
} tile_rows;

INLINE tile_rows rows_of(const dt_act *act, int row0, const int m) {
    size_t k = (size_t)act->k, row = (size_t)row0;
    tile_rows rows = {.n16 = k / 16, .n32 = k / 32, .n_d = k / (size_t)act->block};
    for (int t = 0; t < m; t++)
        rows.q[t] = act->q + (row + (size_t)t) * k;
    rows.sum16 = act->sum16 ? act->sum16 + row * rows.n16 : NULL;
    rows.sum32 = act->sum32 + row * rows.n32;
    rows.d = act->d + row * rows.n_d;
    return rows;
}

/* ---- blocks of 32 ---- */

typedef enum form { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL } form;

INLINE bool form_has_min(const form type) {
    return type == Q4_1 || type == Q5_1;
}
INLINE bool form_has_fifth(const form type) {
    return type == Q5_0 || type == Q5_1;
}
/* Bytes of a block, or of its body where blocks go in pairs. */
INLINE int form_bytes(const form type) {
    return type == Q4_1   ? DT_Q41_BYTES
           : type == Q5_1 ? DT_Q51_BYTES
           : type == Q5_0 ? DT_Q50_BODY
           : type == Q8_0 ? DT_Q80_BODY
                          : DT_Q40_BODY;
}
/* Where d[16] of block i lies (m[16] is DT_Q41_M behind it); *lines: its lines. */
INLINE const uint8_t *form_block(
    const uint8_t **lines, const uint8_t *panel, int i, const form type) {
    const int n_bytes = form_bytes(type);
    if (!form_has_min(type)) {
        *lines = dt_pair_body(panel, n_bytes, i);
        return dt_pair_d(panel, n_bytes, i);
    }
    panel += (size_t)i * (size_t)n_bytes;
    *lines = panel + DT_Q41_LINES;
    return panel;
}

/* ---- names and tables ---- */

#define TILE_ARGS                                                                                  \
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m
/* tile_NAME as a case of tile_GENERAL. */
#define TILE_OF(name, general, what)                                                               \
    INLINE void tile_##name(TILE_ARGS) {                                                           \
        tile_##general(out, out_stride, panel, act, row0, m, what);                                \
    }

#define INT8_TYPES(X)                                                                              \
    X(Q4_0, q4_0)                                                                                  \
    X(Q4_1, q4_1)                                                                                  \
    X(Q5_0, q5_0)                                                                                  \
    X(Q5_1, q5_1)                                                                                  \
    X(Q8_0, q8_0)                                                                                  \
    X(Q3_K, q3_K)                                                                                  \
    X(Q4_K, q4_K)                                                                                  \
    X(Q5_K, q5_K)                                                                                  \
    X(Q6_K, q6_K)                                                                                  \
    X(IQ4_NL, iq4_nl)                                                                              \
    X(IQ4_XS, iq4_xs)
#define FLOAT_TYPES(X)                                                                             \
    X(F32, f32)                                                                                    \
    X(F16, f16)                                                                                    \
    X(BF16, bf16)

#define JOINED(a, b) a##b
#define NAMED(name, isa) JOINED(matmul_##name##_, isa)
#define TILE_CASE(name, rows)                                                                      \
    case rows:                                                                                     \
        tile_##name(y, out_stride, panel, act, row, rows);                                         \
        break;
#if DT_TILE == 8
#define TILE_CASES_UP(name)                                                                        \
    TILE_CASE(name, 5) TILE_CASE(name, 6) TILE_CASE(name, 7) TILE_CASE(name, 8)
#else
#define TILE_CASES_UP(name)
#endif
/* A kernel: n_rows cut into tiles as equal as can be. */
#define MATMUL(id, name)                                                                           \
    static void NAMED(name, DT_ISA)(float *out, size_t out_stride, const uint8_t *panel,           \
        const dt_act *act, int row0, int n_rows) {                                                 \
        int n_tiles = (n_rows + TILE - 1) / TILE;                                                  \
        for (int i = 0; i < n_tiles; i++) {                                                        \
            int done = n_rows * i / n_tiles, row = row0 + done;                                    \
            float *y = out + (size_t)done * out_stride;                                            \
            switch (n_rows * (i + 1) / n_tiles - done) {                                           \
                TILE_CASE(name, 1)                                                                 \
                TILE_CASE(name, 2)                                                                 \
                TILE_CASE(name, 3)                                                                 \
                TILE_CASE(name, 4)                                                                 \
                TILE_CASES_UP(name)                                                                \
            }                                                                                      \
        }                                                                                          \
    }
#define MATMUL_SLOT(id, name) table->matmul[DT_TYPE_##id] = NAMED(name, DT_ISA);

#endif
