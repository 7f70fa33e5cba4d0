/* AVX2 with FMA and F16C. A line of 16 rows is two vectors; maddubs multiplies and adds pairs to
 * int16, whose sums are carried on as long as they are exact and then go to int32 by madd. Up to 4
 * rows of activations make a tile: 8 sums, which leave registers for weights and constants. */
#include "cpu/kernels.h"

#include <immintrin.h>
#include <string.h>

#include "cpu/lanes.h"
#include "cpu/layout.h"
#include "src/base/fmath.h"

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")
#endif

enum { TILE = 4, NEAR = 1024, FAR = 6144 };

INLINE __m256i load(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
INLINE __m128i load_half(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}
INLINE __m256i four(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, sizeof v);
    return _mm256_set1_epi32(v);
}
INLINE __m256i two(const int16_t *sums) {
    int32_t v;
    memcpy(&v, sums, sizeof v);
    return _mm256_set1_epi32(v);
}
/* Sums in the order in which they are written: left alone, compilers rearrange them into trees,
 * which keeps all products alive at once and spills them. */
INLINE __m256i add16(__m256i a, __m256i b) {
    __m256i sum = _mm256_add_epi16(a, b);
    __asm__("" : "+x"(sum));
    return sum;
}
INLINE __m256i add32(__m256i a, __m256i b) {
    __m256i sum = _mm256_add_epi32(a, b);
    __asm__("" : "+x"(sum));
    return sum;
}
/* Half h of 16 half-precision values. */
INLINE __m256 f16_at(const uint8_t *p, int h) {
    return _mm256_cvtph_ps(load_half(p + 16 * h));
}
/* 8 bytes, each in both words of a lane. */
INLINE __m256i doubled(const uint8_t *p) {
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    return _mm256_or_si256(v, _mm256_slli_epi32(v, 16));
}
/* Of int16 pairs the first or the second in both words of a lane. */
INLINE __m256i first_of(__m256i pairs) {
    return _mm256_blend_epi16(pairs, _mm256_slli_epi32(pairs, 16), 0xaa);
}
INLINE __m256i second_of(__m256i pairs) {
    return _mm256_blend_epi16(pairs, _mm256_srli_epi32(pairs, 16), 0x55);
}
/* Bytes shifted left (or right, n < 0); bits that cross from one byte into the next are for the
 * caller to mask. */
INLINE __m256i shifted(__m256i v, const int n) {
    return n > 0 ? _mm256_slli_epi16(v, n) : n < 0 ? _mm256_srli_epi16(v, -n) : v;
}
/* How far ahead of the arithmetic on m rows weights are brought into L2, beyond the present panel
 * too. On a Zen 4 core (November 2026, AVX-512, huge pages, plain reading 32 GB/s): m = 1 from 1 KB
 * ahead 28-33 GB/s, from 3 KB 16-30 by chance, from 6 KB 23, as it cuts off the hardware's own
 * stream. That stream comes too late for more rows: m = 4 from 1 KB 12, from 6 KB 25; m = 8 8 and
 * 13, which is the speed of the arithmetic. Nor does it find its way in Q3_K, whose blocks are not
 * read in order (7 and 17), and here in Q5_1 (13 and 30). */
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

INLINE void store_tile(float *out, size_t out_stride, __m256 y[TILE][2], const int m) {
    UNROLL for (int t = 0; t < m; t++) {
        _mm256_storeu_ps(out + (size_t)t * out_stride, y[t][0]);
        _mm256_storeu_ps(out + (size_t)t * out_stride + 8, y[t][1]);
    }
}

/* ---- Q4_K, Q5_K ---- */

/* int16 holds 8 pairs of 4-bit weights (15 * 127 * 2 * 8 = 30480), or 4 of 5-bit ones (31496). One
 * sub-block at a time, so that the sums of 4 rows stay in registers. */
