/* Every kernel of the table of this program against the C reference, bit for bit: all weight types,
 * odd sizes, rows as a model might make them and as it should not. Exit code 77: no device. */
#include "cpu/attn.h"
#include "cpu/kernels.h"
#include "gpu/gpu_pack.h"
#include "models/topk.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"
#include "tests/check/check_weights.h"

enum { ROWS_MAX = DT_GPU_ROWS_MAX };

static const dt_gpu_ops *ops;
static dt_gpu_device *device;
static dt_kernels cpu;
static test_rng rng;

/* ---- memory of a check, given back at its end ---- */

enum { N_BLOCKS_MAX = 1024 };
static void *d_blocks[N_BLOCKS_MAX];
static void *h_blocks[N_BLOCKS_MAX];
static int n_d, n_h;

static void *host(size_t n_bytes) {
    void *p = NULL;
    CHECK_OK(dt_mem_alloc(&p, n_bytes + 64));
    return h_blocks[n_h++] = p;
}

static void *d_alloc(size_t n_bytes) {
    void *p = NULL;
    CHECK_OK(ops->alloc(&p, device, n_bytes));
    return d_blocks[n_d++] = p;
}

/* A copy in device memory. */
static void *d_copy(const void *from, size_t n_bytes) {
    void *staged = NULL, *p = d_alloc(n_bytes);
    CHECK_OK(ops->alloc_pinned(&staged, device, n_bytes));
    memcpy(staged, from, n_bytes);
    CHECK_OK(ops->copy_in(device, p, staged, n_bytes));
    CHECK_OK(ops->wait(device));
    ops->release_pinned(device, staged);
    return p;
}

static void fetch(void *to, const void *d_from, size_t n_bytes) {
    void *staged = NULL;
    CHECK_OK(ops->alloc_pinned(&staged, device, n_bytes));
    CHECK_OK(ops->copy_out(device, staged, d_from, n_bytes));
    CHECK_OK(ops->wait(device));
    memcpy(to, staged, n_bytes);
    ops->release_pinned(device, staged);
}

static void give_back(void) {
    while (n_d > 0)
        ops->release(device, d_blocks[--n_d]);
    while (n_h > 0)
        dt_mem_free(h_blocks[--n_h]);
}

/* ---- values ---- */

static float normal(void) {
    float sum = 0.0f;
    for (int i = 0; i < 12; i++)
        sum += test_rng_float(&rng);
    return 0.5f * sum;
}

static void fill_row(float *x, int k, int kind) {
    for (int i = 0; i < k; i++) {
        x[i] = normal();
        if (kind == 1 && test_rng_below(&rng, 40) == 0)
            x[i] *= 1000.0f;
        if (kind == 2)
            x[i] = test_rng_below(&rng, 2) ? 0.0f : -0.0f;
        if (kind == 3)
            x[i] *= 0x1p-110f;
        if (kind == 4 && test_rng_below(&rng, 100) == 0)
            x[i] = __builtin_inff();
        if (kind == 5 && test_rng_below(&rng, 100) == 0)
            x[i] = __builtin_nanf("");
        if (kind == 6)
            x[i] *= 0x1p120f;
    }
}

