/* The forward pass of llama-like models on the CPU team: one function, run by every worker, in
 * phases that end at a barrier. Within a phase workers take tasks from a counter of that phase. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cpu/device.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"

/* Columns of one task of the gated activation: a multiple of every quantisation block. */
enum { GATE_COLUMNS = 1024 };
/* Longest branch of speculative rows. */
enum { ANCESTORS_MAX = 1024 };

typedef struct cpu_forward {
    dt_forward base;
    const dt_cpu_weights *w;
    dt_kv kv;
    size_t logits_bytes, part_bytes;

    /* The batch that runs. */
    int n_rows;
    const int32_t *tokens;
    bool wants[DT_BATCH_MAX];
    dt_attn_row rows[DT_BATCH_MAX];
    dt_attn_row local_rows[DT_BATCH_MAX]; /* the same, as layers with a window see them */
    int local_range0;                     /* the first range that any of these sees */
    int32_t *ancestors;                   /* [DT_BATCH_MAX][ANCESTORS_MAX] */
    int n_ranges;
    int n_head_split; /* tasks that one KV head's query heads are cut into */

    /* Work memory, [DT_BATCH_MAX] rows each: D = n_embd, Q = n_head head_dim, KV, I = n_ff. */
    float *x;         /* [D] residual stream */
    float *h;         /* [D] normalised; at the end the features */
    float *q, *k, *v; /* [Q] [KV] [KV] */
    float *attn;      /* [Q] */
    float *delta;     /* [D] what a block adds to x; below the rows those of the second step */
    float *gate, *up; /* [I] */
    float *cos_sin;   /* [n_turns][n_rot] */
    float *logits;    /* [n_vocab] */
    float *part;      /* [n_ranges][rows][n_head][v_stride + 16] */
    int k_max;        /* columns of the widest matrix input */
    bool twice;       /* inputs of wo and w_down may be quantised in two steps */
    size_t act_rows;  /* DT_BATCH_MAX, twice as many for two steps */
    int8_t *act_q;    /* [2][act_rows][k_max]: blocks of 256, blocks of 32; scales, sums below */
    float *act_d;
    int16_t *act_sum16, *act_sum32;
    uint8_t *scratch; /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
    /* Panels of the head that are multiplied, once dt_forward_admit was called. */
    int32_t *panels;
    bool *admitted; /* of each panel */
    int n_panels;
    _Atomic int *next; /* [n_phases] */
    int n_phases;
} cpu_forward;

/* One worker's view of a pass. */
typedef struct pass {
    cpu_forward *f;
    const dt_kernels *kernels;
    const dt_config *config;
    int i_thread, n_threads;
    int phase;
    _Atomic int *next; /* of the present phase */
} pass;

static void phase_begin(pass *p) {
    p->next = &p->f->next[p->phase++];
}

static void phase_end(pass *p) {
    dt_pool_barrier(p->f->w->cpu->pool, p->i_thread);
}

/* The activations of k columns in the form that `block` names. The two quantised forms lie in
 * memory of their own, so a phase may make both. */
static dt_act act_view(cpu_forward *f, int block, int k, const float *x) {
    size_t half = block == 32 ? f->act_rows * (size_t)f->k_max : 0;
    dt_act act = {.k = k, .block = block};
    if (block == 0) {
        act.x = x;
        act.x_stride = (size_t)k;
        return act;
    }
    act.q = f->act_q + half;
    act.d = f->act_d + half / 32;
    act.sum16 = f->act_sum16 + half / 16;
    act.sum32 = f->act_sum32 + half / 32;
    return act;
}

/* Quantises columns [first, first + n) of row r of x[.. k] into the forms that the products need.
 */
static void quantise_columns(pass *p, const dt_weight *const *weights, int n_weights, int k,
    const float *x, int r, int first, int n) {
    bool done[2] = {false, false};
    for (int i = 0; i < n_weights; i++) {
        int block = dt_act_block(weights[i]->tensor->type, p->f->w->way);
        if (block == 0 || done[block == 32])
            continue;
        done[block == 32] = true;
        dt_act act = act_view(p->f, block, k, NULL);
        size_t at = (size_t)r * (size_t)k + (size_t)first;
        act.q += at;
        act.d += at / (size_t)block;
        act.sum16 += at / 16;
        act.sum32 += at / 32;
        act.k = n;
        p->kernels->quantise(&act, 0, x + at);
    }
}

