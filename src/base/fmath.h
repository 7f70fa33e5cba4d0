/* Our own elementary functions: the same bits on every CPU and compiler, since libm's differ.
 *
 * The float functions are written as single IEEE operations and explicit fused multiply-adds in a
 * fixed order, so that a vector kernel can repeat them lane by lane; a translation unit that
 * includes this is built with -ffp-contract=off. Formulas: doc/numerics.md, "Elementary functions".
 */
#ifndef DT_BASE_FMATH_H
#define DT_BASE_FMATH_H

#include <float.h>
#include <stdint.h>
#include <string.h>

/* The inline functions here are device code too, where nvcc reads them. */
#ifdef __CUDACC__
#define DT_FMATH static inline __host__ __device__
#else
#define DT_FMATH static inline
#endif

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) ||     \
    __FINITE_MATH_ONLY__ > 0
#error "the bits of float operations are part of the product: build without -ffast-math"
#endif
/* 16 is what compilers say where half precision is computed as itself; the others are as with 0. */
#ifdef __cplusplus
static_assert
#else
_Static_assert
#endif
    (FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,
        "float and double must be evaluated in their own precision (x86: -mfpmath=sse)");

DT_FMATH float dt_bits_f32(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

DT_FMATH uint32_t dt_f32_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* Round to nearest even for |x| <= 2^22. */
DT_FMATH float dt_rint_f32(float x) {
    return (x + 12582912.0f) - 12582912.0f;
}

/* e^x within 2 units in the last place. Up to -87 it is 0, above 88 it is e^88; NaN gives 0. */
DT_FMATH float dt_exp_f32(float x) {
    float c = x > -87.0f ? x : -87.0f;
    c = c < 88.0f ? c : 88.0f;
    float n = dt_rint_f32(c * 1.44269504f);
    float r = __builtin_fmaf(n, -0.693359375f, c);
    r = __builtin_fmaf(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = __builtin_fmaf(p, r, 1.3981999507e-3f);
    p = __builtin_fmaf(p, r, 8.3334519073e-3f);
    p = __builtin_fmaf(p, r, 4.1665795894e-2f);
    p = __builtin_fmaf(p, r, 1.6666665459e-1f);
    p = __builtin_fmaf(p, r, 5.0000001201e-1f);
    float r2 = r * r;
    p = __builtin_fmaf(p, r2, r);
    p = p + 1.0f;
    float scale = dt_bits_f32((uint32_t)((int32_t)n + 127) << 23);
    float y = p * scale;
    return x > -87.0f ? y : 0.0f;
}

/* x / (1 + e^-x). */
DT_FMATH float dt_silu_f32(float x) {
    return x / (1.0f + dt_exp_f32(-x));
}

/* The tanh form of GELU, x (1 + tanh z) / 2 with z = sqrt(2 / pi) (x + 0.044715 x^3), as
 * x / (1 + e^-2z), which it equals and which keeps the precision of small results. */
DT_FMATH float dt_gelu_f32(float x) {
    float t = x * __builtin_fmaf(x * x, -0.0713548163f, -1.59576912f);
    return x / (1.0f + dt_exp_f32(t));
}

/* Double precision, plain multiplications and additions only; within 4 units in the last place.
 * log: x > 0 and finite. sin and cos: |x| < 2^30. pow: base > 0. */
double dt_log_f64(double x);
double dt_exp_f64(double x);
double dt_pow_f64(double base, double exponent);
void dt_sincos_f64(double *sin_out, double *cos_out, double x);

#endif