static bool same(float a, float b) {
    return memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

static void compare(const float *want, const float *got, size_t n, const char *what, int a, int b) {
    for (size_t i = 0; i < n; i++) {
        if (same(want[i], got[i]))
            continue;
        CHECK_MSG(false, "%s (%d, %d): element %zu is %.9g, want %.9g", what, a, b, i,
            (double)got[i], (double)want[i]);
        return;
    }
    CHECK(true);
}

static int power_of_two(int n) {
    int power = 1;
    while (power < n)
        power *= 2;
    return power;
}

static const dt_gpu_step *d_step(const dt_gpu_step *step) {
    return d_copy(step, sizeof *step);
}

/* ---- products ---- */

static const dt_type TYPES[] = {DT_TYPE_F32, DT_TYPE_F16, DT_TYPE_BF16, DT_TYPE_Q4_0, DT_TYPE_Q4_1,
    DT_TYPE_Q5_0, DT_TYPE_Q5_1, DT_TYPE_Q8_0, DT_TYPE_IQ4_NL, DT_TYPE_Q3_K, DT_TYPE_Q4_K,
    DT_TYPE_Q5_K, DT_TYPE_Q6_K, DT_TYPE_IQ4_XS};

static dt_tensor random_tensor(dt_type type, int n_out, int k) {
    dt_tensor t = {.name = "t", .type = type, .n_dims = 2, .ne = {k, n_out, 1, 1}};
    t.n_bytes = (size_t)n_out * dt_type_row_bytes(type, k);
    uint8_t *rows = host(t.n_bytes);
    weights_random(rows, type, n_out, k, &rng);
    t.data = rows;
    return t;
}

static void place(dt_gpu_matrix *out, const dt_tensor *t) {
    dt_gpu_matrix_of(out, t);
    uint8_t *panels = host((size_t)out->n_panels * out->panel_bytes);
    for (int i = 0; i < out->n_panels; i++)
        dt_gpu_pack_panel(panels + (size_t)i * out->panel_bytes, t, i);
    out->d_panels = d_copy(panels, (size_t)out->n_panels * out->panel_bytes);
}

static dt_act host_act(int block, int k, const float *x, int m) {
    dt_act act = {.k = k, .block = block, .x = x, .x_stride = (size_t)k};
    if (block == 0)
        return act;
    act.q = host((size_t)(m * k));
    act.d = host((size_t)(m * k / block) * sizeof *act.d);
    act.sum16 = host((size_t)(m * k / 16) * sizeof *act.sum16);
    act.sum32 = host((size_t)(m * k / 32) * sizeof *act.sum32);
    for (int r = 0; r < m; r++)
        cpu.quantise(&act, r, x + (size_t)r * (size_t)k);
    return act;
}

static dt_gpu_act d_act(const dt_act *act, int m) {
    size_t n = (size_t)(m * act->k);
    return (dt_gpu_act){d_copy(act->q, n), d_copy(act->d, n / (size_t)act->block * sizeof *act->d),
        d_copy(act->sum32, n / 32 * sizeof *act->sum32),
        d_copy(act->sum16, n / 16 * sizeof *act->sum16)};
}

/* The product by the C kernels. */
static void reference(float *out, const dt_tensor *t, const dt_act *act, int m) {
    int k = (int)t->ne[0], n_out = (int)t->ne[1], n_panels = (n_out + 15) / 16;
    size_t panel_bytes = dt_pack_panel_bytes(t->type, k);
    uint8_t *panel = host(panel_bytes);
    float *lanes = host((size_t)m * 16 * sizeof(float));
    for (int i = 0; i < n_panels; i++) {
        dt_pack_panel(panel, t, i);
        cpu.matmul[t->type](lanes, 16, panel, act, 0, m);
        for (int r = 0; r < m; r++)
            for (int l = 0; l < 16 && i * 16 + l < n_out; l++)
                out[(size_t)r * (size_t)n_out + (size_t)(i * 16 + l)] = lanes[r * 16 + l];
    }
}

static void check_product(dt_type type, int n_out, int k, int m) {
    enum { N = 2 };
    int block = dt_type_block(type) > 1 ? dt_type_block(type) : 0;
    float *x = host((size_t)(m * k) * sizeof *x);
    for (int r = 0; r < m; r++)
        fill_row(x + r * k, k, (r + k) % 7);
    dt_act act = host_act(block, k, x, m);
    dt_gpu_step step = {.n_rows = m, .n_out = 1};
    dt_gpu_matmul args = {.d_step = d_step(&step),
        .type = type,
        .k = k,
        .n_products = N,
        .m_max = power_of_two(m),
        .x = d_copy(x, (size_t)(m * k) * sizeof *x)};
    if (block)
        args.act = d_act(&act, m);
    dt_tensor tensors[N];
    for (int i = 0; i < N; i++) {
        dt_gpu_matrix matrix;
        tensors[i] = random_tensor(type, n_out + 5 * i, k);
        place(&matrix, &tensors[i]);
        args.n_blocks = matrix.n_blocks;
        args.products[i].d_panels = matrix.d_panels;
        args.products[i].panel_bytes = matrix.panel_bytes;
        args.products[i].n_out = matrix.n_out;
        args.products[i].n_panels = matrix.n_panels;
        args.products[i].out = d_alloc((size_t)(m * matrix.n_out) * sizeof(float));
    }
    CHECK_OK(ops->matmul(device, &args));
    for (int i = 0; i < N; i++) {
        size_t n = (size_t)(m * args.products[i].n_out);
        float *want = host(n * sizeof *want), *got = host(n * sizeof *got);
        reference(want, &tensors[i], &act, m);
        fetch(got, args.products[i].out, n * sizeof *got);
        compare(want, got, n, dt_type_name(type), k, m);
    }
    give_back();
}

static void check_products(void) {
    static const int ms[] = {1, 2, 8, 13};
    for (size_t i = 0; i < DT_COUNT(TYPES); i++) {
        int block = dt_type_block(TYPES[i]);
        int ks[3] = {block, block == 256 ? 9 * 256 : 35 * 32, block == 256 ? 2 * 256 : 3 * 32};
        if (block == 1) {
            ks[0] = 1;
            ks[1] = 77;
        }
        for (size_t j = 0; j < DT_COUNT(ms); j++)
            check_product(TYPES[i], j == 0 ? 33 : 7, ks[j % 3], ms[j]);
    }
    check_product(DT_TYPE_Q5_0, 64, 96, 64);
}

/* ---- rows ---- */

static void check_embed(dt_type type, int k, float scale) {
    enum { M = 5, N_VOCAB = 45 };
    dt_tensor t = random_tensor(type, N_VOCAB, k);
    dt_gpu_step step = {.n_rows = M};
    for (int r = 0; r < M; r++)
        step.tokens[r] = r == 0 ? N_VOCAB - 1 : (int)test_rng_below(&rng, N_VOCAB);
    size_t n = (size_t)(M * k);
    dt_gpu_embed args = {
        .d_step = d_step(&step), .x = d_alloc(n * sizeof(float)), .scale = scale, .m_max = 8};
    place(&args.table, &t);
    CHECK_OK(ops->embed(device, &args));
    float *want = host(n * sizeof *want), *got = host(n * sizeof *got);
    for (int r = 0; r < M; r++) {
        const uint8_t *row = t.data;
        dt_dequantise(
            want + r * k, row + (size_t)step.tokens[r] * dt_type_row_bytes(type, k), type, k);
    }
    for (size_t i = 0; i < n && scale != 0.0f; i++)
        want[i] *= scale;
    fetch(got, args.x, n * sizeof *got);
    compare(want, got, n, "embed", (int)type, k);
    give_back();
}

static void compare_act(const dt_act *want, const dt_gpu_act *d, int m, const char *what) {
    size_t n = (size_t)(m * want->k);
    int8_t *q = host(n);
    float *scales = host(n / (size_t)want->block * sizeof *scales);
    int16_t *sums = host(n / 16 * sizeof *sums);
    fetch(q, d->q, n);
    CHECK_MSG(memcmp(q, want->q, n) == 0, "%s: integers of blocks of %d", what, want->block);
    fetch(scales, d->d, n / (size_t)want->block * sizeof *scales);
    compare(want->d, scales, n / (size_t)want->block, what, want->block, 0);
    fetch(sums, d->sum32, n / 32 * sizeof *sums);
    CHECK_MSG(memcmp(sums, want->sum32, n / 32 * sizeof *sums) == 0, "%s: sums of 32", what);
    if (want->block != 256)
        return;
    fetch(sums, d->sum16, n / 16 * sizeof *sums);
    CHECK_MSG(memcmp(sums, want->sum16, n / 16 * sizeof *sums) == 0, "%s: sums of 16", what);
}

static dt_gpu_forms d_forms(int forms, int m, int k) {
    size_t n = (size_t)(m * k);
    dt_gpu_forms out = {.forms = forms};
    dt_gpu_act *acts[2] = {&out.by32, &out.by256};
    for (int i = 0; i < 2; i++)
        *acts[i] = (dt_gpu_act){d_alloc(n), d_alloc(n / 8), d_alloc(n), d_alloc(n)};
    return out;
}

static void compare_forms(const dt_gpu_forms *out, const float *x, int m, int k, const char *what) {
    if (out->forms & DT_GPU_FORM_32) {
        dt_act act = host_act(32, k, x, m);
        compare_act(&act, &out->by32, m, what);
    }
    if (out->forms & DT_GPU_FORM_256) {
        dt_act act = host_act(256, k, x, m);
        compare_act(&act, &out->by256, m, what);
    }
}

static void check_norm(int n, int forms, bool with_delta, bool with_post, bool gather) {
    enum { M = 7 };
    size_t size = (size_t)(M * n) * sizeof(float);
    float *x = host(size), *delta = host(size), *w = host(size), *post = host(size);
    for (int r = 0; r < M; r++) {
        fill_row(x + r * n, n, r);
        fill_row(delta + r * n, n, r == 4 ? 1 : 0);
    }
    fill_row(w, n, 0);
    fill_row(post, n, 0);
    dt_gpu_step step = {.n_rows = M, .n_out = 3, .out_rows = {1, 4, 6}};
    int m = gather ? 3 : M;
    dt_gpu_norm args = {.d_step = d_step(&step),
        .x = d_copy(x, size),
        .delta = with_delta ? d_copy(delta, size) : NULL,
        .delta_norm = with_post ? d_copy(post, (size_t)n * 4) : NULL,
        .w = d_copy(w, (size_t)n * 4),
        .h = d_alloc(size),
        .out = d_forms(forms, M, n),
        .eps = 1e-6f,
        .n = n,
        .m_max = 8,
        .gather = gather};
    CHECK_OK(ops->norm(device, &args));
    float *want = host(size), *got = host(size);
    for (int i = 0; i < m; i++) {
        int r = gather ? step.out_rows[i] : i;
        if (with_post)
            cpu.rms_norm(delta + r * n, delta + r * n, post, n, 1e-6f);
        if (with_delta)
            cpu.add(x + r * n, delta + r * n, n);
        cpu.rms_norm(want + i * n, x + r * n, w, n, 1e-6f);
    }
    fetch(got, args.h, size);
    compare(want, got, (size_t)(m * n), "norm", n, forms);
    compare_forms(&args.out, want, m, n, "norm");
    if (!gather) {
        fetch(got, args.x, size);
        compare(x, got, (size_t)(M * n), "norm's sum", n, forms);
    }
    give_back();
}

static void check_gate(int n, int forms) {
    enum { M = 7 };
    size_t size = (size_t)(M * n) * sizeof(float);
    float *gate = host(size), *up = host(size), *got = host(size);
    for (int r = 0; r < M; r++) {
        fill_row(gate + r * n, n, r);
        fill_row(up + r * n, n, 0);
        for (int i = 0; i < n; i++)
            gate[r * n + i] *= 8.0f;
    }
    dt_gpu_step step = {.n_rows = M};
    dt_gpu_gate args = {.d_step = d_step(&step),
        .gate = d_copy(gate, size),
        .up = d_copy(up, size),
        .out = d_forms(forms, M, n),
        .n = n,
        .m_max = 8};
    CHECK_OK(ops->gate(device, &args));
    for (int r = 0; r < M; r++)
        cpu.swiglu(gate + r * n, gate + r * n, up + r * n, n);
    fetch(got, args.gate, size);
    compare(gate, got, (size_t)(M * n), "gate", n, forms);
    compare_forms(&args.out, gate, M, n, "gate");
    give_back();
}

/* ---- attention ---- */

typedef struct cache {
    int head_dim, v_stride, n_kv, n_head, n_rows;
    uint16_t *keys, *values; /* as cpu/attn.h has them */
    size_t head_keys, head_values;
    uint16_t *d_keys, *d_values;
    size_t d_head_keys, d_head_values;
} cache;

static cache make_cache(int head_dim, int n_kv, int group, int n_rows) {
    cache c = {.head_dim = head_dim, .n_kv = n_kv, .n_head = n_kv * group, .n_rows = n_rows};
    c.v_stride = (head_dim + 15) / 16 * 16;
    c.head_keys = (size_t)((n_rows + 15) / 16 * 16 * head_dim);
    c.head_values = (size_t)((n_rows + 15) / 16 * 16 * c.v_stride);
    c.keys = host((size_t)n_kv * c.head_keys * sizeof *c.keys);
    c.values = host((size_t)n_kv * c.head_values * sizeof *c.values);
    c.d_head_keys = (size_t)((n_rows + 31) / 32 * 32 * ((head_dim + 7) / 8 * 8));
    c.d_head_values = (size_t)(n_rows * c.v_stride);
    c.d_keys = d_alloc((size_t)n_kv * c.d_head_keys * sizeof *c.keys);
    c.d_values = d_alloc((size_t)n_kv * c.d_head_values * sizeof *c.values);
    return c;
}

/* Rows [row0, row0 + m) of the cache from random vectors, on both sides; checks the rotated queries
 * on the way and leaves them in q_out, d_q_out. */
static void store_rows(cache *c, int row0, int m, int n_rot, bool halves, bool biased, bool normed,
    float *q_out, float **d_q_out) {
    int hd = c->head_dim, nq = c->n_head * hd, nkv = c->n_kv * hd;
    float *q = host((size_t)(m * nq) * 4), *k = host((size_t)(m * nkv) * 4);
    float *v = host((size_t)(m * nkv) * 4), *turns = host((size_t)(m * n_rot) * 4);
    float *bias = host((size_t)(nq + 2 * nkv) * 4), *norms = host((size_t)(2 * hd) * 4);
    fill_row(q, m * nq, 0);
    fill_row(k, m * nkv, 0);
    fill_row(v, m * nkv, 0);
    fill_row(bias, nq + 2 * nkv, 0);
    fill_row(norms, 2 * hd, 0);
    for (int i = 0; i < m * n_rot; i++)
        turns[i] = 2.0f * test_rng_float(&rng);
    const float *d_bias = d_copy(bias, (size_t)(nq + 2 * nkv) * 4);
    const float *d_norms = d_copy(norms, (size_t)(2 * hd) * 4);
    dt_gpu_step step = {.n_rows = m, .row0 = row0};
    dt_gpu_rotate args = {.d_step = d_step(&step),
        .q = d_copy(q, (size_t)(m * nq) * 4),
        .k = d_copy(k, (size_t)(m * nkv) * 4),
        .v = d_copy(v, (size_t)(m * nkv) * 4),
        .bq = biased ? d_bias : NULL,
        .bk = biased ? d_bias + nq : NULL,
        .bv = biased ? d_bias + nq + nkv : NULL,
        .q_norm = normed ? d_norms : NULL,
        .k_norm = normed ? d_norms + hd : NULL,
        .cos_sin = d_copy(turns, (size_t)(m * n_rot) * 4),
        .keys = c->d_keys,
        .values = c->d_values,
        .head_keys = c->d_head_keys,
        .head_values = c->d_head_values,
        .v_stride = c->v_stride,
        .n_head = c->n_head,
        .n_head_kv = c->n_kv,
        .head_dim = hd,
        .n_rot = n_rot,
        .m_max = power_of_two(m),
        .eps = 1e-6f,
        .halves = halves};
    CHECK_OK(ops->rotate(device, &args));
    for (int r = 0; r < m; r++) {
        if (biased) {
            cpu.add(q + r * nq, bias, nq);
            cpu.add(k + r * nkv, bias + nq, nkv);
            cpu.add(v + r * nkv, bias + nq + nkv, nkv);
        }
        for (int h = 0; h < c->n_head + c->n_kv; h++) {
            bool is_q = h < c->n_head;
            float *p = is_q ? q + r * nq + h * hd : k + r * nkv + (h - c->n_head) * hd;
            if (normed)
                cpu.rms_norm(p, p, norms + (is_q ? 0 : hd), hd, 1e-6f);
            cpu.rope(p, turns + r * n_rot, n_rot, halves);
        }
        for (int g = 0; g < c->n_kv; g++)
            for (int d = 0; d < hd; d++) {
                int row = row0 + r;
                uint16_t *key = c->keys + (size_t)g * c->head_keys + row / 16 * 16 * hd + row % 16;
                key[d * 16] = dt_f32_to_f16(k[r * nkv + g * hd + d]);
                c->values[(size_t)g * c->head_values + (size_t)(row * c->v_stride + d)] =
                    dt_f32_to_f16(v[r * nkv + g * hd + d]);
            }
    }
    memcpy(q_out, q, (size_t)(m * nq) * 4);
    *d_q_out = args.q;
    float *got = host((size_t)(m * nq) * 4);
    fetch(got, args.q, (size_t)(m * nq) * 4);
    compare(q, got, (size_t)(m * nq), "rotate", hd, n_rot);
}

static void check_attention(int hd, int n_kv, int group, int n_committed, int m, int kind) {
    int n_rows = n_committed + m + 7, nq = n_kv * group * hd, depth = 64;
    cache c = make_cache(hd, n_kv, group, n_rows);
    float *q = host((size_t)(64 * nq) * 4), *d_q = NULL;
    for (int row = 0; row < n_committed; row += 64)
        store_rows(
            &c, row, DT_MIN(64, n_committed - row), hd & ~1, kind & 1, kind & 2, kind & 4, q, &d_q);
    /* The batch: each row follows an earlier one or the last committed one. */
    int32_t *ancestors = host((size_t)(64 * depth) * sizeof *ancestors);
    dt_attn_row rows[ROWS_MAX];
    dt_gpu_step step = {.n_rows = m, .n_committed = n_committed};
    store_rows(&c, n_committed, m, hd & ~1, kind & 1, kind & 2, kind & 4, q, &d_q);
    for (int r = 0; r < m; r++) {
        int up = (int)test_rng_below(&rng, (uint32_t)(r + 1)) - 1, n = 0;
        if (up >= 0) {
            n = step.n_positions[up] - n_committed;
            memcpy(ancestors + r * depth, ancestors + up * depth, (size_t)n * sizeof *ancestors);
        }
        ancestors[r * depth + n] = n_committed + r;
        step.n_positions[r] = n_committed + n + 1;
        rows[r] =
            (dt_attn_row){.n_positions = step.n_positions[r], .ancestors = ancestors + r * depth};
        int n_ranges = (step.n_positions[r] + DT_GPU_RANGE - 1) / DT_GPU_RANGE;
        step.n_ranges = DT_MAX(step.n_ranges, n_ranges);
    }
    size_t part_stride = (size_t)c.v_stride + 16, row_stride = (size_t)c.n_head * part_stride;
    size_t n_part = (size_t)step.n_ranges * ROWS_MAX * row_stride;
    int forms = nq % 256 == 0 ? 3 : nq % 32 == 0 ? DT_GPU_FORM_32 : 0;
    dt_gpu_attend args = {.d_step = d_step(&step),
        .ancestors = d_copy(ancestors, (size_t)(64 * depth) * sizeof *ancestors),
        .depth = depth,
        .q = d_q,
        .keys = c.d_keys,
        .values = c.d_values,
        .head_keys = c.d_head_keys,
        .head_values = c.d_head_values,
        .part = d_alloc(n_part * 4),
        .out = d_alloc((size_t)(m * nq) * 4),
        .forms = d_forms(forms, m, nq),
        .v_stride = c.v_stride,
        .n_head = c.n_head,
        .n_head_kv = n_kv,
        .head_dim = hd,
        .m_max = power_of_two(m),
        .n_ranges_max = power_of_two(step.n_ranges),
        .scale = 1.0f / __builtin_sqrtf((float)hd)};
    CHECK_OK(ops->attend(device, &args));
    float *part = host(n_part * 4), *scores = host(sizeof(float) * 64 * 512);
    float *want = host((size_t)(m * nq) * 4), *got = host((size_t)(m * nq) * 4);
    for (int g = 0; g < n_kv; g++)
        for (int range = 0; range < step.n_ranges; range++)
            cpu.attn_range(&(dt_attn_range){.head_dim = hd,
                .v_stride = c.v_stride,
                .n_group = group,
                .n_rows = m,
                .n_committed = n_committed,
                .position0 = range * DT_ATTN_RANGE,
                .scale = args.scale,
                .rows = rows,
                .q = q + g * group * hd,
                .q_stride = (size_t)nq,
                .keys = c.keys + (size_t)g * c.head_keys,
                .values = c.values + (size_t)g * c.head_values,
                .key_step = (size_t)(DT_ATTN_RANGE * hd),
                .value_step = (size_t)(DT_ATTN_RANGE * c.v_stride),
                .part = part + (size_t)range * ROWS_MAX * row_stride +
                        (size_t)(g * group) * part_stride,
                .part_row_stride = row_stride,
                .part_stride = part_stride,
                .scores = scores});
    for (int r = 0; r < m; r++)
        for (int h = 0; h < c.n_head; h++)
            cpu.attn_combine(want + r * nq + h * hd, hd,
                part + (size_t)r * row_stride + (size_t)h * part_stride, ROWS_MAX * row_stride,
                step.n_ranges);
    fetch(got, args.out, (size_t)(m * nq) * 4);
    compare(want, got, (size_t)(m * nq), "attention", hd, n_committed);
    compare_forms(&args.forms, want, m, nq, "attention");
    give_back();
}

/* ---- top-k ---- */

static void check_topk(int n_vocab, int m, int kind, dt_topk_args args) {
    float *logits = host((size_t)(m * n_vocab) * 4);
    for (int i = 0; i < m * n_vocab; i++) {
        logits[i] = 5.0f * normal();
        if (kind == 1)
            logits[i] = (float)(int)logits[i]; /* many ties */
        if (kind == 2 && test_rng_below(&rng, 3) == 0)
            logits[i] = test_rng_below(&rng, 2) ? __builtin_nanf("") : -__builtin_inff();
        if (kind == 3)
            logits[i] = i < n_vocab ? -__builtin_inff() : __builtin_nanf("");
        if (kind == 4)
            logits[i] = 1.0f;
        if (kind == 5 && i == n_vocab / 2)
            logits[i] = __builtin_inff();
    }
    int mode = dt_topk_mode_of(&args), n_allowed = DT_MIN(args.n_allowed, n_vocab);
    dt_gpu_step step = {.n_rows = m,
        .n_out = m,
        .topk_mode = DT_GPU_TOPK_PLAIN + mode,
        .n_ranked = mode == DT_TOPK_PLAIN     ? args.k
                    : mode == DT_TOPK_BY_LIST ? DT_TOPK_FILTERED
                                              : DT_TOPK_WEIGHED,
        .n_allowed = n_allowed,
        .scan_block = 64,
        .temperature = args.temperature,
        .inverse_temperature = 1.0f / args.temperature,
        .scale = dt_topk_scale(&args),
        .seed = args.seed};
    while ((n_allowed + step.scan_block - 1) / step.scan_block > DT_GPU_SCAN_BLOCKS)
        step.scan_block *= 2;
    for (int r = 0; r < m; r++) {
        step.out_rows[r] = r;
        step.n_positions[r] = 100 + 3 * r;
    }
    dt_gpu_topk call = {.d_step = d_step(&step),
        .logits = d_copy(logits, (size_t)(m * n_vocab) * 4),
        .n_vocab = n_vocab,
        .m_max = power_of_two(m),
        .block_max = d_alloc((size_t)m * DT_GPU_SCAN_BLOCKS * 4),
        .counts = d_alloc((size_t)m * DT_GPU_SCAN_BLOCKS * 4),
        .keys = d_alloc((size_t)m * DT_GPU_NOISY_MAX * 8),
        .ids = d_alloc((size_t)m * DT_GPU_NOISY_MAX * 4),
        .best = d_alloc((size_t)m * sizeof(dt_gpu_best))};
    CHECK_OK(ops->topk(device, &call));
    dt_gpu_best *best = host((size_t)m * sizeof *best);
    fetch(best, call.best, (size_t)m * sizeof *best);
    for (int r = 0; r < m; r++) {
        dt_topk want, got;
        args.position = step.n_positions[r];
        dt_topk_row(&want, logits + (size_t)r * (size_t)n_vocab, n_vocab, &args);
        dt_topk_finish(&got, best[r].tokens, best[r].values, best[r].n, best[r].best,
            (int64_t)best[r].sum, &args);
        CHECK_MSG(want.n == got.n, "top-k of %d, kind %d, mode %d: %d tokens, want %d", n_vocab,
            kind, mode, got.n, want.n);
        for (int i = 0; i < want.n && i < got.n; i++)
            CHECK_MSG(want.tokens[i] == got.tokens[i] && same(want.scores[i], got.scores[i]),
                "top-k of %d, kind %d, mode %d, place %d: token %d (%.9g), want %d (%.9g)", n_vocab,
                kind, mode, i, got.tokens[i], (double)got.scores[i], want.tokens[i],
                (double)want.scores[i]);
    }
    give_back();
}

static void check_topks(void) {
    static const int sizes[] = {1, 63, 64, 1000, 5003};
    for (int i = 0; i < 30; i++) {
        int n = sizes[i % 5], mode = i / 5 % 3;
        dt_topk_args args = {.k = 1 + i % DT_TOPK_MAX,
            .n_allowed = i % 4 ? n : n - n / 3,
            .temperature = mode ? 0.3f + 0.4f * (float)(i % 7) : 0.0f,
            .noise = mode > 0,
            .seed = (uint64_t)i << 33 | 5,
            .tau = 1.0f,
            .top_p = mode == 2 ? 0.95f : 0.0f};
        check_topk(n, 3, i % 6, args);
    }
    check_topk(
        5003, 2, 1, (dt_topk_args){.k = 16, .n_allowed = 5003, .temperature = 0.9f, .tau = 1.2f});
    /* A large vocabulary: blocks of 128, and more tokens than get noise. */
    dt_topk_args args = {
        .k = 16, .n_allowed = 300000, .temperature = 20.0f, .noise = true, .seed = 9};
    check_topk(300001, 1, 0, args);
}

int main(void) {
    int n_devices = 0;
    ops = dt_gpu_table();
    if (!ops || ops->count(&n_devices) != DT_OK || ops->open(&device, 0) != DT_OK) {
        printf("skipped: %s\n", ops ? dt_err_message() : "this build has no kernels for a GPU");
        return 77;
    }
    rng = test_rng_open();
    dt_kernels_get(&cpu, DT_ISA_C);
    check_products();
    for (size_t i = 0; i < DT_COUNT(TYPES); i++) {
        int block = dt_type_block(TYPES[i]);
        check_embed(TYPES[i], block == 1 ? 37 : 2 * block, i % 2 ? 0.0f : 30.0f);
    }
    check_norm(77, 0, true, false, false);
    check_norm(96, DT_GPU_FORM_32, true, true, false);
    check_norm(512, DT_GPU_FORM_32 | DT_GPU_FORM_256, false, false, false);
    check_norm(768, DT_GPU_FORM_256, true, false, true);
    check_gate(45, 0);
    check_gate(2048 + 256, DT_GPU_FORM_32 | DT_GPU_FORM_256);
    check_gate(1024 + 96, DT_GPU_FORM_32);
    check_attention(64, 2, 2, 5, 3, 0);
    check_attention(6, 1, 3, 130, 9, 1);
    check_attention(100, 1, 1, 510, 6, 2 | 1);
    check_attention(16, 2, 7, 1030, 2, 4);
    check_attention(80, 1, 2, 0, 5, 4 | 2);
    check_topks();
    ops->close(device);
    return test_end();
}
