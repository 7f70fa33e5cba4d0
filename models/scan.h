/* Walking a row of logits by blocks: the largest of each block is found first, in one pass that the
 * compiler vectorises, and then only blocks that can matter are looked into. Shared by the draft's
 * top-k and the target's sampler; plain multiplications and additions in a fixed order, so every
 * build gives the same bits. */
#ifndef DT_MODELS_SCAN_H
#define DT_MODELS_SCAN_H

#include "src/base/common.h"
#include "src/base/fmath.h"

enum { DT_SCAN_LANES = 16, DT_SCAN_BLOCK = 64, DT_SCAN_BLOCKS_MAX = 4096 };

typedef struct dt_scan {
    int n;       /* logits looked at */
    int n_block; /* logits of a block, a multiple of DT_SCAN_BLOCK */
    int n_blocks;
    float best;                      /* the largest of all; -infinity where all are NaN */
    float block[DT_SCAN_BLOCKS_MAX]; /* the largest of each block, NaN left out */
} dt_scan;

/* The largest of x[0 .. n-1], NaN left out. */
static inline float dt_scan_max(const float *x, int n) {
    float lanes[DT_SCAN_LANES];
    for (int j = 0; j < DT_SCAN_LANES; j++)
        lanes[j] = -__builtin_inff();
    int i = 0;
    for (; i + DT_SCAN_LANES <= n; i += DT_SCAN_LANES) {
        for (int j = 0; j < DT_SCAN_LANES; j++)
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
    }
    float best = -__builtin_inff();
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    for (int j = 0; j < DT_SCAN_LANES; j++)
        best = lanes[j] > best ? lanes[j] : best;
    return best;
}

static inline void dt_scan_row(dt_scan *scan, const float *logits, int n) {
    scan->n = n;
    scan->n_block = DT_SCAN_BLOCK;
    while ((n + scan->n_block - 1) / scan->n_block > DT_SCAN_BLOCKS_MAX)
        scan->n_block *= 2;
    scan->n_blocks = (n + scan->n_block - 1) / scan->n_block;
    scan->best = -__builtin_inff();
    for (int b = 0; b < scan->n_blocks; b++) {
        int first = b * scan->n_block;
        scan->block[b] = dt_scan_max(logits + first, DT_MIN(scan->n_block, n - first));
        scan->best = scan->block[b] > scan->best ? scan->block[b] : scan->best;
    }
}

/* The smallest id that carries the largest logit; 0 where all are NaN. */
static inline int32_t dt_scan_argmax(const dt_scan *scan, const float *logits) {
    for (int b = 0; b < scan->n_blocks; b++) {
        if (scan->block[b] != scan->best)
            continue;
        for (int i = b * scan->n_block; i < scan->n; i++) {
            if (logits[i] == scan->best)
                return i;
        }
    }
    return 0;
}

/* e^x for x <= 0 within 2e-7 of itself; 0 below -80 and for NaN. No fused operations: without the
 * instruction they would be library calls. */
DT_FMATH float dt_scan_exp(float x) {
    float c = x > -80.0f ? x : -80.0f;
    float n = dt_rint_f32(c * 1.44269504f);
    float r = c - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    float y = p * dt_bits_f32((uint32_t)((int32_t)n + 127) << 23);
    return x > -80.0f ? y : 0.0f;
}

/* e^((x - best) * scale) of a block; the count is fixed so that compilers vectorise it. */
static inline void dt_scan_exp_block(
    float out[DT_SCAN_BLOCK], const float *x, float best, float scale) {
    for (int j = 0; j < DT_SCAN_BLOCK; j++)
        out[j] = dt_scan_exp((x[j] - best) * scale);
}

/* Sum over all logits of e^((l - best) * scale) in units of 2^-32, blocks wholly below best - reach
 * / scale left out. `best` must be finite. Lanes of a block are float sums, all else are integers,
 * so that blocks may be added in any order. */
static inline int64_t dt_scan_exp_sum(
    const dt_scan *scan, const float *logits, float scale, float reach) {
    int64_t sum = 0;
    for (int b = 0; b < scan->n_blocks; b++) {
        if (!((scan->block[b] - scan->best) * scale >= -reach))
            continue;
        int first = b * scan->n_block;
        int n = DT_MIN(scan->n_block, scan->n - first);
        const float *x = logits + first;
        float lanes[DT_SCAN_LANES] = {0};
        int i = 0;
        for (; i + DT_SCAN_LANES <= n; i += DT_SCAN_LANES) {
            for (int j = 0; j < DT_SCAN_LANES; j++)
                lanes[j] += dt_scan_exp((x[i + j] - scan->best) * scale);
        }
        for (int j = 0; i < n; i++, j++)
            lanes[j] += dt_scan_exp((x[i] - scan->best) * scale);
        for (int j = 0; j < DT_SCAN_LANES; j++)
            sum += (int64_t)(lanes[j] * 0x1p32f);
    }
    return sum;
}

/* dt_noise_bits of the DT_SCAN_BLOCK tokens from first_token on: the same Philox4x32-10, written so
 * that the rounds of neighbouring tokens run beside each other. */
static inline void dt_scan_noise(
    uint32_t bits[DT_SCAN_BLOCK], uint64_t seed, int64_t position, int32_t first_token) {
    uint64_t p = (uint64_t)position;
    for (int first = 0; first < DT_SCAN_BLOCK; first += DT_SCAN_LANES) {
        uint32_t c0[DT_SCAN_LANES], c1[DT_SCAN_LANES], c2[DT_SCAN_LANES], c3[DT_SCAN_LANES];
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        for (int j = 0; j < DT_SCAN_LANES; j++) {
            c0[j] = (uint32_t)p;
            c1[j] = (uint32_t)(p >> 32);
            c2[j] = (uint32_t)first_token + (uint32_t)(first + j);
            c3[j] = 0;
        }
        for (int i = 0; i < 10; i++) {
            for (int j = 0; j < DT_SCAN_LANES; j++) {
                uint64_t p0 = (uint64_t)0xd2511f53 * c0[j];
                uint64_t p1 = (uint64_t)0xcd9e8d57 * c2[j];
                c0[j] = (uint32_t)(p1 >> 32) ^ c1[j] ^ k0;
                c1[j] = (uint32_t)p1;
                c2[j] = (uint32_t)(p0 >> 32) ^ c3[j] ^ k1;
                c3[j] = (uint32_t)p0;
            }
            k0 += 0x9e3779b9;
            k1 += 0xbb67ae85;
        }
        memcpy(bits + first, c0, sizeof c0);
    }
}

/* For "G >= gap": a bound that the noise bits of every such token stay at or below (noise is large
 * where bits are small: u <= 1 - exp(-e^-gap) < e^-gap). */
static inline uint32_t dt_scan_bits_bound(double gap) {
    if (!(gap > 0.0))
        return UINT32_MAX;
    double bound = dt_exp_f64(-gap) * 4294967296.0 * 1.000001;
    return bound < 4294967295.0 ? (uint32_t)bound : UINT32_MAX;
}

#endif
