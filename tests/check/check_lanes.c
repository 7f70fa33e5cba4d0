/* The element-wise kernels: variants against the C table in bits, the C table against double
 * precision. */
#include <math.h>

#include "src/base/dtype.h"
#include "tests/check/check.h"

enum { N_MAX = 300, GUARD = 16 };

typedef struct lanes_case {
    int n;
    bool halves;
    float x[N_MAX + 16], y[N_MAX + 16], w[N_MAX + 16];
} lanes_case;

/* Every kernel on the same data; out holds its results one after the other, poison between. */
typedef struct lanes_out {
    float norm[N_MAX + GUARD], gate[N_MAX + GUARD], gelu[N_MAX + GUARD], rest[N_MAX + GUARD],
        sum[N_MAX + GUARD], turned[N_MAX + GUARD], combined[N_MAX + GUARD];
    uint16_t half[N_MAX + GUARD];
} lanes_out;

typedef struct lanes_call {
    const dt_kernels *table;
    const lanes_case *c;
    lanes_out *out;
} lanes_call;

static void run_all(void *arg) {
    const lanes_call *call = arg;
    const lanes_case *c = call->c;
    lanes_out *out = call->out;
    const dt_kernels *k = call->table;
    memset(out, 0xa5, sizeof *out);
    k->rms_norm(out->norm, c->x, c->w, c->n, 1e-6f);
    k->swiglu(out->gate, c->x, c->y, c->n);
    k->geglu(out->gelu, c->x, c->y, c->n);
    int8_t q[N_MAX];
    for (int i = 0; i < c->n; i++)
        q[i] = (int8_t)(i * 37 % 255 - 127);
    memcpy(out->rest, c->x, (size_t)c->n * sizeof(float));
    k->subtract_q8(out->rest, q, c->w, 32, c->n / 32 * 32);
    memcpy(out->sum, c->x, (size_t)c->n * sizeof(float));
    k->add(out->sum, c->y, c->n);
    memcpy(out->turned, c->x, (size_t)c->n * sizeof(float));
    k->rope(out->turned, c->w, c->n / 2 * 2, c->halves);
    k->to_f16(out->half, c->x, c->n);
    /* Three parts of one query: max, sum, values. */
    int dim = DT_MIN(c->n, 64);
    float parts[3][80];
    for (int i = 0; i < 3; i++) {
        memset(parts[i], 0, sizeof parts[i]);
        parts[i][0] = c->x[i] == c->x[i] ? c->x[i] : 0.0f;
        parts[i][1] = 1.0f + fabsf(c->w[i]);
        memcpy(parts[i] + 16, c->y, (size_t)dim * sizeof(float));
    }
    k->attn_combine(out->combined, dim, parts[0], 80, 3);
}

static void fill(lanes_case *c, test_rng *rng, int kind) {
    c->n = 2 + (int)test_rng_below(rng, N_MAX - 2);
    c->halves = test_rng_below(rng, 2);
    check_fill_row(c->x, c->n, kind, rng);
    check_fill_row(c->y, c->n, 0, rng);
    check_fill_row(c->w, c->n, 0, rng);
}

/* NULL, or what of the C results is further from double precision than rounding explains. */
static const char *against_double(const lanes_case *c, const lanes_out *out) {
    const double eps = 0x1p-24;
    double squares = 0;
    for (int i = 0; i < c->n; i++)
        squares += (double)c->x[i] * c->x[i];
    double scale = 1.0 / sqrt(squares / c->n + 1e-6);
    int n_pairs = c->n / 2;
    for (int i = 0; i < c->n; i++) {
        double norm = c->x[i] * scale * c->w[i];
        if (fabs(out->norm[i] - norm) > fabs(norm) * (c->n / 16 + 12) * eps)
            return "rms_norm";
        double gate = c->x[i] / (1.0 + exp(-(double)c->x[i])) * c->y[i];
        /* Below -88 the exponential stays at e^88: x / e^88 instead of 0. */
        if (fabs(out->gate[i] - gate) > fabs(gate) * 12 * eps + 1e-34)
            return "swiglu";
        double x = c->x[i], z = 0.7978845608028654 * (x + 0.044715 * x * x * x);
        double gelu = x / (1.0 + exp(-2.0 * z)) * c->y[i];
        /* The exponent is rounded twice at its own size. */
        if (fabs(out->gelu[i] - gelu) >
            fabs(gelu) * (12 + 6 * fmin(fabs(z), 44.0)) * eps + 1e-34 * (1 + fabs(c->y[i])))
            return "geglu";
        double step = i < c->n / 32 * 32 ? (double)c->w[i / 32] * (i * 37 % 255 - 127) : 0.0;
        if (fabs(out->rest[i] - (c->x[i] - step)) > fabs(c->x[i] - step) * eps)
            return "subtract_q8";
        if (out->half[i] != dt_f32_to_f16(c->x[i]))
            return "to_f16";
    }
    for (int i = 0; i < n_pairs; i++) {
        int a = c->halves ? i : 2 * i, b = c->halves ? i + n_pairs : 2 * i + 1;
        double cs = c->w[2 * i], sn = c->w[2 * i + 1];
        double size = fabs(c->x[a]) * (fabs(cs) + fabs(sn)) + fabs(c->x[b]) * (fabs(cs) + fabs(sn));
        if (fabs(out->turned[a] - (c->x[a] * cs - c->x[b] * sn)) > 3 * eps * size ||
            fabs(out->turned[b] - (c->x[b] * cs + c->x[a] * sn)) > 3 * eps * size)
            return "rope";
    }
    return NULL;
}

