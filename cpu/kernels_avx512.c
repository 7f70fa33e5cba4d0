/* AVX-512 with VNNI. A vector is a line: 16 rows of 4 weights; an activation group is broadcast to
 * all lanes. Up to 8 rows of activations make a tile that shares the unpacked weights; the loops
 * over `m` are unrolled into registers. Quantising stays with AVX2, which is
 * the faster at it. */
#include "cpu/lanes.h"

#define DT_ISA avx512
#define DT_TILE 8
#include "cpu/tile512.h"

/* sum + the 4 products of each lane of w (unsigned) and the group at q. gcc 12 would load the group
 * into a register of its own first: one instruction in two. */
INLINE __m512i dot(__m512i sum, __m512i w, const int8_t *q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const int8_t(*)[4])q));
    return sum;
}

/* ---- Q4_K, Q5_K ---- */

/* Sums of sub-blocks are below 2^17, so up to four of them times 6-bit scales add up exactly in
 * float; the two halves of a super-block are added with the one rounding that the formula has. (For
 * five bits: |sum| <= 32 * 31 * 127, and only two such products stay below 2^24, hence quarters
 * through integers.) */
INLINE void tile_min_k(TILE_ARGS, const bool fifth) {
    const int block_bytes = fifth ? DT_Q5K_BYTES : DT_Q4K_BYTES;
    const int n_blocks = act->k / 256;
    const __m512i nibble = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    tile_rows rows = rows_of(act, row0, m);
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_setzero_ps();
    for (int i = 0; i < n_blocks; i++, panel += block_bytes) {
        __m512 whole[TILE];
        __m512i whole_int[TILE];
        UNROLL for (int t = 0; t < m; t++) {
            whole[t] = _mm512_setzero_ps();
            whole_int[t] = _mm512_setzero_si512();
        }
        for (int half = 0; half < 2; half++) {
            __m512 part[TILE];
            UNROLL for (int t = 0; t < m; t++) part[t] = _mm512_setzero_ps();
            UNROLL for (int pp = 0; pp < 2; pp++) {
                const int p = 2 * half + pp;
                const uint8_t *lines =
                    panel + (fifth ? DT_Q5K_LINES : DT_Q4K_LINES) + p * 8 * DT_LINE;
                const uint8_t *bits = panel + DT_Q5K_FIFTH;
                __m512i low[TILE], high[TILE];
                fetch(panel + ahead_of(m) + p * (fifth ? 12 : 10) * DT_LINE, fifth ? 12 : 10);
                UNROLL for (int t = 0; t < m; t++) low[t] = high[t] = _mm512_setzero_si512();
                UNROLL for (int g = 0; g < 8; g++) {
                    __m512i w = load(lines + g * DT_LINE);
                    __m512i w0 = _mm512_and_si512(w, nibble);
                    __m512i w1 = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
                    if (fifth) {
                        __m512i b = load(bits + g * DT_LINE);
                        b = _mm512_rorv_epi32(b, _mm512_set1_epi32(2 * p - 4)); /* bit 2p to 4 */
                        w0 = or_masked(w0, b, bit4);
                        w1 = or_masked(w1, _mm512_srli_epi16(b, 1), bit4);
                    }
                    UNROLL for (int t = 0; t < m; t++) {
                        const int8_t *q = rows.q[t] + 64 * p + 4 * g;
                        low[t] = dot(low[t], w0, q);
                        high[t] = dot(high[t], w1, q + 32);
                    }
                }
                const uint8_t *scale = panel + DT_KM_SCALE + p * 32;
                __m512 s0 = _mm512_cvtepi32_ps(
                    _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)scale)));
                __m512 s1 = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
                    _mm_loadu_si128((const __m128i *)(const void *)(scale + 16))));
                UNROLL for (int t = 0; t < m; t++) {
                    part[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[t]), s0, part[t]);
                    part[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high[t]), s1, part[t]);
                    if (fifth) {
                        whole_int[t] = _mm512_add_epi32(whole_int[t], _mm512_cvtps_epi32(part[t]));
                        part[t] = _mm512_setzero_ps();
                    }
                }
            }
            if (!fifth)
                UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_add_ps(whole[t], part[t]);
        }
        __m512 d = halves(panel), dmin = halves(panel + DT_KM_DMIN);
        __m512i mins[4];
        UNROLL for (int p = 0; p < 4; p++) mins[p] = unsigned_pairs(panel + DT_KM_MIN + p * 32);
        UNROLL for (int t = 0; t < m; t++) {
            const int16_t *sums = rows.sum32 + (size_t)t * rows.n32;
            __m512 dx = _mm512_set1_ps(rows.d[(size_t)t * rows.n_d]);
            __m512i sub = _mm512_setzero_si512();
            UNROLL for (int p = 0; p < 4; p++) sub =
                _mm512_dpwssd_epi32(sub, mins[p], two(sums + 2 * p));
            if (fifth)
                whole[t] = _mm512_cvtepi32_ps(whole_int[t]);
            y[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, dx), whole[t], y[t]);
            y[t] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, dx), _mm512_cvtepi32_ps(sub), y[t]);
            rows.q[t] += 256;
        }
        rows.sum32 += 8;
        rows.d++;
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

