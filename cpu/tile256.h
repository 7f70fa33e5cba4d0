/* Matmul tiles of 256-bit vectors, compiled for AVX2 and, where DT_VNNI is defined, for VNNI. A
 * line of 16 rows is two vectors. AVX2: maddubs multiplies and adds pairs to int16, whose sums are
 * carried on as long as they are exact and then go to int32 by madd. VNNI: dpbusd sums four
 * products to int32; as long as such a sum fits int16, dpwssd scales it. Up to 4 rows of
 * activations make a tile: 8 sums, which leave registers for weights and constants. */
#ifndef DT_CPU_TILE256_H
#define DT_CPU_TILE256_H

#define DT_TILE 4
#include "cpu/tile.h"

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
#ifdef DT_VNNI
#define DT_SUM32 true /* sums of groups are int32 */
/* Written out, so that both encodings come from the same instructions on the same 16 registers. */
#ifdef DT_EVEX
#define VNNI(name) name " %2, %1, %0"
#else
#define VNNI(name) "%{vex%} " name " %2, %1, %0"
#endif
INLINE __m256i dpbusd(__m256i sum, __m256i w, __m256i q) {
    __asm__(VNNI("vpdpbusd") : "+x"(sum) : "x"(w), "x"(q));
    return sum;
}
INLINE __m256i dpwssd(__m256i sum, __m256i a, __m256i b) {
    __asm__(VNNI("vpdpwssd") : "+x"(sum) : "x"(a), "x"(b));
    return sum;
}
#else
#define DT_SUM32 false
#endif

/* A sum of a group's products w q, w unsigned: its lanes are int32 of four products with VNNI,
 * else int16 of two. `start` begins a sum. The order is the one that is written: left alone,
 * compilers rearrange additions into trees, which keeps all products alive at once and spills them.
 */
INLINE __m256i add_group(__m256i sum, __m256i w, __m256i q, const bool start) {
#ifdef DT_VNNI
    return dpbusd(start ? _mm256_setzero_si256() : sum, w, q);
#else
    __m256i product = _mm256_maddubs_epi16(w, q);
    return start ? product : add16(sum, product);
#endif
}
/* Groups of weights up to `top` whose sums stay within int16: 4 * 127 * top each, or two halves. */
INLINE int groups_max(const int top) {
#ifdef DT_VNNI
    return 32767 / (4 * 127 * top);
#else
    return 32767 / (2 * 127 * top);
#endif
}
/* whole (int32) + the pairs of a times those of b. */
INLINE __m256i add_pairs(__m256i whole, __m256i a, __m256i b) {
#ifdef DT_VNNI
    return dpwssd(whole, a, b);
#else
    return add32(whole, _mm256_madd_epi16(a, b));
#endif
}
/* The scales that add_pairs multiplies sums with: in both words of a lane, or in the lower one,
 * where a sum is one int32 that fits its lower word. From 8 bytes; the first or second of int16
 * pairs. */
INLINE __m256i scales_at(const uint8_t *p) {
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
#ifndef DT_VNNI
    v = _mm256_or_si256(v, _mm256_slli_epi32(v, 16));
#endif
    return v;
}
INLINE __m256i first_of(__m256i pairs) {
#ifdef DT_VNNI
    return _mm256_blend_epi16(pairs, _mm256_setzero_si256(), 0xaa);
#else
    return _mm256_blend_epi16(pairs, _mm256_slli_epi32(pairs, 16), 0xaa);
#endif
}
INLINE __m256i second_of(__m256i pairs) {
#ifdef DT_VNNI
    return _mm256_srli_epi32(pairs, 16);
#else
    return _mm256_blend_epi16(pairs, _mm256_srli_epi32(pairs, 16), 0x55);
#endif
}
#ifdef DT_VNNI
/* whole + sum * scale for sums that do not fit int16. */
INLINE __m256i add_scaled(__m256i whole, __m256i sum, __m256i pairs, const bool second) {
    pairs = _mm256_srai_epi32(second ? pairs : _mm256_slli_epi32(pairs, 16), 16);
    return add32(whole, _mm256_mullo_epi32(sum, pairs));
}
#endif
/* Bytes shifted left (or right, n < 0); bits that cross from one byte into the next are for the
 * caller to mask. */
