/* AMX int8 with AVX-512 VNNI (Sapphire Rapids and later): products of many rows. Activations are
 * the signed A tile as they lie; lines of a panel, unpacked into a buffer of 1 KB, are the B tile,
 * whose sums come out as [rows][16 outputs]. An integer scale is multiplied into the bytes of the B
 * tile, digit by digit where the product takes more than a byte, so that a whole super-block adds
 * up inside the tiles (source: the packed layout, cpu/layout.h). Fewer rows are AVX-512's:
 * unpacking costs the same for one row as for 32.
 *
 * No CPU with AMX was at hand: these kernels have been run over the emulation in cpu/amx.h only,
 * where they give the C reference's bits, and have never been timed. */
#include "cpu/amx.h"

#ifdef DT_AMX_EMULATED
#define DT_ISA amx_emulated
#else
#define DT_ISA amx
#endif
#define DT_TILE 8
#include "cpu/tile512.h"

/* A tile's number is a constant of the instruction; the emulation takes it as it comes. */
#ifdef DT_AMX_EMULATED
#define EACH_TILE
#else
#define EACH_TILE UNROLL
#endif

enum { PASS_ROWS = 2 * DT_AMX_ROWS, TILE_BYTES = 16 * DT_LINE };

/* One or two tiles of rows, of one height: where a number is odd they share a row. */
typedef struct pass {
    const dt_act *act;
    int n_rows, n_tiles, height;
    int first[2];
    size_t row0; /* of the activations */
} pass;

INLINE pass pass_of(const dt_act *act, int row0, int n_rows) {
    int n_tiles = n_rows > DT_AMX_ROWS ? 2 : 1;
    int height = (n_rows + n_tiles - 1) / n_tiles;
    return (pass){act, n_rows, n_tiles, height, {0, n_rows - height}, (size_t)row0};
}

typedef int32_t sums_of[PASS_ROWS][16];

/* Adds tile b of each digit times k activations from column `at` on; the sums of digit d are tiles
 * d n_tiles and on. */
INLINE void pass_dot(dt_amx *x, const pass *p, size_t at, const uint8_t (*b)[TILE_BYTES],
    const int n_digits, const bool b_signed) {
    size_t k = (size_t)p->act->k;
    EACH_TILE for (int d = 0; d < n_digits; d++) {
        amx_load_b(x, b[d]);
        EACH_TILE for (int j = 0; j < 2; j++) {
            if (j >= p->n_tiles)
                continue;
            amx_load_a(x, p->act->q + (p->row0 + (size_t)p->first[j]) * k + at, k);
            amx_dot(x, 2 * d + j, b_signed);
        }
    }
}
INLINE void pass_zero(dt_amx *x, const int n_digits) {
    EACH_TILE for (int c = 0; c < 2 * n_digits; c++) amx_zero(x, c);
}
INLINE void pass_store(const dt_amx *x, const pass *p, sums_of *sums, const int n_digits) {
    EACH_TILE for (int d = 0; d < n_digits; d++)
        EACH_TILE for (int j = 0; j < 2; j++) if (j < p->n_tiles)
            amx_store(x, 2 * d + j, sums[d][p->first[j]]);
}

