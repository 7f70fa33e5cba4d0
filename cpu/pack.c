#include "cpu/pack.h"

#include <string.h>

#include "cpu/layout.h"

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

enum { ROWS = DT_PANEL_ROWS };

/* How the blocks of a type are laid out in a panel. */
typedef struct shape {
    int bytes; /* of a block, or of its body where blocks go in pairs; 0: a float type */
    bool pairs;
} shape;

static shape shape_of(dt_type type) {
    switch (type) {
    case DT_TYPE_Q3_K:
        return (shape){DT_Q3K_BODY, true};
    case DT_TYPE_Q4_K:
        return (shape){DT_Q4K_BYTES, false};
    case DT_TYPE_Q5_K:
        return (shape){DT_Q5K_BYTES, false};
    case DT_TYPE_Q6_K:
        return (shape){DT_Q6K_BODY, true};
    case DT_TYPE_IQ4_XS:
        return (shape){DT_IQ4XS_BODY, true};
    case DT_TYPE_Q4_0:
    case DT_TYPE_IQ4_NL:
        return (shape){DT_Q40_BODY, true};
    case DT_TYPE_Q4_1:
        return (shape){DT_Q41_BYTES, false};
    case DT_TYPE_Q5_0:
        return (shape){DT_Q50_BODY, true};
    case DT_TYPE_Q5_1:
        return (shape){DT_Q51_BYTES, false};
    case DT_TYPE_Q8_0:
        return (shape){DT_Q80_BODY, true};
    default:
        return (shape){0, false};
    }
}

size_t dt_pack_panel_bytes(dt_type type, int k) {
    shape s = shape_of(type);
    if (s.bytes == 0)
        return dt_round_up((size_t)k * (size_t)dt_type_block_bytes(type) * ROWS, DT_LINE);
    size_t n_blocks = (size_t)(k / dt_type_block(type));
    return n_blocks * (size_t)s.bytes + (s.pairs ? (n_blocks + 1) / 2 * DT_LINE : 0);
}

/* `n` words of 4 bytes of row r, to the same place of n lines, and back. The compiler sees moves of
 * registers; a store a cycle is several times what a file delivers. */
static inline __attribute__((always_inline)) void put_words(
    uint8_t *lines, const uint8_t *src, const int n, int r) {
    UNROLL for (int i = 0; i < n; i++) memcpy(lines + i * DT_LINE + 4 * r, src + 4 * i, 4);
}
static inline void get_words(uint8_t *dst, const uint8_t *lines, int n, int r) {
    for (int i = 0; i < n; i++)
        memcpy(dst + 4 * i, lines + i * DT_LINE + 4 * r, 4);
}

/* The 12 bytes of 6-bit scales and minima of Q4_K and Q5_K: four scales, four minima, then the low
 * nibbles of the other four of each, whose upper 2 bits lie above the first eight. */
static inline void put_scale_min(uint8_t *scale, uint8_t *min_pair, const uint8_t s[12], int r) {
    uint32_t a, b, c;
    memcpy(&a, s, 4);
    memcpy(&b, s + 4, 4);
    memcpy(&c, s + 8, 4);
    uint32_t word[4] = {a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030), b & 0x3f3f3f3f,
        ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030)};
    uint8_t v[16];
    memcpy(v, word, sizeof v);
    UNROLL for (int j = 0; j < 8; j++) scale[j * ROWS + r] = v[j];
    UNROLL for (int p = 0; p < 4; p++) memcpy(min_pair + p * 2 * ROWS + 2 * r, v + 8 + 2 * p, 2);
}

