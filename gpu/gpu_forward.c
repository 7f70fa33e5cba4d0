/* The forward pass of a draft on a GPU: host code over the table of gpu/ops.h.
 *
 * One eval is one graph: the record is copied in, the layers run, the best tokens of every wanted
 * row are found and copied out. A graph is made for a bucket of rows, of positions and of depth,
 * when an eval first needs it; what is not in the key comes from the record. The calling thread
 * sleeps until the stream is done. */
#include <string.h>

#include "gpu/gpu_device.h"
#include "src/base/fmath.h"
#include "src/base/mem.h"

_Static_assert((int)DT_BATCH_MAX == (int)DT_GPU_ROWS_MAX, "the rows of a batch");
_Static_assert((int)DT_TOPK_FILTERED <= (int)DT_GPU_RANKED, "the candidates of a row");

enum {
    DEPTH = 64,        /* speculative ancestors of a row for which most graphs have room */
    DEPTH_MAX = 1024,  /* and those of the others; the longest branch */
    N_GRAPHS_MAX = 96, /* the oldest gives way */
    STEP_BYTES = 1280, /* of the record, before the rotations */
};

_Static_assert(sizeof(dt_gpu_step) <= STEP_BYTES, "the step's place in the record");

/* Upper bounds for which a graph is made. */
typedef struct bucket {
    int m, n_ranges, depth;
} bucket;

typedef struct round_graph {
    bucket key;
    dt_gpu_graph *graph;
} round_graph;

/* Bytes of device memory, handed out twice: first counted, then placed. */
typedef struct arena {
    uint8_t *base; /* NULL while counting */
    size_t n_bytes;
} arena;

typedef struct gpu_forward {
    dt_forward base;
    const dt_gpu_weights *w;
    const dt_gpu_ops *ops;
    dt_gpu_device *device;
    int v_stride, n_ranges_max, k_max;
    size_t head_keys, head_values; /* elements of one KV head of one layer */
    void *d_kv, *d_work;
    uint16_t *d_keys, *d_values; /* [n_layer][n_head_kv][head_keys], [..][head_values] */

    /* In device memory, [DT_BATCH_MAX] rows each. */
    float *d_x, *d_h, *d_q, *d_k, *d_v, *d_attn, *d_delta, *d_gate, *d_up, *d_logits, *d_part;
    float *d_delta_rest; /* of products in two steps (doc/numerics.md) */
    dt_gpu_act d_by32, d_by256, d_rest;
    bool twice; /* inputs of wo and w_down may be quantised in two steps */
    float *d_block_max;
    int32_t *d_counts, *d_ids;
    double *d_sort_keys;
    dt_gpu_best *d_best;
    uint8_t *d_record;
    dt_gpu_move *d_moves;

    /* Pinned. */
    uint8_t *record; /* dt_gpu_step, rotations, ancestors */
    dt_gpu_best *best;
    dt_gpu_move *moves;
    float *staged_logits; /* [DT_BATCH_MAX][n_vocab], NULL unless asked for */

    float *host_logits;
    int out_index[DT_BATCH_MAX]; /* row of the batch -> row of the results, -1 */
    dt_topk_args ranked_with;    /* what `best` was found with */
    bool ranked, moving;         /* `best` holds something; `moves` is in use by the stream */
    int32_t next_position[DT_BATCH_MAX];
    round_graph graphs[N_GRAPHS_MAX];
    int n_graphs, next_graph;
} gpu_forward;

/* ---- the record ---- */

static size_t rotations_bytes(const gpu_forward *f, int m) {
    size_t n = (size_t)(m * f->w->n_turns) * (size_t)f->w->model->config.n_rot * sizeof(float);
    return dt_round_up(n, DT_GPU_ALIGN);
}

static size_t record_bytes(const gpu_forward *f, bucket b) {
    return STEP_BYTES + rotations_bytes(f, b.m) + (size_t)b.m * (size_t)b.depth * sizeof(int32_t);
}

static dt_gpu_step *step_of(gpu_forward *f) {
    return (dt_gpu_step *)(void *)f->record;
}

static const dt_gpu_step *d_step_of(const gpu_forward *f) {
    return (const dt_gpu_step *)(const void *)f->d_record;
}