INLINE __m512i load_sums(const int32_t *p) {
    return _mm512_load_si512(p);
}
INLINE void store_line(uint8_t *b, int g, __m512i v) {
    _mm512_store_si512(b + g * DT_LINE, v);
}
/* Scales as int16, twice in each lane: from 16 bytes; the first or second of int16 pairs. */
INLINE __m512i twice(__m512i v) {
    return _mm512_or_si512(
        _mm512_and_si512(v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(v, 16));
}
INLINE __m512i twice_of(__m512i pairs, const bool second) {
    return twice(second ? _mm512_srli_epi32(pairs, 16) : pairs);
}
/* Bytes times words, where no product takes more than its byte; of either sign. */
INLINE __m512i bytes_times(__m512i bytes, __m512i words) {
    const __m512i upper = _mm512_set1_epi16((short)0xff00);
    __m512i low = _mm512_mullo_epi16(bytes, words);
    __m512i high = _mm512_mullo_epi16(_mm512_and_si512(bytes, upper), words);
    return _mm512_ternarylogic_epi32(high, low, upper, 0xf4); /* high | (low & ~upper) */
}
/* Takes the lowest digit, -3 .. 4, off s. */
INLINE __m512i digit_of(__m512i *s) {
    const __m512i three = _mm512_set1_epi16(3), seven = _mm512_set1_epi16(7);
    __m512i d = _mm512_sub_epi16(_mm512_and_si512(_mm512_add_epi16(*s, three), seven), three);
    *s = _mm512_srai_epi16(_mm512_sub_epi16(*s, d), 3);
    return d;
}

/* y = fma(d dx, sum, y) */
INLINE __m512 add_scaled(__m512 y, __m512 d, __m512 dx, __m512i sum) {
    return _mm512_fmadd_ps(_mm512_mul_ps(d, dx), _mm512_cvtepi32_ps(sum), y);
}
INLINE __m512 row_dx(const pass *p, int t, int i) {
    const dt_act *act = p->act;
    size_t n = (size_t)(act->k / act->block);
    return _mm512_set1_ps(act->d[(p->row0 + (size_t)t) * n + (size_t)i]);
}

/* ---- Q4_K, Q5_K: s = 8 h + l, so that bytes are at most 31 * 7 ---- */

INLINE void pass_min_k(
    float *out, size_t out_stride, const uint8_t *panel, const pass *p, const bool fifth) {
    const int block_bytes = fifth ? DT_Q5K_BYTES : DT_Q4K_BYTES;
    const __m512i nibble = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    _Alignas(64) uint8_t b[2][TILE_BYTES];
    _Alignas(64) sums_of sums[2];
    dt_amx x;
    amx_open(&x, p->height, 64);
    for (int i = 0; i < p->act->k / 256; i++, panel += block_bytes) {
        pass_zero(&x, 2);
        for (int n = 0; n < 4; n++) {
            const uint8_t *lines = panel + (fifth ? DT_Q5K_LINES : DT_Q4K_LINES) + n * 8 * DT_LINE;
            fetch(panel + FAR + n * (fifth ? 12 : 10) * DT_LINE, fifth ? 12 : 10);
            UNROLL for (int high = 0; high < 2; high++) {
                const uint8_t *scale = panel + DT_KM_SCALE + (2 * n + high) * 16;
                __m512i s = twice(
                    _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)scale)));
                __m512i l = _mm512_and_si512(s, _mm512_set1_epi16(7)), h = _mm512_srli_epi16(s, 3);
                UNROLL for (int g = 0; g < 8; g++) {
                    __m512i w = shifted(load(lines + g * DT_LINE), -4 * high);
                    w = _mm512_and_si512(w, nibble);
                    if (fifth) {
                        __m512i bits = load(panel + DT_Q5K_FIFTH + g * DT_LINE);
                        bits = _mm512_rorv_epi32(bits, _mm512_set1_epi32(2 * n + high - 4));
                        w = or_masked(w, bits, bit4);
                    }
                    /* No carry goes from byte to byte. */
                    store_line(b[0], 8 * high + g, _mm512_mullo_epi16(w, l));
                    store_line(b[1], 8 * high + g, _mm512_mullo_epi16(w, h));
                }
            }
            pass_dot(&x, p, (size_t)(256 * i + 64 * n), b, 2, false);
        }
        pass_store(&x, p, sums, 2);
        __m512 d = halves(panel), dmin = halves(panel + DT_KM_DMIN);
        __m512i mins[4];
        UNROLL for (int n = 0; n < 4; n++) mins[n] = unsigned_pairs(panel + DT_KM_MIN + n * 32);
        for (int t = 0; t < p->n_rows; t++) {
            const int16_t *sum32 =
                p->act->sum32 + (p->row0 + (size_t)t) * (size_t)(p->act->k / 32) + 8 * i;
            float *to = out + (size_t)t * out_stride;
            __m512 dx = row_dx(p, t, i), y = i ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            __m512i whole = _mm512_add_epi32(
                load_sums(sums[0][t]), _mm512_slli_epi32(load_sums(sums[1][t]), 3));
            __m512i sub = _mm512_setzero_si512();
            UNROLL for (int n = 0; n < 4; n++) sub =
                _mm512_dpwssd_epi32(sub, mins[n], two(sum32 + 2 * n));
            y = add_scaled(y, d, dx, whole);
            y = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, dx), _mm512_cvtepi32_ps(sub), y);
            _mm512_storeu_ps(to, y);
        }
    }
    amx_close(&x);
}

