/* Reading packed panels by vectors of 512 bits: what the AVX-512 and the AMX kernels share. */
#ifndef DT_CPU_TILE512_H
#define DT_CPU_TILE512_H

#include "cpu/tile.h"

INLINE __m512i load(const uint8_t *p) {
    return _mm512_loadu_si512(p);
}
INLINE __m512i two(const int16_t *sums) {
    int32_t v;
    memcpy(&v, sums, sizeof v);
    return _mm512_set1_epi32(v);
}
INLINE __m512 halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* 32 bytes as int16. */
INLINE __m512i unsigned_pairs(const uint8_t *p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE __m512i signed_pairs(const uint8_t *p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
/* a | (b & mask) */
INLINE __m512i or_masked(__m512i a, __m512i b, __m512i mask) {
    return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
/* Bytes shifted left (or right, n < 0); bits that cross from one byte into the next are for the
 * caller to mask. */
INLINE __m512i shifted(__m512i v, const int n) {
    return n > 0   ? _mm512_slli_epi16(v, (unsigned)n)
           : n < 0 ? _mm512_srli_epi16(v, (unsigned)-n)
                   : v;
}

#endif