static int compare_floats(const float *a, const float *b) {
    for (int i = 0; i < N_MAX + GUARD; i++)
        if (!check_same(a[i], b[i]))
            return 1;
    return 0;
}

static int check_tables(const check_run *run, const dt_kernels *table) {
    test_rng rng = {run->seed};
    for (int i = 0; i < 400; i++) {
        lanes_case c = {0};
        static lanes_out want, got;
        fill(&c, &rng, i % CHECK_ROW_KINDS);
        run_all(&(lanes_call){&run->c, &c, &want});
        const char *off = i % CHECK_ROW_KINDS < 5 ? against_double(&c, &want) : NULL;
        if (off)
            return check_failed(run, off, "the C reference is off");
        if (!check_survives(run_all, &(lanes_call){table, &c, &got}))
            return check_failed(run, "lanes", "died of %s", check_signal);
        const char *name = compare_floats(want.norm, got.norm)             ? "rms_norm"
                           : compare_floats(want.gate, got.gate)           ? "swiglu"
                           : compare_floats(want.gelu, got.gelu)           ? "geglu"
                           : compare_floats(want.rest, got.rest)           ? "subtract_q8"
                           : compare_floats(want.sum, got.sum)             ? "add"
                           : compare_floats(want.turned, got.turned)       ? "rope"
                           : compare_floats(want.combined, got.combined)   ? "attn_combine"
                           : memcmp(want.half, got.half, sizeof want.half) ? "to_f16"
                                                                           : NULL;
        if (name)
            return check_failed(run, name, "n %d, kind %d: differs", c.n, i % CHECK_ROW_KINDS);
    }
    return 0;
}

int check_lanes(const check_run *run) {
    if (check_tables(run, &run->table))
        return 1;
    printf("%s lanes ok\n", run->isa);
    return 0;
}

static dt_kernels right;

static void break_norm(float *y, const float *x, const float *w, int n, float eps) {
    right.rms_norm(y, x, w, n - n % 16, eps);
}

static void break_gate(float *y, const float *gate, const float *up, int n) {
    right.swiglu(y, gate, up, n);
    y[n] = 0.0f;
}

static void break_rope(float *head, const float *cos_sin, int n_rot, bool halves) {
    right.rope(head, cos_sin, n_rot, !halves);
}

int check_lanes_breaks(const check_run *run) {
    static const char *const names[] = {
        "norm without its tail", "gate past the end", "rope pairing"};
    int n_missed = 0;
    right = run->c;
    for (int i = 0; i < 3; i++) {
        check_run broken = *run;
        broken.quiet = true;
        dt_kernels table = run->c;
        if (i == 0)
            table.rms_norm = break_norm;
        else if (i == 1)
            table.swiglu = break_gate;
        else
            table.rope = break_rope;
        bool noticed = check_tables(&broken, &table) != 0;
        printf("%s lanes: %s: %s\n", run->isa, names[i], noticed ? "noticed" : "MISSED");
        n_missed += !noticed;
    }
    return n_missed;
}

void check_lanes_bench(const check_run *run, const char *pattern) {
    if (pattern && !strstr("lanes", pattern))
        return;
    enum { N = 8960 };
    static float x[N], y[N], z[N];
    test_rng rng = {run->seed};
    check_fill_row(x, N, 0, &rng);
    check_fill_row(y, N, 0, &rng);
    double norm[31], gate[31];
    for (int s = 0; s < 31; s++) {
        int64_t t0 = dt_time_ns();
        run->table.rms_norm(z, x, y, N, 1e-6f);
        int64_t t1 = dt_time_ns();
        run->table.swiglu(z, x, y, N);
        norm[s] = (double)(t1 - t0);
        gate[s] = (double)(dt_time_ns() - t1);
    }
    printf("%-8s lanes n %d: rms_norm %.2f us, swiglu %.2f us\n", run->isa, N,
        check_median(norm, 31) / 1e3, check_median(gate, 31) / 1e3);
}
