/* Attention over a range: variants against the C table in bits, the C table against double
 * precision from an ordinary layout, for trees whose rows lie apart. */
#include <math.h>

#include "cpu/attn.h"
#include "src/base/dtype.h"
#include "tests/check/check.h"

enum { CACHE_ROWS = 1152, ROWS_MAX = 24, DIM_MAX = 256, HEADS_MAX = 8 };

typedef struct attn_case {
    int head_dim, n_group, n_rows, n_committed, position0;
    int n_positions[ROWS_MAX];
    int poisoned; /* a position whose value is NaN; -1: none */
    int32_t ancestors[ROWS_MAX][64];
    dt_attn_row rows[ROWS_MAX];
    dt_kv_type kv;
    uint16_t *keys, *values, *key_scales, *value_scales;
    int8_t *keys8, *values8;
    float *q, *part, *scores;
    size_t n_part;
    dt_attn_range range;
} attn_case;

/* Steps of a single head, so that rows follow each other. */
static void fill_cache(attn_case *c, int v_stride, test_rng *rng) {
    size_t n_keys = CACHE_ROWS * (size_t)c->head_dim, n_values = CACHE_ROWS * (size_t)v_stride;
    size_t n_scales = CACHE_ROWS * (size_t)dt_kv_blocks(c->head_dim);
    if (c->kv == DT_KV_F16) {
        c->keys = check_memory(n_keys * 2);
        c->values = check_memory(n_values * 2);
        for (size_t i = 0; i < n_keys; i++)
            c->keys[i] = dt_f32_to_f16(check_normal(rng));
        memset(c->values, 0, n_values * 2);
        for (int i = 0; i < CACHE_ROWS; i++)
            for (int d = 0; d < c->head_dim; d++)
                c->values[i * v_stride + d] = dt_f32_to_f16(check_normal(rng));
        return;
    }
    c->keys8 = check_memory(n_keys);
    c->values8 = check_memory(n_values);
    c->key_scales = check_memory(n_scales * 2);
    c->value_scales = check_memory(n_scales * 2);
    for (size_t i = 0; i < n_keys; i++)
        c->keys8[i] = (int8_t)((int)test_rng_below(rng, 255) - 127);
    memset(c->values8, 0, n_values);
    for (int i = 0; i < CACHE_ROWS; i++)
        for (int d = 0; d < c->head_dim; d++)
            c->values8[i * v_stride + d] = (int8_t)((int)test_rng_below(rng, 255) - 127);
    for (size_t i = 0; i < n_scales; i++) {
        c->key_scales[i] = dt_f32_to_f16(0.005f + 0.02f * test_rng_float(rng));
        c->value_scales[i] = dt_f32_to_f16(0.005f + 0.02f * test_rng_float(rng));
    }
}

static double key_of(const attn_case *c, int row, int d) {
    int at = row / 16 * 16 * c->head_dim + d * 16 + row % 16;
    if (c->kv == DT_KV_F16)
        return dt_f16_to_f32(c->keys[at]);
    int scale = (row / 16 * dt_kv_blocks(c->head_dim) + d / DT_KV_BLOCK) * 16 + row % 16;
    return (double)dt_f16_to_f32(c->key_scales[scale]) * c->keys8[at];
}

static double value_of(const attn_case *c, int row, int d) {
    int at = row * c->range.v_stride + d;
    if (c->kv == DT_KV_F16)
        return dt_f16_to_f32(c->values[at]);
    int scale = row * dt_kv_blocks(c->head_dim) + d / DT_KV_BLOCK;
    return (double)dt_f16_to_f32(c->value_scales[scale]) * c->values8[at];
}

static void poison(attn_case *c, int row, int v_stride) {
    for (int d = 0; d < c->head_dim; d++) {
        if (c->kv == DT_KV_F16)
            c->values[row * v_stride + d] = 0x7e00;
        else
            c->value_scales[row * dt_kv_blocks(c->head_dim) + d / DT_KV_BLOCK] = 0x7e00;
    }
}

