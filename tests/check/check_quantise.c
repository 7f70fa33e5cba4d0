#include <math.h>

#include "src/base/fmath.h"
#include "tests/check/check.h"

enum { POISON = 0xa5 };

/* One row of quantised activations, each array poisoned and followed by a poisoned tail. */
typedef struct quantised {
    dt_act act;
    size_t n_q, n_d, n_16, n_32; /* values of the row */
} quantised;

enum { TAIL = 32 };

static void open_quantised(quantised *v, int k, int block) {
    *v = (quantised){{.k = k, .block = block}, (size_t)k, (size_t)(k / block),
        block == 256 ? (size_t)(k / 16) : 0, (size_t)(k / 32)};
    v->act.q = check_memory(3 * v->n_q + TAIL);
    v->act.d = check_memory((3 * v->n_d + TAIL) * sizeof(float));
    v->act.sum32 = check_memory((3 * v->n_32 + TAIL) * sizeof(int16_t));
    if (block == 256)
        v->act.sum16 = check_memory((3 * v->n_16 + TAIL) * sizeof(int16_t));
    memset(v->act.q, POISON, 3 * v->n_q + TAIL);
    memset(v->act.d, POISON, (3 * v->n_d + TAIL) * sizeof(float));
    memset(v->act.sum32, POISON, (3 * v->n_32 + TAIL) * sizeof(int16_t));
    if (block == 256)
        memset(v->act.sum16, POISON, (3 * v->n_16 + TAIL) * sizeof(int16_t));
}

/* All three rows and the tail: only the middle row was to be written. */
static const char *difference(const quantised *a, const quantised *b) {
    if (memcmp(a->act.q, b->act.q, 3 * a->n_q + TAIL) != 0)
        return "q";
    if (memcmp(a->act.d, b->act.d, (3 * a->n_d + TAIL) * sizeof(float)) != 0)
        return "d";
    if (memcmp(a->act.sum32, b->act.sum32, (3 * a->n_32 + TAIL) * sizeof(int16_t)) != 0)
        return "sum32";
    if (a->n_16 && memcmp(a->act.sum16, b->act.sum16, (3 * a->n_16 + TAIL) * sizeof(int16_t)) != 0)
        return "sum16";
    return NULL;
}

/* The rules of doc/numerics.md, said otherwise. */
static const char *against_rules(const quantised *v, const float *x) {
    int block = v->act.block;
    const int8_t *q = v->act.q + v->n_q;
    for (int i = 0; i < v->act.k / block; i++) {
        double most = 0.0;
        bool finite = true;
        int sum = 0;
        for (int j = 0; j < block; j++) {
            finite = finite && isfinite(x[i * block + j]);
            most = fmax(most, fabs(x[i * block + j]));
        }
        float d = v->act.d[v->n_d + (size_t)i];
        if (finite ? !(d == (most < 0x1p-100 ? 0.0f : (float)(most / 127.0)))
                   : dt_f32_bits(d) != 0x7fc00000)
            return "the scale";
        for (int j = i * block; j < (i + 1) * block; j++) {
            double want = finite && d > 0.0f ? x[j] / (most / 127.0) : 0.0;
            /* 127 / a and its product with x are rounded: 2^-23 of at most 127. */
            if (fabs(q[j] - want) > 0.5 + 127 * 0x1p-22 || q[j] < -127)
                return "an activation";
            sum += q[j];
            if (j % 16 == 15 && v->n_16) {
                int got = v->act.sum16[v->n_16 + (size_t)(j / 16)];
                if (j % 32 == 31)
                    got += v->act.sum16[v->n_16 + (size_t)(j / 16) - 1];
                if (got != sum)
                    return "sum16";
            }
            if (j % 32 == 31) {
                if (v->act.sum32[v->n_32 + (size_t)(j / 32)] != sum)
                    return "sum32";
                sum = 0;
            }
        }
    }
    return NULL;
}

typedef struct call {
    dt_quantise_fn fn;
    dt_act *act;
    const float *x;
} call;

static void do_call(void *arg) {
    call *c = arg;
    c->fn(c->act, 1, c->x);
}