static int power_of_two(int n) {
    int power = 1;
    while (power < n)
        power *= 2;
    return power;
}

/* ---- a round, call by call ---- */

typedef struct product {
    const dt_gpu_matrix *matrix;
    float *out;
} product;

static dt_gpu_forms forms_for(const gpu_forward *f, const product *products, int n) {
    dt_gpu_forms forms = {0, f->d_by32, f->d_by256, f->d_rest};
    for (int i = 0; i < n; i++) {
        int block = dt_type_block(products[i].matrix->type);
        forms.forms |= block == 32 ? DT_GPU_FORM_32 : block == 256 ? DT_GPU_FORM_256 : 0;
    }
    return forms;
}

/* The matrix ends a block of a model whose activations there are quantised in two steps. */
static bool goes_twice(const gpu_forward *f, const dt_gpu_matrix *matrix) {
    return f->twice && dt_type_block(matrix->type) == 256;
}

static dt_gpu_forms forms_for_output(const gpu_forward *f, const product *p) {
    dt_gpu_forms forms = forms_for(f, p, 1);
    if (goes_twice(f, p->matrix))
        forms.forms |= DT_GPU_FORM_TWICE;
    return forms;
}

/* Products of one input; those of one type share a launch. */
static dt_err multiply(
    gpu_forward *f, const product *products, int n, const float *d_x, int m_max, int count) {
    bool done[DT_GPU_PRODUCTS] = {false};
    for (int i = 0; i < n; i++) {
        if (done[i])
            continue;
        const dt_gpu_matrix *first = products[i].matrix;
        dt_gpu_matmul args = {
            .d_step = d_step_of(f),
            .type = first->type,
            .k = first->k,
            .n_blocks = first->n_blocks,
            .act = dt_type_block(first->type) == 256 ? f->d_by256 : f->d_by32,
            .x = d_x,
            .m_max = m_max,
            .count = count,
        };
        for (int j = i; j < n; j++) {
            const dt_gpu_matrix *m = products[j].matrix;
            if (done[j] || m->type != first->type)
                continue;
            done[j] = true;
            int at = args.n_products++;
            args.products[at].d_panels = m->d_panels;
            args.products[at].panel_bytes = m->panel_bytes;
            args.products[at].out = products[j].out;
            args.products[at].n_out = m->n_out;
            args.products[at].n_panels = m->n_panels;
        }
        DT_TRY(f->ops->matmul(f->device, &args));
    }
    return DT_OK;
}

/* The product that ends a block, into the delta. */
static dt_err project(gpu_forward *f, const product *p, const float *d_x, int m_max) {
    DT_TRY(multiply(f, p, 1, d_x, m_max, DT_GPU_COUNT_ROWS));
    if (!goes_twice(f, p->matrix))
        return DT_OK;
    const product rest = {p->matrix, f->d_delta_rest};
    dt_gpu_act first = f->d_by256;
    f->d_by256 = f->d_rest;
    dt_err err = multiply(f, &rest, 1, d_x, m_max, DT_GPU_COUNT_ROWS);
    f->d_by256 = first;
    return err;
}

/* What the block before a norm has left to add: the product of `matrix`, normalised by d_post. */
typedef struct addend {
    const dt_gpu_matrix *matrix; /* NULL: nothing */
    const float *d_post;
} addend;

static dt_err norm(gpu_forward *f, addend add, const float *d_w, const product *products, int n,
    int m_max, bool gather) {
    const dt_config *c = &f->w->model->config;
    const dt_gpu_norm args = {
        .d_step = d_step_of(f),
        .x = f->d_x,
        .delta = add.matrix ? f->d_delta : NULL,
        .delta_rest = add.matrix && goes_twice(f, add.matrix) ? f->d_delta_rest : NULL,
        .delta_norm = add.d_post,
        .w = d_w,
        .h = f->d_h,
        .out = forms_for(f, products, n),
        .eps = c->norm_eps,
        .n = c->n_embd,
        .m_max = m_max,
        .gather = gather,
    };
    return f->ops->norm(f->device, &args);
}

