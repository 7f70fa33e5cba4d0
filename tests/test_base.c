/* Block formats against golden values, conversions exhaustively, our own elementary functions
 * against libm in long double, memory, mapped files, the error record, the doorbell. */
#define _GNU_SOURCE
#include "tests/test.h"

#include <math.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "src/base/dtype.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"
#include "src/base/wait.h"
#include "tests/data/dtype_golden.h"

static void test_errors(void) {
    CHECK(strcmp(dt_err_message(), "") == 0);
    CHECK(DT_ERROR(DT_ERR_IO, "read %d of %d", 3, 4) == DT_ERR_IO);
    CHECK(strcmp(dt_err_message(), "read 3 of 4") == 0);
    CHECK(dt_err_prefix(DT_ERR_IO, "file %s", "a") == DT_ERR_IO);
    CHECK(strcmp(dt_err_message(), "file a: read 3 of 4") == 0);
    char text[1000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    dt_err_set(DT_ERR_INPUT, "f", 1, "%s", text);
    CHECK(strlen(dt_err_message()) == 511);
    dt_err_prefix(DT_ERR_INPUT, "p");
    CHECK(strncmp(dt_err_message(), "p: xxx", 6) == 0 && strlen(dt_err_message()) == 511);
    CHECK(dt_round_up(0, 12) == 0 && dt_round_up(1, 12) == 12 && dt_round_up(24, 12) == 24);
}

static void test_types(void) {
    static const struct {
        dt_type type;
        const char *name;
        int block, n_bytes;
    } want[] = {{DT_TYPE_F32, "F32", 1, 4}, {DT_TYPE_F16, "F16", 1, 2},
        {DT_TYPE_BF16, "BF16", 1, 2}, {DT_TYPE_Q4_0, "Q4_0", 32, 18},
        {DT_TYPE_Q4_1, "Q4_1", 32, 20}, {DT_TYPE_Q5_0, "Q5_0", 32, 22},
        {DT_TYPE_Q5_1, "Q5_1", 32, 24}, {DT_TYPE_Q8_0, "Q8_0", 32, 34},
        {DT_TYPE_Q3_K, "Q3_K", 256, 110}, {DT_TYPE_Q4_K, "Q4_K", 256, 144},
        {DT_TYPE_Q5_K, "Q5_K", 256, 176}, {DT_TYPE_Q6_K, "Q6_K", 256, 210},
        {DT_TYPE_IQ4_NL, "IQ4_NL", 32, 18}, {DT_TYPE_IQ4_XS, "IQ4_XS", 256, 136}};
    int n_known = 0;
    for (uint32_t i = 0; i < 64; i++)
        n_known += dt_type_known(i);
    CHECK(n_known == (int)DT_COUNT(want));
    for (size_t i = 0; i < DT_COUNT(want); i++) {
        CHECK(dt_type_known(want[i].type));
        CHECK(strcmp(dt_type_name(want[i].type), want[i].name) == 0);
        CHECK(dt_type_block(want[i].type) == want[i].block);
        CHECK(dt_type_block_bytes(want[i].type) == want[i].n_bytes);
        CHECK(dt_type_row_bytes(want[i].type, 512) ==
              (size_t)(512 / want[i].block * want[i].n_bytes));
    }
    CHECK(strcmp(dt_type_name(16), "IQ2_XXS") == 0);
    CHECK(strcmp(dt_type_name(10), "Q2_K") == 0 && !dt_type_known(10));
    CHECK(strcmp(dt_type_name(34), "TQ1_0") == 0);
    CHECK(strcmp(dt_type_name(39), "MXFP4") == 0);
    CHECK(strcmp(dt_type_name(99), "type 99") == 0);
    CHECK(strcmp(dt_type_name(UINT32_MAX), "type 4294967295") == 0);
    CHECK(!dt_type_known(UINT32_MAX));
}

static void test_dequantise(void) {
    static float out[4096];
    static uint8_t shifted[1 << 16];
    for (size_t i = 0; i < DT_COUNT(golden_rows); i++) {
        int n = golden_rows[i].n, n_wrong = 0;
        /* From an odd address: a file's rows are aligned to nothing. */
        memcpy(shifted + 1, golden_rows[i].row, dt_type_row_bytes(golden_rows[i].type, n));
        dt_dequantise(out, shifted + 1, golden_rows[i].type, n);
        for (int k = 0; k < n; k++)
            n_wrong += dt_f32_bits(out[k]) != golden_rows[i].out[k];
        CHECK_MSG(n_wrong == 0, "%s: %d of %d values differ from the golden ones",
            dt_type_name(golden_rows[i].type), n_wrong, n);
    }
    float x[3] = {1.5f, -0.0f, INFINITY};
    dt_dequantise(out, x, DT_TYPE_F32, 3);
    CHECK(memcmp(out, x, sizeof x) == 0);
}

/* Every half; and of every two neighbours the midpoint, which goes to the even one, and the floats
 * beside it. */
static void test_half(void) {
    int n_wrong = 0;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = dt_f16_to_f32((uint16_t)h);
        uint32_t exponent = h >> 10 & 31, mantissa = h & 0x3ff;
        if (exponent == 31 && mantissa) {
            n_wrong += !isnan(f) || (dt_f32_to_f16(f) & 0x7fff) != (0x7e00 | mantissa);
            continue;
        }
        double want = exponent == 31  ? INFINITY
                      : exponent == 0 ? ldexp(mantissa, -24)
                                      : ldexp(1024 + mantissa, (int)exponent - 25);
        n_wrong += (double)f != (h & 0x8000 ? -want : want) || !!signbit(f) != (h >> 15);
        n_wrong += dt_f32_to_f16(f) != h;
        if (exponent == 31)
            continue;
        uint32_t up = h + 1; /* away from zero; above the largest lies what would be 65536 */
        double next = up % 0x8000 == 0x7c00 ? 65536.0 : fabs((double)dt_f16_to_f32((uint16_t)up));
        float middle = (float)((want + next) / 2);
        float sign = h & 0x8000 ? -1.0f : 1.0f;
        n_wrong += dt_f32_to_f16(sign * middle) != (h & 1 ? up : h);
        n_wrong += dt_f32_to_f16(sign * nextafterf(middle, 0)) != h;
        n_wrong += dt_f32_to_f16(sign * nextafterf(middle, INFINITY)) != up;
    }
    CHECK_MSG(n_wrong == 0, "%d conversions of halves are wrong", n_wrong);
    CHECK(dt_f32_to_f16(INFINITY) == 0x7c00 && dt_f32_to_f16(-3e38f) == 0xfc00);
    CHECK((dt_f32_to_f16(NAN) & 0x7fff) > 0x7c00);
    CHECK(dt_f32_to_f16(dt_bits_f32(0x7f800001)) == 0x7e00);
    CHECK(dt_bf16_to_f32(0x3fc0) == 1.5f);
}

