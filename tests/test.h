/* The test programs' own few lines: a failed CHECK prints its place and goes on; test_end gives the
 * exit code. Random tests take their seed from DT_TEST_SEED, else a fixed one, and print it. */
#ifndef DT_TESTS_TEST_H
#define DT_TESTS_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "src/base/common.h"

enum { TEST_SKIPPED = 77 };

static int test_n_checks, test_n_failed;

#define CHECK(condition) CHECK_MSG(condition, "%s", #condition)
#define CHECK_MSG(condition, ...)                                                                  \
    do {                                                                                           \
        test_n_checks++;                                                                           \
        if (!(condition)) {                                                                        \
            test_n_failed++;                                                                       \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                        \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

/* The call must succeed; else its message is shown. */
#define CHECK_OK(expression)                                                                       \
    do {                                                                                           \
        dt_err check_err_ = (expression);                                                          \
        CHECK_MSG(check_err_ == DT_OK, "%s: %s", #expression, dt_err_message());                   \
    } while (0)

/* The call must fail with this code and a message that contains `words`. */
#define CHECK_FAILS(expression, code, words)                                                       \
    do {                                                                                           \
        dt_err check_err_ = (expression);                                                          \
        CHECK_MSG(check_err_ == (code) && strstr(dt_err_message(), (words)) != NULL,               \
            "%s: got error %d \"%s\", want %d \"%s\"", #expression, (int)check_err_,               \
            check_err_ ? dt_err_message() : "", (int)(code), (words));                             \
    } while (0)

static inline int test_end(void) {
    printf("%d checks, %d failed\n", test_n_checks, test_n_failed);
    return test_n_failed ? 1 : 0;
}

/* splitmix64 */
typedef struct test_rng {
    uint64_t state;
} test_rng;

static inline uint64_t test_rng_next(test_rng *rng) {
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline uint32_t test_rng_below(test_rng *rng, uint32_t n) {
    return (uint32_t)(test_rng_next(rng) % n);
}

/* Uniform in [-1, 1). */
static inline float test_rng_float(test_rng *rng) {
    return (float)((double)(test_rng_next(rng) >> 11) * 0x1p-52 - 1.0);
}

static inline test_rng test_rng_open(void) {
    const char *text = getenv("DT_TEST_SEED");
    test_rng rng = {text ? strtoull(text, NULL, 0) : 20261124u};
    printf("seed %llu\n", (unsigned long long)rng.state);
    return rng;
}

#endif