/* ---- Q6_K: s = d0 + 8 d1 + 64 d2, digits -3 .. 4; Q3_K: -(q s) lies in -128 .. 124 ---- */

/* The 16 lines of weights 64 n .. 64 n + 63 of a block. */
INLINE void unpack_q6_K(uint8_t (*b)[TILE_BYTES], const uint8_t *body, const int n) {
    const __m512i nibble = _mm512_set1_epi8(15), bits45 = _mm512_set1_epi8(0x30);
    const int half = n / 2, high = n % 2;
    UNROLL for (int f = 0; f < 2; f++) {
        __m512i pairs = signed_pairs(body + (4 * half + 2 * high + f) * 32);
        UNROLL for (int e = 0; e < 2; e++) {
            const uint8_t *bits = body + DT_Q6K_LINES + (2 * half + e) * DT_Q6K_PART;
            const uint8_t *lines = bits + DT_Q6K_NIBBLES + 4 * f * DT_LINE;
            __m512i s = twice_of(pairs, e), digits[3];
            UNROLL for (int d = 0; d < 3; d++) digits[d] = digit_of(&s);
            UNROLL for (int g = 0; g < 4; g++) {
                __m512i v = load(bits + g * DT_LINE);
                v = _mm512_and_si512(shifted(v, 4 - 2 * f - 4 * high), bits45);
                v = or_masked(v, shifted(load(lines + g * DT_LINE), -4 * high), nibble);
                v = _mm512_sub_epi8(v, _mm512_set1_epi8(32));
                UNROLL for (int d = 0; d < 3; d++)
                    store_line(b[d], 8 * f + 4 * e + g, bytes_times(v, digits[d]));
            }
        }
    }
}

INLINE void unpack_q3_K(uint8_t (*b)[TILE_BYTES], const uint8_t *body, const int n) {
    const __m512i two_bits = _mm512_set1_epi8(3), bit2 = _mm512_set1_epi8(4);
    UNROLL for (int r = 0; r < 2; r++) {
        const int j = 2 * n + r; /* a run of 32 weights, two sub-blocks */
        __m512i pairs = signed_pairs(body + j * 32);
        UNROLL for (int g = 0; g < 8; g++) {
            __m512i low = load(body + DT_Q3K_LINES + (8 * (j / 4) + g) * DT_LINE);
            __m512i bits = load(body + DT_Q3K_THIRD + g * DT_LINE);
            bits = _mm512_rorv_epi32(bits, _mm512_set1_epi32(j - 2));
            __m512i w =
                or_masked(_mm512_and_si512(shifted(low, -2 * (j % 4)), two_bits), bits, bit2);
            w = _mm512_sub_epi8(bit2, w);
            store_line(b[0], 8 * r + g, bytes_times(w, twice_of(pairs, g / 4)));
        }
    }
}