static dt_err attention(gpu_forward *f, int i_layer, const product *wo, bucket b) {
    const dt_config *c = &f->w->model->config;
    const dt_gpu_layer *layer = &f->w->layers[i_layer];
    bool local = c->local[i_layer];
    const float *d_rotations = (const float *)(const void *)(f->d_record + STEP_BYTES);
    if (local && c->local_rope)
        d_rotations += (size_t)b.m * (size_t)c->n_rot;
    const void *d_ancestors = f->d_record + STEP_BYTES + rotations_bytes(f, b.m);
    size_t head = (size_t)i_layer * (size_t)c->n_head_kv;
    uint16_t *d_keys = f->d_keys + head * f->head_keys;
    uint16_t *d_values = f->d_values + head * f->head_values;
    DT_TRY(f->ops->rotate(f->device, &(dt_gpu_rotate){
                                         .d_step = d_step_of(f),
                                         .q = f->d_q,
                                         .k = f->d_k,
                                         .v = f->d_v,
                                         .bq = layer->bq,
                                         .bk = layer->bk,
                                         .bv = layer->bv,
                                         .q_norm = layer->q_norm,
                                         .k_norm = layer->k_norm,
                                         .cos_sin = d_rotations,
                                         .keys = d_keys,
                                         .values = d_values,
                                         .head_keys = f->head_keys,
                                         .head_values = f->head_values,
                                         .v_stride = f->v_stride,
                                         .n_head = c->n_head,
                                         .n_head_kv = c->n_head_kv,
                                         .head_dim = c->head_dim,
                                         .n_rot = c->n_rot,
                                         .m_max = b.m,
                                         .eps = c->norm_eps,
                                         .halves = c->rope_pairing == DT_ROPE_HALVES,
                                     }));
    return f->ops->attend(f->device, &(dt_gpu_attend){
                                         .d_step = d_step_of(f),
                                         .ancestors = d_ancestors,
                                         .depth = b.depth,
                                         .q = f->d_q,
                                         .keys = d_keys,
                                         .values = d_values,
                                         .head_keys = f->head_keys,
                                         .head_values = f->head_values,
                                         .part = f->d_part,
                                         .out = f->d_attn,
                                         .forms = forms_for_output(f, wo),
                                         .v_stride = f->v_stride,
                                         .n_head = c->n_head,
                                         .n_head_kv = c->n_head_kv,
                                         .head_dim = c->head_dim,
                                         .m_max = b.m,
                                         .n_ranges_max = b.n_ranges,
                                         .window = local ? c->window : 0,
                                         .scale = c->attn_scale,
                                     });
}

static dt_err block(gpu_forward *f, int i_layer, bucket b) {
    const dt_config *c = &f->w->model->config;
    const dt_gpu_layer *l = &f->w->layers[i_layer];
    const product qkv[] = {{&l->wq, f->d_q}, {&l->wk, f->d_k}, {&l->wv, f->d_v}};
    const product wo[] = {{&l->wo, f->d_delta}}, down[] = {{&l->w_down, f->d_delta}};
    const product gate_up[] = {{&l->w_gate, f->d_gate}, {&l->w_up, f->d_up}};
    const dt_gpu_layer *last = i_layer > 0 ? l - 1 : NULL;
    const addend before = {last ? &last->w_down : NULL, last ? last->ffn_post_norm : NULL};
    const addend after_attention = {&l->wo, l->attn_post_norm};
    DT_TRY(norm(f, before, l->attn_norm, qkv, 3, b.m, false));
    DT_TRY(multiply(f, qkv, 3, f->d_h, b.m, DT_GPU_COUNT_ROWS));
    DT_TRY(attention(f, i_layer, wo, b));
    DT_TRY(project(f, wo, f->d_attn, b.m));
    DT_TRY(norm(f, after_attention, l->ffn_norm, gate_up, 2, b.m, false));
    DT_TRY(multiply(f, gate_up, 2, f->d_h, b.m, DT_GPU_COUNT_ROWS));
    DT_TRY(f->ops->gate(f->device, &(dt_gpu_gate){
                                       .d_step = d_step_of(f),
                                       .gate = f->d_gate,
                                       .up = f->d_up,
                                       .out = forms_for_output(f, down),
                                       .n = c->n_ff,
                                       .m_max = b.m,
                                       .gelu = c->gate == DT_GATE_GELU,
                                   }));
    return project(f, down, f->d_gate, b.m);
}