TILE_OF(q4_K, min_k, false)
TILE_OF(q5_K, min_k, true)

/* ---- Q6_K ---- */

/* Sums of 16 products times an int8 scale, added as integers: 16 such products reach 2^27, too much
 * for floats. (A 32-bit multiplication a sub-block costs less than multiplying 16-bit partial sums,
 * of which a sub-block has two, and which need two more additions.) */
INLINE void tile_q6_K(TILE_ARGS) {
    const int n_blocks = act->k / 256;
    const __m512i nibble = _mm512_set1_epi8(15), bits45 = _mm512_set1_epi8(0x30);
    tile_rows rows = rows_of(act, row0, m);
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_Q6K_BODY, i);
        __m512i whole[TILE];
        UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_setzero_si512();
        /* The zero point, -32 in every weight. */
        UNROLL for (int p = 0; p < 8; p++) {
            __m512i pairs = signed_pairs(body + p * 32);
            UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_dpwssd_epi32(
                whole[t], pairs, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p));
        }
        UNROLL for (int t = 0; t < m; t++) whole[t] =
            _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(whole[t], 5));
        for (int h = 0; h < 2; h++) {
            /* e: the first or second sub-block of each run of 32 weights; f: nibble lines of runs
             * f (low) and 2 + f (high). One sub-block at a time, so that its sums and the whole's
             * stay in registers for 8 rows. */
            UNROLL for (int ef = 0; ef < 4; ef++) {
                const int e = ef / 2, f = ef % 2;
                const uint8_t *bits = body + DT_Q6K_LINES + (2 * h + e) * DT_Q6K_PART;
                const uint8_t *lines = bits + DT_Q6K_NIBBLES + 4 * f * DT_LINE;
                fetch(body + ahead_of(m) + (4 * h + ef) * 7 * DT_LINE, 7);
                UNROLL for (int high = 0; high < 2; high++) {
                    __m512i sum[TILE];
                    UNROLL for (int t = 0; t < m; t++) sum[t] = _mm512_setzero_si512();
                    UNROLL for (int g = 0; g < 4; g++) {
                        __m512i w = load(lines + g * DT_LINE), b = load(bits + g * DT_LINE);
                        b = _mm512_and_si512(shifted(b, 4 - 2 * f - 4 * high), bits45);
                        w = or_masked(b, shifted(w, -4 * high), nibble);
                        UNROLL for (int t = 0; t < m; t++) sum[t] = dot(
                            sum[t], w, rows.q[t] + 128 * h + 64 * high + 32 * f + 16 * e + 4 * g);
                    }
                    __m512i s = signed_pairs(body + (4 * h + 2 * high + f) * 32);
                    s = _mm512_srai_epi32(e ? s : _mm512_slli_epi32(s, 16), 16);
                    UNROLL for (int t = 0; t < m; t++) whole[t] =
                        _mm512_add_epi32(whole[t], _mm512_mullo_epi32(sum[t], s));
                }
            }
        }
        __m512 d = halves(dt_pair_d(panel, DT_Q6K_BODY, i));
        UNROLL for (int t = 0; t < m; t++) {
            __m512 dx = _mm512_set1_ps(rows.d[(size_t)t * rows.n_d]);
            y[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, dx), _mm512_cvtepi32_ps(whole[t]), y[t]);
            rows.q[t] += 256;
        }
        rows.sum16 += 16;
        rows.d++;
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

