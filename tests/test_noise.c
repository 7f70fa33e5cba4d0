/* Philox against its published answers; Gumbel noise against its mean, variance and median. */
#include "tests/test.h"

#include <math.h>

#include "src/base/noise.h"

/* Known answers of the authors' Random123 library (kat_vectors, philox4x32 10). */
static void test_known_answers(void) {
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } answers[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < DT_COUNT(answers); i++) {
        uint32_t out[4];
        dt_philox(out, answers[i].counter, answers[i].key);
        CHECK(memcmp(out, answers[i].want, sizeof out) == 0);
    }
    /* The output may overwrite the counter. */
    uint32_t both[4] = {0, 0, 0, 0}, key[2] = {0, 0};
    dt_philox(both, both, key);
    CHECK(both[0] == 0x6627e8d5 && both[3] == 0x9b00dbd8);
}

static void test_keys(void) {
    CHECK(dt_noise_bits(0, 0, 0) == 0x6627e8d5);
    uint32_t out[4];
    const uint32_t counter[4] = {0x9abcdef0, 0x12345678, 151643, 0};
    const uint32_t key[2] = {0x89abcdef, 0x01234567};
    dt_philox(out, counter, key);
    CHECK(dt_noise_bits(0x0123456789abcdef, 0x123456789abcdef0, 151643) == out[0]);
    CHECK(dt_noise_bits(1, 2, 3) != dt_noise_bits(1, 3, 2));
    CHECK(dt_noise_random_seed() != dt_noise_random_seed());
}

static void test_gumbel(test_rng *rng) {
    double lowest = dt_noise_gumbel(UINT32_MAX), highest = dt_noise_gumbel(0);
    /* Large noise belongs to a large -log(1 - u)'s reciprocal, so to a small u. */
    CHECK(highest < DT_NOISE_MAX && highest > 22.8);
    CHECK(lowest > -3.2 && lowest < -3.1);
    for (int i = 0; i < 1000; i++) {
        uint32_t bits = (uint32_t)test_rng_next(rng) | (i < 32 ? (uint32_t)(1u << i) : 0);
        double u = ((double)bits + 0.5) * 0x1p-32;
        double want = -log(-log1p(-u)), got = dt_noise_gumbel(bits);
        /* 3 ulp of the inner logarithm, 3 of the outer, where it passes zero absolute. */
        CHECK(fabs(got - want) <= 8 * 0x1p-53 * (1 + fabs(want)));
    }
    enum { N = 1000000 };
    const double euler = 0.57721566490153286, variance = 1.6449340668482264; /* pi^2 / 6 */
    double sum = 0, squares = 0;
    int below_median = 0;
    uint64_t seed = test_rng_next(rng);
    for (int i = 0; i < N; i++) {
        double g = dt_noise_gumbel(dt_noise_bits(seed, i / 1000, i % 1000));
        sum += g;
        squares += (g - euler) * (g - euler);
        below_median += g < 0.36651292058166435; /* -log(log 2) */
    }
    /* Five standard deviations: of the mean sqrt(var / N), of the variance sqrt((kurtosis - 1) / N)
     * var with kurtosis 5.4, of the median's share sqrt(1 / 4N). */
    CHECK(fabs(sum / N - euler) < 5 * sqrt(variance / N));
    CHECK(fabs(squares / N - variance) < 5 * variance * sqrt(4.4 / N));
    CHECK(fabs((double)below_median / N - 0.5) < 5 * sqrt(0.25 / N));
}

int main(void) {
    test_rng rng = test_rng_open();
    test_known_answers();
    test_keys();
    test_gumbel(&rng);
    return test_end();
}