static dt_err rank(gpu_forward *f, int m_max) {
    const dt_gpu_topk args = {
        .d_step = d_step_of(f),
        .logits = f->d_logits,
        .n_vocab = f->w->model->config.n_vocab,
        .m_max = m_max,
        .block_max = f->d_block_max,
        .counts = f->d_counts,
        .keys = f->d_sort_keys,
        .ids = f->d_ids,
        .best = f->d_best,
    };
    DT_TRY(f->ops->topk(f->device, &args));
    return f->ops->copy_out(f->device, f->best, f->d_best, (size_t)m_max * sizeof *f->best);
}

static dt_err enqueue(gpu_forward *f, bucket b) {
    const dt_config *c = &f->w->model->config;
    DT_TRY(f->ops->copy_in(f->device, f->d_record, f->record, record_bytes(f, b)));
    DT_TRY(f->ops->embed(f->device, &(dt_gpu_embed){
                                        .d_step = d_step_of(f),
                                        .table = f->w->embedding,
                                        .x = f->d_x,
                                        .scale = c->embd_scale != 1.0f ? c->embd_scale : 0.0f,
                                        .m_max = b.m,
                                    }));
    for (int i = 0; i < c->n_layer; i++)
        DT_TRY(block(f, i, b));
    const product output[] = {{&f->w->output, f->d_logits}};
    const dt_gpu_layer *last = &f->w->layers[c->n_layer - 1];
    const addend before = {&last->w_down, last->ffn_post_norm};
    DT_TRY(norm(f, before, f->w->output_norm, output, 1, b.m, true));
    DT_TRY(multiply(f, output, 1, f->d_h, b.m, DT_GPU_COUNT_OUT));
    DT_TRY(rank(f, b.m));
    if (!f->staged_logits)
        return DT_OK;
    return f->ops->copy_out(f->device, f->staged_logits, f->d_logits,
        (size_t)b.m * (size_t)c->n_vocab * sizeof *f->d_logits);
}

/* ---- graphs ---- */

static dt_err make_graph(dt_gpu_graph **out, gpu_forward *f, bucket b) {
    *out = NULL;
    DT_TRY(f->ops->graph_begin(f->device));
    dt_err err = enqueue(f, b);
    dt_gpu_graph *graph = NULL;
    if (err != DT_OK) {
        /* The capture must end all the same; the first message is the one that counts. */
        char message[256];
        strncpy(message, dt_err_message(), sizeof message - 1);
        message[sizeof message - 1] = '\0';
        (void)f->ops->graph_end(&graph, f->device);
        f->ops->graph_free(f->device, graph);
        DT_FAIL(err, "%s", message);
    }
    return f->ops->graph_end(out, f->device);
}

static dt_err graph_for(dt_gpu_graph **out, gpu_forward *f, bucket b) {
    for (int i = 0; i < f->n_graphs; i++) {
        bucket key = f->graphs[i].key;
        if (key.m == b.m && key.n_ranges == b.n_ranges && key.depth == b.depth) {
            *out = f->graphs[i].graph;
            return DT_OK;
        }
    }
    DT_TRY(make_graph(out, f, b));
    int at = f->n_graphs < N_GRAPHS_MAX ? f->n_graphs++ : f->next_graph++ % N_GRAPHS_MAX;
    f->ops->graph_free(f->device, f->graphs[at].graph);
    f->graphs[at] = (round_graph){b, *out};
    return DT_OK;
}

/* ---- eval ---- */

/* Forwards of one device share its stream, and the thread of each session runs one. */
static void lock(gpu_forward *f) {
    pthread_mutex_lock(&f->w->gpu->mutex);
}

static void unlock(gpu_forward *f) {
    pthread_mutex_unlock(&f->w->gpu->mutex);
}

