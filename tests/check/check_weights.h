/* Random rows of a GGUF tensor, and their weights in double straight from the file's bytes: a
 * second reading of the format, independent of dtype.c and of the packed layout. */
#ifndef DT_TESTS_CHECK_WEIGHTS_H
#define DT_TESTS_CHECK_WEIGHTS_H

#include <math.h>

#include "tests/check/check.h"

static inline double weights_half(const uint8_t *p) {
    int h = p[0] | p[1] << 8, exponent = (h >> 10) & 31, mantissa = h & 1023;
    double v = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return h & 0x8000 ? -v : v;
}

/* A finite half: mostly an ordinary scale, now and then zero, subnormal or huge. */
static inline void weights_random_half(uint8_t *p, test_rng *rng) {
    uint32_t pick = test_rng_below(rng, 32);
    uint32_t h = 0x1000 + test_rng_below(rng, 0x1800); /* 2^-11 .. 2^-5 */
    if (pick == 0)
        h = 0;
    else if (pick == 1)
        h = test_rng_below(rng, 1024);
    else if (pick == 2)
        h = 0x7bff - test_rng_below(rng, 16);
    h |= test_rng_below(rng, 4) == 0 ? 0x8000 : 0;
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

/* One block. `kind`: 0 random, 1 all bits one (largest weights and scales), 2 all zero, 3 bytes of
 * 0x80 (the most negative int8 in Q8_0 and in Q6_K's scales), 4 largest weights, random scales. */
static inline void weights_random_block(uint8_t *b, dt_type type, int kind, test_rng *rng) {
    int n = dt_type_block_bytes(type);
    for (int i = 0; i < n; i++)
        b[i] = kind == 1 ? 0xff : kind == 2 ? 0 : kind == 3 ? 0x80 : (uint8_t)test_rng_next(rng);
    if (kind == 4 && type == DT_TYPE_Q6_K)
        memset(b, 0xff, 192);
    if (kind == 4 && type == DT_TYPE_Q3_K)
        memset(b, 0xff, 96);
    if (kind == 4 && type == DT_TYPE_IQ4_XS) /* the lowest level is the largest */
        memset(b + 8, 0, 128);
    switch (type) {
    case DT_TYPE_Q3_K:
        weights_random_half(b + 108, rng);
        break;
    case DT_TYPE_Q6_K:
        if (kind == 1) /* 0xff would be a scale of -1 */
            memset(b + 192, test_rng_below(rng, 2) ? 0x7f : 0x80, 16);
        weights_random_half(b + 208, rng);
        break;
    case DT_TYPE_Q4_1:
    case DT_TYPE_Q5_1:
    case DT_TYPE_Q4_K:
    case DT_TYPE_Q5_K:
        weights_random_half(b + 2, rng);
        weights_random_half(b, rng);
        break;
    default:
        weights_random_half(b, rng);
        break;
    }
}

/* [n_out][k] of `type` as a file has them. */
static inline void weights_random(uint8_t *rows, dt_type type, int n_out, int k, test_rng *rng) {
    size_t n = (size_t)n_out * (size_t)(k / dt_type_block(type));
    for (size_t i = 0; i < n; i++) {
        float f = check_normal(rng);
        uint32_t u;
        uint16_t h = dt_f32_to_f16(f);
        memcpy(&u, &f, sizeof u);
        uint16_t bf = (uint16_t)(u >> 16);
        uint32_t pick = test_rng_below(rng, 12);
        if (type == DT_TYPE_F32)
            memcpy(rows + 4 * i, &f, 4);
        else if (type == DT_TYPE_F16)
            memcpy(rows + 2 * i, &h, 2);
        else if (type == DT_TYPE_BF16)
            memcpy(rows + 2 * i, &bf, 2);
        else
            weights_random_block(
                rows + i * (size_t)dt_type_block_bytes(type), type, pick < 5 ? (int)pick : 0, rng);
    }
}

static inline int weights_min_k(int *min, const uint8_t *s, int j) {
    if (j < 4) {
        *min = s[j + 4] % 64;
        return s[j] % 64;
    }
    *min = s[j + 4] / 16 + s[j] / 64 * 16;
    return s[j + 4] % 16 + s[j - 4] / 64 * 16;
}

/* A level of the IQ4 types: the format's table, written down a second time. */
static inline int weights_level(int nibble) {
    static const int size[16] = {127, 104, 83, 65, 49, 35, 22, 10, 1, 13, 25, 38, 53, 69, 89, 113};
    return nibble < 8 ? -size[nibble] : size[nibble];
}

/* Weight i of a block, exactly; *size is the sum of the magnitudes of the terms it is made of. */
static inline double weights_exact(double *size, dt_type type, const uint8_t *b, int i) {
    double d, m = 0.0;
    int q, scale = 1, min = 1;
    float f;
    switch (type) {
    case DT_TYPE_F32:
        memcpy(&f, b, 4);
        *size = fabs(f);
        return f;
    case DT_TYPE_F16:
        *size = fabs(weights_half(b));
        return weights_half(b);
    case DT_TYPE_BF16:
        f = dt_bf16_to_f32((uint16_t)(b[0] | b[1] << 8));
        *size = fabs(f);
        return f;
    case DT_TYPE_Q4_0:
        d = weights_half(b);
        q = (i < 16 ? b[2 + i] % 16 : b[2 + i - 16] / 16) - 8;
        break;
    case DT_TYPE_Q4_1:
        d = weights_half(b);
        m = weights_half(b + 2);
        q = i < 16 ? b[4 + i] % 16 : b[4 + i - 16] / 16;
        break;
    case DT_TYPE_Q5_0:
        d = weights_half(b);
        q = (i < 16 ? b[6 + i] % 16 : b[6 + i - 16] / 16) + (b[2 + i / 8] >> i % 8) % 2 * 16 - 16;
        break;
    case DT_TYPE_Q5_1:
        d = weights_half(b);
        m = weights_half(b + 2);
        q = (i < 16 ? b[8 + i] % 16 : b[8 + i - 16] / 16) + (b[4 + i / 8] >> i % 8) % 2 * 16;
        break;
    case DT_TYPE_Q8_0:
        d = weights_half(b);
        q = (int8_t)b[2 + i];
        break;
    case DT_TYPE_IQ4_NL:
        d = weights_half(b);
        q = weights_level(i < 16 ? b[2 + i] % 16 : b[2 + i - 16] / 16);
        break;
    case DT_TYPE_IQ4_XS: {
        int run = i / 32, at = i % 32;
        d = weights_half(b);
        scale = (run % 2 ? b[4 + run / 2] / 16 : b[4 + run / 2] % 16) +
                (b[2 + run / 4] >> run % 4 * 2) % 4 * 16 - 32;
        b += 8 + 16 * run;
        q = weights_level(at < 16 ? b[at] % 16 : b[at - 16] / 16);
        break;
    }
    case DT_TYPE_Q3_K: {
        int j = i / 16, run = i / 32;
        d = weights_half(b + 108);
        q = (b[32 + i / 128 * 32 + i % 32] >> run % 4 * 2) % 4 + (b[i % 32] >> run) % 2 * 4 - 4;
        scale = (j < 8 ? b[96 + j] % 16 : b[96 + j - 8] / 16) +
                (b[104 + j % 4] >> j / 4 * 2) % 4 * 16 - 32;
        break;
    }
    case DT_TYPE_Q4_K:
    case DT_TYPE_Q5_K: {
        int run = i / 32;
        const uint8_t *low = b + (type == DT_TYPE_Q4_K ? 16 : 48) + run / 2 * 32;
        d = weights_half(b);
        m = -weights_half(b + 2);
        scale = weights_min_k(&min, b + 4, run);
        q = run % 2 ? low[i % 32] / 16 : low[i % 32] % 16;
        if (type == DT_TYPE_Q5_K)
            q += (b[16 + i % 32] >> run) % 2 * 16;
        break;
    }
    default: { /* Q6_K */
        int run = i / 32 % 4;
        const uint8_t *low = b + i / 128 * 64 + run % 2 * 32;
        d = weights_half(b + 208);
        scale = (int8_t)b[192 + i / 16];
        q = (run < 2 ? low[i % 32] % 16 : low[i % 32] / 16) +
            (b[128 + i / 128 * 32 + i % 32] >> run * 2) % 4 * 16 - 32;
        break;
    }
    }
    *size = fabs(d * scale * q) + fabs(m * min);
    return d * scale * q + m * min;
}

#endif
