#include "src/base/dtype.h"

#include <stdio.h>
#include <string.h>

/* Every id the format has given out, the withdrawn ones too: a file that uses one gets its name in
 * the message. */
static const char *const type_names[] = {
    [0] = "F32",
    [1] = "F16",
    [2] = "Q4_0",
    [3] = "Q4_1",
    [4] = "Q4_2",
    [5] = "Q4_3",
    [6] = "Q5_0",
    [7] = "Q5_1",
    [8] = "Q8_0",
    [9] = "Q8_1",
    [10] = "Q2_K",
    [11] = "Q3_K",
    [12] = "Q4_K",
    [13] = "Q5_K",
    [14] = "Q6_K",
    [15] = "Q8_K",
    [16] = "IQ2_XXS",
    [17] = "IQ2_XS",
    [18] = "IQ3_XXS",
    [19] = "IQ1_S",
    [20] = "IQ4_NL",
    [21] = "IQ3_S",
    [22] = "IQ2_S",
    [23] = "IQ4_XS",
    [24] = "I8",
    [25] = "I16",
    [26] = "I32",
    [27] = "I64",
    [28] = "F64",
    [29] = "IQ1_M",
    [30] = "BF16",
    [31] = "Q4_0_4_4",
    [32] = "Q4_0_4_8",
    [33] = "Q4_0_8_8",
    [34] = "TQ1_0",
    [35] = "TQ2_0",
    [36] = "IQ4_NL_4_4",
    [37] = "IQ4_NL_4_8",
    [38] = "IQ4_NL_8_8",
    [39] = "MXFP4",
    [40] = "NVFP4",
    [41] = "Q1_0",
};

/* Weights and bytes of a block; zero for what this program does not read. */
static const struct {
    int n_weights;
    int n_bytes;
} type_blocks[DT_TYPE_COUNT] = {
    [DT_TYPE_F32] = {1, 4},
    [DT_TYPE_F16] = {1, 2},
    [DT_TYPE_BF16] = {1, 2},
    [DT_TYPE_Q4_0] = {32, 2 + 16},
    [DT_TYPE_Q4_1] = {32, 2 + 2 + 16},
    [DT_TYPE_Q5_0] = {32, 2 + 4 + 16},
    [DT_TYPE_Q5_1] = {32, 2 + 2 + 4 + 16},
    [DT_TYPE_Q8_0] = {32, 2 + 32},
    [DT_TYPE_Q3_K] = {256, 32 + 64 + 12 + 2},
    [DT_TYPE_Q4_K] = {256, 2 + 2 + 12 + 128},
    [DT_TYPE_Q5_K] = {256, 2 + 2 + 12 + 32 + 128},
    [DT_TYPE_Q6_K] = {256, 128 + 64 + 16 + 2},
    [DT_TYPE_IQ4_NL] = {32, 2 + 16},
    [DT_TYPE_IQ4_XS] = {256, 2 + 2 + 4 + 128},
};

const int8_t dt_iq4_levels[16] = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

const char *dt_type_name(uint32_t type) {
    static _Thread_local char unknown[24];
    if (type < DT_COUNT(type_names))
        return type_names[type];
    snprintf(unknown, sizeof unknown, "type %u", (unsigned)type);
    return unknown;
}

bool dt_type_known(uint32_t type) {
    return type < DT_TYPE_COUNT && type_blocks[type].n_weights > 0;
}

int dt_type_block(dt_type type) {
    return type_blocks[type].n_weights;
}

int dt_type_block_bytes(dt_type type) {
    return type_blocks[type].n_bytes;
}

float dt_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t rest = (uint32_t)(h & 0x7fff) << 13;
    uint32_t u;
    if (rest >= 0x0f800000) { /* infinity or NaN; like F16C, a signalling NaN becomes quiet */
        u = rest + 0x70000000;
        if (rest > 0x0f800000)
            u |= 0x00400000;
    } else if (rest >= 0x00800000) {
        u = rest + 0x38000000; /* the exponent's bias, 127 - 15 */
    } else {
        /* Zero and subnormals: mantissa units of 2^-24, exact in float32. */
        float f = (float)(h & 0x3ff) * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
    }
    u |= sign;
    float out;
    memcpy(&out, &u, sizeof out);
    return out;
}