/* Appends the batch's rows and writes down what each sees. */
static dt_err place_rows(gpu_forward *f, bucket *b, const dt_batch *batch, int32_t *ancestors_of) {
    dt_rows *rows = &f->base.rows;
    dt_gpu_step *step = step_of(f);
    int n_positions = 0, depth = 0;
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
        int n = rows->position[row] - rows->n_committed + 1;
        if (n > DEPTH_MAX)
            DT_FAIL(DT_ERR_LIMIT, "a branch of more than %d uncommitted tokens", DEPTH_MAX);
        ancestors_of[i] = row;
        step->tokens[i] = batch->tokens[i];
        step->n_positions[i] = f->next_position[i] = rows->n_committed + n;
        n_positions = DT_MAX(n_positions, step->n_positions[i]);
        depth = DT_MAX(depth, n);
    }
    step->n_ranges = (n_positions + DT_GPU_RANGE - 1) / DT_GPU_RANGE;
    b->m = power_of_two(batch->n_rows);
    b->n_ranges = DT_MIN(power_of_two(step->n_ranges), f->n_ranges_max);
    b->depth = depth <= DEPTH ? DEPTH : DEPTH_MAX;
    return DT_OK;
}

static void write_record(gpu_forward *f, bucket b, int n_rows, const int32_t *rows) {
    const dt_config *c = &f->w->model->config;
    dt_gpu_step *step = step_of(f);
    float *cos_sin = (float *)(void *)(f->record + STEP_BYTES);
    int32_t *ancestors = (int32_t *)(void *)(f->record + STEP_BYTES + rotations_bytes(f, b.m));
    size_t n_rot = (size_t)c->n_rot;
    for (int r = 0; r < n_rows; r++) {
        double position = step->n_positions[r] - 1;
        for (int i = 0; i < f->w->n_turns * c->n_rot / 2; i++) {
            double sine, cosine;
            int turn = i / (c->n_rot / 2), pair = i % (c->n_rot / 2);
            float *out = cos_sin + (size_t)(turn * b.m + r) * n_rot + 2 * pair;
            dt_sincos_f64(&sine, &cosine, position * f->w->inverse_freq[i]);
            double gain = turn == 0 ? c->rope_gain : 1.0;
            out[0] = (float)(cosine * gain);
            out[1] = (float)(sine * gain);
        }
        dt_rows_ancestors(ancestors + (size_t)r * (size_t)b.depth, &f->base.rows, rows[r]);
    }
}

/* What top-k on the device is to look for. */
static void write_topk(gpu_forward *f, const dt_topk_args *args) {
    dt_gpu_step *step = step_of(f);
    step->topk_mode = DT_GPU_TOPK_NONE;
    f->ranked = args != NULL;
    if (!args)
        return;
    f->ranked_with = *args;
    dt_topk_mode mode = dt_topk_mode_of(args);
    step->topk_mode = mode == DT_TOPK_PLAIN     ? DT_GPU_TOPK_PLAIN
                      : mode == DT_TOPK_BY_LIST ? DT_GPU_TOPK_FILTERED
                                                : DT_GPU_TOPK_NOISY;
    step->n_ranked = mode == DT_TOPK_PLAIN     ? DT_MIN(args->k, (int)DT_TOPK_MAX)
                     : mode == DT_TOPK_BY_LIST ? DT_TOPK_FILTERED
                                               : DT_TOPK_WEIGHED;
    step->n_allowed = DT_MAX(DT_MIN(args->n_allowed, f->w->model->config.n_vocab), 0);
    step->scan_block = 64; /* as dt_scan_row chooses it */
    while ((step->n_allowed + step->scan_block - 1) / step->scan_block > DT_GPU_SCAN_BLOCKS)
        step->scan_block *= 2;
    step->temperature = args->temperature;
    step->inverse_temperature = args->temperature > 0.0f ? 1.0f / args->temperature : 0.0f;
    step->scale = dt_topk_scale(args);
    step->seed = args->seed;
}