/* Units in the last place of `got` (double) away from `want`. */
static double ulps(double got, long double want) {
    if (got == (double)want)
        return (double)(fabsl(got - want) / (nextafter(fabs(got), INFINITY) - fabs(got)));
    int exponent;
    (void)frexpl(want, &exponent);
    return (double)(fabsl((long double)got - want) / ldexpl(1, DT_MAX(exponent - 53, -1074)));
}

static double max_ulps(double most, double got, long double want) {
    double u = ulps(got, want);
    return u > most || u != u ? u : most;
}

static void test_double(test_rng *rng) {
    double e_log = 0, e_exp = 0, e_pow = 0, e_sin = 0, e_cos = 0, e_big = 0;
    for (int i = 0; i < 200000; i++) {
        /* log: any positive double, then close to 1, then a noise-like argument */
        uint64_t bits = test_rng_next(rng) % 0x7ff0000000000000;
        double x;
        memcpy(&x, &bits, sizeof x);
        double near = 1 + ldexp((double)test_rng_float(rng), -(i % 50));
        double u = ((double)(uint32_t)test_rng_next(rng) + 0.5) * 0x1p-32;
        e_log = x > 0 ? max_ulps(e_log, dt_log_f64(x), logl(x)) : e_log;
        e_log = near > 0 ? max_ulps(e_log, dt_log_f64(near), logl(near)) : e_log;
        e_log = max_ulps(e_log, dt_log_f64(u), logl(u));
        double y = 727.0 * (double)test_rng_float(rng) - 18; /* -745 .. 709 */
        e_exp = max_ulps(e_exp, dt_exp_f64(y), expl(y));
        y = ldexp(y, -(i % 60));
        e_exp = max_ulps(e_exp, dt_exp_f64(y), expl(y));
        /* pow: rotary frequencies, then anything whose result is a normal number */
        double base = 1 + 1e6 * (double)fabsf(test_rng_float(rng)), n = (double)test_rng_float(rng);
        e_pow = max_ulps(e_pow, dt_pow_f64(base, n), powl(base, n));
        double log_base = log(x > 0 ? x : 2);
        n = log_base != 0 ? 700 * n / log_base : n;
        if (x > 0)
            e_pow = max_ulps(e_pow, dt_pow_f64(x, n), powl(x, n));
        double s, c, angle = ldexp((double)test_rng_float(rng), i % 31);
        dt_sincos_f64(&s, &c, angle);
        e_sin = max_ulps(e_sin, s, sinl(angle));
        e_cos = max_ulps(e_cos, c, cosl(angle));
        /* beside multiples of pi / 2, where almost all bits cancel */
        angle = (double)((long double)(1 + test_rng_below(rng, 683000000)) * M_PI_2l);
        dt_sincos_f64(&s, &c, angle);
        e_big = max_ulps(max_ulps(e_big, s, sinl(angle)), c, cosl(angle));
    }
    printf("ulp: log %.2f exp %.2f pow %.2f sin %.2f cos %.2f near zeros %.2f\n", e_log, e_exp,
        e_pow, e_sin, e_cos, e_big);
    /* What fmath.h promises. */
    CHECK(e_log <= 4 && e_exp <= 4 && e_pow <= 4 && e_sin <= 4 && e_cos <= 4 && e_big <= 4);
    CHECK(dt_log_f64(1) == 0 && dt_exp_f64(0) == 1);
    CHECK(dt_exp_f64(1000) == INFINITY && dt_exp_f64(-1000) == 0);
    CHECK(isnan(dt_exp_f64(NAN)));
    CHECK(dt_pow_f64(1, 1e300) == 1 && dt_pow_f64(5, 0) == 1 && dt_pow_f64(2, 10) == 1024);
    CHECK(dt_pow_f64(10, 400) == INFINITY && dt_pow_f64(10, -400) == 0);
    CHECK(dt_pow_f64(1 + 0x1p-52, 0x1p52) == exp(1) ||
          ulps(dt_pow_f64(1 + 0x1p-52, 0x1p52), powl(1 + 0x1p-52, 0x1p52)) <= 4);
    double s, c;
    dt_sincos_f64(&s, &c, 0);
    CHECK(s == 0 && c == 1);
}