/* ---- Q3_K ---- */

/* Every sum here is an integer below 2^24 (16 * 7 * 127 times 32, 16 times), so floats carry it. */
INLINE void tile_q3_K(TILE_ARGS) {
    const int n_blocks = act->k / 256;
    const __m512i two_bits = _mm512_set1_epi8(3), bit2 = _mm512_set1_epi8(4);
    tile_rows rows = rows_of(act, row0, m);
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_Q3K_BODY, i);
        __m512 whole[TILE];
        __m512i zero[TILE];
        UNROLL for (int t = 0; t < m; t++) zero[t] = _mm512_setzero_si512();
        UNROLL for (int p = 0; p < 8; p++) {
            __m512i pairs = signed_pairs(body + p * 32);
            UNROLL for (int t = 0; t < m; t++) zero[t] =
                _mm512_dpwssd_epi32(zero[t], pairs, two(rows.sum16 + (size_t)t * rows.n16 + 2 * p));
        }
        UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_cvtepi32_ps(
            _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(zero[t], 2)));
        for (int h = 0; h < 2; h++) {
            UNROLL for (int f = 0; f < 4; f++) {
                const int j = 4 * h + f; /* a run of 32 weights, two sub-blocks */
                __m512i sum[2][TILE];
                fetch(body + FAR + j * 4 * DT_LINE, 4);
                UNROLL for (int t = 0; t < m; t++) sum[0][t] = sum[1][t] = _mm512_setzero_si512();
                UNROLL for (int g = 0; g < 8; g++) {
                    __m512i low = load(body + DT_Q3K_LINES + (8 * h + g) * DT_LINE);
                    __m512i bits = load(body + DT_Q3K_THIRD + g * DT_LINE);
                    bits = _mm512_rorv_epi32(bits, _mm512_set1_epi32(j - 2)); /* bit j to 2 */
                    __m512i w =
                        or_masked(_mm512_and_si512(shifted(low, -2 * f), two_bits), bits, bit2);
                    UNROLL for (int t = 0; t < m; t++) sum[g / 4][t] =
                        dot(sum[g / 4][t], w, rows.q[t] + 32 * j + 4 * g);
                }
                __m512i pairs = signed_pairs(body + j * 32);
                __m512 s0 = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16));
                __m512 s1 = _mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 16));
                UNROLL for (int t = 0; t < m; t++) {
                    whole[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[0][t]), s0, whole[t]);
                    whole[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1][t]), s1, whole[t]);
                }
            }
        }
        __m512 d = halves(dt_pair_d(panel, DT_Q3K_BODY, i));
        UNROLL for (int t = 0; t < m; t++) {
            __m512 dx = _mm512_set1_ps(rows.d[(size_t)t * rows.n_d]);
            y[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, dx), whole[t], y[t]);
            rows.q[t] += 256;
        }
        rows.sum16 += 16;
        rows.d++;
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

/* ---- levels from a table ---- */

/* The levels plus 128, so that they are unsigned, in every quarter of the vector. */
INLINE __m512i level_table(void) {
    __m128i levels = _mm_loadu_si128((const __m128i *)(const void *)dt_iq4_levels);
    return _mm512_broadcast_i32x4(_mm_xor_si128(levels, _mm_set1_epi8(-128)));
}