static dt_err run_round(gpu_forward *f, const dt_batch *batch) {
    dt_gpu_step *step = step_of(f);
    int32_t rows[DT_BATCH_MAX];
    bucket b = {0};
    DT_TRY(place_rows(f, &b, batch, rows));
    step->n_rows = batch->n_rows;
    step->row0 = f->base.batch_row0;
    step->n_committed = f->base.rows.n_committed;
    step->n_out = 0;
    for (int i = 0; i < batch->n_rows; i++) {
        bool wanted = !batch->wants || batch->wants[i];
        f->out_index[i] = wanted ? step->n_out : -1;
        if (wanted)
            step->out_rows[step->n_out++] = i;
    }
    write_record(f, b, batch->n_rows, rows);
    write_topk(f, f->base.topk_hint);
    dt_gpu_graph *graph = NULL;
    DT_TRY(graph_for(&graph, f, b));
    DT_TRY(f->ops->graph_launch(f->device, graph));
    DT_TRY(f->ops->wait(f->device));
    f->moving = false;
    size_t n_vocab = (size_t)f->w->model->config.n_vocab;
    for (int i = 0; i < step->n_out && f->staged_logits; i++)
        memcpy(f->host_logits + (size_t)step->out_rows[i] * n_vocab,
            f->staged_logits + (size_t)i * n_vocab, n_vocab * sizeof *f->host_logits);
    return DT_OK;
}

static dt_err gpu_eval(dt_forward *forward, const dt_batch *batch) {
    gpu_forward *f = (gpu_forward *)forward;
    if (batch->n_rows < 1 || batch->n_rows > DT_BATCH_MAX)
        DT_FAIL(DT_ERR_INTERNAL, "a batch of %d rows", batch->n_rows);
    int n_used = forward->rows.n_used;
    forward->batch_row0 = n_used;
    f->ranked = false;
    lock(f);
    dt_err err = run_round(f, batch);
    unlock(f);
    if (err != DT_OK)
        forward->rows.n_used = n_used;
    return err;
}

/* ---- top-k ---- */

/* The same candidates serve both. */
static bool same_ranking(const dt_topk_args *a, const dt_topk_args *b) {
    return dt_topk_mode_of(a) == dt_topk_mode_of(b) && a->k <= b->k &&
           a->n_allowed == b->n_allowed && a->temperature == b->temperature && a->seed == b->seed &&
           a->tau == b->tau;
}

static dt_err rank_again(gpu_forward *f) {
    DT_TRY(f->ops->copy_in(f->device, f->d_record, f->record, STEP_BYTES));
    DT_TRY(rank(f, power_of_two(step_of(f)->n_rows)));
    DT_TRY(f->ops->wait(f->device));
    f->moving = false;
    return DT_OK;
}

static dt_err gpu_topk(dt_forward *forward, dt_topk *out, int i_row, const dt_topk_args *args) {
    gpu_forward *f = (gpu_forward *)forward;
    dt_gpu_step *step = step_of(f);
    int i = i_row >= 0 && i_row < step->n_rows ? f->out_index[i_row] : -1;
    if (i < 0)
        DT_FAIL(DT_ERR_INTERNAL, "top-k of row %d, whose logits were not asked for", i_row);
    bool noisy = dt_topk_mode_of(args) == DT_TOPK_BY_NOISE; /* the device draws the noise */
    if (!f->ranked || !same_ranking(args, &f->ranked_with) ||
        (noisy && args->position != step->n_positions[i_row])) {
        write_topk(f, args);
        for (int r = 0; r < step->n_rows; r++)
            step->n_positions[r] = noisy ? (int32_t)args->position : f->next_position[r];
        lock(f);
        dt_err err = rank_again(f);
        unlock(f);
        DT_TRY(err);
    }
    const dt_gpu_best *best = &f->best[i];
    if (best->n < 0 || best->n > DT_GPU_RANKED)
        DT_FAIL(DT_ERR_DEVICE, "the GPU failed: %d candidates came back", (int)best->n);
    dt_topk_finish(out, best->tokens, best->values, best->n, best->best, (int64_t)best->sum, args);
    return DT_OK;
}

/* ---- the cache ---- */

static dt_err enqueue_moves(gpu_forward *f, const dt_row_move *moves, int n_moves) {
    const dt_config *c = &f->w->model->config;
    if (f->moving)
        DT_TRY(f->ops->wait(f->device));
    for (int i = 0; i < n_moves; i++)
        f->moves[i] = (dt_gpu_move){moves[i].from, moves[i].to};
    f->moving = true;
    DT_TRY(f->ops->copy_in(f->device, f->d_moves, f->moves, (size_t)n_moves * sizeof *f->moves));
    return f->ops->kv_move(f->device, &(dt_gpu_kv_move){
                                          .d_moves = f->d_moves,
                                          .n_moves = n_moves,
                                          .keys = f->d_keys,
                                          .values = f->d_values,
                                          .head_keys = f->head_keys,
                                          .head_values = f->head_values,
                                          .n_heads = c->n_layer * c->n_head_kv,
                                          .head_dim = c->head_dim,
                                          .v_stride = f->v_stride,
                                      });
}

