#include "src/base/fmath.h"

#include "src/base/fmath_log.h"

/* Everything here is built from IEEE additions, multiplications and divisions in the order written
 * (-ffp-contract=off), so that any machine computes the same bits. Series are plain Taylor series:
 * their ranges are reduced until the next term is below half a unit in the last place. */

/* pi / 2 in parts of 23 bits, so that n times a part is exact for n < 2^30, and a tail. */
#define PIO2_1 0x1.921fb40000000p+0
#define PIO2_2 0x1.4442d00000000p-24
#define PIO2_3 0x1.8469800000000p-48
#define PIO2_4 0x1.3198a00000000p-69
#define PIO2_5 0x1.701b839a25205p-92
#define TWO_OVER_PI 0x1.45f306dc9c883p-1

#define INV_LN2 0x1.71547652b82fep+0
#define ROUNDER 0x1.8p52 /* adding and subtracting it rounds to an integer, |x| < 2^51 */

/* 2^n for -1022 <= n <= 1023. */
static double power_of_two(int n) {
    return bits_f64((uint64_t)(n + 1023) << 52);
}

double dt_log_f64(double x) {
    return log_f64(x);
}

/* e^(x + low), |low| far below |x|'s last bits or tiny. */
static double exp_sum(double x, double low) {
    if (x != x)
        return x;
    if (x > 710.0)
        return bits_f64(0x7ff0000000000000);
    if (x < -746.0)
        return 0.0;
    double n = (x * INV_LN2 + ROUNDER) - ROUNDER;
    double high = x - n * LN2_HI;
    double rest = low - n * LN2_LO;
    double r = high + rest;
    double c = (high - r) + rest; /* what rounding r lost */
    double p = 1.0 / 6227020800;  /* 1 / 13! */
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    double y = 1.0 + (r + (r * r * p + c));
    /* In two steps: 2^1024 is no double, and a subnormal result must be rounded only once. */
    int k = (int)n;
    if (k > 1000)
        return y * power_of_two(k - 1000) * 0x1p1000;
    if (k < -1000)
        return y * power_of_two(k + 1000) * 0x1p-1000;
    return y * power_of_two(k);
}

double dt_exp_f64(double x) {
    return exp_sum(x, 0.0);
}

/* Sums and products with their rounding errors (Dekker 1971, Knuth). */
typedef struct pair {
    double hi, lo;
} pair;

static pair two_sum(double a, double b) {
    double s = a + b;
    double t = s - a;
    return (pair){s, (a - (s - t)) + (b - t)};
}

static pair two_product(double a, double b) {
    double p = a * b;
    double ca = 134217729.0 * a, cb = 134217729.0 * b; /* 2^27 + 1 */
    double ah = ca - (ca - a), bh = cb - (cb - b);
    double al = a - ah, bl = b - bh;
    return (pair){p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
}

static pair pair_add(pair a, pair b) {
    pair s = two_sum(a.hi, b.hi);
    return two_sum(s.hi, s.lo + (a.lo + b.lo));
}

static pair pair_multiply(pair a, pair b) {
    pair p = two_product(a.hi, b.hi);
    return two_sum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

/* log x to about 2^-68, as an unevaluated sum: dt_pow multiplies it by up to 2^63. */
static pair log_pair(double x) {
    int n;
    double f = split_exponent(&n, x) - 1.0; /* exact */
    pair d = two_sum(2.0, f);
    double s0 = f / d.hi;
    pair t = two_product(s0, d.hi);
    pair s = two_sum(s0, (((f - t.hi) - t.lo) - s0 * d.lo) / d.hi);
    pair z = pair_multiply(s, s);
    double r = 1.0 / 23;
    r = r * z.hi + 1.0 / 21;
    r = r * z.hi + 1.0 / 19;
    r = r * z.hi + 1.0 / 17;
    r = r * z.hi + 1.0 / 15;
    r = r * z.hi + 1.0 / 13;
    r = r * z.hi + 1.0 / 11;
    r = r * z.hi + 1.0 / 9;
    r = r * z.hi + 1.0 / 7;
    /* The terms in z and z^2 carry the pair's precision, those above are below 2^-18. */
    pair p = pair_add((pair){0x1.999999999999ap-3, -0x1.999999999999ap-57}, two_product(r, z.hi));
    p = pair_multiply(p, z);
    p = pair_add((pair){0x1.5555555555555p-2, 0x1.5555555555555p-56}, p);
    p = pair_multiply(p, z);
    p = pair_multiply(p, s);
    pair log_m = pair_add((pair){2.0 * s.hi, 2.0 * s.lo}, (pair){2.0 * p.hi, 2.0 * p.lo});
    double k = (double)n;
    return pair_add((pair){k * LN2_HI, k * LN2_LO}, log_m);
}

double dt_pow_f64(double base, double exponent) {
    if (base == 1.0 || exponent == 0.0)
        return 1.0;
    pair log_base = log_pair(base);
    double p = exponent * log_base.hi;
    if (!(p > -746.0 && p < 710.0)) /* also keeps two_product far from overflow */
        return exp_sum(p, 0.0);
    pair product = two_product(exponent, log_base.hi);
    return exp_sum(product.hi, product.lo + exponent * log_base.lo);
}

void dt_sincos_f64(double *sin_out, double *cos_out, double x) {
    double n = (x * TWO_OVER_PI + ROUNDER) - ROUNDER;
    /* x - n pi / 2. The products are exact, and where the difference becomes small it is exact too,
     * so that the errors collected in `low` matter only relative to a large r. */
    pair r = two_sum(x, -(n * PIO2_1));
    double low = r.lo;
    r = two_sum(r.hi, -(n * PIO2_2));
    low += r.lo;
    r = two_sum(r.hi, -(n * PIO2_3));
    low += r.lo;
    r = two_sum(r.hi, -(n * PIO2_4));
    low += r.lo;
    r = two_sum(r.hi, low - n * PIO2_5);
    double a = r.hi, z = r.hi * r.hi;

    double s = 1.0 / 355687428096000; /* 1 / 17! */
    s = s * z - 1.0 / 1307674368000;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    double sine = a + (a * z * s + r.lo * (1.0 - 0.5 * z));

    double c = 1.0 / 20922789888000; /* 1 / 16! */
    c = c * z - 1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    double half = 0.5 * z;
    double w = 1.0 - half;
    double cosine = w + (((1.0 - w) - half) + (z * z * c - a * r.lo));

    int64_t quadrant = (int64_t)n & 3;
    double sine_turned = quadrant & 1 ? cosine : sine;
    double cosine_turned = quadrant & 1 ? sine : cosine;
    *sin_out = quadrant & 2 ? -sine_turned : sine_turned;
    *cos_out = quadrant == 1 || quadrant == 2 ? -cosine_turned : cosine_turned;
}