uint16_t dt_f32_to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) /* NaN: the payload's upper bits stay, quiet, as F16C does it */
        return (uint16_t)(sign | 0x7e00 | ((u >> 13) & 0x3ff));
    if (u >= 0x477ff000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (u >= 0x38800000) {
        u += 0xfff + ((u >> 13) & 1);
        return (uint16_t)(sign | ((u - 0x38000000) >> 13));
    }
    if (u < 0x33000000) /* below 2^-25: zero; 2^-25 itself is a tie that goes to even zero below */
        return (uint16_t)sign;
    /* Subnormal: units of 2^-24. The shift is 14 .. 24. */
    uint32_t mantissa = (u & 0x7fffff) | 0x800000;
    uint32_t shift = 126 - (u >> 23);
    uint32_t units = mantissa >> shift;
    uint32_t cut = mantissa & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    if (cut > half || (cut == half && (units & 1)))
        units++;
    return (uint16_t)(sign | units);
}

/* Rows of a file are aligned to nothing in particular. */
static float load_f16(const uint8_t *p) {
    return dt_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The 6-bit scale and minimum of sub-block j (0 .. 7) of Q4_K and Q5_K, out of 12 bytes. */
static void scale_min(int *scale, int *min, const uint8_t s[12], int j) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

static void block_q4_0(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)((b[2 + i] & 15) - 8) * d;
        out[i + 16] = (float)((b[2 + i] >> 4) - 8) * d;
    }
}

static void block_q4_1(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b), m = load_f16(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)(b[4 + i] & 15) * d + m;
        out[i + 16] = (float)(b[4 + i] >> 4) * d + m;
    }
}

static void block_q5_0(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b);
    uint32_t high = load_u32(b + 2);
    for (int i = 0; i < 16; i++) {
        int q0 = (b[6 + i] & 15) | (int)((high >> i) & 1) << 4;
        int q1 = b[6 + i] >> 4 | (int)((high >> (i + 16)) & 1) << 4;
        out[i] = (float)(q0 - 16) * d;
        out[i + 16] = (float)(q1 - 16) * d;
    }
}

static void block_q5_1(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b), m = load_f16(b + 2);
    uint32_t high = load_u32(b + 4);
    for (int i = 0; i < 16; i++) {
        int q0 = (b[8 + i] & 15) | (int)((high >> i) & 1) << 4;
        int q1 = b[8 + i] >> 4 | (int)((high >> (i + 16)) & 1) << 4;
        out[i] = (float)q0 * d + m;
        out[i + 16] = (float)q1 * d + m;
    }
}

static void block_q8_0(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b);
    for (int i = 0; i < 32; i++)
        out[i] = (float)(int8_t)b[2 + i] * d;
}

/* hmask[32], q[64], scales[12], d. Weight w lies in half w / 128, 2-bit field (w / 32) % 4, byte
 * w % 32; its third bit is bit w / 32 of hmask[w % 32], and absent means -4. */
static void block_q3_k(float *restrict out, const uint8_t *restrict b) {
    const uint8_t *hmask = b, *q = b + 32, *s = b + 96;
    float d = load_f16(b + 108);
    for (int j = 0; j < 16; j++) { /* sub-blocks of 16 weights */
        int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
        int scale = (low | ((s[8 + j % 4] >> (2 * (j / 4))) & 3) << 4) - 32;
        float d1 = d * (float)scale;
        for (int i = 0; i < 16; i++) {
            int w = 16 * j + i;
            int low2 = (q[32 * (w / 128) + w % 32] >> (2 * ((w / 32) % 4))) & 3;
            int high = (hmask[w % 32] >> (w / 32)) & 1;
            out[w] = d1 * (float)(low2 + 4 * high - 4);
        }
    }
}

/* d, dmin, scales[12], q[128]: of 64 weights the first 32 in the low nibbles. */
static void block_q4_k(float *restrict out, const uint8_t *restrict b) {
    const uint8_t *q = b + 16;
    float d = load_f16(b), dmin = load_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(&scale, &min, b + 4, j);
        float d1 = d * (float)scale, m1 = dmin * (float)min;
        for (int i = 0; i < 32; i++) {
            int w = (q[32 * (j / 2) + i] >> (4 * (j % 2))) & 15;
            out[32 * j + i] = d1 * (float)w - m1;
        }
    }
}