static void get_scale_min(uint8_t s[12], const uint8_t *scale, const uint8_t *min_pair, int r) {
    uint8_t d[8], m[8];
    for (int j = 0; j < 8; j++) {
        d[j] = scale[j * ROWS + r];
        m[j] = min_pair[(j / 2) * 2 * ROWS + 2 * r + j % 2];
    }
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(d[j] | (d[j + 4] >> 4) << 6);
        s[j + 4] = (uint8_t)(m[j] | (m[j + 4] >> 4) << 6);
        s[j + 8] = (uint8_t)((d[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

/* Scales of 16 sub-blocks as pairs. */
static inline void put_scale_pairs(uint8_t *pair, const uint8_t v[16], int r) {
    UNROLL for (int p = 0; p < 8; p++) memcpy(pair + p * 2 * ROWS + 2 * r, v + 2 * p, 2);
}
static inline void get_scale_pairs(uint8_t v[16], const uint8_t *pair, int r) {
    for (int p = 0; p < 8; p++)
        memcpy(v + 2 * p, pair + p * 2 * ROWS + 2 * r, 2);
}

/* The 12 bytes of Q3_K's 16 scales: low nibbles of 0..7 and 8..15 in 8 bytes, then in 4 bytes the
 * upper 2 bits: byte i, field f = scale 4f + i. Out: less 32. */
static inline void unpack_q3k_scale(uint8_t v[16], const uint8_t s[12]) {
    uint32_t a, b, c, word[4];
    memcpy(&a, s, 4);
    memcpy(&b, s + 4, 4);
    memcpy(&c, s + 8, 4);
    word[0] = (a & 0x0f0f0f0f) | ((c << 4) & 0x30303030);
    word[1] = (b & 0x0f0f0f0f) | ((c << 2) & 0x30303030);
    word[2] = ((a >> 4) & 0x0f0f0f0f) | (c & 0x30303030);
    word[3] = ((b >> 4) & 0x0f0f0f0f) | ((c >> 2) & 0x30303030);
    for (int i = 0; i < 4; i++) { /* less 32: bit 5 turned round, then its copies as the sign */
        uint32_t w = word[i] ^ 0x20202020, sign = w & 0x20202020;
        word[i] = w | sign << 1 | sign << 2;
    }
    memcpy(v, word, sizeof word);
}
static void repack_q3k_scale(uint8_t s[12], const uint8_t v[16]) {
    memset(s, 0, 12);
    for (int j = 0; j < 16; j++) {
        int scale = (uint8_t)(v[j] + 32);
        s[j % 8] |= (uint8_t)((scale & 15) << (j < 8 ? 0 : 4));
        s[8 + j % 4] |= (uint8_t)((scale >> 4) << (2 * (j / 4)));
    }
}

/* The 32 fifth bits of Q5_0 and Q5_1: bit i = weight i becomes byte c, bit g = weight 4g + c. Two
 * bytes at a time: the bits 4 apart are pulled together by halving the gaps. */
static inline uint32_t put_fifth(uint32_t bits) {
    uint64_t out = 0;
    for (int c = 0; c < 4; c += 2) {
        uint64_t next = (bits >> (c + 1)) & 0x11111111u;
        uint64_t x = ((bits >> c) & 0x11111111u) | next << 32;
        x = (x | x >> 3) & 0x0303030303030303u;
        x = (x | x >> 6) & 0x000f000f000f000fu;
        x = (x | x >> 12) & 0x000000ff000000ffu;
        out |= ((x | x >> 24) & 0xffff) << (8 * c);
    }
    return (uint32_t)out;
}
static uint32_t get_fifth(uint32_t planes) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= ((planes >> (8 * (i % 4) + i / 4)) & 1) << i;
    return bits;
}

/* One row's block into its places and back; `d` is where the block's d[16] lies, `b` the block or
 * body. */
typedef void (*put_fn)(uint8_t *d, uint8_t *b, const uint8_t *src, int r);
typedef void (*get_fn)(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r);

static void put_q4k(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src, 2);
    memcpy(b + DT_KM_DMIN + 2 * r, src + 2, 2);
    put_scale_min(b + DT_KM_SCALE, b + DT_KM_MIN, src + 4, r);
    put_words(b + DT_Q4K_LINES, src + 16, 32, r);
}
static void get_q4k(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst, d + 2 * r, 2);
    memcpy(dst + 2, b + DT_KM_DMIN + 2 * r, 2);
    get_scale_min(dst + 4, b + DT_KM_SCALE, b + DT_KM_MIN, r);
    get_words(dst + 16, b + DT_Q4K_LINES, 32, r);
}

static void put_q5k(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src, 2);
    memcpy(b + DT_KM_DMIN + 2 * r, src + 2, 2);
    put_scale_min(b + DT_KM_SCALE, b + DT_KM_MIN, src + 4, r);
    put_words(b + DT_Q5K_FIFTH, src + 16, 8, r);
    put_words(b + DT_Q5K_LINES, src + 48, 32, r);
}
static void get_q5k(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst, d + 2 * r, 2);
    memcpy(dst + 2, b + DT_KM_DMIN + 2 * r, 2);
    get_scale_min(dst + 4, b + DT_KM_SCALE, b + DT_KM_MIN, r);
    get_words(dst + 16, b + DT_Q5K_FIFTH, 8, r);
    get_words(dst + 48, b + DT_Q5K_LINES, 32, r);
}