/* What attention and GELU put out has values far above their neighbours, too far for one scale over
 * 256 of them: what the first step left is quantised again, into rows below those of the batch. */
static bool goes_twice(const cpu_forward *f, const dt_weight *weight) {
    return f->twice && dt_act_block(weight->tensor->type, f->w->way) == 256;
}

/* As quantise_columns for the one weight that ends a block; x is used up. */
static void quantise_output(
    pass *p, const dt_weight *weight, int k, float *x, int r, int first, int n) {
    cpu_forward *f = p->f;
    quantise_columns(p, &weight, 1, k, x, r, first, n);
    if (!goes_twice(f, weight))
        return;
    dt_act act = act_view(f, 256, n, NULL);
    size_t at = (size_t)r * (size_t)k + (size_t)first, to = at + (size_t)f->n_rows * (size_t)k;
    p->kernels->subtract_q8(x + at, act.q + at, act.d + at / 256, 256, n);
    act.q += to;
    act.d += to / 256;
    act.sum16 += to / 16;
    act.sum32 += to / 32;
    p->kernels->quantise(&act, 0, x + at);
}

static void multiply(pass *p, const dt_weight *const *weights, float *const *outs, int n_weights,
    int k, const float *x, int row0, int n_rows) {
    dt_act acts[3];
    dt_product products[3];
    for (int i = 0; i < n_weights; i++) {
        acts[i] = act_view(p->f, dt_act_block(weights[i]->tensor->type, p->f->w->way), k, x);
        products[i] = (dt_product){.weight = weights[i],
            .act = &acts[i],
            .out = outs[i],
            .out_stride = (size_t)weights[i]->tensor->ne[1]};
    }
    dt_matmul_work(p->kernels, products, n_weights, row0, n_rows, p->next, p->n_threads,
        p->f->w->way, p->f->scratch + (size_t)p->i_thread * p->f->scratch_bytes);
}

static void embed(pass *p, int r) {
    cpu_forward *f = p->f;
    const dt_tensor *table = f->w->model->token_embd;
    int n_embd = p->config->n_embd;
    float *x = f->x + (size_t)r * (size_t)n_embd;
    /* A tied table is packed as the head, and its pages of the file were given back. */
    if (table == f->w->model->output && f->w->way == DT_MATMUL_FUSED)
        dt_pack_dequantise(x, &f->w->output.packed, f->tokens[r]);
    else
        dt_dequantise(x,
            (const uint8_t *)table->data +
                (size_t)f->tokens[r] * dt_type_row_bytes(table->type, n_embd),
            table->type, n_embd);
    if (p->config->embd_scale != 1.0f)
        for (int i = 0; i < n_embd; i++)
            x[i] *= p->config->embd_scale;
    int n_pairs = f->w->n_turns * p->config->n_rot / 2;
    float *cos_sin = f->cos_sin + (size_t)r * (size_t)(2 * n_pairs);
    double position = f->rows[r].n_positions - 1;
    for (int i = 0; i < n_pairs; i++) {
        double s, c;
        dt_sincos_f64(&s, &c, position * f->w->inverse_freq[i]);
        double gain = i < p->config->n_rot / 2 ? p->config->rope_gain : 1.0;
        cos_sin[2 * i] = (float)(c * gain);
        cos_sin[2 * i + 1] = (float)(s * gain);
    }
}

/* x += delta where a block went before, delta being the sum of its two steps if it went `twice`,
 * normalised by `post` if there is one; h = norm(x), quantised for the weights. */
