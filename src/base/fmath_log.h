/* The logarithm in double precision, for fmath.c and for device code: plain additions,
 * multiplications and divisions in the order written. */
#ifndef DT_BASE_FMATH_LOG_H
#define DT_BASE_FMATH_LOG_H

#include "src/base/fmath.h"

/* ln 2 in two parts: the first has 42 bits, so that its product with an exponent is exact. */
#define LN2_HI 0x1.62e42fefa3800p-1
#define LN2_LO 0x1.ef35793c76730p-45

DT_FMATH double bits_f64(uint64_t u) {
    double d;
    memcpy(&d, &u, sizeof d);
    return d;
}

DT_FMATH uint64_t f64_bits(double d) {
    uint64_t u;
    memcpy(&u, &d, sizeof u);
    return u;
}

/* x = 2^exponent m with sqrt(1/2) <= m < sqrt(2); returns m. */
DT_FMATH double split_exponent(int *exponent, double x) {
    int n = 0;
    if (x < 0x1p-1022) { /* subnormal */
        x *= 0x1p54;
        n = -54;
    }
    uint64_t u = f64_bits(x);
    n += (int)(u >> 52) - 1023;
    u = (u & 0x000fffffffffffff) | 0x3ff0000000000000;
    double m = bits_f64(u);
    if (m >= 0x1.6a09e667f3bcdp+0) {
        m *= 0.5;
        n++;
    }
    *exponent = n;
    return m;
}

/* log(1 + f) = 2 atanh(s), s = f / (2 + f), |s| < 0.172: 2 s + s R(s^2), where 2 s = f - s f is
 * taken from the exact f to keep the last bits. */
DT_FMATH double log_f64(double x) {
    int n;
    double f = split_exponent(&n, x) - 1.0;
    double s = f / (2.0 + f);
    double z = s * s;
    double r = 2.0 / 23;
    r = r * z + 2.0 / 21;
    r = r * z + 2.0 / 19;
    r = r * z + 2.0 / 17;
    r = r * z + 2.0 / 15;
    r = r * z + 2.0 / 13;
    r = r * z + 2.0 / 11;
    r = r * z + 2.0 / 9;
    r = r * z + 2.0 / 7;
    r = r * z + 2.0 / 5;
    r = r * z + 2.0 / 3;
    r = r * z;
    double square = 0.5 * f * f;
    double k = (double)n;
    return k * LN2_HI - ((square - (s * (square + r) + k * LN2_LO)) - f);
}

#endif