INLINE void tile_min_k(float *out, size_t out_stride, const uint8_t *panel, const dt_act *act,
    int row0, const int m, const bool fifth) {
    const int block_bytes = fifth ? DT_Q5K_BYTES : DT_Q4K_BYTES;
    const int n_blocks = act->k / 256;
    const __m256i nibble = _mm256_set1_epi8(15), bit4 = _mm256_set1_epi8(16);
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++, panel += block_bytes) {
        __m256i whole[TILE][2];
        UNROLL for (int t = 0; t < m; t++) whole[t][0] = whole[t][1] = _mm256_setzero_si256();
        ROLLED for (int p = 0; p < 4; p++) {
            const uint8_t *lines = panel + (fifth ? DT_Q5K_LINES : DT_Q4K_LINES) + p * 8 * DT_LINE;
            fetch(panel + ahead_of(m) + p * (fifth ? 12 : 10) * DT_LINE, fifth ? 12 : 10);
            UNROLL for (int high = 0; high < 2; high++) {
                const uint8_t *scale = panel + DT_KM_SCALE + (2 * p + high) * 16;
                __m256i sum[TILE][2];
                UNROLL for (int g = 0; g < 8; g++) {
                    const bool start = g == 0 || (fifth && g == 4);
                    const bool flush = g == 7 || (fifth && g == 3);
                    __m256i w[2];
                    UNROLL for (int h = 0; h < 2; h++) {
                        w[h] = shifted(load(lines + g * DT_LINE + 32 * h), -4 * high);
                        w[h] = _mm256_and_si256(w[h], nibble);
                        if (!fifth)
                            continue;
                        __m256i bits =
                            _mm256_srl_epi16(load(panel + DT_Q5K_FIFTH + g * DT_LINE + 32 * h),
                                _mm_cvtsi32_si128(2 * p));
                        w[h] = _mm256_or_si256(
                            w[h], _mm256_and_si256(_mm256_slli_epi16(bits, 4 - high), bit4));
                    }
                    UNROLL for (int t = 0; t < m; t++) {
                        __m256i q = four(rows.q[t] + 64 * p + 32 * high + 4 * g);
                        UNROLL for (int h = 0; h < 2; h++) {
                            __m256i product = _mm256_maddubs_epi16(w[h], q);
                            sum[t][h] = start ? product : add16(sum[t][h], product);
                        }
                    }
                    if (!flush)
                        continue;
                    UNROLL for (int h = 0; h < 2; h++) {
                        __m256i s = doubled(scale + 8 * h);
                        UNROLL for (int t = 0; t < m; t++) whole[t][h] =
                            add32(whole[t][h], _mm256_madd_epi16(sum[t][h], s));
                    }
                }
            }
        }
        ROLLED for (int h = 0; h < 2; h++) {
            __m256 d = f16_at(panel, h), dmin = f16_at(panel + DT_KM_DMIN, h);
            __m256i mins[4];
            UNROLL for (int p = 0; p < 4; p++) mins[p] =
                _mm256_cvtepu8_epi16(load_half(panel + DT_KM_MIN + p * 32 + 16 * h));
            UNROLL for (int t = 0; t < m; t++) {
                const int16_t *sums = rows.sum32 + (size_t)t * rows.n32;
                __m256 dx = _mm256_set1_ps(rows.d[(size_t)t * rows.n_d]);
                __m256i sub = _mm256_madd_epi16(mins[0], two(sums));
                UNROLL for (int p = 1; p < 4; p++) sub =
                    add32(sub, _mm256_madd_epi16(mins[p], two(sums + 2 * p)));
                y[t][h] =
                    _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(whole[t][h]), y[t][h]);
                y[t][h] =
                    _mm256_fnmadd_ps(_mm256_mul_ps(dmin, dx), _mm256_cvtepi32_ps(sub), y[t][h]);
            }
        }
        UNROLL for (int t = 0; t < m; t++) rows.q[t] += 256;
        rows.sum32 += 8;
        rows.d++;
    }
    store_tile(out, out_stride, y, m);
}

INLINE void tile_q4_K(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m) {
    tile_min_k(out, out_stride, panel, act, row0, m, false);
}
INLINE void tile_q5_K(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m) {
    tile_min_k(out, out_stride, panel, act, row0, m, true);
}

/* ---- Q6_K ---- */