static void make_case(attn_case *c, test_rng *rng) {
    static const int dims[] = {16, 24, 64, 80, 128, 256};
    c->head_dim = dims[test_rng_below(rng, DT_COUNT(dims))];
    c->n_group = 1 + (int)test_rng_below(rng, HEADS_MAX);
    c->n_rows = 1 + (int)test_rng_below(rng, ROWS_MAX);
    c->n_committed = (int)test_rng_below(rng, 1050);
    c->position0 = (int)test_rng_below(rng, (uint32_t)(c->n_committed / 512 + 1)) * 512;
    int v_stride = (c->head_dim + 15) / 16 * 16;
    c->kv = test_rng_below(rng, 3) ? DT_KV_F16 : DT_KV_Q8_0;
    fill_cache(c, v_stride, rng);
    size_t n_q = (size_t)(c->n_rows * c->n_group * c->head_dim);
    c->q = check_memory(n_q * sizeof(float));
    for (size_t i = 0; i < n_q; i++)
        c->q[i] = check_normal(rng) * (test_rng_below(rng, 50) ? 1.0f : 30.0f);
    /* A third of the cases have a sliding window, smaller or larger than a range. */
    int window = test_rng_below(rng, 3) ? 0 : 1 + (int)test_rng_below(rng, 700);
    int last = 0;
    for (int r = 0; r < c->n_rows; r++) {
        /* A chain, or ancestors that lie apart in the rows after the committed ones. */
        int depth = 1 + (int)test_rng_below(rng, 40), at = c->n_committed;
        bool apart = test_rng_below(rng, 2);
        for (int i = 0; i < depth; i++) {
            c->ancestors[r][i] = at;
            at += 1 + (apart ? (int)test_rng_below(rng, 2) : 0);
        }
        c->n_positions[r] = c->n_committed + depth;
        int first = window ? DT_MAX(c->n_positions[r] - window, 0) : 0;
        c->rows[r] = (dt_attn_row){c->n_positions[r], c->ancestors[r], first};
        last = DT_MAX(last, first);
    }
    /* What a row does not see must not reach it through the rows that do. */
    c->poisoned = last > 0 && last <= c->n_committed ? last - 1 : -1;
    if (c->poisoned >= 0)
        poison(c, c->poisoned, v_stride);
    size_t stride = (size_t)v_stride + 16;
    c->n_part = (size_t)c->n_rows * (size_t)c->n_group * stride;
    c->part = check_memory(c->n_part * sizeof(float));
    c->scores = check_memory(DT_ATTN_QUERIES * DT_ATTN_RANGE * sizeof(float));
    bool q8 = c->kv == DT_KV_Q8_0;
    c->range = (dt_attn_range){.head_dim = c->head_dim,
        .v_stride = v_stride,
        .n_group = c->n_group,
        .n_rows = c->n_rows,
        .n_committed = c->n_committed,
        .position0 = c->position0,
        .scale = 1.0f / sqrtf((float)c->head_dim),
        .rows = c->rows,
        .q = c->q,
        .q_stride = (size_t)(c->n_group * c->head_dim),
        .kv = c->kv,
        .keys = q8 ? (void *)c->keys8 : c->keys,
        .values = q8 ? (void *)c->values8 : c->values,
        .key_step = DT_ATTN_RANGE * (size_t)c->head_dim,
        .value_step = DT_ATTN_RANGE * (size_t)v_stride,
        .key_scales = c->key_scales,
        .value_scales = c->value_scales,
        .scale_step = DT_ATTN_RANGE * (size_t)dt_kv_blocks(c->head_dim),
        .part = c->part,
        .part_row_stride = (size_t)c->n_group * stride,
        .part_stride = stride,
        .scores = c->scores};
}