static dt_err gpu_move(dt_forward *forward, const dt_row_move *moves, int n_moves) {
    gpu_forward *f = (gpu_forward *)forward;
    if (n_moves == 0)
        return DT_OK;
    if (n_moves > DT_KEEP_MAX)
        DT_FAIL(DT_ERR_INTERNAL, "%d rows to move", n_moves);
    lock(f);
    dt_err err = enqueue_moves(f, moves, n_moves);
    unlock(f);
    return err;
}

/* ---- memory ---- */

/* `out`: address of a pointer. */
static void take(arena *a, void *out, size_t n_bytes) {
    void *at = a->base ? a->base + a->n_bytes : NULL;
    memcpy(out, &at, sizeof at);
    a->n_bytes += dt_round_up(n_bytes, DT_GPU_ALIGN);
}

static void take_act(arena *a, dt_gpu_act *act, size_t k, size_t block) {
    take(a, &act->q, DT_BATCH_MAX * k);
    take(a, &act->d, DT_BATCH_MAX * (k / block + 1) * sizeof *act->d);
    take(a, &act->sum32, DT_BATCH_MAX * (k / 32 + 1) * sizeof *act->sum32);
    take(a, &act->sum16, DT_BATCH_MAX * (k / 16 + 1) * sizeof *act->sum16);
}

static void lay_out(arena *a, gpu_forward *f) {
    const dt_config *c = &f->w->model->config;
    size_t n_q = (size_t)(c->n_head * c->head_dim), n_kv = (size_t)(c->n_head_kv * c->head_dim);
    size_t n_embd = (size_t)c->n_embd, n_ff = (size_t)c->n_ff, n_vocab = (size_t)c->n_vocab;
    struct {
        float **out;
        size_t n;
    } rows[] = {{&f->d_x, n_embd}, {&f->d_h, n_embd}, {&f->d_q, n_q}, {&f->d_k, n_kv},
        {&f->d_v, n_kv}, {&f->d_attn, n_q}, {&f->d_delta, n_embd},
        {&f->d_delta_rest, f->twice ? n_embd : 0}, {&f->d_gate, n_ff}, {&f->d_up, n_ff},
        {&f->d_logits, n_vocab}, {&f->d_block_max, DT_GPU_SCAN_BLOCKS},
        {&f->d_part, (size_t)f->n_ranges_max * (size_t)c->n_head * (size_t)(f->v_stride + 16)}};
    for (size_t i = 0; i < DT_COUNT(rows); i++)
        take(a, rows[i].out, DT_BATCH_MAX * rows[i].n * sizeof(float));
    take_act(a, &f->d_by32, (size_t)f->k_max, 32);
    take_act(a, &f->d_by256, (size_t)f->k_max, 256);
    take_act(a, &f->d_rest, f->twice ? (size_t)f->k_max : 0, 256);
    take(a, &f->d_counts, DT_BATCH_MAX * DT_GPU_SCAN_BLOCKS * sizeof *f->d_counts);
    take(a, &f->d_sort_keys, DT_BATCH_MAX * DT_GPU_NOISY_MAX * sizeof *f->d_sort_keys);
    take(a, &f->d_ids, DT_BATCH_MAX * DT_GPU_NOISY_MAX * sizeof *f->d_ids);
    take(a, &f->d_best, DT_BATCH_MAX * sizeof *f->d_best);
    take(a, &f->d_record, record_bytes(f, (bucket){DT_BATCH_MAX, 1, DEPTH_MAX}));
    take(a, &f->d_moves, DT_KEEP_MAX * sizeof *f->d_moves);
}