/* Two groups of a sub-block: 2 pairs of 6-bit weights stay in int16 (63 * 127 * 2 * 2 = 32004). */
INLINE __m256i scaled_groups(
    __m256i sum, __m256i w0, __m256i w1, __m256i q0, __m256i q1, __m256i scale) {
    __m256i pair = add16(_mm256_maddubs_epi16(w0, q0), _mm256_maddubs_epi16(w1, q1));
    return add32(sum, _mm256_madd_epi16(pair, scale));
}

/* The sums are scaled all the time, so one half of the lines at a time: whole sums, unpacked
 * weights and scales then have registers. */
INLINE void tile_q6_K(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m) {
    const int n_blocks = act->k / 256;
    const __m256i nibble = _mm256_set1_epi8(15), bits45 = _mm256_set1_epi8(0x30);
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_Q6K_BODY, i);
        ROLLED for (int h = 0; h < 2; h++) {
            const uint8_t *half = body + 32 * h; /* of every line */
            __m256i sum[TILE];
            /* The zero point, -32 in every weight. */
            UNROLL for (int t = 0; t < m; t++) sum[t] = _mm256_setzero_si256();
            UNROLL for (int p = 0; p < 8; p++) {
                __m256i pairs = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
                UNROLL for (int t = 0; t < m; t++) sum[t] = add32(sum[t],
                    _mm256_madd_epi16(pairs, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p)));
            }
            UNROLL for (int t = 0; t < m; t++) sum[t] =
                _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sum[t], 5));
            /* e: the first or second sub-block of each run of 32 weights; f: nibble lines of runs f
             * (low) and 2 + f (high); g: groups in twos. */
            for (int n = 0; n < 2; n++)
                UNROLL for (int ef = 0; ef < 4; ef++) {
                    const int e = ef / 2, f = ef % 2;
                    const uint8_t *bits = half + DT_Q6K_LINES + (2 * n + e) * DT_Q6K_PART;
                    const uint8_t *lines = bits + DT_Q6K_NIBBLES + 4 * f * DT_LINE;
                    const uint8_t *pairs = body + (4 * n + f) * 32 + 16 * h;
                    __m256i s0 = _mm256_cvtepi8_epi16(load_half(pairs));
                    __m256i s1 = _mm256_cvtepi8_epi16(load_half(pairs + 64));
                    s0 = e ? second_of(s0) : first_of(s0);
                    s1 = e ? second_of(s1) : first_of(s1);
                    if (h == 0)
                        fetch(body + ahead_of(m) + (4 * n + ef) * 7 * DT_LINE, 7);
                    UNROLL for (int g = 0; g < 4; g += 2) {
                        __m256i w0[2], w1[2];
                        UNROLL for (int c = g; c < g + 2; c++) {
                            __m256i l = load(lines + c * DT_LINE), b = load(bits + c * DT_LINE);
                            w0[c - g] = _mm256_or_si256(_mm256_and_si256(l, nibble),
                                _mm256_and_si256(shifted(b, 4 - 2 * f), bits45));
                            w1[c - g] =
                                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(l, 4), nibble),
                                    _mm256_and_si256(shifted(b, -2 * f), bits45));
                        }
                        UNROLL for (int t = 0; t < m; t++) {
                            const int8_t *q = rows.q[t] + 128 * n + 32 * f + 16 * e + 4 * g;
                            sum[t] = scaled_groups(sum[t], w0[0], w0[1], four(q), four(q + 4), s0);
                            sum[t] =
                                scaled_groups(sum[t], w1[0], w1[1], four(q + 64), four(q + 68), s1);
                        }
                    }
                }
            __m256 d = f16_at(dt_pair_d(panel, DT_Q6K_BODY, i), h);
            UNROLL for (int t = 0; t < m; t++) {
                __m256 dx = _mm256_set1_ps(rows.d[(size_t)t * rows.n_d]);
                y[t][h] =
                    _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(sum[t]), y[t][h]);
            }
        }
        UNROLL for (int t = 0; t < m; t++) rows.q[t] += 256;
        rows.sum16 += 16;
        rows.d++;
    }
    store_tile(out, out_stride, y, m);
}

/* ---- Q3_K ---- */