static int check_row(
    const check_run *run, dt_quantise_fn fn, int k, int block, int kind, test_rng *rng) {
    float *x = check_memory((size_t)k * sizeof *x);
    check_fill_row(x, k, kind, rng);
    if (test_rng_below(rng, 2)) /* products halfway between two integers */
        for (int i = 0; i < k; i += block) {
            x[i] = 127.0f;
            for (int j = 1; j < block; j += 3)
                x[i + j] = (float)((int)test_rng_below(rng, 254) - 127) + 0.5f;
        }
    quantised want, got;
    open_quantised(&want, k, block);
    open_quantised(&got, k, block);
    run->c.quantise(&want.act, 1, x);
    call c = {fn, &got.act, x};
    int failed = 0;
    if (!check_survives(do_call, &c))
        failed = check_failed(run, "quantise", "%s at k %d, block %d", check_signal, k, block);
    const char *what = failed ? NULL : difference(&got, &want);
    if (what)
        failed =
            check_failed(run, "quantise", "%s, k %d, block %d, row kind %d", what, k, block, kind);
    what = failed ? NULL : against_rules(&want, x);
    if (what)
        failed = check_failed(run, "quantise",
            "the reference breaks the rules: %s, k %d, block %d,"
            " row kind %d",
            what, k, block, kind);
    check_memory_reset();
    return failed;
}

static int check_fn(const check_run *run, dt_quantise_fn fn) {
    test_rng rng = {run->seed};
    for (int round = 0; round < 40; round++)
        for (int kind = 0; kind < CHECK_ROW_KINDS; kind++)
            for (int block = 32; block <= 256; block += 224)
                if (check_row(
                        run, fn, block * (1 + (int)test_rng_below(&rng, 35)), block, kind, &rng))
                    return 1;
    return 0;
}

int check_quantise(const check_run *run) {
    if (run->table.quantise == run->below.quantise)
        return 0;
    if (check_fn(run, run->table.quantise))
        return 1;
    printf("%s quantise ok\n", run->isa);
    return 0;
}

/* ---- kernels that are wrong on purpose ---- */

static dt_quantise_fn break_quantise;

static void broken_half_up(dt_act *act, int i_row, const float *x) {
    break_quantise(act, i_row, x);
    int k = act->k;
    for (int i = 0; i < k; i++) {
        float d = act->d[i_row * (k / act->block) + i / act->block];
        if (d > 0.0f)
            act->q[i_row * k + i] = (int8_t)floorf(x[i] / d + 0.5f);
    }
}
static void broken_sum(dt_act *act, int i_row, const float *x) {
    break_quantise(act, i_row, x);
    int16_t *last = act->sum32 + (size_t)(i_row + 1) * (size_t)(act->k / 32) - 1;
    *last = (int16_t)(*last + 1);
}
static void broken_nan(dt_act *act, int i_row, const float *x) {
    break_quantise(act, i_row, x);
    float *d = act->d + (size_t)i_row * (size_t)(act->k / act->block);
    for (int i = 0; i < act->k / act->block; i++)
        if (d[i] != d[i])
            d[i] = 0.0f;
}
static void broken_past_end(dt_act *act, int i_row, const float *x) {
    break_quantise(act, i_row, x);
    act->q[(size_t)(i_row + 1) * (size_t)act->k] = 0;
}

int check_quantise_breaks(const check_run *run) {
    static const struct {
        const char *what;
        dt_quantise_fn fn;
    } broken[] = {
        {"rounds halves up", broken_half_up},
        {"wrong last sum", broken_sum},
        {"NaN lost", broken_nan},
        {"writes past the end", broken_past_end},
    };
    int n_missed = 0;
    break_quantise = run->c.quantise;
    for (size_t i = 0; i < DT_COUNT(broken); i++) {
        bool noticed = check_fn(run, broken[i].fn) != 0;
        printf("quantise %s: %s\n", broken[i].what, noticed ? "noticed" : "NOT NOTICED");
        n_missed += !noticed;
    }
    return n_missed;
}

void check_quantise_bench(const check_run *run, const char *pattern) {
    enum { K = 8960, ROUNDS = 100 };
    char name[40];
    snprintf(name, sizeof name, "quantise_%s", run->isa);
    if ((pattern && !strstr(name, pattern)) || run->table.quantise == run->below.quantise)
        return;
    test_rng rng = {1};
    float *x = check_memory(K * sizeof *x);
    check_fill_row(x, K, 0, &rng);
    for (int block = 32; block <= 256; block += 224) {
        quantised v;
        open_quantised(&v, K, block);
        double samples[9];
        for (int n = 0; n < 9; n++) {
            int64_t start = dt_time_ns();
            for (int i = 0; i < ROUNDS; i++)
                run->table.quantise(&v.act, 1, x);
            samples[n] = (double)(dt_time_ns() - start);
        }
        printf("%-6s quantise block %3d: %5.2f Gfloat/s\n", run->isa, block,
            (double)K * ROUNDS / check_median(samples, 9));
    }
    check_memory_reset();
}