static void norm_rows(pass *p, bool first, bool twice, const dt_tensor *post, const dt_tensor *norm,
    const dt_weight *const *weights, int n_weights) {
    cpu_forward *f = p->f;
    int n_embd = p->config->n_embd;
    float eps = p->config->norm_eps;
    phase_begin(p);
    for (int r; (r = dt_pool_next(p->next)) < f->n_rows;) {
        float *x = f->x + (size_t)r * (size_t)n_embd, *h = f->h + (size_t)r * (size_t)n_embd;
        if (first)
            embed(p, r);
        float *delta = f->delta + (size_t)r * (size_t)n_embd;
        if (twice)
            p->kernels->add(delta, delta + (size_t)f->n_rows * (size_t)n_embd, n_embd);
        if (post)
            p->kernels->rms_norm(delta, delta, post->data, n_embd, eps);
        if (!first)
            p->kernels->add(x, delta, n_embd);
        p->kernels->rms_norm(h, x, norm->data, n_embd, eps);
        quantise_columns(p, weights, n_weights, n_embd, f->h, r, 0, n_embd);
    }
    phase_end(p);
}

static void store_row(pass *p, int i_layer, int r) {
    cpu_forward *f = p->f;
    int head_dim = p->config->head_dim, n_kv = p->config->n_head_kv;
    for (int g = 0; g < n_kv; g++) {
        size_t at = (size_t)(r * n_kv + g) * (size_t)head_dim;
        dt_kv_store(
            &f->kv, p->kernels, i_layer * n_kv + g, f->base.batch_row0 + r, f->k + at, f->v + at);
    }
}

/* Norm, if the model has one for them, and rotation of the heads of q or k. */
static void turn_heads(
    pass *p, float *heads, int n_heads, const dt_tensor *norm, const float *cos_sin) {
    const dt_config *c = p->config;
    for (int g = 0; g < n_heads; g++) {
        float *head = heads + g * c->head_dim;
        if (norm)
            p->kernels->rms_norm(head, head, norm->data, c->head_dim, c->norm_eps);
        p->kernels->rope(head, cos_sin, c->n_rot, c->rope_pairing == DT_ROPE_HALVES);
    }
}

/* Biases, norms and rotation of q and k, and the rows' keys and values into the cache. */
static void rotate_and_store(pass *p, int i_layer) {
    cpu_forward *f = p->f;
    const dt_layer *layer = &f->w->model->layers[i_layer];
    int head_dim = p->config->head_dim, n_head = p->config->n_head, n_kv = p->config->n_head_kv;
    int turn = p->config->local_rope && p->config->local[i_layer];
    size_t n_rot = (size_t)p->config->n_rot;
    phase_begin(p);
    for (int r; (r = dt_pool_next(p->next)) < f->n_rows;) {
        float *q = f->q + (size_t)r * (size_t)(n_head * head_dim);
        float *k = f->k + (size_t)r * (size_t)(n_kv * head_dim);
        float *v = f->v + (size_t)r * (size_t)(n_kv * head_dim);
        const float *cos_sin = f->cos_sin + (size_t)(r * f->w->n_turns + turn) * n_rot;
        if (layer->bq)
            p->kernels->add(q, layer->bq->data, n_head * head_dim);
        if (layer->bk)
            p->kernels->add(k, layer->bk->data, n_kv * head_dim);
        if (layer->bv)
            p->kernels->add(v, layer->bv->data, n_kv * head_dim);
        turn_heads(p, q, n_head, layer->q_norm, cos_sin);
        turn_heads(p, k, n_kv, layer->k_norm, cos_sin);
        store_row(p, i_layer, r);
    }
    phase_end(p);
}

