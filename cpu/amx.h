/* The few operations on AMX tiles that the kernels need, and, with DT_AMX_EMULATED, the same in
 * plain C, so that every run of tests/check takes the kernels through CPUs without AMX.
 *
 * Tiles: sums c 0 .. DT_AMX_SUMS - 1 of [rows][16] int32, activations a of [rows][k_bytes] int8,
 * weights b of [k_bytes / 4][16 outputs][4] bytes. The state is the thread's: each kernel
 * configures its tiles and releases them. Written after Intel's manual (TDPBSSD, TDPBSUD,
 * LDTILECFG); the real operations have been compiled, not run: no CPU with AMX was at hand. */
#ifndef DT_CPU_AMX_H
#define DT_CPU_AMX_H

#include <immintrin.h>
#include <string.h>

#include "src/base/common.h"

enum { DT_AMX_ROWS = 16, DT_AMX_SUMS = 6 };

#define AMX static inline __attribute__((always_inline))

#ifdef DT_AMX_EMULATED

typedef struct dt_amx {
    int rows, k_bytes;
    int32_t c[DT_AMX_SUMS][DT_AMX_ROWS][16];
    int8_t a[DT_AMX_ROWS][64];
    uint8_t b[16][64];
} dt_amx;

AMX void amx_open(dt_amx *x, int rows, int k_bytes) {
    memset(x, 0, sizeof *x);
    x->rows = rows;
    x->k_bytes = k_bytes;
}
AMX void amx_close(dt_amx *x) {
    memset(x, 0, sizeof *x);
}
AMX void amx_zero(dt_amx *x, const int c) {
    memset(x->c[c], 0, sizeof x->c[c]);
}
AMX void amx_load_a(dt_amx *x, const int8_t *p, size_t stride) {
    for (int r = 0; r < x->rows; r++)
        memcpy(x->a[r], p + (size_t)r * stride, (size_t)x->k_bytes);
}
AMX void amx_load_b(dt_amx *x, const uint8_t *p) {
    memcpy(x->b, p, (size_t)x->k_bytes / 4 * 64);
}
/* Checked for what it gives, not how: sanitizers would make it the slowest part of the suite. */
__attribute__((noinline, no_sanitize("address", "undefined"))) static void amx_dot(
    dt_amx *x, int c, bool b_signed) {
    for (int r = 0; r < x->rows; r++)
        for (int k = 0; k < x->k_bytes; k++)
            for (int o = 0; o < 16; o++) {
                int w = x->b[k / 4][4 * o + k % 4];
                x->c[c][r][o] += x->a[r][k] * (b_signed ? (int8_t)w : w);
            }
}
AMX void amx_store(const dt_amx *x, const int c, int32_t *out) {
    memcpy(out, x->c[c], (size_t)x->rows * sizeof x->c[c][0]);
}

#else

typedef struct dt_amx {
    char none;
} dt_amx;

/* gcc 12's intrinsics do not say all the memory that they read: without a barrier that takes the
 * address, the stores before them may be dropped or come later. */
#define AMX_BARRIER(p) __asm__ volatile("" : : "r"(p) : "memory")

AMX void amx_open(dt_amx *x, int rows, int k_bytes) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16]; /* of a row */
        uint8_t rows[16];
    } config = {.palette = 1};
    (void)x;
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = (uint16_t)(i == 6 ? k_bytes : 64);
        config.rows[i] = (uint8_t)(i == 7 ? k_bytes / 4 : rows);
    }
    AMX_BARRIER(&config);
    _tile_loadconfig(&config);
    AMX_BARRIER(&config);
}
AMX void amx_close(dt_amx *x) {
    (void)x;
    _tile_release();
}
/* The number of a tile is part of the instruction. */
#define AMX_EACH(c, DO)                                                                            \
    switch (c) {                                                                                   \
    case 0:                                                                                        \
        DO(0);                                                                                     \
        break;                                                                                     \
    case 1:                                                                                        \
        DO(1);                                                                                     \
        break;                                                                                     \
    case 2:                                                                                        \
        DO(2);                                                                                     \
        break;                                                                                     \
    case 3:                                                                                        \
        DO(3);                                                                                     \
        break;                                                                                     \
    case 4:                                                                                        \
        DO(4);                                                                                     \
        break;                                                                                     \
    default:                                                                                       \
        DO(5);                                                                                     \
        break;                                                                                     \
    }
AMX void amx_zero(dt_amx *x, const int c) {
    (void)x;
    AMX_EACH(c, _tile_zero)
}
AMX void amx_load_a(dt_amx *x, const int8_t *p, size_t stride) {
    (void)x;
    AMX_BARRIER(p);
    _tile_loadd(6, p, stride);
}
AMX void amx_load_b(dt_amx *x, const uint8_t *p) {
    (void)x;
    AMX_BARRIER(p);
    _tile_loadd(7, p, 64);
}
#define AMX_DOT_SIGNED(c) _tile_dpbssd(c, 6, 7)
#define AMX_DOT_UNSIGNED(c) _tile_dpbsud(c, 6, 7)
AMX void amx_dot(dt_amx *x, const int c, const bool b_signed) {
    (void)x;
    if (b_signed)
        AMX_EACH(c, AMX_DOT_SIGNED)
    else
        AMX_EACH(c, AMX_DOT_UNSIGNED)
}
#define AMX_STORE(c) _tile_stored(c, out, 64)
AMX void amx_store(const dt_amx *x, const int c, int32_t *out) {
    (void)x;
    AMX_EACH(c, AMX_STORE)
    AMX_BARRIER(out);
}

#endif
#endif
