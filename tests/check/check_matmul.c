#include <math.h>

#include "cpu/layout.h"
#include "tests/check/check_weights.h"

enum { N_ROWS = 72, M_MAX = 64, ROWS = DT_PANEL_ROWS, POISON = 0x7fa5a5a5 };

/* A packed tensor, activations, and what the reference says of them. */
typedef struct matmul_case {
    dt_type type;
    int k, n_out;
    uint8_t *file; /* the tensor's bytes */
    dt_packed packed;
    dt_act act;  /* [N_ROWS] */
    float *want; /* [n_panels][N_ROWS][16] */
} matmul_case;

static void kernel_name(char out[40], dt_type type) {
    snprintf(out, 40, "matmul_%s", dt_type_name(type));
    for (char *c = out; *c; c++)
        if (*c >= 'A' && *c <= 'Z' && !(*c == 'K' && c[-1] == '_'))
            *c += 'a' - 'A';
}

static int act_block(dt_type type) {
    return dt_type_block(type) == 1 ? 0 : dt_type_block(type);
}

/* `x` gets the plain rows; quantised by the reference. */
static void fill_act(
    dt_act *act, const dt_kernels *c, dt_type type, int k, int n_rows, test_rng *rng) {
    size_t rows = (size_t)n_rows, width = (size_t)k;
    float *x = check_memory(rows * width * sizeof *x);
    *act = (dt_act){.k = k, .block = act_block(type), .x = x, .x_stride = width};
    for (int r = 0; r < n_rows; r++)
        check_fill_row(x + (size_t)r * width, k, r % 11 % CHECK_ROW_KINDS, rng);
    if (act->block == 0)
        return;
    act->q = check_memory(rows * width);
    act->d = check_memory(rows * width / (size_t)act->block * sizeof *act->d);
    act->sum32 = check_memory(rows * width / 32 * sizeof *act->sum32);
    if (act->block == 256)
        act->sum16 = check_memory(rows * width / 16 * sizeof *act->sum16);
    for (int r = 0; r < n_rows; r++)
        c->quantise(act, r, x + (size_t)r * width);
    act->x = NULL; /* nobody reads it */
}

static dt_tensor tensor_of(const matmul_case *mc) {
    return (dt_tensor){.name = "check",
        .type = mc->type,
        .n_dims = 2,
        .ne = {mc->k, mc->n_out, 1, 1},
        .data = mc->file,
        .n_bytes = dt_type_row_bytes(mc->type, mc->k) * (size_t)mc->n_out};
}

static void open_case(
    matmul_case *mc, const dt_kernels *c, dt_type type, int k, int n_out, test_rng *rng) {
    *mc = (matmul_case){.type = type, .k = k, .n_out = n_out};
    mc->file = check_memory(dt_type_row_bytes(type, k) * (size_t)n_out);
    weights_random(mc->file, type, n_out, k, rng);
    dt_tensor tensor = tensor_of(mc);
    int n_panels = (n_out + ROWS - 1) / ROWS;
    size_t panel_bytes = dt_pack_panel_bytes(type, k);
    uint8_t *data = check_memory(panel_bytes * (size_t)n_panels);
    memset(data, 0xa5, panel_bytes * (size_t)n_panels);
    for (int p = 0; p < n_panels; p++)
        dt_pack_panel(data + (size_t)p * panel_bytes, &tensor, p);
    mc->packed = (dt_packed){type, n_out, k, n_panels, panel_bytes, data};
    fill_act(&mc->act, c, type, k, N_ROWS, rng);
    mc->want = check_memory((size_t)n_panels * N_ROWS * ROWS * sizeof *mc->want);
    for (int p = 0; p < n_panels; p++)
        c->matmul[type](mc->want + (size_t)p * N_ROWS * ROWS, ROWS, data + (size_t)p * panel_bytes,
            &mc->act, 0, N_ROWS);
}

typedef struct call {
    dt_matmul_fn fn;
    float *out;
    size_t out_stride;
    const uint8_t *panel;
    const dt_act *act;
    int row0, n_rows;
} call;

static void do_call(void *arg) {
    call *c = arg;
    c->fn(c->out, c->out_stride, c->panel, c->act, c->row0, c->n_rows);
}