/* Tasks: KV head x part of its query heads x range x tile of rows. */
static void attend(pass *p, int i_layer) {
    cpu_forward *f = p->f;
    int head_dim = p->config->head_dim, n_head = p->config->n_head, n_kv = p->config->n_head_kv;
    int group = n_head / n_kv;
    int heads = (group + f->n_head_split - 1) / f->n_head_split; /* of a task */
    int rows = DT_MAX(1, DT_ATTN_QUERIES / heads);
    int n_tiles = (f->n_rows + rows - 1) / rows;
    bool local = p->config->local[i_layer], scaled = f->kv.type == DT_KV_Q8_0;
    size_t element = scaled ? sizeof(int8_t) : sizeof(uint16_t);
    int range0 = local ? f->local_range0 : 0, n_ranges = f->n_ranges - range0;
    int n_tasks = n_kv * f->n_head_split * n_ranges * n_tiles;
    size_t part_stride = (size_t)f->kv.v_stride + 16;
    phase_begin(p);
    for (int task; (task = dt_pool_next(p->next)) < n_tasks;) {
        int tile = task % n_tiles, rest = task / n_tiles;
        int range = range0 + rest % n_ranges;
        rest /= n_ranges;
        int first = rest % f->n_head_split * heads, kv = rest / f->n_head_split;
        if (first >= group)
            continue;
        int row0 = tile * rows, head0 = kv * group + first;
        size_t head_at = (size_t)i_layer * (size_t)n_kv + (size_t)kv;
        dt_attn_range a = {
            .head_dim = head_dim,
            .v_stride = f->kv.v_stride,
            .n_group = DT_MIN(heads, group - first),
            .n_rows = DT_MIN(rows, f->n_rows - row0),
            .n_committed = f->base.rows.n_committed,
            .position0 = range * DT_ATTN_RANGE,
            .scale = p->config->attn_scale,
            .rows = (local ? f->local_rows : f->rows) + row0,
            .q = f->q + (size_t)row0 * (size_t)(n_head * head_dim) + (size_t)(head0 * head_dim),
            .q_stride = (size_t)(n_head * head_dim),
            .kv = f->kv.type,
            .keys = f->kv.keys + head_at * f->kv.head_keys * element,
            .values = f->kv.values + head_at * f->kv.head_values * element,
            .key_step = f->kv.key_step,
            .value_step = f->kv.value_step,
            .key_scales = scaled ? f->kv.key_scales + head_at * f->kv.head_scales : NULL,
            .value_scales = scaled ? f->kv.value_scales + head_at * f->kv.head_scales : NULL,
            .scale_step = f->kv.scale_step,
            .part = f->part + (((size_t)range * DT_BATCH_MAX + (size_t)row0) * (size_t)n_head +
                                  (size_t)head0) *
                                  part_stride,
            .part_row_stride = (size_t)n_head * part_stride,
            .part_stride = part_stride,
            .scores = (float *)(void *)(f->scratch + (size_t)p->i_thread * f->scratch_bytes),
        };
        p->kernels->attn_range(&a);
    }
    phase_end(p);
}

static void combine(pass *p, int i_layer, const dt_weight *wo) {
    cpu_forward *f = p->f;
    int head_dim = p->config->head_dim, n_head = p->config->n_head;
    int n = n_head * head_dim;
    size_t part_stride = (size_t)f->kv.v_stride + 16;
    phase_begin(p);
    size_t range_stride = DT_BATCH_MAX * (size_t)n_head * part_stride;
    for (int r; (r = dt_pool_next(p->next)) < f->n_rows;) {
        int range0 = p->config->local[i_layer] ? f->local_rows[r].first / DT_ATTN_RANGE : 0;
        const float *part =
            f->part + (size_t)range0 * range_stride + (size_t)(r * n_head) * part_stride;
        for (int g = 0; g < n_head; g++)
            p->kernels->attn_combine(f->attn + (size_t)r * (size_t)n + (size_t)(g * head_dim),
                head_dim, part + (size_t)g * part_stride, range_stride, f->n_ranges - range0);
        quantise_output(p, wo, n, f->attn, r, 0, n);
    }
    phase_end(p);
}

static void gate(pass *p, const dt_weight *w_down) {
    cpu_forward *f = p->f;
    int n_ff = p->config->n_ff;
    int n_pieces = (n_ff + GATE_COLUMNS - 1) / GATE_COLUMNS;
    phase_begin(p);
    for (int task; (task = dt_pool_next(p->next)) < f->n_rows * n_pieces;) {
        int r = task / n_pieces, first = task % n_pieces * GATE_COLUMNS;
        int n = DT_MIN(GATE_COLUMNS, n_ff - first);
        size_t at = (size_t)r * (size_t)n_ff + (size_t)first;
        if (p->config->gate == DT_GATE_GELU)
            p->kernels->geglu(f->gate + at, f->gate + at, f->up + at, n);
        else
            p->kernels->swiglu(f->gate + at, f->gate + at, f->up + at, n);
        quantise_output(p, w_down, n_ff, f->gate, r, first, n);
    }
    phase_end(p);
}