static void put_q6k(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src + 208, 2);
    put_scale_pairs(b, src + 192, r);
    UNROLL for (int he = 0; he < 4; he++) {
        uint8_t *part = b + DT_Q6K_LINES + he * DT_Q6K_PART;
        const uint8_t *low = src + he / 2 * 64 + he % 2 * 16;
        put_words(part, src + 128 + he * 16, 4, r);
        put_words(part + DT_Q6K_NIBBLES, low, 4, r);
        put_words(part + DT_Q6K_NIBBLES + 4 * DT_LINE, low + 32, 4, r);
    }
}
static void get_q6k(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst + 208, d + 2 * r, 2);
    get_scale_pairs(dst + 192, b, r);
    for (int he = 0; he < 4; he++) {
        const uint8_t *part = b + DT_Q6K_LINES + he * DT_Q6K_PART;
        uint8_t *low = dst + he / 2 * 64 + he % 2 * 16;
        get_words(dst + 128 + he * 16, part, 4, r);
        get_words(low, part + DT_Q6K_NIBBLES, 4, r);
        get_words(low + 32, part + DT_Q6K_NIBBLES + 4 * DT_LINE, 4, r);
    }
}

static void put_q3k(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    uint8_t scale[16];
    unpack_q3k_scale(scale, src + 96);
    memcpy(d + 2 * r, src + 108, 2);
    put_scale_pairs(b, scale, r);
    put_words(b + DT_Q3K_LINES, src + 32, 16, r);
    put_words(b + DT_Q3K_THIRD, src, 8, r);
}
static void get_q3k(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    uint8_t scale[16];
    memcpy(dst + 108, d + 2 * r, 2);
    get_scale_pairs(scale, b, r);
    repack_q3k_scale(dst + 96, scale);
    get_words(dst + 32, b + DT_Q3K_LINES, 16, r);
    get_words(dst, b + DT_Q3K_THIRD, 8, r);
}

/* Scales: low nibbles in 4 bytes, upper 2 bits in 16 bits before them. Out: less 32. */
static void put_iq4xs(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    int high = src[2] | src[3] << 8;
    memcpy(d + 2 * r, src, 2);
    UNROLL for (int p = 0; p < 4; p++) {
        uint8_t *pair = b + p * 2 * ROWS + 2 * r;
        pair[0] = (uint8_t)(((src[4 + p] & 15) | ((high >> (4 * p)) & 3) << 4) - 32);
        pair[1] = (uint8_t)((src[4 + p] >> 4 | ((high >> (4 * p + 2)) & 3) << 4) - 32);
    }
    put_words(b + DT_IQ4XS_LINES, src + 8, 32, r);
}
static void get_iq4xs(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    int high = 0;
    memcpy(dst, d + 2 * r, 2);
    for (int p = 0; p < 4; p++) {
        const uint8_t *pair = b + p * 2 * ROWS + 2 * r;
        int s0 = (uint8_t)(pair[0] + 32), s1 = (uint8_t)(pair[1] + 32);
        dst[4 + p] = (uint8_t)((s0 & 15) | (s1 & 15) << 4);
        high |= (s0 >> 4 | s1 >> 4 << 2) << (4 * p);
    }
    dst[2] = (uint8_t)high;
    dst[3] = (uint8_t)(high >> 8);
    get_words(dst + 8, b + DT_IQ4XS_LINES, 32, r);
}