/* One call on a poisoned buffer with room of 64 floats on either side: the outputs are the
 * reference's bits, nothing else has changed. */
static int check_call(const check_run *run, const char *name, const matmul_case *mc,
    dt_matmul_fn fn, int i_panel, int row0, int m, size_t out_stride) {
    enum { ROOM = 64 };
    static uint32_t buffer[2 * ROOM + M_MAX * 64];
    size_t n = 2 * ROOM + (size_t)m * out_stride;
    for (size_t i = 0; i < n; i++)
        buffer[i] = POISON;
    float *out = (float *)(void *)(buffer + ROOM);
    call c = {fn, out, out_stride, mc->packed.data + (size_t)i_panel * mc->packed.panel_bytes,
        &mc->act, row0, m};
    if (!check_survives(do_call, &c))
        return check_failed(run, name, "%s at k %d, m %d, row0 %d", check_signal, mc->k, m, row0);
    const float *want = mc->want + ((size_t)i_panel * N_ROWS + (size_t)row0) * ROWS;
    for (size_t i = 0; i < n; i++) {
        size_t at = i - ROOM, row = at / out_stride, lane = at % out_stride;
        bool output = i >= ROOM && row < (size_t)m && lane < ROWS;
        if (!output && buffer[i] != POISON)
            return check_failed(run, name, "wrote outside, float %ld, at k %d, m %d, stride %zu",
                (long)i - ROOM, mc->k, m, out_stride);
        if (output && !check_same(out[at], want[row * ROWS + lane]))
            return check_failed(run, name,
                "k %d, panel %d, row %zu of %d from %d, lane %zu: "
                "%.9g, want %.9g",
                mc->k, i_panel, row, m, row0, lane, (double)out[at],
                (double)want[row * ROWS + lane]);
    }
    return 0;
}

/* Every number of rows from every remainder of a first row. */
static int check_variant(
    const check_run *run, const char *name, const matmul_case *mc, dt_matmul_fn fn, test_rng *rng) {
    for (int m = 1; m <= M_MAX; m++) {
        int row0 = (int)test_rng_below(rng, (uint32_t)(N_ROWS - m + 1));
        int i_panel = m % mc->packed.n_panels;
        size_t out_stride = ROWS + test_rng_below(rng, 48);
        if (check_call(run, name, mc, fn, i_panel, row0, m, out_stride))
            return 1;
    }
    return check_call(run, name, mc, fn, mc->packed.n_panels - 1, 0, M_MAX, ROWS);
}

/* The reference against double precision. Its float steps per block are at most two products d dx,
 * two conversions and two fused additions, each off by 2^-24 of a number no larger than the sum
 * T of all terms' magnitudes; products below the normal range are off by 2^-150 instead, times an
 * integer below 2^28. */
static int check_exact(const check_run *run, const char *name, const matmul_case *mc) {
    int block = dt_type_block(mc->type), block_bytes = dt_type_block_bytes(mc->type);
    int n_blocks = mc->k / block;
    for (int o = 0; o < mc->n_out; o += 5)
        for (int r = 0; r < N_ROWS; r += 1 + mc->k / 600) {
            double sum = 0.0, size = 0.0;
            for (int i = 0; i < mc->k; i++) {
                double one, x;
                double w = weights_exact(&one, mc->type,
                    mc->file +
                        ((size_t)o * (size_t)n_blocks + (size_t)(i / block)) * (size_t)block_bytes,
                    i % block);
                size_t at = (size_t)r * (size_t)mc->k + (size_t)i;
                x = mc->act.block == 0 ? (double)mc->act.x[at]
                                       : (double)mc->act.d[at / (size_t)block] * mc->act.q[at];
                sum += w * x;
                size += one * fabs(x);
            }
            float got =
                mc->want[((size_t)(o / ROWS) * N_ROWS + (size_t)r) * ROWS + (size_t)(o % ROWS)];
            double bound = (2 * n_blocks + 4) * 0x1p-24 * size + n_blocks * 0x1p-120;
            if (!isfinite(sum)) {
                if (isfinite(got))
                    return check_failed(run, name, "k %d: finite, want %g", mc->k, sum);
            } else if (size < 1e38 && !(fabs(got - sum) <= bound)) {
                return check_failed(run, name,
                    "k %d, output %d, row %d: %.9g is off %.9g by %g, "
                    "bound %g",
                    mc->k, o, r, (double)got, sum, got - sum, bound);
            }
        }
    return 0;
}