INLINE void pass_signed_k(
    float *out, size_t out_stride, const uint8_t *panel, const pass *p, const bool six) {
    const int body_bytes = six ? DT_Q6K_BODY : DT_Q3K_BODY, n_digits = six ? 3 : 1;
    _Alignas(64) uint8_t b[3][TILE_BYTES];
    _Alignas(64) sums_of sums[3];
    dt_amx x;
    amx_open(&x, p->height, 64);
    for (int i = 0; i < p->act->k / 256; i++) {
        const uint8_t *body = dt_pair_body(panel, body_bytes, i);
        pass_zero(&x, n_digits);
        UNROLL for (int n = 0; n < 4; n++) {
            fetch(body + FAR + n * (six ? 14 : 8) * DT_LINE, six ? 14 : 8);
            if (six)
                unpack_q6_K(b, body, n);
            else
                unpack_q3_K(b, body, n);
            pass_dot(&x, p, (size_t)(256 * i + 64 * n), b, n_digits, true);
        }
        pass_store(&x, p, sums, n_digits);
        __m512 d = halves(dt_pair_d(panel, body_bytes, i));
        for (int t = 0; t < p->n_rows; t++) {
            float *to = out + (size_t)t * out_stride;
            __m512 y = i ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            __m512i whole = load_sums(sums[0][t]);
            if (six) {
                whole = _mm512_add_epi32(whole, _mm512_slli_epi32(load_sums(sums[1][t]), 3));
                whole = _mm512_add_epi32(whole, _mm512_slli_epi32(load_sums(sums[2][t]), 6));
            } else {
                whole = _mm512_sub_epi32(_mm512_setzero_si512(), whole);
            }
            _mm512_storeu_ps(to, add_scaled(y, d, row_dx(p, t, i), whole));
        }
    }
    amx_close(&x);
}

/* ---- blocks of 32, and IQ4_XS, whose levels leave no room for a scale: half a tile at a time ----
 */

INLINE __m512i level_table(void) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)dt_iq4_levels));
}

/* The 8 lines of a block's signed weights. */
INLINE void unpack_32(uint8_t *b, const uint8_t *lines, const form type) {
    const __m512i nibble = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    const __m512i zero = _mm512_set1_epi8(type == Q4_0 ? 8 : type == Q5_0 ? 16 : 0);
    const __m512i bits = form_has_fifth(type) ? load(lines + DT_Q50_FIFTH) : nibble;
    UNROLL for (int g = 0; g < 8; g++) {
        if (type == Q8_0) {
            store_line(b, g, load(lines + g * DT_LINE));
            continue;
        }
        __m512i w = shifted(load(lines + g % 4 * DT_LINE), g < 4 ? 0 : -4);
        w = _mm512_and_si512(w, nibble);
        if (form_has_fifth(type))
            w = or_masked(w, shifted(bits, 4 - g), bit4);
        if (type == IQ4_NL)
            w = _mm512_shuffle_epi8(level_table(), w);
        store_line(b, g, _mm512_sub_epi8(w, zero));
    }
}

INLINE void pass_32(
    float *out, size_t out_stride, const uint8_t *panel, const pass *p, const form type) {
    _Alignas(64) uint8_t b[1][TILE_BYTES];
    _Alignas(64) sums_of sums[1];
    dt_amx x;
    amx_open(&x, p->height, 32);
    for (int i = 0; i < p->act->k / 32; i++) {
        const uint8_t *lines, *d_place = form_block(&lines, panel, i, type);
        fetch(lines + FAR, form_bytes(type) / DT_LINE + !form_has_min(type));
        pass_zero(&x, 1);
        unpack_32(b[0], lines, type);
        pass_dot(&x, p, (size_t)i * 32, b, 1, true);
        pass_store(&x, p, sums, 1);
        __m512 d = halves(d_place), min = form_has_min(type) ? halves(d_place + DT_Q41_M) : d;
        for (int t = 0; t < p->n_rows; t++) {
            float *to = out + (size_t)t * out_stride;
            __m512 dx = row_dx(p, t, i), y = i ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            y = add_scaled(y, d, dx, load_sums(sums[0][t]));
            if (form_has_min(type)) {
                size_t at = (p->row0 + (size_t)t) * (size_t)(p->act->k / 32) + (size_t)i;
                __m512 s = _mm512_set1_ps((float)p->act->sum32[at]);
                y = _mm512_fmadd_ps(_mm512_mul_ps(min, dx), s, y);
            }
            _mm512_storeu_ps(to, y);
        }
    }
    amx_close(&x);
}