static void put_q40(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src, 2);
    put_words(b, src + 2, 4, r);
}
static void get_q40(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst, d + 2 * r, 2);
    get_words(dst + 2, b, 4, r);
}

static void put_q41(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src, 2);
    memcpy(b + DT_Q41_M + 2 * r, src + 2, 2);
    put_words(b + DT_Q41_LINES, src + 4, 4, r);
}
static void get_q41(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst, d + 2 * r, 2);
    memcpy(dst + 2, b + DT_Q41_M + 2 * r, 2);
    get_words(dst + 4, b + DT_Q41_LINES, 4, r);
}

static void put_q50(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    uint32_t bits;
    memcpy(&bits, src + 2, 4);
    bits = put_fifth(bits);
    memcpy(d + 2 * r, src, 2);
    memcpy(b + DT_Q50_FIFTH + 4 * r, &bits, 4);
    put_words(b, src + 6, 4, r);
}
static void get_q50(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    uint32_t bits;
    memcpy(&bits, b + DT_Q50_FIFTH + 4 * r, 4);
    bits = get_fifth(bits);
    memcpy(dst, d + 2 * r, 2);
    memcpy(dst + 2, &bits, 4);
    get_words(dst + 6, b, 4, r);
}

static void put_q51(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    uint32_t bits;
    memcpy(&bits, src + 4, 4);
    bits = put_fifth(bits);
    memcpy(d + 2 * r, src, 2);
    memcpy(b + DT_Q41_M + 2 * r, src + 2, 2);
    memcpy(b + DT_Q41_FIFTH + 4 * r, &bits, 4);
    put_words(b + DT_Q41_LINES, src + 8, 4, r);
}
static void get_q51(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    uint32_t bits;
    memcpy(&bits, b + DT_Q41_FIFTH + 4 * r, 4);
    bits = get_fifth(bits);
    memcpy(dst, d + 2 * r, 2);
    memcpy(dst + 2, b + DT_Q41_M + 2 * r, 2);
    memcpy(dst + 4, &bits, 4);
    get_words(dst + 8, b + DT_Q41_LINES, 4, r);
}

static void put_q80(uint8_t *d, uint8_t *b, const uint8_t *src, int r) {
    memcpy(d + 2 * r, src, 2);
    put_words(b, src + 2, 8, r);
}
static void get_q80(uint8_t *dst, const uint8_t *d, const uint8_t *b, int r) {
    memcpy(dst, d + 2 * r, 2);
    get_words(dst + 2, b, 8, r);
}

/* The loop over blocks and rows; inlined with a constant type, so that `put` is no call. */
static inline __attribute__((always_inline)) void pack_blocks(uint8_t *out, const uint8_t *rows,
    size_t row_bytes, int n_valid, int n_blocks, dt_type type, put_fn put) {
    shape s = shape_of(type);
    int block_bytes = dt_type_block_bytes(type);
    for (int i = 0; i < n_blocks; i++) {
        size_t d = s.pairs ? (size_t)(dt_pair_d(out, s.bytes, i) - out) : (size_t)(i * s.bytes);
        size_t b = s.pairs ? (size_t)(dt_pair_body(out, s.bytes, i) - out) : d;
        const uint8_t *src = rows + (size_t)i * (size_t)block_bytes;
        for (int r = 0; r < n_valid; r++)
            put(out + d, out + b, src + (size_t)r * row_bytes, r);
    }
}

/* [rows][k] to [k][16] by tiles of columns, so that the lines of a tile stay in the L1 cache. */
static inline __attribute__((always_inline)) void pack_floats(
    uint8_t *out, const uint8_t *rows, size_t row_bytes, int n_valid, int k, const size_t size) {
    enum { COLUMNS = 32 };
    for (int i0 = 0; i0 < k; i0 += COLUMNS) {
        uint8_t *lines = out + (size_t)i0 * ROWS * size;
        int n = DT_MIN(COLUMNS, k - i0);
        for (int r = 0; r < n_valid; r++) {
            const uint8_t *src = rows + (size_t)r * row_bytes + (size_t)i0 * size;
            uint8_t *to = lines + (size_t)r * size;
            if (n == COLUMNS)
                UNROLL for (size_t i = 0; i < COLUMNS; i++)
                    memcpy(to + i * ROWS * size, src + i * size, size);
            else
                for (size_t i = 0; i < (size_t)n; i++)
                    memcpy(to + i * ROWS * size, src + i * size, size);
        }
    }
}