/* A whole sub-block of 4 groups stays in int16 (7 * 127 * 2 * 4 = 7112). */
INLINE void tile_q3_K(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m) {
    const int n_blocks = act->k / 256;
    const __m256i two_bits = _mm256_set1_epi8(3), bit2 = _mm256_set1_epi8(4);
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_Q3K_BODY, i);
        __m256i whole[TILE][2];
        /* The zero point, -4 in every weight. */
        UNROLL for (int t = 0; t < m; t++) whole[t][0] = whole[t][1] = _mm256_setzero_si256();
        UNROLL for (int p = 0; p < 8; p++) UNROLL for (int h = 0; h < 2; h++) {
            __m256i s = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
            UNROLL for (int t = 0; t < m; t++) whole[t][h] = add32(
                whole[t][h], _mm256_madd_epi16(s, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p)));
        }
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int h = 0; h < 2; h++) whole[t][h] =
            _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(whole[t][h], 2));
        ROLLED for (int j = 0; j < 8; j++) { /* runs of 32 weights: two sub-blocks */
            const uint8_t *lines = body + DT_Q3K_LINES + (8 * (j / 4)) * DT_LINE;
            const __m128i low_shift = _mm_cvtsi32_si128(2 * (j % 4));
            const __m128i third_shift = _mm_cvtsi32_si128(j);
            fetch(body + FAR + j * 4 * DT_LINE, 4);
            UNROLL for (int e = 0; e < 2; e++) {
                __m256i sum[TILE][2];
                UNROLL for (int g = 4 * e; g < 4 * e + 4; g++) {
                    __m256i w[2];
                    UNROLL for (int h = 0; h < 2; h++) {
                        __m256i low =
                            _mm256_srl_epi16(load(lines + g * DT_LINE + 32 * h), low_shift);
                        __m256i third = _mm256_slli_epi16(
                            _mm256_srl_epi16(
                                load(body + DT_Q3K_THIRD + g * DT_LINE + 32 * h), third_shift),
                            2);
                        w[h] = _mm256_or_si256(
                            _mm256_and_si256(low, two_bits), _mm256_and_si256(third, bit2));
                    }
                    UNROLL for (int t = 0; t < m; t++) {
                        __m256i q = four(rows.q[t] + 32 * j + 4 * g);
                        UNROLL for (int h = 0; h < 2; h++) {
                            __m256i product = _mm256_maddubs_epi16(w[h], q);
                            sum[t][h] = g % 4 ? add16(sum[t][h], product) : product;
                        }
                    }
                }
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i s = _mm256_cvtepi8_epi16(load_half(body + j * 32 + 16 * h));
                    s = e ? second_of(s) : first_of(s);
                    UNROLL for (int t = 0; t < m; t++) whole[t][h] =
                        add32(whole[t][h], _mm256_madd_epi16(sum[t][h], s));
                }
            }
        }
        const uint8_t *d = dt_pair_d(panel, DT_Q3K_BODY, i);
        UNROLL for (int t = 0; t < m; t++) {
            __m256 dx = _mm256_set1_ps(rows.d[(size_t)t * rows.n_d]);
            UNROLL for (int h = 0; h < 2; h++) y[t][h] = _mm256_fmadd_ps(
                _mm256_mul_ps(f16_at(d, h), dx), _mm256_cvtepi32_ps(whole[t][h]), y[t][h]);
            rows.q[t] += 256;
        }
        rows.sum16 += 16;
        rows.d++;
    }
    store_tile(out, out_stride, y, m);
}

/* ---- levels from a table ---- */

/* maddubs wants small unsigned weights: a level plus 127 is 16 a + b, with a and b below 16, and
 * int16 holds a whole block's sum of either (15 * 127 * 2 * 8 = 30480). As cheap as |w| times q
 * with w's sign, whose sums fit int16 one by one only. */
typedef struct level_tables {
    __m256i a, b;
} level_tables;

INLINE level_tables level_tables_get(void) {
    const __m128i low = _mm_set1_epi8(15);
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)dt_iq4_levels);
    v = _mm_add_epi8(v, _mm_set1_epi8(127));
    return (level_tables){_mm256_broadcastsi128_si256(_mm_and_si128(_mm_srli_epi16(v, 4), low)),
        _mm256_broadcastsi128_si256(_mm_and_si128(v, low))};
}