static void matrices(pass *p, const dt_weight *const *weights, float *const *outs, int n_weights,
    int k, const float *x) {
    phase_begin(p);
    multiply(p, weights, outs, n_weights, k, x, 0, p->f->n_rows);
    phase_end(p);
}

/* The product that ends a block, over both steps' rows together while they are no more than a batch
 * may have. */
static void project(pass *p, const dt_weight *weight, int k, const float *x) {
    cpu_forward *f = p->f;
    int n_rows = goes_twice(f, weight) ? 2 * f->n_rows : f->n_rows;
    int n_now = n_rows > DT_BATCH_MAX ? f->n_rows : n_rows;
    for (int r = 0; r < n_rows; r += n_now) {
        phase_begin(p);
        multiply(p, &weight, &f->delta, 1, k, x, r, n_now);
        phase_end(p);
    }
}

/* Logits of the rows that want them: one product for each run of neighbouring rows. */
static void head(pass *p) {
    cpu_forward *f = p->f;
    const dt_weight *output = &f->w->output;
    for (int r = 0; r < f->n_rows;) {
        int end = r;
        while (end < f->n_rows && f->wants[end])
            end++;
        if (end == r) {
            r++;
            continue;
        }
        phase_begin(p);
        dt_act act =
            act_view(f, dt_act_block(output->tensor->type, f->w->way), p->config->n_embd, f->h);
        dt_product product = {
            output, &act, f->logits, (size_t)p->config->n_vocab, f->panels, f->n_panels};
        dt_matmul_work(p->kernels, &product, 1, r, end - r, p->next, p->n_threads, f->w->way,
            f->scratch + (size_t)p->i_thread * f->scratch_bytes);
        phase_end(p);
        r = end;
    }
}

static void pass_work(void *arg, int i_thread, int n_threads) {
    cpu_forward *f = arg;
    const dt_model *model = f->w->model;
    const dt_config *c = &model->config;
    pass p = {.f = f,
        .kernels = &f->w->cpu->kernels,
        .config = c,
        .i_thread = i_thread,
        .n_threads = n_threads};
    const dt_tensor *post = NULL; /* of the block before */
    bool twice = false;
    for (int i = 0; i < c->n_layer; i++) {
        const dt_layer *layer = &model->layers[i];
        const dt_cpu_layer *w = &f->w->layers[i];
        const dt_weight *qkv[] = {&w->wq, &w->wk, &w->wv};
        const dt_weight *gate_up[] = {&w->w_gate, &w->w_up};
        norm_rows(&p, i == 0, twice, post, layer->attn_norm, qkv, 3);
        matrices(&p, qkv, (float *[]){f->q, f->k, f->v}, 3, c->n_embd, f->h);
        rotate_and_store(&p, i);
        attend(&p, i);
        combine(&p, i, &w->wo);
        project(&p, &w->wo, c->n_head * c->head_dim, f->attn);
        norm_rows(
            &p, false, goes_twice(f, &w->wo), layer->attn_post_norm, layer->ffn_norm, gate_up, 2);
        matrices(&p, gate_up, (float *[]){f->gate, f->up}, 2, c->n_embd, f->h);
        gate(&p, &w->w_down);
        project(&p, &w->w_down, c->n_ff, f->gate);
        twice = goes_twice(f, &w->w_down);
        post = layer->ffn_post_norm;
    }
    const dt_weight *output[] = {&f->w->output};
    norm_rows(&p, false, twice, post, model->output_norm, output, 1);
    head(&p);
}