/* Largest error of the C result against double precision, in units of what rounding allows. */
static double error_of(const attn_case *c) {
    double worst = 0;
    for (int r = 0; r < c->n_rows; r++)
        for (int g = 0; g < c->n_group; g++) {
            const float *q = c->q + (r * c->n_group + g) * c->head_dim;
            const float *part = c->part + (size_t)(r * c->n_group + g) * c->range.part_stride;
            double scores[DT_ATTN_RANGE], max = -INFINITY, size = 0, sum = 0;
            int at[DT_ATTN_RANGE], n = 0, first = c->rows[r].first;
            if (first <= c->poisoned && c->poisoned >= c->position0 &&
                c->poisoned < c->position0 + DT_ATTN_RANGE) {
                if (part[16] == part[16])
                    return INFINITY;
                continue;
            }
            for (int p = DT_MAX(c->position0, first);
                 p < DT_MIN(c->n_positions[r], c->position0 + DT_ATTN_RANGE); p++, n++) {
                at[n] = p < c->n_committed ? p : c->ancestors[r][p - c->n_committed];
                double s = 0, absolute = 0;
                for (int d = 0; d < c->head_dim; d++) {
                    double k = key_of(c, at[n], d);
                    s += q[d] * k;
                    absolute += fabs(q[d] * k);
                }
                scores[n] = s / sqrt(c->head_dim);
                size = fmax(size, absolute / sqrt(c->head_dim));
                max = fmax(max, scores[n]);
            }
            if (n == 0) {
                if (part[0] != -INFINITY || part[1] != 0.0f)
                    return INFINITY;
                continue;
            }
            /* A chain of n roundings over terms of that size, twice (the score and the maximum). */
            double relative = (2 * (c->head_dim + 2) * size + n + 16) * 0x1p-24;
            for (int i = 0; i < n; i++)
                sum += scores[i] = exp(scores[i] - max);
            worst = fmax(worst, fabs(part[1] - sum) / (sum * relative));
            for (int d = 0; d < c->head_dim; d++) {
                double o = 0, absolute = 0;
                for (int i = 0; i < n; i++) {
                    double v = value_of(c, at[i], d);
                    o += scores[i] * v;
                    absolute += fabs(scores[i] * v);
                }
                worst = fmax(worst, fabs(part[16 + d] - o) / (absolute * relative + 1e-30));
            }
        }
    return worst;
}

typedef struct call {
    const dt_kernels *table;
    const dt_attn_range *range;
} call;

static void call_range(void *arg) {
    const call *c = arg;
    c->table->attn_range(c->range);
}

/* Each row alone must give what it gave among the others. */
static bool same_alone(const attn_case *c, const float *want) {
    size_t stride = c->range.part_row_stride;
    for (int r = 0; r < c->n_rows; r++) {
        dt_attn_range one = c->range;
        one.n_rows = 1;
        one.rows += r;
        one.q += (size_t)r * one.q_stride;
        one.part += (size_t)r * stride;
        dt_kernels table;
        dt_kernels_get(&table, DT_ISA_C);
        table.attn_range(&one);
        for (size_t i = 0; i < stride; i++)
            if (!check_same(want[(size_t)r * stride + i], one.part[i]))
                return false;
    }
    return true;
}

static int check_one(const check_run *run, test_rng *rng, const dt_kernels *table) {
    attn_case c = {0};
    make_case(&c, rng);
    memset(c.part, 0xa5, c.n_part * sizeof(float));
    run->c.attn_range(&c.range);
    double error = error_of(&c);
    if (!(error <= 1.0))
        return check_failed(run, "attn_range", "the C reference is %.2f of the bound off", error);
    float *want = check_memory(c.n_part * sizeof(float));
    memcpy(want, c.part, c.n_part * sizeof(float));
    if (!same_alone(&c, want))
        return check_failed(run, "attn_range", "a row depends on its neighbours");
    memset(c.part, 0xa5, c.n_part * sizeof(float));
    if (!check_survives(call_range, &(call){table, &c.range}))
        return check_failed(run, "attn_range", "died of %s", check_signal);
    for (size_t i = 0; i < c.n_part; i++)
        if (!check_same(want[i], c.part[i]))
            return check_failed(run, "attn_range",
                "kv %d, dim %d, group %d, rows %d, committed %d, range at %d: value %zu is %g, not "
                "%g",
                (int)c.kv, c.head_dim, c.n_group, c.n_rows, c.n_committed, c.position0, i,
                (double)c.part[i], (double)want[i]);
    return 0;
}

int check_attn(const check_run *run) {
    if (run->table.attn_range == run->below.attn_range &&
        run->table.attn_range != run->c.attn_range)
        return 0;
    test_rng rng = {run->seed};
    for (int i = 0; i < 60; i++) {
        int failed = check_one(run, &rng, &run->table);
        check_memory_reset();
        if (failed)
            return 1;
    }
    printf("%s attn_range ok\n", run->isa);
    return 0;
}