INLINE __m256i shifted(__m256i v, const int n) {
    return n > 0 ? _mm256_slli_epi16(v, n) : n < 0 ? _mm256_srli_epi16(v, -n) : v;
}
INLINE void store_tile(float *out, size_t out_stride, __m256 y[TILE][2], const int m) {
    UNROLL for (int t = 0; t < m; t++) {
        _mm256_storeu_ps(out + (size_t)t * out_stride, y[t][0]);
        _mm256_storeu_ps(out + (size_t)t * out_stride + 8, y[t][1]);
    }
}

/* ---- Q4_K, Q5_K ---- */

/* One sub-block at a time, so that the sums of 4 rows stay in registers. VNNI sums of five bits fit
 * int16 for two groups only; scaled in float, two whole sub-blocks of them stay exact
 * (2 * 32 * 31 * 127 * 63 < 2^24), which is the faster for them and not for four bits. */
INLINE void tile_min_k(TILE_ARGS, const bool fifth) {
    const bool in_float = DT_SUM32 && fifth;
    const int block_bytes = fifth ? DT_Q5K_BYTES : DT_Q4K_BYTES;
    const int n_blocks = act->k / 256, n_groups = in_float ? 8 : groups_max(fifth ? 31 : 15);
    const __m256i nibble = _mm256_set1_epi8(15), bit4 = _mm256_set1_epi8(16);
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++, panel += block_bytes) {
        __m256i whole[TILE][2];
        __m256 part[TILE][2];
        UNROLL for (int t = 0; t < m; t++) {
            whole[t][0] = whole[t][1] = _mm256_setzero_si256();
            part[t][0] = part[t][1] = _mm256_setzero_ps();
        }
        ROLLED for (int p = 0; p < 4; p++) {
            const uint8_t *lines = panel + (fifth ? DT_Q5K_LINES : DT_Q4K_LINES) + p * 8 * DT_LINE;
            fetch(panel + ahead_of(m) + p * (fifth ? 12 : 10) * DT_LINE, fifth ? 12 : 10);
            UNROLL for (int high = 0; high < 2; high++) {
                const uint8_t *scale = panel + DT_KM_SCALE + (2 * p + high) * 16;
                __m256i sum[TILE][2];
                UNROLL for (int g = 0; g < 8; g++) {
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
                        UNROLL for (int h = 0; h < 2; h++) sum[t][h] =
                            add_group(sum[t][h], w[h], q, g % n_groups == 0);
                    }
                    if ((g + 1) % n_groups)
                        continue;
                    UNROLL for (int h = 0; h < 2; h++) {
                        __m256i s = scales_at(scale + 8 * h);
                        UNROLL for (int t = 0; t < m; t++) if (in_float) part[t][h] =
                            _mm256_fmadd_ps(
                                _mm256_cvtepi32_ps(sum[t][h]), _mm256_cvtepi32_ps(s), part[t][h]);
                        else whole[t][h] = add_pairs(whole[t][h], sum[t][h], s);
                    }
                }
            }
            if (in_float)
                UNROLL for (int t = 0; t < m; t++) UNROLL for (int h = 0; h < 2; h++) {
                    whole[t][h] = add32(whole[t][h], _mm256_cvtps_epi32(part[t][h]));
                    part[t][h] = _mm256_setzero_ps();
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
                UNROLL for (int p = 1; p < 4; p++) sub = add_pairs(sub, mins[p], two(sums + 2 * p));
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

TILE_OF(q4_K, min_k, false)
TILE_OF(q5_K, min_k, true)

/* ---- Q6_K ---- */

#ifndef DT_VNNI
/* Two groups of a sub-block: 2 pairs of 6-bit weights stay in int16 (63 * 127 * 2 * 2 = 32004). */
INLINE __m256i scaled_groups(
    __m256i sum, __m256i w0, __m256i w1, __m256i q0, __m256i q1, __m256i scale) {
    __m256i pair = add16(_mm256_maddubs_epi16(w0, q0), _mm256_maddubs_epi16(w1, q1));
    return add32(sum, _mm256_madd_epi16(pair, scale));
}
#endif

/* The sums are scaled all the time, so one half of the lines at a time: whole sums, unpacked
 * weights and scales then have registers. */
INLINE void tile_q6_K(TILE_ARGS) {
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
                UNROLL for (int t = 0; t < m; t++) sum[t] =
                    add_pairs(sum[t], pairs, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p));
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
#ifdef DT_VNNI
                    __m256i part0[TILE], part1[TILE];
#else
                    s0 = e ? second_of(s0) : first_of(s0);
                    s1 = e ? second_of(s1) : first_of(s1);
#endif
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
#ifdef DT_VNNI
                            part0[t] = add_group(part0[t], w0[0], four(q), g == 0);
                            part0[t] = add_group(part0[t], w0[1], four(q + 4), false);
                            part1[t] = add_group(part1[t], w1[0], four(q + 64), g == 0);
                            part1[t] = add_group(part1[t], w1[1], four(q + 68), false);
#else
                            sum[t] = scaled_groups(sum[t], w0[0], w0[1], four(q), four(q + 4), s0);
                            sum[t] =
                                scaled_groups(sum[t], w1[0], w1[1], four(q + 64), four(q + 68), s1);
#endif
                        }
                    }