/* One half of a block's lines: its sums of a and of b. */
INLINE void sum_levels(__m256i a[TILE], __m256i b[TILE], const uint8_t *lines,
    const level_tables *tables, const int8_t *const q[TILE], int at, const int m) {
    const __m256i nibble = _mm256_set1_epi8(15);
    UNROLL for (int g = 0; g < 4; g++) {
        __m256i w = load(lines + g * DT_LINE);
        UNROLL for (int high = 0; high < 2; high++) {
            __m256i index = _mm256_and_si256(shifted(w, -4 * high), nibble);
            __m256i wa = _mm256_shuffle_epi8(tables->a, index);
            __m256i wb = _mm256_shuffle_epi8(tables->b, index);
            UNROLL for (int t = 0; t < m; t++) {
                __m256i x = four(q[t] + at + 16 * high + 4 * g);
                __m256i pa = _mm256_maddubs_epi16(wa, x), pb = _mm256_maddubs_epi16(wb, x);
                a[t] = g + high ? add16(a[t], pa) : pa;
                b[t] = g + high ? add16(b[t], pb) : pb;
            }
        }
    }
}

/* One half of the lines at a time, as for Q6_K. */
INLINE void tile_iq4_xs(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, const int m) {
    const int n_blocks = act->k / 256;
    const level_tables tables = level_tables_get();
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_IQ4XS_BODY, i);
        fetch(body + ahead_of(m), 35);
        ROLLED for (int h = 0; h < 2; h++) {
            __m256i whole[TILE];
            /* The zero point, -127 in every weight. */
            UNROLL for (int t = 0; t < m; t++) whole[t] = _mm256_setzero_si256();
            UNROLL for (int p = 0; p < 4; p++) {
                __m256i pairs = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
                UNROLL for (int t = 0; t < m; t++) whole[t] = add32(whole[t],
                    _mm256_madd_epi16(pairs, two(rows.sum32 + (size_t)t * rows.n32 + 2 * p)));
            }
            UNROLL for (int t = 0; t < m; t++) whole[t] =
                _mm256_sub_epi32(whole[t], _mm256_slli_epi32(whole[t], 7));
            ROLLED for (int p = 0; p < 4; p++) {
                __m256i pairs = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
                UNROLL for (int e = 0; e < 2; e++) {
                    const uint8_t *lines =
                        body + DT_IQ4XS_LINES + (2 * p + e) * 4 * DT_LINE + 32 * h;
                    __m256i a[TILE], b[TILE], s = e ? second_of(pairs) : first_of(pairs);
                    sum_levels(a, b, lines, &tables, rows.q, 64 * p + 32 * e, m);
                    UNROLL for (int t = 0; t < m; t++) {
                        whole[t] = add32(whole[t], _mm256_madd_epi16(b[t], s));
                        whole[t] =
                            add32(whole[t], _mm256_madd_epi16(a[t], _mm256_slli_epi16(s, 4)));
                    }
                }
            }
            __m256 d = f16_at(dt_pair_d(panel, DT_IQ4XS_BODY, i), h);
            UNROLL for (int t = 0; t < m; t++) {
                __m256 dx = _mm256_set1_ps(rows.d[(size_t)t * rows.n_d]);
                y[t][h] =
                    _mm256_fmadd_ps(_mm256_mul_ps(d, dx), _mm256_cvtepi32_ps(whole[t]), y[t][h]);
            }
        }
        UNROLL for (int t = 0; t < m; t++) rows.q[t] += 256;
        rows.sum32 += 8;
        rows.d++;
    }
    store_tile(out, out_stride, y, m);
}

/* ---- blocks of 32 ---- */

typedef enum form { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL } form;

/* A block's sum of products, but for the zero point. int16 holds a whole block of 4-bit weights,
 * half a block of 5-bit ones. */