/* Sums of a sub-block go over what floats carry (32 * 241 * 127 * 32), so they stay integers. */
INLINE void tile_iq4_xs(TILE_ARGS) {
    const int n_blocks = act->k / 256;
    const __m512i nibble = _mm512_set1_epi8(15), table = level_table();
    tile_rows rows = rows_of(act, row0, m);
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_IQ4XS_BODY, i);
        __m512i whole[TILE];
        UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_setzero_si512();
        /* The zero point, -128 in every weight. */
        UNROLL for (int p = 0; p < 4; p++) {
            __m512i pairs = signed_pairs(body + p * 32);
            UNROLL for (int t = 0; t < m; t++) whole[t] = _mm512_dpwssd_epi32(
                whole[t], pairs, two(rows.sum32 + (size_t)t * rows.n32 + 2 * p));
        }
        UNROLL for (int t = 0; t < m; t++) whole[t] =
            _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(whole[t], 7));
        for (int p = 0; p < 4; p++) {
            __m512i pairs = signed_pairs(body + p * 32);
            fetch(body + ahead_of(m) + p * 9 * DT_LINE, 9);
            UNROLL for (int e = 0; e < 2; e++) {
                const uint8_t *lines = body + DT_IQ4XS_LINES + (2 * p + e) * 4 * DT_LINE;
                __m512i sum[TILE];
                UNROLL for (int t = 0; t < m; t++) sum[t] = _mm512_setzero_si512();
                UNROLL for (int g = 0; g < 4; g++) {
                    __m512i w = load(lines + g * DT_LINE);
                    __m512i w0 = _mm512_shuffle_epi8(table, _mm512_and_si512(w, nibble));
                    __m512i w1 = _mm512_shuffle_epi8(
                        table, _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble));
                    UNROLL for (int t = 0; t < m; t++) {
                        const int8_t *q = rows.q[t] + 64 * p + 32 * e + 4 * g;
                        sum[t] = dot(sum[t], w0, q);
                        sum[t] = dot(sum[t], w1, q + 16);
                    }
                }
                __m512i s = _mm512_srai_epi32(e ? pairs : _mm512_slli_epi32(pairs, 16), 16);
                UNROLL for (int t = 0; t < m; t++) whole[t] =
                    _mm512_add_epi32(whole[t], _mm512_mullo_epi32(sum[t], s));
            }
        }
        __m512 d = halves(dt_pair_d(panel, DT_IQ4XS_BODY, i));
        UNROLL for (int t = 0; t < m; t++) {
            __m512 dx = _mm512_set1_ps(rows.d[(size_t)t * rows.n_d]);
            y[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, dx), _mm512_cvtepi32_ps(whole[t]), y[t]);
            rows.q[t] += 256;
        }
        rows.sum32 += 8;
        rows.d++;
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

/* ---- blocks of 32 ---- */

