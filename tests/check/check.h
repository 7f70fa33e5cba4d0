/* The program `check`: every variant of every kernel, found through the product's own table, must
 * give the bits of the C reference. A topic is one check_TOPIC.c with three functions; main.c calls
 * them once for each instruction set that this CPU runs. */
#ifndef DT_TESTS_CHECK_CHECK_H
#define DT_TESTS_CHECK_CHECK_H

#include "cpu/kernels.h"
#include "src/base/mem.h"
#include "tests/test.h"

typedef struct check_run {
    const char *isa;
    uint64_t seed;
    dt_kernels c;     /* the reference */
    dt_kernels table; /* under test */
    dt_kernels below; /* of the next lower instruction set: an equal slot has been tested there */
    bool quiet;       /* failures are wanted (--break): do not print them */
} check_run;

/* Each returns how many groups failed and prints "isa name ok" for the others. */
int check_matmul(const check_run *run);
int check_quantise(const check_run *run);
int check_attn(const check_run *run);
int check_lanes(const check_run *run);
/* Runs kernels that are wrong on purpose; returns how many were not noticed. */
int check_matmul_breaks(const check_run *run);
int check_quantise_breaks(const check_run *run);
int check_attn_breaks(const check_run *run);
int check_lanes_breaks(const check_run *run);
/* Prints one line a kernel whose name contains `pattern` (NULL: all). */
void check_matmul_bench(const check_run *run, const char *pattern);
void check_quantise_bench(const check_run *run, const char *pattern);
void check_attn_bench(const check_run *run, const char *pattern);
void check_lanes_bench(const check_run *run, const char *pattern);

/* Calls fn(arg); false if it died of a signal, whose name is then in check_signal. */
bool check_survives(void (*fn)(void *arg), void *arg);
extern const char *check_signal;

/* Prints a failure with the variant's name, unless the run is quiet; returns 1. */
int check_failed(const check_run *run, const char *what, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Memory whose end (to within 64 bytes) meets a page that faults. Never freed: a case that faults
 * could not. check_memory_reset unmaps all of it. */
void *check_memory(size_t n_bytes);
void check_memory_reset(void);

/* Median of `n` samples, which are sorted. */
double check_median(double *samples, int n);

/* Equal bits, or both NaN: which NaN comes out of two is not defined. */
static inline bool check_same(float a, float b) {
    uint32_t u, v;
    memcpy(&u, &a, sizeof u);
    memcpy(&v, &b, sizeof v);
    return u == v || (a != a && b != b);
}

/* About normal, mean 0, deviation 1. */
static inline float check_normal(test_rng *rng) {
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += test_rng_float(rng);
    return 0.5f * sum;
}

/* A row of activations as a model might make it, or as it should not: `kind` 0 is ordinary, the
 * others plant outliers, extremes, zeros, tiny numbers, infinities and NaN. */
enum { CHECK_ROW_KINDS = 8 };
void check_fill_row(float *x, int k, int kind, test_rng *rng);

#endif