static void test_float(void) {
    double worst = 0;
    float last = 0;
    for (uint32_t step = 1; step <= 2000000; step++) {
        float x = -87.0f + (float)(step * (175.0 / 2000000));
        float y = dt_exp_f32(x);
        double want = exp((double)x);
        int exponent;
        (void)frexp(want, &exponent);
        double u = fabs((double)y - want) / ldexp(1, exponent - 24);
        worst = u > worst ? u : worst;
        last = y;
    }
    printf("ulp: float exp %.2f\n", worst);
    CHECK(worst <= 2);
    CHECK(last > 1e38f && isfinite(last));
    CHECK(dt_exp_f32(0) == 1);
    CHECK(dt_exp_f32(-87) == 0 && dt_exp_f32(-INFINITY) == 0 && dt_exp_f32(NAN) == 0);
    CHECK(dt_exp_f32(100) == dt_exp_f32(88) && dt_exp_f32(INFINITY) == dt_exp_f32(88));
    CHECK(
        dt_silu_f32(0) == 0 && fabsf(dt_silu_f32(20) - 20) < 1e-5f && dt_silu_f32(-100) > -1e-30f);
    CHECK(dt_rint_f32(2.5f) == 2 && dt_rint_f32(3.5f) == 4 && dt_rint_f32(-2.5f) == -2);
}

static bool all_zero(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (p[i])
            return false;
    return true;
}

static void test_memory(void) {
    static const size_t sizes[] = {0, 1, 63, 64, 65, 100000};
    for (size_t i = 0; i < DT_COUNT(sizes); i++) {
        uint8_t *p;
        CHECK_OK(dt_mem_alloc(&p, sizes[i]));
        CHECK((uintptr_t)p % 64 == 0 && all_zero(p, sizes[i]));
        memset(p, 1, sizes[i]);
        dt_mem_free(p);
    }
    void *p = &p;
    CHECK_FAILS(dt_mem_alloc(&p, SIZE_MAX), DT_ERR_MEMORY, "out of memory");
    CHECK(p == NULL);
    dt_mem_free(NULL);
    static const size_t maps[] = {0, 1, 4096, 5000, (2 << 20) - 1, 2 << 20, (5 << 20) + 12345};
    for (size_t i = 0; i < DT_COUNT(maps); i++) {
        uint8_t *m;
        CHECK_OK(dt_mem_map_huge(&m, maps[i]));
        CHECK(all_zero(m, maps[i]));
        CHECK((uintptr_t)m % (maps[i] >= 2 << 20 ? 2 << 20 : 4096) == 0);
        memset(m, 1, maps[i]);
        dt_mem_unmap(m, maps[i]);
    }
    CHECK_FAILS(dt_mem_map_huge(&p, SIZE_MAX), DT_ERR_MEMORY, "out of memory");
    CHECK_FAILS(dt_mem_map_huge(&p, SIZE_MAX / 4), DT_ERR_MEMORY, "out of memory");
    dt_mem_unmap(NULL, 100);
}