/* Wrong on purpose. */
static dt_attn_range_fn right;

static void break_newest(const dt_attn_range *a) {
    dt_attn_row rows[ROWS_MAX];
    for (int r = 0; r < a->n_rows; r++)
        rows[r] = (dt_attn_row){a->rows[r].n_positions - 1, a->rows[r].ancestors, a->rows[r].first};
    dt_attn_range b = *a;
    b.rows = rows;
    right(&b);
}

static void break_row_places(const dt_attn_range *a) {
    static int32_t chain[64];
    dt_attn_row rows[ROWS_MAX];
    for (int i = 0; i < 64; i++)
        chain[i] = a->n_committed + i;
    for (int r = 0; r < a->n_rows; r++)
        rows[r] = (dt_attn_row){a->rows[r].n_positions, chain, a->rows[r].first};
    dt_attn_range b = *a;
    b.rows = rows;
    right(&b);
}

static void break_window(const dt_attn_range *a) {
    dt_attn_row rows[ROWS_MAX];
    for (int r = 0; r < a->n_rows; r++)
        rows[r] = (dt_attn_row){
            a->rows[r].n_positions, a->rows[r].ancestors, DT_MAX(a->rows[r].first - 1, 0)};
    dt_attn_range b = *a;
    b.rows = rows;
    right(&b);
}

static void break_last_lane(const dt_attn_range *a) {
    right(a);
    a->part[16 + a->head_dim - 1] += 1.0f;
}

static void break_beyond(const dt_attn_range *a) {
    right(a);
    volatile float *beyond = a->part + (size_t)a->n_rows * a->part_row_stride + 16;
    *beyond = 1.0f;
}

int check_attn_breaks(const check_run *run) {
    static const struct {
        const char *name;
        dt_attn_range_fn fn;
    } breaks[] = {{"the newest key is forgotten", break_newest},
        {"a tree's rows are taken as a chain", break_row_places},
        {"a window one key too long", break_window}, {"a wrong last lane", break_last_lane},
        {"a write past the end", break_beyond}};
    int n_missed = 0;
    right = run->c.attn_range;
    for (size_t i = 0; i < DT_COUNT(breaks); i++) {
        check_run broken = *run;
        broken.quiet = true;
        dt_kernels table = run->table;
        table.attn_range = breaks[i].fn;
        test_rng rng = {run->seed};
        int noticed = 0;
        for (int j = 0; j < 60 && !noticed; j++) {
            noticed = check_one(&broken, &rng, &table);
            check_memory_reset();
        }
        printf("%s attn_range: %s: %s\n", run->isa, breaks[i].name, noticed ? "noticed" : "MISSED");
        n_missed += !noticed;
    }
    return n_missed;
}

void check_attn_bench(const check_run *run, const char *pattern) {
    if (pattern && !strstr("attn_range", pattern))
        return;
    static const int n_rows[] = {1, 8, 16};
    for (size_t i = 0; i < DT_COUNT(n_rows); i++) {
        /* A KV head of the 1.5B at depth 512: six query heads of 128. */
        test_rng rng = {run->seed};
        attn_case c;
        do {
            check_memory_reset();
            make_case(&c, &rng);
        } while (c.head_dim != 128 || c.n_group != 6 || c.n_committed < 512 ||
                 c.n_rows < n_rows[i] || c.rows[0].first > 0);
        c.range.n_rows = n_rows[i];
        c.range.position0 = 0;
        double samples[31];
        for (int s = 0; s < 31; s++) {
            int64_t start = dt_time_ns();
            run->table.attn_range(&c.range);
            samples[s] = (double)(dt_time_ns() - start);
        }
        double ns = check_median(samples, 31);
        printf("%-8s attn_range rows %2d heads 6 dim 128 keys 512: %7.1f us, %6.1f GFLOP/s\n",
            run->isa, n_rows[i], ns / 1e3, 4.0 * 512 * 128 * 6 * n_rows[i] / ns);
        check_memory_reset();
    }
}
