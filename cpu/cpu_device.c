#include <stdio.h>
#include <string.h>

#include "cpu/device.h"
#include "cpu/matmul_openblas.h"
#include "models/rope.h"
#include "src/base/mem.h"

/* Source bytes packed at a time, so that at most this much of the mapped file is resident beside
 * the packed copy. */
enum { SLICE_BYTES = 16 << 20 };

dt_err dt_cpu_open(dt_cpu **out, const dt_topo *topo, int n_threads, const char *isa_name) {
    dt_isa isa = dt_isa_best();
    if (isa_name && strcmp(isa_name, "auto") != 0) {
        DT_TRY(dt_isa_parse(&isa, isa_name));
        if (!dt_isa_runs(isa))
            DT_FAIL(DT_ERR_UNSUPPORTED, "this CPU does not run the instruction set %s", isa_name);
    }
    dt_cpu *cpu;
    DT_TRY(dt_mem_alloc(&cpu, sizeof *cpu));
    cpu->topo = topo;
    dt_kernels_get(&cpu->kernels, isa);
    dt_err err = dt_pool_open(&cpu->pool, topo,
        n_threads ? n_threads : DT_MIN(dt_topo_n_threads(topo), DT_POOL_THREADS_MAX));
    if (err != DT_OK) {
        dt_cpu_close(cpu);
        return err;
    }
    *out = cpu;
    return DT_OK;
}

void dt_cpu_close(dt_cpu *cpu) {
    if (!cpu)
        return;
    dt_pool_close(cpu->pool);
    dt_mem_free(cpu);
}

bool dt_cpu_isa_runs(const char *name) {
    dt_isa isa;
    return !name || strcmp(name, "auto") == 0 ||
           (dt_isa_parse(&isa, name) == DT_OK && dt_isa_runs(isa));
}

const char *dt_cpu_isa_name(int i) {
    return i >= 0 && i < DT_ISA_COUNT ? dt_isa_name((dt_isa)i) : NULL;
}

int dt_cpu_n_threads(const dt_cpu *cpu) {
    return dt_pool_n_threads(cpu->pool);
}

const char *dt_cpu_isa(const dt_cpu *cpu) {
    return cpu->kernels.isa;
}

void dt_cpu_weights_bytes(size_t *packed_out, size_t *source_out, const dt_cpu_weights *weights) {
    *packed_out = weights->memory_bytes;
    *source_out = weights->source_bytes;
}

dt_err dt_cpu_check_openblas(char *id, size_t n_id, char *fault, size_t n_fault) {
    const char *found = "";
    dt_err err = dt_openblas_open(&found, fault, n_fault);
    snprintf(id, n_id, "%s", found);
    return err;
}

const char *dt_cpu_disclaimer(const dt_cpu_weights *weights) {
    return weights->disclaimer;
}

/* Every matrix of the model, in the order of the file's layers; returns the next one or NULL. */
static dt_weight *weight_at(dt_cpu_weights *w, int i, const dt_tensor **tensor_out) {
    if (i == w->model->config.n_layer * 7) {
        *tensor_out = w->model->output;
        return &w->output;
    }
    if (i > w->model->config.n_layer * 7)
        return NULL;
    const dt_layer *from = &w->model->layers[i / 7];
    dt_cpu_layer *to = &w->layers[i / 7];
    dt_weight *weights[] = {
        &to->wq, &to->wk, &to->wv, &to->wo, &to->w_gate, &to->w_up, &to->w_down};
    const dt_tensor *tensors[] = {
        from->wq, from->wk, from->wv, from->wo, from->w_gate, from->w_up, from->w_down};
    *tensor_out = tensors[i % 7];
    return weights[i % 7];
}

/* Binds every matrix and, for the fused way, gives each its place; returns the bytes needed. */
static size_t lay_out(dt_cpu_weights *w, size_t *source_bytes_out) {
    size_t n_bytes = 0, n_source = 0;
    const dt_tensor *tensor;
    for (int i = 0;; i++) {
        dt_weight *weight = weight_at(w, i, &tensor);
        if (!weight)
            break;
        weight->tensor = tensor;
        if (w->way != DT_MATMUL_FUSED)
            continue;
        dt_packed *p = &weight->packed;
        p->type = tensor->type;
        p->k = (int)tensor->ne[0];
        p->n_out = (int)tensor->ne[1];
        p->n_panels = (p->n_out + DT_PANEL_ROWS - 1) / DT_PANEL_ROWS;
        p->panel_bytes = dt_pack_panel_bytes(p->type, p->k);
        n_bytes += dt_round_up((size_t)p->n_panels * p->panel_bytes, 64);
        n_source += tensor->n_bytes;
    }
    *source_bytes_out = n_source;
    return n_bytes;
}

typedef struct pack_job {
    dt_weight *weight;
    uint8_t *out;
    int end; /* panels of this slice: up to here */
    _Atomic int next;
} pack_job;

static void pack_work(void *arg, int i_thread, int n_threads) {
    (void)i_thread;
    (void)n_threads;
    pack_job *job = arg;
    for (;;) {
        int i = dt_pool_next(&job->next);
        if (i >= job->end)
            return;
        dt_pack_panel(
            job->out + (size_t)i * job->weight->packed.panel_bytes, job->weight->tensor, i);
    }
}