static void test_files(void) {
    char path[] = "/tmp/dt_test_base_XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    dt_file_map map;
    CHECK_FAILS(dt_file_map_open(&map, path), DT_ERR_INPUT, "empty");
    CHECK(map.data == NULL);
    static uint8_t bytes[3 * 4096 + 77];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7);
    CHECK(write(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes);
    CHECK_OK(dt_file_map_open(&map, path));
    CHECK(map.n_bytes == sizeof bytes && memcmp(map.data, bytes, sizeof bytes) == 0);
    dt_file_map_release(map.data + 100, 3 * 4096);
    dt_file_map_release(map.data + 100, 200); /* no whole page */
    dt_file_map_release(map.data, map.n_bytes);
    CHECK(memcmp(map.data, bytes, sizeof bytes) == 0);
    dt_file_map_close(&map);
    CHECK(map.data == NULL);
    dt_file_map_close(&map);
    close(fd);
    unlink(path);
    CHECK_FAILS(dt_file_map_open(&map, path), DT_ERR_IO, "cannot open");
    CHECK_FAILS(dt_file_map_open(&map, "/tmp"), DT_ERR_INPUT, "not a regular file");
    CHECK(mkfifo(path, 0600) == 0); /* must not wait for a writer */
    CHECK_FAILS(dt_file_map_open(&map, path), DT_ERR_INPUT, "not a regular file");
    unlink(path);
}

typedef struct ring_job {
    dt_bell *to_ring, *to_wait;
    int n_rounds;
    int *value; /* plain: the bells order it */
    int n_wrong;
} ring_job;

static void *answer(void *arg) {
    ring_job *job = arg;
    for (int i = 0; i < job->n_rounds; i++) {
        uint32_t seen = (uint32_t)i;
        if (!dt_bell_wait(job->to_wait, seen, INT64_MAX))
            job->n_wrong++;
        job->n_wrong += *job->value != 2 * i + 1;
        *job->value = 2 * i + 2;
        if (i % 64 == 0)
            usleep(50); /* so that the other side falls asleep now and then */
        dt_bell_ring(job->to_ring);
    }
    return NULL;
}

static void test_bell(void) {
    dt_bell ping, pong;
    dt_bell_init(&ping);
    dt_bell_init(&pong);
    CHECK(dt_bell_count(&ping) == 0);
    int64_t start = dt_time_ns();
    CHECK(!dt_bell_wait(&ping, 0, start - 1));
    CHECK(!dt_bell_wait(&ping, 0, INT64_MIN));
    CHECK(!dt_bell_wait(&ping, 0, start + 5000000));
    CHECK(dt_time_ns() >= start + 5000000);
    dt_bell_ring(&ping);
    CHECK(dt_bell_count(&ping) == 1);
    CHECK(dt_bell_wait(&ping, 0, INT64_MIN)); /* rung already */
    dt_bell_init(&ping);

    int value = 0;
    ring_job job = {&pong, &ping, 5000, &value, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, answer, &job) == 0);
    int n_wrong = 0;
    for (int i = 0; i < job.n_rounds; i++) {
        value = 2 * i + 1;
        if (i % 50 == 0)
            usleep(50);
        dt_bell_ring(&ping);
        /* A lost wake-up shows as a time-out, not as a hanging test. */
        n_wrong += !dt_bell_wait(&pong, (uint32_t)i, dt_time_ns() + 5000000000);
        n_wrong += value != 2 * i + 2;
        if (n_wrong)
            break;
    }
    CHECK(n_wrong == 0);
    if (n_wrong) /* the other thread may wait for ever */
        exit(test_end());
    pthread_join(thread, NULL);
    CHECK(job.n_wrong == 0);
}

int main(void) {
    test_errors();
    test_rng rng = test_rng_open();
    test_types();
    test_dequantise();
    test_half();
    test_double(&rng);
    test_float();
    test_memory();
    test_files();
    test_bell();
    return test_end();
}