/* Appends the batch's rows and writes down what each sees. */
static dt_err place_rows(cpu_forward *f, const dt_batch *batch) {
    dt_rows *rows = &f->base.rows;
    int n_positions = 0, window = f->w->model->config.window, first_seen = INT_MAX;
    f->base.batch_row0 = rows->n_used;
    for (int i = 0; i < batch->n_rows; i++) {
        if (batch->tokens[i] < 0 || batch->tokens[i] >= f->w->model->config.n_vocab)
            DT_FAIL(DT_ERR_INPUT, "token id %d is outside the vocabulary of %d", batch->tokens[i],
                f->w->model->config.n_vocab);
        int32_t parent = batch->parents[i];
        if (parent <= DT_PARENT(0)) {
            if (DT_PARENT(0) - parent >= i)
                DT_FAIL(
                    DT_ERR_INTERNAL, "row %d of a batch follows row %d", i, DT_PARENT(0) - parent);
            parent = f->base.batch_row0 + (DT_PARENT(0) - parent);
        }
        int32_t row;
        DT_TRY(dt_rows_append(&row, rows, parent));
        if (rows->position[row] - rows->n_committed >= ANCESTORS_MAX)
            DT_FAIL(DT_ERR_LIMIT, "a branch of more than %d uncommitted tokens", ANCESTORS_MAX);
        int32_t *ancestors = f->ancestors + (size_t)i * ANCESTORS_MAX;
        f->rows[i].n_positions = rows->n_committed + dt_rows_ancestors(ancestors, rows, row);
        f->rows[i].ancestors = ancestors;
        f->local_rows[i] = f->rows[i];
        f->local_rows[i].first = window ? DT_MAX(f->rows[i].n_positions - window, 0) : 0;
        first_seen = DT_MIN(first_seen, f->local_rows[i].first);
        f->wants[i] = !batch->wants || batch->wants[i];
        n_positions = DT_MAX(n_positions, f->rows[i].n_positions);
    }
    f->n_ranges = (n_positions + DT_ATTN_RANGE - 1) / DT_ATTN_RANGE;
    f->local_range0 = first_seen / DT_ATTN_RANGE;
    return DT_OK;
}

static dt_err cpu_eval(dt_forward *forward, const dt_batch *batch) {
    cpu_forward *f = (cpu_forward *)forward;
    const dt_config *c = &f->w->model->config;
    if (batch->n_rows < 1 || batch->n_rows > DT_BATCH_MAX)
        DT_FAIL(DT_ERR_INTERNAL, "a batch of %d rows", batch->n_rows);
    int n_used = forward->rows.n_used;
    dt_err err = place_rows(f, batch);
    if (err != DT_OK) {
        forward->rows.n_used = n_used;
        return err;
    }
    f->n_rows = batch->n_rows;
    f->tokens = batch->tokens;
    /* Query heads are cut up only where heads and ranges alone leave threads idle. */
    int n_threads = dt_cpu_n_threads(f->w->cpu), group = c->n_head / c->n_head_kv;
    int n_tasks = c->n_head_kv * f->n_ranges *
                  ((batch->n_rows * group + DT_ATTN_QUERIES - 1) / DT_ATTN_QUERIES);
    f->n_head_split = DT_MIN(group, DT_MAX(1, 2 * n_threads / n_tasks));
    for (int i = 0; i < f->n_phases; i++)
        atomic_store_explicit(&f->next[i], 0, memory_order_relaxed);
    dt_pool_run(f->w->cpu->pool, pass_work, f);
    return DT_OK;
}

static dt_err cpu_topk(dt_forward *forward, dt_topk *out, int i_row, const dt_topk_args *args) {
    int n_vocab = forward->model->config.n_vocab;
    dt_topk_row(out, forward->logits + (size_t)i_row * (size_t)n_vocab, n_vocab, args);
    return DT_OK;
}

static dt_err cpu_move(dt_forward *forward, const dt_row_move *moves, int n_moves) {
    dt_kv_move(&((cpu_forward *)forward)->kv, moves, n_moves);
    return DT_OK;
}