INLINE void sum_nibbles(__m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows,
    const int m, const bool fifth) {
    const __m256i nibble = _mm256_set1_epi8(15), bit4 = _mm256_set1_epi8(16);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i part[TILE][2];
    UNROLL for (int high = 0; high < 2; high++) {
        UNROLL for (int g = 0; g < 4; g++) {
            __m256i w[2];
            UNROLL for (int h = 0; h < 2; h++) {
                w[h] = load(lines + g * DT_LINE + 32 * h);
                w[h] = _mm256_and_si256(shifted(w[h], -4 * high), nibble);
                if (fifth)
                    w[h] = _mm256_or_si256(w[h],
                        _mm256_and_si256(
                            shifted(load(lines + DT_Q50_FIFTH + 32 * h), 4 - g - 4 * high), bit4));
            }
            UNROLL for (int t = 0; t < m; t++) {
                __m256i q = four(rows->q[t] + 16 * high + 4 * g);
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i product = _mm256_maddubs_epi16(w[h], q);
                    part[t][h] = g || (high && !fifth) ? add16(part[t][h], product) : product;
                }
            }
        }
        if (!fifth && !high)
            continue;
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int h = 0; h < 2; h++) {
            __m256i wide = _mm256_madd_epi16(part[t][h], ones);
            sum[t][h] = fifth && high ? add32(sum[t][h], wide) : wide;
        }
    }
}

/* Signed bytes: |w| times q with w's sign, so that -128 stays exact: 128 * 127 * 2 fits int16. */
INLINE void sum_bytes(
    __m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows, const int m) {
    const __m256i ones = _mm256_set1_epi16(1);
    UNROLL for (int g = 0; g < 8; g++) {
        __m256i w[2], size[2];
        UNROLL for (int h = 0; h < 2; h++) {
            w[h] = load(lines + g * DT_LINE + 32 * h);
            size[h] = _mm256_abs_epi8(w[h]);
        }
        UNROLL for (int t = 0; t < m; t++) {
            __m256i q = four(rows->q[t] + 4 * g);
            UNROLL for (int h = 0; h < 2; h++) {
                __m256i wide = _mm256_madd_epi16(
                    _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(q, w[h])), ones);
                sum[t][h] = g ? add32(sum[t][h], wide) : wide;
            }
        }
    }
}

INLINE void sum_block_levels(
    __m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows, const int m) {
    const level_tables tables = level_tables_get();
    const __m256i ones = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
    UNROLL for (int h = 0; h < 2; h++) {
        __m256i a[TILE], b[TILE];
        sum_levels(a, b, lines + 32 * h, &tables, rows->q, 0, m);
        UNROLL for (int t = 0; t < m; t++) sum[t][h] =
            add32(_mm256_madd_epi16(a[t], sixteen), _mm256_madd_epi16(b[t], ones));
    }
}

INLINE void tile_32(float *out, size_t out_stride, const uint8_t *panel, const dt_act *act,
    int row0, const int m, const form type) {
    const bool has_min = type == Q4_1 || type == Q5_1;
    const int body_bytes = type == Q4_0 || type == IQ4_NL ? DT_Q40_BODY
                           : type == Q5_0                 ? DT_Q50_BODY
                           : type == Q8_0                 ? DT_Q80_BODY
                           : type == Q4_1                 ? DT_Q41_BYTES
                                                          : DT_Q51_BYTES;
    const int z = type == Q4_0 ? -8 : type == Q5_0 ? -16 : type == IQ4_NL ? -127 : 0;
    const int n_blocks = act->k / 32;
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *d_place =
            has_min ? panel + (size_t)i * (size_t)body_bytes : dt_pair_d(panel, body_bytes, i);
        const uint8_t *lines =
            has_min ? d_place + DT_Q41_LINES : dt_pair_body(panel, body_bytes, i);
        __m256i sum[TILE][2];
        fetch(lines + (type == Q5_1 ? FAR : ahead_of(m)), body_bytes / DT_LINE + !has_min);
        if (type == Q8_0)
            sum_bytes(sum, lines, &rows, m);
        else if (type == IQ4_NL)
            sum_block_levels(sum, lines, &rows, m);
        else
            sum_nibbles(sum, lines, &rows, m, type == Q5_0 || type == Q5_1);
        UNROLL for (int t = 0; t < m; t++) {
            __m256 dx = _mm256_set1_ps(rows.d[(size_t)t * rows.n_d]);
            int sum32 = rows.sum32[(size_t)t * rows.n32];
            __m256i start = _mm256_set1_epi32(z * sum32);
            __m256 s = _mm256_set1_ps((float)sum32);
            UNROLL for (int h = 0; h < 2; h++) {
                if (z)
                    sum[t][h] = add32(sum[t][h], start);
                y[t][h] = _mm256_fmadd_ps(
                    _mm256_mul_ps(f16_at(d_place, h), dx), _mm256_cvtepi32_ps(sum[t][h]), y[t][h]);
                if (has_min)
                    y[t][h] = _mm256_fmadd_ps(
                        _mm256_mul_ps(f16_at(d_place + DT_Q41_M, h), dx), s, y[t][h]);
            }
            rows.q[t] += 32;
        }
        rows.sum32++;
        rows.d++;
    }
    store_tile(out, out_stride, y, m);
}