/* The zero point enters as the start of the integer sum. */
INLINE void tile_32(TILE_ARGS, const form type) {
    const bool has_min = form_has_min(type), fifth = form_has_fifth(type);
    const int z = type == Q4_0                     ? -8
                  : type == Q5_0                   ? -16
                  : type == Q8_0 || type == IQ4_NL ? -128
                                                   : 0;
    const int n_blocks = act->k / 32;
    const __m512i nibble = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    const __m512i flip = _mm512_set1_epi8(-128), table = level_table();
    tile_rows rows = rows_of(act, row0, m);
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_setzero_ps();
    for (int i = 0; i < n_blocks; i++) {
        const uint8_t *lines, *d_place = form_block(&lines, panel, i, type);
        __m512i sum[TILE];
        fetch(lines + ahead_of(m), form_bytes(type) / DT_LINE + !has_min);
        UNROLL for (int t = 0; t < m; t++) {
            sum[t] = z == 0 ? _mm512_setzero_si512()
                            : _mm512_set1_epi32(z * rows.sum32[(size_t)t * rows.n32]);
        }
        if (type == Q8_0) {
            UNROLL for (int g = 0; g < 8; g++) {
                __m512i w = _mm512_xor_si512(load(lines + g * DT_LINE), flip);
                UNROLL for (int t = 0; t < m; t++) sum[t] = dot(sum[t], w, rows.q[t] + 4 * g);
            }
        } else {
            __m512i bits = fifth ? load(lines + DT_Q50_FIFTH) : nibble;
            UNROLL for (int g = 0; g < 4; g++) {
                __m512i w = load(lines + g * DT_LINE);
                __m512i w0 = _mm512_and_si512(w, nibble);
                __m512i w1 = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
                if (fifth) {
                    w0 = or_masked(w0, shifted(bits, 4 - g), bit4);
                    w1 = or_masked(w1, shifted(bits, -g), bit4);
                }
                if (type == IQ4_NL) {
                    w0 = _mm512_shuffle_epi8(table, w0);
                    w1 = _mm512_shuffle_epi8(table, w1);
                }
                UNROLL for (int t = 0; t < m; t++) {
                    sum[t] = dot(sum[t], w0, rows.q[t] + 4 * g);
                    sum[t] = dot(sum[t], w1, rows.q[t] + 16 + 4 * g);
                }
            }
        }
        __m512 d = halves(d_place), min = has_min ? halves(d_place + DT_Q41_M) : d;
        UNROLL for (int t = 0; t < m; t++) {
            __m512 dx = _mm512_set1_ps(rows.d[(size_t)t * rows.n_d]);
            y[t] = _mm512_fmadd_ps(_mm512_mul_ps(d, dx), _mm512_cvtepi32_ps(sum[t]), y[t]);
            if (has_min) {
                __m512 s = _mm512_set1_ps((float)rows.sum32[(size_t)t * rows.n32]);
                y[t] = _mm512_fmadd_ps(_mm512_mul_ps(min, dx), s, y[t]);
            }
            rows.q[t] += 32;
        }
        rows.sum32++;
        rows.d++;
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

TILE_OF(q4_0, 32, Q4_0)
TILE_OF(q4_1, 32, Q4_1)
TILE_OF(q5_0, 32, Q5_0)
TILE_OF(q5_1, 32, Q5_1)
TILE_OF(q8_0, 32, Q8_0)
TILE_OF(iq4_nl, 32, IQ4_NL)

/* ---- float types: one chain per output, so only rows of activations hide its latency ---- */

INLINE void tile_float(TILE_ARGS, const dt_type type) {
    const int line_bytes = type == DT_TYPE_F32 ? 64 : 32;
    const float *x[TILE];
    __m512 y[TILE];
    UNROLL for (int t = 0; t < m; t++) {
        x[t] = act->x + (size_t)(row0 + t) * act->x_stride;
        y[t] = _mm512_setzero_ps();
    }
    for (int i = 0; i < act->k; i++, panel += line_bytes) {
        fetch(panel + ahead_of(m), 1);
        __m512 w;
        if (type == DT_TYPE_F32)
            w = _mm512_loadu_ps(panel);
        else if (type == DT_TYPE_F16)
            w = halves(panel);
        else
            w = _mm512_castsi512_ps(_mm512_slli_epi32(
                _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)panel)),
                16));
        UNROLL for (int t = 0; t < m; t++) y[t] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[t][i]), y[t]);
    }
    UNROLL for (int t = 0; t < m; t++) _mm512_storeu_ps(out + (size_t)t * out_stride, y[t]);
}

TILE_OF(f32, float, DT_TYPE_F32)
TILE_OF(f16, float, DT_TYPE_F16)
TILE_OF(bf16, float, DT_TYPE_BF16)

INT8_TYPES(MATMUL)
FLOAT_TYPES(MATMUL)

void dt_kernels_avx512(dt_kernels *table) {
    INT8_TYPES(MATMUL_SLOT)
    FLOAT_TYPES(MATMUL_SLOT)
    lanes_fill(table);
}