#ifdef DT_VNNI
                    UNROLL for (int t = 0; t < m; t++) {
                        sum[t] = add_scaled(sum[t], part0[t], s0, e);
                        sum[t] = add_scaled(sum[t], part1[t], s1, e);
                    }
#endif
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

/* A whole sub-block of 4 groups stays in int16 (7 * 127 * 4 * 4 = 14224). */
INLINE void tile_q3_K(TILE_ARGS) {
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
            UNROLL for (int t = 0; t < m; t++) whole[t][h] =
                add_pairs(whole[t][h], s, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p));
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
                        UNROLL for (int h = 0; h < 2; h++) sum[t][h] =
                            add_group(sum[t][h], w[h], q, g % 4 == 0);
                    }
                }
                UNROLL for (int h = 0; h < 2; h++) {
                    __m256i s = _mm256_cvtepi8_epi16(load_half(body + j * 32 + 16 * h));
                    s = e ? second_of(s) : first_of(s);
                    UNROLL for (int t = 0; t < m; t++) whole[t][h] =
                        add_pairs(whole[t][h], sum[t][h], s);
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

#ifdef DT_VNNI

/* The levels plus 128, so that they are unsigned. */
enum { LEVEL_ZERO = 128 };
typedef struct level_tables {
    __m256i v;
} level_tables;

INLINE level_tables level_tables_get(void) {
    __m128i v = _mm_loadu_si128((const __m128i *)(const void *)dt_iq4_levels);
    return (level_tables){_mm256_broadcastsi128_si256(_mm_xor_si128(v, _mm_set1_epi8(-128)))};
}

/* One half of the lines of 32 weights: their sums. */
typedef struct level_sums {
    __m256i v[TILE];
} level_sums;

INLINE void add_levels(
    level_sums *sums, __m256i places, const level_tables *tables, int t, __m256i q, bool start) {
    __m256i w = _mm256_shuffle_epi8(tables->v, places);
    sums->v[t] = add_group(sums->v[t], w, q, start);
}
INLINE __m256i levels_scaled(
    __m256i whole, const level_sums *sums, int t, __m256i pairs, const bool second) {
    return add_scaled(whole, sums->v[t], pairs, second);
}
INLINE __m256i levels_sum(const level_sums *sums, int t) {
    return sums->v[t];
}

#else

/* maddubs wants small weights: a level plus 127 is 16 a + b, with a and b below 16, and int16 holds
 * the sum of 32 weights of either (15 * 127 * 2 * 8 = 30480). As cheap as |w| times q with w's
 * sign, of which int16 holds two weights only. */
enum { LEVEL_ZERO = 127 };
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

/* One half of the lines of 32 weights: their sums of a and of b. */
typedef struct level_sums {
    __m256i a[TILE], b[TILE];
} level_sums;

INLINE void add_levels(
    level_sums *sums, __m256i places, const level_tables *tables, int t, __m256i q, bool start) {
    sums->a[t] = add_group(sums->a[t], _mm256_shuffle_epi8(tables->a, places), q, start);
    sums->b[t] = add_group(sums->b[t], _mm256_shuffle_epi8(tables->b, places), q, start);
}
INLINE __m256i levels_scaled(
    __m256i whole, const level_sums *sums, int t, __m256i pairs, const bool second) {
    __m256i s = second ? second_of(pairs) : first_of(pairs);
    whole = add_pairs(whole, sums->b[t], s);
    return add_pairs(whole, sums->a[t], _mm256_slli_epi16(s, 4));
}
INLINE __m256i levels_sum(const level_sums *sums, int t) {
    __m256i a = _mm256_madd_epi16(sums->a[t], _mm256_set1_epi16(16));
    return add_pairs(a, sums->b[t], _mm256_set1_epi16(1));
}

#endif

INLINE void sum_levels(level_sums *sums, const uint8_t *lines, const level_tables *tables,
    const int8_t *const q[TILE], int at, const int m) {
    const __m256i nibble = _mm256_set1_epi8(15);
    UNROLL for (int g = 0; g < 4; g++) {
        __m256i w = load(lines + g * DT_LINE);
        UNROLL for (int high = 0; high < 2; high++) {
            __m256i places = _mm256_and_si256(shifted(w, -4 * high), nibble);
            UNROLL for (int t = 0; t < m; t++) add_levels(
                sums, places, tables, t, four(q[t] + at + 16 * high + 4 * g), g + high == 0);
        }
    }
}

/* One half of the lines at a time, as for Q6_K. */
INLINE void tile_iq4_xs(TILE_ARGS) {
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
            /* The zero point. */
            UNROLL for (int t = 0; t < m; t++) whole[t] = _mm256_setzero_si256();
            UNROLL for (int p = 0; p < 4; p++) {
                __m256i pairs = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
                UNROLL for (int t = 0; t < m; t++) whole[t] =
                    add_pairs(whole[t], pairs, two(rows.sum32 + (size_t)t * rows.n32 + 2 * p));
            }
            UNROLL for (int t = 0; t < m; t++) whole[t] =
                _mm256_mullo_epi32(whole[t], _mm256_set1_epi32(-LEVEL_ZERO));
            ROLLED for (int p = 0; p < 4; p++) {
                __m256i pairs = _mm256_cvtepi8_epi16(load_half(body + p * 32 + 16 * h));
                UNROLL for (int e = 0; e < 2; e++) {
                    const uint8_t *lines =
                        body + DT_IQ4XS_LINES + (2 * p + e) * 4 * DT_LINE + 32 * h;
                    level_sums sums;
                    sum_levels(&sums, lines, &tables, rows.q, 64 * p + 32 * e, m);
                    UNROLL for (int t = 0; t < m; t++) whole[t] =
                        levels_scaled(whole[t], &sums, t, pairs, e);
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

/* Sums of a block's products, but for the zero point. */
INLINE void sum_nibbles(__m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows,
    const int m, const bool fifth) {
    const int n_groups = DT_MIN(groups_max(fifth ? 31 : 15), 8);
    const __m256i nibble = _mm256_set1_epi8(15), bit4 = _mm256_set1_epi8(16);
    __m256i part[TILE][2];
    UNROLL for (int i = 0; i < 8; i++) {
        const int high = i / 4, g = i % 4;
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
            __m256i q = four(rows->q[t] + 4 * i);
            UNROLL for (int h = 0; h < 2; h++) part[t][h] =
                add_group(part[t][h], w[h], q, DT_SUM32 ? i == 0 : i % n_groups == 0);
        }
        if (DT_SUM32 || (i + 1) % n_groups)
            continue;
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int h = 0; h < 2; h++) {
            __m256i wide = _mm256_madd_epi16(part[t][h], _mm256_set1_epi16(1));
            sum[t][h] = i + 1 == n_groups ? wide : add32(sum[t][h], wide);
        }
    }
    if (DT_SUM32)
        UNROLL for (int t = 0; t < m; t++) UNROLL for (int h = 0; h < 2; h++) sum[t][h] =
            part[t][h];
}

#ifdef DT_VNNI
/* Signed bytes plus 128. */
enum { BYTE_ZERO = 128 };
INLINE void sum_bytes(
    __m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows, const int m) {
    const __m256i flip = _mm256_set1_epi8(-128);
    UNROLL for (int g = 0; g < 8; g++) {
        __m256i w[2];
        UNROLL for (int h = 0; h < 2; h++) w[h] =
            _mm256_xor_si256(load(lines + g * DT_LINE + 32 * h), flip);
        UNROLL for (int t = 0; t < m; t++) {
            __m256i q = four(rows->q[t] + 4 * g);
            UNROLL for (int h = 0; h < 2; h++) sum[t][h] = add_group(sum[t][h], w[h], q, g == 0);
        }
    }
}
#else
enum { BYTE_ZERO = 0 };
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
#endif

INLINE void sum_block_levels(
    __m256i sum[TILE][2], const uint8_t *lines, const tile_rows *rows, const int m) {
    const level_tables tables = level_tables_get();
    UNROLL for (int h = 0; h < 2; h++) {
        level_sums sums;
        sum_levels(&sums, lines + 32 * h, &tables, rows->q, 0, m);
        UNROLL for (int t = 0; t < m; t++) sum[t][h] = levels_sum(&sums, t);
    }
}

INLINE void tile_32(TILE_ARGS, const form type) {
    const bool has_min = form_has_min(type);
    const int z = type == Q4_0     ? -8
                  : type == Q5_0   ? -16
                  : type == Q8_0   ? -BYTE_ZERO
                  : type == IQ4_NL ? -LEVEL_ZERO
                                   : 0;
    const int n_blocks = act->k / 32;
    tile_rows rows = rows_of(act, row0, m);
    __m256 y[TILE][2];
    UNROLL for (int t = 0; t < m; t++) y[t][0] = y[t][1] = _mm256_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *lines, *d_place = form_block(&lines, panel, i, type);
        __m256i sum[TILE][2];
        fetch(lines + (type == Q5_1 ? FAR : ahead_of(m)), form_bytes(type) / DT_LINE + !has_min);
        if (type == Q8_0)
            sum_bytes(sum, lines, &rows, m);
        else if (type == IQ4_NL)
            sum_block_levels(sum, lines, &rows, m);
        else
            sum_nibbles(sum, lines, &rows, m, form_has_fifth(type));
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

TILE_OF(q4_0, 32, Q4_0)
TILE_OF(q4_1, 32, Q4_1)
TILE_OF(q5_0, 32, Q5_0)
TILE_OF(q5_1, 32, Q5_1)
TILE_OF(q8_0, 32, Q8_0)
TILE_OF(iq4_nl, 32, IQ4_NL)

#endif