#define TILE_32(name, type)                                                                        \
    INLINE void tile_##name(float *out, size_t out_stride, const uint8_t *panel,                   \
        const dt_act *act, int row0, const int m) {                                                \
        tile_32(out, out_stride, panel, act, row0, m, type);                                       \
    }
TILE_32(q4_0, Q4_0)
TILE_32(q4_1, Q4_1)
TILE_32(q5_0, Q5_0)
TILE_32(q5_1, Q5_1)
TILE_32(q8_0, Q8_0)
TILE_32(iq4_nl, IQ4_NL)

/* ---- float types: one chain per output, so only rows of activations hide its latency ---- */

INLINE void tile_float(float *out, size_t out_stride, const uint8_t *panel, const dt_act *act,
    int row0, const int m, const dt_type type) {
    const int line_bytes = type == DT_TYPE_F32 ? 64 : 32;
    const float *x[TILE];
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) {
        x[t] = act->x + (size_t)(row0 + t) * act->x_stride;
        y[t][0] = y[t][1] = _mm256_setzero_ps();
    }
    for (int i = 0; i < act->k; i++, panel += line_bytes) {
        fetch(panel + ahead_of(m), 1);
        __m256 w[2];
        UNROLL for (int h = 0; h < 2; h++) w[h] =
            type == DT_TYPE_F32   ? _mm256_loadu_ps((const float *)(const void *)panel + 8 * h)
            : type == DT_TYPE_F16 ? f16_at(panel, h)
                                  : _mm256_castsi256_ps(_mm256_slli_epi32(
                                        _mm256_cvtepu16_epi32(load_half(panel + 16 * h)), 16));
        UNROLL for (int t = 0; t < m; t++) {
            __m256 v = _mm256_set1_ps(x[t][i]);
            y[t][0] = _mm256_fmadd_ps(w[0], v, y[t][0]);
            y[t][1] = _mm256_fmadd_ps(w[1], v, y[t][1]);
        }
    }
    store_tile(out, out_stride, y, m);
}

#define TILE_FLOAT(name, type)                                                                     \
    INLINE void tile_##name(float *out, size_t out_stride, const uint8_t *panel,                   \
        const dt_act *act, int row0, const int m) {                                                \
        tile_float(out, out_stride, panel, act, row0, m, type);                                    \
    }
TILE_FLOAT(f32, DT_TYPE_F32)
TILE_FLOAT(f16, DT_TYPE_F16)
TILE_FLOAT(bf16, DT_TYPE_BF16)

/* A kernel: n_rows cut into tiles as equal as can be, each a function of its own. */
#define TILE_CASE(name, rows)                                                                      \
    case rows:                                                                                     \
        tile_##name(y, out_stride, panel, act, row, rows);                                         \
        break;
#define MATMUL(name)                                                                               \
    static void matmul_##name##_avx2(float *out, size_t out_stride, const uint8_t *panel,          \
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
            }                                                                                      \
        }                                                                                          \
    }

