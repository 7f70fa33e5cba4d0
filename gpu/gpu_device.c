/* Opening a device and placing a model's weights on it. */
#include <stdio.h>
#include <string.h>

#include "gpu/gpu_device.h"
#include "gpu/gpu_pack.h"
#include "models/rope.h"
#include "src/base/mem.h"

/* Packed bytes copied at a time. */
enum { STAGING_BYTES = 16 << 20 };
/* Larger vocabularies would need longer lists in top-k; none is known. */
enum { N_VOCAB_MAX = DT_GPU_SCAN_BLOCKS * 128 };

/* ---- the device ---- */

bool dt_gpu_built(void) {
    return dt_gpu_table() != NULL;
}

bool dt_gpu_present(void) {
    int n_devices = 0;
    return dt_gpu_table() && dt_gpu_table()->count(&n_devices) == DT_OK;
}

/* The device with the most free memory. */
static dt_err choose(int *index_out, const dt_gpu_ops *ops, int n_devices) {
    size_t most = 0;
    dt_err err = DT_OK;
    *index_out = -1;
    for (int i = 0; i < n_devices; i++) {
        dt_gpu_info info;
        err = ops->describe(&info, i);
        if (err == DT_OK && (*index_out < 0 || info.free_bytes > most)) {
            *index_out = i;
            most = info.free_bytes;
        }
    }
    return *index_out >= 0 ? DT_OK : err;
}

static dt_err open_device(dt_gpu *gpu, int index) {
    int n_devices = 0;
    DT_TRY(gpu->ops->count(&n_devices));
    if (index >= n_devices)
        DT_FAIL(DT_ERR_INPUT, "there is no GPU %d: the driver shows %d", index, n_devices);
    if (index < 0 && n_devices == 1)
        index = 0;
    if (index < 0)
        DT_TRY(choose(&index, gpu->ops, n_devices));
    DT_TRY(gpu->ops->open(&gpu->device, index));
    DT_TRY(gpu->ops->describe(&gpu->info, index));
    const double gib = 1024.0 * 1024.0 * 1024.0;
    snprintf(gpu->text, sizeof gpu->text, "GPU %d, %s (compute %d.%d, %.1f of %.1f GiB free)",
        index, gpu->info.name, gpu->info.major, gpu->info.minor, (double)gpu->info.free_bytes / gib,
        (double)gpu->info.total_bytes / gib);
    return DT_OK;
}

dt_err dt_gpu_open(dt_gpu **out, int index) {
    *out = NULL;
    if (!dt_gpu_table())
        DT_FAIL(DT_ERR_UNSUPPORTED, "this build has no kernels for a GPU");
    dt_gpu *gpu = NULL;
    DT_TRY(dt_mem_alloc(&gpu, sizeof *gpu));
    pthread_mutex_init(&gpu->mutex, NULL);
    gpu->ops = dt_gpu_table();
    dt_err err = open_device(gpu, index);
    if (err != DT_OK) {
        dt_gpu_close(gpu);
        return err;
    }
    *out = gpu;
    return DT_OK;
}

void dt_gpu_close(dt_gpu *gpu) {
    if (!gpu)
        return;
    if (gpu->device)
        gpu->ops->close(gpu->device);
    pthread_mutex_destroy(&gpu->mutex);
    dt_mem_free(gpu);
}

const char *dt_gpu_describe(const dt_gpu *gpu) {
    return gpu->text;
}

const char *dt_gpu_device_name(const dt_gpu *gpu) {
    return gpu->ops->name;
}

/* ---- weights ---- */

/* One thing to place: a matrix, or a vector of floats. */
typedef struct item {
    const dt_tensor *tensor;
    dt_gpu_matrix *matrix;
    const float **vector;
} item;

enum { ITEMS_OF_LAYER = 16, ITEMS_BESIDE = 3 };

