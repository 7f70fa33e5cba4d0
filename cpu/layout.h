/* Where things lie in a packed panel; private to pack.c and the kernels.
 *
 * A line is 64 bytes: for each of the 16 rows in turn, 4 bytes of 4 consecutive weights. A group
 * is those 4 weights: group i of a block holds weights 4i .. 4i+3. Per-row values lie side
 * by side for the 16 rows. "Pairs" are [16 rows][2], so that 16 bytes widen to int16 pairs.
 *
 * Q4_K, Q5_K: blocks in ascending order, each:
 *      f16 d[16], f16 dmin[16], u8 scale[8][16], u8 min pairs [4][16][2] (sub-blocks 2p, 2p+1);
 *      Q5_K: 8 lines of fifth bits: line g, bit j = group g of sub-block j;
 *      32 lines of nibbles: line 8p+g: low = group g of sub-block 2p, high = of sub-block 2p+1.
 * Q4_1, Q5_1: blocks in ascending order, each f16 d[16], f16 m[16], then lines as Q4_0, Q5_0.
 * The other block types: blocks in pairs, so that every line starts at a multiple of 64: the two
 * blocks' f16 d[2][16], then the body of the first, then of the second. A last single block has its
 * partner's d all the same (unused), but no second body. Bodies:
 * Q6_K:  i8 scale pairs [8][16][2] (sub-blocks 2p, 2p+1 of 16 weights);
 *      4 times (h = 0, 1; e = 0, 1) 12 lines, in the order in which kernels read them:
 *          4 of high bits: line g, field f of 2 bits = group 32h+8f+4e+g,
 *          8 of low nibbles: line 4f+g: low = group 32h+8f+4e+g, high = group 32h+16+8f+4e+g.
 * Q3_K:  i8 scale pairs as Q6_K, already less 32;
 *      16 lines of low bits: line 8h+g, field f of 2 bits = group 32h+8f+g;
 *      8 lines of third bits: line g, bit j = group 8j+g.
 * IQ4_XS: i8 scale pairs [4][16][2] (sub-blocks 2p, 2p+1 of 32 weights), already less 32;
 *      32 lines of nibbles: line 4j+g: low = group g, high = group 4+g of sub-block j.
 * Q4_0, IQ4_NL: 4 lines of nibbles: line i: low = group i, high = group 4+i.
 * Q5_0:  the same, then a line of fifth bits: bit g = group g.
 * Q8_0:  8 lines of int8: line g = group g.
 * F32, F16, BF16: [k][16] of the file's own numbers.
 *
 * 16 groups = 64 weights of 16 rows make one int8 tile of a matrix unit. A panel is rounded up to
 * 64 bytes. */
#ifndef DT_CPU_LAYOUT_H
#define DT_CPU_LAYOUT_H

#include "src/base/common.h"

enum {
    DT_LINE = 64,

    DT_KM_DMIN = 32, /* Q4_K and Q5_K: the K-quants with minima */
    DT_KM_SCALE = 64,
    DT_KM_MIN = 192,
    DT_Q4K_LINES = 320,
    DT_Q4K_BYTES = DT_Q4K_LINES + 32 * DT_LINE,
    DT_Q5K_FIFTH = 320,
    DT_Q5K_LINES = DT_Q5K_FIFTH + 8 * DT_LINE,
    DT_Q5K_BYTES = DT_Q5K_LINES + 32 * DT_LINE,

    DT_Q6K_LINES = 256, /* the scale pairs come first, here and in Q3_K */
    DT_Q6K_PART = 12 * DT_LINE,
    DT_Q6K_NIBBLES = 4 * DT_LINE, /* in a part */
    DT_Q6K_BODY = DT_Q6K_LINES + 4 * DT_Q6K_PART,

    DT_Q3K_LINES = 256,
    DT_Q3K_THIRD = DT_Q3K_LINES + 16 * DT_LINE,
    DT_Q3K_BODY = DT_Q3K_THIRD + 8 * DT_LINE,

    DT_IQ4XS_LINES = 128,
    DT_IQ4XS_BODY = DT_IQ4XS_LINES + 32 * DT_LINE,

    DT_Q40_BODY = 4 * DT_LINE, /* and IQ4_NL */
    DT_Q50_FIFTH = 4 * DT_LINE,
    DT_Q50_BODY = 5 * DT_LINE,
    DT_Q80_BODY = 8 * DT_LINE,

    DT_Q41_M = 32,
    DT_Q41_LINES = 64,
    DT_Q41_FIFTH = DT_Q41_LINES + 4 * DT_LINE,
    DT_Q41_BYTES = DT_Q41_FIFTH,
    DT_Q51_BYTES = DT_Q41_FIFTH + DT_LINE,
};

/* Block i of a panel whose blocks go in pairs: its d[16], and its body. */
static inline const uint8_t *dt_pair_d(const uint8_t *panel, int body_bytes, int i) {
    return panel + (size_t)(i / 2) * (size_t)(2 * body_bytes + DT_LINE) + (size_t)(i % 2) * 32;
}
static inline const uint8_t *dt_pair_body(const uint8_t *panel, int body_bytes, int i) {
    return panel + (size_t)i * (size_t)body_bytes + (size_t)(i / 2 + 1) * DT_LINE;
}

#endif