void dt_pack_panel(uint8_t *out, const dt_tensor *tensor, int i_panel) {
    dt_type type = tensor->type;
    int k = (int)tensor->ne[0];
    int64_t row0 = (int64_t)i_panel * ROWS;
    int n = (int)DT_MIN(tensor->ne[1] - row0, ROWS);
    size_t row_bytes = dt_type_row_bytes(type, k);
    const uint8_t *rows = (const uint8_t *)tensor->data + (size_t)row0 * row_bytes;
    int n_blocks = k / dt_type_block(type);
    /* Rows beyond the tensor are zero bytes: d = 0, so their outputs are 0. An odd number of blocks
     * leaves a hole in the last pair. */
    if (n < ROWS || n_blocks % 2)
        memset(out, 0, dt_pack_panel_bytes(type, k));
    switch (type) {
    case DT_TYPE_Q3_K:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q3_K, put_q3k);
        break;
    case DT_TYPE_Q4_K:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q4_K, put_q4k);
        break;
    case DT_TYPE_Q5_K:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q5_K, put_q5k);
        break;
    case DT_TYPE_Q6_K:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q6_K, put_q6k);
        break;
    case DT_TYPE_IQ4_XS:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_IQ4_XS, put_iq4xs);
        break;
    case DT_TYPE_IQ4_NL: /* the same bytes as Q4_0 */
    case DT_TYPE_Q4_0:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q4_0, put_q40);
        break;
    case DT_TYPE_Q4_1:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q4_1, put_q41);
        break;
    case DT_TYPE_Q5_0:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q5_0, put_q50);
        break;
    case DT_TYPE_Q5_1:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q5_1, put_q51);
        break;
    case DT_TYPE_Q8_0:
        pack_blocks(out, rows, row_bytes, n, n_blocks, DT_TYPE_Q8_0, put_q80);
        break;
    case DT_TYPE_F32:
        pack_floats(out, rows, row_bytes, n, k, 4);
        break;
    default: /* F16, BF16 */
        pack_floats(out, rows, row_bytes, n, k, 2);
        break;
    }
}

/* Puts the file's block together again and leaves the formula to the one who owns it. */
void dt_pack_dequantise(float *out, const dt_packed *packed, int i_row) {
    static const get_fn gets[DT_TYPE_COUNT] = {
        [DT_TYPE_Q3_K] = get_q3k,
        [DT_TYPE_Q4_K] = get_q4k,
        [DT_TYPE_Q5_K] = get_q5k,
        [DT_TYPE_Q6_K] = get_q6k,
        [DT_TYPE_IQ4_XS] = get_iq4xs,
        [DT_TYPE_IQ4_NL] = get_q40,
        [DT_TYPE_Q4_0] = get_q40,
        [DT_TYPE_Q4_1] = get_q41,
        [DT_TYPE_Q5_0] = get_q50,
        [DT_TYPE_Q5_1] = get_q51,
        [DT_TYPE_Q8_0] = get_q80,
    };
    dt_type type = packed->type;
    shape s = shape_of(type);
    const uint8_t *panel = packed->data + (size_t)(i_row / ROWS) * packed->panel_bytes;
    int r = i_row % ROWS, n_weights = dt_type_block(type);
    uint8_t block[256];
    for (int i = 0; i < packed->k / n_weights; i++) {
        if (s.bytes == 0) {
            size_t size = (size_t)dt_type_block_bytes(type);
            memcpy(block, panel + (size_t)(i * ROWS + r) * size, size);
        } else {
            const uint8_t *b =
                s.pairs ? dt_pair_body(panel, s.bytes, i) : panel + (size_t)i * (size_t)s.bytes;
            gets[type](block, s.pairs ? dt_pair_d(panel, s.bytes, i) : b, b, r);
        }
        dt_dequantise(out + (size_t)i * (size_t)n_weights, block, type, n_weights);
    }
}