/* Item i of the model; `tensor` is NULL where this model has none. False behind the last. */
static bool item_at(item *out, dt_gpu_weights *w, int i) {
    const dt_model *model = w->model;
    int i_layer = i / ITEMS_OF_LAYER;
    if (i_layer >= model->config.n_layer) {
        const item items[ITEMS_BESIDE] = {
            {model->output_norm, NULL, &w->output_norm},
            {model->output, &w->output, NULL},
            /* A tied table is read where the head lies. */
            {model->token_embd == model->output ? NULL : model->token_embd, &w->embedding, NULL},
        };
        i -= model->config.n_layer * ITEMS_OF_LAYER;
        if (i >= ITEMS_BESIDE)
            return false;
        *out = items[i];
        return true;
    }
    const dt_layer *from = &model->layers[i_layer];
    dt_gpu_layer *to = &w->layers[i_layer];
    const item items[ITEMS_OF_LAYER] = {
        {from->attn_norm, NULL, &to->attn_norm},
        {from->wq, &to->wq, NULL},
        {from->wk, &to->wk, NULL},
        {from->wv, &to->wv, NULL},
        {from->wo, &to->wo, NULL},
        {from->bq, NULL, &to->bq},
        {from->bk, NULL, &to->bk},
        {from->bv, NULL, &to->bv},
        {from->q_norm, NULL, &to->q_norm},
        {from->k_norm, NULL, &to->k_norm},
        {from->attn_post_norm, NULL, &to->attn_post_norm},
        {from->ffn_norm, NULL, &to->ffn_norm},
        {from->ffn_post_norm, NULL, &to->ffn_post_norm},
        {from->w_gate, &to->w_gate, NULL},
        {from->w_up, &to->w_up, NULL},
        {from->w_down, &to->w_down, NULL},
    };
    *out = items[i % ITEMS_OF_LAYER];
    return true;
}

static size_t item_bytes(item *it) {
    if (!it->matrix)
        return it->tensor->n_bytes;
    dt_gpu_matrix_of(it->matrix, it->tensor);
    return (size_t)it->matrix->n_panels * it->matrix->panel_bytes;
}

static size_t total_bytes(dt_gpu_weights *w, size_t *source_bytes_out) {
    size_t n = 0;
    item it;
    *source_bytes_out = 0;
    for (int i = 0; item_at(&it, w, i); i++) {
        if (!it.tensor)
            continue;
        n += dt_round_up(item_bytes(&it), DT_GPU_ALIGN);
        *source_bytes_out += it.tensor->n_bytes;
    }
    return n;
}

typedef struct loader {
    dt_gpu_weights *w;
    uint8_t *staging; /* [staging_bytes], pinned */
    size_t staging_bytes;
    size_t n_done, n_total; /* bytes of the file */
    void (*progress)(void *arg, size_t done, size_t total);
    void *arg;
} loader;

static dt_err upload(loader *l, uint8_t *d_to, size_t n_bytes) {
    const dt_gpu_ops *ops = l->w->gpu->ops;
    DT_TRY(ops->copy_in(l->w->gpu->device, d_to, l->staging, n_bytes));
    return ops->wait(l->w->gpu->device); /* the staging memory is written again */
}

static void advance(loader *l, size_t n_bytes) {
    l->n_done = DT_MIN(l->n_done + n_bytes, l->n_total);
    if (l->progress)
        l->progress(l->arg, l->n_done, l->n_total);
}

static dt_err place_vector(loader *l, const item *it, uint8_t *d_to) {
    size_t n = it->tensor->n_bytes;
    for (size_t at = 0; at < n; at += l->staging_bytes) {
        size_t n_now = DT_MIN(n - at, l->staging_bytes);
        memcpy(l->staging, (const uint8_t *)it->tensor->data + at, n_now);
        DT_TRY(upload(l, d_to + at, n_now));
    }
    *it->vector = (const float *)(const void *)d_to;
    advance(l, n);
    return DT_OK;
}

static dt_err place_matrix(loader *l, const item *it, uint8_t *d_to) {
    dt_gpu_matrix *m = it->matrix;
    size_t row_bytes = dt_type_row_bytes(m->type, m->k);
    int per = (int)DT_MAX(l->staging_bytes / m->panel_bytes, 1);
    for (int first = 0; first < m->n_panels; first += per) {
        int n = DT_MIN(per, m->n_panels - first);
        for (int i = 0; i < n; i++)
            dt_gpu_pack_panel(l->staging + (size_t)i * m->panel_bytes, it->tensor, first + i);
        DT_TRY(upload(l, d_to + (size_t)first * m->panel_bytes, (size_t)n * m->panel_bytes));
        size_t row0 = (size_t)first * DT_GPU_PANEL_ROWS;
        size_t n_rows = DT_MIN((size_t)n * DT_GPU_PANEL_ROWS, (size_t)m->n_out - row0);
        dt_file_map_release(
            (const uint8_t *)it->tensor->data + row0 * row_bytes, n_rows * row_bytes);
        advance(l, n_rows * row_bytes);
    }
    m->d_panels = d_to;
    return DT_OK;
}