MATMUL(q3_K)
MATMUL(q4_K)
MATMUL(q5_K)
MATMUL(q6_K)
MATMUL(iq4_nl)
MATMUL(iq4_xs)
MATMUL(q4_0)
MATMUL(q4_1)
MATMUL(q5_0)
MATMUL(q5_1)
MATMUL(q8_0)
MATMUL(f32)
MATMUL(f16)
MATMUL(bf16)

/* ---- quantise ---- */

static void quantise_avx2(dt_act *act, int i_row, const float *x) {
    int k = act->k, block = act->block;
    int8_t *q = act->q + (size_t)i_row * (size_t)k;
    float *d = act->d + (size_t)i_row * (size_t)(k / block);
    int16_t *sum32 = act->sum32 + (size_t)i_row * (size_t)(k / 32);
    int16_t *sum16 = block == 256 ? act->sum16 + (size_t)i_row * (size_t)(k / 16) : NULL;
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), flip = _mm256_set1_epi8(-128);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* of two packs in lanes */
    for (int i = 0; i < k; i += block) {
        __m256i most = _mm256_setzero_si256();
        for (int j = 0; j < block; j += 8)
            most = _mm256_max_epi32(
                most, _mm256_and_si256(load((const uint8_t *)(x + i + j)), magnitude));
        __m128i top =
            _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
        top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
        uint32_t largest = (uint32_t)_mm_cvtsi128_si32(top);
        float a = dt_bits_f32(largest);
        bool finite = largest < 0x7f800000;
        if (!finite || a < 0x1p-100f) {
            d[i / block] = finite ? 0.0f : dt_bits_f32(0x7fc00000);
            memset(q + i, 0, (size_t)block);
            memset(sum32 + i / 32, 0, (size_t)block / 16);
            if (sum16)
                memset(sum16 + i / 16, 0, (size_t)block / 8);
            continue;
        }
        d[i / block] = a / 127.0f;
        __m256 r = _mm256_set1_ps(127.0f / a);
        for (int j = i; j < i + block; j += 32) {
            __m256i v[4];
            UNROLL for (int c = 0; c < 4; c++) v[c] =
                _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + j + 8 * c), r));
            __m256i bytes =
                _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
            bytes = _mm256_permutevar8x32_epi32(bytes, order);
            _mm256_storeu_si256((__m256i *)(void *)(q + j), bytes);
            /* Sums of 8 bytes, each too large by 128. */
            __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, flip), _mm256_setzero_si256());
            sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
            int s0 = _mm256_extract_epi32(sums, 0) - 2048;
            int s1 = _mm256_extract_epi32(sums, 4) - 2048;
            sum32[j / 32] = (int16_t)(s0 + s1);
            if (sum16) {
                sum16[j / 16] = (int16_t)s0;
                sum16[j / 16 + 1] = (int16_t)s1;
            }
        }
    }
}

void dt_kernels_avx2(dt_kernels *table) {
    table->isa = "avx2";
    table->matmul[DT_TYPE_F32] = matmul_f32_avx2;
    table->matmul[DT_TYPE_F16] = matmul_f16_avx2;
    table->matmul[DT_TYPE_BF16] = matmul_bf16_avx2;
    table->matmul[DT_TYPE_Q4_0] = matmul_q4_0_avx2;
    table->matmul[DT_TYPE_Q4_1] = matmul_q4_1_avx2;
    table->matmul[DT_TYPE_Q5_0] = matmul_q5_0_avx2;
    table->matmul[DT_TYPE_Q5_1] = matmul_q5_1_avx2;
    table->matmul[DT_TYPE_Q8_0] = matmul_q8_0_avx2;
    table->matmul[DT_TYPE_Q3_K] = matmul_q3_K_avx2;
    table->matmul[DT_TYPE_Q4_K] = matmul_q4_K_avx2;
    table->matmul[DT_TYPE_Q5_K] = matmul_q5_K_avx2;
    table->matmul[DT_TYPE_Q6_K] = matmul_q6_K_avx2;
    table->matmul[DT_TYPE_IQ4_NL] = matmul_iq4_nl_avx2;
    table->matmul[DT_TYPE_IQ4_XS] = matmul_iq4_xs_avx2;
    table->quantise = quantise_avx2;
    lanes_fill(table);
}
