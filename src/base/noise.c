#define _GNU_SOURCE
#include "src/base/noise.h"

#include <sys/random.h>
#include <unistd.h>

#include "src/base/fmath.h"
#include "src/base/mem.h"

void dt_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xd2511f53 * c0;
        uint64_t p1 = (uint64_t)0xcd9e8d57 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9; /* the golden ratio and sqrt(3) - 1: the key's Weyl sequence */
        k1 += 0xbb67ae85;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint32_t dt_noise_bits(uint64_t seed, int64_t position, int32_t token) {
    uint64_t p = (uint64_t)position;
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)p, (uint32_t)(p >> 32), (uint32_t)token, 0};
    uint32_t out[4];
    dt_philox(out, counter, key);
    return out[0];
}

double dt_noise_gumbel(uint32_t bits) {
    /* u is a multiple of 2^-33, so 1 - u is exact and log(1 - u) needs no log1p. */
    double u = ((double)bits + 0.5) * 0x1p-32;
    return -dt_log_f64(-dt_log_f64(1.0 - u));
}

uint64_t dt_noise_random_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, 0) == (ssize_t)sizeof seed)
        return seed;
    /* No entropy call (an old kernel, a strict sandbox): the clock and the process do. */
    return (uint64_t)dt_time_ns() * 0x9e3779b97f4a7c15 ^ (uint64_t)getpid();
}