/* Unpacking gives dt_dequantise's bits, rows beyond the tensor give zero, the size is kept. */
static int check_pack(const check_run *run, const char *name, const matmul_case *mc) {
    size_t row_bytes = dt_type_row_bytes(mc->type, mc->k), width = (size_t)mc->k * sizeof(float);
    float *want = check_memory(width), *got = check_memory(width);
    for (int o = 0; o < mc->packed.n_panels * ROWS; o++) {
        dt_pack_dequantise(got, &mc->packed, o);
        if (o < mc->n_out)
            dt_dequantise(want, mc->file + (size_t)o * row_bytes, mc->type, mc->k);
        for (int i = 0; i < mc->k; i++)
            if (o < mc->n_out ? !check_same(got[i], want[i]) : got[i] != 0.0f)
                return check_failed(run, name, "k %d, row %d, weight %d unpacks as %.9g", mc->k, o,
                    i, (double)got[i]);
    }
    size_t file = row_bytes * ROWS, packed = mc->packed.panel_bytes;
    if (packed % 64 || (double)packed > 1.04 * (double)file + 64)
        return check_failed(
            run, name, "k %d: %zu bytes a panel, the file has %zu", mc->k, packed, file);
    return 0;
}

static test_rng rng_of(const check_run *run, dt_type type) {
    return (test_rng){run->seed * 31 + (uint64_t)type};
}

static int check_type(const check_run *run, dt_type type, dt_matmul_fn fn, bool reference) {
    static const int blocks[] = {1, 2, 3, 8, 35};
    static const int outs[] = {1, 16, 37, 20, 17};
    char name[40];
    kernel_name(name, type);
    test_rng rng = rng_of(run, type);
    int failed = 0;
    for (size_t i = 0; i < DT_COUNT(blocks) && !failed; i++) {
        int k = dt_type_block(type) * blocks[i];
        matmul_case mc;
        open_case(&mc, &run->c, type, k, outs[i], &rng);
        if (reference)
            failed = check_pack(run, name, &mc) || check_exact(run, name, &mc);
        failed = failed || check_variant(run, name, &mc, fn, &rng);
        check_memory_reset();
    }
    return failed;
}

int check_matmul(const check_run *run) {
    int n_failed = 0;
    for (int type = 0; type < DT_TYPE_COUNT; type++) {
        dt_matmul_fn fn = run->table.matmul[type];
        bool reference = fn == run->c.matmul[type];
        if (!fn) {
            if (dt_type_known((uint32_t)type))
                n_failed += check_failed(run, dt_type_name((uint32_t)type), "no kernel");
            continue;
        }
        if (fn == run->below.matmul[type])
            continue;
        char name[40];
        kernel_name(name, (dt_type)type);
        if (check_type(run, (dt_type)type, fn, reference))
            n_failed++;
        else
            printf("%s %s ok\n", run->isa, name);
    }
    return n_failed;
}

/* ---- kernels that are wrong on purpose ---- */

static dt_matmul_fn break_q4_K, break_q8_0;

static void broken_last_row(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    break_q4_K(out, out_stride, panel, act, row0, n_rows);
    float *last = out + (size_t)(n_rows - 1) * out_stride + ROWS - 1;
    *last = nextafterf(*last, 1e30f);
}
static void broken_row0(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    (void)row0;
    break_q4_K(out, out_stride, panel, act, 0, n_rows);
}
static void broken_too_few(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    break_q4_K(out, out_stride, panel, act, row0, n_rows - 1);
}
static void broken_past_row(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    break_q4_K(out, out_stride, panel, act, row0, n_rows);
    out[(size_t)(n_rows - 1) * out_stride + ROWS] = 0.0f;
}
static void broken_before(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    break_q4_K(out, out_stride, panel, act, row0, n_rows);
    out[-1] = 0.0f;
}
static void broken_reads_past(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    break_q4_K(out, out_stride, panel, act, row0, n_rows);
    (void)((const volatile uint8_t *)panel)[dt_pack_panel_bytes(DT_TYPE_Q4_K, act->k)];
}

