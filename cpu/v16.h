/* Sixteen float lanes: the one shape in which the element-wise and attention kernels are written.
 * The instruction set comes from the flags of the including file; the bits do not depend on it. */
#ifndef DT_CPU_V16_H
#define DT_CPU_V16_H

#include "src/base/fmath.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)

typedef __m512 v16;

static inline v16 v16_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void v16_store(float *p, v16 a) {
    _mm512_storeu_ps(p, a);
}
static inline v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline v16 v16_from_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline void v16_to_f16(uint16_t *p, v16 a) {
    _mm256_storeu_si256(
        (__m256i *)(void *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline v16 v16_from_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline v16 v16_set1_f16(const uint16_t *p) {
    return _mm512_set1_ps(_cvtsh_ss(*p));
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
static inline v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}

#elif defined(__AVX2__)

typedef struct v16 {
    __m256 lo, hi;
} v16;

static inline v16 v16_load(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline v16 v16_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v16_from_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)),
        _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 8)))};
}
static inline void v16_to_f16(uint16_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(void *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline v16 v16_from_i8(const int8_t *p) {
    return (v16){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p))),
        _mm256_cvtepi32_ps(
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 8))))};
}
static inline v16 v16_set1_f16(const uint16_t *p) {
    float x = _cvtsh_ss(*p);
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16 v16_mul(v16 a, v16 b) {
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline v16 v16_add(v16 a, v16 b) {
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

#else

#include "src/base/dtype.h"

typedef struct v16 {
    float v[16];
} v16;

static inline v16 v16_load(const float *p) {
    v16 a;
    memcpy(a.v, p, sizeof a.v);
    return a;
}
static inline void v16_store(float *p, v16 a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline v16 v16_set1(float x) {
    v16 a;
    for (int i = 0; i < 16; i++)
        a.v[i] = x;
    return a;
}
static inline v16 v16_from_f16(const uint16_t *p) {
    v16 a;
    for (int i = 0; i < 16; i++)
        a.v[i] = dt_f16_to_f32(p[i]);
    return a;
}
static inline void v16_to_f16(uint16_t *p, v16 a) {
    for (int i = 0; i < 16; i++)
        p[i] = dt_f32_to_f16(a.v[i]);
}
static inline v16 v16_from_i8(const int8_t *p) {
    v16 a;
    for (int i = 0; i < 16; i++)
        a.v[i] = (float)p[i];
    return a;
}
static inline v16 v16_set1_f16(const uint16_t *p) {
    return v16_set1(dt_f16_to_f32(*p));
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    for (int i = 0; i < 16; i++)
        c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
static inline v16 v16_mul(v16 a, v16 b) {
    for (int i = 0; i < 16; i++)
        a.v[i] *= b.v[i];
    return a;
}
static inline v16 v16_add(v16 a, v16 b) {
    for (int i = 0; i < 16; i++)
        a.v[i] += b.v[i];
    return a;
}

#endif

static inline v16 v16_zero(void) {
    return v16_set1(0.0f);
}

/* Lanes added in the fixed order of doc/numerics.md: halves onto each other, 8, 4, 2, 1. */
static inline float v16_sum(v16 a) {
    float t[16];
    v16_store(t, a);
    for (int width = 8; width >= 1; width /= 2)
        for (int i = 0; i < width; i++)
            t[i] += t[i + width];
    return t[0];
}

#endif