/* Panels are added at the end of the list: what was computed before stays as it is. */
static dt_err cpu_admit(dt_forward *forward, int32_t n_low, const int32_t *tokens, int n) {
    cpu_forward *f = (cpu_forward *)forward;
    int n_vocab = f->w->model->config.n_vocab;
    size_t n_all = ((size_t)n_vocab + DT_PANEL_ROWS - 1) / DT_PANEL_ROWS;
    if (!f->admitted) {
        dt_mem_free(f->panels); /* of a call that got no further */
        f->panels = NULL;
        DT_TRY(dt_mem_alloc(&f->panels, n_all * sizeof *f->panels));
        DT_TRY(dt_mem_alloc(&f->admitted, n_all * sizeof *f->admitted));
        for (size_t i = 0; i < DT_BATCH_MAX * (size_t)n_vocab; i++)
            f->logits[i] = -__builtin_inff();
        for (int32_t id = 0; id < n_vocab && id < n_low; id += DT_PANEL_ROWS) {
            f->admitted[id / DT_PANEL_ROWS] = true;
            f->panels[f->n_panels++] = id / DT_PANEL_ROWS;
        }
    }
    for (int i = 0; i < n; i++) {
        int panel = tokens[i] / DT_PANEL_ROWS;
        if (tokens[i] < 0 || tokens[i] >= n_vocab || f->admitted[panel])
            continue;
        f->admitted[panel] = true;
        f->panels[f->n_panels++] = panel;
    }
    return DT_OK;
}

static void cpu_close(dt_forward *forward) {
    cpu_forward *f = (cpu_forward *)forward;
    dt_kv_close(&f->kv);
    if (f->logits)
        dt_mem_unmap(f->logits, f->logits_bytes);
    if (f->part)
        dt_mem_unmap(f->part, f->part_bytes);
    void *blocks[] = {f->ancestors, f->x, f->h, f->q, f->k, f->v, f->attn, f->delta, f->gate, f->up,
        f->cos_sin, f->act_q, f->act_d, f->act_sum16, f->act_sum32, f->scratch, f->next, f->panels,
        f->admitted};
    for (size_t i = 0; i < DT_COUNT(blocks); i++)
        dt_mem_free(blocks[i]);
    dt_rows_deinit(&forward->rows);
    dt_mem_free(f);
}

static const dt_forward_ops cpu_ops = {cpu_eval, cpu_topk, cpu_move, cpu_close, cpu_admit};

static dt_err allocate_floats(float **out, int n_columns) {
    return dt_mem_alloc(out, DT_BATCH_MAX * (size_t)n_columns * sizeof **out);
}

/* As the cache, these come with the context that is used. */
static size_t part_bytes(const dt_config *c, int n_rows) {
    size_t n_ranges = ((size_t)n_rows + DT_ATTN_RANGE - 1) / DT_ATTN_RANGE;
    size_t v_stride = dt_round_up((size_t)c->head_dim, 16);
    return n_ranges * DT_BATCH_MAX * (size_t)c->n_head * (v_stride + 16) * sizeof(float);
}

size_t dt_cpu_forward_bytes(const dt_config *config, int n_rows, dt_kv_type kv) {
    return dt_kv_bytes(config, n_rows, kv) + part_bytes(config, n_rows);
}

static dt_err allocate_cache(cpu_forward *f, int n_rows, dt_kv_type kv) {
    const dt_config *c = &f->w->model->config;
    DT_TRY(dt_rows_init(&f->base.rows, n_rows));
    f->base.kv_bytes = dt_kv_bytes(c, n_rows, kv);
    f->base.kv_token_bytes = dt_kv_bytes(c, DT_ATTN_RANGE, kv) / DT_ATTN_RANGE;
    DT_TRY(dt_kv_open(&f->kv, c, n_rows, kv));
    f->part_bytes = part_bytes(c, n_rows);
    return dt_mem_reserve(&f->part, f->part_bytes);
}