/* d, dmin, scales[12], high[32], q[128]: the fifth bit of sub-block j is bit j of high[]. */
static void block_q5_k(float *restrict out, const uint8_t *restrict b) {
    const uint8_t *high = b + 16, *q = b + 48;
    float d = load_f16(b), dmin = load_f16(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, min;
        scale_min(&scale, &min, b + 4, j);
        float d1 = d * (float)scale, m1 = dmin * (float)min;
        for (int i = 0; i < 32; i++) {
            int w = ((q[32 * (j / 2) + i] >> (4 * (j % 2))) & 15) | ((high[i] >> j) & 1) << 4;
            out[32 * j + i] = d1 * (float)w - m1;
        }
    }
}

/* ql[128], qh[64], scales[16], d. Of each half of 128 weights, 32-groups g = 0 .. 3: the low four
 * bits in nibble g / 2 of ql[32 (g % 2) ..], the upper two in field g of qh[]. */
static void block_q6_k(float *restrict out, const uint8_t *restrict b) {
    const int8_t *scales = (const int8_t *)b + 192;
    float d = load_f16(b + 208);
    for (int run = 0; run < 16; run++) {
        int half = run / 8, g = run / 2 % 4, first = run % 2 * 16;
        const uint8_t *ql = b + 64 * half + 32 * (g % 2) + first;
        const uint8_t *qh = b + 128 + 32 * half + first;
        float d1 = d * (float)scales[run];
        for (int i = 0; i < 16; i++) {
            int w = ((ql[i] >> (4 * (g / 2))) & 15) | ((qh[i] >> (2 * g)) & 3) << 4;
            out[16 * run + i] = d1 * (float)(w - 32);
        }
    }
}

static void block_iq4_nl(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b);
    for (int i = 0; i < 16; i++) {
        out[i] = (float)dt_iq4_levels[b[2 + i] & 15] * d;
        out[i + 16] = (float)dt_iq4_levels[b[2 + i] >> 4] * d;
    }
}

/* d, 16 bits with the upper two of each scale, scales_l[4], q[128]: sub-block j has its scale's low
 * nibble in nibble j of scales_l and its own 16 bytes, weights 0 .. 15 in the low nibbles. */
static void block_iq4_xs(float *restrict out, const uint8_t *restrict b) {
    float d = load_f16(b);
    int high = b[2] | b[3] << 8;
    for (int j = 0; j < 8; j++) {
        const uint8_t *q = b + 8 + 16 * j;
        int low = (b[4 + j / 2] >> (4 * (j % 2))) & 15;
        float d1 = d * (float)((low | ((high >> (2 * j)) & 3) << 4) - 32);
        for (int i = 0; i < 16; i++) {
            out[32 * j + i] = d1 * (float)dt_iq4_levels[q[i] & 15];
            out[32 * j + 16 + i] = d1 * (float)dt_iq4_levels[q[i] >> 4];
        }
    }
}

void dt_dequantise(float *out, const void *row, dt_type type, int64_t n) {
    typedef void (*block_fn)(float *out, const uint8_t *b);
    static const block_fn block_fns[DT_TYPE_COUNT] = {
        [DT_TYPE_Q4_0] = block_q4_0,
        [DT_TYPE_Q4_1] = block_q4_1,
        [DT_TYPE_Q5_0] = block_q5_0,
        [DT_TYPE_Q5_1] = block_q5_1,
        [DT_TYPE_Q8_0] = block_q8_0,
        [DT_TYPE_Q3_K] = block_q3_k,
        [DT_TYPE_Q4_K] = block_q4_k,
        [DT_TYPE_Q5_K] = block_q5_k,
        [DT_TYPE_Q6_K] = block_q6_k,
        [DT_TYPE_IQ4_NL] = block_iq4_nl,
        [DT_TYPE_IQ4_XS] = block_iq4_xs,
    };
    const uint8_t *b = row;
    if (type == DT_TYPE_F32) {
        memcpy(out, row, (size_t)n * sizeof *out);
    } else if (type == DT_TYPE_F16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = load_f16(b + 2 * i);
    } else if (type == DT_TYPE_BF16) {
        for (int64_t i = 0; i < n; i++)
            out[i] = dt_bf16_to_f32((uint16_t)(b[2 * i] | b[2 * i + 1] << 8));
    } else {
        int n_weights = dt_type_block(type), n_bytes = dt_type_block_bytes(type);
        for (int64_t i = 0; i < n / n_weights; i++)
            block_fns[type](out + i * n_weights, b + i * n_bytes);
    }
}