static uint8_t changed[35 * DT_Q4K_BYTES];

static void broken_nibble(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    memcpy(changed, panel, dt_pack_panel_bytes(DT_TYPE_Q4_K, act->k));
    for (int i = 0; i < DT_LINE; i++) {
        uint8_t *b = changed + DT_Q4K_LINES + 31 * DT_LINE + i;
        *b = (uint8_t)(*b << 4 | *b >> 4);
    }
    break_q4_K(out, out_stride, changed, act, row0, n_rows);
}
static void broken_min(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    memcpy(changed, panel, dt_pack_panel_bytes(DT_TYPE_Q4_K, act->k));
    memset(changed + DT_KM_MIN + 96, 0, 32);
    break_q4_K(out, out_stride, changed, act, row0, n_rows);
}
/* -128 taken for -127, as a kernel that negates bytes does. */
static void broken_lowest(
    float *out, size_t out_stride, const uint8_t *panel, const dt_act *act, int row0, int n_rows) {
    size_t n = dt_pack_panel_bytes(DT_TYPE_Q8_0, act->k);
    memcpy(changed, panel, n);
    for (size_t i = DT_LINE; i < n; i++)
        if (i % (2 * DT_Q80_BODY + DT_LINE) >= DT_LINE && changed[i] == 0x80)
            changed[i] = 0x81;
    break_q8_0(out, out_stride, changed, act, row0, n_rows);
}

int check_matmul_breaks(const check_run *run) {
    static const struct {
        const char *what;
        dt_matmul_fn fn;
        dt_type type;
    } broken[] = {
        {"wrong last row", broken_last_row, DT_TYPE_Q4_K},
        {"first row ignored", broken_row0, DT_TYPE_Q4_K},
        {"one row too few", broken_too_few, DT_TYPE_Q4_K},
        {"writes past the end", broken_past_row, DT_TYPE_Q4_K},
        {"writes before the start", broken_before, DT_TYPE_Q4_K},
        {"reads past the panel", broken_reads_past, DT_TYPE_Q4_K},
        {"swapped nibbles", broken_nibble, DT_TYPE_Q4_K},
        {"missing minima", broken_min, DT_TYPE_Q4_K},
        {"lowest int8", broken_lowest, DT_TYPE_Q8_0},
    };
    int n_missed = 0;
    break_q4_K = run->c.matmul[DT_TYPE_Q4_K];
    break_q8_0 = run->c.matmul[DT_TYPE_Q8_0];
    for (size_t i = 0; i < DT_COUNT(broken); i++) {
        bool noticed = check_type(run, broken[i].type, broken[i].fn, false) != 0;
        printf("matmul %s: %s\n", broken[i].what, noticed ? "noticed" : "NOT NOTICED");
        n_missed += !noticed;
    }
    return n_missed;
}

/* ---- speed ---- */

enum { BENCH_K = 2048, BENCH_ROWS = 32, BENCH_SAMPLES = 400 };
static const size_t bench_hot_bytes = 320 << 10, bench_memory_bytes = (size_t)256 << 20;
static const size_t bench_sample_bytes = 2 << 20;

/* ns per byte of packed weights, walking round `n_bytes` of panels for some 0.15 s. */
static double bench_walk(dt_matmul_fn fn, const uint8_t *panels, size_t panel_bytes, size_t n_bytes,
    const dt_act *act, int m) {
    static float out[BENCH_ROWS * ROWS];
    static double samples[BENCH_SAMPLES];
    size_t n_panels = n_bytes / panel_bytes, at = 0;
    size_t per_sample = DT_MAX(bench_sample_bytes / panel_bytes / (size_t)m, 1);
    int n = 0;
    for (size_t i = 0; i < n_panels && n_bytes < bench_memory_bytes; i++)
        fn(out, ROWS, panels + i * panel_bytes, act, 0, m);
    int64_t end = dt_time_ns() + 150000000;
    while (n < BENCH_SAMPLES && (n < 3 || dt_time_ns() < end)) {
        int64_t start = dt_time_ns();
        for (size_t i = 0; i < per_sample; i++, at = at + 1 == n_panels ? 0 : at + 1)
            fn(out, ROWS, panels + at * panel_bytes, act, 0, m);
        samples[n++] = (double)(dt_time_ns() - start) / (double)(per_sample * panel_bytes);
    }
    return check_median(samples, n);
}

