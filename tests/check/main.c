#include "tests/check/check.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct topic {
    int (*check)(const check_run *run);
    int (*breaks)(const check_run *run);
    void (*bench)(const check_run *run, const char *pattern);
} topics[] = {
    {check_matmul, check_matmul_breaks, check_matmul_bench},
    {check_quantise, check_quantise_breaks, check_quantise_bench},
    {check_attn, check_attn_breaks, check_attn_bench},
    {check_lanes, check_lanes_breaks, check_lanes_bench},
};

const char *check_signal = "";
static sigjmp_buf rescue;
static volatile sig_atomic_t rescue_is_set;

static void on_signal(int number) {
    if (!rescue_is_set) {
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    siglongjmp(rescue, number);
}

static void catch_signals(void) {
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction action = {.sa_handler = on_signal};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < DT_COUNT(numbers); i++)
        sigaction(numbers[i], &action, NULL);
}

bool check_survives(void (*fn)(void *arg), void *arg) {
    int number = sigsetjmp(rescue, 1);
    if (number == 0) {
        rescue_is_set = 1;
        fn(arg);
        rescue_is_set = 0;
        return true;
    }
    rescue_is_set = 0;
    check_signal = number == SIGSEGV  ? "SIGSEGV"
                   : number == SIGBUS ? "SIGBUS"
                   : number == SIGILL ? "SIGILL"
                                      : "SIGFPE";
    return false;
}

int check_failed(const check_run *run, const char *what, const char *format, ...) {
    if (run->quiet)
        return 1;
    va_list args;
    va_start(args, format);
    printf("%s %s FAILED: ", run->isa, what);
    vprintf(format, args);
    printf("\n");
    va_end(args);
    return 1;
}

/* ---- guarded memory ---- */

static struct {
    void *base;
    size_t n_bytes;
} regions[256];
static size_t n_regions;

void *check_memory(size_t n_bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = dt_round_up(DT_MAX(n_bytes, 1), page);
    uint8_t *base = mmap(NULL, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || n_regions == DT_COUNT(regions) ||
        mprotect(base + page, body, PROT_READ | PROT_WRITE) != 0) {
        fprintf(stderr, "check: no memory\n");
        exit(1);
    }
    regions[n_regions].base = base;
    regions[n_regions++].n_bytes = body + 2 * page;
    return base + page + body - dt_round_up(DT_MAX(n_bytes, 1), 64);
}

void check_memory_reset(void) {
    for (size_t i = 0; i < n_regions; i++)
        munmap(regions[i].base, regions[i].n_bytes);
    n_regions = 0;
}

/* ---- data ---- */

void check_fill_row(float *x, int k, int kind, test_rng *rng) {
    for (int i = 0; i < k; i++)
        x[i] = check_normal(rng);
    int some = (int)test_rng_below(rng, (uint32_t)k);
    switch (kind) {
    case 1: /* outliers */
        for (int i = 0; i < 1 + k / 64; i++)
            x[test_rng_below(rng, (uint32_t)k)] *= 1000.0f;
        break;
    case 2: /* every activation at its most, of one sign: the largest sums */
        for (int i = 0; i < k; i++)
            x[i] = 3.0f;
        break;
    case 3:
        for (int i = 0; i < k; i++)
            x[i] = -3.0f;
        break;
    case 4: /* at their most, of any sign */
        for (int i = 0; i < k; i++)
            x[i] = test_rng_below(rng, 2) ? 0.7f : -0.7f;
        break;
    case 5: /* zeros, and blocks on either side of the smallest scale */
        for (int i = 0; i < k; i++)
            x[i] = i / 32 % 3 == 0 ? 0.0f : ldexpf(x[i], i / 32 % 3 == 1 ? -101 : -145);
        break;
    case 6:
        x[some] = INFINITY;
        break;
    case 7:
        x[some] = test_rng_below(rng, 2) ? NAN : -NAN;
        break;
    default:
        break;
    }
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double check_median(double *samples, int n) {
    qsort(samples, (size_t)n, sizeof *samples, compare);
    return samples[n / 2];
}

static int usage(void) {
    fprintf(stderr, "usage: check [--break | --bench [PATTERN]]\n"
                    "PATTERN is part of a kernel's name, as in matmul_q4_K_avx2\n");
    return 2;
}

/* Kernels for many rows take any number of them: they are checked in place of the others. */
static void check_many(dt_kernels *table) {
    for (int type = 0; type < DT_TYPE_COUNT; type++)
        if (table->matmul_many[type])
            table->matmul[type] = table->matmul_many[type];
}

int main(int argc, char **argv) {
    bool breaks = argc > 1 && strcmp(argv[1], "--break") == 0;
    bool bench = argc > 1 && strcmp(argv[1], "--bench") == 0;
    if ((argc > 1 && !breaks && !bench) || argc > (bench ? 3 : 2))
        return usage();
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_rng rng = test_rng_open();
    check_run run = {.seed = rng.state, .quiet = breaks};
    dt_kernels_get(&run.c, DT_ISA_C);
    catch_signals();
    int n_failed = 0;
    for (int isa = DT_ISA_C; isa < DT_ISA_COUNT; isa++) {
        run.isa = dt_isa_name((dt_isa)isa);
        if (!dt_isa_runs((dt_isa)isa)) {
            printf("%s skipped: this CPU does not run it\n", run.isa);
            continue;
        }
        run.below = run.table;
        dt_kernels_get(&run.table, (dt_isa)isa);
        check_many(&run.table);
        for (size_t i = 0; i < DT_COUNT(topics); i++) {
            if (bench)
                topics[i].bench(&run, argc > 2 ? argv[2] : NULL);
            else if (!breaks)
                n_failed += topics[i].check(&run);
            else if (isa == DT_ISA_C)
                n_failed += topics[i].breaks(&run);
        }
    }
#ifdef DT_X86
    if (dt_isa_runs(DT_ISA_AVX512) && !bench && !breaks) {
        dt_kernels_get(&run.table, DT_ISA_AVX512);
        run.below = run.table;
        run.isa = "amx-emulated";
        dt_kernels_amx_emulated(&run.table);
        check_many(&run.table);
        n_failed += check_matmul(&run);
    }
#endif
    if (!bench)
        printf("%d failed\n", n_failed);
    return n_failed ? 1 : 0;
}