static void gpu_close(dt_forward *forward) {
    gpu_forward *f = (gpu_forward *)forward;
    lock(f);
    (void)f->ops->wait(f->device); /* pinned memory is in use until then */
    for (int i = 0; i < f->n_graphs; i++)
        f->ops->graph_free(f->device, f->graphs[i].graph);
    f->ops->release(f->device, f->d_kv);
    f->ops->release(f->device, f->d_work);
    f->ops->release_pinned(f->device, f->record);
    f->ops->release_pinned(f->device, f->best);
    f->ops->release_pinned(f->device, f->moves);
    f->ops->release_pinned(f->device, f->staged_logits);
    unlock(f);
    dt_mem_free(f->host_logits);
    dt_rows_deinit(&forward->rows);
    dt_mem_free(f);
}

static const dt_forward_ops gpu_ops = {
    .eval = gpu_eval,
    .topk = gpu_topk,
    .move = gpu_move,
    .close = gpu_close,
};

static dt_err take_memory(gpu_forward *f, int n_rows, bool host_logits) {
    const dt_config *c = &f->w->model->config;
    const dt_gpu_ops *ops = f->ops;
    DT_TRY(dt_rows_init(&f->base.rows, n_rows));
    size_t n_heads = (size_t)c->n_layer * (size_t)c->n_head_kv;
    f->v_stride = (int)dt_round_up((size_t)c->head_dim, 16);
    f->head_keys =
        dt_round_up((size_t)n_rows, 32) * dt_round_up((size_t)c->head_dim, DT_GPU_KEY_GROUP);
    f->head_values = (size_t)n_rows * (size_t)f->v_stride;
    f->n_ranges_max = (n_rows + DT_GPU_RANGE - 1) / DT_GPU_RANGE;
    f->twice = c->gate == DT_GATE_GELU;
    f->k_max = DT_MAX(c->n_ff, DT_MAX(c->n_embd, c->n_head * c->head_dim));
    size_t keys_bytes = dt_round_up(n_heads * f->head_keys * sizeof *f->d_keys, DT_GPU_ALIGN);
    f->base.kv_token_bytes = 2 * n_heads * (size_t)c->head_dim * sizeof *f->d_keys;
    f->base.kv_bytes = keys_bytes + n_heads * f->head_values * sizeof *f->d_values;
    DT_TRY(ops->alloc(&f->d_kv, f->device, f->base.kv_bytes));
    f->d_keys = f->d_kv;
    f->d_values = (uint16_t *)(void *)((uint8_t *)f->d_kv + keys_bytes);
    arena a = {0};
    lay_out(&a, f);
    DT_TRY(ops->alloc(&f->d_work, f->device, a.n_bytes));
    f->base.work_bytes = a.n_bytes;
    a = (arena){f->d_work, 0};
    lay_out(&a, f);
    DT_TRY(ops->alloc_pinned(
        &f->record, f->device, record_bytes(f, (bucket){DT_BATCH_MAX, 1, DEPTH_MAX})));
    memset(f->record, 0, STEP_BYTES);
    DT_TRY(ops->alloc_pinned(&f->best, f->device, DT_BATCH_MAX * sizeof *f->best));
    DT_TRY(ops->alloc_pinned(&f->moves, f->device, DT_KEEP_MAX * sizeof *f->moves));
    if (!host_logits)
        return DT_OK;
    size_t n_bytes = DT_BATCH_MAX * (size_t)c->n_vocab * sizeof(float);
    DT_TRY(ops->alloc_pinned(&f->staged_logits, f->device, n_bytes));
    return dt_mem_alloc(&f->host_logits, n_bytes);
}

dt_err dt_gpu_forward_open(
    dt_forward **out, const dt_gpu_weights *weights, int n_rows, bool host_logits) {
    *out = NULL;
    gpu_forward *f = NULL;
    DT_TRY(dt_mem_alloc(&f, sizeof *f));
    f->w = weights;
    f->ops = weights->gpu->ops;
    f->device = weights->gpu->device;
    f->base.ops = &gpu_ops;
    f->base.model = weights->model;
    f->base.device = f->ops->name;
    f->base.apart = true;
    f->base.numerics = weights->numerics;
    lock(f);
    dt_err err = take_memory(f, n_rows, host_logits);
    unlock(f);
    if (err != DT_OK) {
        gpu_close(&f->base);
        return err;
    }
    f->base.logits = f->host_logits;
    *out = &f->base;
    return DT_OK;
}