INLINE void pass_iq4_xs(float *out, size_t out_stride, const uint8_t *panel, const pass *p) {
    _Alignas(64) uint8_t b[1][TILE_BYTES];
    _Alignas(64) sums_of sums[1], whole;
    dt_amx x;
    amx_open(&x, p->height, 32);
    for (int i = 0; i < p->act->k / 256; i++) {
        const uint8_t *body = dt_pair_body(panel, DT_IQ4XS_BODY, i);
        for (int j = 0; j < 8; j++) {
            __m512i s = signed_pairs(body + j / 2 * 32);
            s = _mm512_srai_epi32(j % 2 ? s : _mm512_slli_epi32(s, 16), 16);
            fetch(body + FAR + j * 4 * DT_LINE, 5);
            pass_zero(&x, 1);
            unpack_32(b[0], body + DT_IQ4XS_LINES + 4 * j * DT_LINE, IQ4_NL);
            pass_dot(&x, p, (size_t)(256 * i + 32 * j), b, 1, true);
            pass_store(&x, p, sums, 1);
            for (int t = 0; t < p->n_rows; t++) {
                __m512i scaled = _mm512_mullo_epi32(load_sums(sums[0][t]), s);
                if (j)
                    scaled = _mm512_add_epi32(scaled, load_sums(whole[t]));
                _mm512_store_si512(whole[t], scaled);
            }
        }
        __m512 d = halves(dt_pair_d(panel, DT_IQ4XS_BODY, i));
        for (int t = 0; t < p->n_rows; t++) {
            float *to = out + (size_t)t * out_stride;
            __m512 y = i ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
            _mm512_storeu_ps(to, add_scaled(y, d, row_dx(p, t, i), load_sums(whole[t])));
        }
    }
    amx_close(&x);
}

/* A kernel: n_rows cut into passes as equal as can be. */
#define AMX_MATMUL(name, call)                                                                     \
    static void NAMED(name, DT_ISA)(float *out, size_t out_stride, const uint8_t *panel,           \
        const dt_act *act, int row0, int n_rows) {                                                 \
        int n_passes = (n_rows + PASS_ROWS - 1) / PASS_ROWS;                                       \
        for (int i = 0; i < n_passes; i++) {                                                       \
            int done = n_rows * i / n_passes, n = n_rows * (i + 1) / n_passes - done;              \
            float *y = out + (size_t)done * out_stride;                                            \
            pass p = pass_of(act, row0 + done, n);                                                 \
            call;                                                                                  \
        }                                                                                          \
    }

AMX_MATMUL(q4_0, pass_32(y, out_stride, panel, &p, Q4_0))
AMX_MATMUL(q4_1, pass_32(y, out_stride, panel, &p, Q4_1))
AMX_MATMUL(q5_0, pass_32(y, out_stride, panel, &p, Q5_0))
AMX_MATMUL(q5_1, pass_32(y, out_stride, panel, &p, Q5_1))
AMX_MATMUL(q8_0, pass_32(y, out_stride, panel, &p, Q8_0))
AMX_MATMUL(iq4_nl, pass_32(y, out_stride, panel, &p, IQ4_NL))
AMX_MATMUL(iq4_xs, pass_iq4_xs(y, out_stride, panel, &p))
AMX_MATMUL(q3_K, pass_signed_k(y, out_stride, panel, &p, false))
AMX_MATMUL(q6_K, pass_signed_k(y, out_stride, panel, &p, true))
AMX_MATMUL(q4_K, pass_min_k(y, out_stride, panel, &p, false))
AMX_MATMUL(q5_K, pass_min_k(y, out_stride, panel, &p, true))

#define MANY_SLOT(id, name) table->matmul_many[DT_TYPE_##id] = NAMED(name, DT_ISA);

#ifdef DT_AMX_EMULATED
void dt_kernels_amx_emulated(dt_kernels *table) {
#else
void dt_kernels_amx(dt_kernels *table) {
#endif
    INT8_TYPES(MANY_SLOT)
}