static dt_err allocate_work(cpu_forward *f) {
    const dt_config *c = &f->w->model->config;
    int n_q = c->n_head * c->head_dim, n_kv = c->n_head_kv * c->head_dim;
    int k_max = f->k_max = DT_MAX(c->n_ff, DT_MAX(c->n_embd, n_q));
    f->logits_bytes = DT_BATCH_MAX * (size_t)c->n_vocab * sizeof *f->logits;
    /* 67 MB where the vocabulary has 262,144 ids: pages come with the rows that are wanted. */
    DT_TRY(dt_mem_reserve(&f->logits, f->logits_bytes));
    DT_TRY(dt_mem_alloc(&f->ancestors, DT_BATCH_MAX * ANCESTORS_MAX * sizeof *f->ancestors));
    struct {
        float **out;
        int n;
    } buffers[] = {{&f->x, c->n_embd}, {&f->h, c->n_embd}, {&f->q, n_q}, {&f->k, n_kv},
        {&f->v, n_kv}, {&f->attn, n_q}, {&f->gate, c->n_ff}, {&f->up, c->n_ff},
        {&f->cos_sin, f->w->n_turns * c->n_rot}};
    size_t n_columns = 0;
    for (size_t i = 0; i < DT_COUNT(buffers); i++) {
        DT_TRY(allocate_floats(buffers[i].out, buffers[i].n));
        n_columns += (size_t)buffers[i].n;
    }
    f->twice = c->gate == DT_GATE_GELU;
    f->act_rows = f->twice ? 2 * DT_BATCH_MAX : DT_BATCH_MAX;
    DT_TRY(dt_mem_alloc(&f->delta, f->act_rows * (size_t)c->n_embd * sizeof *f->delta));
    size_t n_act = 2 * f->act_rows * (size_t)k_max;
    DT_TRY(dt_mem_alloc(&f->act_q, n_act));
    DT_TRY(dt_mem_alloc(&f->act_d, n_act / 32 * sizeof *f->act_d));
    DT_TRY(dt_mem_alloc(&f->act_sum16, n_act / 16 * sizeof *f->act_sum16));
    DT_TRY(dt_mem_alloc(&f->act_sum32, n_act / 32 * sizeof *f->act_sum32));
    size_t scores = DT_ATTN_QUERIES * DT_ATTN_RANGE * sizeof(float);
    f->scratch_bytes = dt_round_up(DT_MAX(scores, dt_matmul_scratch_bytes(f->w->way, k_max)), 4096);
    size_t n_scratch = f->scratch_bytes * (size_t)dt_cpu_n_threads(f->w->cpu);
    DT_TRY(dt_mem_alloc(&f->scratch, n_scratch));
    f->base.work_bytes =
        f->part_bytes + f->logits_bytes + n_scratch +
        DT_BATCH_MAX * ANCESTORS_MAX * sizeof *f->ancestors +
        (DT_BATCH_MAX * n_columns + f->act_rows * (size_t)c->n_embd) * sizeof(float) + n_act +
        n_act / 32 * (sizeof *f->act_d + 2 * sizeof *f->act_sum16 + sizeof *f->act_sum32);
    f->n_phases = c->n_layer * 12 + 1 + DT_BATCH_MAX;
    return dt_mem_alloc(&f->next, (size_t)f->n_phases * sizeof *f->next);
}

dt_err dt_cpu_forward_open_kv(
    dt_forward **out, const dt_cpu_weights *weights, int n_rows, dt_kv_type kv) {
    cpu_forward *f;
    DT_TRY(dt_mem_alloc(&f, sizeof *f));
    f->w = weights;
    f->base.ops = &cpu_ops;
    f->base.model = weights->model;
    f->base.device = "cpu";
    f->base.numerics = weights->numerics[kv];
    dt_err err = allocate_cache(f, n_rows, kv);
    if (err == DT_OK)
        err = allocate_work(f);
    if (err != DT_OK) {
        cpu_close(&f->base);
        return err;
    }
    f->base.logits = f->logits;
    f->base.features = f->h;
    *out = &f->base;
    return DT_OK;
}

dt_err dt_cpu_forward_open(dt_forward **out, const dt_cpu_weights *weights, int n_rows) {
    return dt_cpu_forward_open_kv(out, weights, n_rows, DT_KV_F16);
}