static void pack_all(dt_cpu_weights *w, size_t n_source,
    void (*progress)(void *arg, size_t done, size_t total), void *arg) {
    uint8_t *at = w->memory;
    size_t n_done = 0;
    const dt_tensor *tensor;
    for (int i = 0;; i++) {
        dt_weight *weight = weight_at(w, i, &tensor);
        if (!weight)
            break;
        dt_packed *p = &weight->packed;
        size_t source_panel = DT_PANEL_ROWS * dt_type_row_bytes(p->type, p->k);
        int per_slice = (int)DT_MAX(1, SLICE_BYTES / source_panel);
        pack_job job = {.weight = weight, .out = at};
        for (int first = 0; first < p->n_panels; first += per_slice) {
            atomic_store_explicit(&job.next, first, memory_order_relaxed);
            job.end = DT_MIN(first + per_slice, p->n_panels);
            dt_pool_run(w->cpu->pool, pack_work, &job);
            const uint8_t *source = (const uint8_t *)tensor->data + (size_t)first * source_panel;
            dt_file_map_release(source, DT_MIN((size_t)(job.end - first) * source_panel,
                                            tensor->n_bytes - (size_t)first * source_panel));
            n_done += (size_t)(job.end - first) * source_panel;
            if (progress)
                progress(arg, DT_MIN(n_done, n_source), n_source);
        }
        p->data = at;
        at += dt_round_up((size_t)p->n_panels * p->panel_bytes, 64);
    }
}

static void name_numerics(dt_cpu_weights *w, const char *openblas_id) {
    bool quantised = false, plain = false;
    const dt_tensor *tensor;
    for (int i = 0; weight_at(w, i, &tensor); i++) {
        if (dt_act_block(tensor->type, DT_MATMUL_FUSED))
            quantised = true;
        else
            plain = true;
    }
    const char *way = w->way == DT_MATMUL_OPENBLAS              ? openblas_id
                      : w->way == DT_MATMUL_FLOAT || !quantised ? "f32"
                      : plain                                   ? "int8+f32"
                                                                : "int8";
    for (int kv = DT_KV_F16; kv <= DT_KV_Q8_0; kv++)
        snprintf(w->numerics[kv], sizeof w->numerics[kv], "%s,kv-%s", way,
            kv == DT_KV_F16 ? "f16" : "q8_0");
}

static dt_err make_frequencies(dt_cpu_weights *w) {
    const dt_config *c = &w->model->config;
    int n = c->n_rot / 2;
    w->n_turns = c->local_rope ? 2 : 1;
    DT_TRY(dt_mem_alloc(&w->inverse_freq, (size_t)(w->n_turns * n) * sizeof *w->inverse_freq));
    dt_rope_frequencies(
        w->inverse_freq, c, w->model->rope_freqs ? w->model->rope_freqs->data : NULL);
    if (c->local_rope)
        dt_rope_frequencies_local(w->inverse_freq + n, c);
    return DT_OK;
}

static dt_err load(
    dt_cpu_weights *w, void (*progress)(void *arg, size_t done, size_t total), void *arg) {
    const char *openblas_id = "";
    if (w->way == DT_MATMUL_OPENBLAS)
        DT_TRY(dt_openblas_open(&openblas_id, w->disclaimer, sizeof w->disclaimer));
    DT_TRY(dt_mem_alloc(&w->layers, (size_t)w->model->config.n_layer * sizeof *w->layers));
    DT_TRY(make_frequencies(w));
    size_t n_source = 0;
    size_t n_bytes = lay_out(w, &n_source);
    name_numerics(w, openblas_id);
    if (w->way != DT_MATMUL_FUSED)
        return DT_OK;
    DT_TRY(dt_mem_map_huge(&w->memory, n_bytes));
    w->memory_bytes = n_bytes;
    w->source_bytes = n_source;
    pack_all(w, n_source, progress, arg);
    return DT_OK;
}

dt_err dt_cpu_load(dt_cpu_weights **out, dt_cpu *cpu, const dt_model *model, dt_matmul_way way,
    void (*progress)(void *arg, size_t done, size_t total), void *arg) {
    if (model->config.n_head / model->config.n_head_kv > DT_ATTN_GROUP_MAX)
        DT_FAIL(DT_ERR_UNSUPPORTED, "%d query heads share a KV head; at most %d are supported",
            model->config.n_head / model->config.n_head_kv, DT_ATTN_GROUP_MAX);
    dt_cpu_weights *w;
    DT_TRY(dt_mem_alloc(&w, sizeof *w));
    w->cpu = cpu;
    w->model = model;
    w->way = way == DT_MATMUL_AUTO ? DT_MATMUL_FUSED : way;
    dt_err err = load(w, progress, arg);
    if (err != DT_OK) {
        dt_cpu_unload(w);
        return err;
    }
    *out = w;
    return DT_OK;
}

void dt_cpu_unload(dt_cpu_weights *w) {
    if (!w)
        return;
    if (w->memory)
        dt_mem_unmap(w->memory, w->memory_bytes);
    dt_mem_free(w->inverse_freq);
    dt_mem_free(w->layers);
    dt_mem_free(w);
}