static void bench_type(const check_run *run, dt_type type, uint8_t *memory) {
    static const int ms[] = {1, 2, 4, 8, 16, 32};
    char name[40];
    kernel_name(name, type);
    test_rng rng = rng_of(run, type);
    matmul_case mc;
    size_t panel_bytes = dt_pack_panel_bytes(type, BENCH_K);
    int n_hot = (int)(bench_hot_bytes / panel_bytes);
    open_case(&mc, &run->c, type, BENCH_K, n_hot * ROWS, &rng);
    for (size_t at = 0; at + panel_bytes <= bench_memory_bytes; at += panel_bytes)
        memcpy(memory + at, mc.packed.data + at / panel_bytes % (size_t)n_hot * panel_bytes,
            panel_bytes);
    for (size_t i = 0; i < DT_COUNT(ms); i++) {
        double hot = bench_walk(run->table.matmul[type], mc.packed.data, panel_bytes,
            panel_bytes * (size_t)n_hot, &mc.act, ms[i]);
        double cold = bench_walk(run->table.matmul[type], memory, panel_bytes,
            bench_memory_bytes / panel_bytes * panel_bytes, &mc.act, ms[i]);
        double macs = (double)BENCH_K * ROWS * ms[i] / (double)panel_bytes; /* per byte */
        printf("%-6s %-12s m %2d: hot %6.1f GB/s %6.1f GMAC/s, memory %6.1f GB/s %6.1f GMAC/s\n",
            run->isa, name, ms[i], 1 / hot, macs / hot, 1 / cold, macs / cold);
    }
    check_memory_reset();
}

static void bench_pack(dt_type type) {
    enum { N_OUT = 4096 };
    test_rng rng = {1};
    matmul_case mc = {.type = type, .k = BENCH_K, .n_out = N_OUT};
    size_t file_bytes = dt_type_row_bytes(type, BENCH_K) * N_OUT;
    mc.file = check_memory(file_bytes);
    weights_random(mc.file, type, N_OUT, BENCH_K, &rng);
    dt_tensor tensor = tensor_of(&mc);
    size_t panel_bytes = dt_pack_panel_bytes(type, BENCH_K);
    uint8_t *out = check_memory(panel_bytes * (N_OUT / ROWS));
    double samples[5];
    for (int n = 0; n < 5; n++) {
        int64_t start = dt_time_ns();
        for (int p = 0; p < N_OUT / ROWS; p++)
            dt_pack_panel(out + (size_t)p * panel_bytes, &tensor, p);
        samples[n] = (double)(dt_time_ns() - start);
    }
    printf("pack %-5s %5.2f GB/s of the file\n", dt_type_name(type),
        (double)file_bytes / check_median(samples, 5));
    check_memory_reset();
}

static bool wanted(const check_run *run, const char *name, const char *pattern) {
    char full[64];
    snprintf(full, sizeof full, "%s_%s", name, run->isa);
    return !pattern || strstr(full, pattern) != NULL;
}

void check_matmul_bench(const check_run *run, const char *pattern) {
    uint8_t *memory;
    if (dt_mem_map_huge(&memory, bench_memory_bytes) != DT_OK) {
        fprintf(stderr, "%s\n", dt_err_message());
        return;
    }
    for (int type = 0; type < DT_TYPE_COUNT; type++) {
        char name[40];
        if (!run->table.matmul[type] || run->table.matmul[type] == run->below.matmul[type])
            continue;
        snprintf(name, sizeof name, "pack_%s", dt_type_name((uint32_t)type));
        if (run->table.matmul[type] == run->c.matmul[type] && wanted(run, name, pattern))
            bench_pack((dt_type)type);
        kernel_name(name, (dt_type)type);
        if (wanted(run, name, pattern))
            bench_type(run, (dt_type)type, memory);
    }
    dt_mem_unmap(memory, bench_memory_bytes);
}
