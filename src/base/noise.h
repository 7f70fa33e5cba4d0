/* Keyed noise: the random number of (seed, position, token), the same wherever it is computed.
 * Sources: Salmon et al. 2011 (Philox4x32-10); Gumbel noise G = -log(-log(1 - u)). */
#ifndef DT_BASE_NOISE_H
#define DT_BASE_NOISE_H

#include "src/base/common.h"

/* Philox4x32 with 10 rounds: out[4] of a 128-bit counter and a 64-bit key. */
void dt_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* 32 uniform bits of (seed, position, token): word 0 of Philox with key {seed low, seed high} and
 * counter {position low, position high, token, 0}. position >= 0 counts the tokens ever committed
 * in the timeline and is never renumbered. */
uint32_t dt_noise_bits(uint64_t seed, int64_t position, int32_t token);

/* Standard Gumbel noise of these bits, u = (bits + 0.5) 2^-32; between -3.2 and 22.9. */
double dt_noise_gumbel(uint32_t bits);

/* No token's noise is above this. */
#define DT_NOISE_MAX 22.9

/* A seed from the system's entropy. */
uint64_t dt_noise_random_seed(void);

#endif