static dt_err place_all(loader *l) {
    uint8_t *d_at = l->w->d_memory;
    item it;
    for (int i = 0; item_at(&it, l->w, i); i++) {
        if (!it.tensor)
            continue;
        size_t n = item_bytes(&it);
        DT_TRY(it.matrix ? place_matrix(l, &it, d_at) : place_vector(l, &it, d_at));
        d_at += dt_round_up(n, DT_GPU_ALIGN);
    }
    if (l->w->model->token_embd == l->w->model->output)
        l->w->embedding = l->w->output;
    return DT_OK;
}

/* The same products as on the CPU, so the same name (cpu/cpu_device.c). */
static void name_numerics(dt_gpu_weights *w) {
    bool quantised = false, plain = false;
    item it;
    for (int i = 0; item_at(&it, w, i); i++) {
        if (!it.tensor || !it.matrix || it.matrix == &w->embedding)
            continue;
        if (dt_type_block(it.tensor->type) > 1)
            quantised = true;
        else
            plain = true;
    }
    snprintf(w->numerics, sizeof w->numerics, "%s,kv-f16",
        !quantised ? "f32"
        : plain    ? "int8+f32"
                   : "int8");
}

static dt_err check_model(const dt_model *model, dt_gpu_weights *w) {
    if (model->config.n_vocab > N_VOCAB_MAX)
        DT_FAIL(DT_ERR_UNSUPPORTED, "a vocabulary of %d tokens: at most %d are drafted on a GPU",
            model->config.n_vocab, N_VOCAB_MAX);
    item it;
    for (int i = 0; item_at(&it, w, i); i++)
        if (it.tensor && it.matrix && !dt_gpu_shape_of(it.tensor->type).n_block)
            DT_FAIL(DT_ERR_UNSUPPORTED, "tensor %s: no kernel for %s on a GPU", it.tensor->name,
                dt_type_name(it.tensor->type));
    return DT_OK;
}

static dt_err make_frequencies(dt_gpu_weights *w) {
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

static dt_err load(dt_gpu_weights *w, loader *l) {
    const dt_gpu_ops *ops = w->gpu->ops;
    DT_TRY(dt_mem_alloc(&w->layers, (size_t)w->model->config.n_layer * sizeof *w->layers));
    DT_TRY(check_model(w->model, w));
    DT_TRY(make_frequencies(w));
    name_numerics(w);
    size_t n_bytes = total_bytes(w, &l->n_total), largest = 0;
    item it;
    for (int i = 0; item_at(&it, w, i); i++)
        if (it.tensor && it.matrix)
            largest = DT_MAX(largest, it.matrix->panel_bytes);
    DT_TRY(ops->alloc(&w->d_memory, w->gpu->device, n_bytes));
    l->staging_bytes = DT_MAX(largest, (size_t)STAGING_BYTES);
    DT_TRY(ops->alloc_pinned(&l->staging, w->gpu->device, l->staging_bytes));
    dt_err err = place_all(l);
    ops->release_pinned(w->gpu->device, l->staging);
    return err;
}

dt_err dt_gpu_load(dt_gpu_weights **out, dt_gpu *gpu, const dt_model *model,
    void (*progress)(void *arg, size_t done, size_t total), void *arg) {
    *out = NULL;
    dt_gpu_weights *w = NULL;
    DT_TRY(dt_mem_alloc(&w, sizeof *w));
    w->gpu = gpu;
    w->model = model;
    loader l = {.w = w, .progress = progress, .arg = arg};
    dt_err err = load(w, &l);
    if (err != DT_OK) {
        dt_gpu_unload(w);
        return err;
    }
    *out = w;
    return DT_OK;
}

void dt_gpu_unload(dt_gpu_weights *w) {
    if (!w)
        return;
    w->gpu->ops->release(w->gpu->device, w->d_memory);
    dt_mem_free(w->inverse_freq);
    dt_mem_free(w->layers);
    dt_mem_free(w);
}
